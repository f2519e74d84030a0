"""A disk that is full or can only be read, permissions, and what `-o` is given: files are whole or absent, and errors have one line."""
import csv
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from diffprune.core.store import Key, Store, create_array, save_array, save_json, save_tensors, temporary_path

PRUNE = ("-r", "0.5", "-m", "random", "--image-size", "8")
STUDY = ("study", "--preset", "smoke", "-m", "random", "-r", "0.5", "--device", "cpu")


def command(*args, store, **more):
    env = dict(os.environ, DIFFPRUNE_STORE=str(store), OMP_NUM_THREADS="1")
    return subprocess.run([sys.executable, "-m", "diffprune.cli", *map(str, args)], env=env, capture_output=True, text=True, **more)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "in"
    folder.mkdir()
    for i in range(6): Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def disk(tmp_path):
    "disk(options): a file system of its own, such as a small one or one that can only be read."
    made = []

    def mount(options):
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
        if done.returncode: pytest.skip("a file system cannot be mounted here, which needs root")
        made.append(place)
        return place
    yield mount
    for place in made: subprocess.run(["umount", "-l", str(place)])


def one_line(done, *words):
    no_error = r"^before: seeds: |^looking: |%\||stage/s\]|Warning|^  "  # what is said of seeds, bars, a warning and its line of code
    said = [line for line in done.stderr.splitlines() if line.strip() and not re.search(no_error, line)]
    assert done.returncode == 1 and "Traceback" not in done.stderr and len(said) == 1, done.stderr[-2000:]
    assert said[0].startswith("diffprune: ") and all(w in said[0] for w in words), said


@pytest.mark.parametrize("options, words", [("size=16k", "No space left"), ("ro", "Read-only")], ids=["full", "read-only"])
@pytest.mark.parametrize("how", ["prune", "study", "workers", "output"])
def test_a_full_or_read_only_disk_is_one_line(disk, pictures, tmp_path, options, words, how):
    place = disk(options)
    if how in ("prune", "output") and options != "ro":
        (place / "fill").write_bytes(bytes(os.statvfs(place).f_bavail * os.statvfs(place).f_frsize))
    if how == "output":
        done = command("prune", pictures, *PRUNE, "-o", place / "kept.csv", store=tmp_path / "store")
        assert not list(place.glob("*kept*"))
    elif how == "prune":
        done = command("prune", pictures, *PRUNE, "-o", tmp_path / "kept.csv", store=place / "store")
        assert not (tmp_path / "kept.csv").exists()
    else: done = command(*STUDY, "--workers", 2 if how == "workers" else 1, store=place / "store")
    one_line(done, words)
    assert Store(place / "store").verify() == {}


def test_a_disk_that_fills_up_while_workers_train_is_one_line(disk):
    place = disk("size=9m")
    done = command(*STUDY, "--workers", 2, store=place / "store")
    if done.returncode == 0: pytest.skip("the study fits on nine megabytes")
    one_line(done, "No space left")
    store = Store(place / "store")
    assert store.verify() == {} and store.artifacts(), "what was finished before is whole"


WRITERS = dict(
    json=lambda p: save_json(p, {}), array=lambda p: save_array(p, np.zeros(9)), tensors=lambda p: save_tensors(p, dict(a=torch.zeros(3))),
    csv=lambda p: write(p, lambda t: pd.DataFrame(dict(a=[1])).to_csv(t)), parquet=lambda p: write(p, pd.DataFrame(dict(a=[1])).to_parquet),
    figure=lambda p: write(p, lambda t: figure().savefig(t, format="png")), created=lambda p: create_array(p, np.uint8, (4, 4)))


def write(path, fill):
    with temporary_path(path) as tmp: fill(tmp)


def figure():
    from matplotlib.figure import Figure
    return Figure()


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], ids=oct)
@pytest.mark.parametrize("kind", WRITERS)
def test_files_and_folders_have_the_permissions_that_the_umask_leaves(tmp_path, umask, kind):
    before = os.umask(umask)
    try:
        folder = tmp_path if kind == "created" else tmp_path / "new/deep"
        WRITERS[kind](folder / "file.npy")
        WRITERS[kind](folder / "file.npy")
    finally: os.umask(before)
    assert [p.name for p in folder.iterdir()] == ["file.npy"]
    assert stat.S_IMODE((folder / "file.npy").stat().st_mode) == 0o666 & ~umask
    for p in () if kind == "created" else (folder, folder.parent): assert stat.S_IMODE(p.stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], ids=oct)
def test_all_of_a_store_has_the_permissions_that_the_umask_leaves(tmp_path, pictures, umask):
    done = command("prune", pictures, *PRUNE, "-o", tmp_path / "out/kept.csv", store=tmp_path / "store", preexec_fn=lambda: os.umask(umask))
    assert done.returncode == 0, done.stderr
    made = [p for top in ("store", "out") for p in (tmp_path / top, *(tmp_path / top).rglob("*"))]
    modes = {(p.is_dir(), stat.S_IMODE(p.stat().st_mode)) for p in made}
    assert len(made) > 8 and modes == {(True, 0o777 & ~umask), (False, 0o666 & ~umask)}, [(p, oct(p.stat().st_mode)) for p in made]


@pytest.mark.parametrize("kind", ["../x", "a/b", "/tmp/x", "..", "", "work", "damaged", "a\\b", "x\0", None])
def test_a_kind_is_no_path(tmp_path, kind):
    store = Store(tmp_path / "store")
    with pytest.raises(ValueError, match="cannot be a kind"): store.build(kind, make=lambda f: None)
    with pytest.raises(ValueError, match="cannot be a kind"): Key(kind)
    with pytest.raises(ValueError, match="cannot name a study"): store.record_study(f"../{kind}", {}, [])
    assert not list(tmp_path.iterdir())
    if kind:
        with pytest.raises(ValueError, match="cannot be a kind"): store.artifacts(kind)


def read_list(text): return [row["kept"] for row in csv.DictReader(text.splitlines())]


def test_a_list_goes_through_a_symbolic_link(tmp_path, pictures):
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")  # of which nothing is there yet
    for more in ([], ["--overwrite"]):
        done = command("prune", pictures, *PRUNE, "-o", tmp_path / "link.csv", *more, store=tmp_path / "store")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "link.csv").is_symlink() and read_list((tmp_path / "target.csv").read_text()).count("True") == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.csv", "store", "target.csv"]


def test_a_list_goes_to_the_standard_output_alone(tmp_path, pictures):
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        done = command("prune", pictures, *PRUNE, "-o", name, store=tmp_path / "store")
        assert done.returncode == 0 and len(read_list(done.stdout)) == 6 and "kept 3 of 6" in done.stderr
        assert done.stdout.startswith("id,path,label,cluster,score,rank,kept,reason,duplicate_of\n") and done.stdout.count("\n") == 7
    with (tmp_path / "file.csv").open("w") as f:
        f.write("before\n"); f.flush()
        env = dict(os.environ, DIFFPRUNE_STORE=str(tmp_path / "store"))
        words = ["-m", "diffprune.cli", "prune", str(pictures), *PRUNE, "-o", "/dev/stdout"]
        subprocess.run([sys.executable, *words], env=env, stdout=f, check=True)
    assert (tmp_path / "file.csv").read_text().startswith("before\nid,path") and (tmp_path / "file.csv").read_text().count("\n") == 8


def test_a_list_goes_into_a_pipe_and_a_device(tmp_path, pictures):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    done = command("prune", pictures, *PRUNE, "-o", tmp_path / "pipe", store=tmp_path / "store")
    reader.join(10)
    assert done.returncode == 0 and len(read_list(got[0])) == 6 and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert command("prune", pictures, *PRUNE, "-o", "/dev/null", store=tmp_path / "store").returncode == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_folder_is_refused_before_any_work(tmp_path, pictures):
    (tmp_path / "link").symlink_to(pictures)
    for place in (tmp_path, tmp_path / "link"):
        done = command("prune", pictures, *PRUNE, "-o", place, store=tmp_path / "store")
        one_line(done, "is a folder")
    assert [p.name for p in tmp_path.iterdir()] == ["link"] and len(list(pictures.iterdir())) == 6
    with pytest.raises(IsADirectoryError): write(Path(tmp_path), lambda t: pytest.fail("work was begun"))


TOO_LONG = [("a" * n + ".csv", "too long") for n in (250, 300)]


@pytest.mark.parametrize("name, says", [("loop.csv", "leads back to itself"), *TOO_LONG])
def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, pictures, name, says):
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    done = command("prune", pictures, *PRUNE, "-o", tmp_path / name, store=tmp_path / "store")
    one_line(done, says)
    assert not done.stdout and [p.name for p in tmp_path.iterdir()] == ["loop.csv"] and (tmp_path / "loop.csv").is_symlink()

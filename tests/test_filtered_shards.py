"""Tars out: shards are filtered byte for byte, files and rows keep their paths, webdataset and our own reader agree."""
import io
import tarfile

import numpy as np
import pandas as pd
import pytest
import webdataset
from PIL import Image
from typer.testing import CliRunner

from diffprune.cli import app
from diffprune.core.store import Store
from diffprune.features.inputs import open_input
from diffprune.pruning.exports import parse_destination, write_choice


def png(seed):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def run(tmp_path):
    env = dict(DIFFPRUNE_STORE=str(tmp_path / "store"), COLUMNS="200")
    return lambda *args: CliRunner(env=env).invoke(app, [*map(str, args), "--image-size", "16"])


@pytest.fixture
def shards(tmp_path):
    "Three shards of five samples, as webdataset writes them: image, caption, class, facts, bytes."
    folder = tmp_path / "осколки 1"
    folder.mkdir()
    for s in range(3):
        with webdataset.TarWriter(str(folder / f"a b-{s:03d}.tar")) as out:
            for i in range(5):
                k = 5 * s + i
                out.write({"__key__": f"папка {s}/{k:04d}", "png": png(k), "txt": f"картинка {k}", "cls": k % 3,
                           "json": dict(k=k, wide="é"), "seg.npy": np.arange(k)})
    return folder


def members(path):
    with tarfile.open(path) as tar: return [(m.name, m.mtime, m.mode, m.uname, tar.extractfile(m).read()) for m in tar if m.isfile()]


def sample_of(member): return member[0].split(".")[0]


@pytest.mark.parametrize("source", ["{}/a b-{{000..002}}.tar", "{}/*.tar", "{}", "webdataset:{}"])
def test_shards_are_filtered_one_by_one(run, shards, tmp_path, source):
    before = {p.name: p.read_bytes() for p in shards.iterdir()}
    done = run("prune", source.format(shards), "-m", "kcenter_pixels", "--keep", 6, "-o", f"tar:{tmp_path}/out", "-o", tmp_path / "k.csv")
    assert done.exit_code == 0, (done.output, done.exception)
    assert {p.name: p.read_bytes() for p in shards.iterdir()} == before
    table = pd.read_csv(tmp_path / "k.csv")
    kept = {"/".join(p.rsplit("/", 2)[-2:]).removesuffix(".png") for p in table.path[table.kept]}
    assert len(kept) == 6
    for path in sorted(shards.glob("*.tar")):
        wanted = [m for m in members(path) if sample_of(m) in kept]
        assert len(wanted) % 5 == 0 and (members(tmp_path / "out" / path.name) if wanted else []) == wanted
    written = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    seen = list(webdataset.WebDataset(written, shardshuffle=False))
    assert [s["__key__"] for s in seen] == sorted(kept)
    assert all(set(s) >= {"png", "txt", "cls", "json", "seg.npy"} and s["png"] == png(int(s["__key__"][-4:])) for s in seen)
    again = open_input(tmp_path / "out", image_size=16, store=Store(tmp_path / "store"), progress=False)
    assert [i.split("/", 1)[1].removesuffix(".png") for i in again.ids] == sorted(kept)
    assert again.labels.tolist() == [int(k[-4:]) % 3 for k in sorted(kept)]


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_one_tar_of_many(run, shards, tmp_path, ending):
    done = run("prune", f"{shards}/*.tar", "-m", "random", "--keep", 9, "-o", tmp_path / f"all.{ending}")
    assert done.exit_code == 0, (done.output, done.exception)
    found = members(tmp_path / f"all.{ending}")
    everything = [m for p in sorted(shards.glob("*.tar")) for m in members(p)]
    assert len(found) == 45 and found == [m for m in everything if sample_of(m) in {sample_of(f) for f in found}]
    assert len(open_input(tmp_path / f"all.{ending}", image_size=16, store=Store(tmp_path / "store"), progress=False)) == 9


def test_equal_keys_in_two_shards_stay_apart(run, tmp_path):
    for s in range(2):
        with webdataset.TarWriter(str(tmp_path / f"s{s}.tar")) as out:
            for i in range(2): out.write({"__key__": f"{i:03d}", "png": png(10 * s + i), "cls": s})
    done = run("prune", f"{tmp_path}/s?.tar", "-m", "random", "-r", 0, "-o", tmp_path / "all.tar", "-o", f"tar:{tmp_path}/out")
    assert done.exit_code == 0 and "the name of its shard" in done.stdout
    seen = list(webdataset.WebDataset(str(tmp_path / "all.tar"), shardshuffle=False))
    assert [(s["__key__"], s["cls"]) for s in seen] == [(f"s{s}/{i:03d}", str(s).encode()) for s in range(2) for i in range(2)]
    assert members(tmp_path / "out" / "s1.tar") == members(tmp_path / "s1.tar")


def test_a_shard_of_which_nothing_stays_is_told_of(run, shards, tmp_path):
    done = run("prune", f"{shards}/*.tar", "-m", "kcenter_pixels", "--keep", 1, "-o", f"tar:{tmp_path}/out")
    assert done.exit_code == 0 and "of 2 shards nothing stays" in done.stdout and len(list((tmp_path / "out").glob("*.tar"))) == 1


def test_files_keep_their_paths(run, tmp_path):
    names = ["a b/зима 1.png", "图/x,y.png", "图/x,y.jpg", "v1.2/eins.zwei.png", "v1.2/eins.drei.png", "ü/100%.png"]
    for i, name in enumerate(names):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(png(i))).save(path)
    done = run("prune", tmp_path / "in", "-m", "random", "-r", 0, "-o", tmp_path / "k.tar", "-o", f"tar:{tmp_path}/out")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "3 names in the tar differ" in done.stdout
    as_written = {"a b/зима 1.png", "图/x,y.jpg", "图/x,y#2.png", "v1.2/eins%2Ezwei.png", "v1.2/eins%2Edrei.png", "ü/100%.png"}
    content = {m[0]: m[4] for m in members(tmp_path / "k.tar")}
    assert {n for n in content if not n.endswith(".cls")} == as_written and len(content) == 12
    assert content["a b/зима 1.png"] == (tmp_path / "in" / "a b" / "зима 1.png").read_bytes()
    assert members(tmp_path / "out" / "shard-000000.tar") == members(tmp_path / "k.tar")
    assert len({s["__key__"] for s in webdataset.WebDataset(str(tmp_path / "k.tar"), shardshuffle=False)}) == 6
    again = open_input(tmp_path / "k.tar", image_size=16, store=Store(tmp_path / "store"), progress=False)
    assert {i.split("/", 1)[1] for i in again.ids} == as_written


def test_rows_keep_the_paths_that_are_their_ids(run, tmp_path):
    names = ["a b/зима.png", "图/1", "c.png"]
    pd.DataFrame(dict(image=[dict(bytes=png(i), path=None) for i in range(3)], id=names)).to_parquet(tmp_path / "rows.parquet")
    assert run("prune", tmp_path / "rows.parquet", "-m", "random", "-r", 0, "-o", tmp_path / "k.tar").exit_code == 0
    assert {m[0] for m in members(tmp_path / "k.tar")} == {"a b/зима.png", "图/1.png", "c.png"}


def test_images_that_were_chosen_by_field_need_that_field_again(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "s.tar")) as out:
        for i in range(2): out.write({"__key__": f"{i}", "left.png": png(i), "right.png": png(9 + i), "txt": f"{i}"})
    found = open_input(tmp_path / "s.tar", image_size=16, store=Store(tmp_path / "store"), progress=False, image="right.png")
    table = pd.DataFrame(dict(kept=[False, True]))
    write_choice(table, [parse_destination(str(tmp_path / "k.tar"))], found, image="right.png")
    assert [m[0] for m in members(tmp_path / "k.tar")] == ["1.left.png", "1.right.png", "1.txt"]


def test_what_is_no_tar_is_refused(run, shards, tmp_path):
    done = run("prune", f"{shards}/*.tar", "-m", "random", "-r", 0.5, "-o", f"{tmp_path}/k-{{000..002}}.tar")
    assert done.exit_code == 2 and "tar:DIR" in done.stderr and done.stderr.count("\n") == 1
    inside = run("prune", f"{shards}/*.tar", "-m", "random", "-r", 0.5, "-o", f"tar:{shards}", "--overwrite")
    assert inside.exit_code == 2 and "never written to" in inside.stderr

"""`diffprune prune` and its sisters: every form in and out, the input untouched, odd folders."""
import io
import json
import os
import signal
import subprocess
import sys
import tarfile

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffprune.cli import app
from diffprune.features.duplicates import check_limits
from diffprune.features.inputs import expand, input_form
from diffprune.pruning.exports import COLUMNS, file_names
from diffprune.pruning.steps import keep_apart, parse_steps, run_steps

NAMES = ("a b", "ü", "图 1", "зима", "x,y", 'q"t', "n'm", "7")


def picture(seed, side=24):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def run(tmp_path):
    env = dict(DIFFPRUNE_STORE=str(tmp_path / "store"), COLUMNS="200")
    size = lambda args: () if "--features" in args or "labels" in args else ("--image-size", "16")  # else refused
    return lambda *args: CliRunner(env=env).invoke(app, [*map(str, args), *size(args)])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "Мои фото, alle"
    folder.mkdir()
    for i in range(16): picture(i).save(folder / f"{NAMES[i % 8]} {i}.png")
    return folder


def state(folder): return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_output_at_once_and_the_input_stays(run, folder, tmp_path):
    before, out = state(folder), tmp_path / "aus gabe"
    forms = [*(f"{out}/k.{e}" for e in ("csv", "parquet", "jsonl", "txt", "tar")), f"copy:{out}/c", f"link:{out}/l", f"hf:{out}/h"]
    args = ["prune", folder, "-m", "cluster_pixels", "-r", "0.5", "--clusters", "3", *(a for f in forms for a in ("-o", f))]
    done = run(*args)
    assert done.exit_code == 0, (done.output, done.exception)
    assert state(folder) == before
    csv = pd.read_csv(out / "k.csv")
    kept = csv[csv.kept].id.tolist()
    assert list(csv) == list(COLUMNS) and len(csv) == 16 and len(kept) == 8 and set(csv.id) == {p.name for p in folder.iterdir()}
    assert pd.read_parquet(out / "k.parquet").query("kept").id.tolist() == kept
    assert [r["id"] for r in map(json.loads, (out / "k.jsonl").read_text("utf-8").splitlines()) if r["kept"]] == kept
    assert (out / "k.txt").read_text("utf-8").splitlines() == [str(folder / k) for k in kept]
    for place in ("c", "l"): assert sorted(p.name for p in (out / place).iterdir() if p.name[0] != ".") == sorted(kept)
    with tarfile.open(out / "k.tar") as tar: assert len(tar.getnames()) == 8
    assert datasets.load_from_disk(str(out / "h"))["id"][:] == kept
    again = run(*args)
    assert again.exit_code == 1 and "exists" in again.stderr
    assert run(*args, "--overwrite").exit_code == 0 and state(folder) == before


def test_tars_tables_and_hugging_face(run, folder, tmp_path):
    assert run("prune", folder, "-m", "random", "-r", "0", "-o", f"{tmp_path}/t/x-000.tar", "-o", f"hf:{tmp_path}/h").exit_code == 0
    images = [dict(bytes=p.read_bytes(), path=None) for p in sorted(folder.iterdir())]
    (tmp_path / "p").mkdir()
    pd.DataFrame(dict(image=images, label=[0, 1] * 8)).to_parquet(tmp_path / "p" / "rows.parquet")
    tars, tables = f"{tmp_path}/t", f"{tmp_path}/p"
    for source in (f"{tars}/x-{{000..000}}.tar", tars, f"{tables}/*.parquet", tables, f"hf:{tmp_path}/h", f"webdataset:{tars}"):
        done = run("prune", source, "-m", "kcenter_pixels", "--keep", "5", "-o", tmp_path / "k.csv", "--overwrite", "--json")
        assert done.exit_code == 0, (source, done.output, done.exception)
        assert json.loads(done.stdout)["kept"] == 5 and pd.read_csv(tmp_path / "k.csv").kept.sum() == 5
        copied = run("prune", source, "-m", "random", "--keep", "3", "-o", f"copy:{tmp_path}/copies", "--overwrite", "--quiet")
        assert copied.exit_code == 0 and copied.output == ""
        assert len([p for p in (tmp_path / "copies").rglob("*.png")]) == 3
    linked = run("prune", f"{tmp_path}/t/*.tar", "-m", "random", "--keep", "3", "-o", f"link:{tmp_path}/links")
    assert linked.exit_code == 2 and "cannot be linked" in linked.stderr


NO_IMAGES = [[f"--{o}", v] for o, v in {"splits": "none", "labels": "none", "image-size": "8", "device": "cpu", "weights": "x",
                                        "backbone": "clip", "stale": "use"}.items()]


def test_features_of_ones_own(run, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 3)))
    own = ("prune", "--features", tmp_path / "x.npy")
    done = run(*own, "-m", "semdedup:0.1,kcenter", "--keep", "4", "--clusters", "2", "-o", tmp_path / "k.csv")
    assert done.exit_code == 0 and pd.read_csv(tmp_path / "k.csv").kept.sum() == 4
    copies = ["-o", f"copy:{tmp_path}/c"]
    for wrong, said in ((["--dedup"], "looked for in images"), (copies, "no images"), *((o, "no effect") for o in NO_IMAGES),
                        (["-m", "kcenter_clip"], "names a backbone")):
        done = run(*own, "-r", "0.5", "-o", tmp_path / "n.csv", *wrong)
        assert done.exit_code == 2 and said in done.stderr and not (tmp_path / "n.csv").exists(), done.output
    assert set(pd.read_csv(tmp_path / "k.csv", keep_default_na=False).reason) == {"", "pruned by semdedup", "pruned by kcenter"}


def test_one_image_and_only_copies_and_nothing(run, tmp_path):
    for name, n in (("one", 1), ("same", 9), ("empty", 0)):
        (tmp_path / name).mkdir()
        for i in range(n): picture(0).save(tmp_path / name / f"{i}.png")
    one = run("prune", tmp_path / "one", "-m", "cluster_pixels", "-r", "0", "-o", tmp_path / "1.csv")
    assert one.exit_code == 0 and "so there are 1" in one.stdout and pd.read_csv(tmp_path / "1.csv").kept.tolist() == [True]
    assert "keeps none" in run("prune", tmp_path / "one", "-m", "random", "-r", "0.6", "-o", tmp_path / "n.csv").stderr
    same = run("prune", tmp_path / "same", "-m", "random", "--dedup", "-r", "0", "-o", tmp_path / "s.csv", "--backbone", "pixels")
    table = pd.read_csv(tmp_path / "s.csv", keep_default_na=False)
    assert same.exit_code == 0 and table.kept.sum() == 1
    assert (table.reason == "exact copy").sum() == 8 and set(table.duplicate_of) == {"", "0.png"}
    assert run("prune", tmp_path / "same", "-m", "cluster_pixels", "-r", "0.5", "-o", tmp_path / "t.csv").exit_code == 0
    nothing = run("prune", tmp_path / "empty", "-m", "random", "-r", "0.5", "-o", tmp_path / "e.csv")
    assert nothing.exit_code == 1 and nothing.stderr.count("\n") == 1 and not (tmp_path / "e.csv").exists()


def test_what_cannot_be_read_is_listed_with_its_reason(run, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run("prune", folder, "-m", "random", "-r", "0.5", "-o", tmp_path / "k.csv").exit_code == 0
    table = pd.read_csv(tmp_path / "k.csv").set_index("id")
    assert len(table) == 17 and not table.kept["broken.png"] and table.reason["broken.png"].startswith("cannot be read: ")


def test_a_dry_run_writes_nothing_but_features(run, folder, tmp_path):
    done = run("prune", folder, "-m", "cluster_pixels", "-r", "0.5", "-o", tmp_path / "k.csv", "--dry-run", "--json")
    facts = json.loads(done.stdout)
    assert facts["dry_run"] and facts["kept"] == 8 and not (tmp_path / "k.csv").exists()
    more = ("prune", folder, "-r", "0.5", "--dry-run")
    told = [run(*more, "-m", m).stdout.rpartition("; ")[2] for m in ("kcenter_pixels", "kcenter_lite0", "kcenter_lite0")]
    assert told == ["nothing was written\n", "the store now has what was computed of 16 images\n", "nothing was written\n"]
    assert json.loads(run("prune", folder, "-m", "kcenter_pixels", "-r", "0.5", "--json").stdout)["embedded"] == 0


@pytest.mark.parametrize("rule", ["largest", "sharpest", "first", "central"])
def test_dedup_keeps_one_of_each_group(run, folder, tmp_path, rule):
    for i in range(3): Image.open(sorted(folder.iterdir())[2 * i]).save(folder / f"copy {i}.bmp")
    done = run("dedup", folder, "--keep-rule", rule, "--backbone", "pixels", "--max-distance", "0", "-o", tmp_path / "k.csv", "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    table = pd.read_csv(tmp_path / "k.csv", keep_default_na=False)
    assert table.kept.sum() == 16 and (table.reason == "exact copy").sum() == 3 == json.loads(done.stdout)["dropped"]["exact copy"]
    for _, row in table[~table.kept].iterrows():
        assert np.array_equal(np.asarray(Image.open(folder / row.id)), np.asarray(Image.open(folder / row.duplicate_of)))


def test_steps_add_up_and_clusters_shrink():
    X, ids = np.random.default_rng(0).normal(size=(40, 5)), [f"i{k}" for k in range(40)]
    steps = parse_steps("semdedup:0.25,random:0.5,cluster", keep=4, backbone="pixels")
    choice = run_steps(steps, ids, lambda b: X, n_clusters=30, random_state=0)
    assert [int((choice.reasons == f"pruned by {m}").sum()) for m in ("semdedup_pixels", "random", "cluster_pixels")] == [10, 15, 11]
    assert choice.kept.sum() == 4 and len(choice.notes) == 1 and (choice.clusters >= 0).sum() == 15
    assert np.isnan(choice.ranks).sum() == 25 and sorted(choice.ranks[choice.clusters >= 0]) == list(range(1, 16))


def test_a_distance_of_zero_keeps_all_and_of_nearly_two_one():
    X = np.random.default_rng(0).normal(size=(30, 4))
    assert len(keep_apart(X, np.arange(30), 0)) == 30 and len(keep_apart(np.abs(X), np.arange(30), 1.5)) == 1


def test_names_stay_within_their_folder():
    for name in file_names(["../x", "/etc/passwd", "a/../../b", "C:\\x", "\0", "a//b", "..", "...", "é/.ssh/key"]):
        assert name and not name.startswith("/") and "\0" not in name and not any(p.startswith(".") for p in name.split("/"))


def test_patterns_and_forms(tmp_path):
    for k in (1, 2, 10): (tmp_path / f"a {k}.tar").touch()
    assert [p.rsplit(" ", 1)[1] for p in expand(f"{tmp_path}/a {{1,2,10}}.tar")] == ["1.tar", "2.tar", "10.tar"]
    with pytest.raises(FileNotFoundError, match="no file"): expand(f"{tmp_path}/b*.tar")
    with pytest.raises(FileNotFoundError, match="no folder"): input_form(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="max_bits"): check_limits(max_bits=32)


def test_embed_and_balance(run, folder, tmp_path):
    done = run("embed", folder, "-o", tmp_path / "x.npy", "--backbone", "pixels")
    assert done.exit_code == 0 and np.load(tmp_path / "x.npy").shape == (16, 192)
    assert run("embed", folder, "-o", folder / "x.npy", "--backbone", "pixels").exit_code == 2
    done = run("balance", folder, "-o", tmp_path / "w.jsonl", "--backbone", "pixels", "--clusters", "4", "--json")
    assert json.loads(done.stdout)["groups"] == 4
    table = pd.read_json(io.StringIO((tmp_path / "w.jsonl").read_text()), lines=True)
    assert np.allclose(table.groupby("cluster").weight.sum(), 0.25)
    assert "no class to balance" in run("balance", folder, "-o", tmp_path / "v.csv", "--by", "labels").stderr


def test_suggest_measures_the_set_and_answers_from_the_tables(run, folder, tmp_path):
    for i in range(16): picture(i).save(folder / f"again {i}.png")
    done = run("suggest", folder, "--backbone", "pixels", "-r", "0.5")
    assert done.exit_code == 0 and "32 images" in done.stdout and "Prune 0.5" in done.stdout and "diffprune dedup" in done.stdout
    said = json.loads(run("suggest", folder, "--backbone", "pixels", "--json").stdout)
    assert said["facts"]["n"] == 32 and said["facts"]["repeats"] >= 0.5 and said["limits"] and said["embedded"] == 0
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    own = json.loads(run("suggest", "--features", tmp_path / "x.npy", "--json").stdout)
    assert own["facts"]["n"] == 50 and own["facts"]["groups"] == "clusters"
    few = run("suggest", "--features", tmp_path / "x.npy", "--max-loss", "-1")
    assert few.exit_code == 2 and few.stderr.count("\n") == 1 and not few.stdout


def test_options_without_effect_are_refused(run, folder, tmp_path):
    weights, out = tmp_path / "w.pt", ("-o", tmp_path / "k.csv")
    weights.write_bytes(b"w")
    for words in (
        ("prune", "-m", "random", "-r", "0.5", "--device", "cpu"), ("prune", "-m", "random", "-r", "0.5", "--weights", weights),
        ("prune", "-m", "random", "-r", "0.5", "--backbone", "clip"), ("prune", "-m", "kcenter_pixels", "-r", "0.5", "--weights", weights),
        ("prune", "-m", "kcenter_pixels", "-r", "0.5", "--keep-rule", "first"), ("prune", "-m", "random", "-r", "0.5", "--stale", "use"),
        ("prune", "-m", "kcenter_pixels", "-r", "0.5", "--backbone", "clip", "--dedup"), ("dedup", "--by", "hash", "--max-distance", "0.1"),
        ("dedup", "--by", "none", "--max-bits", "3"), ("dedup", "--by", "hash", "--backbone", "clip"),
        ("balance", "--by", "labels", "--clusters", "3"), ("balance", "--by", "labels", "--seed", "3"),
        ("balance", "--by", "labels", "--image-size", "3"), ("balance", "--by", "labels", "--device", "cpu"),
        ("balance", "--by", "labels", "--weights", weights), ("balance", "--by", "labels", "--backbone", "clip")):
        done = run(words[0], folder, *words[1:], *out)
        assert done.exit_code == 2 and "no effect" in done.stderr and done.stderr.count("\n") == 1, (words, done.output)
    for words in (("prune", "-m", "random", "-r", "0.5", "--dry-run", "--overwrite"), ("dedup", "--overwrite")):
        assert "--overwrite has no effect" in run(words[0], folder, *words[1:]).stderr
    several = run("prune", folder, "-m", "cluster_clip:0.1,kcenter_dino:0.1", "--weights", weights, *out)
    assert several.exit_code == 2 and "clip or dinov2" in several.stderr
    assert not (tmp_path / "k.csv").exists() and not (tmp_path / "store").exists()


def test_inputs_are_never_overwritten(run, folder, tmp_path):
    tars = tmp_path / "t"
    assert run("prune", folder, "-m", "random", "-r", "0", "-o", f"{tars}/x-0.tar", "-o", f"copy:{tars}/all/here").exit_code == 0
    before = state(tmp_path / "t")
    half = ("-m", "random", "-r", "0.5", "--overwrite", "-o")
    for source, output in ((f"{tars}/x-*.tar", f"{tars}/x-0.tar"), (f"webdataset:{tars}", f"{tars}/k.csv"),
                           (f"folder:{folder}", f"{folder}/k.csv"),
                           (f"{tars}/all/here", f"copy:{tars}/all"), (f"{tars}/all/here", f"copy:{tars}/all/here")):
        done = run("prune", source, *half, output)
        assert done.exit_code == 2 and "never written to" in done.stderr, done.output
    assert state(tmp_path / "t") == before


def test_folders_go_through_links_and_streams_have_nothing_else(run, folder, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for _ in range(2):
        assert run("prune", folder, "-m", "random", "-r", "0.5", "--overwrite", "-o", f"copy:{tmp_path}/link").exit_code == 0
        assert (tmp_path / "link").is_symlink() and len(list((tmp_path / "there").glob("*.png"))) == 8
    assert run("prune", folder, "-m", "random", "-r", "0.5", "-o", "/dev/null").exit_code == 0


def test_stale_is_for_data_sets_that_are_stored(run, tmp_path):
    done = run("prune", "digits", "-m", "random", "-r", "0.5", "--stale", "recompute", "-o", tmp_path / "k.csv", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["kept"] == pd.read_csv(tmp_path / "k.csv").kept.sum() > 500


def test_methods_that_train_a_proxy_say_what_it_costs_and_train_it_once(run, folder, tmp_path):
    words = ("prune", folder, "-m", "random:0.25,el2n_inv", "--keep", "5", "--preset", "smoke", "--json")
    dry = json.loads(run(*words, "--dry-run").stdout)
    assert dry["training"]["methods"] == ["el2n"] and dry["training"]["seconds"] > 0 and "kept" not in dry
    facts = json.loads(run(*words, "-o", tmp_path / "k.csv").stdout)
    table = pd.read_csv(tmp_path / "k.csv", keep_default_na=False)
    assert facts["kept"] == 5 == table.kept.sum() and (table.reason == "pruned by random").sum() == 4
    whole = ("prune", folder, "-m", "grand", "-r", "0.5", "--preset", "smoke")
    first, second = run(*whole, "-o", tmp_path / "a.csv"), run(*whole, "-o", tmp_path / "b.csv")
    assert "this takes about" in first.stdout.partition("kept")[0] and "costs nothing" in second.stdout
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert "no effect" in run("prune", folder, "-m", "random", "-r", "0.5", "-o", tmp_path / "n.csv", "--preset", "smoke").stderr
    few = run("prune", folder, "-m", "random:0.93,moso", "-r", "0", "-o", tmp_path / "n.csv", "--preset", "smoke")
    assert few.exit_code == 1 and "moso trains 2 models" in few.stderr and not (tmp_path / "n.csv").exists()


def test_duplicates_are_told_of_though_they_stay(run, folder, tmp_path):
    Image.open(sorted(folder.iterdir())[0]).save(folder / "copy.bmp")
    done = run("prune", folder, "-m", "random", "-r", "0", "-o", tmp_path / "k.csv")
    table = pd.read_csv(tmp_path / "k.csv", keep_default_na=False)
    assert "1 exact copy" in done.stdout and "--dedup" in done.stdout and table.kept.all()
    assert (table.duplicate_of != "").sum() == 1
    facts = json.loads(run("prune", folder, "-m", "random", "-r", "0", "--dedup", "--backbone", "pixels", "--json").stdout)
    assert facts["duplicates"]["exact"] == 1 == facts["dropped"]["exact copy"]


def test_an_interruption_ends_with_130_and_a_word_on_how_to_go_on(folder, tmp_path):
    env = dict(os.environ, DIFFPRUNE_STORE=str(tmp_path / "store"))
    words = ["prune", folder, "-m", "el2n", "-r", "0.5", "--preset", "cpu", "-o", tmp_path / "k.csv"]
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    process = subprocess.Popen([sys.executable, "-u", "-m", "diffprune.cli", *map(str, words)], env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed)
    for line in process.stdout:
        if "a proxy is trained" in line: break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said and "\r" not in said
    assert not (tmp_path / "k.csv").exists()


def test_completion_and_help_name_every_command(monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # there may be no shell above this process
    done = CliRunner().invoke(app, ["--show-completion", "bash"])
    assert done.exit_code == 0 and "complete" in done.output
    listed = CliRunner().invoke(app, ["-h"]).output
    assert all(f" {name} " in listed for name in ("prune", "dedup", "balance", "score", "embed"))

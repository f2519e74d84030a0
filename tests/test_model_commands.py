"""`diffprune train`, `sample` and `evaluate`: from what was kept to a model, its images and their measures."""
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from diffprune.cli import app
from diffprune.core.store import Store
from diffprune.features.inputs import open_input
from diffprune.metrics.evaluate import measure
from diffprune.metrics.memorization import memorization

TINY = ("--preset", "smoke", "--steps", "4", "--batch-size", "4", "--set", "vqvae_train.steps=3", "--set", "vqvae_train.batch_size=4",
        "--image-size", "16", "--device", "cpu")


def picture(seed, side=20):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def run(tmp_path):
    env = dict(DIFFPRUNE_STORE=str(tmp_path / "store"), COLUMNS="200")
    return lambda *args: CliRunner(env=env).invoke(app, [*map(str, args)])


@pytest.fixture
def folder(tmp_path):
    "Twelve images in two classes."
    for i in range(12):
        place = tmp_path / "Мои фото" / ("кот", "dog 1")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f"x {i}.png")
    return tmp_path / "Мои фото"


def state(folder): return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_prune_then_train_then_sample_then_evaluate(run, folder, tmp_path):
    before = state(folder)
    assert run("prune", folder, "-m", "random", "--keep", 8, "-o", tmp_path / "kept.csv", "-o", tmp_path / "kept.txt").exit_code == 0
    done = run("train", tmp_path / "kept.csv", "-o", tmp_path / "model", *TINY)
    assert done.exit_code == 0, (done.output, done.exception)
    cost, *_, last = done.stdout.splitlines()
    assert cost.startswith("DiT-N/2 on 8 images of 16×16 in 2 classes: 4 steps of 4 images") and "this takes about" in cost
    assert last.startswith("trained on 8 images, 0 left out")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    table = pd.read_csv(tmp_path / "kept.csv")
    assert config["classes"] == ["dog 1", "кот"] and sum(config["class_counts"]) == 8 and config["conditional"]
    assert config["trained_on"] == dict(source=str(tmp_path / "kept.csv"), images=8, left_out=0) and config["preset"] == "smoke"
    assert pd.read_csv(tmp_path / "model" / "images.csv").path.tolist() == table.path[table.kept].tolist()
    weights = {n: load_file(tmp_path / "model" / f"{n}.safetensors") for n in ("model", "vqvae")}
    assert all(torch.isfinite(v.float()).all() for w in weights.values() for v in w.values())

    drawn = run("sample", tmp_path / "model", "-n", 6, "-o", tmp_path / "drawn", "--steps", 2, "--device", "cpu", "--json")
    assert drawn.exit_code == 0 and json.loads(drawn.stdout)["images"] == 6
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 6
    facts = json.loads(run("evaluate", tmp_path / "drawn", folder, "--backbone", "pixels", "--draws", 4, "--json").stdout)
    assert facts["n_generated"] == 6 and facts["n_reference"] == 12 and facts["image_size"] == 16
    assert state(folder) == before


def test_a_set_with_its_table_a_table_alone_and_a_list_train_the_same_model(run, folder, tmp_path):
    outputs = [w for e in ("csv", "parquet", "jsonl", "txt") for w in ("-o", tmp_path / f"k.{e}")]
    assert run("prune", folder, "-m", "random", "--keep", 8, *outputs).exit_code == 0
    ways = {"both": (folder, "--kept", tmp_path / "k.csv"), "list": (folder, "--kept", tmp_path / "k.txt"),
            **{e: (tmp_path / f"k.{e}",) for e in ("csv", "parquet", "jsonl")}}
    for name, words in ways.items():
        done = run("train", *words, "-o", tmp_path / name, *TINY)
        assert done.exit_code == 0, (name, done.output, done.exception)
    models = [(tmp_path / n / "model.safetensors").read_bytes() for n in ways]
    assert len(set(models)) == 1
    alone = run("train", tmp_path / "k.txt", "-o", tmp_path / "alone", *TINY, "--dry-run", "--json")  # a list has no classes
    assert json.loads(alone.stdout)["training"]["images"] == 8
    whole = run("train", folder, "-o", tmp_path / "whole", *TINY)
    assert whole.exit_code == 0 and (tmp_path / "whole" / "model.safetensors").read_bytes() not in models


def test_tars_tables_and_hugging_face(run, folder, tmp_path):
    assert run("prune", folder, "-m", "random", "-r", 0, "-o", f"tar:{tmp_path}/t", "-o", f"hf:{tmp_path}/h").exit_code == 0
    pd.DataFrame(dict(image=[dict(bytes=p.read_bytes(), path=None) for p in sorted(folder.rglob("*.png"))],
                      label=[0, 1] * 6)).to_parquet(tmp_path / "rows.parquet")
    for k, source in enumerate((f"{tmp_path}/t/*.tar", tmp_path / "rows.parquet", f"hf:{tmp_path}/h")):
        assert run("prune", source, "-m", "random", "--keep", 7, "-o", tmp_path / f"{k}.csv").exit_code == 0
        said = [run("train", *words, "-o", tmp_path / f"m{k}", *TINY, "--dry-run") for words in
                ((source, "--kept", tmp_path / f"{k}.csv"), (tmp_path / f"{k}.csv",))]
        assert said[0].exit_code == 0 and "on 7 images of 16×16 in 2 classes" in said[0].stdout, (said[0].output, said[0].exception)
        if k < 2: assert said[1].stdout.partition(";")[0] == said[0].stdout.partition(";")[0], (said[1].output, said[1].exception)
        else: assert said[1].exit_code == 1 and "--kept" in said[1].stderr
    done = run("train", tmp_path / "0.csv", "-o", tmp_path / "m", *TINY)
    assert done.exit_code == 0 and "of which 7 were kept" in done.stdout


def test_what_is_left_out_is_told_and_listed(run, folder, tmp_path):
    (folder / "кот" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run("train", folder, "-o", tmp_path / "m", *TINY)
    assert done.exit_code == 0 and "1 image cannot be read and is left out" in done.stdout and "12 images, 1 left out" in done.stdout
    assert pd.read_csv(tmp_path / "m" / "left_out.csv").path.tolist() == ["кот/broken.png"]
    assert len(pd.read_csv(tmp_path / "m" / "images.csv")) == 12


@pytest.mark.parametrize("words", [
    ("train", "{}", "-o", "m", *TINY),
    ("prune", "{}", "-m", "kcenter_pixels:0.2,el2n", "-r", "0.5", "-o", "k.csv", "--preset", "smoke", "--dedup", "--image-size", "16"),
], ids=["train", "prune"])
def test_the_cost_comes_before_any_work(run, folder, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    order = []
    for place in ("decode_small", "look"):
        name = f"diffprune.features.feature_store.{place}"
        real = getattr(sys.modules["diffprune.features.feature_store"], place)
        monkeypatch.setattr(name, lambda *a, real=real: order.append("work") or real(*a))
    import diffprune.cli
    say = diffprune.cli._Job.say
    monkeypatch.setattr(diffprune.cli._Job, "say", lambda self, text: order.append(str(text)) or say(self, text))
    done = run(*[w.format(folder) for w in words])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "this takes" in order[0] and "work" in order[1:]


def test_a_dry_run_says_the_cost_and_a_finished_training_costs_nothing(run, folder, tmp_path):
    dry = run("train", folder, "-o", tmp_path / "m", *TINY, "--dry-run")
    assert "this takes about" in dry.stdout and "nothing was written" in dry.stdout and not (tmp_path / "m").exists()
    assert run("train", folder, "-o", tmp_path / "m", *TINY, "--quiet").output == ""
    again = run("train", folder, "-o", tmp_path / "m", *TINY)
    assert again.exit_code == 1 and "exists" in again.stderr and again.stderr.count("\n") == 1
    free = run("train", folder, "-o", tmp_path / "m", *TINY, "--overwrite")
    assert free.exit_code == 0 and "costs nothing" in free.stdout
    facts = json.loads(run("train", folder, "-o", tmp_path / "n", *TINY, "--json", "--unconditional").stdout)
    assert facts["training"]["steps"] == 4 and facts["trained_on"] == 12
    assert not json.loads((tmp_path / "n" / "config.json").read_text())["conditional"]


STOPPED = """import os, runpy, signal, sys
from diffprune.models import train
save, at, how = train.Trainer.save, int(sys.argv.pop(1)), int(sys.argv.pop(1))
def stop(trainer):
    save(trainer)
    if trainer.step == at and trainer.cfg.steps == 24: os.kill(os.getpid(), how)
train.Trainer.save = stop
runpy.run_module("diffprune.cli", run_name="__main__", alter_sys=True)"""


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(run, folder, tmp_path):
    words = ["train", str(folder), "-o", str(tmp_path / "killed"), *TINY, "--steps", "24", "--set",
             "train.checkpoint_every=6"]
    env = dict(os.environ, DIFFPRUNE_STORE=str(tmp_path / "other"))
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    for at, how, status in ((6, signal.SIGINT, 130), (18, signal.SIGKILL, -9)):
        done = subprocess.run([sys.executable, "-c", STOPPED, str(at), str(int(how)), *words], env=env, text=True, capture_output=True,
                              preexec_fn=heed)
        assert done.returncode == status, done.stderr
        if status == 130: assert "the same command goes on" in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "killed").exists()
        kept = {int(p.name[-8:]) for p in (tmp_path / "other").rglob("checkpoint-*")}       # at most the last two are kept
        assert max(kept) == at and (at == 6 or 12 in kept), kept
    done = subprocess.run([sys.executable, "-m", "diffprune.cli", *words], env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    words[3] = str(tmp_path / "whole")
    assert run(*words).exit_code == 0
    logs = [pd.read_csv(tmp_path / name / "log.csv") for name in ("killed", "whole")]
    pd.testing.assert_frame_equal(*logs)
    for name in ("model.safetensors", "vqvae.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.fixture
def model(run, folder, tmp_path):
    assert run("train", folder, "-o", tmp_path / "model", *TINY).exit_code == 0
    return tmp_path / "model"


def test_samples_depend_on_their_number_class_and_seed_alone(run, model, tmp_path):
    draw = lambda name, n, *more: run("sample", model, "-n", n, "-o", tmp_path / name, "--steps", 2, "--device", "cpu", "--npy", *more)
    images = {}
    for name, n, more in (("a", 6, ()), ("b", 3, ("--batch-size", 2)), ("c", 6, ("--seed", 1)), ("d", 6, ("--cfg-scale", 3))):
        done = draw(name, n, "-l", "кот", "-l", "0", *more)
        assert done.exit_code == 0, (done.output, done.exception)
        images[name] = np.load(tmp_path / name / "images.npy").astype(int)
        assert np.load(tmp_path / name / "labels.npy").tolist() == ([1, 0] * 3)[:n]
    assert abs(images["a"][:3] - images["b"]).max() <= 1
    assert (images["a"] != images["c"]).any()
    rows = pd.read_csv(tmp_path / "a" / "samples.csv")
    assert rows.label.tolist() == ["кот", "dog 1"] * 3
    assert [np.asarray(Image.open(tmp_path / "a" / f)).transpose(2, 0, 1).tolist() for f in rows.file] == images["a"].tolist()
    settings = json.loads((tmp_path / "a" / "sample.json").read_text())
    assert settings["n_steps"] == 2 and settings["classes"] == ["кот", "dog 1"] and settings["noise_seed"] == 0
    found = open_input(tmp_path / "a", image_size=16, store=Store(tmp_path / "store"), progress=False)
    assert len(found) == 6 and found.classes == ["dog 1", "кот"]


def test_a_model_without_classes_has_none(run, folder, tmp_path):
    assert run("train", folder, "-o", tmp_path / "m", *TINY, "--unconditional").exit_code == 0
    assert run("sample", tmp_path / "m", "-n", 3, "-o", tmp_path / "s", "--steps", 1, "--device", "cpu").exit_code == 0
    assert sorted(p.name for p in (tmp_path / "s").glob("*.png")) == ["000000.png", "000001.png", "000002.png"]
    for words, said in ((("-l", "кот"), "without classes"), (("--cfg-scale", 2), "nothing to be guided by")):
        done = run("sample", tmp_path / "m", "-n", 3, "-o", tmp_path / "t", *words)
        assert done.exit_code == 2 and said in done.stderr and not (tmp_path / "t").exists()


@pytest.fixture
def sets(tmp_path):
    "Real, held-out, generated images of 16 pixels, the last three copies of real ones."
    for name, seeds in dict(real=range(30), held=range(100, 130), drawn=[*range(200, 217), 0, 1, 2]).items():
        (tmp_path / name).mkdir()
        for i in seeds: picture(i, 16).save(tmp_path / name / f"{i}.png")
    return [tmp_path / n for n in ("drawn", "real", "held")]


def test_evaluate_says_what_a_study_says(run, sets, tmp_path):
    drawn, real, held = sets
    done = run("evaluate", drawn, real, "--heldout", held, "--backbone", "pixels", "--draws", 6, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    facts = json.loads(done.stdout)
    X, Y, Z = (open_input(p, "pixels", 16, Store(tmp_path / "store"), progress=False).features for p in (drawn, real, held))
    for name, i in measure(X, Y, n_draws=6, progress=False).items():
        row = facts["metrics"][name]
        for k in ("value", "low", "high"):
            assert row[k] is None if np.isnan(getattr(i, k)) else row[k] == pytest.approx(getattr(i, k), rel=1e-6), (name, k)
    copies = memorization(X, Z, Y, n_cells=1, random_state=0, widen=True)
    for name in ("distance", "replicated", "threshold", "authenticity", "heldout_distance"):
        assert facts["metrics"][name]["value"] == pytest.approx(getattr(copies, name))
    assert facts["metrics"]["replicated"]["value"] >= 0.15 and facts["n_heldout"] == 30
    assert "needs at least 208 generated" in facts["metrics"]["fd_infinity"]["reason"]
    again = json.loads(run("evaluate", drawn, real, "--backbone", "pixels", "--draws", 0, "--json").stdout)
    assert again["reference"]["embedded"] == 0 and again["metrics"]["fd"]["low"] is None and "replicated" not in again["metrics"]
    assert again["metrics"]["fd"]["value"] == pytest.approx(facts["metrics"]["fd"]["value"])


def test_evaluate_writes_a_table_and_finds_the_validation_part(run, sets, tmp_path):
    drawn, real, held = sets
    (tmp_path / "split").mkdir()
    for name, part in ((real, "train"), (held, "val")): name.rename(tmp_path / "split" / part)
    done = run("evaluate", drawn, tmp_path / "split", "--backbone", "pixels", "--draws", 3, "-o", tmp_path / "m.csv")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "not val" in done.stdout and "held out: the part for validation, 30 images" in done.stdout and "FD (pixels)" in done.stdout
    table = pd.read_csv(tmp_path / "m.csv").set_index("metric")
    assert {"fd", "kid", "precision", "recall", "density", "coverage", "vendi", "replicated", "c_t"} <= set(table.index)
    assert run("evaluate", drawn, tmp_path / "split", "-o", tmp_path / "m.csv").exit_code == 1
    silent = ("--dry-run", "--quiet", "-o", tmp_path / "m.json")
    dry = run("evaluate", drawn, tmp_path / "split", "--backbone", "pixels", "--draws", 3, *silent)
    assert dry.exit_code == 0 and dry.output == "" and not (tmp_path / "m.json").exists()


def test_images_of_several_sizes_need_a_size(run, sets, tmp_path):
    drawn, real, _ = sets
    picture(5, 24).save(drawn / "large.png")
    done = run("evaluate", drawn, real, "--backbone", "pixels")
    said = done.stderr.splitlines()[-1]
    assert done.exit_code == 1 and said.startswith("diffprune: ") and "16×16 to 24×24" in said and "--image-size" in said
    assert run("evaluate", drawn, real, "--backbone", "pixels", "--image-size", 16, "--draws", 0).exit_code == 0


@pytest.mark.parametrize("status, said, words", [
    (2, "unknown preset", "train real -o m --preset huge"), (2, "unknown setting", "train real -o m --set train.speed=3"),
    (2, "must be of type", "train real -o m --set train.lr=fast"), (2, "NAME=VALUE", "train real -o m --set train.lr"),
    (2, "set twice", "train real -o m --steps 3 --set train.steps=4"), (2, "multiple of", "train real -o m --image-size 30"),
    (2, "--steps", "train real -o m --steps 0"), (2, "never written to", "train real -o real/m"),
    (2, "unknown device", "train real -o m --device tpu"),
    (1, "lack one", "train real -o m --preset smoke --conditional"), (1, "no folder", "train nowhere -o m"),
    (1, "keeps no image", "train none.csv -o m"), (1, "keeps no image", "train none.txt -o m"),
    (1, "columns id and kept", "train odd.csv -o m"),
    (2, "too; name the images", "train none.csv -o m --kept none.csv"), (1, "no file", "train real -o m --kept nowhere.csv"),
    (1, "cannot be found", "train gone.txt -o m"), (1, "not in the set", "train real -o m --kept gone.txt --preset smoke"),
    (1, "is a file", "train real -o none.csv --overwrite"), (1, "holds no model", "sample real -n 1 -o s"),
    (1, "holds no model", "sample nowhere -n 1 -o s"), (2, "--number", "sample real -n 0 -o s"),
    (2, "level", "evaluate drawn real --level 1"), (2, "n_draws", "evaluate drawn real --draws 1"),
    (2, "alpha", "evaluate drawn real --alpha 0"),
    (2, "unknown backbone", "evaluate drawn real --backbone best"), (2, ".csv or .json", "evaluate drawn real -o m"),
    (1, "no folder", "evaluate drawn nowhere"), (1, "no folder", "evaluate drawn real --heldout nowhere"),
    (2, "never written to", "evaluate drawn real --heldout held -o held/m.csv"), (2, "no effect", "evaluate drawn real --overwrite"),
    (1, "no such file", "evaluate drawn real --weights w.pt")])
def test_bad_input_is_told_in_one_line_before_any_work(run, sets, tmp_path, monkeypatch, status, said, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none.csv").write_text("id,kept,path\na,False,a.png\n")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "odd.csv").write_text("x\n1\n")
    (tmp_path / "gone.txt").write_text("real/gone.png\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    def refuse(*a, **k): raise AssertionError("work began")
    monkeypatch.setattr("diffprune.features.feature_store.decoded_ahead", refuse)
    done = run(*words.split())
    assert done.exit_code == status and said in done.stderr and done.stderr.count("\n") == 1, (done.exit_code, done.output, done.exception)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "store") == before


def test_all_three_are_listed(run):
    listed = run("-h").output
    assert all(f" {name} " in listed for name in ("train", "sample", "evaluate"))

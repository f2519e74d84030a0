"""Wrong values are refused in one line before the first second of work, whatever the command, and nothing is made."""
import os
import shutil
import time

import numpy as np
import pytest
from notebooks import run_head
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from diffprune.cli import app
from diffprune.core.store import Store, save_array
from diffprune.models.train import Trainer
from diffprune.study.executors import submit
from diffprune.study.study import Study

NO_VALUE = object()  # a switch: no value can be wrong
STUDY = {
    "dataset": ["celeba", "", "digits:x"], "preset": ["huge", ""], "methods": ["best", "cluster_vgg", "3", "el2n_mid_inv"],
    "ratios": ["1.5", "-0.1", "1", "nan", "x", "0.5,2"], "seeds": ["-1", "0.5", "x", ""],
    "metrics_backbone": ["vgg", "", "pixels:999", "lite0:x"], "root": ["/nowhere"], "workers": ["0", "-2", "two", "1.5"],
    "device": ["tpu", "", "meta", "cuda:99", "cpu,"], "stale": ["often", ""],
}
READING = {
    "path": ["FOLDER/nowhere", "FOLDER/a.png", "FOLDER/x-{0..3}.tar", "no-such-set"], "image_size": ["0", "-8", "x"],
    "backbone": ["best", ""], "weights": ["FOLDER/nowhere.pt"], "device": ["tpu", "", "meta", "cuda:99", "cpu,cpu"],
    "splits": ["some", ""], "labels": ["some", ""], "stale": ["often", "", "use"],
    "overwrite": NO_VALUE, "as_json": NO_VALUE, "quiet": NO_VALUE}
TRAINING = {k: v for k, v in READING.items() if k not in ("backbone", "weights")}
MADE = {"output": ["FOLDER/m", "FOLDER", "FOLDER/../there.csv", "FOLDER/../there.csv/m", ""],
        "device": READING["device"], "seed": ["-1", "x"],
        "steps": ["0", "-1", "x"], "batch_size": ["0", "x"],
        "overwrite": NO_VALUE, "dry_run": NO_VALUE, "as_json": NO_VALUE, "quiet": NO_VALUE}
OUTPUTS = ["FOLDER", "FOLDER/a.png/x.csv", "FOLDER/x.csv", "copy:FOLDER", "copy:", "FOLDER/../kept", "FOLDER/../images/../there.csv", ""]
FEATURES = ["FOLDER/nowhere.npy", "FOLDER/a.png"]
WRONG = {  # command -> parameter -> values that cannot work, as they are typed
    "prune": {
        **READING, "pruning_ratio": ["1.5", "-0.1", "1", "nan", "half"], "keep": ["0", "-3", "x", "2"],
        "min_distance": ["-1", "2", "nan", "x", "0.1"], "outputs": OUTPUTS, "features": FEATURES,
        "method": ["best", "cluster_vgg", "", "semdedup,cluster", "cluster:2", "random:0.1,cluster:0.5", "cluster_near_far"],
        "preset": ["huge", "", "smoke"], "clusters": ["0", "-1", "x"], "seed": ["-1", "x", "0.5"],
        "dedup": NO_VALUE, "keep_rule": ["newest", "", "first"],
        "dry_run": NO_VALUE},
    "dedup": {
        **READING, "outputs": OUTPUTS, "keep_rule": ["newest", ""], "by": ["name", ""], "max_distance": ["-0.1", "1", "nan", "x"],
        "max_bits": ["-1", "32", "x"], "dry_run": NO_VALUE},
    "score": {
        **READING, "outputs": OUTPUTS, "features": FEATURES, "method": ["best", "cluster:0.5", "random,cluster", ""],
        "preset": ["huge", "", "smoke"], "clusters": ["0", "x"], "seed": ["-1", "x"], "dry_run": NO_VALUE},
    "embed": {**READING, "output": [*OUTPUTS, "FOLDER/../x.csv", "FOLDER/x.npy", "FOLDER/a.png/x.npy"]},
    "balance": {
        **READING, "output": [*OUTPUTS, "FOLDER/../kept.txt", "copy:FOLDER/../out"], "features": FEATURES, "by": ["size", ""],
        "strength": ["-0.1", "1.5", "nan", "x"], "clusters": ["0", "x"], "seed": ["-1", "x"]},
    "suggest": {
        **{k: v for k, v in READING.items() if k != "overwrite"}, "features": FEATURES, "pruning_ratio": ["1", "-0.1", "nan", "x"],
        "max_loss": ["-0.1", "nan", "inf", "x"], "seed": ["-1", "x"]},
    "report": {
        **READING, "choice": ["FOLDER/nowhere.csv", "FOLDER", "FOLDER/a.png"], "layout": ["umap", ""], "title": [],
        "output": ["FOLDER", "FOLDER/x.html", "FOLDER/a.png/x.html", "FOLDER/../kept.csv", ""]},
    "train": {
        **TRAINING, **MADE, "kept": ["FOLDER/nowhere.csv", "FOLDER/a.png", "FOLDER/../there.csv", ""], "preset": ["huge", ""],
        "settings": ["train.speed=3", "train.lr=fast", "train.lr", "train.lr=-1", ""], "conditional": NO_VALUE},
    "sample": {
        **MADE, "model": ["FOLDER", "FOLDER/nowhere", "FOLDER/a.png", ""], "number": ["0", "-1", "x"], "label": ["elephant", "7", ""],
        "cfg_scale": ["nan", "inf", "x", "-1"], "array": NO_VALUE, "output": ["FOLDER/../model", "FOLDER/../there.csv", ""]},
    "evaluate": {
        "generated": READING["path"], "reference": READING["path"], "heldout": ["FOLDER/nowhere", "FOLDER/a.png"], "image_size": ["0", "x"],
        "output": ["FOLDER", "FOLDER/x.csv", "FOLDER/../kept", "FOLDER/../there.csv", "FOLDER/../x.png", ""], "backbone": ["best", ""],
        "draws": ["-1", "1", "x"], "level": ["0", "1", "nan", "x"], "k": ["0", "x"], "k_density": ["0", "x"],
        "alpha": ["0", "1", "nan", "x"], "seed": ["-1", "x"],
        "weights": READING["weights"], "device": READING["device"], "overwrite": NO_VALUE, "dry_run": NO_VALUE,
        "as_json": NO_VALUE, "quiet": NO_VALUE},
    "methods": {}, "datasets": {},
    "plan": {**STUDY, "estimate": NO_VALUE},
    "study": {
        **STUDY, "dataset": [*STUDY["dataset"], "folder:/nowhere", "celebahq"], "executor": ["condor", ""], "wait": NO_VALUE,
        "minutes": ["0", "x"], "partition": ["gpu"], "gpus": ["-1", "x", "1"], "cpus": ["0", "2"], "mem_gb": ["0", "8"],
        "parallel": ["0", "3"], "account": ["me"]},  # options of Slurm, without Slurm
    "store list": {"kind": ["no-such-kind", "../images", ""]}, "store studies": {}, "store verify": {},
    "store gc": {"keep": ["no-such-study"], "older_than": ["-1", "nan", "inf", "x"], "delete": NO_VALUE},
}


def commands(group=None, path=()):
    "Every command of the program with its parameters."
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"): yield from commands(command, (*path, name))
        else: yield " ".join((*path, name)), {p.name: p for p in command.params if p.name != "help"}


COMMANDS = dict(commands())
CASES = [(c, name, v) for c, wrong in WRONG.items() for name, values in wrong.items() if values is not NO_VALUE for v in values]


def test_the_table_knows_every_option_of_every_command():
    assert {c: set(parameters) for c, parameters in COMMANDS.items()} == {c: set(wrong) for c, wrong in WRONG.items()}
    switches = {(c, n) for c, wrong in WRONG.items() for n, v in wrong.items() if v is NO_VALUE}
    assert switches == {(c, n) for c, parameters in COMMANDS.items() for n, p in parameters.items() if getattr(p, "is_flag", False)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A store with one artifact, a folder of images, and a model of them."
    base = tmp_path_factory.mktemp("refusal")
    (base / "images").mkdir()
    for i in range(4): Image.fromarray(np.full((8, 8, 3), 50 * i, np.uint8)).save(base / f"images/{'abcd'[i]}.png")
    (base / "there.csv").touch()
    tiny = "--preset smoke --steps 1 --batch-size 2 --image-size 8 --device cpu --set vqvae_train.steps=1 --set vqvae_train.batch_size=2"
    words = ["train", str(base / "images"), "-o", str(base / "model"), *tiny.split()]
    done = CliRunner(env=dict(DIFFPRUNE_STORE=str(base / "store"))).invoke(app, words)
    assert done.exit_code == 0, done.output
    Store(base / "store").build("toy", dict(n=1), make=lambda folder: save_array(folder / "a.npy", [1]))
    return base


def files(folder): return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if "locks" not in p.parts}


def typed(command, name, value, place):
    "The words of a call that is right but for one value."
    fill = lambda text: text.replace("FOLDER", str(place / "images"))
    prune, single = dict(path="FOLDER", outputs="FOLDER/../kept.csv"), dict(path="FOLDER", output="FOLDER/../kept.csv")
    given = dict(prune=dict(prune, pruning_ratio="0.5"), dedup=prune, score=prune, balance=single,
                 embed=dict(path="FOLDER", output="FOLDER/../kept.npy"),
                 suggest=dict(path="FOLDER"), train=dict(path="FOLDER", output="FOLDER/../m", preset="smoke"),
                 sample=dict(model="FOLDER/../model", number="1", output="FOLDER/../s"),
                 evaluate=dict(generated="FOLDER", reference="FOLDER"),
                 report=dict(path="FOLDER", choice="FOLDER/../there.csv", output="FOLDER/../page.html")).get(command, {})
    if command == "study": given = dict(preset="smoke", methods="random", ratios="0.5", device="cpu")
    words = command.split()
    for n, v in {**given, name: value}.items():
        p = COMMANDS[command][n]
        words += [fill(v)] if p.param_type_name == "argument" else [max(p.opts, key=len), fill(v)]
    return words


@pytest.mark.parametrize("command, name, value", CASES)
def test_a_wrong_value_is_told_in_one_line_and_nothing_is_made(command, name, value, place, monkeypatch):
    monkeypatch.setenv("DIFFPRUNE_STORE", str(place / "store"))
    monkeypatch.delenv("DIFFPRUNE_DATA", raising=False)
    monkeypatch.chdir(place)
    before = files(place)
    done = CliRunner().invoke(app, typed(command, name, value, place))
    assert done.exit_code in (1, 2), (done.exit_code, done.output, done.exception)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("diffprune: ") and "Traceback" not in done.output, done.output
    assert done.stdout == "", "nothing else is said"
    assert files(place) == before


@pytest.mark.parametrize("words, says", [(["study", "--bogus", "1"], "--bogus"), (["bogus"], "bogus"), (["prune"], "either a path or"),
                                         (["store", "gc", "--keep"], "--keep")])
def test_wrong_use_is_told_in_one_line(words, says):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.output


def test_without_a_command_the_help_is_shown():
    for words in ([], ["store"]):
        done = CliRunner().invoke(app, words)
        assert "Usage" in done.output and done.exit_code in (0, 2)


SMALL = dict(dataset="digits", preset="smoke", methods=["random"], ratios=[0.5], device="cpu", workers=1)


@pytest.fixture
def nothing_to_fetch(monkeypatch, tmp_path):
    "No weights on this machine and none to be had; training is an error."
    for name, value in dict(HF_HUB_OFFLINE="1", DIFFPRUNE_WEIGHTS=str(tmp_path / "none"), TORCH_HOME=str(tmp_path / "torch"),
                            HF_HOME=str(tmp_path / "hub"), DIFFPRUNE_STORE=str(tmp_path / "store")).items(): monkeypatch.setenv(name, value)
    import diffprune.features.embed as embed
    def refuse(name, weights=None, *_, **__):
        if name in ("lite0", "pixels") or embed.find_weights(name, weights): return None
        raise FileNotFoundError(f"The backbone {name!r} needs weights")
    monkeypatch.setattr("diffprune.study.study.load_backbone", refuse)
    from diffprune.study import study
    study._check_network.cache_clear()
    def fit(*a, **k): raise AssertionError("something is trained")
    monkeypatch.setattr(Trainer, "fit", fit)
    yield tmp_path / "store"
    study._check_network.cache_clear()


def made(store): return [p for p in store.glob("*/*/artifact.json") if p.parts[-3] != "images"]


@pytest.mark.parametrize("changes, backbone", [
    (dict(metrics_backbone="clip"), "clip"), (dict(metrics_backbone="inception"), "inception"), (dict(methods=["cluster_dino"]), "dinov2"),
    (dict(methods=["random", "balanced_clip"]), "clip"), (dict(metrics_backbone="clip:ViT-B-16/openai"), "clip:ViT-B-16/openai")])
def test_missing_weights_are_told_before_anything_is_trained(changes, backbone, nothing_to_fetch):
    study = Study(**{**SMALL, **changes}, store=Store(nothing_to_fetch))
    for start in (study.check, study.run, study.results, lambda: submit(study)):
        with pytest.raises(FileNotFoundError, match=backbone): start()
    assert not made(nothing_to_fetch) and not (nothing_to_fetch / "studies").exists()


def test_missing_weights_in_the_terminal(nothing_to_fetch):
    done = CliRunner().invoke(app, ["study", "--preset", "smoke", "--methods", "random", "--device", "cpu", "--metrics-backbone", "clip"])
    assert done.exit_code == 1 and "'clip' needs" in done.stderr and done.stderr.count("\n") == 1 and not made(nothing_to_fetch)


@pytest.mark.parametrize("name, parameters", [
    ("fig1_fid_curves", dict(metrics_backbone="clip")), ("fig4_cluster_regions", dict(backbones="clip")),
    ("claims", dict(cluster_backbone="dino")), ("claims", dict(overrides="{'memorization_backbone': 'clip'}")),
    ("table1_memorization", dict(overrides="{'memorization_backbone': 'clip'}")), ("errata", dict(metrics_backbone="inception")),
    ("fig6_inverse_pairs", dict(likeness_backbone="dino")), ("table2_balance", dict(attribute_backbone="clip", dataset="avatars"))])
def test_missing_weights_are_told_by_notebooks(name, parameters, nothing_to_fetch):
    given = {"dataset": "digits", "preset": "smoke", **parameters}
    with pytest.raises(FileNotFoundError, match="needs weights"): run_head(name, "p.study", **given)
    assert not made(nothing_to_fetch)


CURVES, BALANCED = "fig1_fid_curves", "fig7_balanced_samples"


@pytest.mark.parametrize("name, parameters, says", [
    (BALANCED, dict(images=0), "images is 0"), (BALANCED, dict(lines=-1), "lines is -1"), ("fig2_qualitative", dict(noises="[]"), "empty"),
    ("fig8_cluster_maps", dict(max_points=50), "max_points"), (CURVES, dict(ratios="[]"), "empty"), (CURVES, dict(seeds="[]"), "empty"),
    (CURVES, dict(workers=0), "workers is 0"), (CURVES, dict(stale="often"), "often"), (CURVES, dict(root="/nowhere"), "root"),
    (CURVES, dict(overrides="{'image_size': 17}"), "image_size is 17"), (CURVES, dict(ratios="[0.9999]"), "keeps nothing"),
    (CURVES, dict(overrides="{'sample.method': 'rk'}"), "sample.method"),
    ("supp_vae_gan", dict(overrides="{'baseline.channel_mult': [1, 1, 1, 1, 1, 1, 1]}"), "image_size")])
def test_wrong_values_are_told_by_notebooks(name, parameters, says, nothing_to_fetch):
    given = {"dataset": "digits", "preset": "smoke", **parameters}
    with pytest.raises((ValueError, FileNotFoundError), match=says): run_head(name, "p.study", **given)
    assert not made(nothing_to_fetch)


@pytest.mark.parametrize("setting", ["conditional", "linear_classifier"])
def test_labels_that_are_absent_are_missed_before_anything_is_trained(setting, nothing_to_fetch, tmp_path):
    (tmp_path / "flat").mkdir()
    images = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(images): Image.fromarray(image).save(tmp_path / f"flat/{i}.png")
    given = {**SMALL, "dataset": f"folder:{tmp_path}/flat", "overrides": {setting: True, "image_size": 16}}
    study = Study(**given, store=Store(nothing_to_fetch))
    with pytest.raises(ValueError, match=f"{setting} needs a class label"): study.run(progress=False)
    assert not made(nothing_to_fetch)


LIBRARY = [dict(overrides={k: v}) for k, v in {
    "train.lr": -1.0, "train.betas": [0.9], "dit": "DiT-X/9", "cluster_metric": "l3", "n_clusters": 0, "reference": "tset", "alpha": 2.0,
    "k_neighbours": 0, "k_density": 0, "n_cells": 0, "image_size": 17, "memorization_backbone": "foo", "n_bootstrap": -1,
    "class_dropout_prob": 2.0, "sample.n_samples": 0, "sample.method": "rk", "sample.n_steps": 0, "sample.cfg_scale": -1.0,
    "proxy.epochs": 0, "proxy.times": [2.0], "proxy.n_noise": 0, "proxy.n_surrogates": 0, "influence.n_directions": 0,
    "influence.damping": -1.0, "methods": ["foo"], "train.warmup": -1, "train.steps": 0, "train.stepz": 3, "vae_train.lr": float("nan"),
    "data.foo": 1, "departures": ["x"], 3: 1}.items()]
LIBRARY += [dict(workers=w) for w in (0, -1, "2", True, 1.5)] + [dict(device=d) for d in ("meta", "tpu", "", "cuda:99", 3)]
LIBRARY += [dict(weights=w) for w in ({"clip": "/nowhere"}, {"foo": "/nowhere"}, "x")] + [dict(overrides=o) for o in ("x", [1])]
LIBRARY += [dict(metrics_backbone=b) for b in ("", "vgg", "pixels:999", "pixels:x", "lite0:x", 3)] + [dict(root="/nowhere"), dict(root=3)]
LIBRARY += [dict(dataset=3), dict(preset=None), dict(methods=[3]), dict(methods="random"), dict(ratios=[float("nan")]), dict(ratios=0.5),
            dict(seeds=[-1]), dict(seeds=[2**70]), dict(seeds=[1.5]), dict(seeds=[]), dict(store="x"), dict(stale="often")]


@pytest.mark.parametrize("changes", LIBRARY, ids=str)
def test_a_study_refuses_wrong_values_when_it_is_made(changes, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFPRUNE_STORE", str(tmp_path / "store"))
    began = time.monotonic()
    with pytest.raises((ValueError, FileNotFoundError)) as refused: Study(**{**SMALL, **changes})
    assert "\n" not in str(refused.value) and time.monotonic() - began < 5
    assert not os.listdir(tmp_path)


def test_short_names_of_backbones_find_their_weights(tmp_path):
    file = tmp_path / "dino.pt"
    file.write_bytes(b"weights")
    study = Study(**{**SMALL, "methods": ["cluster_dino"]}, weights={"dino": str(file)}, store=Store(tmp_path / "store"))
    stage = next(s for s in study.stages().values() if s.settings.get("name") == "dinov2")
    assert stage.settings["weights"].startswith("sha256:"), "not the published ones in silence"
    shutil.rmtree(tmp_path)

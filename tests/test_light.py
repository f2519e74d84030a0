"""What is imported, and when: the front door loads nothing, light commands stay light, and wrong values are refused before any work."""
import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import diffprune
from diffprune.cli import app
from diffprune.core.store import save_array

PACKAGE = Path(diffprune.__file__).parent
FRONT_DOOR = """load_dataset register_dataset ImageDataset load_backbone embed_images RandomPruner ScorePruner ClusterPruner Selection
    select make_pruner register_pruner method_names evaluate measure memorization load_preset Study Run Store""".split()
HEAVY = {"torch", "torchvision", "timm", "open_clip", "transformers", "huggingface_hub", "accelerate", "sklearn", "scipy", "faiss",
         "pandas", "pyarrow", "matplotlib", "seaborn", "datasets", "joblib", "tqdm"}
LISTING = """
import atexit, sys
atexit.register(lambda: print("LOADED", *{m.partition(".")[0] for m in sys.modules}, file=sys.stderr))
"""


def loaded(code, store=""):
    "Top-level modules, those of the standard library excepted, that a fresh interpreter has loaded when `code` ends; and what it printed."
    env = {**os.environ, "DIFFPRUNE_STORE": str(store)}
    done = subprocess.run([sys.executable, "-c", LISTING + code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("LOADED ")[2].split()) - sys.stdlib_module_names, done.stdout


def command(*args, store=""):
    return loaded(f"sys.argv = {['diffprune', *args]!r}\nfrom diffprune.cli import app\napp()", store)


def test_import_loads_nothing_but_itself():
    assert loaded("import diffprune")[0] - loaded("pass")[0] <= {"diffprune"}


@pytest.mark.parametrize("name", FRONT_DOOR)
def test_a_name_of_the_front_door_is_that_of_its_home(name):
    home = f"diffprune.{diffprune._HOMES[name]}"
    found = getattr(diffprune, name)
    assert found is getattr(importlib.import_module(home), name)
    assert found.__module__ == home  # it is defined there, not passed on


def test_front_door_is_complete_and_clashes_with_no_module():
    assert set(diffprune.__all__) == set(FRONT_DOOR) <= set(dir(diffprune))
    assert not set(FRONT_DOOR) & {p.stem for p in PACKAGE.iterdir()}
    with pytest.raises(AttributeError, match="no attribute 'train_everything'"): diffprune.train_everything  # noqa: B018


def test_editors_are_told_the_same_homes():
    block = next(node for node in ast.parse(Path(diffprune.__file__).read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    told = {a.asname: node.module for node in block.body for a in node.names if a.asname == a.name}
    assert told == diffprune._HOMES


def test_looking_at_data_sets_and_stores_loads_no_torch():
    assert not loaded("from diffprune import ImageDataset, Store, load_dataset, register_dataset")[0] & HEAVY


@pytest.mark.parametrize("args, says", [("--help", "Usage"), ("-h", "Usage"), ("--version", diffprune.__version__)])
def test_help_and_version_load_no_torch(args, says):
    modules, printed = command(args)
    assert not modules & (HEAVY | {"numpy"}), modules
    assert "diffprune" in modules and says in printed


@pytest.mark.parametrize("args, says", [
    ("datasets", "openmoji"), ("store list", "toy"), ("store list toy", "1 artifacts"), ("store studies", "toys"),
    ("store verify", "0 damaged"), ("prune --help", "--method"), ("study -h", "--executor")])
def test_light_commands_load_no_torch(args, says, fresh_store):
    fresh_store.record_study("toys", dict(), [fresh_store.build("toy", make=lambda folder: save_array(folder / "a.npy", [1])).hash])
    modules, printed = command(*args.split(), store=fresh_store.root)
    assert not modules & HEAVY, modules
    assert says in printed


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("work began")
    monkeypatch.setattr("diffprune.data.datasets.load_dataset", refuse)
    monkeypatch.setattr("diffprune.features.embed.load_backbone", refuse)


@pytest.mark.parametrize("wrong, status, says", [
    (dict(r=1), 2, "pruning_ratio=1"), (dict(r=-0.1), 2, "pruning_ratio=-0.1"), (dict(r="nan"), 2, "pruning_ratio=nan"),
    (dict(r="half"), 2, "--pruning-ratio"), (dict(m="el2n", preset="huge"), 2, "unknown preset 'huge'"),
    (dict(preset="smoke"), 2, "--preset smoke has no effect"), (dict(m="best"), 2, "unknown method 'best'"),
    (dict(m="cluster_best"), 2, "unknown method 'cluster_lite0_best'"), (dict(m="random", clusters=3), 2, "no option n_clusters"),
    (dict(clusters=0), 2, "--clusters"), (dict(seed=-1), 2, "--seed"), (dict(image_size=0), 2, "--image-size"),
    (dict(device="tpu"), 2, "unknown device 'tpu'"), (dict(device="cuda:99"), 2, "cuda:99"), (dict(device="cpu,cpu"), 2, "'cpu,cpu'"),
    (dict(folder="nowhere"), 1, "no folder"), (dict(folder="image.png"), 1, "no folder"), (dict(o="images"), 1, "is a folder"),
    (dict(o="kept"), 2, "its ending"),
    (dict(o="images/kept.csv"), 2, "never written to"),
    (dict(o="image.png/kept.csv"), 1, "cannot be written")], ids=str)
def test_wrong_values_are_refused_before_any_work(wrong, status, says, tmp_path, monkeypatch, nothing_is_loaded):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("image.png").write_bytes(b"")
    given = dict(folder="images", r=0.5, o="kept.csv", m="cluster_pixels") | wrong
    args = [given.pop("folder"), *(s for k, v in given.items() for s in (f"-{k}" if len(k) == 1 else f"--{k.replace('_', '-')}", str(v)))]
    done = CliRunner().invoke(app, ["prune", *args])
    assert done.exit_code == status and says in done.stderr, (done.output, done.exception)
    assert done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.png", "images"]  # nothing is left behind either


def test_a_folder_that_is_not_writable_is_told(tmp_path, monkeypatch, nothing_is_loaded):
    def refuse(folder, *name): raise PermissionError(13, "Permission denied", str(folder))  # the superuser may write anywhere
    monkeypatch.setattr("diffprune.pruning.exports._new_file", refuse)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    done = CliRunner().invoke(app, ["prune", str(tmp_path / "images"), "-r", "0.5", "-o", str(tmp_path / "new" / "kept.csv")])
    assert done.exit_code == 1 and f"{tmp_path}: Permission denied" in done.stderr

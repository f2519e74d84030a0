"""No result of other code, packages or devices is handed out in silence: every door is tried with a changed module."""
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

import diffprune
from diffprune.cli import app
from diffprune.core import lineage
from diffprune.core.stages import StaleWarning
from diffprune.core.store import Store
from diffprune.study.runs import Run
from diffprune.study.study import Study

PACKAGE = Path(diffprune.__file__).parent
ARGUMENTS = dict(dataset="digits", preset="smoke", methods=["cluster_pixels"], ratios=[0.5], seeds=[0],
                 overrides={"train.steps": 6, "vqvae_train.steps": 4, "n_bootstrap": 2})
RUN = Run("cluster_pixels", 0.5, 0)
VELOCITY = ("return x_1 - x_0", "return x_0 - x_1")
PRINT = """
import json, sys
from diffprune.core.store import Store
from diffprune.study.study import Study
study = Study(**json.loads(sys.argv[1]), store=Store(sys.argv[2]), device="cpu", workers=1, stale=sys.argv[3])
table = study.results(progress=False)
print(json.dumps(dict(values=table.value.tolist(), stale=study.stale_artifacts().kind.tolist())))
"""


def study_of(root, **more): return Study(**ARGUMENTS, store=Store(root), device="cpu", workers=1, **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A store with a finished study; not to be changed."
    root = tmp_path_factory.mktemp("stale") / "store"
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaleWarning)
        study = study_of(root)
        study.results(progress=False)
        study.memorization(progress=False)
        study.reconstructions()
    return root


@pytest.fixture
def copy_of(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "store"))


def changed_package(folder, module, old, new):
    "A copy of the package with one line changed; the folder to import it from."
    shutil.copytree(PACKAGE, folder / "diffprune", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "diffprune" / module
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    return folder


def in_package(folder, code, *args):
    env = dict(os.environ, PYTHONPATH=str(folder), OMP_NUM_THREADS="1")
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], env=env, cwd=folder, capture_output=True, text=True)


def said_lines(done): return [line for line in done.stderr.splitlines() if "StaleWarning" in line]


def test_another_sign_of_the_velocity_is_said_with_the_count_and_made_anew_on_demand(copy_of, tmp_path):
    before = study_of(copy_of).results(progress=False)
    other = changed_package(tmp_path / "other", "models/flow.py", *VELOCITY)
    warned = in_package(other, PRINT, json.dumps(ARGUMENTS), copy_of, "warn")
    assert warned.returncode == 0, warned.stderr[-2000:]
    found = json.loads(warned.stdout.splitlines()[-1])
    assert found["values"] == pytest.approx(before.value.tolist()), "warned of, and used"
    [line] = said_lines(warned)
    kinds = found["stale"]
    assert kinds.count("model") == kinds.count("samples") == 2 and kinds.count("metrics") == 2 and "vqvae" not in kinds
    assert f"{len(kinds)} of " in line and "models.flow" in line and "--stale=recompute" in line

    quiet = in_package(other, PRINT, json.dumps(ARGUMENTS), copy_of, "use")
    assert quiet.returncode == 0 and not said_lines(quiet)
    again = in_package(other, PRINT, json.dumps(ARGUMENTS), copy_of, "recompute")
    assert again.returncode == 0, again.stderr[-2000:]
    anew = json.loads(again.stdout.splitlines()[-1])
    assert anew["stale"] == [] and anew["values"] != found["values"] and not said_lines(again)


@pytest.fixture
def velocity_changed(monkeypatch):
    "As if `flow.velocity` had been changed on disk."
    import ast
    name, known = "diffprune.models.flow", lineage.module_tree
    source = lineage.module_file(name).read_text(encoding="utf-8")
    tree = ast.parse(source.replace(*VELOCITY))
    monkeypatch.setattr(lineage, "module_tree", lambda n: tree if n == name else known(n))


def warnings_of(call):
    "What a call warns of stale results."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in said if issubclass(w.category, StaleWarning)]


DOORS = dict(
    results=lambda s: s.results(progress=False), run=lambda s: s.compute(RUN), memorization=lambda s: s.memorization(progress=False),
    images=lambda s: s.images(RUN), labels=lambda s: s.labels(RUN), features=lambda s: s.features(RUN), kept=lambda s: s.kept(RUN),
    pruner=lambda s: s.pruner(RUN), clusters=lambda s: s.clusters("pixels", 0), real_images=lambda s: s.real_images(),
    real_labels=lambda s: s.real_labels(), classes=lambda s: s.classes, real_features=lambda s: s.real_features(),
    reconstructions=lambda s: s.reconstructions(), recorded=lambda s: s.results(progress=False, provenance=["model.seconds"]))


@pytest.mark.parametrize("door", DOORS)
def test_every_door_of_a_study_warns_once(finished, velocity_changed, door):
    study = study_of(finished)
    said = warnings_of(lambda: DOORS[door](study))
    assert len(said) == 1 and "models.flow" in said[0] and said[0].startswith(f"{len(study.stale_artifacts())} of ")
    assert warnings_of(lambda: [open_door(study) for open_door in DOORS.values()]) == []
    assert warnings_of(lambda: DOORS[door](study_of(finished, stale="use"))) == []


def test_nothing_is_said_of_fresh_results(finished):
    study = study_of(finished)
    assert warnings_of(lambda: [door(study) for door in DOORS.values()]) == []
    assert study.stale_artifacts().empty and study.stale_artifacts().columns.tolist() == ["kind", "hash", "created", "reasons"]


def command(root, monkeypatch, *args):
    monkeypatch.setenv("DIFFPRUNE_STORE", str(root))
    init = Study.__init__
    monkeypatch.setattr(Study, "__init__", lambda self, *a, **k: init(self, *a, **{**k, "overrides": ARGUMENTS["overrides"]}))
    return CliRunner().invoke(app, [str(a) for a in args])


GRID = ("--dataset", "digits", "--preset", "smoke", "-m", "cluster_pixels", "-r", 0.5, "--seeds", 0, "--device", "cpu", "--workers", 1)


def test_the_command_of_a_study_says_it_in_one_line(finished, velocity_changed, monkeypatch):
    done = command(finished, monkeypatch, "study", *GRID)
    assert done.exit_code == 0 and done.stderr.count("\n") == 1 and "models.flow" in done.stderr and done.stderr.startswith("diffprune: ")
    assert "FD" in done.stdout


def test_a_plan_counts_what_is_stale(finished, velocity_changed, monkeypatch):
    n = len(study_of(finished).stale_artifacts().query("kind != 'memorization'"))
    done = command(finished, monkeypatch, "plan", *GRID, "--no-estimate")
    assert done.exit_code == 0 and f"{n} stored results are stale" in done.stdout and "--stale=recompute" in done.stdout
    plan = study_of(finished, stale="recompute").plan()
    assert plan.stale.sum() == n == (~plan.cached).sum()
    assert study_of(finished).plan().cached.all()


def test_the_store_says_what_is_stale(finished, velocity_changed, monkeypatch):
    n = len(study_of(finished).stale_artifacts())
    listed, verified = (command(finished, monkeypatch, "store", what) for what in ("list", "verify"))
    assert sum("  stale: " in line for line in listed.stdout.splitlines()) == n
    assert verified.exit_code == 0 and f"{n} stale artifacts" in verified.stdout


@pytest.mark.parametrize("args", [("study", *GRID), ("plan", *GRID), ("prune", ".", "-r", 0.5, "-o", "x.csv")], ids=lambda a: a[0])
def test_an_unknown_way_to_take_stale_results_is_refused(monkeypatch, tmp_path, args):
    monkeypatch.chdir(tmp_path)
    done = command(tmp_path / "store", monkeypatch, *args, "--stale", "maybe")
    assert done.exit_code == 1 and "use, warn, recompute" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())

"""No result of other code, packages or devices is handed out in silence: every door is tried with a changed module."""
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import diffprune
from diffprune.cli import app
from diffprune.core import lineage
from diffprune.core.stages import StaleWarning
from diffprune.core.store import Store, load_json, save_json
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

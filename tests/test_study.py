"""The study and its first figure, at the smoke preset, as a user would call them."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from diffprune.store import Store
from diffprune.study import Run, Study

ROOT = Path(__file__).parents[1]
SHORT = {"train.steps": 12, "vqvae_train.steps": 8}


def papermill(tmp_path, store_root, *parameters):
    "Run the notebook the way the README says, with the figures and the store elsewhere."
    env = dict(os.environ, DIFFPRUNE_STORE=str(store_root), DIFFPRUNE_DATA="", OMP_NUM_THREADS="1")
    args = [a for p in parameters for a in ("-p", *p)]
    return subprocess.run([sys.executable, "-m", "papermill", str(ROOT / "nbs/fig1_fid_curves.ipynb"), *args],
                          cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)


def test_figure_1_from_the_command_line(tmp_path, store_root):
    done = papermill(tmp_path, store_root, ("dataset", "digits"), ("preset", "smoke"), ("methods", "random"), ("ratios", "[0.9]"), ("seeds", "0"))
    assert done.returncode == 1 and "seeds must be list" in done.stderr, done.stderr[-2000:]
    done = papermill(tmp_path, store_root, ("dataset", "digits"), ("preset", "smoke"), ("methods", "random,cluster_lite0"), ("ratios", "[0.9]"), ("seeds", "[0]"))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "papers_figures/digits/smoke"
    assert {p.name for p in folder.iterdir()} == {f"{n}.{e}" for n in ("fig1_fid_curves", "fig1_samples") for e in ("pdf", "png", "csv", "json")}
    table = pd.read_csv(folder / "fig1_fid_curves.csv")
    assert set(table.method) == {"unpruned", "random", "cluster_lite0", "validation"}
    assert "FD (pixels)" in set(table.name) and "FID" not in set(table.name)
    origin = json.loads((folder / "fig1_fid_curves.json").read_text())
    assert origin["preset"] == "smoke" and origin["settings"]["train"]["steps"] == 20 and origin["commit"]


@pytest.mark.parametrize("parameters, message", [
    ((("dataset", "celeba"),), "digits"),
    ((("dataset", "celebahq"),), "DIFFPRUNE_DATA"),
    ((("preset", "laptop"),), "smoke, cpu, gpu, paper"),
    ((("ratios", "[1.5]"),), "[0, 1)"),
    ((("methods", "cluster_vgg"),), "cluster_lite0"),
    ((("datset", "digits"),), "did you mean 'dataset'"),
    ((("force", "yes"),), "force must be bool"),
])
def test_figure_1_says_what_is_wrong(tmp_path, store_root, parameters, message):
    done = papermill(tmp_path, store_root, *parameters)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "papers_figures").exists()


def test_killed_study_goes_on_and_gives_the_same(tmp_path, store_root):
    arguments = dict(dataset="digits", preset="smoke", methods=["random"], ratios=[0.5], seeds=[7], overrides={**SHORT, "train.checkpoint_every": 3})
    code = ("import json, sys, torch\ntorch.set_num_threads(1)\nfrom diffprune.study import Study\nfrom diffprune.store import Store\n"
            "Study(**json.loads(sys.argv[1]), store=Store(sys.argv[2]), device='cpu', workers=1).run(progress=False)")
    command = lambda root: [sys.executable, "-c", code, json.dumps(arguments), str(root)]
    subprocess.run(command(store_root), check=True)
    whole = Study(**arguments, store=Store(store_root), device="cpu", workers=1)

    other = tmp_path / "store"
    kills = 0
    for wait_for in ("vqvae-", "model-", "features-"):
        process = subprocess.Popen(command(other))
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not list((other / "work").glob(f"{wait_for}*/*")): time.sleep(0.02)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(other), check=True)
    assert kills >= 2
    killed = Study(**arguments, store=Store(other), device="cpu", workers=1)
    a, b = (s.results(progress=False).drop(columns=["commit"]) for s in (whole, killed))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert Store(other).verify() == {}


def test_results_name_their_backbone(store):
    study = Study("digits", "smoke", ["random"], [0.5], [7], "lite0", overrides={**SHORT, "train.checkpoint_every": 3}, store=store, device="cpu", workers=1)
    table = study.results(progress=False)
    assert set(table.name) == {f"{m} (lite0)" for m in ("FD", "KD", "class score", "precision", "recall", "F-score", "density", "coverage", "Vendi score")}
    assert (table.low <= table.value).all() and (table.value <= table.high).all()
    assert study.missing() == []
    assert study.images(Run("random", 0.5, 7), 3).dtype == "uint8"

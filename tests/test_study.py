"""The study and its first figure, at the smoke preset, as a user would call them."""
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from diffprune.core.store import Store
from diffprune.study.runs import Run
from diffprune.study.study import Study

SHORT = {"train.steps": 12, "vqvae_train.steps": 8, "train.checkpoint_every": 3}
SLOW = {  # time enough to be killed in
    "train.steps": 30, "train.checkpoint_every": 3, "vqvae_train.steps": 60, "vqvae_train.checkpoint_every": 5}
RUN = """
import json, sys, torch
torch.set_num_threads(1)
from diffprune.study.study import Study
from diffprune.core.store import Store
Study(**json.loads(sys.argv[1]), store=Store(sys.argv[2]), device='cpu', workers=1).run(progress=False)
"""


def test_killed_study_goes_on_and_gives_the_same(tmp_path, store_root):
    arguments = dict(dataset="digits", preset="smoke", methods=["random"], ratios=[0.5], seeds=[7], overrides=SLOW)
    command = lambda root: [sys.executable, "-c", RUN, json.dumps(arguments), str(root)]
    subprocess.run(command(store_root), check=True)
    whole = Study(**arguments, store=Store(store_root), device="cpu", workers=1)

    other = tmp_path / "store"
    kills = []
    for kind in ("vqvae", "model"):
        process = subprocess.Popen(command(other))
        deadline = time.monotonic() + 120
        half_done = lambda: list((other / "work").glob(f"{kind}-*/checkpoint-*"))
        while process.poll() is None and time.monotonic() < deadline and not half_done(): time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills.append(process.wait() == -signal.SIGKILL)
    subprocess.run(command(other), check=True)
    assert kills == [True, True]
    killed = Study(**arguments, store=Store(other), device="cpu", workers=1)
    made = killed.provenance_table()
    assert made.query("kind == 'vqvae'").resumed.all() and made.query("kind == 'model'").resumed.any()
    a, b = (s.results(progress=False).drop(columns=["commit"]) for s in (whole, killed))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert Store(other).verify() == {}


def test_results_name_their_backbone(store):
    study = Study("digits", "smoke", ["random"], [0.5], [7], "lite0", overrides=SHORT, store=store, device="cpu", workers=1)
    table = study.results(progress=False)
    measures = ("FD", "FD∞", "train FD", "held-out FD", "KD", "class score", "precision", "recall", "F-score", "density", "coverage",
                "Vendi score")
    assert set(table.name) == {f"{m} (lite0)" for m in measures}
    had = table[table.value.notna()]
    assert (had.low <= had.value).all() and (had.value <= had.high).all()
    assert set(table.name[table.value.isna()]) == {"FD∞ (lite0)"}
    assert (table.reason.str.contains("generated images") == table.value.isna()).all()
    assert study.missing() == []
    assert study.images(Run("random", 0.5, 7), 3).dtype == "uint8"


@pytest.mark.parametrize("n, says", [(12, ["held-out FD (pixels) cannot be measured: needs at least 2 held-out images, there is 1"]),
                                     (30, [])])
def test_few_images_are_told_before_anything_is_made(tmp_path, n, says):
    (tmp_path / "in").mkdir()
    for i in range(n): Image.fromarray(np.full((16, 16, 3), 8 * i, np.uint8)).save(tmp_path / f"in/{i:02}.png")
    study = Study(f"folder:{tmp_path}/in", "smoke", ["random"], metrics_backbone="pixels", overrides={"image_size": 16},
                  store=Store(tmp_path / "store"), device="cpu", workers=1)
    assert study.limits() == says and not list((tmp_path / "store").glob("*/*/artifact.json"))

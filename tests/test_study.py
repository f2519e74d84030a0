"""The study and its first figure, at the smoke preset, as a user would call them."""
import json
import signal
import subprocess
import sys
import time

import pandas as pd

from diffprune.core.store import Store
from diffprune.study.runs import Run
from diffprune.study.study import Study

SHORT = {"train.steps": 12, "vqvae_train.steps": 8}


def test_killed_study_goes_on_and_gives_the_same(tmp_path, store_root):
    arguments = dict(
        dataset="digits", preset="smoke", methods=["random"], ratios=[0.5], seeds=[7], overrides={**SHORT, "train.checkpoint_every": 3}
    )
    code = (
        "import json, sys, torch\ntorch.set_num_threads(1)\n"
        "from diffprune.study.study import Study\nfrom diffprune.core.store import Store\n"
        "Study(**json.loads(sys.argv[1]), store=Store(sys.argv[2]), device='cpu', workers=1).run(progress=False)"
    )
    command = lambda root: [sys.executable, "-c", code, json.dumps(arguments), str(root)]
    subprocess.run(command(store_root), check=True)
    whole = Study(**arguments, store=Store(store_root), device="cpu", workers=1)

    other = tmp_path / "store"
    kills = 0
    for wait_for in ("vqvae-", "model-"):
        process = subprocess.Popen(command(other))
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not list((other / "work").glob(f"{wait_for}*/*")): time.sleep(0.02)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(other), check=True)
    assert kills == 2
    killed = Study(**arguments, store=Store(other), device="cpu", workers=1)
    a, b = (s.results(progress=False).drop(columns=["commit"]) for s in (whole, killed))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert Store(other).verify() == {}


def test_results_name_their_backbone(store):
    study = Study(
        "digits",
        "smoke",
        ["random"],
        [0.5],
        [7],
        "lite0",
        overrides={**SHORT, "train.checkpoint_every": 3},
        store=store,
        device="cpu",
        workers=1,
    )
    table = study.results(progress=False)
    assert set(table.name) == {
        f"{m} (lite0)" for m in ("FD", "KD", "class score", "precision", "recall", "F-score", "density", "coverage", "Vendi score")
    }
    assert (table.low <= table.value).all() and (table.value <= table.high).all()
    assert study.missing() == []
    assert study.images(Run("random", 0.5, 7), 3).dtype == "uint8"

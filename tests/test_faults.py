"""Faults done to real studies in processes of their own: see benchmarks/faults/run.py for what a trial is."""
import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from diffprune.core.store import Store

SCRIPT = Path(__file__).parents[1] / "benchmarks/faults/run.py"
CHOSEN = ["--methods", "el2n", "--kinds", "proxy,model"]  # the stages that take time, and all that follows from them


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    out = tmp_path_factory.mktemp("faults") / "trials.csv"
    done = subprocess.run([sys.executable, str(SCRIPT), "--trials", "1", *CHOSEN, "--output", str(out)],
                          env=dict(os.environ, OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(csv.DictReader(out.open()))


@pytest.mark.parametrize("fault", ["kill", "kill_anytime", "full_disk", "flip", "flip_checkpoint", "two_studies", "delete", "clock_jump"])
def test_a_study_recovers_from(trials, fault):
    rows = [r for r in trials if r["fault"] == fault]
    if not rows and fault == "full_disk": pytest.skip("a small tmpfs cannot be mounted here, which needs root")
    assert rows, "the script did not come to this fault in time"
    bad = [r for r in rows if r["recovered"] != "True"]
    assert not bad, bad


def test_faults_were_done(trials):
    done = Counter(r["fault"] for r in trials if r["hit"] == "True")
    assert done["kill"] >= 1, done


def _stat(p):
    try: return (p / "stat").read_text().rpartition(")")[2].split()
    except OSError: return None


def children_of(pid):
    found = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _stat(p) and _stat(p)[1] == str(pid)]
    return found + [c for f in found for c in children_of(f)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_ctrl_c_stops_workers_and_a_rerun_goes_on(tmp_path):
    root = tmp_path / "store"
    code = ("import sys\nfrom diffprune.cli import app\nfrom diffprune.study import study\n"
            "study_init = study.Study.__init__\n"
            "overrides = {'train.steps': 3000, 'vqvae_train.steps': 8, 'n_bootstrap': 2}\n"
            "def init(self, *a, **k): study_init(self, *a, **{**k, 'overrides': overrides})\n"
            "study.Study.__init__ = init\napp()")
    options = ["--preset", "smoke", "--methods", "random", "--ratios", "0.5,0.9", "--workers", "2", "--device", "cpu"]
    command = [sys.executable, "-c", code, "study", *options]
    env = dict(os.environ, DIFFPRUNE_STORE=str(root), OMP_NUM_THREADS="1")
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                               preexec_fn=heed)
    deadline = time.monotonic() + 120
    training = lambda: list((root / "work").glob("model-*/checkpoint-*"))
    while process.poll() is None and not training() and time.monotonic() < deadline: time.sleep(0.05)
    workers = children_of(process.pid)
    if len(workers) != 2: process.kill()
    assert len(workers) == 2, process.communicate()[0][-2000:]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    try: said = process.communicate(timeout=30)[0]
    finally: process.kill()
    assert process.returncode == 130, said[-2000:]
    assert "goes on from there" in said and "Traceback" not in said
    deadline = time.monotonic() + 5
    alive = lambda: [w for w in workers if (_stat(Path(f"/proc/{w}")) or "Z")[0] != "Z"]
    while alive() and time.monotonic() < deadline: time.sleep(0.05)
    assert not alive(), "a worker goes on alone"
    store = Store(root)
    assert store.verify() == {} and len(store.artifacts("model")) < 3
    kept = sum(1 for _ in (root / "work").glob("model-*/checkpoint-*"))
    assert kept >= 1  # what a rerun starts from
    free = store.collect()  # and nobody holds the locks of the dead workers
    assert (free.what == "work").sum() >= 1

"""The study on a real Slurm of one node: order, time-out, failed dependency; and what `Watch` makes of jobs that vanish."""
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from slurm_node import slurm_node, unavailable

from diffprune.study import executors
from diffprune.study.executors import StudyJob, Watch, submit
from diffprune.study.study import Study

SHORT = {"vqvae_train.steps": 8, "train.steps": 12, "n_bootstrap": 2}
NODE = dict(cpus_per_task=1, slurm_signal_delay_s=30)  # Slurm's default signal, 90 s before the end, comes too early for jobs this short


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    if reason := unavailable(): pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patched, slurm_node(tmp_path_factory.mktemp("slurm")) as env:
        for name, value in {**env, "OMP_NUM_THREADS": "1"}.items(): patched.setenv(name, value)
        yield


def hurry():
    "A requeued job may not start for two minutes; the administrator of this cluster is not that patient."
    for line in subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i|%r"], capture_output=True, text=True).stdout.splitlines():
        job, reason = line.split("|")
        if reason == "BeginTime": subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], capture_output=True)


def until(what, seconds=300):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        hurry()
        time.sleep(0.1)


def test_study_on_slurm_with_a_time_out(node, fresh_store):
    longer = {**SHORT, "train.steps": 400, "train.checkpoint_every": 20}
    study = Study("digits", "smoke", ["random"], [0.5], overrides=longer, store=fresh_store, workers=1)
    submission = submit(study, "slurm", minutes=10, **NODE)
    until(lambda: "PENDING (Dependency)" in set(submission.status().state), 20)  # the grid waits for the shared stages
    until(lambda: list((fresh_store.root / "work").glob("model-*/checkpoint-*")))
    job = submission.parts[[i for i, s in enumerate(submission.status().state) if s == "RUNNING"][0]][0]
    job._interrupt(timeout=True)  # what Slurm sends when the time is up
    until(lambda: "Requeued job" in submission.log(job))
    until(lambda: submission.study.done()[2] == 2)
    table = submission.results(progress=False)
    assert set(table.method) == {"unpruned", "random", "validation"} and table.value.notna().all()
    assert set(submission.status().state) == {"done"}
    resumed = study.provenance_table().query("kind == 'model'").resumed
    assert resumed.any(), "the job that was stopped must go on from its checkpoint"
    assert fresh_store.verify() == {}
    elsewhere = type(fresh_store)(fresh_store.root.parent / "alone")
    alone = Study(**{**study.arguments, "ratios": [0.5]}, store=elsewhere, device="cpu", workers=1)
    with_one_thread = StudyJob(alone.worker_arguments("cpu"), [0, 1])
    code = "import sys; from diffprune.study.executors import StudyJob; StudyJob(sys.argv[1], [0, 1])()"
    subprocess.run([sys.executable, "-c", code, with_one_thread.arguments], check=True)
    same = ["method", "metric", "value"]
    assert alone.results(progress=False)[same].equals(table[same])  # the same numbers, to the last bit


def test_failed_shared_stages_cancel_the_grid(node, fresh_store):
    study = Study("digits", "smoke", ["random"], [0.5], overrides={**SHORT, "vqvae_train.lr": 1e30}, store=fresh_store, workers=1)
    submission = submit(study, "slurm", minutes=10, **NODE)
    with pytest.raises(RuntimeError, match="NaN or infinite"): submission.wait(progress=False, every=0.5)
    until(lambda: not executors.slurm_queue(), 30)
    assert fresh_store.artifacts("model") == []


def test_a_killed_job_is_lost_not_awaited(node, fresh_store):
    study = Study("digits", "smoke", [], [], overrides=SHORT, store=fresh_store, workers=1)
    submission = submit(study, "slurm", minutes=10, **NODE)
    submission.watch.grace = 2
    until(lambda: "RUNNING" in set(submission.status().state))
    submission.parts[0][0].cancel()
    with pytest.raises(RuntimeError, match="did not finish"): submission.wait(progress=False, every=0.5)


def test_a_failed_run_is_reported_locally(fresh_store):
    how = dict(metrics_backbone="pixels", overrides={**SHORT, "train.lr": 1e30}, store=fresh_store)
    study = Study("digits", "smoke", [], [], device="cpu", workers=1, **how)
    submission = submit(study, device="cpu")
    with pytest.raises(RuntimeError, match="NaN or infinite"): submission.wait(progress=False, every=0.2)
    assert submission.status().state.tolist() == ["done", "failed"]
    assert (submission.folder / f"{submission.parts[1][0].job_id}_0_log.err").exists()


def test_a_missing_job_gets_a_grace(tmp_path):
    job = SimpleNamespace(job_id="7", paths=SimpleNamespace(result_pickle=tmp_path / "no"))
    watch = Watch(grace=0.2)
    assert watch.state(job, {"7": "RUNNING"}) == "RUNNING"
    assert watch.state(job, {}) == "ending"
    time.sleep(0.3)
    assert watch.state(job, {"7": "PENDING"}) == "PENDING"  # it was requeued
    assert watch.state(job, {}) == "ending"
    time.sleep(0.3)
    assert watch.state(job, {}) == "lost"


def test_no_slurm_is_said(monkeypatch, fresh_store, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    study = Study("digits", "smoke", [], [], overrides=SHORT, store=fresh_store, workers=1)
    with pytest.raises(RuntimeError, match="srun"): submit(study, "slurm")
    assert not Path(fresh_store.root / "jobs").exists() or not list((fresh_store.root / "jobs").glob("*.pkl"))

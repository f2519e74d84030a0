"""Looking after a store: garbage, dates, what artifacts record, and what the command line says of it."""
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from datetime import timedelta

import numpy as np
import pytest
from typer.testing import CliRunner

from diffprune.cli import app
from diffprune.core import lineage
from diffprune.core import store as store_module
from diffprune.core.lineage import code_version
from diffprune.core.stages import Context, Stage, StaleWarning, materialise
from diffprune.core.store import Store, create_array, now, save_array
from diffprune.study.schedule import start_workers, study_devices, thread_limits
from diffprune.study.study import Study

SHORT = {"train.steps": 12, "vqvae_train.steps": 8, "n_bootstrap": 2}


def make(folder): save_array(folder / "a.npy", np.arange(10))


def test_garbage_of_a_live_process_is_left(fresh_store):
    def slowly(root, started, go_on):
        def wait(folder): make(folder); started.set(); go_on.wait(30)
        Store(root).build("slow", make=wait)
    ctx = multiprocessing.get_context("fork")
    started, go_on = ctx.Event(), ctx.Event()
    process = ctx.Process(target=slowly, args=(fresh_store.root, started, go_on))
    process.start()
    assert started.wait(30)
    assert len(fresh_store.collect(dry_run=False)) == 0
    go_on.set()
    process.join(30)
    assert fresh_store.find(fresh_store.key("slow")).array("a").sum() == 45


def test_work_of_a_dead_process_is_garbage(fresh_store):
    ctx = multiprocessing.get_context("fork")
    def die(root): Store(root).build("dead", make=lambda folder: (make(folder), os._exit(9)))
    process = ctx.Process(target=die, args=(fresh_store.root,))
    process.start(), process.join(30)
    found = fresh_store.collect()
    assert found.what.tolist() == ["work"] and found.mib[0] > 0 and not found.deleted[0]
    assert fresh_store.collect(dry_run=False).deleted.all() and not list((fresh_store.root / "work").iterdir())


def test_half_written_files_of_a_killed_run_do_not_get_into_the_artifact(fresh_store):
    def killed(folder):  # as SIGKILL leaves it: the temporary name is still there
        make(folder)
        (folder / "part").mkdir()
        (folder / "part" / ".weights-ab12.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fresh_store.build("long", make=killed, resumable=True)
    art = fresh_store.build("long", make=make, resumable=True)
    assert list(art.meta["files"]) == ["a.npy"] and art.meta["resumed"]


def test_only_old_and_unneeded_artifacts_go(fresh_store, monkeypatch):
    real = store_module.now
    monkeypatch.setattr(store_module, "now", lambda: real() - timedelta(days=10))
    old = fresh_store.build("old", make=make)
    base = fresh_store.build("base", make=make)
    monkeypatch.setattr(store_module, "now", real)
    new = fresh_store.build("new", {}, dict(base=base), make)
    names = lambda **k: sorted(n.partition("-")[0] for n in fresh_store.collect(**k).name)
    assert names(older_than=5) == ["base", "old"]
    assert names(keep=[new.hash]) == ["old"]
    assert names(keep=[new.hash], older_than=5) == ["old"] and names(keep=[new.hash], older_than=20) == []
    fresh_store.collect(keep=[new.hash], dry_run=False)
    assert {a.hash for a in fresh_store.artifacts()} == {base.hash, new.hash} and old.hash not in {a.hash for a in fresh_store.artifacts()}


def test_a_clock_that_is_set_back_keeps_the_order(fresh_store, monkeypatch):
    real = store_module.now
    chain = None
    for days in (3, -400, 0):
        monkeypatch.setattr(store_module, "now", lambda: real() + timedelta(days=days))
        chain = fresh_store.build("link", dict(days=days), dict(before=chain) if chain else {}, make)
    assert [a.meta["settings"]["days"] for a in fresh_store.artifacts()] == [3, -400, 0]
    assert all(a.meta["seconds"] >= 0 for a in fresh_store.artifacts())
    assert len(fresh_store.collect(older_than=1)) == 0


@pytest.mark.parametrize("old, new", [('"seconds"', '"sekunds"'), ('"checksum"', '"checksun"'), ('"link"', '"lint"')])
def test_an_altered_record_is_noticed(fresh_store, caplog, old, new):
    path = fresh_store.build("link", make=make).path / "artifact.json"
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new))
    with caplog.at_level(logging.WARNING): assert Store(fresh_store.root).find(fresh_store.key("link")) is None
    assert "was altered" in caplog.text


def test_an_artifact_of_an_older_version_is_still_read(fresh_store):
    path = fresh_store.build("link", make=make).path / "artifact.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in meta.items() if k not in ("checksum", "resumed", "code", "peak_gpu_mib")}))
    assert Store(fresh_store.root).find(fresh_store.key("link")) is not None


def test_a_full_disk_says_so(tmp_path):
    if os.geteuid() != 0: pytest.skip("mounting a small tmpfs needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode: pytest.skip("nothing can be mounted here")
    try:
        for write in (lambda p: save_array(p, np.zeros(10**6)), lambda p: create_array(p, np.float32, (10**6,))):
            with pytest.raises(OSError, match="No space left on device"): write(tmp_path / "big.npy")
            (tmp_path / "big.npy").unlink(missing_ok=True)
            assert not list(tmp_path.iterdir())
        fresh = Store(tmp_path / "store")
        fill = lambda folder: save_array(folder / "a.npy", np.zeros(10**6))
        with pytest.raises(OSError, match="No space left"): fresh.build("big", make=fill)
        assert fresh.artifacts() == []
    finally: subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_two_that_find_the_same_damage_set_it_aside_once(fresh_store):
    art = fresh_store.build("x", make=make)
    (art.path / "a.npy").write_bytes(b"rubbish")
    def ask(root, queue):
        logging.disable()
        queue.put(int(Store(root).build("x", make=lambda folder: (time.sleep(0.3), make(folder))[0]).array("a").sum()))
    ctx = multiprocessing.get_context("fork")
    queue = ctx.SimpleQueue()
    processes = [ctx.Process(target=ask, args=(fresh_store.root, queue)) for _ in range(3)]
    for p in processes: p.start()
    for p in processes: p.join(30)
    assert [queue.get() for _ in range(3)] == [45] * 3
    assert len(list((fresh_store.root / "damaged").iterdir())) == 1


def make_stage(stage, artifacts, folder, context): make(folder)


def test_what_an_artifact_records(fresh_store):
    art = materialise(Stage("thing", {}, {}, make_stage), Context(fresh_store, device="cpu"))
    assert art.meta["code"] == code_version(make_stage) and art.meta["code"]["version"]
    assert art.meta["device"] == "cpu" and art.meta["resumed"] is False and art.meta["peak_gpu_mib"] is None
    assert art.meta["seconds"] >= 0 and art.meta["packages"]["numpy"] == np.__version__


def test_results_show_provenance_and_changed_code(fresh_store, monkeypatch):
    how = dict(metrics_backbone="pixels", overrides=SHORT, store=fresh_store, device="cpu", workers=1)
    study = Study("digits", "smoke", ["random"], [0.5], **how)
    columns = ["model.seconds", "model.packages.torch", "vqvae.settings.train.steps", "code_changed", "nothing"]
    table = study.results(progress=False, provenance=columns)
    model = table[table.method == "random"].iloc[0]
    assert model["model.seconds"] > 0 and model["vqvae.settings.train.steps"] == 8
    assert not model["code_changed"] and model["nothing"] is None
    origin = study.provenance_table()
    assert set(origin.kind) == set(study.plan().kind) and not origin.code_changed.astype(bool).any()
    with monkeypatch.context() as m:
        m.setattr(lineage, "code_version", lambda *f: dict(version="another", parts={}))
        later = Study("digits", "smoke", ["random"], [0.5], **how)
        assert later.provenance_table().code_changed.all()
        with pytest.warns(StaleWarning): table = later.results(progress=False, provenance=["model.code_changed"])
        assert table["model.code_changed"].dropna().all() and table["model.code_changed"].notna().any()

    names = list(fresh_store.studies())
    assert len(names) == 1
    monkeypatch.setenv("DIFFPRUNE_STORE", str(fresh_store.root))
    fresh_store.build("stray", make=make)
    run = lambda *a: CliRunner().invoke(app, ["store", *a])
    said = run("gc", "--keep", names[0]).stdout
    assert "stray" in said and "1 folders can be deleted" in said and fresh_store.artifacts("stray")
    assert "1 folders deleted" in run("gc", "--keep", names[0], "--delete").stdout
    assert fresh_store.artifacts("stray") == [] and study.missing() == [] and study.plan().cached.all()
    assert names[0] in run("studies").stdout and "unknown study" in run("gc", "--keep", "other").output


def test_workers_are_dealt_to_devices(fresh_store, monkeypatch):
    started = []
    note = lambda command, env, **k: started.append((command[-1], env.get("CUDA_VISIBLE_DEVICES")))
    monkeypatch.setattr("diffprune.study.schedule.subprocess.Popen", note)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    study = Study("digits", "smoke", ["random"], [0.5], store=fresh_store, device="cpu,cpu", workers=2)
    assert study.workers == 4 and study.devices == ["cpu", "cpu"]
    study.devices = ["cuda:0", "cuda:1"]
    start_workers(4, study.devices, study.worker_arguments, None)
    assert [gpu for _, gpu in started] == ["0", "1", "0", "1"] and all('"device": "cuda"' in c for c, _ in started)
    with pytest.raises(ValueError, match="unknown device"): study_devices("tpu")
    assert now().tzinfo is not None


def test_a_worker_has_its_share_of_the_cores_in_every_pool():
    code = ("import json, faiss, numpy, scipy.linalg, sklearn.utils, torch\nfrom threadpoolctl import threadpool_info\n"
            "print(json.dumps(dict(pools=threadpool_info(), torch=torch.get_num_threads())))")
    env = {**os.environ, **thread_limits(2)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    found, share = json.loads(done.stdout), max(1, os.cpu_count() // 2)
    assert found["torch"] == share
    assert {pool["user_api"] for pool in found["pools"]} >= {"blas", "openmp"}
    assert {pool["num_threads"] for pool in found["pools"]} == {share}, found["pools"]

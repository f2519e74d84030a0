"""Faults that a store must survive."""
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from diffprune.core.store import Key, Store, canonical, load_array, save_array


def numbers(folder):
    save_array(folder / "a.npy", np.arange(10))


def test_inputs_and_version_change_the_address(fresh_store):
    base = fresh_store.key("x", dict(a=1))
    others = [fresh_store.key("y", dict(a=1)), fresh_store.key("x", dict(a=2)), fresh_store.key("x", dict(a=1), version=2),
              fresh_store.key("x", dict(a=1), dict(i=base))]
    assert len({base.hash, *(o.hash for o in others)}) == 5


@pytest.mark.parametrize("how", ["flip", "cut", "delete", "meta"])
def test_damage_is_noticed_and_repaired(fresh_store, caplog, how):
    art = fresh_store.build("x", make=numbers)
    target = art.path / ("artifact.json" if how == "meta" else "a.npy")
    raw = bytearray(target.read_bytes())
    raw[-1] ^= 1
    if how == "delete": target.unlink()
    else: target.write_bytes(bytes(raw[:-3]) if how in ("cut", "meta") else bytes(raw))
    with caplog.at_level(logging.WARNING):
        again = Store(fresh_store.root).build("x", make=numbers)
    assert again.array("a").tolist() == list(range(10))
    assert "computed again" in caplog.text


def test_killed_while_writing_leaves_no_artifact(fresh_store):
    code = ("import sys, time, numpy as np\n"
            "from diffprune.core.store import Store, save_array\n"
            "def make(f):\n    save_array(f/'half.npy', np.zeros(3)); print('started', flush=True); time.sleep(60)\n"
            "Store(sys.argv[1]).build('slow', make=make)\n")
    process = subprocess.Popen([sys.executable, "-c", code, str(fresh_store.root)], stdout=subprocess.PIPE)
    assert process.stdout.readline().strip() == b"started"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert fresh_store.find(fresh_store.key("slow")) is None
    start = time.monotonic()
    made = fresh_store.build("slow", make=lambda f: save_array(f / "whole.npy", np.ones(3)))  # the dead owner's lock does not block
    assert time.monotonic() - start < 5
    assert [p.name for p in made.path.glob("*.npy")] == ["whole.npy"]  # nor is its half left


def test_resumable_work_is_kept(fresh_store):
    def first(folder):
        save_array(folder / "part.npy", np.ones(2))
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError): fresh_store.build("long", make=first, resumable=True)
    seen = []
    fresh_store.build("long", make=lambda f: seen.append((f / "part.npy").exists()), resumable=True)
    assert seen == [True]


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([dict(a=1)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError): load_array(tmp_path / "evil.npy")


def test_canonical_refuses_what_json_cannot_say():
    for bad in (float("inf"), {"a": {1, 2}}, b"bytes"):
        with pytest.raises(TypeError): canonical(bad)


def test_environment_variable_moves_the_store(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFPRUNE_STORE", str(tmp_path / "elsewhere"))
    assert Store().root == (tmp_path / "elsewhere").resolve()


def test_key_is_cheap():
    assert Key("x").name == f"x/{Key('x').hash}" and len(Key("x").hash) == 16 and os.sep not in Key("x").hash

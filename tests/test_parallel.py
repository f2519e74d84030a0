"""Two processes against one: the same losses, latents, features, scores and samples; and no process is ever left waiting.

Importing PyTorch takes seconds, so `torchrun` is called a few times only, each time for many checks; `parallel_work.py` is what
the processes do."""
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import parallel_work
import pytest
import torch
from typer.testing import CliRunner

from diffprune.cli import app
from diffprune.core.parallel import OtherProcessError, Processes, agree, first_then_others, processes, shard, together, write_rows
from diffprune.core.store import Store, load_array, save_array
from diffprune.study.study import study_devices

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("compare", HERE.parent / "benchmarks/parallel/compare.py")
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)


def torchrun(*args):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *map(str, args)], capture_output=True, text=True, timeout=300, env=env)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    "The folders of one process and of two, after both have done everything."
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    torch.set_num_threads(1)      # as `torchrun` below: with two, rounding moved one latent to another code in the sixth step of a VQ-VAE
    parallel_work.first_half(one / "stopped")                  # by one process, to be finished by two
    parallel_work.everything(one)
    compare.work(one / "store", study=parallel_work.STUDY)
    compare.without_rows(one / "store", two / "copy")
    done = torchrun(HERE / "parallel_work.py", one, two)
    assert done.returncode == 0, done.stderr[-4000:]
    (two / "said.txt").write_text(done.stderr)
    parallel_work.second_half(two / "stopped", two / "finished by one.csv")
    return one, two


@pytest.mark.parametrize("name, tolerance", [("dit float32", 1e-5), ("dit float64", 1e-10), ("vqvae", 1e-5)])
def test_loss_curves(both, name, tolerance):
    one, two = (pd.read_csv(folder / f"{name}.csv") for folder in both)
    assert len(one) == 12 and list(one) == list(two)
    np.testing.assert_allclose(two, one, rtol=tolerance, atol=1e-12)
    assert one.loss.nunique() == 12


def test_a_compiled_step_is_for_one_process_and_that_is_said_once(both):
    assert (both[1] / "said.txt").read_text().count("the training step is not compiled: 2 processes train together") == 1


def test_codebook_is_the_same_in_both_processes_and_in_one(both):
    one, two = both
    found = [np.load(two / f"codebook {rank}.npy") for rank in range(2)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0], np.load(one / "codebook 0.npy"), rtol=1e-4, atol=1e-5)
    assert (one / "revived.txt").read_text() == (two / "revived.txt").read_text() != "0"       # codes died and were revived, the same ones


def test_training_goes_on_with_another_number_of_processes(both):
    one, two = both
    whole = pd.read_csv(one / "whole.csv")
    for resumed in (two / "finished by two.csv", two / "finished by one.csv"):
        np.testing.assert_allclose(pd.read_csv(resumed), whole, rtol=1e-5)


@pytest.mark.parametrize("kind", ["latents", "features", "samples"])
def test_rows_are_equal_to_the_last_bit_with_the_same_weights(both, kind):
    one, two = both
    found = compare.differences(one / "store", two / "copy", [kind])
    assert len(found) and not found.differing.any(), found


def test_study_of_two_processes_differs_by_rounding(both):
    one, two = both
    found = compare.differences(one / "store", two / "store").set_index("kind")
    assert set(found.index) >= {"vqvae", "latents", "features", "proxy", "surrogates", "scores", "subset", "model", "samples", "metrics"}
    assert not found.loc["subset"].largest_difference.any()
    images = found.loc["samples"].query("what == 'images.npy'")
    assert (images.differing < 0.01*images["values"]).all(), images   # 0.1 if a code differed in training, 0.9 if averages do
    for kind in ("latents", "proxy", "surrogates", "scores", "metrics"): assert (found.loc[kind].relative < 1e-3).all(), found.loc[kind]
    logs = found[found.what == "log.csv: loss"]
    assert len(logs) >= 4 and (logs.relative < 1e-5).all(), logs


def test_addresses_do_not_depend_on_the_number_of_processes(both):
    one, two = both
    assert {a.hash for a in Store(one / "store").artifacts()} == {a.hash for a in Store(two / "store").artifacts()}
    made = {a.hash: a.meta["created"] for a in Store(one / "store").artifacts() if a.kind in ("vqvae", "model", "proxy")}
    kept = {a.hash: a.meta["created"] for a in Store(two / "copy").artifacts() if a.kind in ("vqvae", "model", "proxy")}
    assert made == kept                                                                        # found in the copy, not made again
    assert {a.meta["processes"] for a in Store(two / "store").artifacts("model")} == {2}
    assert not list((two / "store/work").glob("*"))


ALL = "RuntimeError: training takes all processes"
SMALL = "ValueError: batch_size 1 is too small for 2 processes"


@pytest.mark.parametrize("case, main, other", [
    ("a row of process 1", "OtherProcessError: process 1: ValueError: row 4 is broken", "ValueError: row 4 is broken"),
    ("make in process 1", "OtherProcessError: process 1: ValueError: no luck", "ValueError: no luck"),
    ("make in both", "ValueError: no luck", "ValueError: no luck"),
    ("the first alone", "ValueError: no luck", "OtherProcessError: process 0: ValueError: no luck"),
    ("before make", "NotADirectoryError", "OtherProcessError: process 0: NotADirectoryError"),
    ("training alone", ALL, f"OtherProcessError: process 0: {ALL}"),
    ("too many processes", SMALL, SMALL),
])
def test_an_error_of_one_is_an_error_of_all(both, case, main, other):
    told = [json.loads((both[1] / f"errors {rank}.json").read_text())[case] for rank in range(2)]
    assert told[0].startswith(main) and told[1].startswith(other), told


def test_processes_agree_after_errors(both):
    told = [json.loads((both[1] / f"errors {rank}.json").read_text()) for rank in range(2)]
    assert told[0]["agreed"] == told[1]["agreed"] == [0, "of", 2]
    assert told[0]["alone"] == [0, 1] and told[0]["order"] == told[1]["order"] == ["0", "1"]


def test_a_process_that_fails_while_others_wait_for_its_gradient_ends_all(tmp_path):
    start = time.monotonic()
    done = torchrun(HERE / "parallel_work.py", "fail", tmp_path)
    assert done.returncode != 0 and time.monotonic() - start < 100
    assert "ValueError: process 1 has had enough" in done.stderr
    assert not list((tmp_path / "store").glob("toy/*"))


def test_command_line_in_two_processes(both):
    printed = [(both[1] / f"printed {rank}.txt").read_text() for rank in range(2)]
    assert "unpruned" in printed[0] and "validation" in printed[0] and printed[1] == "exit status 0\n"      # one process talks
    assert {a.meta["processes"] for a in Store(both[1] / "cli").artifacts("model")} == {2}


def test_alone_everything_is_a_plain_call(tmp_path):
    assert processes() == Processes(0, 1)
    assert agree(lambda: "yes") == first_then_others(lambda: "yes") == "yes"
    write_rows(tmp_path / "new", 3, lambda rows, folder: save_array(folder / "a.npy", np.arange(3)[rows]), multiple=2)
    assert load_array(tmp_path / "new/a.npy").tolist() == [0, 1, 2]
    with pytest.raises(ZeroDivisionError), together(): 1 / 0  # noqa: B018
    assert issubclass(OtherProcessError, RuntimeError)


@pytest.mark.parametrize("bad", [(-1, 0, 1, 1), (5, 2, 2, 1), (5, -1, 2, 1), (5, 0, 1, 0)])
def test_impossible_blocks(bad):
    with pytest.raises(ValueError, match="no block"): shard(*bad)


@pytest.fixture
def launched(monkeypatch):
    "The environment of a process of torchrun."
    for name, value in dict(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0").items(): monkeypatch.setenv(name, value)


def test_processes_of_torchrun_submit_no_jobs(launched):
    done = CliRunner().invoke(app, ["study", "--dataset", "digits", "--preset", "smoke", "--executor", "local"])
    assert done.exit_code == 1 and "without torchrun" in done.output


def test_processes_of_torchrun_take_a_device_each(launched):
    assert study_devices("cpu") == ["cpu"]
    with pytest.raises(ValueError, match="choose cpu or cuda"): study_devices("cuda:1")
    with pytest.raises(ValueError, match="choose cpu or cuda"): study_devices("cpu,cpu")

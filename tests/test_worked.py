"""Worked notebooks, run the way the README says but small, and refusing what they cannot do before work begins."""
import nbformat
import pytest
from notebooks import ROOT, papermill, run_head, run_here

SMALL = {  # parameters with which a notebook runs in seconds
    "worked_balance": dict(n_faces="60", n_clusters="4", side="32", seeds="[0, 1]"),
    "worked_own_trainer": dict(steps="4", batch_size="8", channels="[8, 16]", n_samples="2", sampling_steps="2"),
    "worked_prune_folder": dict(n_faces="20", n_clusters="3"),
}
WORK = dict(worked_balance="load_dataset", worked_own_trainer="TemporaryDirectory", worked_prune_folder="TemporaryDirectory")  # begins here


def test_every_worked_notebook_is_run(): assert sorted(SMALL) == sorted(n.stem for n in (ROOT / "nbs").glob("worked_*.ipynb"))


@pytest.mark.parametrize("name", SMALL)
def test_worked_notebook_runs_and_writes_nothing(name, tmp_path, store_root, monkeypatch):
    said = run_here(name, tmp_path, store_root, SMALL[name], monkeypatch)
    assert not list(tmp_path.iterdir()), "what it makes is temporary or in the store"
    assert str(tmp_path) not in said and str(store_root) not in said, "outputs must not name folders of a machine"


@pytest.mark.parametrize("name", SMALL)
def test_stored_outputs_are_whole_and_name_no_machine(name):
    code = [c for c in nbformat.read(ROOT / f"nbs/{name}.ipynb", 4).cells if c.cell_type == "code"]
    outputs = [o for c in code for o in c.outputs]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert {o.output_type for o in outputs} <= {"execute_result", "display_data", "stream"}
    assert all(o.name == "stdout" for o in outputs if o.output_type == "stream"), "no progress, no warnings"
    assert not any(place in str(outputs) for place in ("/tmp", "/root", "/home", "/work", "site-packages"))


@pytest.mark.parametrize("name, parameters, error, message", [
    ("worked_balance", dict(n_face=5), ValueError, "did you mean 'n_faces'"),
    ("worked_balance", dict(n_faces=2.5), TypeError, "n_faces must be int"),
    ("worked_balance", dict(n_faces=8), ValueError, "n_clusters=12; from 2 to the 2"),
    ("worked_balance", dict(ratio=1.0), ValueError, "pruning_ratio=1.0"),
    ("worked_balance", dict(seeds=[3]), ValueError, "two different seeds"),
    ("worked_balance", dict(side=8), ValueError, "side=8"),
    ("worked_balance", dict(skew={"wings": 1}), ValueError, "unknown attribute 'wings'"),
    ("worked_balance", dict(skew={"hat": {"fez": 1}}), ValueError, "no value 'fez'"),
    ("worked_balance", dict(skew={"skin_color": 0}), ValueError, "skin_color is not skewed"),
    ("worked_own_trainer", dict(method="random"), ValueError, "works on features"),
    ("worked_own_trainer", dict(method="cluster_vgg"), ValueError, "cluster_BACKBONE"),
    ("worked_own_trainer", dict(ratio=-0.1), ValueError, "pruning_ratio=-0.1"),
    ("worked_own_trainer", dict(ratio=0.99), ValueError, "only 13 images are kept"),
    ("worked_own_trainer", dict(channels=[16, 20]), ValueError, "multiples of 8"),
    ("worked_own_trainer", dict(learning_rate=-1.0), ValueError, "learning_rate"),
    ("worked_own_trainer", dict(sampling_steps=2000), ValueError, "the schedule has 1000"),
    ("worked_own_trainer", dict(steps=0), ValueError, "at least 1"),
    ("worked_own_trainer", dict(epochs=3), ValueError, "unknown parameter 'epochs'"),
    ("worked_prune_folder", dict(method="el2n"), ValueError, "works on features"),
    ("worked_prune_folder", dict(method="kcenter_lite0"), ValueError, "no option n_clusters"),
    ("worked_prune_folder", dict(n_faces=10), ValueError, "only 5 of 10"),
    ("worked_prune_folder", dict(ratio="half"), TypeError, "ratio must be float"),
])
def test_what_a_worked_notebook_cannot_do_is_refused_before_work_begins(name, parameters, error, message, store_root, monkeypatch):
    monkeypatch.setenv("DIFFPRUNE_STORE", str(store_root))
    with pytest.raises(error, match=message): run_head(name, WORK[name], **parameters)


def test_papermill_stops_at_a_wrong_parameter(tmp_path, store_root):
    done = papermill("worked_balance", tmp_path, store_root, dict(n_clusters="0"))
    assert done.returncode != 0 and "n_clusters is 0" in done.stderr and not list(tmp_path.iterdir())

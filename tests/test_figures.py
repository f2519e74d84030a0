"""Every figure notebook, run the way the README says, at the smoke preset, with the figures and the store elsewhere."""
import ast
import json
import re

import nbformat
import pandas as pd
import pytest
from figure_runs import LONGEST, NOTEBOOKS, run_alone
from notebooks import ROOT, papermill, parameters_cell, run_head, run_here

COMMON = {"dataset", "preset", "seeds", "metrics_backbone", "root", "device", "workers", "overrides", "force", "stale"}


def code_cells(name):
    cells = [c for c in nbformat.read(ROOT / f"nbs/{name}.ipynb", 4).cells if c.cell_type == "code"]
    at, source = parameters_cell(cells)
    return source, [c.source for c in cells[:at]], [c.source for c in cells[at + 1:]]


@pytest.mark.parametrize("name", [n for n in NOTEBOOKS if n not in LONGEST])
def test_figure_notebook_runs_alone(name, tmp_path, store_root, monkeypatch): run_alone(name, tmp_path, store_root, monkeypatch)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_all_heads_are_alike(name):
    source, _, later = code_cells(name)
    names = [node.targets[0].id for node in ast.parse(source).body]
    assert COMMON <= set(names)
    head = ast.parse(later[0]).body
    assert ast.unparse(head[0]).startswith("p = parameters(globals()")
    assert any(ast.unparse(node).startswith("study = p.study(") for node in head)
    named = {k.arg for k in head[0].value.keywords}
    assert named == set(names) - COMMON, "every further parameter has a type"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_are_read_from_the_checked_ones_only(name):
    source, before, later = code_cells(name)
    names = {node.targets[0].id for node in ast.parse(source).body}
    imports = [node for c in before for node in ast.walk(ast.parse(c)) if isinstance(node, ast.ImportFrom)]
    imported = {a.asname or a.name for node in imports for a in node.names}
    assert not names & imported, "a parameter hides what was imported"
    used = {node.id for c in later for node in ast.walk(ast.parse(c)) if isinstance(node, ast.Name)}
    assert not names & used, "a parameter is rebound, or read past the check"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_figure_notebook_says_what_is_wrong(name):
    with pytest.raises(ValueError, match="did you mean 'dataset'"): run_head(name, "p.study", datset="digits")
    with pytest.raises(TypeError, match="parameter dataset must be str"): run_head(name, "p.study", dataset=3)
    with pytest.raises(ValueError, match="train.stepz"): run_head(name, "p.study", overrides="{'train.stepz': 3}")


@pytest.mark.parametrize("parameters, message", [
    (dict(dataset="celeba"), "digits"),
    (dict(dataset="celebahq"), "DIFFPRUNE_DATA"),
    (dict(preset="laptop"), "smoke, cpu, gpu, paper"),
    (dict(ratios="[1.5]"), r"\[0, 1\)"),
    (dict(methods="cluster_vgg"), "cluster_BACKBONE"),
    (dict(dataset="celebahq", root="/nowhere"), "there is no folder /nowhere"),
    (dict(seeds=0), "seeds is 0"),
    (dict(seeds=3), "seeds must be list"),
    (dict(ratios=1.5), r"\[0, 1\)"),
    (dict(force="yes"), "force must be bool"),
    (dict(workers="two"), "workers must be int or None"),
    (dict(device="gpu"), "choose cpu, cuda"),
    (dict(overrides="train.steps=20"), "train.steps': 20"),
])
def test_figure_1_says_what_is_wrong_before_work_begins(parameters, message, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFPRUNE_DATA", "")
    monkeypatch.setenv("DIFFPRUNE_STORE", str(tmp_path / "store"))
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message): run_head("fig1_fid_curves", "p.study", **parameters)
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("name, parameters, message", [
    ("fig2_qualitative", dict(noises="[3, 32]"), "noise 32"),
    ("fig3_class_samples", dict(classes="nought"), "unknown class 'nought'"),
    ("fig4_cluster_regions", dict(backbones="vgg"), "cluster_vgg"),
    ("fig6_inverse_pairs", dict(methods="moso,grand"), "give both"),
    ("fig7_balanced_samples", dict(ratios="[0.5, 0.9]"), "one pruning ratio"),
    ("fig7_balanced_samples", dict(lines=20), "noise 32"),
    ("table2_balance", dict(attributes="wings"), "unknown attribute 'wings'"),
    ("claims", dict(extreme=1.5), r"\[0, 1\)"),
    ("claims", dict(methods="grand"), "random pruning"),
    ("supp_vae_gan", dict(methods="grand"), "random pruning"),
    ("lfm_likeness", dict(seeds="[0]"), "two seeds are needed"),
    ("lfm_likeness", dict(other_size="DiT-N/2"), "already"),
    ("lfm_likeness", dict(method="random_inv"), "unknown method 'random_inv_inv'"),
    ("lfm_two_models", dict(switches="[0.5, 1.5]"), "switches is"),
    ("lfm_two_models", dict(small="DiT-Q/2"), "choose from"),
    ("lfm_two_models", dict(large="DiT-Q/2"), "dit is"),
    ("lfm_two_models", dict(metrics="fid"), "metric must be one of"),
    ("lfm_two_models", dict(images=33), "noise 32"),
])
def test_what_a_notebook_cannot_show_is_refused_before_anything_is_trained(name, parameters, message, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFPRUNE_STORE", str(tmp_path))
    with pytest.raises(ValueError, match=message): run_head(name, "p.study", **{"dataset": "digits", "preset": "smoke", **parameters})
    assert not list(tmp_path.glob("model-*")) and not list(tmp_path.glob("vqvae-*"))


def test_settings_of_the_machine_and_of_the_preset_reach_the_figure(tmp_path, store_root):
    parameters = dict(dataset="digits", preset="smoke", methods="random", ratios="[0.9]", seeds="[0]", device="cpu", workers="1",
                      overrides="{'train.steps': 5, 'n_bootstrap': 2}")
    done = papermill("fig2_qualitative", tmp_path, store_root, parameters)
    assert done.returncode == 0, done.stderr[-3000:]
    origin = json.loads((tmp_path / "papers_figures/digits/smoke/fig2_qualitative_seed0.json").read_text(encoding="utf-8"))
    assert origin["overrides"] == {"train.steps": 5, "n_bootstrap": 2} and origin["settings"]["train"]["steps"] == 5
    assert (origin["drawn"]["device"], origin["drawn"]["workers"]) == ("cpu", 1)


def test_papermill_stops_at_a_wrong_parameter(tmp_path, store_root):
    done = papermill("claims", tmp_path, store_root, dict(datset="digits"))
    assert done.returncode != 0 and "did you mean 'dataset'" in done.stderr
    assert not (tmp_path / "papers_figures").exists()


def test_make_figures_names_every_figure_notebook():
    rule = re.search(r"^FIGURES\s*=\s*(.*?)(?<!\\)\n", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M | re.S)[1]
    assert sorted(rule.replace("\\\n", " ").split()) == NOTEBOOKS


def test_class_samples_need_a_conditional_model(monkeypatch, store_root):
    monkeypatch.setenv("DIFFPRUNE_STORE", str(store_root))
    with pytest.raises(ValueError, match="conditional=False"): run_head("fig3_class_samples", "p.study", dataset="avatars", preset="smoke")


def test_balance_counts_minorities_of_avatars(tmp_path, store_root, monkeypatch):
    run_here("table2_balance", tmp_path, store_root, dict(dataset="avatars", preset="smoke", seeds="[0, 1]"), monkeypatch)
    table = pd.read_csv(tmp_path / "papers_figures/avatars/smoke/table2_minorities.csv")
    assert set(table.attribute) == {"skin_color", "hair", "hat"}
    assert set(table.method) == {"unpruned", "random", "cluster_lite0", "balanced_lite0"} and set(table.seed) == {0, 1}
    sums = table.groupby(["attribute", "method", "seed"])[["kept", "counted", "adjusted"]].sum()
    assert ((sums - 1).abs() < 1e-6).all(axis=None)
    budgets = pd.read_csv(tmp_path / "papers_figures/avatars/smoke/table2_balance.csv").query("method not in ('unpruned', 'validation')")
    assert (budgets.groupby("seed").n_train.nunique() == 1).all(), "proportional, balanced and random keep equally many"

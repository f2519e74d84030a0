"""Every figure notebook, run the way the README says, at the smoke preset, with the figures and the store elsewhere."""
import re

import pandas as pd
import pytest
from figure_runs import LONGEST, NOTEBOOKS, run_alone
from notebooks import ROOT, papermill, run_head, run_here


@pytest.mark.parametrize("name", [n for n in NOTEBOOKS if n not in LONGEST])
def test_figure_notebook_runs_alone(name, tmp_path, store_root, monkeypatch): run_alone(name, tmp_path, store_root, monkeypatch)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_figure_notebook_says_what_is_wrong(name):
    with pytest.raises(ValueError, match="did you mean 'dataset'"): run_head(name, "check_parameters", datset="digits")
    with pytest.raises(TypeError, match="parameter dataset must be str"): run_head(name, "check_parameters", dataset=3)


@pytest.mark.parametrize("parameters, message", [
    (dict(dataset="celeba"), "digits"),
    (dict(dataset="celebahq"), "DIFFPRUNE_DATA"),
    (dict(preset="laptop"), "smoke, cpu, gpu, paper"),
    (dict(ratios="[1.5]"), r"\[0, 1\)"),
    (dict(methods="cluster_vgg"), "cluster_lite0"),
    (dict(seeds=0), "seeds must be list"),
    (dict(force="yes"), "force must be bool"),
])
def test_figure_1_says_what_is_wrong(parameters, message, monkeypatch, store_root):
    monkeypatch.setenv("DIFFPRUNE_DATA", "")
    monkeypatch.setenv("DIFFPRUNE_STORE", str(store_root))
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message): run_head("fig1_fid_curves", "study.results", **parameters)


def test_papermill_stops_at_a_wrong_parameter(tmp_path, store_root):
    done = papermill("claims", tmp_path, store_root, dict(datset="digits"))
    assert done.returncode != 0 and "did you mean 'dataset'" in done.stderr
    assert not (tmp_path / "papers_figures").exists()


def test_make_figures_names_every_figure_notebook():
    rule = re.search(r"^FIGURES\s*=\s*(.*?)(?<!\\)\n", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M | re.S)[1]
    assert sorted(rule.replace("\\\n", " ").split()) == NOTEBOOKS


def test_class_samples_need_a_conditional_model(monkeypatch, store_root):
    monkeypatch.setenv("DIFFPRUNE_STORE", str(store_root))
    with pytest.raises(ValueError, match="conditional=False"): run_head("fig3_class_samples", "check_parameters", dataset="avatars", preset="smoke")


def test_balance_counts_minorities_of_avatars(tmp_path, store_root, monkeypatch):
    run_here("table2_balance", tmp_path, store_root, dict(dataset="avatars", preset="smoke", seeds="[0, 1]"), monkeypatch)
    table = pd.read_csv(tmp_path / "papers_figures/avatars/smoke/table2_minorities.csv")
    assert set(table.attribute) == {"skin_color", "hair", "hat"}
    assert set(table.method) == {"unpruned", "random", "cluster_lite0", "balanced_lite0"} and set(table.seed) == {0, 1}
    sums = table.groupby(["attribute", "method", "seed"])[["kept", "counted", "adjusted"]].sum()
    assert ((sums - 1).abs() < 1e-6).all(axis=None)
    budgets = pd.read_csv(tmp_path / "papers_figures/avatars/smoke/table2_balance.csv").query("method not in ('unpruned', 'validation')")
    assert (budgets.groupby("seed").n_train.nunique() == 1).all(), "proportional, balanced and random keep equally many"

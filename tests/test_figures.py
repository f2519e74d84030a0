"""Every figure notebook, run the way the README says, at the smoke preset, with the figures and the store elsewhere."""
import json
import re

import pandas as pd
import pytest
from notebooks import ROOT, papermill, run_head, run_here

NOTEBOOKS = sorted(n.stem for n in (ROOT / "nbs").glob("*.ipynb") if not n.name[:2].isdigit())
COMMON = dict(dataset="digits", preset="smoke", methods="random,cluster_lite0,cluster_lite0_inv", ratios="[0.5, 0.9]", seeds="[0, 1]")
PARAMETERS = {  # what a notebook needs beyond `COMMON`; None leaves a parameter at its default
    "supp_vae_gan": dict(methods=None, ratios="[0.9]", seeds="[0]"),
    "errata": dict(methods=None, ratios="[0.5]", seeds="[0]"),
    "claims": dict(methods="random,el2n,el2n_inv", ratios="[0.5]", seeds="[0]"),
    "table1_memorization": dict(ratios="[0.9]"),
    "fig4_cluster_regions": dict(methods=None, ratios="[0.5]", seeds="[0]"),
    "fig6_inverse_pairs": dict(methods="moso,moso_inv", ratios="[0.5]"),
    "fig7_balanced_samples": dict(methods=None, ratios=None),
    "fig8_cluster_maps": dict(methods=None, ratios=None, max_points="400", backbone="pixels"),
    "table2_balance": dict(methods=None, ratios=None),
}


def figure_1_has_all_its_files(folder):
    assert {p.name for p in folder.iterdir()} == {f"{n}.{e}" for n in ("fig1_fid_curves", "fig1_samples") for e in ("pdf", "png", "csv", "json")}
    table = pd.read_csv(folder / "fig1_fid_curves.csv")
    assert set(table.method) == {"unpruned", "random", "cluster_lite0", "cluster_lite0_inv", "validation"}
    assert "FD (pixels)" in set(table.name) and "FID" not in set(table.name)
    origin = json.loads((folder / "fig1_fid_curves.json").read_text())
    assert origin["settings"]["train"]["steps"] == 20


def claims_of_one_seed(folder):
    claims = pd.read_csv(folder / "claims.csv")
    assert claims.number.tolist() == list(range(1, 10))
    assert set(claims.verdict) <= {"undecided", "not tested"}, "one seed decides nothing"
    assert "undecided" in set(claims.verdict)


def errata_count_what_four_processes_see(folder):
    table = pd.read_csv(folder / "errata_selection.csv").set_index("departure")
    assert abs(table.loc["random_per_rank"].share_seen - (1 - 0.5**4)) < 0.03


FURTHER = dict(fig1_fid_curves=figure_1_has_all_its_files, claims=claims_of_one_seed, errata=errata_count_what_four_processes_see)


BY_PAPERMILL = {"fig1_fid_curves"}  # the others in this process: a fresh one takes ten seconds to import everything


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_figure_notebook_runs_alone(name, tmp_path, store_root, monkeypatch):
    folder, parameters = tmp_path, {**COMMON, **PARAMETERS.get(name, {})}
    if name in BY_PAPERMILL:
        done = papermill(name, folder, store_root, parameters)
        assert done.returncode == 0, done.stderr[-3000:]
        said = done.stdout
    else: said = run_here(name, folder, store_root, parameters, monkeypatch)
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert files and all("papers_figures" in p.parts for p in files), "nothing but figures is written, and those below papers_figures"
    names = {p.stem for p in files}
    for stem in names:
        endings = {p.suffix for p in files if p.stem == stem}
        assert endings >= {".csv", ".json"} and endings >= {".png", ".pdf"} or endings >= {".md", ".tex"}, f"{stem} has only {sorted(endings)}"
    for origin in (p for p in files if p.suffix == ".json"):
        recorded = json.loads(origin.read_text(encoding="utf-8"))
        assert recorded["preset"] == "smoke" and recorded["settings"] and recorded["commit"] and recorded["device"]
    assert str(store_root) not in said and str(folder) not in said, "outputs must not name folders of a machine"
    if name in FURTHER: FURTHER[name](folder / "papers_figures/digits/smoke")


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

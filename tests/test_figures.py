"""Every figure notebook, run the way the README says, at the smoke preset, with the figures and the store elsewhere."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(n.stem for n in (ROOT / "nbs").glob("*.ipynb") if not n.name[:2].isdigit())
COMMON = dict(dataset="digits", preset="smoke", methods="random,cluster_lite0,cluster_lite0_inv", ratios="[0.5, 0.9]", seeds="[0, 1]")
PARAMETERS = {  # what a notebook needs beyond `COMMON`; None leaves a parameter at its default
    "supp_vae_gan": dict(methods=None, ratios="[0.9]", seeds="[0]"),
    "errata": dict(methods=None, ratios="[0.5]", seeds="[0]"),
    "claims": dict(methods="random,el2n,el2n_inv", ratios="[0.5]"),
    "table1_memorization": dict(ratios="[0.9]"),
    "fig4_cluster_regions": dict(methods=None, ratios="[0.5]", seeds="[0]"),
    "fig6_inverse_pairs": dict(methods="moso,moso_inv", ratios="[0.5]"),
    "fig7_balanced_samples": dict(methods=None, ratios=None),
    "fig8_cluster_maps": dict(methods=None, ratios=None, max_points="400"),
    "table2_balance": dict(methods=None, ratios=None),
}


@pytest.fixture(scope="session")
def figures(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


def papermill(name, cwd, store_root, parameters, timeout=600):
    env = dict(os.environ, DIFFPRUNE_STORE=str(store_root), DIFFPRUNE_DATA="", OMP_NUM_THREADS="1")
    args = [a for k, v in parameters.items() if v is not None for a in ("-p", k, v)]
    return subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", str(ROOT / f"nbs/{name}.ipynb"), *args],
                          cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_figure_notebook_runs_alone(name, figures, store_root):
    folder = figures / name
    folder.mkdir()
    done = papermill(name, folder, store_root, {**COMMON, **PARAMETERS.get(name, {})})
    assert done.returncode == 0, done.stderr[-3000:]
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert files and all("papers_figures" in p.parts for p in files), "nothing but figures is written, and those below papers_figures"
    names = {p.stem for p in files}
    for stem in names:
        endings = {p.suffix for p in files if p.stem == stem}
        assert endings >= {".csv", ".json"} and endings >= {".png", ".pdf"} or endings >= {".md", ".tex"}, f"{stem} has only {sorted(endings)}"
    for origin in (p for p in files if p.suffix == ".json"):
        recorded = json.loads(origin.read_text(encoding="utf-8"))
        assert recorded["preset"] == "smoke" and recorded["settings"] and recorded["commit"] and recorded["device"]
    assert str(store_root) not in done.stdout and str(folder) not in done.stdout, "outputs must not name folders of a machine"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_figure_notebook_says_what_is_wrong(name, tmp_path, store_root):
    done = papermill(name, tmp_path, store_root, dict(datset="digits"))
    assert done.returncode != 0 and "did you mean 'dataset'" in done.stderr
    assert not (tmp_path / "papers_figures").exists()


def test_claims_notebook_decides_nothing_on_one_seed(tmp_path, store_root):
    done = papermill("claims", tmp_path, store_root, {**COMMON, **PARAMETERS["claims"], "seeds": "[0]"})
    assert done.returncode == 0, done.stderr[-3000:]
    claims = pd.read_csv(tmp_path / "papers_figures/digits/smoke/claims.csv")
    assert claims.number.tolist() == list(range(1, 10))
    assert set(claims.verdict) <= {"undecided", "not tested"}
    assert "undecided" in set(claims.verdict)


def test_errata_counts_what_four_processes_see(tmp_path, store_root):
    done = papermill("errata", tmp_path, store_root, {**COMMON, **PARAMETERS["errata"]})
    assert done.returncode == 0, done.stderr[-3000:]
    table = pd.read_csv(tmp_path / "papers_figures/digits/smoke/errata_selection.csv").set_index("departure")
    assert abs(table.loc["random_per_rank"].share_seen - (1 - 0.5**4)) < 0.03


def test_make_figures_names_every_figure_notebook():
    rule = re.search(r"^FIGURES\s*=\s*(.*?)(?<!\\)\n", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M | re.S)[1]
    assert sorted(rule.replace("\\\n", " ").split()) == NOTEBOOKS


def test_class_samples_need_a_conditional_model(tmp_path, store_root):
    done = papermill("fig3_class_samples", tmp_path, store_root, dict(COMMON, dataset="avatars"))
    assert done.returncode != 0 and "conditional=False" in done.stderr


def test_balance_counts_minorities_of_avatars(tmp_path, store_root):
    done = papermill("table2_balance", tmp_path, store_root, dict(dataset="avatars", preset="smoke", seeds="[0, 1]"))
    assert done.returncode == 0, done.stderr[-3000:]
    table = pd.read_csv(tmp_path / "papers_figures/avatars/smoke/table2_minorities.csv")
    assert set(table.attribute) == {"skin_color", "hair", "hat"}
    assert set(table.method) == {"unpruned", "random", "cluster_lite0", "balanced_lite0"} and set(table.seed) == {0, 1}
    sums = table.groupby(["attribute", "method", "seed"])[["kept", "counted", "adjusted"]].sum()
    assert ((sums - 1).abs() < 1e-6).all(axis=None)
    budgets = pd.read_csv(tmp_path / "papers_figures/avatars/smoke/table2_balance.csv").query("method not in ('unpruned', 'validation')")
    assert (budgets.groupby("seed").n_train.nunique() == 1).all(), "proportional, balanced and random keep equally many"

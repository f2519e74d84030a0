"""How a figure notebook is run by tests, and what must have come of it."""
import json

import pandas as pd
from notebooks import ROOT, papermill, run_here

from diffprune.core.store import OWN_FOLDER

NOTEBOOKS = sorted(n.stem for n in (ROOT / "nbs").glob("*.ipynb") if n.stem not in ("cli", "index", "worker", "report_pruning")
                   and not n.stem.startswith("worked_"))
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
    "lfm_likeness": dict(methods=None, ratios=None, other_size="DiT-N/1", likeness_backbone="pixels"),
    "lfm_two_models": dict(methods="random", ratios="[0.5]", switches="[0.0, 0.5, 1.0]"),
}


def figure_1_has_all_its_files(folder):
    endings = ("pdf", "png", "csv", "json")
    assert {p.name for p in folder.iterdir()} - {OWN_FOLDER} == {f"{n}.{e}" for n in ("fig1_fid_curves", "fig1_samples") for e in endings}
    table = pd.read_csv(folder / "fig1_fid_curves.csv")
    assert set(table.method) == {"unpruned", "random", "cluster_lite0", "cluster_lite0_inv", "validation"}
    assert "FD (pixels)" in set(table.name) and "FID" not in set(table.name)
    origin = json.loads((folder / "fig1_fid_curves.json").read_text())
    assert origin["settings"]["train"]["steps"] == 20


def claims_of_one_seed(folder):
    claims = pd.read_csv(folder / "claims.csv")
    assert claims.number.tolist() == list(range(1, 10))
    assert set(claims.verdict) <= {"too few seeds", "not tested"}, "one seed decides nothing"
    assert "too few seeds" in set(claims.verdict)


def errata_count_what_four_processes_see(folder):
    table = pd.read_csv(folder / "errata_selection.csv").set_index("departure")
    assert abs(table.loc["random_per_rank"].share_seen - (1 - 0.5**4)) < 0.03


FURTHER = dict(fig1_fid_curves=figure_1_has_all_its_files, claims=claims_of_one_seed, errata=errata_count_what_four_processes_see)


LONGEST = ("claims", "errata")  # in a file of their own, so that another process takes them
BY_PAPERMILL = {"fig1_fid_curves"}  # the others in this process: a fresh one takes ten seconds to import everything


def run_alone(name, folder, store_root, monkeypatch):
    parameters = {**COMMON, **PARAMETERS.get(name, {})}
    if name in BY_PAPERMILL:
        done = papermill(name, folder, store_root, parameters)
        assert done.returncode == 0, done.stderr[-3000:]
        said = done.stdout
    else: said = run_here(name, folder, store_root, parameters, monkeypatch)
    found = [p for p in folder.rglob("*") if p.is_file()]
    files = [p for p in found if p.name != OWN_FOLDER]
    assert {p.parent for p in found if p.name == OWN_FOLDER} == {p.parent for p in files}, "figures are marked as no images of a data set"
    assert files and all("papers_figures" in p.parts for p in files), "nothing but figures is written, and those below papers_figures"
    names = {p.stem for p in files}
    for stem in names:
        endings = {p.suffix for p in files if p.stem == stem}
        figure, table = {".png", ".pdf", ".csv", ".json"}, {".md", ".tex", ".csv", ".json"}
        assert endings >= figure or endings >= table, f"{stem} has only {sorted(endings)}"
    for origin in (p for p in files if p.suffix == ".json"):
        recorded = json.loads(origin.read_text(encoding="utf-8"))
        assert recorded["preset"] == "smoke" and recorded["settings"] and recorded["drawn"]["commit"]
        made = recorded["made"]
        assert sum(made["commits"].values()) == made["artifacts"] > 0 and made["packages"] and made["deleted"] == 0
    assert str(store_root) not in said and str(folder) not in said, "outputs must not name folders of a machine"
    if name in FURTHER: FURTHER[name](folder / "papers_figures/digits/smoke")

"""Figures say where their numbers come from, published ones can be looked up, and what anybody draws leaves the checkout clean."""
import json
import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from figure_runs import COMMON
from notebooks import ROOT, papermill, run_here

from diffprune.core import store as core_store
from diffprune.core.origins import history
from diffprune.core.store import Store
from diffprune.models import train
from diffprune.models.train import Trainer
from diffprune.report.figures import save_figure
from diffprune.report.tables import save_table, untraceable
from diffprune.study.study import Study

SMALL = dict(dataset="digits", preset="smoke", methods=["random"], ratios=[0.5], device="cpu", workers=1,
             overrides={"train.steps": 4, "train.checkpoint_every": 4, "vqvae_train.steps": 4, "n_bootstrap": 2})


def test_published_figures_can_be_traced_to_committed_code():
    if (known := history(ROOT)) is None: pytest.skip("no git history here, or only a part of it")
    assert list((ROOT / "papers_figures").rglob("*.json")), "there are figures to look at"
    found = untraceable(ROOT / "papers_figures", known)
    assert not len(found), "`make redraw` makes them anew:\n" + found.to_string(index=False)


def figure():
    fig, ax = plt.subplots(figsize=(4, 1))
    ax.plot([0, 1], [1, 0])
    fig.suptitle("a title")
    return fig


@pytest.fixture
def at_commit(monkeypatch):
    real = core_store.provenance()
    def pretend(commit, **packages):
        then = dict(real, commit=commit, packages={**real["packages"], **packages})
        for module in (core_store, train): monkeypatch.setattr(module, "provenance", lambda: then)
    return pretend


def test_the_commits_of_the_numbers_are_named_and_not_that_of_the_drawing(tmp_path, at_commit):
    store = Store(tmp_path / "store")
    at_commit("aaaaaaaaaaaa+changes", torch="1.0")
    Study(**SMALL, seeds=[0], store=store).run(progress=False)
    at_commit("bbbbbbbbbbbb", torch="2.0")
    Study(**SMALL, seeds=[0, 1], store=store).run(progress=False)
    at_commit("cccccccccccc")
    study = Study(**SMALL, seeds=[0, 1], store=Store(store.root))
    table, fig = study.results(progress=False), figure()
    files = save_figure(fig, "fig", table, study.provenance(), root=tmp_path / "figures")
    origin = json.loads(files[3].read_text(encoding="utf-8"))
    made = origin["made"]
    assert made["kinds"]["model"] == {"aaaaaaaaaaaa+changes": 2, "bbbbbbbbbbbb": 2}
    assert made["rows"] == table.commit.value_counts().to_dict() and len(made["rows"]) == 2
    assert set(made["commits"]) == {"aaaaaaaaaaaa+changes", "bbbbbbbbbbbb"} and sum(made["commits"].values()) == made["artifacts"]
    first, second = (made["commits"][commit] for commit in ("aaaaaaaaaaaa+changes", "bbbbbbbbbbbb"))
    assert {p["torch"]: p["n"] for p in made["packages"]} == {"1.0": first, "2.0": second}
    assert sum(made["devices"].values()) == made["artifacts"]
    assert all(re.fullmatch(r"cpu( \(\w+\))?", d) for d in made["devices"]), made["devices"]
    assert origin["drawn"]["commit"] not in made["commits"] and "commit" not in origin
    small = " ".join(t.get_text() for t in fig.texts if t is not fig._suptitle).replace("\n", " ")
    assert f"models: aaaaaaaaaaaa+changes (2), bbbbbbbbbbbb (2); drawn at: {origin['drawn']['commit']}" in small
    assert fig._suptitle.get_text() == "a title", "a title says nothing of commits"
    rows = table[(table.seed == 1) & (table.method == "random")]
    late = save_figure(figure(), "late", rows, study.provenance(), root=tmp_path / "figures")
    assert json.loads(late[3].read_text())["made"]["kinds"]["model"] == {"bbbbbbbbbbbb": 1}, "of these rows only"
    note = save_table(table[["method", "value"]], "shares", study.provenance(), root=tmp_path / "figures")
    assert json.loads(note[3].read_text())["made"]["kinds"]["model"] == made["kinds"]["model"], "rows that do not say: the whole study"
    assert "aaaaaaaaaaaa+changes (2)" in note[1].read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A checkout with one commit and no published figures."
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("settings.ini", ".gitignore"): shutil.copy(ROOT / name, root)
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    run = lambda *a: subprocess.run(["git", *who, *a], cwd=root, check=True, capture_output=True, text=True)
    run("init", "-q")
    run("add", ".")
    run("commit", "-qm", "all")
    monkeypatch.chdir(root)
    monkeypatch.delenv("DIFFPRUNE_FIGURES", raising=False)
    return root, lambda: run("status", "--porcelain").stdout, run("rev-parse", "--short=12", "HEAD").stdout.strip()


def origin_of(commit, drawn=None, **more):
    made = dict(artifacts=3, deleted=0, commits={commit: 3}, kinds=dict(model={commit: 3}), devices=dict(cpu=3), packages=[])
    return dict(dict(dataset="digits", preset="cpu", seeds=[0, 1], methods=["random", "el2n"], ratios=[0.5, 0.9], overrides={},
                     metrics_backbone="pixels", made=made, drawn=dict(commit=drawn or commit)), **more)


TABLE = pd.DataFrame(dict(x=[0, 1]))


def test_what_is_drawn_goes_where_git_does_not_look(checkout, capsys):
    root, status, commit = checkout
    files = save_figure(figure(), "fig", TABLE, origin_of(commit)) + save_table(TABLE, "tab", origin_of(commit))
    assert {f.parent for f in files} == {root / ".diffprune/figures/digits/cpu"} and status() == ""
    said = capsys.readouterr().out
    assert "fig: pdf, png, csv, json in .diffprune/figures/digits/cpu\n" in said and "tab: csv, md, tex, json in .diffprune/figures" in said


@pytest.mark.parametrize("change, reason", [
    (dict(seeds=[0]), "lacks seeds 1"), (dict(methods=["random"]), "lacks methods el2n"), (dict(ratios=[0.9]), "lacks ratios 0.5"),
    (dict(overrides={"train.steps": 3}), "has overrides"), (dict(metrics_backbone="lite0"), "has metrics_backbone 'lite0'")])
def test_a_published_figure_is_not_replaced_by_a_poorer_one(checkout, monkeypatch, capsys, change, reason):
    root, status, commit = checkout
    monkeypatch.setenv("DIFFPRUNE_FIGURES", str(root / "papers_figures"))
    files = save_figure(figure(), "fig", TABLE, origin_of(commit))
    assert files[0].parent == root / "papers_figures/digits/cpu"
    before = {f: f.read_bytes() for f in files}
    poor = save_figure(figure(), "fig", TABLE, origin_of(commit, **change))
    assert poor[0].parent == root / ".diffprune/figures/digits/cpu" and {f: f.read_bytes() for f in files} == before
    assert reason in capsys.readouterr().out
    rich = save_table(TABLE, "fig", origin_of(commit, seeds=[0, 1, 2]))
    assert rich[0].parent == root / "papers_figures/digits/cpu"


@pytest.mark.parametrize("made, drawn", [("HEAD+changes", "HEAD"), ("HEAD", "HEAD+changes"), ("0123456789ab", "HEAD"), ("HEAD", "unknown")])
def test_a_figure_that_cannot_be_traced_is_not_published(checkout, monkeypatch, capsys, made, drawn):
    root, _, commit = checkout
    monkeypatch.setenv("DIFFPRUNE_FIGURES", "papers_figures")
    name = lambda text: text.replace("HEAD", commit)
    files = save_figure(figure(), "fig", TABLE, origin_of(name(made), name(drawn)))
    assert files[0].parent == root / ".diffprune/figures/digits/cpu" and not (root / "papers_figures").exists()
    assert "not published" in capsys.readouterr().out
    folder = root / "papers_figures/digits/cpu"
    folder.mkdir(parents=True)
    shutil.copy(files[3], folder)
    assert untraceable(root / "papers_figures", history(root)).file.tolist() == ["digits/cpu/fig.json"], "and if it were, it is found"


def test_a_first_run_of_papermill_leaves_the_checkout_clean(checkout, store_root):
    root, status, _ = checkout
    done = papermill("fig1_fid_curves", root, store_root, {**COMMON, "seeds": "[0]"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert (root / ".diffprune/figures/digits/smoke/fig1_fid_curves.png").is_file() and status() == ""
    failed = papermill("fig1_fid_curves", root, store_root, dict(dataset="celebahq"))
    assert failed.returncode != 0 and "DIFFPRUNE_DATA" in failed.stderr and status() == ""


@pytest.mark.parametrize("name", ["fig1_fid_curves", "fig6_inverse_pairs"])
def test_a_figure_is_redrawn_without_any_training(name, tmp_path, store_root, monkeypatch):
    parameters = dict(COMMON, methods="random,moso,moso_inv" if name == "fig1_fid_curves" else "moso,moso_inv", ratios="[0.5]", seeds="[0]")
    run_here(name, tmp_path, store_root, parameters, monkeypatch)
    def fit(*a, **k): raise AssertionError("something is trained")
    monkeypatch.setattr(Trainer, "fit", fit)
    shutil.rmtree(tmp_path / "papers_figures")
    run_here(name, tmp_path, store_root, parameters, monkeypatch)
    assert list((tmp_path / "papers_figures/digits/smoke").glob("*.png"))

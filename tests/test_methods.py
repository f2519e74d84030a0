"""A pruner of one's own: one cell, and it prunes folders, runs in studies and shows in figures like those of the library."""
import importlib
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffprune.cli import app
from diffprune.core.stages import materialise
from diffprune.pruning import registry
from diffprune.pruning.registry import (
    KEEP_SUFFIXES,
    METHOD_BACKBONES,
    display_name,
    method_names,
    method_style,
    methods_table,
    parse_method,
)
from diffprune.report.plots import curve_panels
from diffprune.study import study as study_module
from diffprune.study.departures import DEPARTURES, make_pipeline
from diffprune.study.presets import load_preset
from diffprune.study.runs import Run
from diffprune.study.study import Study

matplotlib.use("Agg")
LIBRARY = method_names()
SHORT = {"vqvae_train.steps": 8, "train.steps": 10, "n_bootstrap": 2, "proxy.epochs": 1, "proxy.n_noise": 1}
CELL = '''
import numpy as np

from diffprune.pruning.registry import register_pruner
from diffprune.pruning.select import Pruner, ScorePruner


@register_pruner("darkest", "Darkest", needs="features", source="a toy")
class DarkestPruner(Pruner):
    "Score: minus the mean of the features."
    def _fit(self, X): self.scores_ = -np.asarray(X).mean(1)


def early_loss(arrays): return arrays["losses"][0].mean(1)


register_pruner("early", "Early loss", needs="proxy", score=early_loss, source="a toy")(ScorePruner)
'''
TYPED = CELL.replace('"darkest"', '"brightest"').replace('"Darkest"', '"Brightest"').replace("-np", "np").partition("\n\n\ndef")[0]


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    "What a test registers is gone after it."
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


@pytest.fixture
def toys(monkeypatch, tmp_path):
    "The name of a module of a user, imported."
    (tmp_path / "toy_pruners.py").write_text(CELL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_pruners", raising=False)
    importlib.import_module("toy_pruners")
    yield "toy_pruners"
    sys.modules.pop("toy_pruners")


@pytest.fixture
def started(monkeypatch):
    "How many workers a study started, each time."
    found, start = [], study_module.start_workers
    monkeypatch.setattr(study_module, "start_workers", lambda n, *args: found.append(n) or start(n, *args))
    return found


def study_of(methods, store, **changes):
    how = dict(metrics_backbone="pixels", overrides=SHORT, store=store, device="cpu", workers=1)
    return Study("digits", "smoke", methods, [0.5], **{**how, **changes})


def looks(names):
    return {name: (*method_style(name).values(),) for name in names}


def test_names_looks_and_the_table_of_methods(toys):
    names = [n + suffix for n in method_names() for suffix in KEEP_SUFFIXES]
    assert {n for n in method_names() if n not in LIBRARY} == {"early"} | {f"darkest_{b}" for b in METHOD_BACKBONES}
    assert len(set(looks(names).values())) == len(names)  # a colour, marker, line and filling that no other has
    table = methods_table().set_index("name")
    assert table.loc["darkest"].tolist() == ["Darkest", "features", "DarkestPruner", False, "a toy"]
    assert table.loc["early"].tolist() == ["Early loss", "proxy", "ScorePruner", False, "a toy"]
    listed = CliRunner().invoke(app, ["methods"]).output
    assert "darkest" in listed and "early" in listed


def test_a_folder_is_pruned(toys, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFPRUNE_STORE", str(tmp_path / "store"))
    folder = tmp_path / "images"
    folder.mkdir()
    for level in range(0, 250, 25): Image.new("RGB", (20, 20), (level, level, level)).save(folder / f"{level:03d}.png")
    output = tmp_path / "kept.csv"
    options = ["-r", "0.7", "--image-size", "16", "-o", str(output), "--overwrite"]
    prune = lambda method: CliRunner().invoke(app, ["prune", str(folder), "-m", method, *options])
    for method, kept in (("darkest_pixels", [0, 25, 50]), ("darkest_pixels_inv", [175, 200, 225])):
        done = prune(method)
        assert done.exit_code == 0 and "kept 3 of 10" in done.output, done.output
        rows = pd.read_csv(output)
        assert [int(i.split(".")[0]) for i in rows[rows.kept].id] == kept
    output.unlink()
    options = [o for o in options if o != "--overwrite"] + ["--preset", "smoke", "--dry-run"]
    said = prune("early")
    assert said.exit_code == 0 and "a proxy is trained" in said.output and "nothing was trained" in said.output, said.output


def test_a_study_with_workers_and_its_figure(toys, store, started, capsys):
    methods = ["random", "darkest_pixels", "darkest_pixels_inv", "early"]
    study = study_of(methods, store, workers=2)
    assert study.plugins() == [toys]
    table = study.results(progress=False)
    assert started == [2] and "typed into a notebook" not in capsys.readouterr().out
    assert set(table.method) == {"unpruned", "validation", *methods}
    absent = table[table.value.isna()]  # of 32 images
    assert set(absent.metric) <= {"fd_infinity"} and (absent.reason != "").all() and table.reason[table.value.notna()].eq("").all()

    kept = {m: set(study.kept(Run(m, 0.5, 0)).tolist()) for m in methods}
    assert {m: len(k) for m, k in kept.items()} == {m: 649 if m.endswith("_inv") else 648 for m in methods}  # halves of 1,297
    darkness = -study.real_features("pixels").mean(1)
    assert darkness[list(kept["darkest_pixels"])].min() >= np.sort(darkness)[-648]
    assert not kept["darkest_pixels"] & kept["darkest_pixels_inv"]
    losses = materialise(study.pipeline.proxy(0), study.context(progress=False)).array("losses")[0].mean(1)
    assert kept["early"] == set(np.argsort(-losses)[:648].tolist())
    assert study_of(methods, store).results(progress=False).equals(table)  # the workers' artifacts are this process's

    fig = curve_panels(table, ["fd", "f_score"])
    for ax in fig.axes:
        lines = {line.get_label(): line for line in ax.get_lines()}
        drawn = {m: lines[display_name(m)] for m in methods}
        style = {m: (d.get_color(), d.get_marker(), d.get_linestyle(), d.get_fillstyle()) for m, d in drawn.items()}
        assert style == looks(methods) and len({s[:3] for s in style.values()}) == len(methods)
    matplotlib.pyplot.close(fig)


def test_a_method_of_a_notebook_is_computed_in_this_process(store, started, capsys):
    exec(TYPED, dict(__name__="__main__"))
    study = study_of(["brightest_pixels", "brightest_pixels_inv"], store, workers=2)
    assert study.plugins() == ["__main__"]
    table = study.results(progress=False)
    assert started == [] and "typed into a notebook" in capsys.readouterr().out
    assert "brightest_pixels" in set(table.method) and len(study.kept(Run("brightest_pixels", 0.5, 0))) == 648


def test_a_worker_without_the_module_says_which(toys, store):
    arguments = study_of(["early"], store).worker_arguments("cpu")
    with pytest.raises(ModuleNotFoundError, match="lost_pruners"):
        study_module.study_of_worker(arguments.replace(f'"{toys}"', '"lost_pruners"'))


def test_departures_do_not_concern_it(toys, store):
    config = study_of([], store).pipeline.config
    acting = tuple(n for n, d in DEPARTURES.items() if d.stage in ("subset", "scores", "proxy") and not d.overrides)
    preset = lambda names: load_preset("smoke", "digits", {"departures": names})
    plain, odd = (make_pipeline(config, preset(names), "pixels") for names in ((), acting))
    for method in ("darkest_pixels", "darkest_pixels_mid", "early", "early_mid"):
        assert not parse_method(method).method.paper
        assert plain.subset(Run(method, 0.5, 0)).key(store) == odd.subset(Run(method, 0.5, 0)).key(store)
    assert plain.subset(Run("random", 0.5, 0)).key(store) != odd.subset(Run("random", 0.5, 0)).key(store)

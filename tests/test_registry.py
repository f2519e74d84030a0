"""Methods by name: everything follows from the records, a new pruner is one cell, and mistakes are told in words."""
import os
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest

from diffprune.pruning import registry
from diffprune.pruning.registry import (
    KEEP_SUFFIXES,
    METHOD_BACKBONES,
    NEEDS,
    display_name,
    known_methods,
    load_plugins,
    make_pruner,
    method_names,
    method_style,
    methods_of_main,
    methods_table,
    parse_method,
    plugin_modules,
    register_pruner,
    scoring_method,
)
from diffprune.pruning.select import Pruner, ScorePruner

LIBRARY = method_names()


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    "What a test registers is gone after it."
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def define(source, **names):
    "Run a cell of a notebook."
    space = dict(__name__="__main__", np=np, Pruner=Pruner, ScorePruner=ScorePruner, register_pruner=register_pruner, **names)
    exec(source, space)
    return space


TOY = '''
@register_pruner("shortest", "Shortest", needs="features", source="a toy")
class ShortestPruner(Pruner):
    "Score: minus the length of the feature vector."
    def _fit(self, X): self.scores_ = -np.linalg.norm(X, axis=1)
'''


def all_names(): return [n + s for n in method_names() for s in KEEP_SUFFIXES]


def test_every_name_has_parts_a_print_and_a_look_of_its_own():
    names = all_names()
    parsed = [parse_method(n) for n in names]
    assert {v.keep for v in parsed} == {"high", "mid", "low"} and {v.method.needs for v in parsed} == set(NEEDS)
    assert len({(v.base, v.backbone, v.keep) for v in parsed}) == len({display_name(n) for n in names}) == len(names)
    assert len({tuple(sorted(method_style(n).items())) for n in names}) == len(names)
    for n in names:
        if not n.endswith(("_mid", "_inv")):
            assert len({(method_style(n + s)["color"], method_style(n + s)["marker"]) for s in KEEP_SUFFIXES}) == 1
    assert method_style("random") == dict(color="#000000", marker="o", linestyle="-", fillstyle="full")
    paper = [method_style(n) for n in ("monotonicity", "el2n", "grand", "moso", "cluster_clip", "cluster_dino")]
    assert len({s["color"] for s in paper}) == len({s["marker"] for s in paper}) == 6


def test_a_toy_pruner_in_one_cell():
    before = {n: method_style(n) for n in all_names()}
    define(TOY)
    assert [n for n in method_names() if n not in LIBRARY] == [f"shortest_{b}" for b in METHOD_BACKBONES]
    v = parse_method("shortest_dino_inv")
    assert (v.base, v.backbone, v.keep, v.method.label) == ("shortest", "dinov2", "low", "Shortest")
    assert display_name("shortest_dino_inv") == "Shortest$_{D}^{-1}$"
    looks = [tuple(method_style(n).values()) for n in all_names()]
    assert len(set(looks)) == len(looks) and {n: method_style(n) for n in before} == before        # nobody else's look changes
    X = np.random.default_rng(0).normal(size=(40, 3))
    assert set(make_pruner("shortest_clip").fit(X).select(0.75).indices) == set(np.argsort(np.linalg.norm(X, axis=1))[:10])
    assert methods_table().set_index("name").loc["shortest"].tolist() == ["Shortest", "features", "ShortestPruner", False, "a toy"]
    assert methods_of_main() == ["shortest"] and plugin_modules() == []


def test_a_cell_that_runs_again_replaces_its_method():
    define(TOY)
    define(TOY.replace("a toy", "a better toy"))
    assert len(known_methods()) == len(methods_table()) and methods_table().set_index("name").source["shortest"] == "a better toy"
    with pytest.raises(ValueError, match="'shortest' is taken by ShortestPruner of __main__"):
        define(TOY.replace("class Shortest", "class Other"))
    with pytest.raises(ValueError, match="'el2n' is taken by ScorePruner of diffprune.pruning.score_pruners"):
        define('register_pruner("el2n", "Mine", needs="proxy", score=lambda arrays: arrays["losses"][-1].mean(1))(ScorePruner)')


def test_the_notebook_of_a_module_may_run_beside_it():
    source = parse_method("kcenter_clip").method.source
    define(f'@register_pruner("kcenter", "k-Center", needs="features", source={source!r})\nclass KCenterPruner(Pruner): pass')
    assert make_pruner("kcenter_clip").__class__.__module__ == "__main__" and methods_of_main() == [] and method_names() == LIBRARY


FINE = dict(name="toy", label="Toy", needs="nothing")


@pytest.mark.parametrize("change, message", [
    (dict(name=""), "lower-case letters"), (dict(name="my_toy"), "lower-case letters"), (dict(name="My Toy"), "lower-case letters"),
    (dict(name=None), "lower-case letters"), (dict(name="1st"), "beginning with a letter"),
    (dict(name="unpruned"), "not unpruned or validation"), (dict(name="random"), "taken by RandomPruner"),
    (dict(label=""), "legends"), (dict(label=None), "legends"), (dict(label="GraNd"), "that of 'grand'"),
    (dict(needs="scores"), "known are nothing, features, clusters"), (dict(needs=None), "known are"),
    (dict(needs="proxy"), "asks for score="), (dict(needs="influence", score=3), "asks for score="),
    (dict(score=len), "leave score out"), (dict(needs="losses", score="el2n"), "leave score out"),
    (dict(options=dict(k=1)), "no option k to fix"), (dict(options=dict(keep="low")), "no option keep to fix"),
    (dict(style="red"), "a colour and a marker"), (dict(style=("red", "o", "-")), "a colour and a marker"),
    (dict(needs="features", style=("red", "o")), "a colour and a marker")])
def test_records_that_cannot_work(change, message):
    with pytest.raises(ValueError, match=message): register_pruner(**{**FINE, **change})(ScorePruner)
    assert method_names() == LIBRARY


@pytest.mark.parametrize("pruner", [dict, len, None, object()])
def test_what_is_no_pruner(pruner):
    with pytest.raises(ValueError, match="derive a class from diffprune.pruning.select.Pruner"): register_pruner(**FINE)(pruner)


def test_scores_of_another_method():
    mean = lambda arrays: arrays["losses"].mean((0, 2))
    register_pruner("easy", "Easy", needs="proxy", score=mean, options=dict(stratify=True))(ScorePruner)
    register_pruner("borrows", "Borrows", needs="proxy", score="easy")(ScorePruner)
    register_pruner("lost", "Lost", needs="proxy", score="nowhere")(ScorePruner)
    register_pruner("circle", "Circle", needs="proxy", score="circle")(ScorePruner)
    register_pruner("other", "Other", needs="influence", score="easy")(ScorePruner)
    assert scoring_method(parse_method("borrows").method) is parse_method("easy").method
    assert scoring_method(parse_method("interval").method).name == "el2n"
    for name in ("lost", "circle", "other", "random"):
        with pytest.raises(ValueError, match=f"'{name}' takes its scores from"): scoring_method(parse_method(name).method)
    assert make_pruner("easy", random_state=1).get_params()["stratify"]
    with pytest.raises(ValueError, match="fixes stratify=True"): make_pruner("easy", stratify=False)


def test_a_look_that_is_taken_gives_way():
    register_pruner("first", "First", needs="nothing", style=("#123456", "*"))(ScorePruner)
    register_pruner("second", "Second", needs="nothing", style=("#123456", "*"))(ScorePruner)
    first, second = method_style("first"), method_style("second")
    assert (first["color"], first["marker"]) == ("#123456", "*") and (second["color"], second["marker"]) != ("#123456", "*")


def test_many_methods_have_different_looks_and_the_rest_some():
    for i in range(60): register_pruner(f"toy{i}", f"Toy {i}", needs="features" if i < 8 else "nothing")(ScorePruner)
    looks = [(method_style(n)["color"], method_style(n)["marker"]) for n in method_names()]
    assert len(looks) == len(LIBRARY) + 8*5 + 52 and len(set(looks)) == 141          # 140 and random's


@pytest.mark.parametrize("name", ["cluster", "clip", "random_lite0", "random_", "el2n_far", "cluster_clip_inv_mid", "cluster__clip",
                                  "CLUSTER_clip", " random", "", None, 3])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="known are random, .*cluster_BACKBONE.*_mid or _inv; a BACKBONE is clip, dino"): parse_method(name)


def test_options_are_checked():
    for bad in ("k", "keep"):
        with pytest.raises(ValueError, match=f"no option {bad}; ClusterPruner has .*n_clusters"): make_pruner("cluster_lite0", **{bad: 3})
    with pytest.raises(ValueError, match="'balanced_lite0' has no option quotas; .* fixes quotas='balanced'"):
        make_pruner("balanced_lite0", quotas="proportional")
    for name in LIBRARY: assert make_pruner(name + "_inv", random_state=5).get_params()["keep"] == "low"


PLUGIN = '''
import numpy as np
from diffprune.pruning.registry import register_pruner
from diffprune.pruning.select import Pruner

@register_pruner("longest", "Longest", needs="features")
class LongestPruner(Pruner):
    def _fit(self, X): self.scores_ = np.linalg.norm(X, axis=1)
'''


def python(code, folder, **environment):
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_another_process_knows_plug_ins(tmp_path):
    (tmp_path / "their_pruners.py").write_text(PLUGIN)
    code = ("from diffprune.pruning.registry import *; "
            "print(method_names()[-1], plugin_modules(), methods_of_main(), make_pruner('longest_clip'))")
    done = python(code, tmp_path, DIFFPRUNE_PLUGINS=" their_pruners, ")
    assert done.stdout.split("\n")[0] == "longest_pixels ['their_pruners'] [] LongestPruner()", done.stderr


def test_a_plug_in_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_pruners.py").write_text("1/0")
    monkeypatch.setenv("DIFFPRUNE_PLUGINS", "broken_pruners")
    named = "'broken_pruners', named by the environment variable DIFFPRUNE_PLUGINS, cannot be imported: ZeroDivisionError"
    with pytest.raises(ValueError, match=named): known_methods()
    monkeypatch.setenv("DIFFPRUNE_PLUGINS", "no_such_pruners")
    with pytest.raises(ValueError, match="'no_such_pruners'.*ModuleNotFoundError"): load_plugins()


def test_entry_points_are_plug_ins(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "packaged_pruners.py").write_text(PLUGIN.replace("ongest", "argest"))
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diffprune.plugins]\ntheirs = packaged_pruners\n")
    registry._import_plugins.cache_clear()
    assert [e.value for e in metadata.entry_points(group="diffprune.plugins")] == ["packaged_pruners"]
    assert plugin_modules() == ["packaged_pruners"] and parse_method("largest_clip").base == "largest"
    registry._import_plugins.cache_clear()


def test_order_does_not_depend_on_who_is_imported_first(tmp_path):
    code = ("import diffprune.pruning.transport_pruners, diffprune.pruning.greedy_pruners; from diffprune.pruning import registry as r; "
            "print(r.method_names() == " + repr(LIBRARY) + ", r.method_style('facility_clip'))")
    assert python(code, tmp_path).stdout.strip() == f"True {method_style('facility_clip')}"


def test_the_registry_alone_is_light(tmp_path):
    code = "import sys, diffprune.pruning.registry; print([m for m in ('torch', 'faiss', 'matplotlib', 'sklearn') if m in sys.modules])"
    assert python(code, tmp_path).stdout.strip() == "[]"

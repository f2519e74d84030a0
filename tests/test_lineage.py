"""What the code behind a stage is, and that the wings keep to themselves: stages belong to core and study."""
import ast
import copy
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import diffprune
from diffprune.core import lineage
from diffprune.core.lineage import code_version
from diffprune.data.datasets import dataset_config
from diffprune.pruning.registry import known_methods
from diffprune.study.pipeline import Pipeline
from diffprune.study.presets import load_preset
from diffprune.study.runs import Run

PACKAGE = Path(diffprune.__file__).parent
METHODS = {m.name: f"{m.name}_pixels" if m.embedded else m.name for m in known_methods() if m.module.startswith("diffprune.")}
PIPELINE = Pipeline(dataset_config("digits", image_size=16), load_preset("smoke", "digits"), "pixels")
DERIVED = ("kernel", "dropcluster", "d2c", "shiftgauss", "gadc")  # from a base in another module, or with its k-means
SCORED = [m.name for m in known_methods() if callable(m.score)]


def version(stage): return code_version(stage.make, *stage.code)


def subset(name): return PIPELINE.subset(Run(METHODS[name], 0.5, 0))


@pytest.mark.parametrize("stage, most", [
    (PIPELINE.samples(Run("random", 0.5, 0)), 7), (PIPELINE.clusters("pixels", 0), 5), (PIPELINE.model(Run("random", 0.5, 0)), 9),
    *((subset(name), 8 if name not in DERIVED else 9) for name in METHODS), *((PIPELINE.scores(name, 0), 6) for name in SCORED)],
    ids=["samples", "clusters", "model", *METHODS, *(f"scores-{name}" for name in SCORED)])
def test_few_modules_decide_a_result(stage, most):
    parts = version(stage)["parts"]
    assert 1 < len(parts) <= most, sorted(parts)


@pytest.fixture
def change(monkeypatch):
    "change(function or class): as if a line had been added to it."
    def add(made):
        known, trees = lineage.module_tree, {made.__module__: copy.deepcopy(lineage.module_tree(made.__module__))}
        tree = trees[made.__module__]
        [definition] = [s for s in tree.body if getattr(s, "name", None) == made.__name__]
        definition.body.insert(0, ast.parse("added = 1").body[0])
        monkeypatch.setattr(lineage, "module_tree", lambda name: trees.get(name) or known(name))
    return add


def versions(): return {name: version(subset(name))["version"] for name in METHODS}


def home(path):
    "A function or class by its dotted name."
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"diffprune.{module}"), name)


@pytest.mark.parametrize("path, methods", [
    ("pruning.greedy_pruners.KCenterPruner", {"kcenter", "kernel"}), ("pruning.greedy_pruners.HerdingPruner", {"herding", "kernel"}),
    ("pruning.transport_pruners.TransportPruner", {"transport"}), ("pruning.difficulty_pruners.UncertaintyPruner", {"uncertainty"}),
    ("pruning.cluster_pruners.SemDeDupPruner", {"semdedup", "dropcluster"}), ("pruning.zcore_pruners.ZCorePruner", {"zcore"}),
    ("pruning.condense_pruners.GADCPruner", {"gadc"}), ("pruning.rank_pruners.D2CPruner", {"d2c"})])
def test_a_changed_pruner_changes_its_own_subsets_alone(change, path, methods):
    before = versions()
    change(home(path))
    after = versions()
    assert {name for name in METHODS if after[name] != before[name]} == methods


def test_what_all_pruners_use_changes_all_subsets(change):
    before = versions()
    change(home("pruning.select.Pruner"))
    after = versions()
    assert all(after[name] != before[name] for name in METHODS)


@pytest.mark.parametrize("name", SCORED)
def test_a_changed_formula_changes_the_scores_of_its_method_alone(change, name):
    scores = lambda: {n: version(PIPELINE.scores(n, 0))["version"] for n in SCORED}
    before = scores()
    change(PIPELINE.scores(name, 0).code[0])
    after = scores()
    assert {n for n in SCORED if after[n] != before[n]} == {name}


OUTSIDE = [PACKAGE / "cli.py", *sorted((PACKAGE / "report").glob("*.py"))]
ENDS = [f(Run(name, 0.5, 0)) for name in METHODS.values() for f in (PIPELINE.metrics, PIPELINE.memorization)]
KINDS = {stage.kind for end in (*ENDS, PIPELINE.reconstructions()) for stage in end.tree()}
ASKING = ("artifacts", "key", "query", "recorded", "results", "provenance_table")  # methods that may be given the name of a kind


def imports_of(tree):
    "What is imported at any level, by its dotted name."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom): yield from (f"{node.module}.{a.name}" for a in node.names)
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)


def mentions_of_kinds(tree):
    "Where something's kind is compared with, or looked up by, the name of a kind of stage."
    literal = lambda node: {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    of_kind = lambda node: any(isinstance(n, ast.Attribute) and n.attr == "kind" for n in ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and of_kind(node) and literal(node): yield ast.unparse(node)
        if isinstance(node, ast.Subscript) and of_kind(node.slice): yield ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = set().union(*map(literal, [*node.args, *(k.value for k in node.keywords)]))
            if node.func.attr in ASKING and any(text.split(".")[0] in KINDS for text in given): yield ast.unparse(node)


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda p: p.stem)
def test_kinds_of_stages_are_known_to_core_and_study_alone(path):
    assert KINDS >= {"images", "vqvae", "latents", "proxy", "surrogates", "influence", "scores", "clusters", "subset", "model", "samples"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    makers = [name for name in imports_of(tree) if "core.stages" in name or "study.makers" in name]
    called = [n.lineno for n in ast.walk(tree) if isinstance(n, (ast.Name, ast.Attribute)) and "materialise" in ast.unparse(n)]
    assert not makers and not called and not list(mentions_of_kinds(tree))


def test_the_look_for_kinds_finds_them():
    for line in ('[s for s in tree if s.kind == "model"]', 's.kind in ("proxy", "scores")', 'RULES[s.kind](s)', 'store.artifacts("model")',
                 'study.results(provenance=["model.seconds"])'):
        assert list(mentions_of_kinds(ast.parse(line))), line
    for line in ('print(a.kind)', 'store.artifacts(kind)', 'needs in ("features", "clusters")', 'study.results(progress=False)'):
        assert not list(mentions_of_kinds(ast.parse(line))), line


def test_importing_reports_and_the_command_line_patches_nothing():
    modules = [f"diffprune.report.{p.stem}" for p in OUTSIDE if p.parent.name == "report" and p.stem != "__init__"] + ["diffprune.cli"]
    code = f"""
import importlib
from diffprune.core.stages import Stage
from diffprune.core.store import Store
from diffprune.study.departures import DepartingPipeline
from diffprune.study.study import Study
classes = [*Study.__mro__[:-1], *DepartingPipeline.__mro__[:-1], Store, Stage]
state = lambda: [(c.__name__, dict(vars(c))) for c in classes]
before = state()
for name in {modules!r}: importlib.import_module(name)
for (name, was), (_, now) in zip(before, state()):
    changed = sorted(k for k in was.keys() | now.keys() if was.get(k) is not now.get(k))
    assert not changed, f"{{name}}: {{changed}}"
print(len(before), "classes")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "5 classes" in done.stdout, done.stderr[-2000:] + done.stdout

"""No result of other code, packages or devices is handed out in silence: every door is tried with a changed module."""
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import diffprune
from diffprune.cli import app
from diffprune.core import lineage
from diffprune.core.stages import StaleWarning
from diffprune.core.store import Store, digest, save_json
from diffprune.models.train import Trainer
from diffprune.report.attributes import check_attributes
from diffprune.report.verdicts import equal_cost_steps
from diffprune.study.baseline_runs import baseline_images, baselines
from diffprune.study.runs import Run
from diffprune.study.study import Study

PACKAGE = Path(diffprune.__file__).parent
ARGUMENTS = dict(dataset="digits", preset="smoke", methods=["cluster_pixels"], ratios=[0.5], seeds=[0],
                 overrides={"train.steps": 6, "vqvae_train.steps": 4, "n_bootstrap": 2, "train.checkpoint_every": 2})
RUN = Run("cluster_pixels", 0.5, 0)
VELOCITY = ("return x_1 - x_0", "return x_0 - x_1")
PRINT = """
import json, sys
from diffprune.core.store import Store
from diffprune.study.study import Study
study = Study(**json.loads(sys.argv[1]), store=Store(sys.argv[2]), device="cpu", workers=1, stale=sys.argv[3])
table = study.results(progress=False)
print(json.dumps(dict(values=table.value.tolist(), stale=study.stale_artifacts().kind.tolist())))
"""


def study_of(root, **more): return Study(**ARGUMENTS, store=Store(root), device="cpu", workers=1, **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A store with a finished study; not to be changed."
    root = tmp_path_factory.mktemp("stale") / "store"
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaleWarning)
        study = study_of(root)
        study.results(progress=False)
        study.memorization(progress=False)
        study.reconstructions()
    return root


@pytest.fixture
def copy_of(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "store"))


def changed_package(folder, module, old, new):
    "A copy of the package with one line changed; the folder to import it from."
    shutil.copytree(PACKAGE, folder / "diffprune", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "diffprune" / module
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    return folder


def in_package(folder, code, *args):
    env = dict(os.environ, PYTHONPATH=str(folder), OMP_NUM_THREADS="1")
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], env=env, cwd=folder, capture_output=True, text=True)


def said_lines(done): return [line for line in done.stderr.splitlines() if "StaleWarning" in line]


def test_another_sign_of_the_velocity_is_said_with_the_count_and_made_anew_on_demand(copy_of, tmp_path):
    before = study_of(copy_of).results(progress=False)
    other = changed_package(tmp_path / "other", "models/flow.py", *VELOCITY)
    warned = in_package(other, PRINT, json.dumps(ARGUMENTS), copy_of, "warn")
    assert warned.returncode == 0, warned.stderr[-2000:]
    found = json.loads(warned.stdout.splitlines()[-1])
    same = pytest.approx(before.value.tolist(), nan_ok=True)  # FD∞ cannot be had of so few images
    assert found["values"] == same, "warned of, and used"
    [line] = said_lines(warned)
    kinds = found["stale"]
    assert kinds.count("model") == kinds.count("samples") == 2 and kinds.count("metrics") == 2 and "vqvae" not in kinds
    assert f"{len(kinds)} of " in line and "models.flow" in line and "--stale=recompute" in line

    quiet = in_package(other, PRINT, json.dumps(ARGUMENTS), copy_of, "use")
    assert quiet.returncode == 0 and not said_lines(quiet)
    again = in_package(other, PRINT, json.dumps(ARGUMENTS), copy_of, "recompute")
    assert again.returncode == 0, again.stderr[-2000:]
    anew = json.loads(again.stdout.splitlines()[-1])
    assert anew["stale"] == ["memorization"] * 2 and anew["values"] != same and not said_lines(again)


@pytest.fixture
def velocity_changed(monkeypatch):
    "As if `flow.velocity` had been changed on disk."
    import ast
    name, known = "diffprune.models.flow", lineage.module_tree
    source = lineage.module_file(name).read_text(encoding="utf-8")
    tree = ast.parse(source.replace(*VELOCITY))
    monkeypatch.setattr(lineage, "module_tree", lambda n: tree if n == name else known(n))


def warnings_of(call):
    "What a call warns of stale results."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in said if issubclass(w.category, StaleWarning)]


DOORS = dict(
    results=lambda s: s.results(progress=False), run=lambda s: s.compute(RUN), memorization=lambda s: s.memorization(progress=False),
    images=lambda s: s.images(RUN), labels=lambda s: s.labels(RUN), features=lambda s: s.features(RUN), kept=lambda s: s.kept(RUN),
    pruner=lambda s: s.pruner(RUN), clusters=lambda s: s.clusters("pixels", 0), real_images=lambda s: s.real_images(),
    real_labels=lambda s: s.real_labels(), classes=lambda s: s.classes, real_features=lambda s: s.real_features(),
    reconstructions=lambda s: s.reconstructions(), recorded=lambda s: s.results(progress=False, provenance=["model.seconds"]))


@pytest.mark.parametrize("door", DOORS)
def test_every_door_of_a_study_warns_once(finished, velocity_changed, door):
    study = study_of(finished)
    said = warnings_of(lambda: DOORS[door](study))
    assert len(said) == 1 and "models.flow" in said[0] and said[0].startswith(f"{len(study.stale_artifacts())} of ")
    assert warnings_of(lambda: [open_door(study) for open_door in DOORS.values()]) == []
    assert warnings_of(lambda: DOORS[door](study_of(finished, stale="use"))) == []


def test_nothing_is_said_of_fresh_results(finished):
    study = study_of(finished)
    assert warnings_of(lambda: [door(study) for door in DOORS.values()]) == []
    assert study.stale_artifacts().empty and study.stale_artifacts().columns.tolist() == ["kind", "hash", "created", "reasons"]


def command(root, monkeypatch, *args):
    monkeypatch.setenv("DIFFPRUNE_STORE", str(root))
    init = Study.__init__
    monkeypatch.setattr(Study, "__init__", lambda self, *a, **k: init(self, *a, **{**k, "overrides": ARGUMENTS["overrides"]}))
    return CliRunner().invoke(app, [str(a) for a in args])


GRID = ("--dataset", "digits", "--preset", "smoke", "-m", "cluster_pixels", "-r", 0.5, "--seeds", 0, "--device", "cpu", "--workers", 1)


def test_the_command_of_a_study_says_it_in_one_line(finished, velocity_changed, monkeypatch):
    done = command(finished, monkeypatch, "study", *GRID)
    [line] = [line for line in done.stderr.splitlines() if "stale" in line]
    assert done.exit_code == 0 and "models.flow" in line and line.startswith("diffprune: ") and "--stale=recompute" in line
    others = [line.split(":")[0] for line in done.stderr.splitlines() if "stale" not in line]
    assert others == ["before", "after"], "what the seeds can see"
    assert "FD" in done.stdout


def test_a_plan_counts_what_is_stale(finished, velocity_changed, monkeypatch):
    n = len(study_of(finished).stale_artifacts().query("kind != 'memorization'"))
    done = command(finished, monkeypatch, "plan", *GRID, "--no-estimate")
    assert done.exit_code == 0 and f"{n} stored results are stale" in done.stdout and "--stale=recompute" in done.stdout
    plan = study_of(finished, stale="recompute").plan()
    assert plan.stale.sum() == n == (~plan.cached).sum()
    assert study_of(finished).plan().cached.all()


def test_the_store_says_what_is_stale(finished, velocity_changed, monkeypatch):
    n = len(study_of(finished).stale_artifacts())
    listed, verified = (command(finished, monkeypatch, "store", what) for what in ("list", "verify"))
    assert sum("  stale: " in line for line in listed.stdout.splitlines()) == n
    assert verified.exit_code == 0 and f"{n} stale artifacts" in verified.stdout


@pytest.mark.parametrize("args", [("study", *GRID), ("plan", *GRID), ("prune", ".", "-r", 0.5, "-o", "x.csv")], ids=lambda a: a[0])
def test_an_unknown_way_to_take_stale_results_is_refused(monkeypatch, tmp_path, args):
    monkeypatch.chdir(tmp_path)
    done = command(tmp_path / "store", monkeypatch, *args, "--stale", "maybe")
    assert done.exit_code == (2 if args[0] == "prune" else 1) and "use, warn, recompute" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def made(root):
    "What is in a store: hash -> (kind, when it was made, whether by a process that went on)."
    return {a.hash: (a.kind, a.meta["created"], a.meta["resumed"]) for a in Store(root).artifacts()}


def stages_below(study, kinds): return {h for h, s in study.stages().items() if kinds & {i.kind for i in s.tree()}}


def test_a_recomputation_replaces_what_is_stale_and_what_was_made_from_it_alone(copy_of, velocity_changed):
    before, stale = made(copy_of), set(study_of(copy_of).stale_artifacts().hash)
    study = study_of(copy_of, stale="recompute")
    assert set(study.missing()) == set(study.runs) and study.done()[0] < study.done()[1]
    assert warnings_of(lambda: study.results(progress=False)) == []
    after = made(copy_of)
    assert {h for h in after if after[h][1] != before[h][1]} == stages_below(study, {"model"}) < stale  # memorization is made on request
    assert study.missing() == [] and study.done()[0] == study.done()[1]
    assert warnings_of(lambda: study.memorization(progress=False)) == [] and study.stale_artifacts().empty
    assert {h: v[1] for h, v in made(copy_of).items() if h not in stale} == {h: v[1] for h, v in before.items() if h not in stale}
    once_more = made(copy_of)
    study_of(copy_of, stale="recompute").results(progress=False)
    assert made(copy_of) == once_more, "what was made anew is not made again"


def test_a_stopped_recomputation_loses_nothing_and_goes_on(copy_of, velocity_changed, monkeypatch):
    old, before = study_of(copy_of, stale="use").results(progress=False), made(copy_of)

    class Stopped(Exception): pass

    save, saved = Trainer.save, []

    def stop(self):
        save(self)
        saved.append(self.step)
        if len(saved) == 2: raise Stopped
    monkeypatch.setattr(Trainer, "save", stop)
    with pytest.raises(Stopped): study_of(copy_of, stale="recompute").run(progress=False)
    assert made(copy_of) == before, "the old results stay until the new ones are finished"
    pd.testing.assert_frame_equal(study_of(copy_of, stale="use").results(progress=False), old)
    study_of(copy_of, stale="recompute").run(progress=False)
    after = made(copy_of)
    models = {h for h, (kind, *_) in after.items() if kind == "model"}
    assert sorted(after[h][2] for h in models) == [False, True], "the stopped training went on from its checkpoint"
    assert study_of(copy_of).stale_artifacts().kind.tolist() == ["memorization"] * 2
    assert Store(copy_of).verify() == {}


def test_workers_share_a_recomputation(copy_of, tmp_path):
    other = changed_package(tmp_path / "other", "models/flow.py", *VELOCITY)
    code = PRINT.replace("workers=1", "workers=2").replace("study.results", "study.run(progress=False).results")
    done = in_package(other, code, json.dumps(ARGUMENTS), copy_of, "recompute")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["stale"] == ["memorization"] * 2


def altered(root, kind, **changes):
    "Rewrite what the artifacts of a kind record, checksum included."
    for a in Store(root).artifacts(kind):
        meta = {k: v for k, v in a.meta.items() if k != "checksum"} | {k: f(a.meta[k]) for k, f in changes.items()}
        save_json(a.path / "artifact.json", dict(meta, checksum=digest(meta)))


@pytest.mark.parametrize("kind, changes, reason", [
    ("clusters", dict(code=lambda c: c | dict(packages=c["packages"] | {"faiss-cpu": "1.0"})), "packages: faiss-cpu 1.0 → "),
    ("model", dict(device=lambda d: "cuda:0"), "device: cuda → cpu"),
    ("subset", dict(code=lambda c: c | dict(version="0" * 16)), "code"),
    ("latents", dict(code=lambda c: {k: v for k, v in c.items() if k != "makes"}), "code: recorded in an older form")])
def test_packages_devices_and_old_records_are_told_apart(copy_of, kind, changes, reason):
    altered(copy_of, kind, **changes)
    found = study_of(copy_of).stale_artifacts()
    assert not found.empty and found[found.kind == kind].reasons.str.contains(reason).all()
    assert len(warnings_of(lambda: study_of(copy_of).kept(RUN))) == 1


def test_devices_do_not_count_where_no_device_computes(copy_of):
    for kind in ("clusters", "subset"): altered(copy_of, kind, device=lambda d: "cuda")
    assert study_of(copy_of).stale_artifacts().empty


def test_what_an_artifact_was_made_from_is_remembered_when_it_is_gone(copy_of, velocity_changed):
    study = study_of(copy_of)
    shutil.rmtree(copy_of / "model")
    found = study.stale_artifacts().set_index("kind").reasons
    assert "model" not in found and found["metrics"].str.contains("inputs: .*model").all()


def test_a_data_set_of_another_decoder_is_told_and_made_anew(tmp_path, monkeypatch):
    from diffprune.data.datasets import load_dataset, make_digits
    store = Store(tmp_path)
    load_dataset("digits", image_size=8, store=store, progress=False)
    known = lineage.code_version
    changed = lambda *makes: dict(known(*makes), version="0" * 16) if make_digits in makes or any("make_digits" in str(m) for m in makes) \
        else known(*makes)
    for module in (lineage, sys.modules["diffprune.data.datasets"]): monkeypatch.setattr(module, "code_version", changed)
    before = made(tmp_path)
    load = lambda stale: load_dataset("digits", image_size=8, store=store, progress=False, stale=stale)
    assert len(warnings_of(lambda: load("warn"))) == 1 and warnings_of(lambda: load("use")) == [] and made(tmp_path) == before
    assert warnings_of(lambda: load("recompute")) == [] and made(tmp_path) != before
    assert warnings_of(lambda: load("warn")) == []
    with pytest.raises(ValueError, match="use, warn, recompute"): load("never")


def test_baselines_and_reports_warn(copy_of, monkeypatch):
    study = study_of(copy_of)
    baselines(study, ("vae",), progress=False)
    altered(copy_of, "baseline", code=lambda c: c | dict(version="0" * 16))
    said = warnings_of(lambda: baselines(study_of(copy_of), ("vae",), progress=False))
    assert len(said) == 1 and said[0].startswith("2 of "), said
    altered(copy_of, "samples", code=lambda c: c | dict(version="0" * 16))
    assert len(warnings_of(lambda: baseline_images(study_of(copy_of), "vae", RUN))) == 1
    altered(copy_of, "model", code=lambda c: c | dict(version="0" * 16))
    assert len(warnings_of(lambda: equal_cost_steps(study_of(copy_of)))) == 1
    altered(copy_of, "images", code=lambda c: c | dict(version="0" * 16))
    assert len(warnings_of(lambda: check_attributes(study_of(copy_of), ["label"]))) == 1

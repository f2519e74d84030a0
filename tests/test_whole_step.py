"""Steps compiled as one graph: the numbers of the plain loop, two processes at once, stopped and gone on with, and without a compiler."""
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffprune.core.compiled import NotCompiledError, compiled
from diffprune.core.store import Store, load_json
from diffprune.models import train
from diffprune.models.dit import DiT
from diffprune.models.flow import sample_latents
from diffprune.models.train import TrainConfig, Trainer, diffusion_loss, seeded
from diffprune.study.presets import load_preset
from diffprune.study.runs import Run
from diffprune.study.study import Study

COMPILER = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler on this machine")
TOLERANCE = 1e-5  # relative, of losses and gradient norms over these few steps
CFG = dict(steps=24, batch_size=8, lr=5e-3, warmup=4, schedule="cosine", ema_decay=0.9, log_every=4, checkpoint_every=10, weight_decay=0.01)


def trainer(compile, workdir=None, folder=None, hook=None, loss=diffusion_loss, network=None, **changes):
    with seeded(0): model = DiT(4, 2, 2, 16, 2, 2, num_classes=3, learn_sigma=False) if network is None else network()
    data = dict(latent=torch.randn(40, 2, 4, 4, generator=torch.Generator().manual_seed(0)), label=torch.arange(40) % 3)
    return Trainer(model, loss, data, TrainConfig(**{**CFG, **changes}, compile=compile), workdir, "cpu", hook, folder)


def fit(*args, **kwargs):
    made = trainer(*args, **kwargs)
    return made, made.fit(progress=False)


PROCESS = """
import sys, torch
torch.set_num_threads(int(sys.argv[3]))
sys.path.insert(0, sys.argv[1])
from test_whole_step import fit
made, log = fit("step", folder=sys.argv[2])
assert made.segments[0]["compiled"] == "step"
print(log.to_json())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Compiled by two processes that begin at the same time; what they print is kept beside it."
    place = tmp_path_factory.mktemp("compiled")
    args = [sys.executable, "-c", PROCESS, str(Path(__file__).parent), str(place / "code"), str(torch.get_num_threads())]
    both = [subprocess.Popen(args, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate()[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    (place / "logs.json").write_text(json.dumps([json.loads(s) for s in said]))
    return place / "code"


def values(log): return log[["loss", "grad_norm"]].to_numpy()


@COMPILER
def test_two_processes_share_one_graph(folder):
    graphs = [p for p in folder.iterdir() if p.is_dir()]
    assert len(graphs) == 1 and (graphs[0] / "complete.json").is_file()
    first, second = load_json(folder.parent / "logs.json")
    assert first == second


@COMPILER
def test_losses_weights_and_samples_are_those_of_the_plain_loop(folder):
    (plain, known), (whole, log) = fit(False), fit("step", folder=folder)
    assert (plain.segments[0]["compiled"], whole.segments[0]["compiled"]) == (False, "step")
    np.testing.assert_allclose(values(log), values(known), rtol=TOLERANCE)
    assert not any(torch.equal(p, q) for p, q in zip(trainer(False).model.parameters(), whole.model.parameters()) if p.requires_grad)
    draw = lambda t: sample_latents(t.averaged.eval(), range(6), (2, 4, 4), 0, y=torch.arange(6) % 3, n_steps=4, progress=False)
    torch.testing.assert_close(draw(whole), draw(plain), rtol=0, atol=1e-3)
    assert len([p for p in folder.iterdir() if p.is_dir()]) == 1  # what the processes compiled was found


@COMPILER
@pytest.mark.parametrize("first, second", [(False, "step"), ("step", False), ("step", "step")])
def test_stopped_and_gone_on_with(folder, tmp_path, caplog, first, second):
    class Stop(Exception): pass

    def stop(t):
        if t.step == 14: raise Stop
    _, known = fit(False)
    with pytest.raises(Stop): trainer(first, tmp_path, folder, stop).fit(progress=False)
    with caplog.at_level(logging.WARNING): made, log = fit(second, tmp_path, folder)
    np.testing.assert_allclose(values(log), values(known), rtol=TOLERANCE)
    parts = [(0, first)] if first == second else [(0, first), (10, second)]
    assert [(s["step"], s["compiled"]) for s in made.segments] == parts
    assert ("compiled" in caplog.text) == (first != second)
    made.export(tmp_path / "model.safetensors")
    assert load_json(tmp_path / "finished.json")["segments"] == made.segments


@COMPILER
def test_resumed_compiled_training_is_exact(folder, tmp_path):
    def stop(t):
        if t.step == 14: raise KeyboardInterrupt
    whole, log = fit("step", folder=folder)
    with pytest.raises(KeyboardInterrupt): trainer("step", tmp_path, folder, stop).fit(progress=False)
    again, found = fit("step", tmp_path, folder)
    assert found.equals(log) and all(torch.equal(p, q) for p, q in zip(whole.averaged.parameters(), again.averaged.parameters()))


def test_another_batch_is_another_graph_or_none(monkeypatch):
    "After `resize`, as for timing, the step is compiled for the new size; a step is never made by the graph of another."
    sizes, real = [], train.compiled

    def noted(function, args, folder):
        sizes.append(len(args[5]["latent"]))
        return function
    monkeypatch.setattr(train, "compiled", noted)
    monkeypatch.setattr(train, "_graphs", {})
    made, plain = trainer("step"), trainer(False)
    for size in (8, 8, 6, 8):
        for t in (made, plain):
            if t.cfg.batch_size != size: t.resize(size)
            with torch.no_grad() if t is made else torch.enable_grad(): t.train_step()
    assert sizes == [8, 6] and real is compiled
    for p, q in zip(made.averaged.parameters(), plain.averaged.parameters()): torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def falls_back(caplog, word, **kwargs):
    with caplog.at_level(logging.WARNING): made, log = fit("step", **kwargs)
    plain, known = fit(False, **kwargs)
    assert log.equals(known) and all(torch.equal(p, q) for p, q in zip(made.averaged.parameters(), plain.averaged.parameters()))
    assert made.segments[0]["compiled"] is False
    lines = [r.message for r in caplog.records if "not compiled" in r.message]
    assert len(lines) == 1 and word in lines[0] and "\n" not in lines[0]


def test_without_a_compiler_everything_goes_on_with_a_word(caplog, tmp_path, monkeypatch):
    inductor = pytest.importorskip("torch._inductor.config")
    monkeypatch.setattr(train, "_graphs", {})
    no_compiler = inductor.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True})
    with no_compiler: falls_back(caplog, "cannot be compiled", folder=tmp_path)


def noisy(model, batch, draws):
    loss, logs = diffusion_loss(model, batch, draws)
    return loss * (1 + 0.1 * torch.rand(())), logs


def counting(model, batch, draws): return diffusion_loss(model, batch, draws)[0], dict(seen=len(batch["label"]))


def branching(model, batch, draws):
    loss, logs = diffusion_loss(model, batch, draws)
    return (loss if loss.item() > 1 else 2 * loss), logs


FROZEN = torch.ones(3)


def holding(model, batch, draws):
    loss, logs = diffusion_loss(model, batch, draws)
    return loss * FROZEN.mean(), logs


@pytest.mark.parametrize("loss, word", [
    (noisy, "random numbers"), (counting, "it logs seen"), (branching, "graph"), (holding, "not among its arguments")])
def test_a_loss_that_is_no_function_of_its_arguments_is_not_compiled(caplog, loss, word): falls_back(caplog, word, loss=loss)


def test_mixed_precision_is_not_compiled(caplog): falls_back(caplog, "precision is 'bf16'", precision="bf16")


def test_a_killed_compilation_is_done_again(tmp_path, monkeypatch):
    "A folder without its note is emptied before it is used."
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    double, x = lambda x: x * 2, (torch.ones(2),)
    compiled(double, x, tmp_path)
    own, = (p for p in tmp_path.iterdir() if p.is_dir())
    (own / "complete.json").unlink()
    (own / "half.so").touch()
    assert compiled(double, x, tmp_path)(*x).tolist() == [2.0, 2.0] and [p.name for p in own.iterdir()] == ["complete.json"]
    compiled(double, (torch.ones(3),), tmp_path)
    compiled(lambda x: x * 3, x, tmp_path)
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 3


def test_a_folder_that_cannot_be_written_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    (tmp_path / "file").touch()
    with pytest.raises(NotCompiledError, match="cannot be compiled"): compiled(lambda x: x + 1, (torch.ones(2),), tmp_path / "file")


def test_old_compiled_code_is_garbage_and_never_an_artifact(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    store = Store(tmp_path)
    compiled(lambda x: x * 2, (torch.ones(2),), store.root / "compiled")
    assert not store.artifacts() and not store.garbage() and not store.garbage(older_than=1)
    (what, path, _), = store.garbage(older_than=0)
    assert what == "compiled" and path.parent == store.root / "compiled"
    assert store.collect(older_than=0, dry_run=False).deleted.all() and not path.exists()
    with pytest.raises(ValueError, match="compiled"): store.key("compiled")


def test_the_address_of_a_model_does_not_know_whether_it_was_compiled(tmp_path):
    store, run = Store(tmp_path), Run("unpruned", 0.0, 0)
    study = lambda c: Study("digits", "smoke", ["random"], [0.5], overrides={"train.compile": c}, store=store)
    studies = {c: study(c) for c in (False, True, "step", "auto")}
    stages = {c: s.pipeline.model(run) for c, s in studies.items()}
    assert {s.key(store).hash for s in stages.values()} == {stages[False].key(store).hash}
    assert {c: s.how["compile"] for c, s in stages.items()} == {False: False, True: True, "step": "step", "auto": False}
    assert stages[False].settings["train"]["compile"] is False  # as it was recorded before


def test_the_rule_counts_the_steps_of_all_runs():
    assert load_preset("cpu", "digits").train.compile == "auto"
    many = Study("digits", "cpu", ["random"], [0.5, 0.9], seeds=range(8))
    few = Study("digits", "cpu", ["random"], [0.5])
    assert (many.pipeline.preset.train.compile, few.pipeline.preset.train.compile) == ("step", False)
    with pytest.raises(ValueError, match="bool or str"): Study("digits", "cpu", overrides={"train.compile": 3})

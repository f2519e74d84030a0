"""Steps compiled as one graph: the numbers of the plain loop, two processes at once, stopped and gone on with, and without a compiler.

The compiler works once for all tests here, on a model of one layer; what does not need it is tested with a pretended one."""
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from diffprune.core import compiled as core
from diffprune.core.compiled import NotCompiledError, compiled
from diffprune.core.store import Store, load_json
from diffprune.models import train
from diffprune.models.dit import DiT
from diffprune.models.flow import sample_latents
from diffprune.models.train import TrainConfig, Trainer, diffusion_loss, seeded
from diffprune.study.costs import time_dit
from diffprune.study.presets import PRESETS, load_preset
from diffprune.study.runs import Run
from diffprune.study.study import Study, study_of_worker

COMPILER = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler on this machine")
TOLERANCE = 1e-5  # relative, of losses and gradient norms over these few steps
CFG = dict(steps=24, batch_size=8, lr=5e-3, warmup=4, schedule="cosine", ema_decay=0.9, log_every=4, checkpoint_every=10, weight_decay=0.01)
THREADS = torch.get_num_threads()


def trainer(compile, workdir=None, folder=None, hook=None, loss=diffusion_loss, **changes):
    with seeded(0): model = DiT(4, 2, 2, 16, 1, 2, num_classes=3, learn_sigma=False)
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
def whole(tmp_path_factory):
    "(folder, trainer, its log, log of another process): both processes began at the same time, and one of them compiled."
    folder = tmp_path_factory.mktemp("compiled")
    args = [sys.executable, "-c", PROCESS, str(Path(__file__).parent), str(folder), str(THREADS)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as other:
        made, log = fit("step", folder=folder)
        said = other.communicate()[0]
    assert other.returncode == 0 and made.segments[0]["compiled"] == "step"
    return folder, made, log, json.loads(said)


def graphs(folder): return [p for p in folder.iterdir() if p.is_dir()]
def values(log): return log[["loss", "grad_norm"]].to_numpy()


@COMPILER
def test_two_processes_share_one_graph(whole):
    folder, _, log, other = whole
    own, = graphs(folder)
    assert load_json(own / "complete.json")["machine"] == core._machine() and json.loads(log.to_json()) == other


@COMPILER
def test_losses_weights_and_samples_are_those_of_the_plain_loop(whole):
    folder, made, log, _ = whole
    plain, known = fit(False)
    assert plain.segments[0]["compiled"] is False
    np.testing.assert_allclose(values(log), values(known), rtol=TOLERANCE)
    assert not any(torch.equal(p, q) for p, q in zip(trainer(False).model.parameters(), made.model.parameters()) if p.requires_grad)
    for p, q in zip(made.averaged.parameters(), plain.averaged.parameters()): torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    draw = lambda t: sample_latents(t.averaged.eval(), range(6), (2, 4, 4), 0, y=torch.arange(6) % 3, n_steps=4, progress=False)
    torch.testing.assert_close(draw(made), draw(plain), rtol=0, atol=1e-3)


class Stop(Exception): pass


def stop(t):
    if t.step == 14: raise Stop


@COMPILER
@pytest.mark.parametrize("first, second", [(False, "step"), ("step", False), ("step", "step")])
def test_stopped_and_gone_on_with(whole, tmp_path, caplog, first, second):
    "Also in the other way: losses agree with those of an undisturbed training, and what was done is on record."
    folder, known = whole[0], whole[2]
    with pytest.raises(Stop): trainer(first, tmp_path, folder, stop).fit(progress=False)
    with caplog.at_level(logging.WARNING): made, log = fit(second, tmp_path, folder)
    np.testing.assert_allclose(values(log), values(known), rtol=TOLERANCE)
    parts = [(0, first)] if first == second else [(0, first), (10, second)]
    assert [(s["step"], s["compiled"]) for s in made.segments] == parts
    assert ("compiled" in caplog.text) == (first != second)
    if first == second:  # to the last bit, too
        assert log.equals(known) and all(torch.equal(p, q) for p, q in zip(whole[1].averaged.parameters(), made.averaged.parameters()))
    made.export(tmp_path / "model.safetensors")
    assert load_json(tmp_path / "finished.json")["segments"] == made.segments


@pytest.fixture
def pretended(monkeypatch):
    "Instead of a compiler, what gives the graph back; sizes of the batches that were compiled for."
    sizes = []

    def noted(function, args, folder):
        sizes.append(len(args[5]["latent"]))
        return torch.no_grad()(function)
    monkeypatch.setattr(train, "compiled", noted)
    return sizes


def test_another_batch_is_another_graph_or_none(pretended):
    "After `resize` the step is compiled for the new size; a step is never made by the graph of another."
    made, plain = trainer("step"), trainer(False)
    for size in (8, 8, 6, 8):
        for t in (made, plain):
            if t.cfg.batch_size != size: t.resize(size)
            t.train_step()
    assert pretended == [8, 6, 8]
    for p, q in zip(made.averaged.parameters(), plain.averaged.parameters()): torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


class Turned(torch.nn.Module):
    "A model with a switch, a list, and a layer that the loss does not see."
    def __init__(self, turned, sizes=(1.0,)):
        super().__init__()
        self.turned, self.sizes, self.layer, self.spare = turned, list(sizes), torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)

    def forward(self, x):
        y = torch.relu(self.layer(x)) * self.sizes[0]
        return -y if self.turned else y


def toy_loss(model, batch, draws): return (model(batch["latent"]) - draws.randn(3)).square().mean(), {}


def toy(compile, turned=False, sizes=(1.0,), **settings):
    with seeded(0): model = Turned(turned, sizes)
    cfg = TrainConfig(**{**dict(steps=6, batch_size=4, lr=1e-2, log_every=1, compile=compile), **settings})
    t = Trainer(model, toy_loss, dict(latent=torch.linspace(-1, 1, 30).view(10, 3)), cfg, None, "cpu")
    return t, t.fit(progress=False)


@pytest.mark.parametrize("settings", [dict(), dict(ema_decay=None), dict(ema_decay=None, weight_decay=0.1), dict(grad_clip=0.01)])
def test_models_that_differ_in_a_switch_have_steps_of_their_own(pretended, settings):
    for turned, sizes in ((False, (1.0,)), (True, (1.0,)), (True, (2.0,)), (False, (1.0,))):
        (made, log), (plain, known) = (toy(c, turned, sizes, **settings) for c in ("step", False))
        np.testing.assert_allclose(values(log), values(known), rtol=1e-5)
        for p, q in zip(made.model.parameters(), plain.model.parameters()): torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_weight_decay_spares_what_has_no_gradient(pretended, caplog):
    with caplog.at_level(logging.WARNING): made, _ = toy("step", weight_decay=0.1)
    assert "spare.weight, spare.bias get no gradient" in caplog.text and pretended == []
    assert all(torch.equal(p, q) for p, q in zip(made.model.parameters(), toy(False, weight_decay=0.1)[0].model.parameters()))


def test_a_process_compiles_equal_graphs_once(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(core, "_compile", lambda graph, args, own: made.append(graph.code) or graph)
    scaled = lambda k: lambda x: x * k
    functions = [scaled(k) for k in (2, 3, 2, 2.0000001)]
    graphs = [compiled(f, (torch.ones(5),), tmp_path / "never") for f in functions]
    assert len(made) == 3 and graphs[0] is graphs[2] and len({id(g) for g in graphs}) == 3
    assert compiled(functions[0], (torch.ones(6),), tmp_path / "never") is not graphs[0]


def test_an_estimate_times_the_step_that_will_be_used(pretended):
    arch, settings = dict(name="DiT-N/2", input_size=4, in_channels=4, num_classes=10), dict(CFG, betas=(0.9, 0.999))
    found = time_dit(arch, settings, budget=0.02, gradients=False, compile="step", threads=1)
    assert pretended == [8] and found["step"][0] > 0 and found["step"][1] == 0 and torch.get_num_threads() == THREADS
    plain = time_dit(arch, settings, budget=0.02, gradients=False)
    assert pretended == [8] and plain["step"][1] > 0


def falls_back(caplog, word, **kwargs):
    with caplog.at_level(logging.WARNING): made, log = fit("step", steps=8, **kwargs)
    plain, known = fit(False, steps=8, **kwargs)
    assert log.equals(known) and all(torch.equal(p, q) for p, q in zip(made.averaged.parameters(), plain.averaged.parameters()))
    assert made.segments[0]["compiled"] is False
    lines = [r.message for r in caplog.records if "not compiled" in r.message]
    assert len(lines) == 1 and word in lines[0] and "\n" not in lines[0]


def test_without_a_compiler_everything_goes_on_with_a_word(caplog, tmp_path, monkeypatch):
    inductor = pytest.importorskip("torch._inductor.config")
    with inductor.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True}):
        with pytest.raises(NotCompiledError, match="cannot be compiled") as said: compiled(lambda x: x * 2, (torch.ones(64),), tmp_path)
    assert not [p for p in graphs(tmp_path) if (p / "complete.json").exists()]

    def none(*_): raise said.value
    monkeypatch.setattr(train, "compiled", none)
    falls_back(caplog, "cannot be compiled", folder=tmp_path)


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


@pytest.fixture
def pretended_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    monkeypatch.setattr(core, "_known", {})


def double(x): return x * 2


X = (torch.ones(2),)


def test_a_killed_compilation_is_done_again(tmp_path, pretended_compiler, monkeypatch):
    "A folder without its note is emptied before it is used."
    compiled(double, X, tmp_path)
    own, = graphs(tmp_path)
    (own / "complete.json").unlink()
    (own / "half.so").touch()
    monkeypatch.setattr(core, "_known", {})                                   # as in another process
    assert compiled(double, X, tmp_path)(*X).tolist() == [2.0, 2.0] and [p.name for p in own.iterdir()] == ["complete.json"]


def test_a_graph_belongs_to_operations_shapes_threads_versions_and_processor(tmp_path, pretended_compiler, monkeypatch):
    compiled(double, X, tmp_path)
    for n, other in enumerate((lambda: compiled(double, (torch.ones(3),), tmp_path), lambda: compiled(lambda x: x * 3, X, tmp_path)), 2):
        other()
        assert len(graphs(tmp_path)) == n
    here = core._machine()
    for i in range(len(here)):
        monkeypatch.setattr(core, "_machine", lambda i=i: [*here[:i], "another", *here[i + 1:]])
        compiled(double, X, tmp_path)
        assert len(graphs(tmp_path)) == 4 + i
    monkeypatch.setattr(core, "_machine", lambda: here)
    monkeypatch.setattr(torch, "get_num_threads", lambda: THREADS + 1)
    compiled(double, X, tmp_path)
    assert len(graphs(tmp_path)) == 4 + len(here)


def test_a_folder_that_cannot_be_written_is_a_reason(tmp_path, pretended_compiler):
    (tmp_path / "file").touch()
    with pytest.raises(NotCompiledError, match="cannot be compiled"): compiled(double, X, tmp_path / "file")


def test_old_and_half_compiled_code_is_garbage_and_never_an_artifact(tmp_path, pretended_compiler):
    store = Store(tmp_path)
    compiled(double, X, store.root / "compiled")
    assert not store.artifacts() and not store.garbage() and not store.garbage(older_than=1)
    (what, path, _), = store.garbage(older_than=0)
    assert what == "compiled" and path.parent == store.root / "compiled"
    assert store.collect(older_than=0, dry_run=False).deleted.all() and not path.exists()
    path.mkdir()
    with FileLock(f"{path}.lock"): assert store.collect(dry_run=False).empty and path.exists()  # somebody is compiling
    assert store.collect(dry_run=False)["what"].tolist() == ["compiled"] and not path.exists()
    with pytest.raises(ValueError, match="compiled"): store.key("compiled")


def test_the_address_of_a_model_does_not_know_whether_it_was_compiled(tmp_path):
    store, run = Store(tmp_path), Run("unpruned", 0.0, 0)
    study = lambda c: Study("digits", "smoke", ["random", "el2n"], [0.5], overrides={"train.compile": c}, store=store, device="cpu")
    studies = {c: study(c) for c in (False, True, "step", "auto")}
    stages = {c: s.pipeline.model(run) for c, s in studies.items()}
    assert {s.key(store).hash for s in stages.values()} == {stages[False].key(store).hash}
    assert {c: s.how["compile"] for c, s in stages.items()} == {False: False, True: True, "step": "step", "auto": False}
    assert stages[False].settings["train"]["compile"] is False  # as it was recorded before
    proxies = {c: next(s for s in study.stages().values() if s.kind == "proxy") for c, study in studies.items()}
    assert {c: s.how["compile"] for c, s in proxies.items()} == {False: False, True: True, "step": "auto", "auto": False}


def test_the_rule_counts_the_steps_of_the_runs_that_are_left(tmp_path):
    assert {name: p.train.compile for name, p in PRESETS.items()} == dict.fromkeys(PRESETS, False) | dict(cpu="auto")
    assert load_preset("cpu", "digits").train.compile == "auto"
    of = lambda *args, **kwargs: Study("digits", "cpu", ["random"], *args, device="cpu", store=Store(tmp_path), **kwargs)
    chosen = lambda study: (study.pipeline.preset.train.compile, study.pipeline.model(study.runs[0]).how["compile"])
    many, few = of([0.5, 0.9], seeds=range(8)), of([0.5])
    assert chosen(many) == ("step", "step") and chosen(few) == (False, False)
    assert many._settle(3) and chosen(many) == (False, False) and not many._settle(3)
    assert chosen(study_of_worker(many.worker_arguments("cpu"))) == (False, False)  # as decided by the process that started it
    assert many._settle(24) and chosen(study_of_worker(many.worker_arguments("cpu"))) == ("step", "step")
    with pytest.raises(ValueError, match="bool or str"): of(overrides={"train.compile": 3})

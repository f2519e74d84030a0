"""What a training may be gone on with, and what not: no model is made half by one code, setting or data set and half by another."""
import logging
import multiprocessing
import os
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffprune.core import stages
from diffprune.core import store as store_module
from diffprune.core.stages import Context, materialise
from diffprune.core.store import Rows, Store, load_json, save_json
from diffprune.data.datasets import dataset_config
from diffprune.models import train
from diffprune.models.dit import dit_model
from diffprune.models.train import Draws, TrainConfig, Trainer, diffusion_loss, seeded, step_stream
from diffprune.study.baseline_runs import baseline
from diffprune.study.pipeline import Pipeline
from diffprune.study.presets import load_preset
from diffprune.study.runs import Run

CFG = TrainConfig(steps=12, batch_size=8, lr=1e-3, ema_decay=0.9, warmup=2, log_every=4, checkpoint_every=5)
X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


class Stop(Exception): pass


def stop_at(step):
    def hook(trainer):
        if trainer.step == step: raise Stop
    return hook


def network(width=4, dropout=0.1):
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Dropout(dropout), torch.nn.Linear(width, 1))


def loss(model, batch, draws, scale=1.0): return scale * (model(batch["x"]) - draws.randn(1)).square().mean(), {}


def trainer(folder, cfg=CFG, model=network, x=X, loss_fn=loss, hook=None, **changes):
    with seeded(0): net = model()
    return Trainer(net, loss_fn, dict(x=x), replace(cfg, **changes), folder, "cpu", hook)


@pytest.fixture
def half(tmp_path):
    "A folder in which a training was stopped at step 8, after the checkpoint of step 5."
    with pytest.raises(Stop): trainer(tmp_path, hook=stop_at(8)).fit(progress=False)
    return tmp_path


other_x = X.clone()
other_x[19, 2] += 1e-6
DIFFERENT = dict(
    lr=(dict(lr=2e-3), "lr was 0.001 and is 0.002"), seed=(dict(seed=1), "seed was 0 and is 1"),
    batch_size=(dict(batch_size=4), "batch_size was 8 and is 4"),
    schedule=(dict(schedule="cosine"), "schedule was 'constant' and is 'cosine'"),
    warmup=(dict(warmup=3), "warmup was 2 and is 3"), betas=(dict(betas=(0.5, 0.9)), "betas was"),
    decay=(dict(weight_decay=0.1), "weight_decay was"),
    clip=(dict(grad_clip=None), "grad_clip was 1.0 and is None"),
    precision=(dict(precision="bf16"), "precision was"), ema=(dict(ema_decay=None), "ema_decay was 0.9 and is None"),
    data=(dict(x=other_x), "data x was"), rows=(dict(x=X[:19]), "data x was"), order=(dict(x=X.flip(0)), "data x was"),
    width=(dict(model=partial(network, 5)), "model was 'Sequential of 21 parameters"),
    dropout=(dict(model=partial(network, dropout=0.2)), "model was"), loss=(dict(loss_fn=partial(loss, scale=2.0)), "loss was"))


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_training_is_refused_and_told_why(half, name):
    changes, why = DIFFERENT[name]
    before = sorted(p.name for p in half.iterdir())
    with pytest.raises(ValueError) as error: trainer(half, **changes).fit(progress=False)
    said = str(error.value)
    assert why in said and "fit(resume=False)" in said and "\n" not in said
    assert sorted(p.name for p in half.iterdir()) == before  # nothing was harmed


@pytest.mark.parametrize("changes", [
    dict(log_every=3), dict(checkpoint_every=2), dict(x=X.numpy()), dict(x=Rows(X.numpy(), range(20))), dict(steps=15)])
def test_what_decides_nothing_may_change(half, changes):
    trainer(half, **changes).fit(progress=False)


def test_two_differences_are_both_named(half):
    with pytest.raises(ValueError, match="lr was .* seed was"): trainer(half, lr=2e-3, seed=1).fit(progress=False)


def test_an_average_cannot_begin_in_the_middle(tmp_path):
    with pytest.raises(Stop): trainer(tmp_path, ema_decay=None, hook=stop_at(8)).fit(progress=False)
    with pytest.raises(ValueError, match="ema_decay was None and is 0.9; no average was kept of the steps so far"):
        trainer(tmp_path).fit(progress=False)


def test_a_constant_rate_goes_on_further_and_a_cosine_does_not(tmp_path):
    trainer(tmp_path / "a").fit(progress=False)
    longer = trainer(tmp_path / "a", steps=20)
    whole = trainer(None, steps=20)
    longer.fit(progress=False), whole.fit(progress=False)
    assert all(torch.equal(a, b) for a, b in zip(longer.averaged.parameters(), whole.averaged.parameters()))
    trainer(tmp_path / "b", schedule="cosine").fit(progress=False)
    with pytest.raises(ValueError, match="steps was 12 and is 20"): trainer(tmp_path / "b", schedule="cosine", steps=20).fit(progress=False)
    with pytest.raises(ValueError, match="trained for 20 steps already, more than the 12"): trainer(tmp_path / "a").fit(progress=False)


@pytest.mark.parametrize("exported", [False, True])
def test_a_finished_folder_says_so(tmp_path, caplog, exported):
    first = trainer(tmp_path)
    log = first.fit(progress=False)
    if exported: first.export(tmp_path / "weights" / "m.safetensors")
    second = trainer(tmp_path, hook=stop_at(13))
    with caplog.at_level(logging.WARNING): again = second.fit(progress=False)
    assert "nothing is left to do" in caplog.text and again.equals(log)
    assert all(torch.equal(a, b) for a, b in zip(first.averaged.parameters(), second.averaged.parameters()))
    with pytest.raises(ValueError, match="lr was"): trainer(tmp_path, lr=1.0).fit(progress=False)
    if not exported: return
    with pytest.raises(ValueError, match="cannot go on to 13"): trainer(tmp_path, steps=13).fit(progress=False)
    (tmp_path / "weights" / "m.safetensors").unlink()
    with pytest.raises(ValueError, match="missing or was changed"): trainer(tmp_path).fit(progress=False)


def test_a_training_begun_anew_leaves_nothing_of_the_old_one(half):
    "The old checkpoint is of a later step than the first of the new training."
    with pytest.raises(Stop): trainer(half, lr=2e-3, checkpoint_every=2, hook=stop_at(3)).fit(resume=False, progress=False)
    resumed, whole = trainer(half, lr=2e-3, checkpoint_every=2), trainer(None, lr=2e-3)
    log = resumed.fit(progress=False)
    assert log.equals(whole.fit(progress=False))


def test_a_snapshot_in_the_middle_keeps_the_checkpoints(half):
    t = trainer(half)
    t.load(t.latest())
    t.export(half / "snapshot.safetensors")
    assert t.step == 5 and t.checkpoints() and load_file(half / "snapshot.safetensors")


def test_a_checkpoint_without_a_record_is_refused(half):
    path = half / "checkpoint-00000005" / "state.json"
    save_json(path, {k: v for k, v in load_json(path).items() if k != "begun"})
    with pytest.raises(ValueError, match="older version"): t = trainer(half); t.load(t.checkpoints()[0])


def test_another_torch_or_number_of_threads_is_recorded(half, caplog, monkeypatch):
    monkeypatch.setattr(train, "provenance", lambda: {"packages": {"torch": "9.9.0", "numpy": "2.0"}})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    t = trainer(half)
    with caplog.at_level(logging.WARNING): t.fit(progress=False)
    assert [s["step"] for s in t.segments] == [0, 5] and (t.segments[1]["torch"], t.segments[1]["threads"]) == ("9.9.0", 77)
    assert "goes on from step 5 with torch 9.9.0 instead of" in caplog.text
    t.export(half / "m.safetensors")
    assert load_json(half / "finished.json")["segments"] == t.segments


# the same for every stage of a study that trains

TRAININGS = ("vqvae_train", "train", "vae_train", "gan_train")
PRESET = load_preset("smoke", "digits", {"proxy.epochs": 3, "proxy.n_checkpoints": 3, **{f"{t}.checkpoint_every": 6 for t in TRAININGS}})
PIPELINE = Pipeline(dataset_config("digits", image_size=16, n_val=1600), PRESET, "pixels")
RUN = Run("random", 0.5, 0)
TRAINED = dict(vqvae=PIPELINE.vqvae(), proxy=PIPELINE.proxy(0), surrogates=PIPELINE.surrogates(0), influence=PIPELINE.influence(0),
               model=PIPELINE.model(RUN), vae=baseline(PIPELINE, "vae", RUN), gan=baseline(PIPELINE, "gan", RUN))


def checkpoint_of(stage): return 13 if stage.kind in ("proxy", "influence") else 6  # an epoch of 197 images, or as set above


def interrupted(stage, context, monkeypatch):
    "Make a stage, stopped two steps after the first checkpoint."
    step = checkpoint_of(stage) + 2
    with monkeypatch.context() as m:
        train_step = Trainer.train_step

        def until(self):
            train_step(self)
            if self.step == step: raise Stop
        m.setattr(Trainer, "train_step", until)
        with pytest.raises(Stop): materialise(stage, context)


def changed(monkeypatch, module):
    "As if a line of a module had been changed."
    known = stages.code_version

    def version(*makes):
        found = known(*makes)
        return dict(version="other", parts={**found["parts"], module: "other"})
    monkeypatch.setattr(stages, "code_version", version)


@pytest.fixture
def context(store): return Context(store, progress=False)


@pytest.fixture
def began(monkeypatch):
    "The step that each `fit` began with."
    steps, note = [], Trainer._begin_segment
    monkeypatch.setattr(Trainer, "_begin_segment", lambda self: (note(self), steps.append(self.step)))
    return steps


@pytest.mark.parametrize("name", TRAINED)
def test_other_code_begins_anew_and_says_so(name, store, context, monkeypatch, caplog, began):
    stage = TRAINED[name]
    for s in stage.inputs.values(): materialise(s, context)
    store.discard(stage.key(store))
    interrupted(stage, context, monkeypatch)
    work = store.root / "work" / stage.key(store).name.replace("/", "-")
    assert list(work.rglob("checkpoint-*")) and load_json(work / "sessions.json")["begun"]["code"]
    changed(monkeypatch, "diffprune.models.train")
    refusing = replace(context, store=Store(store.root, resume="refuse"))
    with pytest.raises(ValueError, match="was begun with other code .diffprune.models.train."): materialise(stage, refusing)
    began.clear()
    with caplog.at_level(logging.WARNING): made = materialise(stage, context)
    assert began[0] == 0 and not made.meta["resumed"] and len(made.meta["sessions"]) == 1
    assert f"{stage.kind}/{made.hash} was begun with other code (diffprune.models.train); it starts anew" in caplog.text
    assert not any(name.startswith(("sessions", "finished", "checkpoint")) for name in made.meta["files"])


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_code_goes_on_and_the_record_has_both_segments(name, store, context, monkeypatch, began):
    stage = TRAINED[name]
    for s in stage.inputs.values(): materialise(s, context)
    store.discard(stage.key(store))
    interrupted(stage, context, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    began.clear()
    made = materialise(stage, context)
    assert began[0] == checkpoint_of(stage) and made.meta["resumed"]
    assert [s["step"] for s in made.meta["segments"][:2]] == [0, checkpoint_of(stage)] and made.meta["segments"][1]["threads"] == 77
    assert [s["threads"] for s in made.meta["sessions"]] == [made.meta["segments"][0]["threads"], 77]
    assert made.meta["seconds"] == pytest.approx(sum(s["seconds"] for s in made.meta["sessions"]), abs=1e-3)
    store.discard(stage.key(store))


def test_inputs_with_another_content_begin_anew(fresh_store, monkeypatch, caplog):
    context, stage = Context(fresh_store, progress=False), TRAINED["model"]
    for s in stage.inputs.values(): materialise(s, context)
    interrupted(stage, context, monkeypatch)
    subset = PIPELINE.subset(RUN)
    fresh_store.discard(subset.key(fresh_store))
    inputs = {name: s.key(fresh_store) for name, s in subset.inputs.items()}
    thirty = lambda folder: np.save(folder / "indices.npy", np.arange(30))
    fresh_store.build(subset.kind, subset.settings, inputs, thirty, version=subset.version)
    with caplog.at_level(logging.WARNING): made = materialise(stage, context)
    assert "other inputs (subset)" in caplog.text and made.meta["n_train"] == 30 and not made.meta["resumed"]


def test_a_killed_session_counts_its_seconds(fresh_store, monkeypatch):
    monkeypatch.setattr(store_module, "_BEAT", 0.05)
    (fresh_store.root / "x").mkdir(parents=True)

    def dies(folder):
        time.sleep(0.5)
        os._exit(9)
    child = multiprocessing.get_context("fork").Process(target=lambda: fresh_store.build("long", make=dies, resumable=True))
    child.start(), child.join(30)
    made = fresh_store.build("long", make=lambda folder: None, resumable=True)
    assert child.exitcode == 9 and made.meta["resumed"] and made.meta["sessions"][0]["seconds"] >= 0.3
    assert made.meta["seconds"] >= 0.3


# randomness

def test_no_two_steps_of_a_long_run_share_their_noise():
    "The first 64 bits of the state that each step's generator is put into; 32-bit seeds collide about 19 times."
    n, old = 400_000, np.random.SeedSequence([1, 1])
    bits = np.random.Philox(key=[1, train._DRAWS])
    seen, state = np.empty(n, np.uint64), bits.state
    for step in range(n):
        state["state"]["counter"][3], state["buffer_pos"] = step, 4
        bits.state = state
        seen[step] = bits.random_raw()
    for step in (0, 1, 5549, 35918, n - 1): assert seen[step] == step_stream(1, train._DRAWS, step).random_raw()
    assert len(np.unique(seen)) == n
    low = np.random.default_rng(old).integers(2**32, size=n)  # what a hash into 32 bits does
    assert len(np.unique(low)) < n


@pytest.mark.parametrize("purpose", ["_EPOCH", "_DRAWS", "_MODULES", "_WEIGHTS"])
def test_streams_differ_by_seed_purpose_step_and_process(purpose):
    p = getattr(train, purpose)
    streams = [(0, p), (1, p), (2**64 - 1, p), (0, p + 1), (0, p, 1), (0, p, 0, 1), (0, p, 2**32), (2**32, p)]
    assert len({step_stream(*s).random_raw() for s in streams}) == len(streams)


def test_steps_that_shared_all_noise_no_longer_do():
    assert not torch.equal(Draws(1, 5549, 4).randn(3), Draws(1, 35918, 4).randn(3))
    assert torch.equal(Draws(1, 5549, 4).randn(3), Draws(1, 5549, 4).randn(3))


def test_dropout_and_weights_take_all_bits_of_the_seed():
    def weights(seed):
        with seeded(seed): return torch.randn(4)
    assert not torch.equal(weights(0), weights(2**32))

    def mask(seed, step):
        with train._module_seed(seed, step, 0, torch.device("cpu")): return torch.rand(4)
    assert not torch.equal(mask(0, 1), mask(2**32, 1)) and torch.equal(mask(0, 1), mask(0, 1)) and not torch.equal(mask(0, 1), mask(0, 2))


def test_numbers_of_a_step_are_standard_normal():
    x = torch.cat([Draws(3, step, 64).randn(64) for step in range(50)])
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    same = [Draws(3, step, 64).randn(64).flatten() for step in range(50)]
    assert torch.corrcoef(torch.stack(same)).fill_diagonal_(0).abs().max() < 0.08


def test_a_diffusion_model_resumes_to_the_last_bit(tmp_path):
    def make(folder, hook=None):
        with seeded(0): model = dit_model("DiT-N/2", input_size=4, in_channels=4, num_classes=3, learn_sigma=False)
        data = dict(latent=torch.randn(20, 4, 4, 4, generator=torch.Generator().manual_seed(0)), label=torch.arange(20) % 3)
        return Trainer(model, diffusion_loss, data, CFG, folder, "cpu", hook)
    whole = make(None)
    log = whole.fit(progress=False)
    with pytest.raises(Stop): make(tmp_path, stop_at(8)).fit(progress=False)
    assert make(tmp_path).fit(progress=False).equals(log)

"""Estimates: their arithmetic, what they do without data, memory or weights. (How good they are: benchmarks/plan.)"""
import math
from dataclasses import asdict
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from diffprune.models.dit import DiTBlock
from diffprune.models.train import TrainConfig
from diffprune.study import costs
from diffprune.study.costs import Counts, Machine, cost_of, layers_to_time, seconds_by_batch, time_dit
from diffprune.study.study import Study, plan_summary

SHORT = {"train.steps": 12, "vqvae_train.steps": 8}
PIXELS = dict(metrics_backbone="pixels", device="cpu", workers=1)


def stage(kind, inputs=None, **settings): return SimpleNamespace(kind=kind, settings=settings, inputs=inputs or {})


def test_plan_with_estimate_of_a_small_study(fresh_store):
    study = Study("digits", "smoke", ["random", "el2n"], [0.5], overrides=SHORT, store=fresh_store, **PIXELS)
    plan = study.plan(estimate=True, progress=False)
    assert plan.device_hours.gt(0).all() and plan.gib.gt(0).all() and not plan.cached.any()
    assert fresh_store.artifacts() == []  # nothing was made
    study.run(progress=False)
    after = study.plan(estimate=True, progress=False)
    assert after.cached.all() and after[["device_hours", "gib", "working_gib"]].eq(0).all().all()
    total = plan_summary(after).loc["total"]
    assert total.device_hours == 0 and total.in_store == total.stages == len(after)


def test_plan_for_data_that_are_not_here(fresh_store, monkeypatch):
    monkeypatch.delenv("DIFFPRUNE_DATA", raising=False)
    small = {"dit": "DiT-N/2", "vqvae.base_channels": 8, "vqvae.n_res_blocks": 1}
    study = Study("imagenet", "paper", ["random"], [0.9], overrides=small, store=fresh_store, **PIXELS)
    plan = study.plan(estimate=True, progress=False)
    assert plan.hash.isna().all() and not plan.cached.any()
    images = plan[plan.kind == "images"].gib.sum() * 2**30
    assert images == pytest.approx((1_281_167 + 50_000) * 3 * 256**2, rel=0.01)
    assert plan_summary(plan).loc["total", "unknown"] == 0


def test_unknown_counts_are_not_guessed(fresh_store, tmp_path):
    study = Study(f"folder:{tmp_path}/nowhere", "smoke", ["random"], [0.5], overrides=SHORT, store=fresh_store, **PIXELS)
    plan = study.plan(estimate=True, progress=False).set_index("kind")
    assert math.isnan(plan.loc["latents", "device_hours"]) and "unknown" in plan.loc["latents", "note"]
    assert plan.loc["vqvae", "device_hours"] > 0  # its steps are known
    assert plan_summary(plan.reset_index()).loc["total", "unknown"] > 0


def test_shortened_model_stands_for_the_whole(monkeypatch):
    """Instead of seconds, the layers that a call goes through."""
    passed = []

    def layers_by_batch(call, batch, *_):
        passed.clear()
        call(2)
        return 0.0, float(len(passed))
    forward = DiTBlock.forward
    monkeypatch.setattr(DiTBlock, "forward", lambda self, *a, **kw: passed.append(self) or forward(self, *a, **kw))
    monkeypatch.setattr(costs, "seconds_by_batch", layers_by_batch)
    arch, train = dict(name="DiT-T/2", input_size=8, in_channels=4, num_classes=0), asdict(TrainConfig(batch_size=8))
    monkeypatch.setattr(costs, "layers_to_time", lambda *a: (6, layers_to_time(*a)[1]))
    whole = time_dit(arch, train)
    monkeypatch.setattr(costs, "layers_to_time", lambda *a: (2, layers_to_time(*a)[1]))
    short = time_dit(arch, train)
    assert "2 of 6 layers timed" in short.pop("layers") and not whole.pop("layers")
    assert short == whole and whole["step"][1] >= 6


def test_batch_that_does_not_fit_is_made_smaller():
    tried = []

    def call(b):
        tried.append(b)
        if b > 10: raise torch.OutOfMemoryError
    a, c = seconds_by_batch(call, 64, 0.05)
    assert min(b for b in tried if b > 1) <= 10 and a >= 0 and c >= 0


def test_guidance_doubles_sampling_and_heun_too(monkeypatch):
    machine = Machine(Counts(100, 10, 10, "test"), 16)
    monkeypatch.setattr(Machine, "vqvae", lambda self, s: dict(latent_shape=[4, 4, 4], decode=0.0))
    monkeypatch.setattr(Machine, "dit", lambda self, s, shape: dict(forward=0.01, layers=""))
    latents = stage("latents", dict(vqvae=stage("vqvae")))
    usual = dict(n_samples=10, n_steps=20, method="euler", cfg_scale=1.0)
    inputs = dict(model=stage("model"), latents=latents, vqvae=stage("vqvae"))
    cost = lambda **kw: cost_of(stage("samples", inputs, **{**usual, **kw}), machine).seconds - costs.OVERHEAD["seconds"]
    assert cost() == pytest.approx(2.0)
    assert cost(cfg_scale=2.0) == cost(method="heun") == pytest.approx(4.0)


def test_every_kind_of_stage_has_a_rule(fresh_store):
    methods = ["random", "moso", "el2n", "cluster_pixels"]
    study = Study("digits", "smoke", methods, [0.5], overrides=SHORT, store=fresh_store, device="cpu", workers=1)
    assert {s.kind for s in study.stages().values()} <= costs.RULES.keys()


def test_summary_counts_unknown():
    plan = pd.DataFrame(dict(kind=["a", "a", "b"], hash=list("xyz"), cached=[True, False, False], stale=[True, False, False],
                             device_hours=[0.0, 2.0, math.nan],
                             gib=[0.0, 1.0, math.nan], working_gib=[0.0, 3.0, 0.0], note=["", "", "who knows"]))
    found = plan_summary(plan)
    asked = ["stages", "in_store", "stale", "device_hours", "gib", "unknown", "working_gib"]
    assert found.loc["total", asked].tolist() == [3, 1, 1, 2.0, 1.0, 1, 3.0]

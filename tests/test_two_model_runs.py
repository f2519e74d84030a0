"Two models and further metrics in a study: nothing that is stored is made again, and the numbers are those of the parts."
import math

import numpy as np
import pytest
import torch

from diffprune.core.stages import materialise
from diffprune.metrics.cmmd import cmmd
from diffprune.metrics.per_class import per_class
from diffprune.models.flow import sample_latents
from diffprune.models.vqvae import decode_latents
from diffprune.study.further_metrics import FURTHER_METRICS, class_distances, further_metrics, further_stage
from diffprune.study.makers import load_norm, load_vqvae
from diffprune.study.runs import Run
from diffprune.study.study import Study
from diffprune.study.two_model_runs import load_pair, pair_features, pair_samples, seam_stage, small_model, two_model_costs, two_models

LARGE, PRUNED = Run("unpruned", 0.0, 0), Run("random", 0.5, 0)


@pytest.fixture
def study(store): return Study("digits", "smoke", methods=["random"], ratios=[0.5], store=store, overrides={"sample.cfg_scale": 1.5})


def test_further_metrics_leave_all_addresses_as_they_are(study):
    before = {s.kind: h for h, s in study.stages().items()}
    stage = further_stage(study.pipeline, PRUNED)
    again = Study("digits", "smoke", methods=["random"], ratios=[0.5], store=study.store, overrides={"sample.cfg_scale": 1.5})
    assert {s.kind: h for h, s in again.stages().items()} == before
    assert {s.key(study.store).hash for s in stage.tree()} - set(again.stages()) == {stage.key(study.store).hash}


def test_further_metrics_of_a_study(study):
    table = further_metrics(study, progress=False)
    assert set(table.metric) == set(FURTHER_METRICS) and set(table.method) == {"unpruned", "random", "validation"}
    run = table[(table.method == "random")].set_index("metric")
    X, real = study.features(PRUNED), study.real_features()
    assert run.value["cmmd"] == pytest.approx(cmmd(X, real)) and run.name["cmmd"] == "MMD (pixels)"
    by_class = class_distances(study, PRUNED)
    expected = per_class(X, real, study.labels(PRUNED), study.real_labels())
    assert by_class.index.tolist() == study.classes and np.allclose(by_class.value, expected.value, equal_nan=True)
    assert (run.value.notna() | (run.reason != "")).all()
    floor = table[table.method == "validation"].set_index("metric")
    assert floor.reason["fd_gap"] == "these images are the held-out ones" and floor.value["cmmd"] < run.value["cmmd"]


def test_a_guided_pair_of_models_in_a_study(study):
    p, context = study.pipeline, study.context(progress=False)
    stage = pair_samples(p, PRUNED, LARGE, "DiT-N/4", 0.5)
    images = materialise(stage, context)
    assert np.array_equal(images.array("labels"), study.labels(LARGE))
    small, large = (materialise(s, context) for s in (small_model(p, PRUNED, LARGE, "DiT-N/4", 0.5), p.model(LARGE)))
    assert small.meta["n_train"] == len(study.kept(PRUNED)) and small.json("model")["name"] == "DiT-N/4"
    latents, vqvae = materialise(p.latents(), context), materialise(p.vqvae(), context)
    shape, y = latents.array("latents").shape[1:], torch.from_numpy(np.array(images.array("labels")[:5]))
    z = sample_latents(load_pair(small, large, 0.5), range(5), shape, 0, y, progress=False, n_steps=4, cfg_scale=1.5)
    by_hand = decode_latents(load_vqvae(vqvae), load_norm(latents).denormalize(z), progress=False)
    assert np.abs(by_hand.astype(int) - images.array("images")[:5]).max() <= 1, "a rounding step at most, whatever the batch"
    assert pair_features(study, PRUNED, "DiT-N/4", 0.5).shape == study.features(LARGE).shape


def test_the_seam_is_shared_and_left_out_where_there_is_none(study):
    p, key = study.pipeline, lambda s: s.key(study.store).hash
    seams = [small_model(p, run, LARGE, "DiT-N/4", 0.5).inputs["seam"] for run in (LARGE, PRUNED)]
    assert key(seams[0]) == key(seams[1]) == key(seam_stage(p, LARGE, 0.5)) != key(seam_stage(p, LARGE, 0.6))
    assert "seam" not in small_model(p, LARGE, LARGE, "DiT-N/4", 0.5, 0).inputs
    assert key(small_model(p, LARGE, LARGE, "DiT-N/4", 1.0, 5.0)) == key(small_model(p, LARGE, LARGE, "DiT-N/4", 1.0))
    assert key(small_model(p, LARGE, LARGE, "DiT-N/4", 0.5, 0.2)) != key(small_model(p, LARGE, LARGE, "DiT-N/4", 0.5))
    assert pair_samples(p, PRUNED, LARGE, "DiT-N/4", 0) is p.samples(LARGE)


def test_quality_and_cost(study):
    table = two_models(study, "DiT-N/4", (0, 0.5), progress=False)
    assert set(map(tuple, table[["method", "switch"]].to_numpy())) == {(m, s) for m in ("unpruned", "random") for s in (0.0, 0.5)}
    own = study.results(progress=False).query("method == 'unpruned'").set_index("metric").value
    alone = table.query("method == 'random' and switch == 0").set_index("metric").value
    assert alone["fd"] == own["fd"]
    costs = two_model_costs(study, "DiT-N/4", (0.5, 1.0), 8, 1)
    assert costs[["small", "large"]].to_numpy().tolist() == [[4, 4], [8, 0]], "4 steps, each asked twice for guidance"
    assert (costs.seconds > 0).all() and costs.macs_ratio.is_monotonic_increasing and math.isfinite(costs.speedup[0])


@pytest.mark.parametrize("how, said", [
    (dict(dit="DiT-Q/2"), "choose from"), (dict(switch=0.0), "times before it"), (dict(switch=1.1), "times before it"),
    (dict(weight=-1.0), "weight is -1"), (dict(weight=float("nan")), "weight is nan")])
def test_a_small_model_that_cannot_be_is_refused_at_once(study, how, said):
    with pytest.raises(ValueError, match=said): small_model(study.pipeline, PRUNED, LARGE, **{**dict(dit="DiT-N/4", switch=0.5), **how})

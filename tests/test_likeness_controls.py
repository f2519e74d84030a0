"The flow of a Gaussian against its formula, and the pairs of models that likeness is measured on."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprune.core.stages import materialise
from diffprune.models.flow import guided_velocity, sample_noise, sample_ode
from diffprune.models.gaussian_flow import GaussianFlow
from diffprune.report.pairs import likeness
from diffprune.study.likeness_controls import FlippedPipeline, gaussian_samples, likeness_features, likeness_stages
from diffprune.study.makers import load_norm
from diffprune.study.runs import Run
from diffprune.study.study import Study


@given(seed=st.integers(0, 10**6), t=st.floats(0, .95), n=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_velocity_is_the_formula(seed, t, n):
    rng = np.random.default_rng(seed)
    latents, x = rng.standard_normal((n, 2, 2, 1))*2 + 1, rng.standard_normal((3, 2, 2, 1))
    flat = latents.reshape(n, 4)
    mean, cov = flat.mean(0), np.cov(flat.T, bias=True).reshape(4, 4) if n > 1 else np.zeros((4, 4))
    cov = cov + 1e-8*np.eye(4)
    by_formula = mean + (x.reshape(3, 4) - t*mean) @ np.linalg.solve((1 - t)**2*np.eye(4) + t*t*cov, t*cov - (1 - t)*np.eye(4))
    found = GaussianFlow(latents)(torch.from_numpy(x).float(), torch.full((3,), t)).numpy().reshape(3, 4)
    np.testing.assert_allclose(found, by_formula, rtol=2e-3, atol=2e-3)


def test_the_velocity_is_the_least_squares_one():
    "No other affine velocity has a smaller flow-matching loss on Gaussian data."
    rng = np.random.default_rng(0)
    A, t = rng.standard_normal((3, 3)), .6
    x_1, x_0 = rng.standard_normal((200_000, 3)) @ A + 1, rng.standard_normal((200_000, 3))
    x_t = (1 - t)*x_0 + t*x_1
    fit = np.linalg.lstsq(np.column_stack([x_t, np.ones(len(x_t))]), x_1 - x_0, rcond=None)[0]
    model, grid = GaussianFlow(x_1.reshape(-1, 3, 1, 1)), rng.standard_normal((5, 3))
    found = model(torch.from_numpy(grid.reshape(5, 3, 1, 1)).float(), torch.full((5,), t)).numpy().reshape(5, 3)
    np.testing.assert_allclose(found, np.column_stack([grid, np.ones(5)]) @ fit, atol=.03)


def test_the_flow_ends_at_the_symmetric_root():
    latents = np.random.default_rng(1).standard_normal((300, 2, 2, 2)) + 2
    model, noise = GaussianFlow(latents), sample_noise(range(6), (2, 2, 2), 0)
    torch.testing.assert_close(sample_ode(model, noise, method="dopri5"), model.endpoint(noise), atol=5e-3, rtol=5e-3)


def test_classes_and_guidance_of_a_gaussian():
    rng, labels = np.random.default_rng(2), np.arange(60) % 2
    latents = rng.standard_normal((60, 1, 2, 2)) + 5*labels[:, None, None, None]
    model, x, y, t = GaussianFlow(latents, labels, 2), torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 1, 0]), torch.full((4,), .5)
    for c in (0, 1):
        own = GaussianFlow(latents[labels == c])
        torch.testing.assert_close(model(x, t, y)[y == c], own(x, t)[y == c], atol=1e-4, rtol=1e-4)
    free = GaussianFlow(latents)(x, t)
    torch.testing.assert_close(guided_velocity(model, x, t, y, 3.), 3*model(x, t, y) - 2*free, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="labels are needed"): model(x, t)
    with pytest.raises(ValueError, match="classes 2"): GaussianFlow(latents, labels, 3)


@pytest.fixture
def study(store): return Study("digits", "smoke", methods=["random", "random_inv"], ratios=[0.5], seeds=[0, 1], store=store)


def test_each_pair_differs_in_what_it_says(study):
    pairs = likeness_stages(study, "DiT-N/1")
    def models(name): return [{s.kind: s for s in stage.tree()}.get("model") for stage in pairs[name]]
    def key(stage): return stage.key(study.store).hash
    a, b = models("size")
    assert (a.settings["dit"], b.settings["dit"]) == ("DiT-N/2", "DiT-N/1")
    assert {n: key(s) for n, s in a.inputs.items()} == {n: key(s) for n, s in b.inputs.items()}
    a, b = models("seed")
    assert a.settings != b.settings and a.settings == dict(b.settings, train={**b.settings["train"], "seed": 0})
    a, b = models("autoencoder seed")
    assert a.settings == b.settings and key(a.inputs["latents"]) != key(b.inputs["latents"])
    a, b = models("flipped latents")
    assert a.settings == b.settings and b.inputs["latents"].settings == {"flipped": True}
    assert models("Gaussian")[1] is not None and models("Gaussian halves")[0] is not None, "classes are read off the run's own images"
    kept = [study.kept(Run(m, 0.5, 0)) for m in ("random", "random_inv")]
    assert not np.intersect1d(*kept).size and sum(map(len, kept)) == len(study.real_images())


def test_flipped_latents_decode_to_what_they_were_made_of(study):
    p = study.pipeline
    plain, turned = (materialise(q.latents(), study.context(progress=False)) for q in
                     (p, FlippedPipeline(p.config, p.preset, p.metrics_backbone, p.weights, p.stale)))
    z = np.array(plain.array("latents")[:5])
    assert np.array_equal(np.array(turned.array("latents")[:5]), -z)
    np.testing.assert_allclose(-load_norm(turned).denormalize(torch.from_numpy(-z)).numpy(), load_norm(plain).denormalize(z), atol=1e-5)


def test_controls_are_where_they_should_be(study):
    features, hashes = likeness_features(study, "DiT-N/1", "pixels")
    found = {name: likeness(*pair) for name, pair in features.items()}
    assert set(hashes) == set(found) and found["Gaussian halves"].gain > 3*abs(found["permuted"].gain)
    assert found["Gaussian halves"].auc.mean() > .9 > .8 > found["permuted"].auc.mean() > .2
    whole = {row.tobytes() for row in np.asarray(features["seed"][1])}
    assert all(row.tobytes() in whole for row in features["permuted"][1])


def test_the_gaussian_of_a_half_is_that_of_its_latents(study):
    run, context = Run("random", 0.5, 0), study.context(progress=False)
    latents = materialise(study.pipeline.latents(), context).array("latents")
    whole, half = (materialise(gaussian_samples(study.pipeline, r), context).array("images") for r in (Run("unpruned", 0.0, 0), run))
    assert (whole != half).any() and whole.shape == half.shape == study.images(run).shape and len(latents) > len(study.kept(run))

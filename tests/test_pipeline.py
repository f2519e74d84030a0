"""Settings of the stages: what changes an artifact's address, and what does not."""
import numpy as np
import pytest
import torch

from diffprune.core.stages import Context, materialise
from diffprune.data.datasets import dataset_config
from diffprune.models.flow import sample_latents
from diffprune.models.vqvae import decode_latents
from diffprune.pruning.registry import parse_method
from diffprune.study.makers import load_model, load_norm, load_vqvae
from diffprune.study.pipeline import Pipeline
from diffprune.study.presets import ProxyConfig, load_preset, paper_methods
from diffprune.study.runs import Run


def pipeline(**overrides):
    return Pipeline(dataset_config("digits", image_size=16), load_preset("smoke", "digits", overrides))


def test_probes_in_bfloat16_give_nearly_the_same_scores(store):
    context = Context(store, progress=False)
    exact, rounded = (materialise(pipeline(**{"proxy.precision": p}).proxy(0), context) for p in ("no", "bf16"))
    assert exact.hash != rounded.hash
    for name in ("losses", "norms"):
        a, b = exact.array(name), rounded.array(name)
        assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_precision_of_probes_does_not_touch_what_it_does_not_concern(store):
    plain, rounded = pipeline(), pipeline(**{"proxy.precision": "bf16"})
    for stage in ("surrogates", "influence", "vqvae", "latents"):
        seed = (0,) if stage in ("surrogates", "influence") else ()
        a, b = (getattr(p, stage)(*seed).key(store) for p in (plain, rounded))
        assert a == b


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="'no' or 'bf16'"): ProxyConfig(precision="fp8")


def test_what_is_loaded_from_a_run_draws_the_images_that_are_stored(store):
    p, context = pipeline(), Context(store, progress=False)
    stage = p.samples(Run("random", 0.5, 0))
    stored = materialise(stage, context)
    model, latents, vqvae = (materialise(stage.inputs[name], context) for name in ("model", "latents", "vqvae"))
    how, labels = stage.settings, torch.from_numpy(np.array(stored.array("labels")))
    drawn = sample_latents(load_model(model), range(how["n_samples"]), latents.array("latents").shape[1:], how["noise_seed"], labels,
                           how["batch_size"], "cpu", False, method=how["method"], n_steps=how["n_steps"], cfg_scale=how["cfg_scale"],
                           channels=how["cfg_channels"])
    images = decode_latents(load_vqvae(vqvae), load_norm(latents).denormalize(drawn), device="cpu", progress=False)
    np.testing.assert_array_equal(images, stored.array("images"))


def test_the_methods_of_the_paper_are_known_ones_of_which_some_can_be_left_out():
    every = paper_methods()
    assert every[0] == "random" and len(set(every)) == len(every) and all(parse_method(m) for m in every)
    assert [m for m in every if m not in paper_methods(without=["moso"])] == ["moso", "moso_inv"]
    assert load_preset("paper", "imagenet").methods == paper_methods(without=["moso"])

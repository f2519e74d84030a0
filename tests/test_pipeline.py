"""Settings of the stages: what changes an artifact's address, and what does not."""
import numpy as np
import pytest

from diffprune.core.stages import Context, materialise
from diffprune.data.datasets import dataset_config
from diffprune.study.pipeline import Pipeline
from diffprune.study.presets import ProxyConfig, load_preset


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

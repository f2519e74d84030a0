"""Departures: never on by default, act only where they are named, and count what they should."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprune.core.checks import to_uint8
from diffprune.core.store import Store
from diffprune.data.datasets import dataset_config
from diffprune.pruning.select import n_kept
from diffprune.study.departures import (
    DEPARTURES,
    bytes_unclamped,
    check_departures,
    depart,
    make_pipeline,
    short_slices,
    single_draw,
    truncated_quotas,
    union_of_ranks,
    with_departures,
)
from diffprune.study.presets import PRESETS, load_preset
from diffprune.study.runs import Run


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dataset", ["digits", "celebahq", "imagenet"])
def test_none_is_a_default(preset, dataset):
    assert load_preset(preset, dataset).departures == ()


@pytest.mark.parametrize("ratio, share", [(0.25, 0.996), (0.5, 0.938), (0.75, 0.684), (0.9, 0.344)])
def test_union_over_four_ranks(ratio, share):
    seen = [len(union_of_ranks(np.arange(10_000), ratio, seed))/10_000 for seed in range(3)]
    assert abs(np.mean(seen) - share) < 0.01


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 300), st.sampled_from([0.25, 0.5, 0.75, 0.9]), st.integers(1, 6), st.integers(0, 5))
def test_truncated_quotas_keep_at_most_what_was_asked(n, ratio, k, seed):
    rng = np.random.default_rng(seed)
    groups, scores = rng.integers(0, k, n), rng.normal(size=n)
    kept = truncated_quotas(scores, ratio, "high", groups, np.arange(n), seed)
    assert n_kept(n, ratio) - k - 1 <= len(kept) <= (1 - ratio)*n + 1e-6 and len(set(kept)) == len(kept)


@pytest.mark.parametrize("ratio, share", [(0.25, 0.625), (0.5, 0.25)])
def test_short_middle(ratio, share):
    scores = np.random.default_rng(0).normal(size=4000)
    assert abs(len(short_slices(scores, ratio, None, np.arange(4000), 0))/4000 - share) < 0.002


def test_single_draw_is_one_of_the_draws():
    values = np.random.default_rng(0).normal(size=(50, 7))
    picked = single_draw(values, np.arange(50), 0)
    assert (picked[:, None] == values).any(1).all() and (picked != single_draw(values, np.arange(50), 1)).any()


def test_unclamped_bytes_agree_with_clamped_ones_inside_the_range():
    import torch
    x = torch.linspace(-1, 1, 511)
    assert np.abs(bytes_unclamped(x).astype(int) - to_uint8(x).numpy().astype(int)).max() <= 1
    assert bytes_unclamped(torch.tensor([1.05])).item() < 20 < 200 < bytes_unclamped(torch.tensor([-1.05])).item()


def test_names_are_checked():
    with pytest.raises(ValueError, match="unknown departure 'x'"): check_departures(["x"])
    with pytest.raises(ValueError, match="type tuple"): load_preset("cpu", "digits", {"departures": "random_per_rank"})
    assert check_departures(["quota_truncated", "euler_60_grid", "quota_truncated"]) == ("euler_60_grid", "quota_truncated")


@pytest.mark.parametrize("name", DEPARTURES)
def test_each_one_changes_addresses_where_it_acts_and_nowhere_above(name, tmp_path):
    store, config = Store(tmp_path), dataset_config("digits", image_size=16)
    text = make_pipeline(config, load_preset("smoke", "digits", {"sample.cfg_scale": 2.0}), "pixels")
    code = make_pipeline(config, load_preset("smoke", "digits", {"sample.cfg_scale": 2.0, "departures": [name]}), "pixels")
    methods = ["random", "monotonicity", "grand", "moso", "cluster_lite0", "cluster_lite0_mid"]
    hashes = lambda p, kind: {s.key(store).hash for m in methods for s in p.metrics(Run(m, 0.5, 0)).tree() if s.kind == kind}
    acts = DEPARTURES[name].stage
    assert hashes(text, acts) != hashes(code, acts), f"{name} changes no {acts}"
    assert hashes(text, "vqvae") == hashes(code, "vqvae") and hashes(text, "images") <= hashes(code, "images") | hashes(text, "images")
    if acts in ("samples", "metrics"): assert hashes(text, "model") == hashes(code, "model")
    if acts == "subset" and name == "random_per_rank": assert len(hashes(text, "subset") & hashes(code, "subset")) == len(methods) - 1


def test_settings_are_untouched_without_departures():
    settings_ = dict(seed=0)
    assert with_departures(settings_, (), "subset", "random") is settings_
    assert depart(load_preset("smoke", "digits")) == load_preset("smoke", "digits")

"""Likeness of images from the same noise: against independent references, and in the right direction."""
import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu

from diffprune.report.pairs import inverse_pairs, likeness, likeness_row


def two_models(agreement, n=200, d=16, seed=0):
    shared, a, b = np.random.default_rng(seed).normal(size=(3, n, d))
    return agreement * shared + a, agreement * shared + b


def test_more_agreement_means_more_gain_and_auc():
    rows = [likeness_row(likeness(*two_models(x))) for x in (0, 0.5, 1, 3)]
    assert [r["gain"] for r in rows] == sorted(r["gain"] for r in rows)
    assert [r["auc"] for r in rows] == sorted(r["auc"] for r in rows)
    assert rows[0]["gain_low"] < 0.02 and rows[-1]["gain_low"] > 0.7


def test_similarities_equal_scipy():
    a, b = two_models(1, 40)
    centre = np.concatenate([a, b]).mean(0)
    cosine = 1 - cdist(a - centre, b - centre, "cosine")
    found = likeness(a, b)
    np.testing.assert_allclose(found.same, np.diag(cosine), atol=1e-5)
    np.testing.assert_allclose(found.other, (cosine.sum(1) - np.diag(cosine)) / 39, atol=1e-5)
    row = cosine[3]
    assert abs(found.auc[3] - mannwhitneyu(row[[3]], np.delete(row, 3)).statistic / 39) < 1e-6


def test_swapping_the_models_changes_nothing_on_average():
    a, b = two_models(1)
    assert abs(likeness(a, b).gain - likeness(b, a).gain) < 1e-5


def test_the_interval_covers_as_often_as_it_says():
    truth = likeness(*two_models(1, 4000)).gain
    rows = [likeness_row(likeness(*two_models(1, 100, seed=s)), level=0.9, draws=200) for s in range(1, 61)]
    covered = np.mean([r["gain_low"] <= truth <= r["gain_high"] for r in rows])
    assert 0.75 <= covered <= 1


def test_pairs_of_one_seed_are_made_once():
    assert len(inverse_pairs(["grand", "grand_inv"], 0.5, [4])) == 1
    assert len(inverse_pairs(["grand", "grand_inv", "moso", "moso_inv"], 0.5, [0, 1])) == 8
    with pytest.raises(ValueError, match="give both"):
        inverse_pairs(["grand", "moso"], 0.5, [0])


def test_the_auc_is_what_single_draws_of_another_noise_average_to():
    (a, b), classes, rng = two_models(1, n=120), np.arange(120) % 3, np.random.default_rng(0)
    found, centre = likeness(a, b, classes), np.concatenate([a, b]).mean(0)
    unit = lambda x: (x - centre) / np.linalg.norm(x - centre, axis=1, keepdims=True)
    cosine, draws = unit(a) @ unit(b).T, []
    for _ in range(400):
        other = np.arange(120)
        for c in range(3):
            members = rng.permutation(np.flatnonzero(classes == c))
            other[members] = np.roll(members, 1)
        draws.append((np.diag(cosine) > cosine[np.arange(120), other]).mean())
    assert found.auc.mean() == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / 20)


def test_likeness_of_12800_samples_takes_bounded_memory():
    "Of all pairs, float32 cosines alone would take 625 MiB."
    a, b = two_models(1, n=12_800, d=32)
    tracemalloc.start()
    found = likeness(a, b, np.arange(12_800) % 10)
    likeness_row(found, draws=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20 and len(found.same) == 12_800 and len(found.pairs) <= 1_000_000


def test_blocks_and_the_choice_of_pairs_change_nothing_else():
    (a, b), classes = two_models(1, n=500), np.arange(500) % 3
    whole = likeness(a, b, classes)
    for block in (1, 7, 499, 1000):
        part = likeness(a, b, classes, max_pairs=2000, block=block)
        for name in ("same", "other", "auc"): np.testing.assert_allclose(getattr(part, name), getattr(whole, name), atol=1e-12)
        assert 1500 < len(part.pairs) <= 2000
        assert np.isin(part.pairs.round(9), whole.pairs.round(9)).all() and abs(part.pairs.mean() - whole.pairs.mean()) < 0.03


def test_copies_tie_and_an_image_at_the_mean_is_like_none():
    a = np.eye(3).repeat(2, 0)
    found = likeness(a, a)
    assert found.auc == pytest.approx(np.full(6, 0.9))  # four others are less alike, one is the same: (4 + 0.5) / 5
    centred = np.vstack([np.eye(2), -np.eye(2), np.zeros((1, 2))])
    assert likeness(centred, centred).same[-1] == 0 and likeness(centred, centred).auc[-1] == 0.5

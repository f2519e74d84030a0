"""Likeness of images from the same noise: against independent references, and in the right direction."""
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

"""Selection and the pruners that need no model: exact counts, quotas, ties, bad input."""
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from diffprune.pruning.cluster_pruners import ClusterPruner
from diffprune.pruning.select import RandomPruner, balanced_quotas, n_kept, proportional_quotas, select

RATIOS = st.one_of(st.sampled_from([0, 0.25, 0.5, 0.75, 0.9]), st.floats(0, 0.99))
KEEP = st.sampled_from(["high", "mid", "low"])


@st.composite
def problem(draw, max_size=60):
    n = draw(st.integers(1, max_size))
    values = st.one_of(st.integers(0, 3).map(float), st.floats(-1e6, 1e6))
    scores = np.array(draw(st.lists(values, min_size=n, max_size=n)))
    groups = np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
    labels = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    return scores, groups, labels, draw(st.integers(0, 3))


def keeps_some(n, ratio, keep="high"): return n_kept(n, ratio, keep) > 0


@settings(max_examples=200, deadline=None)
@given(problem(), RATIOS, KEEP, st.booleans())
def test_exact_count_and_quotas(p, ratio, keep, grouped):
    scores, groups, _, seed = p
    n, m = len(scores), n_kept(len(scores), ratio, keep)
    exact = Fraction(ratio).limit_denominator(10**6) if ratio in (0.25, 0.5, 0.75, 0.9) else Fraction(ratio)
    assert abs(m - (1 - exact) * n) <= Fraction(1, 2) + Fraction(1, 10**6)
    groups = groups if grouped else None
    if m == 0:
        with pytest.raises(ValueError, match="keeps none"): select(scores, ratio, keep, groups, random_state=seed)
        return
    kept = select(scores, ratio, keep, groups, random_state=seed)
    assert len(kept) == m == len(set(kept.tolist())) and (np.diff(kept) > 0).all() and kept.min() >= 0 and kept.max() < n
    if grouped:
        for g in np.unique(groups):
            size, got = (groups == g).sum(), (groups[kept] == g).sum()
            assert abs(got - (1 - ratio) * size) < 1 + 1e-6


@settings(max_examples=300, deadline=None)
@given(problem(), RATIOS, st.booleans(), st.booleans())
def test_a_method_and_its_inverse_are_a_partition(p, ratio, grouped, stratified):
    scores, groups, labels, seed = p
    n, other = len(scores), 1 - ratio
    if other == 1: return
    high, low = n_kept(n, ratio), n_kept(n, other, "low")
    assert high + low == n
    if 0 in (high, low): return
    how = dict(groups=groups if grouped else None, labels=labels if stratified else None, min_per_class=0, random_state=seed)
    high, low = select(scores, ratio, "high", **how), select(scores, other, "low", **how)
    assert np.sort(np.concatenate([high, low])).tolist() == list(range(n))
    if not grouped and not stratified: assert min(scores[high]) >= max(scores[low])


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.5, 0.7, 0.9])
def test_rare_classes_keep_the_partition(ratio):
    "A lifted class takes from others, and the inverse at the other ratio makes up for it."
    labels, scores = np.repeat(np.arange(4), [70, 20, 7, 4]), np.random.default_rng(0).normal(size=101)
    parts = [select(scores, r, k, labels=labels) for r, k in ((ratio, "high"), (1 - ratio, "low"))]
    both, neither = set(parts[0]) & set(parts[1]), 101 - len(set(parts[0]) | set(parts[1]))
    assert all(set(labels[p]) == {0, 1, 2, 3} for p in parts)
    lifted = ratio < 0.3  # the inverse keeps a tenth or a quarter: the smallest class must be in it, and the method has all of it
    assert lifted and len(both) == neither <= 1 or not both and not neither


@settings(max_examples=100, deadline=None)
@given(problem(), RATIOS, KEEP, st.sampled_from(["proportional", "balanced"]), st.booleans(), st.randoms())
def test_order_of_samples_does_not_matter(p, ratio, keep, quotas, stratified, random):
    scores, groups, labels, seed = p
    if not keeps_some(len(scores), ratio, keep): return
    ids = np.array([f"s{i}" for i in range(len(scores))])
    order = np.array(random.sample(range(len(scores)), len(scores)))
    def kept(o): return set(ids[o][select(scores[o], ratio, keep, groups[o], quotas, labels[o] if stratified else None, 0, ids[o], seed)])
    assert kept(np.arange(len(scores))) == kept(order)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 5))
def test_water_filling(sizes, share, seed):
    sizes = np.array(sizes)
    seats = int(share * sizes.sum())
    q = balanced_quotas(sizes, seats, seed)
    assert q.sum() == seats and (q <= sizes).all() and (q >= 0).all()
    short = q < sizes                      # who still has samples gives as much as anybody, within one
    if short.any(): assert q[short].min() >= q.max() - 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), RATIOS, st.integers(0, 5))
def test_proportional_is_largest_remainder(sizes, ratio, seed):
    m = n_kept(sum(sizes), ratio)
    q = proportional_quotas(sizes, m, 1 - ratio, seed)
    due = np.array(sizes) * (1 - ratio)
    assert q.sum() == m and (q >= np.floor(due - 1e-6)).all() and (q <= np.ceil(due + 1e-6)).all()
    remainder, up = due - np.floor(due + 1e-9), q > np.floor(due + 1e-9)
    if up.any() and not up.all(): assert remainder[up].min() >= remainder[~up].max() - 1e-6


@settings(max_examples=100, deadline=None)
@given(problem(), RATIOS, KEEP)
def test_no_class_vanishes(p, ratio, keep):
    scores, groups, labels, seed = p
    m = n_kept(len(scores), ratio, keep)
    if m < len(np.unique(labels)):
        if m and len(np.unique(labels)) > 1:
            with pytest.raises(ValueError, match="min_per_class"): select(scores, ratio, keep, groups, labels=labels, random_state=seed)
        return
    kept = select(scores, ratio, keep, groups, labels=labels, random_state=seed)
    assert len(kept) == m and set(labels[kept]) == set(labels)


def test_ties_are_not_broken_by_position():
    kept = select(np.zeros(1000), 0.5)
    assert abs(kept.mean() - 499.5) < 50
    assert set(kept) != set(select(np.zeros(1000), 0.5, random_state=1))


def test_single_sample_and_zero_ratio():
    assert select([3.0], 0).tolist() == [0]
    assert select([3.0], 0.25, "low").tolist() == [0]
    with pytest.raises(ValueError, match="keeps none"): select([3.0], 0.75)


@pytest.mark.parametrize("ratio", [1, 1.0, -0.1, 2, float("nan"), float("inf"), None, "0.5"])
def test_bad_ratio(ratio):
    with pytest.raises(ValueError): select([1.0, 2.0], ratio)
    with pytest.raises(ValueError): RandomPruner().fit(np.zeros((4, 2))).select(ratio)


@pytest.mark.parametrize("scores", [[], [np.nan, 1.0], [np.inf, 1.0], [[1.0, 2.0]], 3.0])
def test_bad_scores(scores):
    with pytest.raises(ValueError): select(scores, 0.5)


def test_balanced_with_smallest_cluster():
    groups = np.repeat(["a", "b", "c"], [50, 30, 7])
    kept = select(np.arange(87.0), None, groups=groups, quotas="balanced")
    assert np.unique(groups[kept], return_counts=True)[1].tolist() == [7, 7, 7]
    assert (np.flatnonzero(groups == "a")[-7:] == kept[:7]).all()
    pruner = ClusterPruner(n_clusters=3, quotas="balanced").fit(np.repeat(np.eye(3), [50, 30, 7], axis=0))
    assert pruner.select().pruning_ratio == pytest.approx(1 - 21 / 87)


@pytest.mark.parametrize("pruner", [RandomPruner(random_state=3), ClusterPruner(n_clusters=4, random_state=3),
                                    ClusterPruner(n_clusters=4, metric="cosine", random_state=3)])
def test_estimator_manners(pruner):
    X = np.random.default_rng(0).normal(size=(60, 5)) + 3
    params = pruner.get_params()
    assert clone(pruner).get_params() == params
    assert pruner.fit(X) is pruner and pruner.get_params() == params
    assert pruner.score_samples(X).shape == (60,)
    np.testing.assert_allclose(pruner.score_samples(X), pruner.scores_, atol=1e-5)
    a, b = pruner.select(0.6), clone(pruner).fit(X).select(0.6)
    assert a.digest == b.digest and a.mask.sum() == len(a) == 24
    assert pruner.select(0.6, keep="low").digest != a.digest
    with pytest.raises(Exception, match="not fitted"): clone(pruner).select(0.5)
    with pytest.raises(ValueError): clone(pruner).set_params(keep="top").fit(X)
    with pytest.raises(ValueError): pruner.select(0.5, keep="top")


def test_random_state_none_is_fixed_at_fit():
    X = np.zeros((50, 1))
    pruner = RandomPruner(random_state=None).fit(X)
    assert pruner.select(0.5).digest == pruner.select(0.5).digest
    assert pruner.select(0.5).digest != RandomPruner(random_state=None).fit(X).select(0.5).digest


def test_stratified_pruner_keeps_every_class():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [90, 8, 2])
    X = rng.normal(size=(100, 3))
    kept = ClusterPruner(n_clusters=5, stratify=True).fit(X, y).select(0.9)
    assert set(y[kept.indices]) == {0, 1, 2} and len(kept) == 10


def test_duplicates_only():
    with pytest.warns(UserWarning, match="clusters were asked for"):
        pruner = ClusterPruner(n_clusters=4).fit(np.ones((40, 3)))
    assert len(pruner.select(0.75)) == 10

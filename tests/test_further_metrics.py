"Clipped density and coverage, MIND, CMMD, per-class and train/held-out distances: each against its definition on random small sets."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import betabinom

from diffprune.metrics.clipped import clipped_density_coverage, expected_coverage
from diffprune.metrics.cmmd import cmmd
from diffprune.metrics.coverage import ball_radii
from diffprune.metrics.frechet import frechet_distance
from diffprune.metrics.per_class import class_mean, per_class
from diffprune.metrics.sample_size import by_sample_size
from diffprune.metrics.sliced import mind
from diffprune.metrics.train_heldout import train_heldout

RNG = np.random.default_rng(0)


def distances(A, B): return np.linalg.norm(A[:, None].astype(float) - B, axis=-1)


def clipped_by_definition(Y, X, k):
    between, within = distances(Y, X), distances(X, X)
    np.fill_diagonal(within, np.inf)
    r = np.sort(within, 1)[:, k - 1]
    R = np.minimum(r, np.median(r))
    density = np.minimum((between <= R).sum(1)/k, 1).mean()/np.minimum((within <= R[:, None]).sum(0)/k, 1).mean()
    C = np.minimum((between < r).sum(0)/k, 1).mean()
    f = np.array([sum(min(j, k)*betabinom.pmf(j, m, k, len(X) - k) for j in range(m + 1))/k for m in range(len(Y) + 1)])
    return (min(density, 1), (f < C - 1e-12).mean()), bool((abs(f - C) < 1e-9).any())


SEEDS, SIZES = st.integers(0, 10**6), st.integers(3, 30)


@given(seed=SEEDS, n=SIZES, m=SIZES, d=st.integers(1, 5), k=st.integers(1, 3), shift=st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_clipped_metrics_are_their_definition(seed, n, m, d, k, shift):
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((max(n, k + 1), d)), rng.standard_normal((max(m, k), d)) + shift
    expected, tie = clipped_by_definition(Y, X, k)
    found = clipped_density_coverage(Y, X, k)
    assert found.density == pytest.approx(expected[0], abs=1e-9)
    if not tie: assert found.coverage == pytest.approx(expected[1], abs=1e-9)
    assert clipped_density_coverage(Y, X, k, ball_radii(X, k)) == found
    assert clipped_density_coverage(3*Y + 1, 3*X + 1, k) == pytest.approx(found, abs=2/(len(Y) + 1)), "units do not matter"


def test_copies_and_constant_sets_have_a_value():
    same = np.ones((8, 3))
    assert clipped_density_coverage(same, same) == (1, 0)  # all radii are zero: everything is on a centre, and nothing within
    assert clipped_density_coverage(same + 1, same) == (0, 0)
    X = np.repeat(RNG.standard_normal((6, 2)), 4, 0)
    assert all(0 <= v <= 1 for v in clipped_density_coverage(X, X, 3))


def test_one_outlier_among_the_real_images_hides_nothing():
    X, bad = RNG.standard_normal((200, 4)), RNG.standard_normal((200, 4)) + 30
    X[0] = 100
    assert clipped_density_coverage(bad, X) == (0, pytest.approx(0, abs=.02))


@pytest.mark.parametrize("share", [0, .25, .5, .75])
def test_clipped_metrics_are_the_share_of_good_images(share):
    X, Y = RNG.standard_normal((2, 600, 6))
    Y[:int(share*600)] += 50
    assert clipped_density_coverage(Y, X) == pytest.approx((1 - share,)*2, abs=.12)


def test_expected_coverage_for_large_sets_is_finite_and_rises():
    f = expected_coverage(np.arange(0, 200_001, 1000), 50_000, 5)
    assert np.isfinite(f).all() and f[0] == 0 and (np.diff(f) > -1e-12).all() and f[-1] > .95
    assert expected_coverage([[3, 4]], 10, 2).shape == (1, 2)


@given(seed=st.integers(0, 10**6), n=st.integers(1, 25), d=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_mind_is_the_mean_optimal_transport_of_projections(seed, n, d):
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((n, d)), rng.exponential(size=(n, d))
    g = np.random.RandomState(7).standard_normal((5, d))
    total = 0
    for u in g/np.linalg.norm(g, axis=1, keepdims=True):
        cost = ((X @ u)[:, None] - Y @ u)**2
        total += cost[linear_sum_assignment(cost)].mean()
    assert mind(X, Y, 5, 7) == pytest.approx(3*d*total/5)
    assert mind(X, Y, 5, 7, block=2) == pytest.approx(mind(Y, X, 5, 7))


def test_mind_of_unequal_sets_takes_a_subset_of_the_larger():
    X, Y = RNG.standard_normal((40, 3)), RNG.standard_normal((15, 3))
    rng = np.random.RandomState(2020)
    rng.standard_normal((50, 3))
    rows = rng.permutation(40)[:15]
    assert mind(X, Y, 50) == pytest.approx(mind(X[rows], Y, 50))
    assert mind(Y, X, 50) == pytest.approx(mind(X, Y, 50))
    assert mind(X.astype(np.float32), Y.astype(np.float32), 50) == pytest.approx(mind(X, Y, 50), rel=1e-4)


def test_mind_of_shifted_normals_is_three_times_the_squared_shift():
    X, Y = RNG.standard_normal((2, 4000, 10))
    assert mind(X + .5, Y, 400) == pytest.approx(3*10*.25, rel=.1)


@given(seed=SEEDS, n=SIZES, m=SIZES, sigma=st.floats(.1, 20), unit=st.booleans(), unbiased=st.booleans())
@settings(max_examples=25, deadline=None)
def test_cmmd_is_its_definition(seed, n, m, sigma, unit, unbiased):
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((n, 4)) + .1, rng.standard_normal((m, 4))
    found = cmmd(X, Y, sigma, unit=unit, unbiased=unbiased, block=7)
    if unit: X, Y = (A/np.linalg.norm(A, axis=1, keepdims=True) for A in (X, Y))
    k = lambda A, B: np.exp(-distances(A, B)**2/(2*sigma**2))
    within = lambda A: (k(A, A).sum() - len(A)*unbiased)/(len(A)*(len(A) - unbiased))
    assert found == pytest.approx(1000*(within(X) + within(Y) - 2*k(X, Y).mean()), abs=1e-8)


def test_cmmd_of_single_precision_keeps_its_digits():
    X, Y = (RNG.standard_normal((300, 64)).astype(np.float32) + 1 for _ in range(2))
    assert cmmd(X, Y) == pytest.approx(cmmd(X.astype(float), Y.astype(float)), rel=1e-9)


def test_per_class_is_the_metric_class_by_class():
    labels, other = RNG.integers(-1, 4, 200), RNG.integers(0, 5, 150)
    X, Y = RNG.standard_normal((200, 3)), RNG.standard_normal((150, 3))
    table = per_class(X, Y, labels, other)
    assert table.index.tolist() == [0, 1, 2, 3, 4] and table.generated.tolist() == [(labels == c).sum() for c in range(5)]
    for c in range(4): assert table.value[c] == frechet_distance(X[labels == c], Y[other == c])
    assert np.isnan(table.value[4]) and "generated images: 0" in table.reason[4] and np.isnan(class_mean(table))
    assert class_mean(table[:4]) == pytest.approx(table.value[:4].mean())
    failing = per_class(X, Y, labels, other, lambda a, b: clipped_density_coverage(a, b, 1000).density)
    assert failing.value.isna().all() and failing.reason.str.contains("k must lie in|needs 2").all()


def test_a_confused_model_is_found_out_by_class_alone():
    labels = np.repeat([0, 1], 200)
    X, Y = (RNG.standard_normal((400, 3)) + 5*labels[:, None] for _ in range(2))
    assert frechet_distance(X, Y) < 1 < 50 < per_class(X, Y, 1 - labels, labels).value.min()


def test_the_gap_of_copies_is_above_that_of_fresh_images():
    train, heldout, fresh = RNG.standard_normal((200, 12)), RNG.standard_normal((100, 12)), RNG.standard_normal((300, 12))
    copies, new = (train_heldout(X, train, heldout) for X in (train[RNG.integers(0, 200, 300)], fresh))
    assert copies.gap > new.gap + 4*new.spread and copies.train < new.train
    assert new.heldout == frechet_distance(fresh, heldout) and new.train == frechet_distance(fresh, train)


@pytest.mark.parametrize("call, said", [
    (lambda X: clipped_density_coverage(X, X, 0), "k must lie in"), (lambda X: clipped_density_coverage(X*np.nan, X), "finite"),
    (lambda X: expected_coverage(3, 3, 3), "k must lie in"), (lambda X: mind(X, X[:, :2]), "one dimension"),
    (lambda X: mind(X, X, 0), "at least 1"),
    (lambda X: cmmd(X, X, -1), "sigma must be positive"), (lambda X: cmmd(X, X, float("nan")), "sigma must be positive"),
    (lambda X: cmmd(X*0, X), "no direction"), (lambda X: cmmd(X[:1], X, unbiased=True), "at least 2"),
    (lambda X: per_class(X, X, np.zeros(9), np.zeros(9, int)), "must be integers"), (lambda X: per_class(X, X, [0], [0]), "shape"),
    (lambda X: per_class(X, X, -np.ones(9, int), -np.ones(9, int)), "no image has a class"),
    (lambda X: train_heldout(X, X[:3], X), "fewer than the 9"), (lambda X: by_sample_size({}, None, [], 9, 0), "at least 1")])
def test_bad_input_is_refused(call, said):
    with pytest.raises(ValueError, match=said): call(np.random.default_rng(1).standard_normal((9, 3)))


@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf])
def test_radii_of_balls_are_checked(bad):
    X = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match="real_radii must be finite"): clipped_density_coverage(X, X[:12], 2, real_radii=np.full(12, bad))
    with pytest.raises(ValueError, match="reach no other"): clipped_density_coverage(X, X[:12], 2, real_radii=np.zeros(12))

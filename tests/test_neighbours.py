"""The blocked nearest-neighbour search and the ball counts against plain float64 arithmetic."""
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprune.metrics import coverage, neighbours
from diffprune.metrics import evaluate as M
from diffprune.metrics.coverage import ball_metrics
from diffprune.metrics.neighbours import ball_counts, distinct_rows, nearest


def direct(queries, points):
    return np.linalg.norm(queries[:, None].astype(np.float64) - points, axis=-1)


seeds, block_sizes = st.integers(0, 2**32 - 1), st.integers(1, 9)
cases = st.tuples(seeds, st.integers(1, 30), st.integers(1, 40), st.integers(1, 5), block_sizes, block_sizes)


@given(cases, st.sampled_from([1e-6, 1.0, 1e4]), st.sampled_from([0.0, 1e3]))
@settings(max_examples=60, deadline=None)
def test_any_blocks_any_scale_any_offset(case, scale, offset):
    seed, n, m, k, block_q, block_p = case
    rng = np.random.default_rng(seed)
    queries, points = (scale * (rng.standard_normal((c, 3)) + offset) for c in (n, m))
    k = min(k, m)
    found = nearest(queries, points, k, block=(block_q, block_p))
    truth = direct(queries, points)
    assert np.allclose(found.distances, np.sort(truth, 1)[:, :k], rtol=1e-12)
    assert np.allclose(np.take_along_axis(truth, found.indices, 1), found.distances, rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(3, 40))
@settings(max_examples=40, deadline=None)
def test_many_equal_points(seed, n):
    X = np.random.default_rng(seed).integers(0, 2, (n, 3)).astype(np.float32)
    truth = direct(X, X)
    np.fill_diagonal(truth, np.inf)
    found = nearest(X, X, 2, same=True, block=(5, 7))
    assert (found.distances == np.sort(truth, 1)[:, :2]).all()
    assert (found.indices != np.arange(n)[:, None]).all() and (found.indices[:, 0] != found.indices[:, 1]).all()


def test_near_duplicates_far_from_the_origin():
    rng = np.random.default_rng(0)
    points = (1000 + rng.standard_normal((300, 64))).astype(np.float32)
    crowd = np.concatenate([points, *(points[:10] + np.float32(1e-3) * rng.standard_normal((10, 64), dtype=np.float32) for _ in range(30))])
    queries = points[:10] + np.float32(1e-3) * rng.standard_normal((10, 64), dtype=np.float32)
    found, truth = nearest(queries, crowd, 3), direct(queries, crowd)
    assert np.allclose(found.distances, np.sort(truth, 1)[:, :3], rtol=1e-12)
    assert (found.indices == np.argsort(truth, 1)[:, :3]).all()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_of_products_changes_nothing(precision):
    rng = np.random.default_rng(0)
    queries, points = rng.standard_normal((50, 32), dtype=np.float32), rng.standard_normal((400, 32), dtype=np.float32)
    expected = nearest(queries, points, 3)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        found = nearest(queries, points, 3)
        counts = ball_counts(queries, points, np.full(400, expected.distances.mean()))
    finally:
        torch.set_float32_matmul_precision(before)
    assert (found.indices == expected.indices).all() and (found.distances == expected.distances).all()
    assert (counts == (direct(queries, points) <= expected.distances.mean()).sum(1)).all()


@given(cases)
@settings(max_examples=40, deadline=None)
def test_ball_counts(case):
    seed, n, m, _, block_q, block_c = case
    rng = np.random.default_rng(seed)
    queries, centres = (rng.integers(0, 4, (c, 2)).astype(np.float64) for c in (n, m))
    radii = rng.integers(0, 4, m).astype(np.float64)
    assert (ball_counts(queries, centres, radii, block=(block_q, block_c)) == (direct(queries, centres) <= radii).sum(1)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_and_memory_maps(tmp_path, dtype):
    X = np.random.default_rng(0).standard_normal((60, 5)).astype(dtype)
    np.save(tmp_path / "X.npy", X)
    found = nearest(np.load(tmp_path / "X.npy", mmap_mode="r"), torch.from_numpy(X), 2)
    assert (found.indices[:, 0] == np.arange(60)).all() and (found.distances[:, 0] == 0).all()
    assert np.allclose(found.distances[:, 1], np.sort(direct(X, X), 1)[:, 1], rtol=1e-12)


def test_bad_input():
    X = np.zeros((4, 2))
    with pytest.raises(ValueError, match=r"k must lie in \[1, 4\]"): nearest(X, X, 5)
    with pytest.raises(ValueError, match=r"k must lie in \[1, 3\]"): nearest(X, X, 0, same=True)
    with pytest.raises(ValueError, match="same=True"): nearest(X[:2], X, same=True)
    with pytest.raises(ValueError, match="queries must hold at least 1"): nearest(X[:0], X)
    with pytest.raises(ValueError, match="must agree"): ball_counts(X, X[:, :1], np.ones(4))
    with pytest.raises(ValueError, match="must be numbers"): nearest(X > 0, X)


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), block_sizes, block_sizes, st.booleans())
@settings(max_examples=150, deadline=None)
def test_of_equally_near_points_the_lowest_rows_are_named(seed, n, m, k, block_q, block_p, same):
    "Copies and ties that are no copies: the same answer as a stable sort of all distances, whatever the blocks."
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 3, (m, 2)).astype(np.float32)
    queries = points if same else rng.integers(0, 3, (n, 2)).astype(np.float32)
    if k > m - same: return
    truth = direct(queries, points)
    if same: np.fill_diagonal(truth, np.inf)
    expected = np.argsort(truth, axis=1, kind="stable")[:, :k]
    found = nearest(queries, points, k, same=same, block=(block_q, block_p))
    assert (found.indices == expected).all() and (found.distances == np.take_along_axis(truth, expected, 1)).all()


def test_distinct_rows_survive_collisions_of_hashes(monkeypatch):
    X = np.random.default_rng(0).integers(0, 3, (200, 3)).astype(np.float32)
    expected = distinct_rows(X)
    monkeypatch.setattr(neighbours, "_row_hashes", lambda X, *_: np.zeros(len(X), np.uint64))
    found = distinct_rows(X)
    assert all((a == b).all() for a, b in zip(found, expected))
    assert (X[found[0]][found[1]] == X).all() and len(found[0]) == len(np.unique(X, axis=0))


@pytest.mark.parametrize("work", [
    lambda X: nearest(X, X, 5, same=True), lambda X: nearest(X[::-1], X, 5), lambda X: ball_counts(X, X, np.full(len(X), 0.5)),
    lambda X: M.precision_recall(X, X[::-1]), lambda X: M.density_coverage(X, X[::-1]),
    lambda X: ball_metrics(X, X[::-1], [np.arange(len(X)), np.arange(0, len(X), 2)])], ids=range(6))
def test_a_set_full_of_copies_costs_no_more_than_one_without(work):
    "The work is counted in distances that are computed by subtraction, since a clock would tell of other programs."
    X = np.random.default_rng(0).standard_normal((9500, 32)).astype(np.float32)
    crowd, counts = X.copy(), []
    crowd[500:] = crowd[499]
    of_pairs = neighbours.pair_distances
    def counting(queries, points, rows, cols):
        counts[-1] += len(rows)
        return of_pairs(queries, points, rows, cols)
    with pytest.MonkeyPatch.context() as patched:
        for module in (neighbours, coverage): patched.setattr(module, "pair_distances", counting)
        tracemalloc.start()
        counts.append(0); work(crowd)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert counts[0] < 1_000_000 and peak < 300 * 2**20

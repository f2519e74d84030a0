"""Maps and shares of clusters."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffprune.features.cluster import KMeans
from diffprune.report.maps import FeatureMap, cluster_shares, nearest_cluster, total_variation, uniform_distance

shares = arrays(float, 7, elements=st.floats(0.01, 1)).map(lambda a: a / a.sum())


@given(shares, shares, shares)
def test_total_variation_is_a_distance(a, b, c):
    assert total_variation(a, a) == 0 and abs(total_variation(a, b) - total_variation(b, a)) < 1e-12
    assert 0 <= total_variation(a, c) <= total_variation(a, b) + total_variation(b, c) + 1e-12 <= 2 + 1e-12


def test_more_uneven_means_farther_from_uniform():
    values = [total_variation(cluster_shares(np.repeat([0, 1, 2], n), 3)) for n in ([4, 4, 4], [6, 4, 2], [10, 1, 1])]
    assert values == sorted(values) and values[0] == 0 and values[1] < values[2]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_nearest_cluster_is_what_kmeans_says(metric):
    X = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    km = KMeans(6, metric=metric, random_state=0).fit(X)
    assert (nearest_cluster(X, km.cluster_centers_, metric) == km.predict(X)).all()


def test_uniform_distance_shrinks_with_the_root_of_n():
    assert abs(uniform_distance(4000, 10) / uniform_distance(1000, 10) - 0.5) < 0.05


def test_map_is_fixed_and_far_groups_stay_apart():
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 60)
    X = rng.normal(size=(120, 6)) + 30 * groups[:, None]
    fitted = FeatureMap(perplexity=10, n_iter=100).fit(X)
    before = fitted.embedding_.copy()
    placed = fitted.transform(X[::7] + 0.01)
    assert np.array_equal(before, fitted.embedding_) and placed.shape == (18, 2)
    nearest = np.linalg.norm(placed[:, None] - before, axis=2).argmin(1)
    assert (groups[nearest] == groups[::7]).all()


def test_map_needs_enough_samples():
    with pytest.raises(ValueError, match="too few for perplexity 30"):
        FeatureMap().fit(np.zeros((90, 3)))

"""k-means: agreement with scikit-learn, determinism, degenerate and bad input."""
import os
import subprocess
import sys

import numpy as np
import pytest
import sklearn.cluster
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from diffprune.core.checks import check_features
from diffprune.features.cluster import KMeans, choose_k, default_ks, distances_to, inertia_curve, knee

X, TRUTH = make_blobs(400, centers=6, n_features=10, random_state=1)
X = X.astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_finds_blobs(metric):
    km = KMeans(6, metric=metric, random_state=0).fit(X)
    assert adjusted_rand_score(TRUTH, km.labels_) == 1
    assert (km.predict(X) == km.labels_).all() and (km.fit_predict(X) == km.labels_).all()


def test_inertia_of_sklearn():
    start = X[:6]
    ours, theirs = KMeans(6, init=start, tol=0).fit(X), sklearn.cluster.KMeans(6, init=start, n_init=1, tol=0).fit(X)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-3)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), atol=1e-2)


def test_uses_all_samples():
    many = np.concatenate([np.zeros((5000, 2)), np.full((5000, 2), 8.0), np.full((3, 2), 100.0)]).astype(np.float32)
    km = KMeans(3, random_state=0).fit(many)
    assert sorted(np.bincount(km.labels_)) == [3, 5000, 5000]
    one = KMeans(1, random_state=0).fit(many)
    np.testing.assert_allclose(one.cluster_centers_[0], many.mean(0), rtol=1e-4)


def test_deterministic_and_cloneable():
    a, b = (KMeans(7, n_init=2, random_state=5).fit(X) for _ in range(2))
    assert (a.labels_ == b.labels_).all() and a.inertia_ == b.inertia_
    assert (clone(a).fit(X).cluster_centers_ == a.cluster_centers_).all()
    rng = np.random.RandomState(0)
    assert KMeans(7, n_init=1, random_state=rng).fit(X).inertia_ != KMeans(7, n_init=1, random_state=rng).fit(X).inertia_


def test_more_starts_are_not_worse():
    inertias = [KMeans(12, n_init=n, random_state=0).fit(X).inertia_ for n in (1, 3, 6)]
    assert inertias == sorted(inertias, reverse=True)


def test_no_empty_cluster():
    spread = np.concatenate([np.zeros((50, 2)), np.ones((1, 2)), 2 * np.ones((1, 2))]).astype(np.float32)
    with pytest.warns(UserWarning, match="10 clusters were asked for, 3 are left"):
        km = KMeans(10, random_state=0).fit(spread)
    assert len(km.cluster_centers_) == 3 and np.bincount(km.labels_).min() >= 1 and km.inertia_ == 0


def test_as_many_clusters_as_samples():
    km = KMeans(400, random_state=0).fit(X)
    assert km.inertia_ == pytest.approx(0, abs=1e-3) and len(np.unique(km.labels_)) == 400
    assert KMeans(1).fit(X[:1]).labels_.tolist() == [0]


def test_distances_of_near_duplicates_are_exact():
    base = np.full((1, 16), 1000, np.float32)
    near = base + np.float32(2**-10)
    assert distances_to(near, base, np.array([0]))[0] == 4 * 2**-10


@pytest.mark.parametrize("bad", [np.zeros(4), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 2, 2)),
                                 [[np.nan, 1]] * 30, [[np.inf, 1]] * 30])
def test_bad_features(bad):
    with pytest.raises(ValueError): check_features(bad, min_samples=1, dtype=np.float32)
    with pytest.raises(ValueError): KMeans(2).fit(bad)


@pytest.mark.parametrize("kwargs", [dict(n_clusters=0), dict(n_clusters=2.5), dict(n_clusters=401), dict(metric="l1"), dict(init="random"),
                                    dict(init=np.zeros((3, 10))), dict(n_init=0), dict(max_iter=0)])
def test_bad_settings(kwargs):
    with pytest.raises(ValueError): KMeans(**{"n_clusters": 6, **kwargs}).fit(X)


def test_bad_use():
    with pytest.raises(Exception, match="not fitted"): KMeans(2).predict(X)
    with pytest.raises(ValueError, match="features"): KMeans(2).fit(X).predict(X[:, :3])


def test_refit_with_other_width():
    km = KMeans(2).fit(X)
    assert km.fit(X[:, :3]).n_features_in_ == 3


def test_choose_k():
    assert choose_k(X, range(2, 14), random_state=0) == 6
    assert (np.diff(inertia_curve(X, [2, 4, 6], random_state=0)) < 0).all()
    assert knee([2, 4, 8, 16], [100, 20, 15, 10]) == 4
    assert default_ks(16)[-1] == 4 and default_ks(10**6)[-1] == 64 and (np.diff(default_ks(100)) > 0).all()
    with pytest.raises(ValueError): default_ks(15)
    with pytest.raises(ValueError): knee([1, 2], [2, 1])


def test_all_threads_are_used():
    "In a process of its own: a limit on one library's threads was once taken for the number that there are."
    code = ("import faiss, numpy as np, diffprune.features.cluster as c\n"
            "pool, asked = c.ThreadPoolExecutor, []\n"
            "c.ThreadPoolExecutor = lambda n: asked.append(n) or pool(n)\n"
            "X = np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32)\n"
            "for _ in range(2): c.assign(X, X[:4], means=True)\n"
            "assert asked == [3, 3] == [faiss.omp_get_max_threads()] * 2, asked\n")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "3"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Edge cases, properties and parity of the metrics: checks, moments, neighbours, coverage, Vendi, kernel and class scores."""
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from sklearn.utils import check_random_state
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from vendi_score import vendi

from diffprune.core.checks import check_feature_pair, check_features, check_images, to_uint8
from diffprune.metrics import evaluate as M
from diffprune.metrics.coverage import ball_metrics
from diffprune.metrics.fidelity import inception_score, kernel_distance
from diffprune.metrics.frechet import (
    FrechetDraws,
    _frechet_from_few,
    _psd_factor,
    _trace_sqrt_product,
    feature_stats,
    frechet_distance,
    load_stats,
    save_stats,
)
from diffprune.metrics.vendi import hill_number, vendi_score

seeds = st.integers(0, 2**32 - 1)


def relu_features(n, d, seed, shift=0.0, dtype=np.float32):
    "Features such as a network gives: non-negative, far from centred, of uneven scale."
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.standard_normal((n, d)) + 0.4 + shift, 0) * np.geomspace(1, 0.1, d)
    return X.astype(dtype)


# checks

@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.uint16, bool])
def test_images_of_another_dtype(dtype):
    with pytest.raises(ValueError, match="uint8"): check_images(np.ones((2, 3, 4, 4), dtype))


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 1, 4, 4), (2, 4, 4, 3), (3, 4, 4), (2, 3, 0, 4)])
def test_images_of_another_shape(shape):
    with pytest.raises(ValueError, match="shape"): check_images(np.full(shape, 7, np.uint8))


def test_unscaled_cast_is_seen_only_if_all_images_are_so():
    dark = np.zeros((600, 3, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="no value above 1"): check_images(dark)
    dark[-1, 0, 0, 0] = 2
    assert check_images(dark) is dark
    assert check_images(torch.from_numpy(dark)).dtype == torch.uint8


@given(st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_to_uint8_never_wraps(x):
    (u,) = to_uint8(torch.tensor([x])).tolist()
    assert u == min(255, max(0, round(127.5 * (np.clip(np.float32(x), -1, 1) + 1)))) or abs(127.5 * (x + 1) % 1 - 0.5) < 1e-4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_must_be_finite(bad):
    X = np.zeros((5, 2)); X[3, 0] = bad
    with pytest.raises(ValueError, match="row 3"): check_features(X, block=2)
    for metric in (M.vendi_score, M.feature_stats):
        with pytest.raises(ValueError, match="row 3"): metric(X)
    for metric in (M.frechet_distance, M.precision_recall, M.density_coverage, M.kernel_distance):
        with pytest.raises(ValueError, match="generated features must be finite"): metric(X, np.zeros((5, 2)))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("metric", [M.frechet_distance, M.precision_recall, M.density_coverage, M.kernel_distance])
def test_empty_and_one_image_sets(metric, n):
    with pytest.raises(ValueError, match=f"real features must hold at least 2 samples, got {n}"): metric(np.zeros((9, 3)), np.zeros((n, 3)))


def test_dimensions_must_agree():
    for metric in (M.frechet_distance, M.precision_recall, M.density_coverage, M.kernel_distance):
        with pytest.raises(ValueError, match="one backbone"): metric(np.zeros((9, 3)), np.zeros((9, 4)))
    assert [a.shape for a in check_feature_pair(torch.zeros(4, 2), np.zeros((3, 2)))] == [(4, 2), (3, 2)]


# Fréchet distance

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n, d", [(3000, 64), (2000, 256), (40_000, 32)])
def test_frechet_equals_torch_fidelity(n, d, dtype):
    a, b = relu_features(n, d, 0, 0.1, dtype), relu_features(n, d, 1, dtype=dtype)
    stats = [fid_features_to_statistics(torch.from_numpy(x).double()) for x in (a, b)]
    assert frechet_distance(a, b) == pytest.approx(fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"], rel=1e-6)


def test_frechet_with_fewer_samples_than_dimensions():
    a, b = relu_features(40, 128, 0, 0.2, np.float64), relu_features(60, 128, 1, dtype=np.float64)
    with pytest.warns(UserWarning, match="rank 39 at most"): value = frechet_distance(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert value == pytest.approx(frechet_distance(feature_stats(a), feature_stats(b)), rel=1e-9)
        assert frechet_distance(a, relu_features(500, 128, 2)) > 0
    covs = [np.cov(x, rowvar=False) for x in (a, b)]
    root = np.sqrt(np.maximum(linalg.eigvals(covs[0] @ covs[1]).real, 0)).sum()
    direct = np.sum((a.mean(0) - b.mean(0))**2) + np.trace(covs[0]) + np.trace(covs[1]) - 2 * root
    assert value == pytest.approx(direct, rel=1e-5)


@given(seeds, st.integers(2, 12), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_frechet_is_a_distance_of_moments(seed, n, d):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((n, d)), 2 * rng.standard_normal((n + 3, d)) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forth, back = frechet_distance(a, b), frechet_distance(b, a)
        assert forth >= 0 and forth == pytest.approx(back, rel=1e-5, abs=1e-6)
        assert _frechet_from_few(a, b) == pytest.approx(forth, rel=1e-5, abs=1e-6)
        rotation = linalg.qr(rng.standard_normal((d, d)))[0]
        assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(forth, rel=1e-5, abs=1e-6)


def test_constant_features_have_a_distance():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frechet_distance(np.zeros((10, 2)), np.ones((10, 2))) == pytest.approx(2)
    assert _psd_factor(np.zeros((2, 2))).shape == (2, 0) and _trace_sqrt_product(np.zeros((2, 2)), np.eye(2)) == 0


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("n, m, d", [(70, 60, 8), (5, 60, 8), (70, 3, 8), (5, 3, 8), (30, 2, 1)])
def test_a_set_of_equal_rows_costs_no_metric(value, n, m, d):
    X, same = np.random.default_rng(0).standard_normal((n, d)), np.full((max(n, m), d), value)
    for generated, real in ((X, same[:m]), (same[:n], X), (same[:n], same[:m])):
        few = M.unmeasurable(len(generated), len(real), d)
        for found in (M.evaluate(generated, real), {k: i.value for k, i in M.measure(generated, real, n_draws=3).items()}):
            assert {k for k, v in found.items() if np.isnan(v)} == few.keys() & found.keys()
            if "fd" not in few: assert found["fd"] == pytest.approx(M.frechet_distance(generated, real), rel=1e-6, abs=1e-9)


def test_moments_of_a_memory_map(tmp_path):
    X = relu_features(1000, 8, 0)
    np.save(tmp_path / "X.npy", X)
    mapped = feature_stats(np.load(tmp_path / "X.npy", mmap_mode="r"), block=77)
    assert np.allclose(mapped.cov, np.cov(X, rowvar=False), rtol=1e-12) and mapped.n == 1000
    assert load_stats(save_stats(mapped, tmp_path / "s.npz")).cov.tolist() == mapped.cov.tolist()
    with pytest.raises(FileNotFoundError): load_stats(tmp_path / "absent.npz")


# precision, recall, density, coverage

@pytest.mark.parametrize("k", [1, 3, 7])
def test_precision_recall_equals_torch_fidelity(k):
    a, b = relu_features(300, 24, 0, 0.1), relu_features(260, 24, 1)
    theirs = prc_features_to_metric(torch.from_numpy(a).double(), torch.from_numpy(b).double(), prc_neighborhood=k, verbose=False)
    ours = M.precision_recall(a, b, k)
    assert sorted(ours[:2]) == pytest.approx(sorted([theirs["precision"], theirs["recall"]]), rel=1e-6)
    assert ours.f_score == pytest.approx(theirs["f_score"], rel=1e-6)


def test_collapse_has_high_precision_and_low_recall():
    rng = np.random.default_rng(0)
    real, collapsed, diffuse = rng.standard_normal((400, 6)), 0.2 * rng.standard_normal((400, 6)), 3 * rng.standard_normal((400, 6))
    assert M.precision_recall(collapsed, real).precision > 0.95 and M.precision_recall(collapsed, real).recall < 0.1
    assert M.precision_recall(diffuse, real).precision < 0.3 and M.precision_recall(diffuse, real).recall > 0.6
    assert M.density_coverage(collapsed, real).density > 1 and M.density_coverage(collapsed, real).coverage < 0.3


def test_one_repeated_sample():
    real = np.random.default_rng(0).standard_normal((50, 3))
    assert M.precision_recall(np.repeat(real[:1], 20, 0), real)[:2] == (1.0, 1 / 50)


# Vendi score

@given(seeds, st.integers(1, 12), st.integers(1, 8), st.sampled_from([0, 0.3, 1, 2, np.inf]))
@settings(max_examples=50, deadline=None)
def test_vendi_lies_between_one_and_n(seed, n, d, q):
    X = np.random.default_rng(seed).standard_normal((n, d))
    value = vendi_score(X, q)
    assert 1 - 1e-9 <= value <= min(n, d) + 1e-9
    assert vendi_score(np.concatenate([X, X]), q) == pytest.approx(value, rel=1e-9)
    assert vendi_score(3 * X[::-1], q) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("n, d", [(200, 12), (12, 200), (30, 30)])
def test_vendi_equals_the_package(n, d):
    X = relu_features(n, d, 0, dtype=np.float64)
    assert vendi_score(X) == pytest.approx(vendi.score_X(X), rel=1e-9)
    assert vendi_score(X.astype(np.float32)) == pytest.approx(vendi.score_X(X), rel=1e-5)


def test_rbf_limits():
    X = np.arange(10.0)[:, None] * 100
    assert vendi_score(X, kernel="rbf", sigma=1.0) == pytest.approx(10)
    assert vendi_score(X, kernel="rbf", sigma=1e9) == pytest.approx(1)
    assert vendi_score(X[:1], kernel="rbf") == 1
    with pytest.raises(ValueError, match="at most max_rbf=5"): vendi_score(X, kernel="rbf", max_rbf=5)


@pytest.mark.parametrize("q", [-1, float("nan")])
def test_orders_out_of_range(q):
    with pytest.raises(ValueError, match="q must lie"): hill_number(np.array([1.0]), q)


# kernel distance and class score

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernel_distance_equals_torch_fidelity(dtype):
    a, b = relu_features(200, 24, 0, 0.1, dtype), relu_features(260, 24, 1, dtype=dtype)
    tensors = torch.from_numpy(a).double(), torch.from_numpy(b).double()
    theirs = kid_features_to_metric(*tensors, kid_subsets=5, kid_subset_size=100, verbose=False)
    expected = theirs["kernel_inception_distance_mean"], theirs["kernel_inception_distance_std"]
    assert kernel_distance(a, b, 5, 100) == pytest.approx(expected, rel=1e-9)


def test_inception_score_equals_torch_fidelity():
    logits = 3 * np.random.default_rng(0).standard_normal((101, 7)).astype(np.float32)
    theirs = isc_features_to_metric(torch.from_numpy(logits))
    assert inception_score(logits) == pytest.approx((theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-9)


# names and the whole

def test_fid_is_said_of_inception_only():
    assert M.metric_name("fd", "inception") == "FID" and M.metric_name("kid", "inception") == "KID"
    for backbone in ("lite0", "clip", "dinov2"):
        assert all("FID" not in M.metric_name(m, backbone) and backbone in M.metric_name(m, backbone) for m in M.METRIC_NAMES)


def test_evaluate_warns_of_singular_moments_and_keeps_global_randomness():
    a, b = relu_features(20, 32, 0), relu_features(20, 32, 1)
    before = np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    with pytest.warns(UserWarning, match="rank 19"): out = M.evaluate(a, b, kd_subset_size=20)
    assert np.isnan(out["fd_infinity"]) and "inception_score" not in out
    assert out.reasons == {"fd_infinity": "needs at least 48 generated images, there are 20"}
    assert before == (np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())


# intervals: every metric of every draw computed anew, from the features of the draw alone, is the slow reference

def slowly(generated, real, logits, k, k_density, subsets, subset_size, points):
    "All metrics of one set, one after the other, sharing nothing."
    n, d = generated.shape
    stats = feature_stats(real)
    out = {"fd": frechet_distance(generated, stats)}
    if n >= d + 16:
        sizes, rng = np.round(1 / np.linspace(1 / max(d + 1, n // 10), 1 / n, points)).astype(int), check_random_state(0)
        line = [frechet_distance(generated[np.sort(rng.permutation(n)[:m])], stats) for m in sizes]
        out["fd_infinity"] = np.polyfit(1 / sizes, line, 1)[1]
    out["kid"] = kernel_distance(generated, real, subsets, subset_size, 0).mean
    out["inception_score"] = inception_score(logits, random_state=0).mean
    return out | M.precision_recall(generated, real, k)._asdict() | M.density_coverage(generated, real, k_density)._asdict() | {
        "vendi": vendi_score(generated)}


def slow_intervals(generated, real, logits, n_draws, k=3, k_density=5):
    "What `measure` returns, by the bootstrap of `slowly`."
    n, m, d = len(generated), len(real), generated.shape[1]
    draw = lambda rows: slowly(rows[:, :d], real, rows[:, d:], k, k_density, 10, min(1000, n // 2, m), 5)
    found = M.bootstrap(draw, np.concatenate([generated, logits], 1), n_draws=n_draws, random_state=0)
    value = slowly(generated, real, logits, k, k_density, 100, min(1000, n, m), 15)
    return {name: (value[name], value[name] + i.low - i.value, value[name] + i.high - i.value, i.std) for name, i in found.items()}


def spoiled(how, n, m, d, dtype=np.float64):
    "Generated and real features with a trait that some metric may stumble over."
    generated, real = relu_features(n, d, 0, 0.1, dtype), relu_features(m, d, 1, dtype=dtype)
    if how == "repeated": generated = generated[np.arange(n) // 3]
    if how == "copied": generated[::2] = real[:len(generated[::2])]
    if how == "flat": generated, real = generated - generated * (np.arange(d) < 4), real - real * (np.arange(d) < 4)
    if how == "generated flat": generated = generated - generated * (np.arange(d) < 4)
    if how == "far": generated = generated + dtype(30)
    if how == "narrow": generated = (1e-3 * generated + real[:1]).astype(dtype)
    if how == "one": generated = generated[np.zeros(n, int)]
    return generated, real


@pytest.mark.parametrize("how, n, m, d, k", [
    ("plain", 300, 400, 24, 3), ("plain", 131, 90, 24, 4), ("plain", 90, 70, 120, 3), ("plain", 150, 80, 100, 3),
    ("repeated", 240, 200, 16, 3), ("repeated", 60, 70, 80, 3), ("copied", 200, 240, 16, 3), ("flat", 200, 240, 16, 3),
    ("generated flat", 200, 240, 16, 3), ("far", 200, 240, 16, 3), ("narrow", 200, 240, 16, 3), ("one", 120, 150, 8, 3),
    ("plain", 40, 50, 12, 19), ("plain", 40, 9, 12, 3)])
def test_intervals_equal_the_slow_bootstrap(how, n, m, d, k):
    generated, real = spoiled(how, n, m, d)
    logits = np.zeros((n, 4)) if how == "one" else 3 * relu_features(n, 7, 5, dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = M.measure(generated, real, logits, n_draws=12, k=k)
        expected = slow_intervals(generated, real, logits, 12, k)
    assert set(found) - {"fd_infinity"} == set(expected) - {"fd_infinity"} and list(found) == [m for m in M.METRIC_NAMES if m in found]
    if "fd_infinity" not in expected: assert np.isnan(found["fd_infinity"].low) and found.reasons["fd_infinity"]
    for name, values in expected.items(): assert found[name] == pytest.approx(values, rel=1e-6, abs=1e-6), name


def test_intervals_of_float32_features_and_of_a_memory_map(tmp_path):
    generated, real = spoiled("copied", 300, 400, 32, np.float32)
    logits = generated[:, :9] * 4
    np.save(tmp_path / "real.npy", real)
    mapped = np.load(tmp_path / "real.npy", mmap_mode="r")
    radii = {k: M.ball_radii(real, k) for k in (3, 5)}
    found, expected = M.measure(generated, mapped, logits, feature_stats(real), radii, 12), slow_intervals(generated, real, logits, 12)
    for name, values in expected.items(): assert found[name] == pytest.approx(values, rel=1e-6, abs=1e-6), name
    assert M.evaluate(generated, real, logits, kd_subset_size=300) == {name: i.value for name, i in found.items()}


@given(seeds, st.integers(6, 40), st.integers(6, 40), st.integers(1, 4), st.sampled_from([1, 3]))
@settings(max_examples=30, deadline=None)
def test_balls_of_draws_with_ties(seed, n, m, d, k):
    rng = np.random.default_rng(seed)
    generated, real = (rng.integers(0, 3, (c, d)).astype(np.float64) for c in (n, m))  # many equal samples and distances
    draws = [np.arange(n), np.sort(rng.permutation(n)[:5]), np.sort(rng.integers(0, n, n))]
    found = ball_metrics(generated, real, draws, k, 2, block=(7, 9))
    for b, rows in enumerate(draws):
        expected = M.precision_recall(generated[rows], real, k)._asdict() | M.density_coverage(generated[rows], real, 2)._asdict()
        assert [found[name][b] for name in expected] == pytest.approx(list(expected.values()), abs=1e-12)


def test_frechet_of_draws_of_few_distinct_samples():
    X, real = relu_features(60, 40, 0, dtype=np.float64), feature_stats(relu_features(500, 40, 1, dtype=np.float64))
    draws = FrechetDraws(X, real)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in (np.repeat([0, 1], 30), np.repeat(np.arange(20), 3), np.zeros(5, int), np.arange(2), np.r_[np.arange(41), 0]):
            assert draws.distance(rows) == pytest.approx(frechet_distance(X[rows], real), rel=1e-7)


def test_frechet_of_draws_without_the_roots_of_rounding_errors():
    rng = np.random.default_rng(0)
    real, X = rng.standard_normal((900, 300)), np.repeat(rng.standard_normal((30, 300)), 20, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        factor = linalg.cholesky(np.cov(real, rowvar=False), lower=True)
        nuclear = linalg.svdvals((X - X.mean(0)) @ factor).sum() / 599**0.5
        direct = np.sum((X.mean(0) - real.mean(0))**2) + X.var(0, ddof=1).sum() + real.var(0, ddof=1).sum() - 2 * nuclear
        found = FrechetDraws(X, real).distance(np.arange(600))
    assert abs(found - direct) < 1e-9 * nuclear  # the roots of 271 eigenvalues that should be zero would add more


@pytest.mark.parametrize("change, message", [
    (dict(k=0), "k must lie in"), (dict(k_density=-1), "k must lie in"), (dict(n_draws=1), "n_draws >= 2"),
    (dict(level=1.0), "a level in"), (dict(logits=np.zeros((9, 3))), "40 generated features, got 9"),
    (dict(real_radii={3: np.ones(4)}), r"shape \(50,\)")])
def test_bad_options_of_measure(change, message):
    generated, real = spoiled("plain", 40, 50, 12)
    with pytest.raises(ValueError, match=message): M.measure(generated, real, **change)


def test_too_few_samples_for_some_metrics_leave_the_others():
    generated, real = spoiled("plain", 40, 50, 12)
    whole = M.measure(generated, real, generated[:, :3])
    for change, lost, no_interval in [
            (dict(k=20), [], ["recall", "f_score"]), (dict(k_density=50), ["density", "coverage"], []),
            (dict(k=60), ["precision", "recall", "f_score"], [])]:
        found = M.measure(generated, real, generated[:, :3], **change)
        assert list(found) == list(whole)
        for m, i in found.items():
            if m in lost: assert np.isnan(i).all() and "needs at least" in found.reasons[m]
            elif m in no_interval: assert np.isfinite(i.value) and np.isnan(i.low) and "no interval" in found.reasons[m]
            elif m not in change and m not in ("precision", "recall", "f_score", "density", "coverage"):
                assert i == pytest.approx(whole[m], nan_ok=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("m", [1, 2, 3, 6, 60])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 7, 20, 60])
def test_any_number_of_images_gives_what_can_be_had(n, m):
    generated, real = relu_features(n, 9, 0, 0.1), relu_features(m, 9, 1)
    found = M.measure(generated, real, generated[:, :4], n_draws=3)
    names = [name for name in M.METRIC_NAMES if name not in ("fd_train", "fd_heldout")]
    assert list(found) == names and list(M.evaluate(generated, real, generated[:, :4])) == list(found)
    few = M.unmeasurable(n, m, 9)
    for name, i in found.items():
        assert np.isnan(i.value) == (name in few), name
        if np.isnan(i).any(): assert "image" in found.reasons[name], name
    assert not n or np.isfinite(found["vendi"].value)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        M.measure(generated, real, generated[:, :4], n_draws=3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", [0, np.nan, np.inf, -np.inf])
def test_one_odd_generated_sample_costs_no_metric(value):
    generated, real = spoiled("plain", 80, 90, 12)
    spoilt = np.insert(generated, 17, value, axis=0)
    found, without = M.measure(spoilt, real, spoilt[:, :4], n_draws=4), M.measure(generated, real, generated[:, :4], n_draws=4)
    assert np.isfinite(list(found.values())).all() and not found.reasons and bool(found.notes) == (value != 0)
    if value != 0: assert found == without and "NaN or infinity in row 17 of their features" in found.notes[0]


def test_one_metric_that_fails_leaves_the_others(monkeypatch):
    generated, real = spoiled("plain", 80, 90, 12)
    whole = M.evaluate(generated, real)
    def broken(*_, **__): raise np.linalg.LinAlgError("SVD did not converge")
    for name, lost in (("FrechetDraws", {"fd", "fd_infinity"}), ("VendiDraws", {"vendi"}), ("kernel_distances", {"kid"}),
                       ("ball_metrics", {"precision", "recall", "f_score", "density", "coverage"})):
        with monkeypatch.context() as m:
            m.setattr(M, name, broken)
            found = M.evaluate(generated, real)
        assert set(found.reasons) == lost and {found.reasons[x] for x in lost} == {"SVD did not converge"}
        assert {x: v for x, v in found.items() if x not in lost} == {x: v for x, v in whole.items() if x not in lost}

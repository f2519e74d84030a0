"""The field's selectors against slow, obvious versions on small sets, on memory maps, and by the commands."""
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf
from typer.testing import CliRunner

from diffprune.cli import app
from diffprune.pruning.condense_pruners import Classified, GADCPruner, condensed, enlarged_statistics, enlarged_transport
from diffprune.pruning.drop_pruners import DropClusterPruner, drop_quotas, oversampled
from diffprune.pruning.gaussian_pruners import GaussianPruner, gaussian_log_density, shrunk_moments
from diffprune.pruning.hierarchy_pruners import HierarchyPruner, hierarchical_quotas, nearest_members, resampled_kmeans
from diffprune.pruning.kernel_pruners import (
    BalancedKernelPruner,
    KernelPruner,
    equal_quotas,
    fourier_features,
    kernel_order,
    median_bandwidth,
)
from diffprune.pruning.normalised_pruners import ema_scores, learnability_scores, ratio_scores
from diffprune.pruning.rank_pruners import D2CPruner, ShiftedGaussianPruner, noise_error_scores, shifted_gaussian_priority
from diffprune.pruning.registry import make_pruner, parse_method, scoring_method
from diffprune.pruning.zcore_pruners import ZCorePruner, column_statistics, zcore_draws, zcore_votes
from diffprune.study.runs import Run
from diffprune.study.study import Study

EMBEDDED = ("gaussian", "zcore", "kernel", "balancedkernel", "dropcluster", "hierarchy", "gadc")
SCORED = ("emaloss", "emagrad", "ratioloss", "ratiograd", "learnability", "d2c", "shiftgauss")
seeds, few_seeds = st.integers(0, 10**6), settings(max_examples=15, deadline=None)


def features(seed, n=30, d=4): return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@few_seeds
@given(seeds, st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_running_means_one_visit_at_a_time(seed, n_times, n_noise, shards):
    rng, n = np.random.default_rng(seed), 25
    times = np.repeat(np.arange(1, n_times + 1) / 9, n_noise)
    values, order = rng.lognormal(size=(n, len(times))), rng.permutation(n)
    expected, states = np.empty(n), [dict.fromkeys(times, 1.0) for _ in range(shards)]
    for visit, i in enumerate(order):
        e = states[visit % shards]
        a = {t: values[i, times == t].mean() for t in e}
        expected[i] = np.mean([a[t] / (e[t] + 1e-8) for t in e])
        for t in e: e[t] = 0.9 * e[t] + 0.1 * a[t]
    np.testing.assert_allclose(ema_scores(values, times, order, shards).values, expected)
    means = {t: np.mean([values[i, times == t].mean() for i in range(n)]) for t in times}
    ratio = [np.mean([values[i, times == t].mean() / means[t] for t in sorted(set(times))]) for i in range(n)]
    np.testing.assert_allclose(ratio_scores(values, times).values, ratio)


def test_times_with_unequal_numbers_of_noises_count_alike():
    values, times = np.array([[1.0, 3, 8], [3, 1, 2]]), [0.2, 0.2, 0.8]
    for found in (ratio_scores(values, times), ema_scores(values, times)):
        np.testing.assert_allclose(found.per_draw.mean(1), found.values)
    np.testing.assert_allclose(ratio_scores(values, times).values, [(1 + 8 / 5) / 2, (1 + 2 / 5) / 2])


def test_the_order_of_visits_moves_running_means_alone():
    values, mixed = np.random.default_rng(0).lognormal(size=(60, 4)), np.random.default_rng(1).permutation(60)
    times = [0.2, 0.4, 0.6, 0.8]
    np.testing.assert_allclose(ratio_scores(values[mixed], times).values, ratio_scores(values, times).values[mixed])
    assert not np.allclose(ema_scores(values[mixed], times).values, ema_scores(values, times).values[mixed])


def test_what_is_learnt_in_between():
    losses = np.random.default_rng(0).lognormal(size=(4, 9, 2))
    gain = losses[1] - losses[3]
    expected = ((gain - gain.mean(0)) / gain.std(0)).mean(1)
    np.testing.assert_allclose(learnability_scores(losses, [0.3, 0.7], early=1).values, expected)
    for early, late in ((3, 1), (2, 2), (0, 9)):
        with pytest.raises(ValueError, match="rising order"): learnability_scores(losses, [0.3, 0.7], early, late)


def test_noise_errors_rise_with_the_loss_and_with_the_square_of_time():
    losses = np.random.default_rng(0).lognormal(size=(2, 7, 3))
    np.testing.assert_allclose(noise_error_scores(losses, [0.1, 0.5, 0.9]).values, losses[-1] @ np.square([0.1, 0.5, 0.9]) / 3)
    worse = losses.copy()
    worse[-1, 3] += 10
    assert noise_error_scores(worse, [0.1, 0.5, 0.9]).values.argmax() == 3  # plus, not minus


@few_seeds
@given(seeds, st.integers(1, 12), st.integers(1, 4))
def test_every_kth_of_each_class(seed, m, k):
    rng = np.random.default_rng(seed)
    difficulty, y = rng.normal(size=100), np.repeat([0, 1], 50)
    if (m - 1) * k >= 50: return
    kept = D2CPruner(step=k, stratify=True).fit(difficulty, y).select(1 - 2 * m / 100).indices
    for c in (0, 1):
        easy_to_hard = sorted(np.flatnonzero(y == c), key=lambda i: difficulty[i])
        assert set(kept[y[kept] == c]) == {easy_to_hard[j * k] for j in range(m)}


def test_a_class_that_is_too_small_for_its_steps():
    with pytest.raises(ValueError, match="10 samples in steps of 20 need 181, there are 100; take a smaller step"):
        D2CPruner(step=20).fit(np.arange(100.0)).select(0.9)


def test_the_shifted_window_over_many_seeds():
    difficulty, counts = np.arange(200.0), np.zeros(200)
    for seed in range(200): counts[ShiftedGaussianPruner(random_state=seed).fit(difficulty).select(0.9).indices] += 1
    place = (np.arange(200) + 0.5) / 200
    assert counts[place < 0.1].sum() == 0 and abs((counts * place).sum() / counts.sum() - 0.6) < 0.02
    middle, flank = counts[(place > 0.55) & (place < 0.65)].mean(), counts[(place > 0.35) & (place < 0.45)].mean()
    assert middle > 1.3 * flank > 0


@pytest.mark.parametrize("stratify", [False, True])
def test_log_densities_are_those_of_scipy(stratify):
    X, y = features(0, 90), np.arange(90) % 3
    found = GaussianPruner(shrinkage=0.0, stratify=stratify).fit(X, y).scores_
    for c in range(3):
        of = y == c if stratify else np.full(90, True)
        expected = multivariate_normal(X[of].mean(0), np.cov(X[of].T, bias=True)).logpdf(X[y == c])
        np.testing.assert_allclose(found[y == c], expected, atol=1e-4)


@pytest.mark.parametrize("n, block", [(5, 2), (60, 7), (60, 8192)])
def test_moments_are_shrunk_like_those_of_scikit_learn(n, block):
    X = features(2, n, 6)
    mean, covariance, s = shrunk_moments(X, block=block)
    expected, shrinkage = ledoit_wolf(X.astype(float))
    assert s == pytest.approx(shrinkage, abs=1e-6)
    np.testing.assert_allclose(covariance, expected, atol=1e-6)
    found = gaussian_log_density(X, mean, covariance, block=block)
    np.testing.assert_allclose(found, multivariate_normal(mean, covariance).logpdf(X), atol=1e-5)


def test_priorities_of_a_shifted_window():
    u = np.random.default_rng(0).random(50)
    priority, place = shifted_gaussian_priority(50, u, 0.5, 0.2, 0.2), (np.arange(50) + 0.5) / 50
    expected = [-0.5 * ((p - 0.5) / 0.2)**2 - np.log(-np.log(v)) for p, v in zip(place, u)]
    np.testing.assert_allclose(priority[10:], expected[10:])
    assert priority[:10].max() < priority[10:].min() and (np.diff(priority[:10]) > 0).all()


def votes_by_sorting(X, dims, points, k, rank):
    X, scores = X.astype(np.float64), np.zeros(len(X))
    for (a, b), point in zip(dims, points):
        order = lambda q: np.lexsort((rank, abs(X[:, a] - q[0]) + abs(X[:, b] - q[1])))
        c = order(point)[0]
        scores[c] += 1
        others = [j for j in order(X[c, [a, b]]) if j != c][:k]
        away = abs(X[others][:, [a, b]] - X[c, [a, b]]).sum(1)
        if len(others) and away[0] == 0: scores[others[0]] -= 1
        elif len(others): scores[others] -= away**-4 / (away**-4).sum()
    return scores


@few_seeds
@given(seeds, st.integers(2, 40), st.sampled_from([1, 3, 1000]), st.integers(0, 3), st.sampled_from([1e-6, 1.2]))
def test_votes_are_those_of_a_sort_for_each_draw(seed, n, k, decimals, memory):
    "Rounded features have many ties and copies."
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 5)).round(decimals).astype(np.float32)
    dims, points = zcore_draws(*column_statistics(X, memory), 60, seed)
    rank = rng.permutation(n)
    np.testing.assert_allclose(zcore_votes(X, dims, points, k, rank, memory), votes_by_sorting(X, dims, points, k, rank), atol=1e-9)


@few_seeds
@given(seeds, st.sampled_from(["mean", "sum"]))
def test_kernel_herding_by_the_definition(seed, residual):
    Z = fourier_features(features(seed), 1.3, 48, seed).astype(np.float64)
    chosen = [i for i, _ in zip(kernel_order(Z.astype(np.float32), residual), range(12))]
    for m, i in enumerate(chosen):
        before = Z[chosen[:m]]
        wanted = Z.mean(0) - (before.mean(0) if m else 0) if residual == "mean" else (m + 1) * Z.mean(0) - before.sum(0)
        free = [j for j in range(len(Z)) if j not in chosen[:m]]
        assert Z[i] @ wanted >= max(Z[j] @ wanted for j in free) - 1e-6  # up to the precision of float32


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_equal_quotas_one_sample_at_a_time(sizes, share):
    seats = int(share * sum(sizes))
    quotas, largest = [seats // len(sizes)] * len(sizes), sorted(range(len(sizes)), key=lambda g: -sizes[g])
    for g in largest[:seats % len(sizes)]: quotas[g] += 1
    quotas = [min(q, s) for q, s in zip(quotas, sizes)]
    turn = itertools.cycle(sorted(range(len(sizes)), key=lambda g: -(sizes[g] - quotas[g])))
    while sum(quotas) < seats:
        g = next(turn)
        if quotas[g] < sizes[g]: quotas[g] += 1
    found = equal_quotas(sizes, seats)
    assert found.tolist() == quotas and found.sum() == seats


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0, 1), seeds)
@settings(max_examples=60, deadline=None)
def test_dropped_clusters_and_what_is_left(sizes, share, seed):
    seats, order = int(share * sum(sizes)), np.random.default_rng(seed).permutation(len(sizes))
    quotas = drop_quotas(sizes, seats, order)
    assert quotas.sum() == seats and (quotas <= sizes).all()
    kept = set(order[:int(np.count_nonzero(quotas[order].cumsum() < seats) + 1)]) if seats else set()
    assert set(np.flatnonzero(quotas)) <= kept | set(order[:int(np.ceil(len(sizes) * np.sqrt(seats / sum(sizes))))])


def test_the_authors_share_is_the_square():
    assert drop_quotas([40] * 10, 200, range(10), "squared").sum() == 100
    assert len(DropClusterPruner(4, share="squared").fit(features(0, 400)).select(0.5)) < 120


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), seeds)
@settings(max_examples=40, deadline=None)
def test_repeated_to_the_size_of_the_largest(groups, seed):
    index, groups = oversampled(groups, random_state=seed), np.array(groups)
    most = np.unique(groups, return_counts=True)[1].max()
    for g in np.unique(groups):
        times = np.bincount(index, minlength=len(groups))[groups == g]
        assert times.sum() == most and np.ptp(times) <= 1


@given(st.lists(st.integers(0, 25), min_size=6, max_size=6), st.floats(0, 1), seeds)
@settings(max_examples=60, deadline=None)
def test_water_from_the_top_down(sizes, share, seed):
    parents, seats = [np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1])], int(share * sum(sizes))
    quotas = hierarchical_quotas(parents, sizes, seats, seed)
    assert quotas.sum() == seats and (quotas <= sizes).all()
    def level(counts, n): return max(x for x in range(n + 1) if sum(min(x, c) for c in counts) <= n)
    def check(counts, got, n):
        x = level(counts, n)
        assert all(g in (min(x, c), min(x + 1, c)) for c, g in zip(counts, got))
    middle, middle_got = np.add.reduceat(sizes, [0, 2, 4]), np.add.reduceat(quotas, [0, 2, 4])
    check([middle[0], middle[1] + middle[2]], [middle_got[0], middle_got[1] + middle_got[2]], seats)
    check(middle[1:], middle_got[1:], int(middle_got[1:].sum()))
    for j in range(3): check(sizes[2 * j:2 * j + 2], quotas[2 * j:2 * j + 2], int(middle_got[j]))


def objective(X, S, ce, alpha, beta, version, kappa=1.05, blur=0.05, n_iter=20, delta=0.7):
    C = cdist(X, X, "sqeuclidean")
    K, v, n = np.exp(-np.vstack([C[S], np.full(len(X), delta)]) / (blur * np.median(C))), np.ones(len(X)), len(X)
    for _ in range(n_iter):
        u = np.append(np.full(len(S), 1 / len(S)), kappa - 1) / (K @ v)
        v = kappa / n / (K.T @ u)
    transport = ((u[:, None] * K * v)[:-1] * C[S]).sum()
    sd = lambda Y: Y.std(0, ddof=1) if len(Y) > 1 else np.zeros(Y.shape[1])
    mean, off = X[S].mean(0) - X.mean(0), sd(X[S]) - sd(X)
    statistics = 6 * (1.25 * mean @ mean + off @ off) if version == "code" else mean @ mean + abs(off).sum()**2
    return transport + alpha * statistics + beta * np.mean(ce[S])


@pytest.mark.parametrize("version", ["code", "text"])
@pytest.mark.parametrize("seed", range(4))
def test_gadc_one_sample_at_a_time(version, seed):
    X, ce = features(seed, 10, 3).astype(float), np.random.default_rng(seed).exponential(size=10)
    L = lambda S: objective(X, S, ce, 0.5, 2.0, version)
    S = []
    for _ in range(3): S.append(min((i for i in range(10) if i not in S), key=lambda i: L([*S, i])))
    greedy, _ = condensed(X, 3, ce, alpha=0.5, beta=2.0, swaps=0, statistics=version)
    assert set(greedy) == set(S)
    for _ in range(30):
        best = min((S[:k] + [j] + S[k + 1:] for k in range(3) for j in range(10) if j not in S), key=L)
        if not L(best) < L(S) - 1e-8: break
        S = best
    kept, history = condensed(X, 3, ce, alpha=0.5, beta=2.0, statistics=version)
    assert set(kept) == set(S) and history[-1] == pytest.approx(L(S)) and history[-1] <= history[0]
    assert all(objective(X, S, ce, 0.5, 2.0, version, delta=d) == pytest.approx(L(S)) for d in (0, 3))  # the dummy's cost cancels


def test_terms_of_gadc_one_set_at_a_time():
    X = features(9, 12, 3).astype(float)
    C, base, rest = cdist(X, X, "sqeuclidean"), [4, 0], [i for i in range(12) if i not in (4, 0)]
    transport = enlarged_transport(C[base], C[rest], 0.05 * np.median(C))
    for version in ("code", "text"):
        statistics = enlarged_statistics(X, base, rest, version)
        expected = [objective(X, [*base, i], np.zeros(12), 0.3, 0, version) for i in rest]
        np.testing.assert_allclose(transport + 0.3 * statistics, expected)


def test_resampling_takes_the_nearest_of_each_cluster():
    X = features(4, 300, 3)
    centers, labels = resampled_kmeans(X, 6, 5, n_resample=3)
    distances = cdist(X.astype(float), centers)
    assert (labels == distances.argmin(1)).mean() > 0.99
    kept = nearest_members(labels, distances[np.arange(300), labels], 5)
    expected = [i for g in range(6) for i in sorted(np.flatnonzero(labels == g), key=lambda i: distances[i, g])[:5]]
    assert kept.tolist() == sorted(expected)


def test_confidence_is_heard_and_has_to_be_given():
    X, y, ce = features(1, 40), np.arange(40) % 2, np.r_[np.zeros(20), np.full(20, 9.0)]
    kept = GADCPruner(stratify=True, beta=1e4).fit(Classified(X, ce), y).select(0.8).indices
    assert (kept < 20).all() and np.bincount(y[kept]).tolist() == [4, 4]
    with pytest.raises(ValueError, match="beta=1 needs cross-entropies"): GADCPruner(beta=1).fit(X)
    with pytest.raises(ValueError, match="NaN or infinit"): GADCPruner().fit(Classified(X, np.full(40, np.nan)))


@pytest.mark.parametrize("pruner", [
    ZCorePruner(n_draws=50), KernelPruner(n_features=16), HierarchyPruner((9, 3), n_resample=1), GADCPruner(cell_size=20, per_cell=5)])
def test_a_memory_map_is_read_and_not_copied(pruner, tmp_path):
    np.save(tmp_path / "x.npy", features(3, 120, 6))
    X = np.load(tmp_path / "x.npy", mmap_mode="r")
    fitted = pruner.fit(X)
    arrays = [a for a in vars(fitted).values() if isinstance(a, np.ndarray) and a.shape == X.shape]
    assert all(np.shares_memory(a, X) for a in arrays) and len(fitted.select(0.5)) == 60
    assert fitted.select(0.5).digest == pruner.fit(np.array(X)).select(0.5).digest


@pytest.mark.parametrize("name", EMBEDDED)
def test_features_of_ones_own_are_pruned_by_the_command(name, tmp_path):
    np.save(tmp_path / "x.npy", features(5, 24, 3))
    out = tmp_path / "kept.csv"
    env = dict(DIFFPRUNE_STORE=str(tmp_path / "store"))
    for suffix in ("", "_inv"):
        args = ["prune", "--features", str(tmp_path / "x.npy"), "-m", name + suffix, "-r", "0.25", "-o", str(out), "--overwrite"]
        done = CliRunner(env=env).invoke(app, args)
        assert done.exit_code == 0, (done.output, done.exception)
        table = pd.read_csv(out, keep_default_na=False)
        assert table.kept.sum() == 18 and (table.reason[~table.kept].str.startswith("pruned by")).all()


def test_a_study_prunes_by_all_of_them(store):
    short = {"vqvae_train.steps": 8, "train.steps": 10, "n_bootstrap": 2, "proxy.epochs": 2, "proxy.n_noise": 2}
    methods = [f"{n}_pixels" for n in EMBEDDED] + list(SCORED)
    study = Study("digits", "smoke", methods, [0.9], metrics_backbone="pixels", overrides=short, store=store, device="cpu", workers=1)
    for method in methods: assert len(set(study.kept(Run(method, 0.9, 0)).tolist())) == 130, method


def test_scores_of_a_proxy_have_the_right_direction():
    rng = np.random.default_rng(0)
    hard = rng.lognormal(0, 1, 200)
    losses, norms = np.stack([hard + 3, hard])[:, :, None] * np.ones(4), hard[::-1, None] * np.ones(4)
    arrays = dict(losses=losses, norms=norms, times=np.arange(1, 5) / 5)
    scores = {n: scoring_method(parse_method(n).method).score(arrays).values for n in SCORED}
    for n in ("ratioloss", "d2c", "shiftgauss"): assert scores[n].argmax() == hard.argmax()
    assert scores["ratiograd"].argmax() == hard[::-1].argmax()
    np.testing.assert_allclose(scores["ratiograd"], (hard[::-1]**2 / (hard**2).mean()))
    assert hard.argmin() in make_pruner("d2c").fit(scores["d2c"]).select(0.9).indices


def test_anchors_then_the_nearest():
    X = features(8, 60)
    pruner = BalancedKernelPruner(3, anchors=2, n_features=16, metric="l2").fit(X)
    kept = pruner.select(0.5).indices
    for g in range(3):
        mine, members = kept[pruner.groups_[kept] == g], np.flatnonzero(pruner.groups_ == g)
        near = members[np.argsort(-pruner.scores_[members])]
        assert set(near[:len(mine) - 2]) <= set(mine)
    assert median_bandwidth(X) == pytest.approx(np.sqrt(np.median(cdist(X, X, "sqeuclidean")[np.triu_indices(60, 1)]) / 2), rel=1e-5)


def test_equal_difficulties_are_drawn_as_independently_as_others():
    "Four levels of equal difficulties: shares of each as under a window over independent uniforms."
    def shares(difficulty):
        kept = [ShiftedGaussianPruner(random_state=seed).fit(difficulty).select(0.9).indices for seed in range(200)]
        return np.bincount(np.concatenate(kept) // 25, minlength=4) / 2000
    np.testing.assert_allclose(shares(np.repeat(np.arange(4.0), 25)), shares(np.arange(100.0)), atol=0.04)


def test_three_levels_of_clusters_with_copies():
    X = np.repeat(np.random.default_rng(0).normal(size=(5, 3)), 12, 0).astype(np.float32)
    assert len(set(HierarchyPruner(levels=(20, 10, 4)).fit(X).select(0.5).indices.tolist())) == 30
    assert hierarchical_quotas([np.array([0, 0, 1, 1]), np.array([0, 0, 1])], [3, 3, 3, 3], 6).sum() == 6


@pytest.mark.parametrize("y", [[0, 0, 1], [0], [[0, 1]], 0])
def test_classes_are_as_many_as_samples(y):
    X = np.random.default_rng(0).normal(size=(6, 2))
    with pytest.raises(ValueError, match="one class for each"): GaussianPruner(stratify=True).fit(X, [0, 0, 0, 1, 1, 1]).score_samples(X, y)

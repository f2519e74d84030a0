"""Every pruner by name: one interface, exact counts, order independence, directions, degenerate and bad input."""
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.base import clone

from diffprune.pruning.agreement import kept_overlap, rank_correlations, stability
from diffprune.pruning.cluster_pruners import (
    ClusterPruner,
    Clusters,
    DensityPruner,
    ModeratePruner,
    PrototypePruner,
    SemDeDupPruner,
    kmeans_by_key,
    preceding_similarity,
    projected_quotas,
)
from diffprune.pruning.difficulty_pruners import CoveragePruner, IntervalPruner, UncertaintyPruner, dynamic_uncertainty
from diffprune.pruning.greedy_pruners import FacilityPruner, HerdingPruner, KCenterPruner
from diffprune.pruning.registry import MEASURED, NEEDS, known_methods, make_pruner, parse_method, scoring_method
from diffprune.pruning.scores import Scores
from diffprune.pruning.select import KEEPS, RandomPruner, n_kept, select
from diffprune.pruning.transport_pruners import TransportPruner, transport_cost, transport_plan, transport_subset

RNG = np.random.default_rng(0)
N = 81
FEATURES = (RNG.normal(size=(N, 6)) + 4).astype(np.float32)
INPUT = {**dict.fromkeys(("nothing", "features", "clusters"), FEATURES), **dict.fromkeys(MEASURED, RNG.lognormal(size=N)),
         "losses": RNG.random((N, 12))}
IDS = np.array([f"id{i:03d}" for i in range(N)])
SETS = ("interval", "coverage", "transport")           # choose a set, have no middle
LIBRARY = [m for m in known_methods() if m.module.startswith("diffprune.")]
NAMES = [f"{m.name}_lite0" if m.embedded else m.name for m in LIBRARY]


def made(name, **options):
    pruner = make_pruner(name, **options)
    return pruner.set_params(n_clusters=4) if "n_clusters" in pruner.get_params() else pruner


def base(name): return name.split("_")[0]


def given_to(name): return INPUT[parse_method(name).method.needs]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 0.9])
def test_exact_counts(name, ratio):
    pruner = made(name).fit(given_to(name))
    for keep in KEEPS:
        if keep == "mid" and base(name) in SETS:
            with pytest.raises(ValueError, match="no middle"): pruner.select(ratio, keep)
            continue
        selection = pruner.select(ratio, keep)
        assert len(selection) == n_kept(N, ratio, keep) == selection.mask.sum() == len(set(selection.indices.tolist()))
        assert (np.diff(selection.indices) > 0).all() and selection.scores.shape == (N,)
    for bad in (1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="pruned share"): pruner.select(bad)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_samples_does_not_matter(name):
    X, mixed = given_to(name), RNG.permutation(N)
    one, two = made(name).fit(X, ids=IDS).select(0.6), made(name).fit(X[mixed], ids=IDS[mixed]).select(0.6)
    assert one.digest == two.digest


@pytest.mark.parametrize("name", [n for n in NAMES if base(n) != "balanced"])
@pytest.mark.parametrize("n", [80, 81])
def test_a_method_and_its_inverse_are_a_partition(name, n):
    pruner = made(name).fit(given_to(name)[:n])
    for ratio in (0.1, 0.3, 0.5, 0.9):
        parts = pruner.select(ratio).indices, pruner.select(1 - ratio, "low").indices
        assert np.sort(np.concatenate(parts)).tolist() == list(range(n))


@pytest.mark.parametrize("keep", KEEPS)
def test_balanced_quotas_are_those_of_their_own_count(keep):
    "To keep the same number of every cluster is what they are for, so the inverse may overlap with the method."
    pruner = made("balanced_lite0").fit(FEATURES)
    groups = np.bincount(pruner.groups_[pruner.select(0.5, keep).indices], minlength=4)
    full = groups == np.bincount(pruner.groups_)
    assert groups.sum() == n_kept(N, 0.5, keep) and np.ptp(groups[~full]) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_estimator_manners(name):
    X, pruner = given_to(name), made(name, random_state=7)
    before = pruner.get_params()
    assert pruner.fit(X) is pruner and pruner.get_params() == before == clone(pruner).get_params()
    assert clone(pruner).fit(X).select(0.7).digest == pruner.select(0.7).digest == pickle.loads(pickle.dumps(pruner)).select(0.7).digest
    with pytest.raises(Exception, match="not fitted"): clone(pruner).select(0.5)
    if base(name) != "transport":
        scores = pruner.score_samples(X)
        assert scores.shape == (N,) and np.isfinite(scores).all()


@pytest.mark.parametrize("name", [n for n in NAMES if "stratify" in made(n).get_params()])
def test_stratified(name):
    y = np.repeat([0, 1, 2], [60, 18, 3])
    pruner = made(name, stratify=True)
    kept = pruner.fit(given_to(name), y).select(0.9)
    assert len(kept) == n_kept(N, 0.9) and set(y[kept.indices]) == {0, 1, 2}
    with pytest.raises(ValueError, match="class labels"): clone(pruner).fit(given_to(name))


@pytest.mark.parametrize("name", NAMES)
def test_bad_input(name):
    X = np.array(given_to(name), float)
    if parse_method(name).method.needs != "nothing":
        for value in (np.nan, np.inf):
            broken = X.copy()
            broken[5] = value
            with pytest.raises(ValueError): made(name).fit(broken)
    with pytest.raises(ValueError): made(name).fit(X[:0])
    with pytest.raises(ValueError): made(name).fit(X, ids=np.zeros(N))
    with pytest.raises(ValueError): made(name).set_params(keep="best").fit(X)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("black", [1, 2, N])
@pytest.mark.parametrize("name", [n for n in NAMES if parse_method(n).method.embedded])
def test_black_images_are_pruned_like_others(name, black, metric):
    "A row of zeros has no direction: it is like other rows of zeros and unlike all else, and stops nothing."
    X, pruner = FEATURES.copy(), made(name)
    X[-black:] = 0
    if "metric" in pruner.get_params(): pruner.set_params(metric=metric)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ratio in (0.25, 0.9): assert len(pruner.fit(X).select(ratio)) == n_kept(N, ratio)
        if base(name) != "transport":
            assert np.isfinite(pruner.score_samples(X)).all() and np.isfinite(pruner.fit(FEATURES).score_samples(X)).all()


def test_of_two_black_images_semdedup_prunes_one_first():
    X = FEATURES.copy()
    X[[3, 70]] = 0
    scores = made("semdedup_lite0").fit(X).scores_
    assert sorted(np.isclose(scores[[3, 70]], -1)) == [False, True]


@pytest.mark.parametrize("name", [n for n in NAMES if parse_method(n).method.needs in ("features", "clusters")])
def test_rows_that_are_not_finite_are_named(name):
    X = FEATURES.copy()
    X[[5, 40]] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in rows 5 and 40"): made(name).fit(X)


@pytest.mark.parametrize("name", NAMES)
def test_duplicates_only(name):
    X = np.ones_like(given_to(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(made(name).fit(X).select(0.5)) == n_kept(N, 0.5)


@pytest.mark.parametrize("name", [n for n in NAMES if "n_clusters" not in made(n).get_params()])
def test_one_sample(name):
    pruner = made(name).fit(given_to(name)[:1])
    assert pruner.select(0).indices.tolist() == [0]
    with pytest.raises(ValueError, match="keeps none"): pruner.select(0.9)


def test_too_few_samples_for_clusters():
    for name in NAMES:
        if "n_clusters" in made(name).get_params():
            with pytest.raises(ValueError, match="too few"): made(name).fit(FEATURES[:3])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 50), st.integers(1, 30)), min_size=1, max_size=7), st.floats(0, 1))
def test_projected_quotas_are_feasible_and_near(groups, share):
    target, sizes = (np.array(v) for v in zip(*groups))
    seats = max(1, int(share * sizes.sum()))
    q = projected_quotas(target / target.sum() * seats, sizes, seats)
    assert q.sum() == seats and (q <= sizes).all() and (q >= (1 if seats >= len(sizes) else 0)).all()


def test_projected_quotas_solve_the_quadratic_program():
    target, sizes, seats = np.array([30.0, 12, 5, 3]), np.array([20, 20, 20, 20]), 50
    real = minimize(lambda q: ((q - target)**2).sum(), sizes / 4, bounds=[(1, s) for s in sizes],
                    constraints=dict(type="eq", fun=lambda q: q.sum() - seats)).x
    assert abs(projected_quotas(target, sizes, seats) - real).max() < 1


def test_density_takes_more_from_complex_clusters():
    rng = np.random.default_rng(1)
    tight, wide = rng.normal(size=(300, 8)) * 0.05 + 5 * np.eye(8)[0], rng.normal(size=(300, 8)) + 5 * np.eye(8)[7]
    pruner = DensityPruner(n_clusters=2, temperature=0.05).fit(np.concatenate([tight, wide]))
    kept = pruner.select(0.8).indices
    assert (kept >= 300).sum() > (kept < 300).sum()


def test_prototypes_are_hard_and_moderate_is_not():
    hard, moderate = (cls(n_clusters=3, metric="l2").fit(FEATURES) for cls in (PrototypePruner, ModeratePruner))
    distance = hard.scores_
    far, between, near = (distance[s.indices].mean() for s in (hard.select(0.8), moderate.select(0.8), hard.select(0.8, "low")))
    assert far > between > near


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_preceding_similarity_by_the_definition(block):
    U = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    expected = [-1] + [max(float(U[i] @ U[j]) for j in range(i)) for i in range(1, N)]
    np.testing.assert_allclose(preceding_similarity(U, block), expected, atol=1e-5)


def test_semdedup_drops_copies_first():
    both = np.concatenate([FEATURES, FEATURES[:20] + 1e-4])
    dropped = ~SemDeDupPruner(n_clusters=3).fit(both).select(20 / len(both)).mask
    assert (dropped[:20] ^ dropped[N:]).all() and dropped.sum() == 20


def test_kcenter_covers_outliers_first():
    X = np.concatenate([FEATURES, [[50.0] * 6, [-50.0] * 6]])
    assert {81, 82} <= set(KCenterPruner().fit(X).select(1 - 3 / 83).indices)


def test_greedy_work_is_shared_between_ratios():
    calls = []

    class Counting(HerdingPruner):
        def _order(self, X, keys):
            for i in super()._order(X, keys):
                calls.append(i)
                yield i
    pruner = Counting().fit(FEATURES)
    pruner.select(0.9), pruner.select(0.5), pruner.select(0.9)
    assert len(calls) == n_kept(N, 0.5)


def test_facility_agrees_with_apricot():
    threads = torch.get_num_threads()  # numba, in apricot, gives PyTorch its own number (findings/)
    apricot = pytest.importorskip("apricot")
    U = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    similarity = np.maximum(U @ U.T, 0).astype(np.float64)
    reference = apricot.FacilityLocationSelection(20, metric="precomputed", optimizer="naive").fit(similarity)
    torch.set_num_threads(threads)
    ours = FacilityPruner().fit(FEATURES).first_chosen(0, 20)
    value = lambda chosen: np.maximum(U @ U[chosen].T, 0).max(1).sum()      # mutual nearest neighbours tie, so values are compared
    assert ours[:8] == reference.ranking[:8].tolist() and value(ours) == pytest.approx(value(reference.ranking), rel=1e-5)


def test_uncertainty_by_the_definition():
    losses = INPUT["losses"].T
    expected = [np.mean([np.sqrt(((w - w.mean())**2).sum() / 3) for w in (losses[e:e + 4, i] for e in range(9))]) for i in range(N)]
    np.testing.assert_allclose(dynamic_uncertainty(losses, 4), expected)
    with pytest.raises(ValueError, match="window"): UncertaintyPruner(window=2.5).fit(losses.T)


def test_interval_and_coverage_spread_over_difficulty():
    difficulty = np.sort(RNG.lognormal(size=2000))
    for pruner in (IntervalPruner(), CoveragePruner(hardest=0)):
        kept = difficulty[pruner.fit(difficulty).select(0.9).indices]
        assert kept[:3].max() < np.quantile(difficulty, 0.2) and kept.max() > np.quantile(difficulty, 0.95)
    assert CoveragePruner(hardest=0.2).fit(difficulty).select(0.9).indices.max() < 1600
    assert IntervalPruner(reach=0.5).fit(difficulty).select(0.9).indices.max() < 1000


@pytest.mark.parametrize("pruner", [
    IntervalPruner(reach=0), IntervalPruner(reach=1.5), CoveragePruner(strata=1.5), CoveragePruner(hardest=-0.1),
    DensityPruner(temperature=-1, n_clusters=2), TransportPruner(capacity=0.9), TransportPruner(cell_size=1)])
def test_bad_settings(pruner):
    with pytest.raises(ValueError): pruner.fit(FEATURES if isinstance(pruner, (DensityPruner, TransportPruner)) else INPUT["proxy"])


def test_transport_improves_and_respects_capacity():
    X = FEATURES.astype(float)
    kept, costs = transport_subset(X, 9)
    assert (np.diff(costs) < 0).all() and costs[-1] == pytest.approx(transport_cost(X, kept)) and len(set(kept)) == 9
    assert costs[-1] < np.mean([transport_cost(X, RNG.choice(N, 9, replace=False)) for _ in range(5)])
    plan = transport_plan(RNG.random((9, N)), 1.5)
    assert plan.sum(0).max() <= 1.5 / N + 1e-9 and plan.sum() == pytest.approx(1)


def test_missing_pot_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install POT"): transport_plan(np.ones((2, 3)))


# What a study does: measurements and clusters first, then one path for all methods. The reference is the path that eight methods used to go
# by themselves: their scores and groups straight into `select`.
M = 203
MEASURED_ARRAYS = dict(losses=RNG.lognormal(size=(5, M, 2)), norms=RNG.lognormal(size=(M, 2)), times=np.array([0.9, 0.9]),
                       influence=RNG.normal(size=(M, 2)), products=RNG.normal(size=(2, 3, M, 2)),
                       learning_rates=np.array([3e-3, 2e-3, 1e-3]))
STUDY_IDS, STUDY_LABELS = np.array([f"img/{i:04d}" for i in RNG.permutation(M)]), RNG.choice(3, M, p=[0.7, 0.25, 0.05])
STUDY_FEATURES, SEED = RNG.normal(size=(M, 5)).astype(np.float32) + 3, 4


@pytest.fixture(scope="module")
def clusters():
    km = kmeans_by_key(STUDY_FEATURES, STUDY_IDS, SEED, 7)
    return Clusters(km.labels_, km.distances_)


def study_input(method, clusters):
    if method.needs in MEASURED: return scoring_method(method).score(MEASURED_ARRAYS).values
    return dict(nothing=STUDY_IDS, features=STUDY_FEATURES, clusters=clusters, losses=MEASURED_ARRAYS["losses"].mean(2).T)[method.needs]


def directly(name, clusters, ratio, labels):
    "The kept indices by the path without pruners."
    v, a = parse_method(name), MEASURED_ARRAYS
    scores = dict(
        random=lambda: RandomPruner(random_state=SEED).fit(STUDY_IDS, ids=STUDY_IDS).scores_,
        monotonicity=lambda: (np.diff(a["losses"], axis=0) > 0).sum(0).mean(1),
        el2n=lambda: (a["losses"][-1] - a["losses"][-1].mean()).mean(1), grand=lambda: (a["norms"] - a["norms"].mean()).mean(1),
        moso=lambda: np.einsum("kmnd,m->n", a["products"], a["learning_rates"]), dtrak=lambda: a["influence"].mean(1),
        cluster=lambda: -clusters.distances, balanced=lambda: -clusters.distances)[v.base]()
    groups, quotas = clusters.labels if v.backbone else None, "balanced" if v.base == "balanced" else "proportional"
    return select(scores, ratio, v.keep, groups, quotas, labels, ids=STUDY_IDS, random_state=SEED)


@pytest.mark.parametrize("name", ["random", "monotonicity", "el2n", "grand", "moso", "dtrak", "cluster_clip", "balanced_clip"])
def test_the_one_path_keeps_what_the_direct_path_kept(name, clusters):
    for suffix in ("", "_mid", "_inv"):
        for ratio in (0.25, 0.5, 0.9):
            for stratify in (False, True):
                labels = STUDY_LABELS if stratify else None
                pruner = make_pruner(name + suffix, random_state=SEED, stratify=stratify)
                kept = pruner.fit(study_input(parse_method(name).method, clusters), labels, ids=STUDY_IDS).select(ratio).indices
                np.testing.assert_array_equal(kept, directly(name + suffix, clusters, ratio, labels))


@pytest.mark.parametrize("name", NAMES)
def test_the_one_path_serves_every_method(name, clusters):
    for suffix in ("", "_mid", "_inv"):
        if suffix == "_mid" and base(name) in SETS: continue
        pruner = make_pruner(name + suffix, random_state=SEED)
        if "n_clusters" in pruner.get_params(): pruner.set_params(n_clusters=7)
        fitted = pruner.fit(study_input(parse_method(name).method, clusters), STUDY_LABELS, ids=STUDY_IDS)
        keep = parse_method(name + suffix).keep
        assert [len(fitted.select(r)) for r in (0.25, 0.5, 0.9)] == [n_kept(M, r, keep) for r in (0.25, 0.5, 0.9)]


def test_every_need_has_a_method_and_scores_have_draws():
    assert {m.needs for m in LIBRARY} == set(NEEDS)
    for m in LIBRARY:
        if m.needs in MEASURED:
            found = scoring_method(m).score(MEASURED_ARRAYS)
            assert isinstance(found, Scores) and found.values.shape == (M,) and found.per_draw.shape == (M, 2)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("quotas", ["proportional", "balanced"])
def test_clusters_may_be_made_before(metric, quotas):
    own = ClusterPruner(n_clusters=6, metric=metric, quotas=quotas, random_state=1).fit(FEATURES, ids=IDS)
    given_clusters = clone(own).fit(Clusters(own.kmeans_.labels_, own.kmeans_.distances_), ids=IDS)
    for keep in KEEPS: assert own.select(0.6, keep).digest == given_clusters.select(0.6, keep).digest
    with pytest.raises(ValueError, match="no centres"): given_clusters.score_samples(FEATURES)
    with pytest.raises(Exception, match="not fitted"): clone(own).score_samples(FEATURES)


@pytest.mark.parametrize("labels, distances", [([0, 1], [1.0]), ([0, 1], [1.0, np.nan]), ([], []), ([[0], [1]], [1.0, 2.0])])
def test_bad_clusters(labels, distances):
    with pytest.raises(ValueError, match="labels|distances"): ClusterPruner().fit(Clusters(np.array(labels), np.array(distances)))


def test_comparisons():
    a, b = made("random", random_state=0).fit(FEATURES, ids=IDS), made("random", random_state=1).fit(FEATURES, ids=IDS)
    table = kept_overlap(dict(a=a.select(0.5), b=b.select(0.5)))
    assert table.loc["a", "a"] == 1 and 0.2 < table.loc["a", "b"] < 0.8
    assert rank_correlations(dict(x=np.arange(9.0), y=-np.arange(9.0)**3)).loc["x", "y"] == pytest.approx(-1)
    with pytest.raises(ValueError, match="at least two"): stability(made("random"), FEATURES, 0.5, seeds=[1])


def test_unknown_method_or_option():
    with pytest.raises(ValueError, match="unknown method"): make_pruner("best")
    with pytest.raises(ValueError, match="no option temperature"): make_pruner("cluster_lite0", temperature=1)

"""Data-copying test, replicated share, authenticity and intervals: directions, boundaries and bad input."""
import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from diffprune.metrics.bootstrap import bootstrap
from diffprune.metrics.copying import copying_statistic, copying_test, mann_whitney_z
from diffprune.metrics.memorization import (
    authenticity,
    control_curve,
    leaked_rows,
    mean_min_distance,
    memorization,
    replicated_share,
    replication_threshold,
    show_nearest,
)
from diffprune.metrics.neighbours import nearest

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    train, heldout, fresh = (rng.standard_normal((n, 8)) for n in (600, 400, 400))
    return train, heldout, fresh, train[:400] + 0.01 * rng.standard_normal((400, 8))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.lists(st.integers(0, 6), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_z_has_the_sign_and_symmetry_of_mann_whitney(a, b):
    a, b = np.array(a, float), np.array(b, float)
    z, u = mann_whitney_z(a, b), mannwhitneyu(a, b).statistic
    assert z == pytest.approx(-mann_whitney_z(b, a), abs=1e-9)
    assert np.sign(round(z, 9)) == np.sign(u - len(a) * len(b) / 2) and np.isfinite(z)


def test_copying_is_negative_and_underfitting_positive(world):
    train, heldout, fresh, copied = world
    assert copying_test(copied, heldout, train, 4, random_state=0).c_t < -5
    assert abs(copying_test(fresh, heldout, train, 4, random_state=0).c_t) < 3
    assert copying_test(3 * fresh, heldout, train, 4, random_state=0).c_t > 5


def test_cells_without_held_out_samples_do_not_count():
    distances, cells = np.linspace(0, 1, 40), np.repeat([0, 1], 20)
    result = copying_statistic(distances, cells, distances[:20], cells[:20], 2)
    assert np.isnan(result.z[1]) and result.c_t == result.z[0] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="no cell holds"): copying_statistic(distances[:5], cells[:5], distances, cells, 2)


@given(st.integers(0, 2**32 - 1), st.integers(50, 300), st.sampled_from([0.02, 0.05, 0.3]))
@settings(max_examples=50, deadline=None)
def test_threshold_holds_its_rate(seed, n, alpha):
    x = np.random.default_rng(seed).integers(0, 30, n).astype(float)
    t = replication_threshold(x, alpha)
    assert (x < t).mean() <= alpha < (x <= t).mean() + 1e-9


def test_false_positive_rate_is_measured_and_near_alpha():
    rng = np.random.default_rng(0)
    shares = [replicated_share(rng.exponential(size=50), rng.exponential(size=1000), 0.05, random_state=i) for i in range(20)]
    rates = [s.false_positive_rate for s in shares]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.01) and len(set(rates)) > 5


def test_a_few_copies_are_counted(world):
    train, heldout, fresh, copied = world
    mixed = np.concatenate([fresh[:380], copied[:20]])
    control = nearest(heldout, train).distances[:, 0]
    found = replicated_share(nearest(mixed, train).distances[:, 0], control, 0.01, random_state=0)
    assert found.excess == pytest.approx(0.05, abs=0.025) and found.n_heldout == 400
    assert mean_min_distance(mixed, train) > 0.9 * mean_min_distance(fresh, train)


def test_smaller_training_sets_are_further_away(world):
    train, heldout, *_ = world
    assert (np.diff(control_curve(heldout, train, [5, 50, 600], random_state=0)) < 0).all()
    with pytest.raises(ValueError, match=r"sizes must lie in \[1, 600\]"): control_curve(heldout, train, [0])


def test_authenticity_of_copies_and_strangers(world):
    train, heldout, fresh, copied = world
    assert authenticity(nearest(train, train), train) == 0
    assert authenticity(nearest(copied, train), train) < 0.01
    assert 0.4 < authenticity(nearest(fresh, train), train) < 0.9
    assert authenticity(nearest(fresh + 50, train), train) == 1


def test_report_is_reproducible_and_complete(world):
    train, heldout, fresh, copied = world
    report = memorization(copied, heldout, train, 0.02, 4, random_state=1)
    assert report == memorization(copied, heldout, train, 0.02, 4, random_state=1)
    assert report.replicated == 1 and report.c_t < -5 and report.distance < 0.1 * report.heldout_distance and report.n_train == 600
    with pytest.raises(ValueError, match="one backbone"): memorization(fresh, heldout[:, :3], train)
    with pytest.raises(ValueError, match="training features must hold"): copying_test(fresh, heldout, train[:3], 4)
    with pytest.raises(ValueError, match="alpha must lie"): memorization(fresh, heldout, train, alpha=1)
    few = memorization(fresh, heldout[:30], train)
    assert np.isnan(few.replicated) and few.reasons["replicated"] == "needs at least 200 held-out images, there are 30"


def test_picture_is_sorted_by_distance():
    rng = np.random.default_rng(0)
    images, train = (rng.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8) for n in (6, 9))
    found = nearest(*(a.reshape(len(a), -1).astype(np.float32) for a in (images, train)), k=2)
    fig = show_nearest(images, train, found, n=4)
    titles = [float(ax.get_title()) for ax in fig.axes[4:8]]
    assert titles == sorted(titles) and len(fig.axes) == 12
    assert np.array_equal(fig.axes[0].images[0].get_array(), images[found.distances[:, 0].argmin()].transpose(1, 2, 0))
    matplotlib.pyplot.close(fig)


def test_interval_of_a_mean_covers():
    rng = np.random.default_rng(0)
    held = [b.low <= 1 <= b.high for b in (bootstrap(np.mean, rng.exponential(size=200), n_draws=100, random_state=i) for i in range(200))]
    assert 0.88 <= np.mean(held) <= 0.99


def test_interval_leaves_global_randomness_alone():
    before = np.random.get_state()[1].tolist()
    bootstrap(np.mean, np.arange(10.0), n_draws=3, random_state=0)
    assert before == np.random.get_state()[1].tolist()


@pytest.mark.parametrize("leak", ["exact", "near", "twice"])
@pytest.mark.parametrize("n_leaked", [1, 4, 40, 390])
def test_leaked_held_out_images_are_found_and_left_out(world, leak, n_leaked):
    train, heldout, fresh, copied = world
    rng, leaky, more = np.random.default_rng(1), heldout.copy(), train
    leaky[:n_leaked] = train[100:100 + n_leaked]
    if leak != "exact": leaky[:n_leaked] += 0.02 * rng.standard_normal((n_leaked, 8))
    if leak == "twice": more = np.concatenate([train, train[100:100 + n_leaked] + 0.02 * rng.standard_normal((n_leaked, 8))])
    with pytest.warns(UserWarning, match=f"^{n_leaked} of 400 held-out images are copies or near copies .*left out of the calibration"):
        report = memorization(copied, leaky, more, 0.02, 4, random_state=0, widen=True)
    assert (report.n_leaked, report.n_heldout) == (n_leaked, 400 - n_leaked)
    assert report.replicated > 0.99 and report.c_t < -2 and report.heldout_distance > 0.5


@pytest.mark.parametrize("d", [1, 2, 3, 8, 64])
def test_fresh_images_are_not_taken_for_leaked_ones(d):
    "One false alarm in a hundred sets is expected, also where neighbours are near by chance and where density varies."
    alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shape = lambda n: rng.standard_normal((n, d)) * rng.choice([0.05, 1, 5], (n, 1))
        train, heldout = shape(500), shape(200)
        alarms += len(leaked_rows(nearest(heldout, train), train))
    assert alarms <= 2


def test_all_leaked_or_too_few_leave_reasons_and_the_rest(world):
    train, heldout, fresh, _ = world
    with pytest.warns(UserWarning, match="400 of 400"): report = memorization(fresh, train[:400], train, 0.02, 4, random_state=0)
    assert report.n_heldout == 0 and np.isfinite(report.distance) and np.isfinite(report.authenticity)
    assert set(report.reasons) == {"heldout_distance", "replicated", "threshold", "false_positive_rate", "heldout_authenticity", "c_t"}
    assert "after 400 that are in the training set were left out" in report.reasons["c_t"]
    for n, m, l in ((1, 1, 1), (2, 1, 5), (5, 20, 60), (60, 2, 2), (1, 60, 600)):
        found = memorization(fresh[:n], heldout[:m], train[:l], 0.02, 4, random_state=0, widen=True)
        assert np.isfinite(found.distance) and all(np.isnan(getattr(found, name)) for name in found.reasons)
        assert all(np.isfinite(v) for name, v in vars(found).items() if name != "reasons" and name not in found.reasons)


def test_rows_that_are_not_finite_are_left_out_by_number(world):
    train, heldout, fresh, _ = world
    spoilt = fresh.copy(); spoilt[[3, 7]] = np.nan
    with pytest.warns(UserWarning, match="2 of 400 generated images are left out: NaN or infinity in rows 3 and 7"):
        assert memorization(spoilt, heldout, train, 0.02, 4, random_state=0) == memorization(
            np.delete(fresh, [3, 7], 0), heldout, train, 0.02, 4, random_state=0)
    with pytest.raises(ValueError, match="real features must be finite, got NaN or infinity in row 5"):
        memorization(fresh, heldout, np.where(np.arange(600)[:, None] == 5, np.inf, train))

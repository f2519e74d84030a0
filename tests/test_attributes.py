"""Attributes told from features: the adjustment undoes confusion, and shares come with honest intervals."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, confusion_matrix

from diffprune.metrics.comparisons import seed_interval
from diffprune.report.attributes import (
    AttributeClassifier,
    adjusted_shares,
    fit_attributes,
    join_rare,
    minority_shares,
    reliability_plot,
    share_changes,
)
from diffprune.study.study import Study

shares = arrays(float, 4, elements=st.floats(0.01, 1)).map(lambda a: a / a.sum())


@settings(max_examples=50, deadline=None)
@given(shares, arrays(float, (4, 4), elements=st.floats(0, 0.1)))
def test_adjustment_undoes_any_mild_confusion(true, mistakes):
    confusion = np.eye(4) + mistakes
    confusion /= confusion.sum(1, keepdims=True)
    np.testing.assert_allclose(adjusted_shares(true @ confusion, confusion), true, atol=1e-4)


@given(shares, arrays(float, (4, 4), elements=st.floats(0.01, 1)))
def test_adjusted_shares_are_shares(counted, confusion):
    found = adjusted_shares(counted, confusion / confusion.sum(1, keepdims=True))
    assert (found >= 0).all() and abs(found.sum() - 1) < 1e-9


def blobs(n, shares, seed):
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=shares)
    return rng.normal(size=(n, 5)) + 1.5 * np.eye(5)[y], np.array(["a", "b", "c"])[y]


def test_more_of_a_minority_is_found_and_the_adjustment_is_nearer_the_truth():
    reader = AttributeClassifier().fit(*blobs(3000, [0.9, 0.05, 0.05], 0)).test(*blobs(3000, [0.9, 0.05, 0.05], 1))
    found = []
    for share in (0.05, 0.15, 0.3):
        X, y = blobs(4000, [1 - 2 * share, share, share], 2)
        row = reader.shares(X).loc["b"]
        assert abs(row.adjusted - (y == "b").mean()) < abs(row.counted - (y == "b").mean())
        found.append(row.adjusted)
    assert found == sorted(found)


def test_measures_of_the_classifier_equal_scikit_learn():
    X, y = blobs(600, [0.5, 0.3, 0.2], 3)
    reader = AttributeClassifier().fit(*blobs(600, [0.5, 0.3, 0.2], 4)).test(X, y)
    assert reader.accuracy_ == pytest.approx(accuracy_score(y, reader.predict(X)))
    np.testing.assert_allclose(reader.confusion_, confusion_matrix(y, reader.predict(X), normalize="true"))


def test_a_value_that_was_never_held_out_counts_as_told_rightly():
    X, y = blobs(600, [0.5, 0.3, 0.2], 5)
    reader = AttributeClassifier().fit(X, y).test(X[y != "c"], y[y != "c"])
    assert reader.confusion_[2].tolist() == [0, 0, 1]


def test_rare_values_are_joined():
    assert set(join_rare(["x"] * 99 + ["y"], 0.02)) == {"x", "other"}


def test_intervals_need_two_seeds():
    rows = [dict(attribute="hat", value="fez", method=m, seed=0, adjusted=a) for m, a in (("balanced", 0.4), ("cluster", 0.1))]
    change = share_changes(pd.DataFrame(rows), "balanced", "cluster").iloc[0]
    assert change.difference == pytest.approx(0.3) and np.isnan(change.low) and np.isnan(change.high)
    assert seed_interval([0.2, 0.2, 0.2])[1:3] == pytest.approx((0.2, 0.2))


def test_minorities_are_values_that_the_training_set_has_few_of():
    truth = pd.DataFrame(dict(attribute=["hat"] * 4 + ["skin"] * 2, value=["none", "fez", "cap", "crown", "a", "b"],
                              share=[0.8, 0.13, 0.05, 0.02, 0.8, 0.2]))
    rows = [dict(truth.iloc[i], method="random", pruning_ratio=0.5, seed=s, counted=0.5, adjusted=a)
            for s in (0, 1) for i, a in enumerate((0.7, 0.1, 0.15, 0.05, 0.6, 0.4))]
    found = minority_shares(pd.DataFrame(rows), truth)
    assert found.seed.tolist() == [0, 1] and set(found.metric) == {"minority_share"}
    assert found.value.tolist() == pytest.approx([(0.15 + 0.05 + 0.4) / 2] * 2)  # below 1/8 of hats, below 1/4 of skins
    assert len(minority_shares(pd.DataFrame(rows), truth, rare=0.01)) == 0


def test_changes_are_paired_by_seed():
    rows = [dict(attribute="hat", value="fez", method=m, seed=s, adjusted=s / 10 + (m == "balanced") * 0.02)
            for m in ("balanced", "cluster") for s in range(3)]
    change = share_changes(pd.DataFrame(rows), "balanced", "cluster").iloc[0]
    assert change.difference == pytest.approx(0.02) and change.high - change.low == pytest.approx(0, abs=1e-9)


def test_an_unknown_attribute_is_named(store):
    study = Study("avatars", "smoke", [], [], [0], store=store, metrics_backbone="pixels", overrides={"data.n_train": 40, "data.n_val": 20})
    with pytest.raises(ValueError, match="'beard'.*facial_hair"):
        fit_attributes(study, ["beard"])


def test_the_plot_of_reliability_shows_the_bins_and_the_diagonal():
    X, y = blobs(600, [0.5, 0.3, 0.2], 4)
    reader = AttributeClassifier().fit(X, y).test(*blobs(600, [0.5, 0.3, 0.2], 5))
    diagonal, *curves = reliability_plot(dict(letter=reader)).lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]] and [c.get_label() for c in curves] == ["letter"]
    np.testing.assert_allclose(curves[0].get_xydata(), reader.reliability_[["stated", "hit"]])
    plt.close("all")

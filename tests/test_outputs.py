"""Choices as scikit-learn, PyTorch and datasets take them."""
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diffprune.pruning.cluster_pruners import ClusterPruner
from diffprune.pruning.outputs import OnKeptSamples, SampleSelector, balance_weights, balancing_sampler, kept_subset
from diffprune.pruning.select import RandomPruner


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.data())
def test_the_number_kept_is_exact(n, draw):
    k = draw.draw(st.integers(1, n))
    assert SampleSelector(n_samples_to_keep=k).fit(np.zeros((n, 1))).get_support().sum() == k


@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame, list])
def test_rows_and_labels_stay_together(kind):
    X, y = np.arange(40.0).reshape(20, 2), np.arange(20) * 2
    rows, labels = SampleSelector(n_samples_to_keep=7).fit_resample(kind(X) if kind is not list else X.tolist(), y)
    assert np.asarray(rows).shape == (7, 2) and (np.asarray(rows)[:, 0] == labels).all()


def test_stratified_pruners_see_the_labels():
    y = np.repeat([0, 1], [90, 10])
    pruner = RandomPruner(stratify=True, random_state=0)
    kept = SampleSelector(pruner, 10).fit(np.zeros((100, 1)), y).get_support()
    assert np.bincount(y[kept]).tolist() == [9, 1]
    with pytest.raises(ValueError, match="needs class labels"): SampleSelector(pruner, 10).fit(np.zeros((100, 1)))


def test_a_fitted_selector_leaves_new_samples_alone_and_clones():
    selector = clone(SampleSelector(ClusterPruner(2, random_state=0), 3)).fit(np.random.default_rng(0).normal(size=(9, 2)))
    assert selector.transform(np.zeros((50, 2))).shape == (50, 2)
    assert not hasattr(selector.pruner, "scores_")                          # the one given is not fitted


def test_the_estimator_in_a_pipeline_is_fitted_on_what_is_kept():
    X, y = np.zeros((10, 2)), np.repeat([0, 1], [9, 1])
    pipe = make_pipeline(StandardScaler(), OnKeptSamples(DummyClassifier(), SampleSelector(n_samples_to_keep=4))).fit(X, y)
    assert len(pipe.predict(X)) == 10 and pipe[-1].selector_.get_support().sum() == 4
    assert not hasattr(OnKeptSamples(DummyClassifier()), "predict")


def test_subset_and_sampler():
    selection = ClusterPruner(3, random_state=0).fit(np.random.default_rng(0).normal(size=(30, 2))).select(0.5)
    assert kept_subset(list("abcdefghij" * 3), selection)[2] == ("abcdefghij" * 3)[selection.indices[2]]
    sampler = balancing_sampler(selection, 5, generator=torch.Generator().manual_seed(1))
    assert list(sampler) == list(balancing_sampler(selection, 5, generator=torch.Generator().manual_seed(1))) and len(sampler) == 5


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_groups_are_drawn_alike(groups, strength):
    groups = np.array(groups)
    p = balance_weights(groups, strength)
    shares = np.array([p[groups == g].sum() for g in np.unique(groups)])
    expected = np.unique(groups, return_counts=True)[1].astype(float) ** (1 - strength)
    assert np.allclose(shares, expected / expected.sum())


@pytest.mark.parametrize("groups", [[], [[1, 2]], 3])
def test_bad_groups(groups):
    with pytest.raises(ValueError, match="one for each sample"): balance_weights(groups)

"""Views: what figures ask of a study, and what they refuse before work begins."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffprune.pruning.select import balanced_quotas, n_kept
from diffprune.report.views import backbones, balance_studies, balanced_ratio, changed, check_classes, class_noises
from diffprune.study.study import Study


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_balanced_ratio_keeps_as_many_of_each_cluster_as_the_smallest_has(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    kept = n_kept(len(labels), balanced_ratio(labels))
    assert kept == min(sizes) * len(sizes)
    assert balanced_quotas(sizes, kept).tolist() == [min(sizes)] * len(sizes)


def test_a_cluster_that_does_not_occur_is_empty():
    with pytest.raises(ValueError, match="1 of 4 clusters are empty"):
        balanced_ratio([0, 1, 2], n_clusters=4)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 8))
def test_class_noises_are_first_of_their_class(classes, n):
    names = [f"class {i}" for i in range(6)]
    found = class_noises(classes, names, n=n)
    assert len(found) == min(n, len(set(classes)))
    for name, i in found.items():
        assert names[classes[i]] == name and classes[i] not in classes[:i]


def test_no_classes_no_class_samples(store):
    with pytest.raises(ValueError, match="none of the 2 images"): class_noises([-1, -1], [])
    with pytest.raises(ValueError, match="conditional=False"): check_classes(Study("avatars", "smoke", [], [], [0], store=store))


def test_backbones_of_the_paper_come_first(store):
    assert backbones(Study("digits", "paper", [], [], [0], store=store), 3) == ["clip", "dino", "pixels"]


def test_a_ratio_can_be_given(store):
    studies = balance_studies(Study("digits", "smoke", [], [0.6], [0, 3], store=store), "pixels")
    assert [r.pruning_ratio for r in studies[3].runs] == [0.0, 0.6, 0.6, 0.6]
    assert [r.method for r in studies[0].runs] == ["unpruned", "random", "cluster_pixels", "balanced_pixels"]


def test_a_changed_study_keeps_all_else(store):
    machine = dict(store=store, device="cpu,cpu", workers=3)
    study = Study("digits", "smoke", ["random"], [0.5], [1], "pixels", overrides={"train.steps": 5}, **machine)
    other = changed(study, methods=["el2n"])
    assert other.arguments == {**study.arguments, "methods": ["el2n"]}
    assert (other.store.root, other.devices, other.workers) == (store.root, ["cpu", "cpu"], 6)

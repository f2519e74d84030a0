"""Advice is what the published tables say, made from them, and never more than their intervals allow."""
import numpy as np
import pandas as pd
import pytest
from notebooks import ROOT

from diffprune.core.store import load_json
from diffprune.report.suggest import Advice, SetFacts, collect_evidence, describe_set, evenness, evidence, measured_effects, suggest

FACTS = SetFacts(1000, 0.5, 1.1, 0.0, 1.0, 0.1, "classes", 10, 1000)


def effects(*rows):
    "Evidence from (method, ratio, against, low, high[, data set])."
    columns = ["method", "pruning_ratio", "against", "low", "high", "dataset"]
    table = pd.DataFrame([(*r, "toy")[:6] for r in rows], columns=columns)
    return table.assign(effect=(table.low + table.high)/2, seeds=3, n=1000, redundancy=0.5, evenness=1.0)


def test_the_evidence_is_that_of_the_published_figures():
    known = evidence().drop(columns=["n", "redundancy", "evenness"])
    fresh = collect_evidence(ROOT / "papers_figures", lambda dataset, preset: FACTS).drop(columns=["n", "redundancy", "evenness"])
    pd.testing.assert_frame_equal(known, fresh, obj="evidence.csv and papers_figures (make evidence)")
    for dataset, preset in set(zip(known.dataset, known.preset)):
        made = load_json(ROOT / "papers_figures" / dataset / preset / "fig1_fid_curves.json")["made"]["kinds"]["model"]
        assert set(known[known.dataset == dataset].commits) == {" ".join(sorted(made))}


def test_effects_are_log_ratios_of_the_means_over_seeds():
    rng = np.random.default_rng(0)
    rows = [dict(method=m, pruning_ratio=r, seed=s, metric="fd", value=v*np.exp(rng.normal(0, 0.05)))
            for m, r, v in (("unpruned", 0.0, 1.0), ("random", 0.5, 1.2), ("near", 0.5, 1.8), ("near", 0.9, 3.0)) for s in range(4)]
    table = pd.DataFrame(rows)
    found = measured_effects(table).set_index(["method", "pruning_ratio", "against"])
    logs = np.log(table.value).groupby([table.method, table.pruning_ratio]).mean()
    assert found.loc[("near", 0.5, "random"), "effect"] == pytest.approx(logs["near", 0.5] - logs["random", 0.5])
    assert found.loc[("near", 0.9, "unpruned"), "effect"] == pytest.approx(logs["near", 0.9] - logs["unpruned", 0.0])
    assert ("near", 0.9, "random") not in found.index, "random pruning has no run at 0.9"
    assert (found.seeds == 4).all()


@pytest.mark.parametrize("table, options, method, ratio", [
    (effects(("random", 0.5, "unpruned", 0.2, 0.6)), {}, None, 0.0),
    (effects(("random", 0.5, "unpruned", -0.1, 0.05)), {}, "random", 0.5),
    (effects(("random", 0.5, "unpruned", -0.1, 0.05), ("random", 0.9, "unpruned", -0.1, 0.09)), {}, "random", 0.9),
    (effects(("random", 0.5, "unpruned", -0.1, 0.05), ("random", 0.5, "unpruned", -0.1, 0.2, "other")), {}, None, 0.0),
    (effects(("random", 0.5, "unpruned", 0, 0.3), ("near", 0.5, "unpruned", 0, 0.05),
             ("near", 0.5, "random", -0.2, -0.1)), {}, "near", 0.5),
    (effects(("random", 0.5, "unpruned", 0, 0.05), ("near", 0.5, "unpruned", 0, 0.05),
             ("near", 0.5, "random", -0.2, 0.1)), {}, "random", 0.5),
    (effects(("random", 0.5, "unpruned", 0, 0.05), ("near", 0.5, "unpruned", 0, 0.05), ("near", 0.5, "random", -0.2, -0.1),
             ("near", 0.5, "random", 0.1, 0.2, "other")), {}, "random", 0.5),
    (effects(("random", 0.5, "unpruned", 0.2, 0.6)), dict(pruning_ratio=0.4), "random", 0.4),
    (effects(("random", 0.5, "unpruned", 0.2, 0.6)), dict(max_loss=1.0), "random", 0.5),
])
def test_advice_by_the_three_rules(table, options, method, ratio):
    advice = suggest(FACTS, table=table, **options)
    assert isinstance(advice, Advice) and (advice.method, advice.pruning_ratio) == (method, ratio)
    assert any("3 seeds" in line and "[" in line for line in advice.reasons), "an effect with its interval"
    assert "toy (1,000 images" in advice.limits[0]


def test_duplicates_and_skew_are_said_before_anything_else():
    facts = SetFacts(1000, 0.9, 1.0, 0.3, 0.5, 0.01, "clusters", 10, 1000)
    first = suggest(facts, table=effects(("random", 0.5, "unpruned", -0.1, 0.05))).first
    assert ["dedup" in first[0], "balance" in first[1], len(first)] == [True, True, 2]
    assert suggest(FACTS, table=effects(("random", 0.5, "unpruned", -0.1, 0.05))).first == ()


def test_copies_constants_and_few_images():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 8)).astype(np.float32)
    assert describe_set(np.repeat(X[:50], 4, 0), np.arange(200) % 2).repeats == 0.75
    same = describe_set(np.ones((50, 8), np.float32))
    assert same.redundancy == 1 and same.repeats == pytest.approx(0.98)
    assert describe_set(X[:4]).n == 4
    assert describe_set(X, np.full(200, -1)).groups == "clusters"
    assert evenness([3, 3, 5, 5]) == (1.0, 0.5, 2)
    for wrong in (X[:3], X[0], np.full((9, 2), np.nan), np.zeros((0, 2))):
        with pytest.raises(ValueError): describe_set(wrong)
    first, second = (describe_set(X, max_images=100, random_state=s) for s in (0, 0))
    assert first == second and first.measured_on == 100

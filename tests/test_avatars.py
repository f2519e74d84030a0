"""Avatars: seeded attributes, skew, effective attributes that the pixels confirm, and the process pool from a bare script."""
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("python_avatars", reason="the bundled extra is not installed")
pytest.importorskip("resvg_py", reason="the bundled extra is not installed")

from diffprune.core.store import Store
from diffprune.data.avatars import (
    ENUMS,
    attribute_values,
    attribute_weights,
    draw_attributes,
    draw_face,
    draw_faces,
    effective_attributes,
    uniform,
)
from diffprune.data.datasets import dataset_config, load_dataset

BASE = dict(hair="bob", hat="none", hair_color="brown", hat_color="none", facial_hair="none", facial_hair_color="none", accessory="none",
            clothing="graphic_shirt", clothing_color="red", shirt_graphic="none", eyes="default", eyebrows="default", mouth="smile",
            nose="default", skin_color="light")


def same(a, b, size=280): return np.array_equal(draw_face(BASE | a, size), draw_face(BASE | b, size))


@pytest.mark.parametrize("hidden,values", [
    (dict(hair="none"), ("hair_color", "black", "red")), (dict(hair="shaved_sides"), ("hair_color", "black", "red")),
    (dict(hat="hijab"), ("hair_color", "black", "red")), (dict(hat="hijab"), ("facial_hair", "none", "beard_light")),
    (dict(hat="hijab"), ("hair", "bob", "bun")),
    (dict(hat="chef_cap"), ("hat_color", "black", "red")), (dict(hat="jedi"), ("eyebrows", "none", "angry")),
    (dict(hair="curly_2"), ("facial_hair", "none", "beard_medium")), (dict(hair="long_hair_curly"), ("accessory", "none", "kurt")),
    (dict(hair="curly_2"), ("eyes", "cry", "default")), (dict(accessory="kurt"), ("eyes", "heart", "default")),
    (dict(accessory="kurt"), ("eyebrows", "angry", "none")),
    (dict(clothing="none"), ("clothing_color", "black", "red")), (dict(clothing="astronaut_suit"), ("clothing_color", "black", "red")),
    (dict(clothing="hoodie"), ("shirt_graphic", "bear", "none")), (dict(clothing_color="white"), ("shirt_graphic", "bear", "none"))])
def test_rules_of_effect_are_true_of_the_pixels(hidden, values):
    attribute, a, b = values
    assert same(hidden | {attribute: a}, hidden | {attribute: b})
    import pandas as pd
    rows = effective_attributes(pd.DataFrame([BASE | hidden | {attribute: v} for v in (a, b)]))
    assert rows[attribute].nunique() == 1, "and the effective attributes say so"


@pytest.mark.parametrize("context,attribute,a,b", [
    ({}, "hair_color", "black", "red"), ({}, "skin_color", "black", "light"), (dict(hat="hijab"), "hat_color", "black", "red"),
    (dict(facial_hair="beard_light"), "facial_hair_color", "black", "red"), ({}, "shirt_graphic", "bear", "bat"),
    ({}, "nose", "wide", "small"), ({}, "eyes", "cry", "default")])
def test_what_shows_shows(context, attribute, a, b): assert not same(context | {attribute: a}, context | {attribute: b})


def test_drawn_and_effective_attributes_give_the_same_face():
    drawn = draw_attributes(40, seed=11)
    effective = effective_attributes(drawn)
    for i in range(40): assert np.array_equal(draw_face(drawn.iloc[i], 96), draw_face(effective.iloc[i], 96))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), st.sampled_from(["train", "val"]))
def test_more_faces_keep_the_earlier_ones(n, more, seed, split):
    assert draw_attributes(n + more, split, seed).head(n).equals(draw_attributes(n, split, seed))


def test_skew_touches_its_attribute_alone():
    even, skewed = draw_attributes(300), draw_attributes(300, skew=dict(eyes={"happy": 1}, skin_color=2.0))
    assert set(skewed["eyes"]) == {"happy"}
    assert skewed.drop(columns=["eyes", "skin_color"]).equals(even.drop(columns=["eyes", "skin_color"]))


@pytest.mark.parametrize("skew", [None, 0, 0.5, 2.0, {"tanned": 3, "black": 1}])
def test_shares_follow_the_weights(skew):
    n, p = 4000, attribute_weights("skin_color", skew)
    drawn = draw_attributes(n, skew=None if skew is None else dict(skin_color=skew))["skin_color"]
    counts = drawn.value_counts().reindex(attribute_values("skin_color"), fill_value=0).to_numpy()
    assert np.all(np.abs(counts / n - p) <= 5 * np.sqrt(p * (1 - p) / n)) and p.sum() == pytest.approx(1)


def test_a_larger_exponent_is_more_skewed():
    entropy = [-(p * np.log(p)).sum() for p in (attribute_weights("hair", s) for s in (0, 0.5, 1, 2))]
    assert entropy == sorted(entropy, reverse=True) and entropy[0] == pytest.approx(np.log(51))


@pytest.mark.parametrize("skew,message", [(dict(skin=1), "unknown attribute 'skin'"), (dict(nose={"long": 1}), "no value 'long'"),
                                          (dict(nose={"wide": -1, "small": 2}), "not negative"), (dict(nose={}), "not all zero"),
                                          (dict(nose=float("nan")), "finite")])
def test_bad_skews(skew, message):
    with pytest.raises(ValueError, match=message): draw_attributes(3, skew=skew)


def test_bad_numbers_and_labels(tmp_path):
    with pytest.raises(ValueError, match="n=0"): load_dataset("avatars", n_train=0, store=Store(tmp_path))
    with pytest.raises(ValueError, match="unknown attribute 'beauty'"): load_dataset("avatars", n_train=3, label="beauty",
                                                                                     store=Store(tmp_path))


def test_uniform_is_uniform():
    u = np.array([uniform("x", i) for i in range(5000)])
    assert 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.02 and abs(np.var(u) - 1 / 12) < 0.004


def test_global_random_state_is_left_alone():
    import random
    random.seed(1); np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    draw_face(draw_attributes(1).iloc[0], 16)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize("label", ["skin_color", "hair_color", "hat"])
def test_end_to_end(tmp_path, label):
    train, val = (load_dataset("avatars", s, image_size=24, n_train=12, n_val=5, label=label, store=Store(tmp_path),
                               progress=False) for s in ("train", "val"))
    assert (len(train), len(val)) == (12, 5) and train.classes == val.classes and list(train.attributes.columns) == list(ENUMS)
    assert [train.classes[k] for k in train.labels] == train.attributes[label].tolist()
    assert np.array_equal(train.images[7], draw_face(train.attributes.iloc[7], 24))
    assert set(train.ids).isdisjoint(val.ids)


def test_identity():
    base = dataset_config("avatars").settings()
    assert dataset_config("avatars", n_val=3).settings() == base and dataset_config("avatars", skew={}).settings() == base
    for change in (dict(n_train=9), dict(seed=1), dict(skew=dict(nose=1)), dict(label="nose"), dict(image_size=32)):
        assert dataset_config("avatars", **change).settings() != base
    assert base["n"] == 28_000 and dataset_config("avatars").settings("val")["n"] == 2_000


def test_processes_work_from_a_script_without_a_main_guard(tmp_path):
    script = tmp_path/"script.py"
    script.write_text("import numpy as np\nfrom diffprune.data.avatars import *\nout = np.zeros((9, 3, 16, 16), np.uint8)\n"
                      "draw_faces(out, effective_attributes(draw_attributes(9)), workers=2, block=2)\nprint(out.astype(int).sum())\n")
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    here = np.zeros((9, 3, 16, 16), np.uint8)
    draw_faces(here, draw_attributes(9), workers=1)
    assert int(out.stdout) == here.astype(int).sum()

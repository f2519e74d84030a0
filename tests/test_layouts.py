"""Layouts of folders: what each means, what is refused, and drawn folders against a slow reader that shares no code with the package."""
import io
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from layouts import folders, picture, write_folder
from PIL import Image
from reference_reader import Unclear, read_folder

from diffprune.core.store import Store
from diffprune.data.datasets import load_dataset
from diffprune.data.layouts import read_layout

FUZZ = int(os.environ.get("DIFFPRUNE_FUZZ", 60))  # drawn folders; `make fuzz` draws thousands


@pytest.fixture
def store(tmp_path): return Store(tmp_path/"store")


PIXEL = picture("RGB", 200, "PNG")[0]


def make(root, *paths, **texts):
    "A folder of small images at `paths`; other files by their text."
    for path in paths:
        (root/path).parent.mkdir(parents=True, exist_ok=True)
        other = path.endswith((".txt", ".json", ".csv", ".parquet"))
        (root/path).write_bytes(b"no picture" if other else PIXEL + path.encode())  # all pictures differ
    for path, text in texts.items(): (root/path).write_text(text)
    return root


def meaning(layout):
    "split -> classes of its images in the order of their paths, with . for none."
    return {s: " ".join(layout.classes[k] if k >= 0 else "." for k in layout.labels[i]) for s, i in layout.parts.items()}


# what each layout means

LAYOUTS = {
    "flat": ("1.png 2.png", dict(train=". .")),
    "classes": ("cat/1.png dog/2.png", dict(train="cat dog")),
    "one stray picture beside class folders": ("cat/1.png cat/2.png dog/3.png logo.png", dict(train="cat cat dog .")),
    "a few pictures in a folder beside many": ("1.png 2.png 3.png edited/4.png", dict(train=". . . .")),
    "splits": ("train/cat/1.png train/dog/2.png val/cat/3.png", dict(train="cat dog", val="cat")),
    "splits in capitals": ("Train/cat/1.png TRAINING/dog/2.png Valid/cat/3.png EVAL/dog/4.png",
                           dict(train="dog cat", val="cat", test="dog")),
    "other words": ("training/1.png dev/2.png testing/3.png", dict(train=".", val=".", test=".")),
    "flat splits": ("train/1.png val/2.png", dict(train=".", val=".")),
    "flat val": ("train/cat/1.png train/dog/2.png val/3.png", dict(train="cat dog", val=".")),
    "flat test": ("train/cat/1.png train/dog/2.png test/3.png", dict(train="cat dog", test=".")),
    "one wrapping folder": ("photos/train/cat/1.png photos/val/cat/2.png", dict(train="cat", val="cat")),
    "two wrapping folders": ("a/b/train/1.png a/b/val/2.png", dict(train=".", val=".")),
    "wrapped classes": ("photos/cat/1.png photos/dog/2.png", dict(train="cat dog")),
    "stray picture beside splits": ("train/1.png val/2.png logo.png", dict(train=".", val=".")),
    "extra folder beside splits": ("Train/a/1.png Test/a/2.png Meta/3.png", dict(train="a", test="a")),
    "years behind words": ("train2017/1.png val2017/2.png", dict(train=".", val=".")),
    "names that differ in the split alone": ("cars_train/1.png cars_test/2.png", dict(train=".", test=".")),
    "splits below classes": ("cat/train/1.png cat/test/2.png dog/train/3.png", dict(train="cat dog", test="cat")),
    "tiny imagenet": ("train/n1/images/1.png train/n2/images/2.png val/images/3.png", dict(train="n1 n2", val=".")),
    "images of detectors": ("train/images/1.png train/labels/1.txt valid/images/2.png", dict(train=".", val=".")),
    "a folder called images": ("photos/images/1.png photos/images/2.png", dict(train=". .")),
    "images holds the classes": ("images/cat/1.png images/dog/2.png", dict(train="cat dog")),
    "shards of img2dataset": ("00000/1.png 00000/1.json 00000/1.txt 00001/2.png 00000_stats.json 00001_stats.json 00000.parquet",
                              dict(train=". .")),
    "numbers for names": ("0/1.png 1/2.png 1_stats.json", dict(train="0 1")),
    "thumbnails of a disk station": ("cat/1.png cat/@eaDir/1.png/T.jpg @eaDir/2.png dog/2.png", dict(train="cat dog")),
    "val has one class more": ("train/a/1.png train/b/2.png val/b/3.png val/c/4.png", dict(train="a b", val="b c")),
    "classes with words in their names": ("test_tube/1.png train_station/2.png trainer/3.png",
                                          dict(train="test_tube train_station trainer")),
    "deep": ("cat/a/b/c/1.png dog/2.png", dict(train="cat dog")),
    "only train": ("train/cat/1.png train/dog/2.png", dict(train="cat dog")),
    "only val": ("val/cat/1.png val/dog/2.png", dict(val="cat dog")),
    "dotted names": ("cat.v2/scale0.5_0.png dog/1.2.3.png", dict(train="cat.v2 dog")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_layout_means(name, tmp_path, store):
    paths, expected = LAYOUTS[name]
    for path in paths.split(): make(tmp_path/"d", path, **{path + ".json": "{}"})  # sidecars change nothing
    make(tmp_path/"d", **{"README.txt": "text", "Thumbs.db": "x", ".DS_Store": "x", "licence.pdf": "%PDF", "features.h5": "x"})
    layout = read_layout(tmp_path/"d", store=store)
    assert meaning(layout) == expected
    others = sum(path.endswith((".txt", ".json", ".parquet")) for path in paths.split())
    assert len(layout.ignored) == len(paths.split()) + 5 + others + (sum(map(len, layout.parts.values())) < len(layout.files))
    report = load_dataset(tmp_path/"d", "all", store=store, image_size=8, progress=False).report()
    assert report.splits == {"all": sum(map(len, layout.parts.values()))} | {s: len(i) for s, i in layout.parts.items()}
    counts = [c for text in expected.values() for c in text.split() if c != "."]
    assert report.classes.to_dict() == {c: counts.count(c) for c in sorted(set(counts))}
    assert report.unlabelled == report.splits["all"] - len(counts)
    assert report.left_out.empty and report.duplicates.empty and len(str(report).splitlines()) == 3
    assert len(report.sizes) == report.splits["all"] and set(report.sizes["width"]) == {12} and set(report.sizes["height"]) == {10}


UNCLEAR = {
    "a class called like a split": "test/1.png cat/2.png dog/3.png", "a split beside one folder": "train/1.png meta/2.png",
    "only val, and pictures beside it": "val/1.png 2.png", "more beside the splits than in them": "train/1.png val/2.png 3.png 4.png 5.png",
    "some classes with splits below": "cat/train/1.png dog/2.png",
    "splits below a folder with something beside": "logo.png photos/train/1.png photos/val/2.png",
    "a split in a split": "train/test/1.png train/cat/2.png", "two sets of splits": "trainA/1.png trainB/2.png testA/3.png testB/4.png",
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_unclear_is_refused_with_a_way_out(name, tmp_path, store):
    make(tmp_path/"d", *UNCLEAR[name].split())
    with pytest.raises(ValueError, match="splits='(none|folders)'"): read_layout(tmp_path/"d", store=store)
    assert set(meaning(read_layout(tmp_path/"d", splits="none", store=store))) == {"train"}


def test_the_ways_out_decide(tmp_path, store):
    make(tmp_path/"d", "test/1.png", "cat/2.png", "dog/3.png")
    assert meaning(read_layout(tmp_path/"d", splits="none", store=store)) == dict(train="cat dog test")
    taken = read_layout(tmp_path/"d", splits="folders", store=store)
    assert meaning(taken) == dict(test=".") and [p for p, why in taken.ignored if why == "in no split"] == ["cat/2.png", "dog/3.png"]
    with pytest.raises(FileNotFoundError, match="has only 1 image for test"): load_dataset(tmp_path/"d", splits="folders", store=store)
    make(tmp_path/"e", "train/test/1.png", "train/cat/2.png")
    assert meaning(read_layout(tmp_path/"e", splits="folders", store=store)) == dict(train="cat test")
    for option in ("splits", "labels"):
        with pytest.raises(ValueError, match=f"{option}='all'"): read_layout(tmp_path/"d", **{option: "all"}, store=store)


@pytest.mark.parametrize("paths,note", [
    ("cat/1.png cat/2.png logo.png", "1 image of 3 without a class"), ("1.png 2.png edited/3.png", "edited/ not taken for classes"),
    ("train/a/1.png val/2.png", "the images of val have no class"), ("train/a/1.png val/b/2.png", "train has no class b"),
    ("train/a/1.png val/a/2.png val/b/3.png", "val has classes that train has not: b"),
    ("photos/cat/1.png photos/dog/2.png", "all images lie in photos/"),
    ("train/1.png training/2.png val/3.png", "train/, training/ is read as the split 'train'"),
    ("train/1.png val/2.png x/3.png", "left out: x/3.png"),
    ("images/1.png labels/1.txt", "images/ is not taken for a class"),
    ("00000/1.png 00000_stats.json", "00000/ not taken for classes, but for shards of img2dataset"),
    ("1.png list.csv labels.csv", "there are no classes, and labels.csv, list.csv not read: classes come from folders, or from"),
    ("a_train/1.png a_val/2.png", "a_train/ is read as the split 'train'"),
    ("c/train/1.png c/val/2.png d/train/3.png", "below the class folders")])
def test_rules_are_printed_when_they_decide(paths, note, tmp_path, store, caplog):
    make(tmp_path/"d", *paths.split())
    data = load_dataset(tmp_path/"d", store=store, image_size=8, progress=False)
    assert note in caplog.text and any(note in line for line in data.report().notes)


def test_nothing_is_printed_where_nothing_was_decided(tmp_path, store, caplog):
    make(tmp_path/"d", "train/a/1.png", "train/b/2.png", "val/a/3.png", **{"notes.txt": "x"})
    load_dataset(tmp_path/"d", store=store, image_size=8, progress=False)
    assert caplog.text == ""


def test_labels_by_choice(tmp_path, store):
    make(tmp_path/"d", "1.png", "2.png", "edited/3.png")
    assert meaning(read_layout(tmp_path/"d", labels="folders", store=store)) == dict(train=". . edited")
    make(tmp_path/"e", "cat/1.png")
    assert meaning(read_layout(tmp_path/"e", labels="none", store=store)) == dict(train=".") and read_layout(tmp_path/"e", labels="none",
                                                                                                             store=store).classes == []


# metadata files

def rows_as(ending, rows):
    if ending == "csv": return "file_name,label,text\n" + "".join(f"{n},{'' if v is None else v},hello\n" for n, v in rows)
    return "".join(json.dumps(dict(file_name=n, label=v)) + "\n" for n, v in rows)


def write_metadata(root, ending, rows, **options):
    "A metadata file in one of the three formats."
    path = root/f"metadata.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq
        pq.write_table(pa.table(dict(file_name=[n for n, _ in rows], label=[v for _, v in rows]), **options), path)
    else: path.write_text(rows_as(ending, rows))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("labels,classes,expected", [
    (["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1]), ([2, 0, 2], ["0", "1", "2"], [2, 0, 2]), ([1.0, 0.0, 1.0], ["0", "1"], [1, 0, 1]),
    ([1, -1, 0], ["0", "1"], [1, -1, 0])])
def test_metadata_gives_labels(ending, labels, classes, expected, tmp_path, store):
    make(tmp_path/"d", "1.png", "2.png", "sub/3.png")
    write_metadata(tmp_path/"d", ending, list(zip(["1.png", "2.png", "sub/3.png"], labels)))
    layout = read_layout(tmp_path/"d", store=store)
    assert layout.classes == classes and layout.labels.tolist() == expected and (f"metadata.{ending}",
                                                                                 "metadata that was read") in layout.ignored


@pytest.mark.parametrize("ending,place", [("csv", "metadata.csv, line 3"), ("jsonl", "metadata.jsonl, line 2"),
                                          ("parquet", "metadata.parquet, row 1")])
@pytest.mark.parametrize("labels,fault", [(["a", None], "has no label"), ([0, None], "has no label")])
def test_missing_labels_of_metadata_name_the_row(ending, place, labels, fault, tmp_path, store):
    make(tmp_path/"d", "1.png", "2.png")
    write_metadata(tmp_path/"d", ending, list(zip(["1.png", "2.png"], labels)))
    with pytest.raises(ValueError, match=f"{place} {fault}"): read_layout(tmp_path/"d", store=store)
    assert read_layout(tmp_path/"d", labels="folders", store=store).classes == []


def test_metadata_below_splits_and_at_two_levels(tmp_path, store):
    make(tmp_path/"d", "train/1.png", "train/2.png", "val/3.png",
         **{"train/metadata.csv": rows_as("csv", [("1.png", "a"), ("2.png", "b")])})
    make(tmp_path/"d", **{"val/metadata.jsonl": rows_as("jsonl", [("3.png", "a")]),
                          "metadata.csv": rows_as("csv", [("train/1.png", "a"), ("val/3.png", "a")])})
    layout = read_layout(tmp_path/"d", store=store)
    assert meaning(layout) == dict(train="a b", val="a") and len(layout.files) == 3, "an image that two files name is one image"
    make(tmp_path/"d", **{"metadata.csv": rows_as("csv", [("train/1.png", "b")])})
    contradiction = "train/1.png has label 'b' in metadata.csv, line 2, but 'a' in train/metadata.csv, line 2"
    with pytest.raises(ValueError, match=contradiction): read_layout(tmp_path/"d", store=store)


def test_classes_by_metadata_are_kept_in_a_split_that_shares_none(tmp_path, store):
    make(tmp_path/"d", "train/1.png", "val/3.png", **{"train/metadata.csv": rows_as("csv", [("1.png", 0)]),
                                                     "val/metadata.csv": rows_as("csv", [("3.png", 3)])})
    layout = read_layout(tmp_path/"d", store=store)
    assert meaning(layout) == dict(train="0", val="3") and "val has classes that train has not: 3" in layout.notes


def test_lists_and_sidecars_are_no_tables_that_were_missed(tmp_path, store):
    make(tmp_path/"d", "1.png", **{"1.csv": "x,y\n", "kept.csv": "id,path,label,score,kept\n"})
    assert read_layout(tmp_path/"d", store=store).notes == []


def test_metadata_of_a_spreadsheet(tmp_path, store):
    make(tmp_path/"d", "1.png", "2.png", **{"metadata.csv": "file_name;label;text\n1.png;b;a, b, c\n2.png;a;x\n"})
    assert meaning(read_layout(tmp_path/"d", store=store)) == dict(train="b a")


def test_metadata_for_one_split_leaves_the_folders_of_the_other(tmp_path, store):
    make(tmp_path/"d", "train/cat/1.png", "train/dog/2.png", "val/3.png", "val/4.png",
         **{"val/metadata.csv": rows_as("csv", [("3.png", "dog"), ("4.png", "cat")])})
    assert meaning(read_layout(tmp_path/"d", store=store)) == dict(train="cat dog", val="dog cat")


def test_names_of_classes_in_the_schema_of_parquet(tmp_path, store):
    import pyarrow as pa
    make(tmp_path/"d", "1.png", "2.png")
    info = json.dumps(dict(info=dict(features=dict(label=dict(names=["zebra", "unused", "ant"], _type="ClassLabel")))))
    schema = pa.schema([("file_name", pa.string()), ("label", pa.int64())], metadata=dict(huggingface=info))
    write_metadata(tmp_path/"d", "parquet", [("1.png", 2), ("2.png", 0)], schema=schema)
    layout = read_layout(tmp_path/"d", store=store)
    assert layout.classes == ["zebra", "unused", "ant"] and layout.labels.tolist() == [2, 0]


@pytest.mark.parametrize("text,note", [
    ("name,label\n1.png,a\n", "no column file_name"), ("file_name,text\n1.png,hello\n", "no column 'label'"),
    ("file_name,label\n1.png,a\nx.png,b\n2.png,b\n", "1 files that are not"),
    ("file_name,label\n1.png,a\n", "1 image in no row of metadata.csv: 2.png")])
def test_what_metadata_leaves_open_is_printed(text, note, tmp_path, store):
    make(tmp_path/"d", "1.png", "2.png", **{"metadata.csv": text})
    assert any(note in line for line in read_layout(tmp_path/"d", store=store).notes)


def test_a_column_of_another_name(tmp_path, store):
    make(tmp_path/"d", "1.png", "2.png", **{"metadata.csv": "\ufefffile_name,kind\n./1.png,b\n2.png,a\n"})
    assert read_layout(tmp_path/"d", label="kind", store=store).classes == ["a", "b"]


def test_lists_of_this_package_are_no_metadata(tmp_path, store):
    make(tmp_path/"d", "cat/1.png", "dog/2.png", **{"metadata.csv": "id,path,label,score,kept\ncat/1.png,/x/cat/1.png,cat,0.5,True\n"})
    layout = read_layout(tmp_path/"d", store=store)
    assert meaning(layout) == dict(train="cat dog") and layout.notes == []


@pytest.mark.parametrize("text", ["{broken", '["a list"]'])
def test_broken_metadata_names_the_line(text, tmp_path, store):
    make(tmp_path/"d", "1.png", **{"metadata.jsonl": '{"file_name": "1.png", "label": 0}\n' + text + "\n"})
    with pytest.raises(ValueError, match="metadata.jsonl, line 2 is not a JSON object"): read_layout(tmp_path/"d", store=store)


# damaged files

def damaged_files(n, seed=0):
    "Damaged pictures of several formats: (name, bytes, whether nothing can be left of the picture)."
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    whole = {}
    for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        buffer = io.BytesIO(); noise.save(buffer, format); whole[format] = buffer.getvalue()
    for i in range(n):
        format = [*whole][i % len(whole)]
        data, kind = bytearray(whole[format]), i // len(whole) % 8
        at = int(rng.integers(8, len(data) - 8))
        if kind == 0: data = data[:at // 8]
        elif kind == 1: data = data[:int(rng.integers(0, 12))]
        elif kind == 2: data[:16] = rng.bytes(16)
        elif kind == 3: data[at:at + 40] = bytes(min(40, len(data) - at))
        elif kind == 4: data = data[:at]
        elif kind == 5: data[at:at] = rng.bytes(30)
        elif kind == 6: data = bytearray(rng.bytes(len(data)))
        else: data[at] ^= 1 << int(rng.integers(8))
        yield f"{i:05d}.{format.lower()}", bytes(data), kind in (0, 1, 2, 6)


def test_a_thousand_damaged_files_are_read_or_listed(tmp_path, store):
    n = max(1000, FUZZ)
    lost = {}
    (tmp_path/"d").mkdir()
    make(tmp_path/"d", "good.png")
    for name, data, nothing_left in damaged_files(n): (tmp_path/"d"/name).write_bytes(data); lost[name] = nothing_left
    data = load_dataset(tmp_path/"d", store=store, image_size=16, progress=False, workers=2)
    report = data.report()
    listed = dict(report.left_out.values)
    assert {*data.ids, *listed} == {*lost, "good.png"} and not {*data.ids} & {*listed} and "good.png" in data.ids
    assert all(listed.values()) and all(name in listed for name, nothing in lost.items() if nothing)
    assert len(listed) > n / 2 and str(len(listed)) in str(report).replace(",", "")


# drawn folders

@pytest.fixture(scope="module")
def quiet():
    "What is printed while folders are read does not matter here."
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def ours(root, store, splits, labels):
    "Splits, classes, images left out and other files, as the package reads them; None if it refuses."
    options = dict(store=store, splits=splits, labels=labels, image_size=8, progress=False)
    try: whole = load_dataset(root, "all", **options)
    except (ValueError, FileNotFoundError): return None
    found = dict(all=whole)
    for split in ("train", "val", "test"):
        try: found[split] = load_dataset(root, split, **options)
        except FileNotFoundError: assert split == "train"
        except ValueError as e: assert "no part for" in str(e) or "none of" in str(e)
    return found


@settings(max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck))
@given(folders(), st.sampled_from(["auto"] * 4 + ["folders", "none"]), st.sampled_from(["auto"] * 4 + ["folders", "none"]))
def test_drawn_folders_are_read_as_the_reference_reads_them(quiet, drawn, splits, labels):
    base = Path(tempfile.mkdtemp())
    try: compare(write_folder(base / "data", drawn), Store(base / "store"), drawn, splits, labels)
    finally: shutil.rmtree(base)


def compare(root, store, drawn, splits, labels):
    found = ours(root, store, splits, labels)
    try: expected, classes, ignored = read_folder(root, splits, labels)
    except Unclear as e:
        event(f"refused: {e}")
        assert found is None, f"the reference refuses it: {e}"
        return
    readable = {p for of in expected.values() for p in of if drawn[p][2]}
    event("read" if readable else "nothing readable")
    if not readable: assert found is None; return
    assert found is not None, "the reference reads it"
    for split, of in expected.items():
        good = sorted(p for p in of if drawn[p][2])
        if not good: assert split not in found; continue
        data = found[split]
        assert data.ids.tolist() == good and data.classes == classes
        assert [data.classes[k] if k >= 0 else None for k in data.labels] == [of[p] for p in good]
        assert data.paths.tolist() == [str(root / p) for p in good]
        for image, path in zip(data.images, good):
            if drawn[path][1] is not None: assert np.abs(image[:, 4, 4].astype(int) - drawn[path][1]).max() <= 1, path
        left_out = data.report().left_out
        assert sorted(left_out["path"]) == sorted(set(of) - set(good)) and left_out["reason"].ne("").all()
        assert data.report().splits == {s: len(good) if s == split else len(o) for s, o in expected.items()}
    report = found["all"].report()
    assert sorted(p for p, _ in report.ignored.values) == sorted(ignored), "every other file is mentioned, and nothing else"
    assert {p for p, why in report.ignored.values if why == "in no split"} == {p for p, why in ignored.items() if why == "in no split"}
    everything = {*found["all"].ids, *report.left_out["path"], *report.ignored["path"]}
    assert everything >= set(drawn), "no file is lost"

"""Rows of parquet files and Hugging Face data sets as records: the same labels, ids and images whichever way a table comes."""
import io
import json
import math
import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffprune.data.decode import decode_bytes, decode_records
from diffprune.data.tables import (
    check_image_type,
    class_label_names,
    common_classes,
    hf_files,
    hf_records,
    parquet_files,
    parquet_records,
    read_cell,
)

FUZZ = int(os.environ.get("DIFFPRUNE_FUZZ", 150))  # tables; `make fuzz` tries more
datasets.disable_progress_bars()


def png(value, mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 6), value, np.uint16) if mode == "I;16" else np.full((6, 6, 3), (value, 0, 0), np.uint8)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def decoded(tmp_path, records, **kwargs):
    out = Path(tempfile.mkdtemp(dir=tmp_path))
    manifest = decode_records(out, records, 6, **kwargs)
    return np.load(out/"images.npy")[:, 0, 0, 0].tolist(), manifest


def names_in_schema(table, **classes):
    "The metadata that `datasets` writes for columns of ClassLabel."
    features = {name: dict(names=names, _type="ClassLabel") for name, names in classes.items()}
    return table.replace_schema_metadata({"huggingface": json.dumps(dict(info=dict(features=features)))})


def write(path, classes=None, **columns):
    table = pa.table(columns)
    pq.write_table(names_in_schema(table, label=classes) if classes else table, path)


# parquet

@pytest.mark.parametrize("kind", ["bytes", "struct", "path", "struct of a path"])
@pytest.mark.parametrize("workers", [1, 2])
def test_parquet(tmp_path, kind, workers):
    (tmp_path/"p").mkdir()
    for i in range(10): (tmp_path/"p"/f"{i}.png").write_bytes(png(i))
    cell = {
        "bytes": png,
        "struct": lambda i: dict(bytes=png(i), path=f"{i}.png"),
        "path": lambda i: f"p/{i}.png",
        "struct of a path": lambda i: dict(path=str(tmp_path / "p" / f"{i}.png")),
    }[kind]
    for name, part in (("a", range(6)), ("b", range(6, 10))):
        pq.write_table(
            pa.table(dict(image=[cell(i) for i in part], label=[i % 3 for i in part])), tmp_path / f"{name}.parquet", row_group_size=4
        )
    reds, manifest = decoded(tmp_path, parquet_records(tmp_path, ["a.parquet", "b.parquet"]), workers=workers, block=3)
    assert reds == list(range(10)) and manifest["label"].tolist() == [i % 3 for i in range(10)] and manifest["id"][6] == "b.parquet:0"
    assert manifest["file"].tolist() == ["a.parquet"] * 6 + ["b.parquet"] * 4 and manifest["row"].tolist() == [*range(6), *range(4)]


def test_paths_begin_at_the_table_or_at_the_root(tmp_path):
    (tmp_path/"t").mkdir()
    for place, value in (("t/near.png", 1), ("far.png", 2)): (tmp_path/place).write_bytes(png(value))
    write(tmp_path/"t"/"a.parquet", image=["near.png", "far.png", "gone.png", "https://example.org/x.png", None, ""])
    reds, manifest = decoded(tmp_path, parquet_records(tmp_path, ["t/a.parquet"]))
    assert reds == [1, 2] and [r.split(":")[0] for r in manifest["reason"][2:]] == [
        "the file that the row names is not there",
        "the row names an address, which is not read",
        "the row holds no image",
        "the row holds no image",
    ]
    assert [os.path.relpath(p, tmp_path) for p in parquet_files(tmp_path, ["t/a.parquet"])][:3] == ["t/near.png", "far.png", "t/gone.png"]


def test_rows_without_an_image(tmp_path):
    write(
        tmp_path / "a.parquet",
        pic=[
            dict(bytes=png(4), path=None),
            None,
            dict(bytes=None, path="x.png"),
            dict(bytes=b"junk", path=None),
            dict(bytes=b"", path=None),
        ],
    )
    reds, manifest = decoded(tmp_path, parquet_records(tmp_path, ["a.parquet"], image="pic"))
    assert reds == [4] and manifest["reason"].tolist()[1:] == [
        "the row holds no image",
        "the file that the row names is not there: x.png",
        "not an image",
        "empty file",
    ]
    assert manifest["label"].tolist() == [-1] * 5


def test_damaged_parquet(tmp_path):
    table = pa.table(dict(image=[png(i) for i in range(4)]))
    pq.write_table(table, tmp_path/"a.parquet", row_group_size=1, compression="none", use_dictionary=False)
    data = (tmp_path/"a.parquet").read_bytes()
    (tmp_path/"b.parquet").write_bytes(data[:-12])
    (tmp_path/"c.parquet").write_bytes(b"")
    offset = pq.ParquetFile(tmp_path/"a.parquet").metadata.row_group(2).column(0).data_page_offset
    (tmp_path/"a.parquet").write_bytes(data[:offset] + b"\xff" * 30 + data[offset + 30:])
    reds, manifest = decoded(tmp_path, parquet_records(tmp_path, ["a.parquet", "b.parquet", "c.parquet", "gone.parquet"]))
    assert reds == [0, 1, 3] and manifest["id"][manifest["reason"] != ""].tolist() == [
        "a.parquet:2",
        "b.parquet",
        "c.parquet",
        "gone.parquet",
    ]
    assert (
        manifest["reason"][manifest["reason"] != ""].str.startswith("damaged file").all() and parquet_files(tmp_path, ["b.parquet"]) == []
    )


COLUMNS = {
    "a list of bytes": pa.array([[b"x"]]),
    "pixels": pa.array([[[0, 1]]]),
    "numbers": pa.array([1]),
    "a struct of other things": pa.array([dict(url="x")]),
    "bytes that are numbers": pa.array([dict(bytes=1)]),
    "floats": pa.array([0.5]),
    "dates": pa.array([0], pa.timestamp("s")),
    "a tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 2, 2), np.uint8)),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_that_hold_no_images_are_refused_in_words(tmp_path, kind):
    table = pa.table(dict(image=COLUMNS[kind]))
    pq.write_table(table, tmp_path/"a.parquet")
    with pytest.raises(ValueError, match="column 'image' of a.parquet holds .*, and no images.*Read are encoded files"):
        parquet_records(tmp_path, ["a.parquet"])


def test_arrays_of_datasets_are_refused_in_words(tmp_path):
    features = datasets.Features(image=datasets.Array3D((2, 2, 3), "uint8"))
    ds = datasets.Dataset.from_dict(dict(image=[np.zeros((2, 2, 3), np.uint8)]), features=features)
    ds.to_parquet(tmp_path/"a.parquet")
    for read in (lambda: hf_records(ds), lambda: parquet_records(tmp_path, ["a.parquet"])):
        with pytest.raises(ValueError, match=r"holds .*list.*, and no images: pixels as numbers must be stored as image files first"):
            read()


# classes

def test_names_come_from_the_schema_with_their_order_and_unused_ones(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["zebra", "ant", "unused"]))
    ds = datasets.Dataset.from_dict(dict(image=[dict(bytes=png(i), path=None) for i in range(3)], label=[1, 0, -1]), features=features)
    ds.to_parquet(tmp_path/"a.parquet")
    for records in (parquet_records(tmp_path, ["a.parquet"]), hf_records(ds)):
        assert records.classes == ["zebra", "ant", "unused"] and records.labels.tolist() == [1, 0, -1]


def test_files_are_joined_by_the_names_of_their_classes(tmp_path):
    write(tmp_path/"a.parquet", ["cat", "dog", "emu"], image=[png(0), png(1)], label=[0, 2])
    write(tmp_path/"b.parquet", ["dog", "cat", "emu"], image=[png(2), png(3)], label=[0, 1])
    write(tmp_path/"c.parquet", image=[png(4)], label=["dog"])
    records = parquet_records(tmp_path, ["a.parquet", "b.parquet", "c.parquet"])
    assert records.classes == ["cat", "dog", "emu"] and [records.classes[k] for k in records.labels] == ["cat", "emu", "dog", "cat", "dog"]
    assert records.notes == ["classes are joined by name; they are in another order in b.parquet"]
    write(tmp_path/"d.parquet", image=[png(5)], label=[1])
    with pytest.raises(ValueError, match="the classes of a.parquet have names .cat, dog, emu, ....*d.parquet are numbers"):
        parquet_records(tmp_path, ["a.parquet", "d.parquet"])
    assert parquet_records(tmp_path, ["a.parquet", "d.parquet"], label=None).classes == []


def test_a_schema_may_be_odd():
    for metadata in (
        {},
        {"huggingface": "{"},
        {"huggingface": "[]"},
        {"huggingface": '{"info": null}'},
        {"huggingface": '{"info": {"features": {"label": [{}]}}}'},
        {"huggingface": '{"info": {"features": {"label": {"dtype": "int64", "_type": "Value"}}}}'},
        {"pandas": "{}"},
    ):
        assert class_label_names(pa.schema([("label", pa.int64())], metadata), "label") == []


def part(names, *labels): return np.array(labels, dtype=np.int64), names


@pytest.mark.parametrize("parts,labels,classes,noted", [
    ([part(["a", "b"], 0, 1), part(["a", "b"], 1)], [[0, 1], [1]], ["a", "b"], False),
    ([part(["b", "a"], 0, 1), part(["a", "b"], 0)], [[0, 1], [1]], ["b", "a"], False),  # the order that is alphabetical says nothing
    ([part(["a", "b"], 0), part(["b", "a"], 0)], [[0], [1]], ["a", "b"], True),
    ([part(["c"], 0), part(["a", "b"], 1, -1)], [[2], [1, -1]], ["a", "b", "c"], False),
    ([part(["z", "a"], 0), part(["a", "q"], 1)], [[0], [2]], ["z", "a", "q"], False),
    ([part(["0", "1"], 1), part(["0", "1", "2"], 2), part([], -1)], [[1], [2], [-1]], ["0", "1", "2"], False),
    ([part(["1", "0"], 0), part(["1", "0"], 1)], [[0], [1]], ["1", "0"], False),
    ([part([], -1)], [[-1]], [], False), ([], [], [], False)])
def test_common_classes(parts, labels, classes, noted):
    got, names, note = common_classes(parts, [f"f{i}" for i in range(len(parts))])
    assert [g.tolist() for g in got] == labels and names == classes and bool(note) == noted


# labels and ids, alike in every table

FEATURES = {int: datasets.Value("int64"), str: datasets.Value("string"), float: datasets.Value("float64")}


def both(tmp_path, labels, classes=None, ids=None):
    "The same rows through parquet_records and hf_records: labels and classes, or the text of the error."
    kind = next((type(v) for v in labels if v is not None), int)
    columns = dict(image=[dict(bytes=png(i), path=None) for i in range(len(labels))], label=labels) | (dict(id=ids) if ids else {})
    features = dict(image=datasets.Image(), label=datasets.ClassLabel(names=classes) if classes else FEATURES[kind]) | (
        dict(id=datasets.Value("string")) if ids else {}
    )
    ds = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    ds.to_parquet(tmp_path/"a.parquet")
    out = []
    for read in (lambda: parquet_records(tmp_path, ["a.parquet"]), lambda: hf_records(ds)):
        try: records = read()
        except ValueError as e: out.append(str(e).replace("a.parquet, ", ""))
        else: out.append((records.labels.tolist(), records.classes, records.ids if ids else None))
    assert out[0] == out[1]
    return out[0]


@pytest.mark.parametrize(
    "labels,classes,wanted",
    [
        ([1, 0], None, ([1, 0], ["0", "1"], None)),
        ([1.0, 0.0], None, ([1, 0], ["0", "1"], None)),
        (["b", "a", "b"], None, ([1, 0, 1], ["a", "b"], None)),
        ([2, -1], ["x", "y", "z"], ([2, -1], ["x", "y", "z"], None)),
        ([None, None], None, ([-1, -1], [], None)),
        ([0, None, 1], None, "row 1 has no label"),
        ([0.0, math.nan], None, "row 1 has no label"),
        (["a", None], None, "row 1 has no label"),
        (["a", ""], None, "row 1 has no label"),
        ([0, None], ["x"], "row 1 has no label"),
        ([0.5, 1.0], None, "row 0: label 0.5 is neither"),
        ([0, -2], None, "row 1: label -2 is no class"),
        ([10**12], None, "row 0: label 1000000000000"),
        ([1.5, math.nan], None, "row 1 has no label"),
    ],
)
def test_labels_behave_alike(tmp_path, labels, classes, wanted):
    got = both(tmp_path, labels, classes)
    assert got == wanted if isinstance(wanted, tuple) else wanted in got


def test_ids_behave_alike(tmp_path):
    assert both(tmp_path, [0, 1], ids=["p", "q"]) == ([0, 1], ["0", "1"], ["p", "q"])
    assert "ids must be unique, but 'p' is that of row 0 and of" in both(tmp_path, [0, 1, 0], ids=["p", "q", "p"])
    assert "row 1 has no id: name a column with id=" in both(tmp_path, [0, 1, 0], ids=["p", None, "q"])
    write(tmp_path/"a.parquet", image=[png(0)], id=["p"]); write(tmp_path/"b.parquet", image=[png(1)], id=["p"])
    with pytest.raises(ValueError, match="'p' is that of a.parquet, row 0 and of b.parquet, row 0"):
        parquet_records(tmp_path, ["a.parquet", "b.parquet"])
    assert parquet_records(tmp_path, ["a.parquet", "b.parquet"], id=None).ids == ["a.parquet:0", "b.parquet:0"]


def test_columns_that_are_asked_for_must_be_there(tmp_path):
    write(tmp_path/"a.parquet", image=[png(0)], kind=["x"])
    ds = datasets.Dataset.from_parquet(str(tmp_path/"a.parquet"), cache_dir=str(tmp_path/"cache"))
    for read in (lambda **o: parquet_records(tmp_path, ["a.parquet"], **o), lambda **o: hf_records(ds, **o)):
        assert read().classes == [] and read(label="kind").classes == ["x"]
        for option in ("image", "label", "id"):
            with pytest.raises(ValueError, match=r"no column 'sort': choose from \['image', 'kind'\]"): read(**{option: "sort"})
    write(tmp_path/"b.parquet", image=[png(0)], label=["y"])
    with pytest.raises(ValueError, match="a.parquet has no column of labels, but b.parquet has"):
        parquet_records(tmp_path, ["a.parquet", "b.parquet"])
    write(tmp_path/"c.parquet", image=[png(0)], label=pa.array([None], pa.string()))
    with pytest.raises(ValueError, match="c.parquet, row 0 has no label, but b.parquet has"):
        parquet_records(tmp_path, ["b.parquet", "c.parquet"])


def test_classes_in_a_column_of_another_name_are_pointed_out(tmp_path):
    table = pa.table(dict(image=[png(0)], fine_label=[0]))
    pq.write_table(names_in_schema(table, fine_label=["x"]), tmp_path/"a.parquet")
    assert parquet_records(tmp_path, ["a.parquet"]).notes == [
        "there is no column 'label', so there are no classes; fine_label would give some"
    ]
    ds = datasets.Dataset.from_parquet(str(tmp_path/"a.parquet"), cache_dir=str(tmp_path/"cache"))
    assert hf_records(ds).notes == parquet_records(tmp_path, ["a.parquet"]).notes and hf_records(ds, label="fine_label").notes == []
    assert (
        parquet_records(tmp_path, ["a.parquet"], label="fine_label").classes == ["x"]
        and parquet_records(tmp_path, ["a.parquet"], label=None).notes == []
    )


# Hugging Face

def hf(values, **columns):
    features = datasets.Features(
        image=datasets.Image(),
        **{k: datasets.Value("string") if isinstance(v[0], str) else datasets.Value("int64") for k, v in columns.items()},
    )
    return datasets.Dataset.from_dict(dict(image=[dict(bytes=png(v), path=None) for v in values], **columns), features=features)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_hugging_face_data_set_with_chosen_rows(tmp_path, workers, form):
    chosen = (
        hf(range(12), kind=list("abcabcabcabc"), key=[f"k{i}" for i in range(12)], number=[i % 2 for i in range(12)])
        .select([11, 3, 7, 0])
        .with_format(form)
    )
    reds, manifest = decoded(tmp_path, hf_records(chosen, label="kind", id="key"), workers=workers, block=2)
    assert reds == [11, 3, 7, 0] and manifest["id"].tolist() == ["k11", "k3", "k7", "k0"] and manifest["label"].tolist() == [2, 0, 1, 0]
    assert manifest["row"].tolist() == [0, 1, 2, 3] and hf_records(chosen, label="number", id=None).labels.tolist() == [1, 1, 1, 0]


def test_hugging_face_data_set_of_paths(tmp_path):
    (tmp_path/"there.png").write_bytes(png(8))
    paths = [str(tmp_path/"there.png"), str(tmp_path/"gone.png")]
    for ds in (
        datasets.Dataset.from_dict(dict(image=paths), features=datasets.Features(image=datasets.Image())),
        datasets.Dataset.from_dict(dict(image=paths)),
    ):
        reds, manifest = decoded(tmp_path, hf_records(ds))
        assert reds == [8] and manifest["reason"][1].startswith("the file that the row names is not there") and hf_files(ds) == paths


def test_wide_grey_is_not_clipped_by_the_mode_of_the_feature(tmp_path):
    for mode in (None, "L", "RGB"):
        ds = datasets.Dataset.from_dict(
            dict(image=[dict(bytes=png(257 * 100, "I;16"), path=None)]), features=datasets.Features(image=datasets.Image(mode=mode))
        )
        ds.to_parquet(tmp_path/"a.parquet")
        assert decoded(tmp_path, hf_records(ds))[0] == decoded(tmp_path, parquet_records(tmp_path, ["a.parquet"]))[0] == [100]


def test_what_to_parquet_writes_of_paths_is_read(tmp_path):
    for i in range(3): (tmp_path/f"{i}.png").write_bytes(png(i))
    ds = datasets.Dataset.from_dict(dict(image=[str(tmp_path/f"{i}.png") for i in range(3)])).cast_column("image", datasets.Image())
    ds.to_parquet(tmp_path/"a.parquet")
    assert all(v["bytes"] is None for v in pq.read_table(tmp_path / "a.parquet")["image"].to_pylist()), (
        "if this changes, so does the notebook"
    )
    assert decoded(tmp_path, parquet_records(tmp_path, ["a.parquet"]))[0] == [0, 1, 2] and len(parquet_files(tmp_path, ["a.parquet"])) == 3
    (tmp_path/"1.png").unlink()
    reds, manifest = decoded(tmp_path, parquet_records(tmp_path, ["a.parquet"]))
    assert reds == [0, 2] and "is not there" in manifest["reason"][1]


def test_only_one_split_at_a_time():
    with pytest.raises(ValueError, match="not a DatasetDict"): hf_records(datasets.DatasetDict(train=hf([1])))
    with pytest.raises(ValueError, match="not a IterableDataset"): hf_records(hf([1]).to_iterable_dataset())


# against a slow reader

CLASSES = st.sampled_from([None, ["a", "b", "c"], ["c", "a", "b"], ["a", "b"], ["0", "1", "2"]])
TABLES = st.lists(
    st.tuples(
        CLASSES,
        st.sampled_from(["number", "name", "float", "absent"]),
        st.lists(st.sampled_from([0, 1, 2, 2, -1, None, 5, 0.5, ""]), max_size=4),
        st.sampled_from(["bytes", "struct", "path"]),
    ),
    min_size=1,
    max_size=3,
)


def rows_of(classes, kind, values):
    "The column of labels that a fuzzed table gets; None if it has none."
    if kind == "absent": return None
    if kind == "name": return [None if v is None else v if v == "" else "abcdef"[int(v) % 6] for v in values]
    values = [None if v == "" else v for v in values]
    return (
        [None if v is None else float(v) for v in values]
        if kind == "float" and not classes
        else [None if v is None else int(v) for v in values]
    )


def meaning(classes, column):
    "The class that each row of one table means, or None for none; raises ValueError if a row means nothing."
    if column is None: return None
    missing = [v is None or v == "" for v in column]
    if all(missing): return None
    if any(missing): raise ValueError("has no label")
    out = []
    for v in column:
        if isinstance(v, str) and classes and v not in classes: raise ValueError("none of the")
        if isinstance(v, str): out.append(v); continue
        if v != int(v) or v < -1 or classes and v >= len(classes): raise ValueError("label")
        out.append(None if v == -1 else classes[int(v)] if classes else int(v))
    return out


@settings(max_examples=FUZZ, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TABLES)
def test_fuzzed_tables_are_read_as_a_slow_reader_reads_them(tmp_path, tables):
    names, wanted, reds, fault, n = [], [], [], "", 0
    for t, (classes, kind, values, form) in enumerate(tables):
        column = rows_of(classes, kind, values)
        pictures = [png(n + i) for i in range(len(values))]
        for i, p in enumerate(pictures): (tmp_path/f"{n + i}.png").write_bytes(p)
        cells = dict(
            bytes=pictures, struct=[dict(bytes=p, path=None) for p in pictures], path=[f"{n + i}.png" for i in range(len(values))]
        )[form]
        types = dict(bytes=pa.binary(), struct=pa.struct(dict(bytes=pa.binary(), path=pa.string())), path=pa.string())
        arrow = dict(image=pa.array(cells, types[form])) | (
            {}
            if column is None
            else dict(
                label=pa.array(column, pa.string() if kind == "name" else pa.float64() if kind == "float" and not classes else pa.int64())
            )
        )
        write(tmp_path/f"{t}.parquet", classes if kind != "absent" else None, **arrow)
        names.append(f"{t}.parquet"); reds += range(n, n + len(values)); n += len(values)
        try: wanted.append(meaning(classes, column))
        except ValueError as e: fault = str(e); wanted.append([])
    labelled = [w for w in wanted if w is not None and len(w)]
    mixed = len({type(v) for w in wanted for v in (w or []) if v is not None}) > 1
    try: records = parquet_records(tmp_path, names)
    except ValueError as e:
        partly = labelled and any(w is None and values for w, (_, _, values, _) in zip(wanted, tables))
        unclear = (
            mixed
            or any(c for c, k, *_ in tables if k != "absent")
            and any(not c or c == ["0", "1", "2"] for c, *_ in tables)
            or any(k == "name" for _, k, *_ in tables)
        )
        assert fault or partly or unclear, e
        return
    assert not fault
    got = [records.classes[k] if k >= 0 else None for k in records.labels]
    flat = [
        None if v is None else str(v)
        for w, (_, _, values, _) in zip(wanted, tables)
        for v in (w if w is not None else [None] * len(values))
    ]
    assert got == flat
    assert [int(decode_bytes(d, 6)[0][0, 0, 0]) for d in records.read(records.where)] == reds
    if (
        len(tables) == 1 and n and not (tables[0][0] and tables[0][1] == "name")
    ):  # a ClassLabel of texts is a contradiction that only we can read
        ds = datasets.Dataset(pq.read_table(tmp_path / "0.parquet"))
        alike = hf_records(ds)
        assert alike.labels.tolist() == records.labels.tolist() and alike.classes == records.classes


def test_cells_and_types_of_every_width():
    for kind in (pa.binary(3), pa.large_string(), pa.string_view(), pa.binary_view(), pa.dictionary(pa.int8(), pa.large_binary())):
        check_image_type(kind, "i", "t")
    assert read_cell(memoryview(b"abc")) == b"abc" and read_cell(bytearray(b"abc")) == b"abc"

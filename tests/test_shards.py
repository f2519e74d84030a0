"""Tars, parquet files and Hugging Face data sets as records; damaged shards do not stop the others."""
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")
import pyarrow as pa
import pyarrow.parquet as pq

from diffprune.data.decode import decode_records
from diffprune.data.shards import hf_records, list_tar, number_labels, parquet_records, read_ranges, shard_split, tar_records


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name); info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def decoded(tmp_path, records, **kwargs):
    out = tmp_path/f"out{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    manifest = decode_records(out, records, 6, **kwargs)
    return np.load(out/"images.npy")[:, 0, 0, 0].tolist(), manifest


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format(tmp_path, format):
    long = "folder/" * 20 + "n1.png"
    with tarfile.open(tmp_path/"s.tar", "w", format=format) as tar:
        for name, data in ((long, png(7)), (long[:-3] + "cls", b"3"), ("n2.png", png(9))):
            info = tarfile.TarInfo(name); info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    reds, manifest = decoded(tmp_path, tar_records(tmp_path, ["s.tar"]))
    assert reds == [7, 9] and manifest["label"].tolist() == [3, -1] and manifest["id"].tolist() == [f"s.tar/{long}", "s.tar/n2.png"]


def test_tar_keys_end_at_the_first_dot_and_folders_may_have_dots(tmp_path):
    write_tar(tmp_path/"s.tar", [("v1.0/a.left.png", png(1)), ("v1.0/a.cls", b"5"), ("v1.0/b.png", png(2)), ("v1.0/b.json", b"{}"), ("README", b"x")])
    assert [(name, label) for name, *_, label in list_tar(tmp_path/"s.tar")[0]] == [("v1.0/a.left.png", 5), ("v1.0/b.png", None)]


def test_damaged_tars_are_reported_and_the_rest_is_read(tmp_path):
    write_tar(tmp_path/"a.tar", [("0.png", png(1)), ("1.png", png(2))]); whole = (tmp_path/"a.tar").read_bytes()
    second = list_tar(tmp_path/"a.tar")[0][1][1]
    (tmp_path/"b.tar").write_bytes(whole[:second + 10])
    (tmp_path/"c.tar").write_bytes(b"this is no tar at all" * 60)
    write_tar(tmp_path/"d.tar", [("0.png", png(3)), ("0.cls", b"not a number")])
    write_tar(tmp_path/"e.tar", [("0.png", png(4))], mode="w:gz")
    reds, manifest = decoded(tmp_path, tar_records(tmp_path, ["a.tar", "b.tar", "c.tar", "d.tar", "e.tar"]))
    assert reds == [1, 2, 1, 3]
    bad = manifest[manifest["reason"] != ""]
    assert bad["id"].tolist() == ["b.tar", "c.tar", "d.tar", "e.tar"] and bad["reason"].str.contains("damaged shard").all()


def test_ranges_report_a_missing_file(tmp_path):
    (tmp_path/"f").write_bytes(b"0123456789")
    got = list(read_ranges([("f", 2, 3), ("gone", 0, 1), OSError("known"), ("f", 0, 1)], tmp_path))
    assert got[0] == b"234" and isinstance(got[1], FileNotFoundError) and str(got[2]) == "known" and got[3] == b"0"


@pytest.mark.parametrize("as_struct", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_parquet(tmp_path, as_struct, workers):
    images = [dict(bytes=png(i), path=f"{i}.png") if as_struct else png(i) for i in range(10)]
    for name, part in (("a", slice(0, 6)), ("b", slice(6, 10))):
        pq.write_table(pa.table(dict(image=images[part], label=[i % 3 for i in range(10)][part])), tmp_path/f"{name}.parquet", row_group_size=4)
    reds, manifest = decoded(tmp_path, parquet_records(tmp_path, ["a.parquet", "b.parquet"]), workers=workers, block=3)
    assert reds == list(range(10)) and manifest["label"].tolist() == [i % 3 for i in range(10)] and manifest["id"][6] == "b.parquet:0"


def test_parquet_rows_without_an_image(tmp_path):
    pq.write_table(pa.table(dict(pic=[dict(bytes=png(4), path=None), None, dict(bytes=None, path="x.png"), dict(bytes=b"junk", path=None)])), tmp_path/"a.parquet")
    reds, manifest = decoded(tmp_path, parquet_records(tmp_path, ["a.parquet"], image="pic"))
    assert reds == [4] and manifest["reason"].tolist()[1:] == ["cannot be read: the row holds no image"] * 2 + ["not an image"]
    assert manifest["label"].tolist() == [-1] * 4


def test_damaged_parquet(tmp_path):
    table = pa.table(dict(image=[png(i) for i in range(4)]))
    pq.write_table(table, tmp_path/"a.parquet", row_group_size=1, compression="none", use_dictionary=False)
    data = (tmp_path/"a.parquet").read_bytes()
    (tmp_path/"b.parquet").write_bytes(data[:-12])
    (tmp_path/"c.parquet").write_bytes(b"")
    offset = pq.ParquetFile(tmp_path/"a.parquet").metadata.row_group(2).column(0).data_page_offset
    (tmp_path/"a.parquet").write_bytes(data[:offset] + b"\xff" * 30 + data[offset + 30:])
    reds, manifest = decoded(tmp_path, parquet_records(tmp_path, ["a.parquet", "b.parquet", "c.parquet"]))
    assert reds == [0, 1, 3] and manifest["id"][manifest["reason"] != ""].tolist() == ["a.parquet:2", "b.parquet", "c.parquet"]


def hf(values, **columns):
    features = datasets.Features(image=datasets.Image(), **{k: datasets.Value("string") if isinstance(v[0], str) else datasets.Value("int64") for k, v in columns.items()})
    return datasets.Dataset.from_dict(dict(image=[dict(bytes=png(v), path=None) for v in values], **columns), features=features)


@pytest.mark.parametrize("workers", [1, 2])
def test_hugging_face_data_set_with_chosen_rows(tmp_path, workers):
    chosen = hf(range(12), kind=list("abcabcabcabc"), key=[f"k{i}" for i in range(12)]).select([11, 3, 7, 0])
    reds, manifest = decoded(tmp_path, hf_records(chosen, label="kind", id="key"), workers=workers, block=2)
    assert reds == [11, 3, 7, 0] and manifest["id"].tolist() == ["k11", "k3", "k7", "k0"] and manifest["label"].tolist() == [2, 0, 1, 0]


def test_hugging_face_data_set_of_paths(tmp_path):
    (tmp_path/"there.png").write_bytes(png(8))
    paths = datasets.Dataset.from_dict(dict(image=[str(tmp_path/"there.png"), str(tmp_path/"gone.png")]), features=datasets.Features(image=datasets.Image()))
    reds, manifest = decoded(tmp_path, hf_records(paths))
    assert reds == [8] and "No such file" in manifest["reason"][1]


@pytest.mark.parametrize("values,labels,classes", [([3, 1], [3, 1], list("0123")), (["b", None, "a"], [1, -1, 0], ["a", "b"]), ([b"x", b"x"], [0, 0], ["x"]),
                                                   ([None, None], [-1, -1], []), ([np.int64(2)], [2], list("012")), ([], [], [])])
def test_labels(values, labels, classes):
    got = number_labels(values)
    assert got[0].tolist() == labels and got[1] == classes


@pytest.mark.parametrize("values", [[0.5], [-2], [[1]], ["a", 1]])
def test_bad_labels(values):
    with pytest.raises(ValueError, match="whole numbers"): number_labels(values)


@pytest.mark.parametrize("path,split", [("train-0.tar", "train"), ("imagenet1k-validation-00.tar", "val"), ("train/valid.parquet", "val"), ("VAL/7.tar", "val"),
                                        ("training_3.tar", "train"), ("constrain.tar", None), ("test-0.tar", None), ("interval.tar", None)])
def test_split_of_a_shard(path, split): assert shard_split(path) == split

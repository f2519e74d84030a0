"""Tars as records: what webdataset's reader reads is read alike, what it loses is not lost, and damage stays where it is."""
import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffprune.data.decode import LeftOut, decode_bytes, decode_records
from diffprune.data.shards import Member, choose_image, group_members, list_tar, read_ranges, shard_split, tar_records

FUZZ = int(os.environ.get("DIFFPRUNE_FUZZ", 150))  # layouts; `make fuzz` tries more


def png(value, format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (value, 0, 0)).save(buffer, format)
    return buffer.getvalue()


def link(target, kind=tarfile.SYMTYPE): return kind, target


def write_tar(path, members, mode="w", **kwargs):
    "Members are (name, content) or (name, link(...))."
    with tarfile.open(path, mode, **kwargs) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple): info.type, info.linkname, data = *data, b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def decoded(tmp_path, records, **kwargs):
    out = tmp_path/f"out{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    manifest = decode_records(out, records, 6, **kwargs)
    return np.load(out/"images.npy")[:, 0, 0, 0].tolist(), manifest


def read(tmp_path, *members, image=""):
    "Reds, labels and reasons by member of one shard."
    write_tar(tmp_path/"s.tar", members)
    reds, manifest = decoded(tmp_path, tar_records(tmp_path, ["s.tar"], image))
    bad = manifest["reason"] != ""
    return dict(zip(manifest["path"][~bad].str[6:], zip(reds, manifest["label"][~bad]))), dict(
        zip(manifest["path"][bad].str[6:], manifest["reason"][bad])
    )


# what the format's reader reads, and what it loses

@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format(tmp_path, format):
    long = "folder/" * 20 + "n1.png"
    write_tar(tmp_path/"s.tar", [(long, png(7)), (long[:-3] + "cls", b"3"), ("n2.png", png(9))], format=format)
    reds, manifest = decoded(tmp_path, tar_records(tmp_path, ["s.tar"]))
    assert reds == [7, 9] and manifest["label"].tolist() == [3, -1] and manifest["id"].tolist() == [f"s.tar/{long}", "s.tar/n2.png"]
    assert manifest["file"].tolist() == ["s.tar"] * 2 and manifest["member"].tolist() == [long, "n2.png"]


def test_dots_in_base_names_keep_their_labels(tmp_path):
    good, bad = read(
        tmp_path,
        ("scale0.5_0.png", png(1)),
        ("scale0.5_0.cls", b"4"),
        ("scale0.5_1.png", png(2)),
        ("scale0.5_1.cls", b"5"),
        ("scale0.5_1.mask.png", png(9)),
        ("v1.0/a.left.png", png(3)),
        ("v1.0/a.cls", b"6"),
        ("v1.0/b.png", png(4)),
        ("v1.0/b.json", b"{}"),
    )
    assert good == {"scale0.5_0.png": (1, 4), "scale0.5_1.png": (2, 5), "v1.0/a.left.png": (3, 6), "v1.0/b.png": (4, -1)} and not bad


def test_dotted_names_without_labels_are_samples_of_their_own(tmp_path):
    good, bad = read(
        tmp_path, *((f"scale{s}_{i}.png", png(10 * i + j)) for i in range(2) for j, s in enumerate(("0.5", "1.5"))), ("0.5/x.png", png(99))
    )
    assert (
        good == {f"scale{s}_{i}.png": (10 * i + j, -1) for i in range(2) for j, s in enumerate(("0.5", "1.5"))} | {"0.5/x.png": (99, -1)}
        and not bad
    )


def test_a_second_image_is_ignored_and_that_is_said(tmp_path, caplog):
    members = [
        (f"{i:03d}.{e}", d) for i in range(4) for e, d in (("jpg", png(i)), ("mask.png", png(100 + i)), ("cls", str(i % 2).encode()))
    ]
    good, bad = read(tmp_path, *members)
    assert good == {f"{i:03d}.jpg": (i, i % 2) for i in range(4)} and not bad
    assert "images in other fields of the samples are ignored (4 mask.png); image='mask.png' would read those" in caplog.text
    records = tar_records(tmp_path, ["s.tar"])
    assert records.ignored == [(f"s.tar/{i:03d}.mask.png", "another image of its sample") for i in range(4)]
    for image in ("mask.png", "mask", ".mask.png", "depth;mask"):
        assert read(tmp_path, *members, image=image)[0] == {f"{i:03d}.mask.png": (100 + i, i % 2) for i in range(4)}, image
    with pytest.raises(ValueError, match="no sample has an image in field 'photo': choose from jpg, mask.png"):
        tar_records(tmp_path, ["s.tar"], "photo")


def test_a_mask_alone_is_no_image(tmp_path):
    good, bad = read(tmp_path, ("0.jpg", png(1)), ("0.mask.png", png(2)), ("0.cls", b"0"), ("1.mask.png", png(3)), ("1.cls", b"1"))
    assert good == {"0.jpg": (1, 0)} and bad == {"1.cls": "a label without an image"}


def test_several_images_that_nothing_tells_apart_are_refused(tmp_path):
    write_tar(tmp_path/"s.tar", [("0.jpg", png(1)), ("0.png", png(2)), ("1.png", png(3))])
    with pytest.raises(ValueError, match=r"s\.tar: sample '0' has several images, jpg, png: choose with image='jpg', or image='jpg;png'"):
        tar_records(tmp_path, ["s.tar"])
    assert read(tmp_path, ("0.jpg", png(1)), ("0.png", png(2)), ("1.png", png(3)), image="jpg;png")[0] == {
        "0.jpg": (1, -1),
        "1.png": (3, -1),
    }
    stereo = [(f"{i}.{side}.jpg", png(10 * i + k)) for i in range(2) for k, side in enumerate(("left", "right"))]
    with pytest.raises(ValueError, match="several images, left.jpg, right.jpg"): read(tmp_path, *stereo, ("0.cls", b"0"))
    assert read(tmp_path, *stereo, image="right")[0] == {"0.right.jpg": (1, -1), "1.right.jpg": (11, -1)}


def test_views_of_samples_without_a_plain_image_are_no_samples_of_their_own(tmp_path):
    views = [(f"d/{i}.{side}.jpg", png(10 * i + k)) for i in range(2) for k, side in enumerate(("input", "target"))]
    with pytest.raises(ValueError, match="several images, input, target: choose with image='input'. If .* give image='jpg'"):
        read(tmp_path, *views)
    assert read(tmp_path, *views, image="input")[0] == {"d/0.input.jpg": (0, -1), "d/1.input.jpg": (10, -1)}
    assert len(read(tmp_path, *views, image="jpg")[0]) == 4
    assert len(read(tmp_path, *views[:2])[0]) == 2, "one pair alone says nothing"


def test_what_could_have_been_a_label_or_a_picture_is_said(tmp_path):
    write_tar(tmp_path/"a.tar", [("n1/0.jpg", png(1)), ("n1/0.txt", b"a cat"), ("n2/0.jpg", png(2)), ("n2/1.heic", b"x")])
    records = tar_records(tmp_path, ["a.tar"])
    assert records.notes == [
        "1 picture left out, of formats that cannot be opened here: a.tar/n2/1.heic",
        "no sample has a .cls, so there are no classes, although there are fields .txt and images lie in n1/, n2/",
    ]
    write_tar(tmp_path/"b.tar", [("0.jpg", png(1)), ("0.cls", b"1"), ("0.txt", b"a cat")])
    assert tar_records(tmp_path, ["b.tar"]).notes == []
    write_tar(tmp_path/"c.tar", [("0.jpg", png(1)), ("1.jpg", png(2))])
    assert tar_records(tmp_path, ["c.tar"]).notes == []


def test_one_bad_label_takes_out_its_own_sample_only(tmp_path, caplog):
    texts = [b"0", b"", b"cat", b"1\n", b" 2 ", b"2.0", b"-1", b"-5", b"123456789012", b"\xff", b"3"]
    good, bad = read(tmp_path, *(m for i, t in enumerate(texts) for m in ((f"{i}.png", png(i)), (f"{i}.cls", t))))
    assert good == {f"{i}.png": (i, k) for i, k in {0: 0, 3: 1, 4: 2, 6: -1, 10: 3}.items()}
    assert bad["1.png"] == "its label is empty" and bad["2.png"] == "its label 'cat' is no class number" and len(bad) == 6
    assert "6 of 11 images were left out" in caplog.text


def test_links(tmp_path):
    good, bad = read(
        tmp_path,
        ("0.png", png(1)),
        ("0.cls", b"2"),
        ("a/1.png", link("../0.png")),
        ("a/1.cls", link("0.cls", tarfile.LNKTYPE)),
        ("2.png", link("3.png")),
        ("3.png", link("0.png", tarfile.LNKTYPE)),
        ("4.png", link("../../etc/hosts")),
        ("5.png", link("5.png")),
        ("6.png", link("/etc/hosts")),
        ("7.png", png(7)),
        ("7.cls", link("nowhere.cls")),
    )
    assert good == {"0.png": (1, 2), "a/1.png": (1, 2), "2.png": (1, -1), "3.png": (1, -1)}
    assert (
        set(bad) == {"4.png", "5.png", "6.png", "7.png"}
        and all("which is no file of this shard" in r for r in bad.values())
        and "label" in bad["7.png"]
    )


def test_a_hard_link_means_the_member_before_it(tmp_path):
    good, _ = read(
        tmp_path, ("0.png", png(1)), ("x.png", link("0.png", tarfile.LNKTYPE)), ("0.png", png(2)), ("y.png", link("0.png", tarfile.LNKTYPE))
    )
    assert good == {"0.png": (1, -1), "x.png": (1, -1), "0.png#2": (2, -1), "y.png": (2, -1)}


def test_names_that_come_again(tmp_path):
    good, bad = read(tmp_path, ("0.png", png(1)), ("0.cls", b"1"), ("1.png", png(2)), ("1.cls", b"2"), ("0.png", png(3)), ("0.cls", b"3"))
    assert good == {"0.png": (1, 1), "1.png": (2, 2), "0.png#2": (3, 3)} and not bad
    good, bad = read(tmp_path, ("0.png", png(1)), ("0.PNG", png(2)), ("0.cls", b"1"), ("1.png", png(3)), ("1.cls", b"1"), ("1.cls", b"2"))
    assert good == {"0.png": (1, 1)} and bad == {"0.PNG": "repeats a name of its sample", "1.png": "it has more than one label"}


def test_members_of_a_sample_may_lie_apart(tmp_path):
    assert read(tmp_path, *((f"{i}.png", png(i)) for i in range(5)), *((f"{i}.cls", str(i).encode()) for i in range(5)))[0] == {
        f"{i}.png": (i, i) for i in range(5)
    }


def test_a_sample_ends_with_its_shard(tmp_path):
    write_tar(tmp_path/"a.tar", [("0.png", png(1)), ("0.cls", b"1"), ("1.png", png(2))])
    write_tar(tmp_path/"b.tar", [("1.cls", b"2"), ("2.png", png(3)), ("2.cls", b"2")])
    reds, manifest = decoded(tmp_path, tar_records(tmp_path, ["a.tar", "b.tar"]))
    assert (
        reds == [1, 2, 3]
        and manifest["label"].tolist() == [1, -1, -1, 2]
        and manifest["reason"].tolist() == ["", "", "a label without an image", ""]
    )


def test_what_is_no_image_is_listed_as_ignored(tmp_path):
    write_tar(
        tmp_path / "s.tar",
        [
            ("0.png", png(1)),
            ("0.json", b"{}"),
            ("0.txt", b"x"),
            ("._0.png", b"mac"),
            ("__meta__/1.png", png(2)),
            ("README", b"x"),
            ("features.h5", b"\x89HDF"),
            ("licence.pdf", b"%PDF"),
        ],
    )
    records = tar_records(tmp_path, ["s.tar"])
    assert records.ids == ["s.tar/0.png"] and dict(records.ignored) == {
        "s.tar/0.json": "no image", "s.tar/0.txt": "no image", "s.tar/._0.png": "hidden", "s.tar/__meta__/1.png": "metadata of the shard",
        "s.tar/README": "no extension", "s.tar/features.h5": "no image", "s.tar/licence.pdf": "no image"}
    out = tmp_path/"out"; out.mkdir(); decode_records(out, records, 6)
    import pandas as pd
    assert pd.read_parquet(out/"ignored.parquet")["path"].tolist() == [p for p, _ in records.ignored]


def test_names_that_are_no_text(tmp_path):
    good, _ = read(tmp_path, (b"caf\xe9.png".decode("utf-8", "surrogateescape"), png(1)), ("naïve.png", png(2)))
    assert good == {"caf\\xe9.png": (1, -1), "naïve.png": (2, -1)}


# damage

def test_damaged_tars_are_reported_and_the_rest_is_read(tmp_path):
    write_tar(tmp_path/"a.tar", [("0.png", png(1)), ("1.png", png(2))]); whole = (tmp_path/"a.tar").read_bytes()
    second = list_tar(tmp_path/"a.tar")[0][1].offset
    (tmp_path/"b.tar").write_bytes(whole[:second + 10])
    (tmp_path/"c.tar").write_bytes(b"this is no tar at all" * 60)
    (tmp_path/"d.tar").write_bytes(b"")
    (tmp_path/"e.tar").write_bytes(whole[:second - 512] + b"garbage" * 80 + whole[second:])
    (tmp_path/"f.tar").write_bytes(whole + whole)
    reds, manifest = decoded(tmp_path, tar_records(tmp_path, [f"{c}.tar" for c in "abcdefg"]))
    assert reds == [1, 2, 1, 1, 1, 2]
    bad = manifest[manifest["reason"] != ""]
    assert (
        bad["id"].tolist() == ["b.tar/1.png", "b.tar", "c.tar", "d.tar", "e.tar", "f.tar", "g.tar"]
        and bad["reason"].iloc[1:].str.contains("damaged shard").all()
    )
    assert (
        "ends within it" in bad["reason"].iloc[0]
        and "is not understood" in bad["reason"].iloc[4]
        and "is not understood" in bad["reason"].iloc[5]
    )


def test_a_label_that_was_cut_off_is_not_taken_for_another(tmp_path):
    write_tar(tmp_path/"s.tar", [("0.png", png(1)), ("0.cls", b"0"), ("1.png", png(2)), ("1.cls", b"12")])
    members = list_tar(tmp_path/"s.tar")[0]
    (tmp_path/"s.tar").write_bytes((tmp_path/"s.tar").read_bytes()[:members[3].offset + 1])
    records = tar_records(tmp_path, ["s.tar"])
    assert (
        records.labels.tolist() == [0, -1, -1]
        and "its label cannot be read" in str(records.where[1])
        and "damaged shard" in str(records.where[2])
    )


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("workers", [1, 2])
def test_compressed_tars(tmp_path, compress, workers):
    write_tar(tmp_path/"plain.tar", [m for i in range(20) for m in ((f"{i}.png", png(i)), (f"{i}.cls", str(i).encode()))])
    packed = compress((tmp_path/"plain.tar").read_bytes())
    (tmp_path/"a.tar").write_bytes(packed)
    (tmp_path/"b.tar").write_bytes(packed[:len(packed) // 2])
    records = tar_records(tmp_path, ["a.tar", "b.tar"])
    reds, manifest = decoded(tmp_path, records, workers=workers, block=6)
    assert reds[:20] == list(range(20)) and manifest["label"].tolist()[:20] == list(range(20)) and len(reds) < 40
    assert "damaged shard" in manifest["reason"].iloc[-1]


def test_ranges_report_a_missing_file(tmp_path):
    (tmp_path/"f").write_bytes(b"0123456789")
    got = list(read_ranges([("f", 2, 3), ("gone", 0, 1), OSError("known"), ("f", 0, 1), ("f", 8, 5)], tmp_path))
    assert (
        got[0] == b"234"
        and isinstance(got[1], FileNotFoundError)
        and str(got[2]) == "known"
        and got[3] == b"0"
        and "ends within" in str(got[4])
    )


# splits

@pytest.mark.parametrize(
    "path,split",
    [
        ("train-0.tar", "train"),
        ("imagenet1k-validation-00.tar", "val"),
        ("train/valid.parquet", "val"),
        ("VAL/7.tar", "val"),
        ("training_3.tar", "train"),
        ("constrain.tar", None),
        ("test-0.tar", "test"),
        ("interval.tar", None),
        ("Dev/0.tar", "val"),
        ("data/Eval-00000-of-00002.parquet", "test"),
        ("TESTING/1.tar", "test"),
        ("latest.tar", None),
    ],
)
def test_split_of_a_shard(path, split): assert shard_split(path) == split


# against the format's own reader, and against a slow one

def plain_shard(draw_order):
    members = [
        m
        for i in draw_order
        for m in ((f"d{i % 2}/{i:03d}.png", png(i)), (f"d{i % 2}/{i:03d}.cls", str(i % 3).encode()), (f"d{i % 2}/{i:03d}.json", b"{}"))
    ]
    return members


def test_valid_shards_are_read_as_webdataset_reads_them(tmp_path):
    wds = pytest.importorskip("webdataset")
    write_tar(tmp_path/"a.tar", plain_shard(range(10)))
    write_tar(
        tmp_path / "b.tar",
        [
            ("._x.png", b"mac"),
            ("__meta__/9.png", png(1)),
            ("README", b"x"),
            *plain_shard(range(10, 13)),
            ("n.mask.png", png(99)),
            ("n.png", png(50)),
        ],
    )
    theirs = [
        (s["__key__"], s["png"], s.get("cls"))
        for s in wds.WebDataset([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")], shardshuffle=False)
    ]
    records = tar_records(tmp_path, ["a.tar", "b.tar"])
    ours = [
        (name.rsplit(".", 1)[0], data, label) for name, data, label in zip(records.members, records.read(records.where), records.labels)
    ]
    assert [(k, d, -1 if c is None else int(c)) for k, d, c in theirs] == ours


PIXELS = [png(i) for i in range(40)]
NAMES = st.builds(
    lambda folder, base, field: f"{folder}{base}{field}",
    st.sampled_from(["", "", "d/", "v1.0/"]),
    st.sampled_from(["0", "1", "s0.5_0", "s0.5_1", "s0", "._0", "__m__/0"]),
    st.sampled_from(
        [
            ".png", ".png", ".cls", ".cls", ".PNG", ".jpg", ".CLS", ".json", ".mask.png", ".mask.cls", ".left.jpg", ".right.jpg", "", ".",
            "..png",
        ]
    ),
)
LABELS = st.sampled_from([b"0", b"1", b"7\n", b"", b"cat", b"-1", b"2.5", b"-3", b"99999999999"])
KINDS = st.sampled_from(["file"] * 12 + ["junk", "symlink", "hardlink", "folder", "pipe"])
# a number: a link to that member
MEMBERS = st.lists(st.tuples(NAMES, KINDS, LABELS, st.one_of(st.integers(0, 13), st.integers(0, 13), NAMES)), max_size=14)


def materialise(path, members):
    "Write a fuzzed shard."
    with tarfile.open(path, "w") as tar:
        for i, (name, kind, label, target) in enumerate(members):
            info = tarfile.TarInfo(name)
            if isinstance(target, int): target = members[target % len(members)][0]
            if kind == "symlink": info.type, info.linkname = tarfile.SYMTYPE, os.path.relpath(target, os.path.dirname(name) or ".")
            elif kind == "hardlink": info.type, info.linkname = tarfile.LNKTYPE, target
            elif kind == "folder": info.type = tarfile.DIRTYPE
            elif kind == "pipe": info.type = tarfile.FIFOTYPE
            data = (
                b""
                if info.type != tarfile.REGTYPE
                else label
                if name.lower().endswith(".cls")
                else b"junk"
                if kind == "junk"
                else PIXELS[i]
            )
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def contents(path):
    "Every member but folders as (name, bytes or None if there are none), by reading the whole tar."
    with tarfile.open(path) as tar:
        listed = [m for m in tar.getmembers() if not m.isdir()]
        data = [tar.extractfile(m).read() if m.isreg() else None for m in listed]
    norm = os.path.normpath
    for i, m in enumerate(listed):  # a hard link is the last file of that name before it
        if m.islnk():
            data[i] = next(
                (data[j] for j in reversed(range(i)) if norm(listed[j].name) == norm(m.linkname) and not listed[j].issym()), None
            )
    def final(name, trail=()):
        files = [data[j] for j, m in enumerate(listed) if norm(m.name) == name and (m.isreg() or m.islnk() and data[j] is not None)]
        if files: return files[-1]
        links = [m for j, m in enumerate(listed) if norm(m.name) == name and (m.issym() or m.islnk() and data[j] is None)]
        if not links or name in trail: return None
        base = os.path.dirname(links[-1].name) if links[-1].issym() else ""
        return final(norm(os.path.join(base, links[-1].linkname)), (*trail, name))
    for i, m in enumerate(listed):
        if m.issym(): data[i] = final(norm(os.path.join(os.path.dirname(m.name), m.linkname)))
        elif m.islnk() and data[i] is None: data[i] = final(norm(m.linkname))
    return [(m.name, d) for m, d in zip(listed, data)]


def is_picture(name): return name.lower().endswith((".png", ".jpg"))


def key_of(name, names):
    "The longest beginning with a .cls of its own, or else the shortest that is all but the last extension of some name."
    base = name.rsplit("/", 1)[-1]
    begins = [name[:len(name) - len(base) + i] for i in range(1, len(base) - 1) if base[i] == "."]
    own = [b for b in begins if any(o.startswith(b) and o[len(b):].lower() == ".cls" for o in names)]
    stem = [b for b in begins if any(o.startswith(b + ".") and "." not in o[len(b) + 1:-1] and "/" not in o[len(b):] for o in names)]
    return max(own, key=len) if own else min(stem, key=len)


def visible(name):
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and not name.startswith("__m__/") and re.search(r"[.][^.]", base) is not None


def reference(paths):
    """What shards hold by the rules in the notebook: {path: (red, label)}, the paths left out, the paths ignored; None if an image has
    to be chosen."""
    shards, good, bad, ignored = [], {}, [], []
    for path in paths:
        members, groups = contents(path), []
        names = [n for n, _ in members if visible(n)]
        ignored += [f"{path.name}/{n}" for n, _ in members if not visible(n)]
        previous = None
        for name, data in members:
            if not visible(name): continue
            key = key_of(name, names)
            field = name[len(key) + 1:].lower()
            mine = [g for g in groups if g["key"] == key]
            if not mine or (any(f == field for f, *_ in mine[-1]["members"]) and previous != key):
                groups.append(dict(key=key, members=[]))
                mine = groups
            mine[-1]["members"].append((field, name, data))
            previous = key
        shards.append((path, groups))
    pictures = lambda g: list(dict.fromkeys(f for f, *_ in g["members"] if is_picture("x." + f)))
    beside = {f for _, groups in shards for g in groups if any("." not in p for p in pictures(g)) for f in pictures(g) if "." in f}
    stems = defaultdict(set)
    for path, groups in shards:
        for g in groups:
            stem, _, word = g["key"].rpartition(".")
            letters = word and all(c == "_" or c.isascii() and c.isalpha() for c in word)
            if pictures(g) and letters and "." not in stem.rsplit("/", 1)[-1]: stems[path, stem].add(word.lower())
    sets = [words for words in stems.values() if len(words) > 1]
    if any(sets.count(words) > 1 for words in sets): return None
    count = defaultdict(int)
    for path, groups in shards:
        def call(name, path=path):
            count[path, name] += 1
            return f"{path.name}/{name}" + (f"#{count[path, name]}" if count[path, name] > 1 else "")
        for g in groups:
            plain = [f for f in pictures(g) if "." not in f] or [f for f in pictures(g) if f not in beside]
            if len(plain) > 1: return None
            images, labels = [[(n, d) for f, n, d in g["members"] if f == want] for want in ((plain or ["?"])[0], "cls")]
            ignored += [f"{path.name}/{n}" for f, n, _ in g["members"] if f not in (*plain, "cls")]
            if not images:
                if labels: bad.append(call(labels[0][0]))
                continue
            text = labels[0][1].decode("utf-8", "replace").strip() if labels and labels[0][1] is not None else None
            fine = not labels or (len(labels) == 1 and text is not None and re.fullmatch(r"-1|\d{1,6}", text))
            red = next((i for i, p in enumerate(PIXELS) if p == images[0][1]), None)
            name = call(images[0][0])
            if fine and red is not None: good[name] = (red, int(text) if labels else -1)
            else: bad.append(name)
            for n, _ in images[1:]: bad.append(call(n))
    return good, sorted(bad), sorted(ignored)


@settings(max_examples=FUZZ, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MEMBERS, min_size=1, max_size=2))
def test_fuzzed_shards_are_read_as_a_slow_reader_reads_them(tmp_path, shards):
    paths = [tmp_path/f"{i}.tar" for i in range(len(shards))]
    for path, members in zip(paths, shards): materialise(path, members)
    wanted = reference(paths)
    try: records = tar_records(tmp_path, [p.name for p in paths])
    except ValueError as e:
        assert wanted is None and "several images" in str(e)
        return
    assert wanted is not None
    out = [decode_bytes(data, 6) for data in records.read(records.where)]
    got = {p: (int(pixels[0, 0, 0]), int(label)) for p, label, (pixels, _) in zip(records.paths, records.labels, out) if pixels is not None}
    assert (got, sorted(p for p, (pixels, _) in zip(records.paths, out) if pixels is None), sorted(p for p, _ in records.ignored)) == wanted
    assert all(facts["reason"] for pixels, facts in out if pixels is None)
    others = sum(not n.lower().endswith(".cls") for path in paths for n, _ in contents(path))  # nothing but labels may vanish into a sample
    assert others == sum(not m.lower().endswith(".cls") for m in records.members) + sum(
        not p.lower().endswith(".cls") for p, _ in records.ignored
    )


def test_choices_and_groups_need_no_tar():
    members = [Member(name, 0, 0) for name in ("b.png", "a.png", "b.cls")]
    groups = group_members(members)
    assert [g.key for g in groups] == ["b", "a"] and [choose_image(g) for g in groups] == ["png", "png"] and groups[0].images() == ["png"]
    assert isinstance(LeftOut("x"), ValueError)

"""Folders: the listing, its identity, classes, and files that are not what they seem."""
import os

import pytest
from PIL import Image

from diffprune.data.decode import decode_records
from diffprune.data.folders import (
    FileEntry,
    class_labels,
    class_names,
    file_records,
    fingerprint,
    list_files,
    named_like_image,
    read_files,
    split_folder,
)


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def paint(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, 0, 0)).save(path)


def test_order_does_not_depend_on_how_files_were_made(tmp_path):
    names = ["b/2.png", "a/10.png", "a/9.png", "A/1.png", "c.png", "a.b/1.png", "ä/1.png"]
    for order, root in ((names, tmp_path/"x"), (names[::-1], tmp_path/"y")):
        for n in order: touch(root/n)
    assert [e.path for e in list_files(tmp_path/"x")] == [e.path for e in list_files(tmp_path/"y")] == sorted(names)


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    for n in ("b/2.png", "a/1.png", "c.png", "a/0.png"): touch(tmp_path/n)
    plain, scandir = list_files(tmp_path), os.scandir
    class Backwards:
        def __init__(self, path): self.items = sorted(scandir(path), key=lambda e: e.name, reverse=True)
        def __enter__(self): return iter(self.items)
        def __exit__(self, *a): pass
    monkeypatch.setattr(os, "scandir", Backwards)
    assert list_files(tmp_path) == plain


def test_hidden_files_are_not_listed_but_links_are(tmp_path):
    touch(tmp_path/"a"/"1.png"); touch(tmp_path/"a"/"._1.png"); touch(tmp_path/".cache"/"2.png"); touch(tmp_path/"a"/".DS_Store")
    outside = touch(tmp_path.parent/(tmp_path.name + "-outside")/"3.png")
    os.symlink(outside.parent, tmp_path/"linked"); os.symlink(outside, tmp_path/"4.png"); os.symlink(tmp_path, tmp_path/"a"/"loop")
    assert [e.path for e in list_files(tmp_path)] == ["4.png", "a/1.png", "linked/3.png"]


def test_identity_changes_with_any_file_and_only_then(tmp_path):
    for i in range(3): touch(tmp_path/"x"/f"{i}.png", b"abc")
    seen = [fingerprint(list_files(tmp_path/"x"))]
    assert fingerprint(list_files(tmp_path/"x")) == seen[0]
    os.utime(tmp_path/"x"/"0.png", ns=(5, 7)); seen.append(fingerprint(list_files(tmp_path/"x")))
    touch(tmp_path/"x"/"3.png"); seen.append(fingerprint(list_files(tmp_path/"x")))
    (tmp_path/"x"/"1.png").rename(tmp_path/"x"/"1b.png"); seen.append(fingerprint(list_files(tmp_path/"x")))
    s = (tmp_path/"x"/"2.png").stat(); (tmp_path/"x"/"2.png").write_bytes(b"abcd"); os.utime(tmp_path/"x"/"2.png", ns=(s.st_atime_ns, s.st_mtime_ns))
    seen.append(fingerprint(list_files(tmp_path/"x")))
    assert len(set(seen)) == 5
    (tmp_path/"x").rename(tmp_path/"y")
    assert fingerprint(list_files(tmp_path/"y")) == seen[-1]


@pytest.mark.parametrize("paths,auto,folders", [
    (["a/1.jpg", "b/2.jpg"], ["a", "b"], ["a", "b"]), (["a/1.jpg", "2.jpg"], [], ["a"]), (["1.jpg"], [], []), (["b/x/1.jpg", "a/2.JPG"], ["a", "b"], ["a", "b"]),
    (["a/1.jpg", "readme.txt", "c/list.csv"], ["a"], ["a"]), ([], [], [])])
def test_classes(paths, auto, folders):
    entries = [FileEntry(p, 1, 0) for p in paths]
    assert class_names(entries) == auto and class_names(entries, "folders") == folders and class_names(entries, "none") == []
    assert class_labels(entries, folders).tolist() == [folders.index(p.split("/")[0]) if p.split("/")[0] in folders and "/" in p else -1 for p in paths]


@pytest.mark.parametrize("name,yes", [("a.jpg", True), ("a.JPEG", True), ("a.b.png", True), ("a.webp", True), ("a.txt", False), ("jpg", False), ("a.npy", False)])
def test_names_of_images(name, yes): assert named_like_image(name) == yes


def test_split_folder_prefers_val(tmp_path):
    for n in ("train", "valid", "validation"): (tmp_path/n).mkdir()
    assert split_folder(tmp_path, "train").name == "train" and split_folder(tmp_path, "val").name == "valid"
    (tmp_path/"val").mkdir()
    assert split_folder(tmp_path, "val").name == "val"


def test_odd_files_are_left_out_with_a_reason(tmp_path):
    root, out = tmp_path/"in", tmp_path/"out"
    out.mkdir()
    paint(root/"good.png", 5); touch(root/"zero.jpg", b""); touch(root/"notes.txt", b"hello"); touch(root/"wrong.jpg", b"GIF89a but not really")
    os.mkfifo(root/"pipe.png"); os.symlink("nowhere", root/"broken.png"); paint(root/"misnamed.dat.png", 9)
    (root/"misnamed.dat.png").rename(root/"misnamed.dat")
    manifest = decode_records(out, file_records(root, list_files(root)), 8).set_index("id")["reason"]
    assert manifest[manifest == ""].index.tolist() == ["good.png", "misnamed.dat"], "content decides, not the name"
    assert manifest["zero.jpg"] == "empty file" and manifest["notes.txt"] == "not an image" and manifest["wrong.jpg"] == "not an image"
    assert "not a regular file" in manifest["pipe.png"] and "not a regular file" in manifest["broken.png"]


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try: paint(tmp_path/name)
    except OSError: pytest.skip("this file system takes only UTF-8 names")
    out = tmp_path/"out"; entries = list_files(tmp_path); out.mkdir()
    manifest = decode_records(out, file_records(tmp_path, entries), 8)
    assert manifest["id"].tolist() == ["caf\\xe9.png"] and manifest["reason"].tolist() == [""]


def test_huge_files_are_not_read(tmp_path):
    with open(tmp_path/"disk.img", "wb") as f: f.truncate(2**40)
    [problem] = read_files([(e.path, e.size) for e in list_files(tmp_path)], tmp_path)
    assert isinstance(problem, OSError) and "1099511627776 bytes" in str(problem)


def test_unreadable_files_do_not_stop_the_rest(tmp_path):
    paint(tmp_path/"a.png", 1); paint(tmp_path/"b.png", 2)
    entries = list_files(tmp_path)
    (tmp_path/"a.png").unlink()
    got = list(read_files([(e.path, e.size) for e in entries], tmp_path))
    assert isinstance(got[0], FileNotFoundError) and isinstance(got[1], bytes)

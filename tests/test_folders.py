"""Folders: the listing, its identity, classes, and files that are not what they seem."""
import hashlib
import os
import sys
import time

import numpy as np
import pytest
from PIL import Image

from diffprune.core.store import OWN_FOLDER, Store
from diffprune.data import folders
from diffprune.data.decode import decode_records
from diffprune.data.folders import (
    NO_IMAGE,
    FileEntry,
    called_image,
    file_hashes,
    file_id,
    file_records,
    file_systems,
    fingerprint,
    list_files,
    opens_as_image,
    read_files,
    read_hashes,
    scan_folder,
)


@pytest.fixture
def store(tmp_path): return Store(tmp_path.parent/(tmp_path.name + "-store"))


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


def test_what_this_package_writes_is_skipped_with_all_below_it(tmp_path):
    touch(tmp_path/"a"/"1.png"); touch(tmp_path/"a"/"out"/"deep"/"2.png"); touch(tmp_path/"a"/"out"/OWN_FOLDER)
    entries, skipped = scan_folder(tmp_path)
    assert [e.path for e in entries] == ["a/1.png"] and skipped == [("a/out/", "made by diffprune")]
    assert [e.path for e in list_files(tmp_path/"a"/"out")] == ["deep/2.png"], "unless it is asked for by name"


def test_a_store_in_the_folder_is_no_part_of_the_data(tmp_path):
    inside = Store(tmp_path/"cache")
    inside.build("toy", {}, make=lambda out: paint(out/"picture.png"))
    paint(tmp_path/"1.png")
    assert [e.path for e in list_files(tmp_path)] == ["1.png"]


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="the superuser may list everything")
def test_a_folder_that_cannot_be_listed_is_said(tmp_path):
    touch(tmp_path/"a"/"1.png"); touch(tmp_path/"b"/"2.png")
    os.chmod(tmp_path/"b", 0)
    try: entries, skipped = scan_folder(tmp_path)
    finally: os.chmod(tmp_path/"b", 0o755)
    assert [e.path for e in entries] == ["a/1.png"] and skipped == [("b/", "cannot be listed: Permission denied")]


# identity by content

def identity(folder, store):
    entries = list_files(folder)
    return fingerprint([e.path for e in entries], file_hashes(folder, entries, store))


def set_times(path, ns=10**18): os.utime(path, ns=(ns, ns))


def test_equal_names_sizes_and_times_but_other_contents(tmp_path, store):
    for name, content in (("x", b"abc"), ("y", b"xyz")):
        for i in range(3): set_times(touch(tmp_path/name/f"{i}.png", content))
    assert identity(tmp_path/"x", store) != identity(tmp_path/"y", store)
    for i in range(3): touch(tmp_path/"y"/f"{i}.png", b"abc")
    assert identity(tmp_path/"x", store) == identity(tmp_path/"y", store), "times do not matter"


@pytest.mark.parametrize("wait", [0, 0.2])
def test_a_change_in_place_with_the_same_size_and_time_is_seen(tmp_path, store, wait):
    path = touch(tmp_path/"d"/"1.png", b"abc"); set_times(path); time.sleep(wait)
    before, inode = identity(tmp_path/"d", store), path.stat().st_ino
    with open(path, "r+b") as f: f.write(b"xyz")
    set_times(path)
    assert path.stat().st_ino == inode and identity(tmp_path/"d", store) != before


def test_many_changes_within_a_tick_are_all_seen(tmp_path, store):
    seen, path = [], tmp_path/"d"/"1.png"
    for i in range(30):
        touch(path, b"%03d" % i)
        seen.append(identity(tmp_path/"d", store))
    assert len(set(seen)) == 30


def test_a_change_right_after_hashing_is_seen_although_much_was_left_to_hash(tmp_path, store, monkeypatch):
    "The table is written when all are hashed, which may take hours; a change within the tick of hashing does not show in a stat."
    path, real = touch(tmp_path/"d"/"1.png", b"abc"), folders._digest_of
    def slow(*args):
        found = real(*args)
        time.sleep(0.3)
        return found
    monkeypatch.setattr(folders, "_digest_of", slow)
    file_hashes(tmp_path/"d", list_files(tmp_path/"d"), store)
    assert read_hashes(store, tmp_path/"d") == {} and path.exists()


def test_identity_is_that_of_paths_and_contents(tmp_path, store):
    for i in range(3): touch(tmp_path/"x"/f"{i}.png", b"abc")
    seen = [identity(tmp_path/"x", store)]
    set_times(tmp_path/"x"/"0.png"); assert identity(tmp_path/"x", store) == seen[0], "touching a file changes nothing"
    touch(tmp_path/"x"/"3.png"); seen.append(identity(tmp_path/"x", store))
    (tmp_path/"x"/"1.png").rename(tmp_path/"x"/"1b.png"); seen.append(identity(tmp_path/"x", store))
    (tmp_path/"x"/"2.png").write_bytes(b"abd"); seen.append(identity(tmp_path/"x", store))
    (tmp_path/"x"/"0.png").unlink(); seen.append(identity(tmp_path/"x", store))
    assert len(set(seen)) == 5
    (tmp_path/"x").rename(tmp_path/"y")
    assert identity(tmp_path/"y", store) == seen[-1]


def opened_by(function, below):
    "Files below a folder that a function opens."
    opened, on = [], [True]
    def hook(event, args):
        if event != "open" or not on[0] or not isinstance(args[0], (str, bytes)): return
        if os.fsdecode(args[0]).startswith(str(below)): opened.append(args[0])
    sys.addaudithook(hook)
    try: function()
    finally: on[0] = False
    return opened


def test_files_that_were_seen_before_are_not_opened(tmp_path, store):
    for i in range(20): touch(tmp_path/"d"/f"{i:02d}.png", b"%02d" % i); touch(tmp_path/"d"/f"{i:02d}.json", b"{}")
    time.sleep(0.2)
    look = lambda: file_hashes(tmp_path/"d", list_files(tmp_path/"d"), store)
    assert len(opened_by(look, tmp_path/"d")) == 40 and opened_by(look, tmp_path/"d") == []
    touch(tmp_path/"d"/"20.png", b"20"); touch(tmp_path/"d"/"03.png", b"xx")
    assert sorted(os.path.basename(p) for p in opened_by(look, tmp_path/"d")) == ["03.png", "20.png"]


def test_damaged_or_unwritable_tables_of_hashes_cost_time_and_nothing_else(tmp_path, store):
    touch(tmp_path/"d"/"1.png", b"abc"); time.sleep(0.2)
    entries = list_files(tmp_path/"d")
    hashes = file_hashes(tmp_path/"d", entries, store)
    assert list(read_hashes(store, tmp_path/"d").values()) == hashes == [hashlib.sha256(b"abc").hexdigest()]
    table = next((store.root/"hashes").glob("*.parquet"))
    table.write_bytes(table.read_bytes()[:50])
    assert read_hashes(store, tmp_path/"d") == {} and file_hashes(tmp_path/"d", entries, store) == hashes
    (tmp_path/"file").touch()
    assert file_hashes(tmp_path/"d", entries, Store(tmp_path/"file")) == hashes, "a store that cannot be written to"


def test_file_systems_that_keep_no_time_of_change_are_not_trusted(tmp_path, store, monkeypatch):
    path = touch(tmp_path/"d"/"1.png", b"abc"); time.sleep(0.2)
    monkeypatch.setattr(folders, "file_systems", lambda: {path.stat().st_dev: "squashfs"})
    file_hashes(tmp_path/"d", list_files(tmp_path/"d"), store)
    assert read_hashes(store, tmp_path/"d") == {}


def test_mounts_are_read_as_linux_lists_them(tmp_path):
    lines = ["36 35 98:0 /a /b rw,noatime master:1 - ext3 /dev/root rw", "37 35 0:45 / /mnt ro - fuse.squashfuse x ro"]
    (tmp_path/"mountinfo").write_text("\n".join(lines) + "\n")
    assert file_systems(tmp_path/"mountinfo") == {os.makedev(98, 0): "ext3", os.makedev(0, 45): "fuse.squashfuse"}
    assert file_systems(tmp_path/"nowhere") == {}


def test_a_file_that_changes_while_it_is_hashed_is_hashed_again(tmp_path, store):
    path = touch(tmp_path/"d"/"1.png", b"abc")
    stale = [e._replace(size=1, ctime_ns=0) for e in list_files(tmp_path/"d")]
    assert file_hashes(tmp_path/"d", stale, store) == [hashlib.sha256(b"abc").hexdigest()]
    path.unlink()
    assert file_hashes(tmp_path/"d", stale, store) == ["!No such file or directory"]


# images and other files

def test_names_of_images():
    for name in ("a.jpg", "a.JPEG", "a.b.png", "a.webp", "a.avif"): assert called_image(name), name
    for name in ("a.txt", "jpg", "a.npy", "a.h5", "licence.pdf", "a.png.json"): assert not called_image(name), name


def test_content_decides_for_names_that_say_nothing(tmp_path, store):
    for name in ("picture", "b.dat"): paint(tmp_path/"a.png"); (tmp_path/"a.png").rename(tmp_path/name)
    others = {"README": b"Python, P6 and GIF are words", "x.txt": b"P6", "y.json": b"{}", "z": b"", "d.c": b"#define x 1",
              "c.h5": b"\x89HDF\r\n\x1a\n" + bytes(50), "cut.jpg": b"hello"}
    for name, content in others.items(): touch(tmp_path/name, content)
    entries = list_files(tmp_path)
    found = {e.path for e, h in zip(entries, file_hashes(tmp_path, entries, store)) if h != NO_IMAGE}
    assert found == {"picture", "b.dat", "cut.jpg"}
    assert [opens_as_image(tmp_path/n) for n in ("picture", "README", "c.h5", "nowhere")] == [True, False, False, False]


def test_a_file_that_gets_the_name_of_an_image_is_hashed(tmp_path, store):
    touch(tmp_path/"1.txt", b"hello"); time.sleep(0.2)
    assert file_hashes(tmp_path, list_files(tmp_path), store) == [NO_IMAGE]
    (tmp_path/"1.txt").rename(tmp_path/"1.png"); time.sleep(0.2)
    for _ in range(2): assert file_hashes(tmp_path, list_files(tmp_path), store) == [hashlib.sha256(b"hello").hexdigest()]


# reading

def test_odd_files_are_left_out_with_a_reason(tmp_path):
    root, out = tmp_path/"in", tmp_path/"out"
    out.mkdir()
    paint(root/"good.png", 5); touch(root/"zero.jpg", b""); touch(root/"notes.txt", b"hello"); touch(root/"wrong.jpg", b"GIF89a, or not")
    os.mkfifo(root/"pipe.png"); os.symlink("nowhere", root/"broken.png"); paint(root/"misnamed.dat.png", 9)
    (root/"misnamed.dat.png").rename(root/"misnamed.dat")
    manifest = decode_records(out, file_records(root, list_files(root)), 8).set_index("id")["reason"]
    assert manifest[manifest == ""].index.tolist() == ["good.png", "misnamed.dat"], "content decides, not the name"
    assert manifest["zero.jpg"] == "empty file" and manifest["notes.txt"] == "not an image" and manifest["wrong.jpg"]
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


def test_names_that_are_written_alike_are_refused(tmp_path):
    entries = [FileEntry("a\\xe9.png", 1, 0), FileEntry(os.fsdecode(b"a\xe9.png"), 1, 0)]
    assert file_id(entries[0].path) == file_id(entries[1].path)
    with pytest.raises(ValueError, match="ids must be unique"): file_records(tmp_path, entries)
    assert np.array_equal(file_records(tmp_path, entries[:1]).labels, [-1])

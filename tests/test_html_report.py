"""The page of a choice: what is on it, how large it is, that no name becomes markup, every warning, and what is refused."""
import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from html_pages import HOSTILE, choice, column, names_of, pictures, written
from PIL import Image

from diffprune.features.duplicates import group_duplicates
from diffprune.features.looks import Looks
from diffprune.report.choices import check_choice, cut_margins, leaks, read_choice, remarks
from diffprune.report.html_report import UNDO, pruning_report


class Elements(HTMLParser):
    "Elements, ids and visible text of a page."
    def __init__(self, text):
        super().__init__()
        self.elements, self.ids, self.text, self.inside = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [v for k, v in attrs if k == "id"]
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag: pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside): self.text += data


def looks(n, **changes):
    "Looks of n images of 640 × 480 that are all different."
    rng = np.random.default_rng(0)
    usual = dict(content=rng.integers(256, size=(n, 32), dtype=np.uint8), size=np.tile([640, 480], (n, 1)), bits=rng.integers(
        256, size=(n, 8), dtype=np.uint8), colour=np.full((n, 3), 100, np.float32), sharpness=np.full(n, 500, np.float32))
    return Looks(**usual | changes)


def test_page_has_every_section_and_its_numbers(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    text, data = written(tmp_path, features=X, layout="pca", title="My images", how="made like this")
    page = Elements(text)
    assert [e["id"] for tag, e in page.elements if tag == "section"] == [
        "warnings", "map", "cut", "clusters", "duplicates", "shares", "undo"]
    assert {"#" + i for i in page.ids} >= {e["href"] for tag, e in page.elements if tag == "a"}
    assert len(page.ids) == len(set(page.ids))
    for said in ("Of 60 images, 30 are kept and 30 pruned (50.0 %): 30 pruned by toy.",
                 "My images", "made like this", "3 classes", "4 clusters", "Cluster 3: "):
        assert said in page.text
    assert (data["n"], data["total"], len(data["thumbs"])) == (60, 60, 60)
    assert names_of(data) == choice().id.tolist()
    assert column(data, "kept", "u1").tolist() == [1, 0] * 30
    assert [data["labels"][i] for i in column(data, "label", "<i4")] == choice().label.tolist()
    assert column(data, "cluster", "<i4").tolist() == choice().cluster.tolist()
    assert np.ptp(column(data, "x", "<u2")) == np.ptp(column(data, "y", "<u2")) == 65535


def test_pictures_are_those_of_their_points(tmp_path):
    _, data = written(tmp_path)
    colours = np.stack([next(iter(pictures(60)([i])))[:, 0, 0] for i in range(60)]).astype(int)
    for k, i in enumerate(column(data, "thumb_at", "<i4")):
        with Image.open(io.BytesIO(base64.b64decode(data["thumbs"][k]))) as image:
            assert (image.format, image.size) == ("WEBP", (16, 16))
            assert abs(np.asarray(image.convert("RGB"), int)[8, 8] - colours[i]).max() < 25


def test_bytes_follow_from_the_input(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    assert written(tmp_path, features=X)[0] == written(tmp_path, features=X)[0]
    some = [written(tmp_path, choice(500), max_points=300, random_state=r)[1]["names"] for r in (0, 1)]
    assert len(some[0]) == len(some[1]) == 300 and some[0] != some[1]


def noise(positions):
    "Pictures that hardly compress."
    rng = np.random.default_rng(0)
    tiles = rng.integers(256, size=(64, 3, 96, 96), dtype=np.uint8)
    return (tiles[i % 64] for i in positions)


def many(n, name=lambda i: f"class {i % 1000:03d}/image {i:06d}.jpg"):
    rng = np.random.default_rng(0)
    kept = rng.random(n) < 0.4
    return choice(
    n, id=[
        name(i) for i in range(n)], kept=kept, label=[
            f"class {i % 1000:03d}" for i in range(n)], cluster=rng.integers(
                1000, size=n), score=rng.normal(
                    size=n), reason=np.where(
                        kept, "", "pruned by cluster_lite0"))


@pytest.mark.parametrize("n, name, points, named", [
    (100_000, lambda i: f"class {i % 1000:03d}/image {i:06d}.jpg", 100_000, True),
    (100_000, lambda i: f"{i:06d} " + "x" * 200 + ".jpg", 100_000, False),
    (250_000, lambda i: f"{i:06d}.jpg", 100_000, True)], ids=["usual", "long names", "more"])
def test_a_hundred_thousand_images_stay_below_20_megabytes(tmp_path, n, name, points, named):
    xy, few = np.random.default_rng(0).normal(size=(n, 2)), {} if n == points and named else dict(max_thumbnails=100)
    text, data = written(tmp_path, many(n, name), images=noise, layout=xy, **few)
    assert (tmp_path / "page.html").stat().st_size < 16_000_000
    assert (data["n"], data["total"], len(data["names"])) == (points, n, points if named else 0)
    assert len(data["thumbs"]) > 1000 or few
    assert len(column(data, "x", "<u2")) == points
    assert (f"Of {n:,} images, {points:,} are in this file" in text) == (points < n)
    assert ("Names were left away" in text) != named
    strips = data["strips"]
    assert len(strips["cut_kept"]["at"]) == len(strips["cut_pruned"]["at"]) == 24
    pictured = set(column(data, "thumb_at", "<i4").tolist())
    assert {i for s in ("cut_kept", "cut_pruned") for i in strips[s]["at"]} <= pictured, "what is shown comes before the random sample"


def test_smaller_budgets_are_kept(tmp_path):
    sizes = [len(written(tmp_path, many(900), images=noise, max_bytes=b)[0].encode()) for b in (600_000, 1_000_000)]
    assert sizes[0] <= 600_000 < sizes[1] <= 1_000_000
    assert len(written(tmp_path, many(900), images=noise, max_thumbnails=7)[1]["thumbs"]) == 7


@pytest.mark.parametrize("everywhere", [False, True])
def test_names_stay_text(tmp_path, everywhere):
    n = len(HOSTILE)
    plain, _ = written(tmp_path, choice(n))
    more = dict(label=HOSTILE, reason=HOSTILE, duplicate_of=pd.Series(["", *HOSTILE[:-1]], dtype=object)) if everywhere else {}
    text, data = written(tmp_path, choice(n, id=HOSTILE, **more), **dict(title=HOSTILE[3], how=HOSTILE[4]) if everywhere else {})
    shown = [name.replace("\udce9", "\\xe9") for name in HOSTILE]
    assert names_of(data) == shown
    if everywhere: assert sorted(data["labels"]) == sorted(data["reasons"]) == sorted(shown)
    page, usual = Elements(text), Elements(plain)
    tags = lambda p: {tag for tag, _ in p.elements} - {"details", "summary"}
    assert tags(page) <= tags(usual) | {"div", "p", "span"}
    assert sum(tag == "script" for tag, _ in page.elements) == 2 and text.count("</script>") == 2
    assert not [e for _, e in page.elements if any(k.startswith("on") for k in e)]
    if everywhere: assert HOSTILE[3] in page.text and HOSTILE[13] in page.text and "49.png" not in page.text
    if everywhere: assert "\\xe9" in page.text


def test_page_runs_its_own_script_and_asks_nobody(tmp_path):
    text, _ = written(tmp_path)
    script = re.findall(r"<script>(.*?)</script>", text, re.S)[0]
    policy = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)[0]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert not re.search(r"https?:|[\"'(]//|@import|url\(", re.sub(r'id="data">.*?</script>', "", text, flags=re.S))
    assert not [e for tag, e in Elements(text).elements if tag == "link" or "src" in e]


def test_no_folder_of_this_machine_is_on_the_page(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    text, data = written(tmp_path, choice(2, id=["a.png", "b.png"], path=[
                         str(tmp_path / "a.png"), str(tmp_path / "gone.png")]), images=None)
    assert str(tmp_path) not in text
    assert column(data, "thumb_at", "<i4").tolist() == [0]


at = np.arange(60)
WARNINGS = {
    "class gone": (dict(label=["rare"] * 2 + ["often"] * 58, kept=at > 1), {}, "1 class out of 2: rare; 2 images went", [0, 1]),
    "cluster emptied": (dict(cluster=np.where(at < 3, 7, 1), kept=at > 2), {}, "1 cluster out of 2: 7; 3 images went", [0, 1, 2]),
    "copies left": ({}, dict(copies=np.r_[at[:58], 2, 3]), "1 image that is an exact copy of another one that stays is", [2, 58]),
    "leak": ({}, dict(looks=looks(60), held_out=looks(60).take([4, 5])), "1 image that stays for training is also among", [4]),
    "blurred": ({}, dict(looks=looks(60, sharpness=np.where(at == 6, 1.0, 500))), "1 image that stays is blurred", [6]),
    "dark": ({}, dict(looks=looks(60, colour=np.where(at[:, None] == 8, 2.0, [100.0] * 3))), "1 image that stays is dark", [8]),
    "odd size": ({}, dict(looks=looks(60, size=np.where(at[:, None] == 10, [[3000, 480]], [[640, 480]]))),
                 "1 image that stays is of an", [10]),
    "unreadable": ({}, dict(left_out=pd.DataFrame(dict(path=["/data/b.png"], reason=["x"]))), "1 file could not be read", []),
    "all pruned": (dict(kept=False), {}, "no image stays at all", []),
}


@pytest.mark.parametrize("kind", WARNINGS)
def test_every_warning_is_given_with_its_images(tmp_path, kind):
    columns, options, said, at = WARNINGS[kind]
    text, data = written(tmp_path, choice(**columns), **options)
    found = re.findall(r'<div class="remark"><p><strong>(.*?)</strong> <span dir="auto">(.*?)</span>', text)
    number = [k for k, _ in found].index(kind)
    assert said in found[number][1]
    assert data["strips"][f"remark{number}"]["at"] == at
    usual, _ = written(tmp_path, looks=looks(60), held_out=looks(60).take([1, 3]), copies=np.arange(60))
    assert "Nothing was found." in usual and '<div class="remark">' not in usual and "Not looked at" not in usual


def test_what_was_not_looked_at_is_said(tmp_path):
    text, _ = written(tmp_path, pd.DataFrame(dict(id=["a", "b"], kept=[1, 0])))
    assert "Not looked at: 5 of the checks" in text
    for said in ("leaks into validation", "exact copies", "no classes", "not clustered", "blurred"): assert said in Elements(text).text


def test_only_what_stays_is_warned_of():
    table = check_choice(choice())
    pruned = looks(60, sharpness=np.where(np.arange(60) == 7, 1.0, 500), size=np.where(np.arange(60)[:, None] == 9, [[9, 9]], [[640, 480]]))
    assert [r.kind for r in remarks(table, pruned, copies=np.r_[np.arange(59), 1], held_out=looks(60).take([5]))[0]] == []


def test_near_copies_of_held_out_images_leak():
    mine, flipped = looks(60), looks(60).take([20])
    flipped.content[:] = 0
    flipped.bits[0, 0] ^= 0b101
    table = check_choice(choice())
    assert leaks(table, mine, flipped)[0].at.tolist() == [20]
    flipped.bits[0] ^= 0b1111
    assert leaks(table, mine, flipped) == []


@pytest.mark.parametrize("keep", ["high", "low", "mid"])
@pytest.mark.parametrize("clustered", [False, True])
def test_cut_is_where_the_fate_changes(keep, clustered):
    rng = np.random.default_rng(0)
    n, groups = 200, 4 if clustered else 1
    cluster, score, kept = rng.integers(groups, size=n), rng.normal(size=n), np.zeros(n, bool)
    score += cluster * 5
    for g in range(groups):
        m = np.flatnonzero(cluster == g)
        order = m[np.argsort(score[m])]
        kept[order[-20:] if keep == "high" else order[:20] if keep == "low" else order[10:30]] = True
    table = check_choice(pd.DataFrame(dict(id=range(n), kept=kept, score=score, **dict(cluster=cluster) if clustered else {})))
    margin = cut_margins(table)
    alone = [min(abs(score[j] - score[i]) for j in range(n) if kept[j] != kept[i] and cluster[j] == cluster[i]) for i in range(n)]
    assert np.allclose(margin, alone)


def test_ranks_and_former_steps_at_the_cut():
    table = pd.DataFrame(
    dict(
        id=list("abcdef"), kept=[
            1, 1, 0, 0, 0, 0], rank=[
                1, 2, 3, 4, None, 5], duplicate_of=[
                    "", "", "", "", "", "a"]))
    assert np.array_equal(cut_margins(check_choice(table)), [2, 1, 1, 2, np.nan, np.nan], equal_nan=True)


def test_duplicates_of_the_table_and_of_the_search(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    X[9], X[11] = X[2] * 2, X[2] * 1.5
    found = group_duplicates(looks(60), choice().id, X, max_bits=None, max_distance=0.001)
    text, data = written(tmp_path, features=X, layout="pca", duplicates=found)
    assert "1 group of duplicates" in text and "3 images, 1 kept" in text
    assert data["strips"]["group0"]["at"] == [2, 9, 11]
    told = choice(duplicate_of=pd.Series(["", choice().id[0]] + [""] * 58, dtype=object))
    text, data = written(tmp_path, told)
    assert data["strips"]["group0"] == dict(at=[0, 1], captions=["the one to keep", "pruned by toy"])
    assert column(data, "copy_of", "<i4")[:3].tolist() == [-1, 0, -1]
    assert "No image is marked as a duplicate" in written(tmp_path)[0]


def test_only_ids_and_fates_are_enough(tmp_path):
    text, data = written(tmp_path, pd.DataFrame(dict(id=["a"], kept=[True])))
    assert "x" not in data and "Without features there is no map" in text and 'id="canvas"' not in text
    assert "Of 1 image, 1 is kept and 0 pruned (0.0 %)." in text


@pytest.mark.parametrize("changes, error, said", [
    (dict(table=pd.DataFrame(dict(id=["a"]))), ValueError, "needs the columns id and kept"),
    (dict(table=choice(0)), ValueError, "no rows"),
    (dict(table=choice(2, id=["a", "a"])), ValueError, "'a' stands in the table more than once"),
    (dict(table=choice(2, id=["a", ""])), ValueError, "id is empty in row 1"),
    (dict(table=choice(2, kept=["True", "maybe"])), ValueError, "'maybe' in row 1"),
    (dict(table=choice(2, duplicate_of=["", "z"])), ValueError, "duplicate_of names 'z'"),
    (dict(table=choice(2, cluster=[0.5, 1])), ValueError, "whole numbers"),
    (dict(table=choice(2, score=["x", 1])), ValueError, "column score must hold numbers"),
    (dict(features=np.zeros((3, 2))), ValueError, "features of 3 images, but the table has 60 rows"),
    (dict(features=np.full((60, 2), np.nan)), ValueError, "must be finite"),
    (dict(features=np.zeros((60, 2)), layout="umap"), ValueError, "choose tsne or pca"),
    (dict(layout=np.zeros((60, 3))), ValueError, r"\(N, 2\) is expected"),
    (dict(layout=np.zeros((6, 2))), ValueError, "places of 6 images"),
    (dict(looks=looks(2)), ValueError, "looks of 2 images"),
    (dict(copies=np.arange(2)), ValueError, "copies of 2 images"),
    (dict(duplicates=group_duplicates(looks(3), list("abc"))), ValueError, "duplicates of 3 images"),
    (dict(images=np.zeros((2, 3, 4, 4), np.uint8)), ValueError, "2 images, but the table has 60 rows"),
    (dict(max_points=0), ValueError, "max_points=0"), (dict(max_thumbnails=0), ValueError, "max_thumbnails=0"),
    (dict(side=0), ValueError, "side=0"), (dict(output="there.html/page.html", overwrite=True), OSError, "cannot be written"),
    (dict(max_bytes=5000), ValueError, "allow more"),
    (dict(output="there.html"), FileExistsError, "exists"), (dict(output="."), IsADirectoryError, "is a folder"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_what_cannot_be_is_refused_before_any_image_is_read(changes, error, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    def none(positions): raise AssertionError("an image was read")
    with pytest.raises(error, match=said): pruning_report(**dict(table=choice(), output="new.html", images=none) | changes)
    assert [p.name for p in tmp_path.iterdir()] == ["there.html"] and (tmp_path / "there.html").read_text() == "mine"


def test_undo_is_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = check_choice(choice(len(HOSTILE), id=[h for h in HOSTILE if "\udce9" not in h] + ["last"], kept=False))
    table.to_csv("choice.csv", index=False)
    back = table.id.iloc[[2, 7, 15, 16]]
    (tmp_path / "images.csv").write_text("\n".join(["id", *('"' + i.replace('"', '""') + '"' for i in back)]) + "\n", encoding="utf-8")
    text, _ = written(tmp_path)
    assert UNDO in Elements(text).text
    exec(UNDO)
    after = read_choice("choice.csv")
    assert after.id[after.kept].tolist() == back.tolist()
    pd.testing.assert_frame_equal(after.drop(columns="kept"), table.drop(columns="kept"))

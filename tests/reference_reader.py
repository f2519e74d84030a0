"""A slow, obvious reader of image folders that shares no code with the package: the rules of `data/layouts`, one after the other."""
import csv
import json
import os
import posixpath
import re

from PIL import Image

EXTENSIONS = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif"}
WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
         "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}


class Unclear(Exception):
    "The folder cannot be read, or only by a decision of its owner."


def split_word(name):
    "The split of a folder's name: a word of the list, perhaps with a number behind it."
    name = name.strip().lower()
    for end in range(len(name), 0, -1):
        if name[:end] in WORDS and re.fullmatch(r"[\s._-]*[0-9]*", name[end:]): return WORDS[name[:end]]
    return None


def words_of(name):
    "A name cut where letters meet other characters, and where capitals begin: DIV2K_train_HR gives DIV 2 K train HR."
    words, word = [], ""
    for i, c in enumerate(name):
        kind = "digit" if c.isdigit() else "letter" if c.isascii() and c.isalpha() else ""
        before = "digit" if word and word[-1].isdigit() else "letter" if word else ""
        follows = i + 1 < len(name) and name[i + 1].isascii() and name[i + 1].islower()
        starts = kind != before or kind == "letter" and c.isupper() and (word[-1].islower() or follows)
        if starts and word: words.append(word); word = ""
        if kind: word += c
    return [w.lower() for w in [*words, word] if w]


def is_image(path):
    "Whether a file is called an image, or can be opened as one."
    if os.path.splitext(path)[1].lower() in EXTENSIONS: return True
    try:
        with Image.open(path) as image: return image.format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
    except Exception: return False


def every_file(root):
    "Paths below a folder, hidden files and folders apart."
    seen, hidden = [], []
    for place, folders, names in os.walk(root):
        base = os.path.relpath(place, root).replace(os.sep, "/")
        within = lambda name, base=base: name if base == "." else f"{base}/{name}"  # noqa: B023
        hidden += [within(n) for n in [*folders, *names] if n.startswith(".")]
        folders[:] = [f for f in folders if not f.startswith(".")]
        seen += [within(n) for n in names if not n.startswith(".")]
    return sorted(seen), sorted(hidden)


def first(path): return path.split("/")[0] if "/" in path else None


def rest(path): return path.split("/", 1)[1]


def pass_over(paths, mind_splits):
    "How many folders hold everything: all paths lie in one folder, and half of them or more deeper than directly in it."
    depth = 0
    while True:
        now = ["/".join(p.split("/")[depth:]) for p in paths]
        folders = {first(p) for p in now}
        if len(folders) != 1 or None in folders: return depth
        if mind_splits and split_word(folders.pop()): return depth
        deeper = [p for p in now if p.count("/") >= 2]
        if 2 * len(deeper) < len(now): return depth
        depth += 1


def alike_splits(names):
    "Folders whose names differ in the word for the split alone."
    sets = {}
    for name in names:
        words = words_of(name)
        hits = [w for w in words if w in WORDS or split_word(w)]
        if len(hits) == 1: sets.setdefault(tuple(w for w in words if w != hits[0]), {})[name] = split_word(hits[0])
    full = [s for s in sets.values() if "train" in s.values() and len(set(s.values())) > 1]
    if len(full) > 1: raise Unclear("several sets of splits")
    return full[0] if full else {}


def splits_of(paths, how):
    "Split of each path (None: in no split), and what of the path is left below it."
    depth = pass_over(paths, how != "none")
    short = {p: "/".join(p.split("/")[depth:]) for p in paths}
    folders = {first(s) for s in short.values()} - {None}
    if how == "none": return {p: ("train", s) for p, s in short.items()}
    named = {f: split_word(f) for f in folders if split_word(f)} or alike_splits(sorted(folders))
    if not named:
        if how == "folders": raise Unclear("no folder is called like a split")
        below = {p: split_word(first(rest(s))) if s.count("/") >= 2 and first(rest(s)) else None for p, s in short.items()}
        if all(below.values()) and "train" in below.values() and len(set(below.values())) > 1:
            return {p: (below[p], first(s) + "/" + rest(rest(s))) for p, s in short.items()}
        if any(split_word(folder) for s in short.values() for folder in s.split("/")[:-1]): raise Unclear("a split where none is expected")
        return {p: ("train", s) for p, s in short.items()}
    outside = [p for p in paths if first(short[p]) not in named]
    if how == "auto" and outside:
        others, kinds = folders - named.keys(), set(named.values())
        if 2 * len(outside) > len(paths) or "train" not in kinds or others and len(kinds) < 2: raise Unclear("a split or a class?")
    inside = {p: (named[first(s)], rest(s)) for p, s in short.items() if p not in outside}
    if how == "auto" and any(first(s) and split_word(first(s)) for _, s in inside.values()): raise Unclear("a split within a split")
    return {p: inside.get(p, (None, "")) for p in paths}


def folder_classes(below, how):
    "Class of each path of one split by its folder."
    if how == "none": return dict.fromkeys(below)
    depth = pass_over(list(below.values()), False)
    short = {p: "/".join(s.split("/")[depth:]) for p, s in below.items()}
    loose = [p for p, s in short.items() if not first(s)]
    names = {first(s) for s in short.values()}
    if how == "auto" and len(names) == 1 and not loose and names.pop().lower() in ("images", "image", "imgs", "img"):
        return dict.fromkeys(below)
    if how == "auto" and 2 * len(loose) > len(below): return dict.fromkeys(below)
    return {p: first(s) for p, s in short.items()}


def metadata_rows(root, path):
    "Rows of a metadata file: file_name and label as the file has them; None if it has no such columns."
    full = os.path.join(root, path)
    if path.lower().endswith(".jsonl"):
        with open(full, encoding="utf-8") as f: rows = [json.loads(line) for line in f if line.strip()]
    else:
        with open(full, newline="", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    columns = {c for row in rows for c in row}
    return [(row.get("file_name"), row.get("label")) for row in rows] if {"file_name", "label"} <= columns else None


def plain_labels(values, from_csv):
    "Labels as names, in the order of the classes; raises `Unclear` for missing ones and for mixtures."
    if from_csv:
        values = [None if v in ("", None, "nan") else v for v in values]
        numeric = [v for v in values if v is not None and re.fullmatch(r"-?\d+(\.\d*)?", v)]
        if 2 * len(numeric) > len([v for v in values if v is not None]): values = [float(v) if v in numeric else v for v in values]
    return values


def metadata_classes(root, files, images):
    "Class of each image by metadata files, and the names of the classes; None if there are none."
    found = {}
    for path in files:
        rows = metadata_rows(root, path)
        if rows is None: continue
        values = plain_labels([label for _, label in rows], path.lower().endswith(".csv"))
        for (name, _), value in zip(rows, values):
            if not name: raise Unclear("a row without a file name")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
            if target not in images: continue
            if target in found and found[target] != value: raise Unclear("two labels for one image")
            found[target] = value
    known = [v for v in found.values() if v is not None]
    if not known: return None
    if len(known) < len(found): raise Unclear("a label is missing")
    if len({isinstance(v, str) for v in known}) > 1: raise Unclear("text among numbers")
    if isinstance(known[0], str): return found, sorted(set(known))
    if any(v != int(v) or v < -1 for v in known): raise Unclear("not a class number")
    if all(v == -1 for v in known): return None
    return {p: None if v == -1 else str(int(v)) for p, v in found.items()}, [str(i) for i in range(int(max(known)) + 1)]


def read_folder(root, splits="auto", labels="auto"):
    """What a folder holds: split -> {path: class or None}, the names of the classes, and {path: reason} for every other file.

    Raises `Unclear` where the folder cannot be read without a decision of its owner.
    """
    paths, hidden = every_file(root)
    images = [p for p in paths if is_image(os.path.join(root, p))]
    others = [p for p in paths if p not in images]
    if not images: raise Unclear("no images")
    part = splits_of(images, splits)
    metadata = [p for p in others if posixpath.basename(p).lower() in ("metadata.csv", "metadata.jsonl")] if labels == "auto" else []
    given = metadata_classes(root, metadata, set(images))
    if labels == "auto" and all(posixpath.dirname(p) + "_stats.json" in others for p in images): labels = "none"  # of img2dataset
    classes, told = {}, set()
    for split in ("train", "val", "test"):
        below = {p: s for p, (k, s) in part.items() if k == split}
        if not below: continue
        of = folder_classes(below, labels)
        if given and set(below) & set(given[0]):
            of = {p: given[0].get(p) for p in below}
            told.add(split)
        classes[split] = of
    leaders = [classes["train"]] if "train" in classes else classes.values()
    leading = {c for of in leaders for c in of.values() if c}
    for split, of in classes.items():
        names = {c for c in of.values() if c}
        if names and not names & leading and split not in told: classes[split] = dict.fromkeys(of)
    used = sorted({c for of in classes.values() for c in of.values() if c})
    names = given[1] if given and set(used) <= set(given[1]) else used
    ignored = {p: "no image" for p in others} | {p: "in no split" for p,
                                                 (k, _) in part.items() if k is None} | {p: "hidden" for p in hidden}
    return classes, names, ignored

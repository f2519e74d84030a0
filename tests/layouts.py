"""Folders of images as people have them, and as nobody should: drawn by hypothesis, with what each file is known beforehand."""
import io
import os
from functools import cache

import numpy as np
from hypothesis import strategies as st
from PIL import Image

SPLITS = ["train", "Train", "TRAINING", "training", "val", "Valid", "VALIDATION", "dev", "test", "Testing", "EVAL", "train2017", "val2017"]
CLASSES = ["cat", "dog", "Cat", "fish.2", "ä", "test_tube", "train station", "images", "n01", "_x"]
ALIKE = ["cars_train", "cars_test", "DIV2K_train_HR", "DIV2K_valid_HR", "trainA", "testA", "trainB", "testB"]
STEMS = ["1", "2", "3", "scale0.5_0", "a.b.c", "IMG (1)", "ü", "Thumbs", "x" * 40]
IMAGES = [".png", ".PNG", ".jpg", ".jpeg", ".JPEG", ".gif", ".webp", ".bmp", ".tif"]
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", "": "PNG",
           ".dat": "JPEG"}
OTHERS = {"README.txt": b"hello", "Thumbs.db": b"\xd0\xcf\x11\xe0", "licence.pdf": b"%PDF-1.4",
          "features.h5": b"\x89HDF\r\n\x1a\n" + bytes(40), "list.csv": b"a,b\n",
          "photo.heic": b"\0\0\0 ftypheic", "Makefile": b"all:\n", "metadata.txt": b"x", "P1.md": b"P1 is a portable bitmap",
          ".DS_Store": b"\0\0\0\1Bud1", "._1.png": b"x"}
MODES = ["RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK"]


@cache
def picture(mode, value, format):
    "The bytes of a picture of one colour, and that colour as RGB (None where a lossy format may give a neighbour)."
    colour = (value, 255 - value, 90)
    image, seen = Image.new("RGB", (12, 10), colour), colour
    if mode in ("L", "LA"): image, seen = Image.new("L", (12, 10), value).convert(mode), (value,) * 3
    if mode == "1": image, seen = Image.new("1", (12, 10), value > 127), ((255,) * 3 if value > 127 else (0,) * 3)
    if mode == "P": image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    if mode == "RGBA": image, seen = Image.new("RGBA", (12, 10), (*colour, 0)), (255,) * 3  # all transparent: white
    if mode == "I;16": image, seen = Image.fromarray(np.full((10, 12), 257 * value, np.uint16)), (value,) * 3
    if mode == "CMYK": image, seen = image.convert("CMYK"), None
    allowed = dict(PNG=MODES[:7], TIFF=MODES[:7], JPEG=["RGB", "L", "CMYK"], GIF=["RGB", "L", "P"], WEBP=["RGB"], BMP=["RGB", "L"])
    if mode not in allowed[format]: return picture("RGB", value, format)
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue(), seen if format in ("PNG", "TIFF", "BMP") else None


@st.composite
def places(draw):
    "Folders in which files will lie: of a shape that somebody might mean, or of none."
    shape = draw(st.sampled_from(["flat", "classes", "splits", "splits and classes", "alike", "class-major", "shards", "any", "any"]))
    some = lambda pool, most: draw(st.lists(st.sampled_from(pool), min_size=1, max_size=most, unique=True))
    if shape == "flat": found = [""]
    elif shape == "classes": found = some(CLASSES, 4)
    elif shape == "splits": found = some(SPLITS, 3)
    elif shape == "splits and classes": found = [f"{s}/{c}" for s in some(SPLITS, 3) for c in some(CLASSES, 3)]
    elif shape == "alike": found = some(ALIKE, 3)
    elif shape == "class-major": found = [f"{c}/{s}" for c in some(CLASSES, 3) for s in some(SPLITS, 2)]
    elif shape == "shards": found = some(["00000", "00001", "00002"], 3)
    else: found = ["/".join(draw(st.lists(st.sampled_from([*SPLITS, *CLASSES, *ALIKE]),
                                          max_size=3))) for _ in range(draw(st.integers(1, 5)))]
    if draw(st.integers(0, 3)) == 0: found = [f"photos/{f}".rstrip("/") for f in found]  # one folder around everything
    if draw(st.integers(0, 4)) == 0: found.append(draw(st.sampled_from(["", "extra", "photos", found[0] + "/more"])))  # something beside it
    return found


@st.composite
def files(draw):
    "path -> (bytes, RGB or None, whether it can be read); bytes None for a link that leads nowhere."
    found = {}
    for folder in draw(places()):
        if folder[-5:].isdigit() and draw(st.integers(0, 4)): found[f"{folder}_stats.json"] = (b"{}", None, None)
        for _ in range(draw(st.integers(1, 4))):
            kind = draw(st.sampled_from(["image"] * 6 + ["damaged", "other", "sidecar", "odd name", "link"]))
            stem, extension = draw(st.sampled_from(STEMS)), draw(st.sampled_from(IMAGES))
            name = f"{folder}/{stem}{extension}".lstrip("/")
            data, seen = picture(draw(st.sampled_from(MODES)), draw(st.sampled_from([0, 40, 128, 200, 255])), FORMATS[extension.lower()])
            if kind == "image": found[name] = (data, seen, True)
            elif kind == "damaged": found[name] = (draw(st.sampled_from([b"", data[:20], b"not a picture",
                                                                         data[:len(data) // 2] if extension == ".png" else b""])), None,
                                                                         False)
            elif kind == "odd name":
                odd = draw(st.sampled_from(["", ".dat"]))
                data, seen = picture("RGB", draw(st.sampled_from([0, 200])), FORMATS[odd])
                found[f"{folder}/odd-{len(found)}{odd}".lstrip("/")] = (data, seen, True)
            elif kind == "link": found[name] = (None, None, False)
            elif kind == "sidecar":
                ending = draw(st.sampled_from([".json", ".txt", ".cls", f"{extension}.json"]))
                found[f"{folder}/{stem}{ending}".lstrip("/")] = (b'{"label": 1}', None, None)
            else:
                other = draw(st.sampled_from(sorted(OTHERS)))
                found[f"{folder}/{other}".lstrip("/")] = (OTHERS[other], None, None)
    return {path: what for path, what in found.items() if not any(p.startswith(path + "/") for p in found)}


@st.composite
def metadata(draw, paths):
    "A metadata file for some of the paths, with labels that may be missing or contradict each other: (path, bytes), or None."
    folders = sorted({os.path.dirname(p) for p in paths} | {""})
    if not paths or draw(st.integers(0, 3)): return None
    folder = draw(st.sampled_from(folders))
    below = [p for p in paths if p.startswith(folder + "/") or not folder]
    rows = [os.path.relpath(p, folder or ".").replace(os.sep, "/") for p in below if draw(st.integers(0, 9))]
    pool = draw(st.sampled_from([["cat", "dog"], [0, 1, 2], [0, 1, "x"], ["cat", None], [1.0, 0.0], ["cat", "cat", "dog", 3]]))
    more = draw(st.lists(st.sampled_from([*rows, "nowhere.png"]), max_size=1))  # a row that repeats, or one for a file that is not there
    table = [(row, draw(st.sampled_from(pool))) for row in [*rows, *more]]
    ending, column = draw(st.sampled_from([".csv", ".jsonl"])), draw(st.sampled_from(["label"] * 4 + ["text"]))
    if ending == ".csv":
        quote = lambda v: '"' + str("" if v is None else v).replace('"', '""') + '"'
        text = f"file_name,{column}\n" + "".join(f"{quote(name)},{quote(label)}\n" for name, label in table)
    else:
        import json
        text = "".join(json.dumps({"file_name": name, column: label}) + "\n" for name, label in table)
    return f"{folder}/metadata{ending}".lstrip("/"), text.encode()


@st.composite
def folders(draw):
    "A whole folder, as of `files`, perhaps with a metadata file."
    found = draw(files())
    more = draw(metadata(sorted(p for p, (_, _, readable) in found.items() if readable is not None)))
    return found | ({more[0]: (more[1], None, None)} if more else {})


def write_folder(root, found):
    "Write a drawn folder to the disk."
    for path, (data, _, _) in found.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if data is None: os.symlink("nowhere", place)
        else: place.write_bytes(data)
    return root

"""Decoding: every odd file is read right or left out with a reason, and a killed run goes on where it stopped."""
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_images import cells, encoded
from PIL import Image, ImageFile, features

from diffprune.data.decode import (
    Decoded,
    Records,
    center_crop,
    decode_bytes,
    decode_records,
    drop_rows,
    image_formats,
    named_like_image,
    read_journal,
    to_array,
    to_rgb,
)

GRADIENT = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (24, 1))  # 24 high, 32 wide
RGB = np.stack([GRADIENT, GRADIENT[:, ::-1], np.full_like(GRADIENT, 90)], -1)


def pixels(data, size=None):
    out, facts = decode_bytes(data, size)
    assert facts["reason"] == "", facts
    return out.transpose(1, 2, 0).astype(int)


@pytest.mark.parametrize("format,tolerance", [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("JPEG", 12), ("WEBP", 30), ("PPM", 0)])
def test_plain_rgb_of_every_format(format, tolerance):
    assert np.abs(pixels(encoded(Image.fromarray(RGB), format)) - RGB).max() <= tolerance


def test_sixteen_bit_grey_is_scaled_not_clipped():
    wide = (GRADIENT.astype(np.uint16) * 257)
    for format in ("PNG", "TIFF"):
        got = pixels(encoded(Image.fromarray(wide), format))
        assert np.array_equal(got[..., 0], GRADIENT) and np.array_equal(got[..., 0], got[..., 2])


CELLS = list(cells())


@pytest.mark.parametrize("name,data,seen,tolerance", CELLS, ids=[c[0] for c in CELLS])
def test_every_mode_of_every_container(name, data, seen, tolerance):
    "Read right, by formulas in numpy, or left out with the reason."
    out, facts = decode_bytes(data, None)
    if isinstance(seen, str): assert out is None and seen in facts["reason"], facts
    else: assert facts["reason"] == "" and np.abs(out.transpose(1, 2, 0) - seen).max() <= tolerance


def test_the_table_of_modes_is_complete():
    containers, modes = ({f(name) for name, *_ in CELLS} for f in (lambda n: n.split()[0], lambda n: n.partition("from mode ")[2]))
    assert {"PNG", "TIFF", "WEBP", "AVIF", "JPEG", "PPM", "PGM", "PBM", "PFM", "GIF"} <= containers
    assert set(Image.MODES) - modes == {"La"}, "La can be written to nothing; there is a TIFF of it by hand"


def test_the_list_of_extensions_holds_what_can_be_opened():
    assert all(
        named_like_image(f"a{e}")
        for e in (".png", ".jpg", ".jpeg", ".JPEG", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".ico", ".tga", ".mpo")
    )
    assert named_like_image("a.avif") == features.check("avif") and named_like_image("a.jp2") == features.check("jpg_2000")
    stubs = [
        name for name, (factory, _) in Image.OPEN.items() if isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    ]
    assert {"HDF5", "GRIB", "BUFR"} <= set(stubs) and not set(stubs) & set(image_formats())
    for e in (".pdf", ".h5", ".hdf", ".mpg", ".mpeg", ".eps", ".ps", ".palm", ".wmf", ".grib", ".txt", ".json", ""):
        assert not named_like_image("a" + e)


WRITABLE = sorted(f for f in image_formats() if f in Image.SAVE)


@pytest.mark.parametrize("format", WRITABLE)
def test_every_format_on_the_list_is_read(format):
    assert len(WRITABLE) >= 20
    for mode in ("RGB", "P", "L", "1", "F"):  # some formats take one of them only
        image = Image.new("RGB", (128, 128), (204, 204, 204)).convert(mode)
        try: data = encoded(image, format, **({"quality": 100} if format in ("JPEG", "AVIF", "WEBP") else {}))
        except (OSError, ValueError, KeyError): continue
        out, facts = decode_bytes(data, None)
        if mode == "F" or format == "SPIDER": assert "floats" in facts["reason"]
        else: assert facts["reason"] == "" and (mode == "1" or np.abs(out.astype(int) - 204).max() <= 5)
        return
    pytest.fail("cannot be written in any mode")


def test_a_plugin_that_registers_a_format_is_asked(monkeypatch):
    class Own(ImageFile.ImageFile):
        format, format_description = "OWN", "a picture of one pixel"
        def _open(self): self._mode, self._size, self.tile = "L", (1, 1), [ImageFile._Tile("raw", (0, 0, 1, 1), 3, "L")]
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    Image.register_open("OWN", Own, lambda prefix: prefix.startswith(b"OWN")); Image.register_extension("OWN", ".own")
    assert named_like_image("a.own") and decode_bytes(b"OWN\x09", None)[0].ravel().tolist() == [9, 9, 9]


def test_cmyk_keeps_its_colours():
    got = pixels(encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(got - RGB).mean() < 6


def test_palette_with_a_transparent_entry_becomes_white():
    image = Image.fromarray((GRADIENT > 128).astype(np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    got = pixels(encoded(image, "PNG", transparency=0))
    assert (got[:, 0] == 255).all() and (got[:, -1] == [0, 0, 255]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "HSV", "YCbCr"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(RGB).convert(mode)
    assert to_rgb(image).mode == "RGB" and to_rgb(image).size == (32, 24)


def test_transparency_shows_white_not_what_lies_beneath():
    rgba = np.dstack([RGB, np.zeros((24, 32), np.uint8)])
    assert (pixels(encoded(Image.fromarray(rgba), "PNG")) == 255).all()


TURNS = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
         6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a)}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    "format,options,tolerance",
    [
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", dict(lossless=True), 0),
        ("JPEG", dict(quality=100, subsampling=0), 4),
        ("AVIF", dict(quality=100, subsampling="4:4:4"), 6),
    ],
)
def test_exif_rotation_is_applied_in_every_container(format, options, tolerance, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pixels(encoded(Image.fromarray(RGB), format, exif=exif, **options))
    assert np.abs(got - TURNS[orientation](RGB).astype(int)).max() <= tolerance


def test_webp_is_turned_although_torchvision_does_not_turn_it():
    io = pytest.importorskip("torchvision.io")
    import torch

    exif = Image.Exif()
    exif[0x0112] = 6
    for format, turned in (("JPEG", True), ("PNG", True), ("WEBP", False)):
        data = encoded(Image.fromarray(RGB), format, exif=exif)
        assert decode_bytes(data, None)[0].shape == (3, 32, 24)
        theirs = io.decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), apply_exif_orientation=True)
        assert tuple(theirs.shape) == ((3, 32, 24) if turned else (3, 24, 32)), "if this changes, the list of wrong guesses does"


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    assert (pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]).all()


JPEG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
PNG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG")
BOMB = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
BOMB[16:24] = (30000).to_bytes(4, "big") * 2  # a header that claims 900 million pixels
BAD = {
    "empty": b"",
    "text": b"hello, I am no picture",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "jpeg cut in half": JPEG[: len(JPEG) // 2],
    "png cut in half": PNG[: len(PNG) // 2],
    "jpeg header only": JPEG[:200],
    "png header only": PNG[:30],
    "claims to be enormous": bytes(BOMB),
    "float tiff": encoded(Image.fromarray(GRADIENT.astype(np.float32)), "TIFF"),
    "32-bit integers": encoded(Image.fromarray(GRADIENT.astype(np.int32)), "TIFF"),
    "a strip": encoded(Image.new("L", (60000, 1)), "PNG"),
    "could not be read": PermissionError(13, "Permission denied"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_have_a_reason_and_no_pixels(case):
    out, facts = decode_bytes(BAD[case], 64)
    assert out is None and facts["reason"], facts


WHOLE = [JPEG, PNG, *(data for name, data, seen, _ in CELLS if not isinstance(seen, str))]


@settings(max_examples=int(os.environ.get("DIFFPRUNE_FUZZ", 300)), deadline=None)
@given(st.sampled_from(WHOLE), st.floats(0, 1), st.binary(max_size=200), st.sampled_from(["cut", "overwrite", "insert", "remove"]))
def test_damaged_files_have_pixels_or_a_reason(base, place, junk, how):
    "Under `make fuzz`, DIFFPRUNE_FUZZ says how many files. A crash of a decoder would end the whole test run."
    at = int(place * len(base))
    damaged = dict(
        cut=base[:at],
        overwrite=base[:at] + junk + base[at + len(junk) :],
        insert=base[:at] + junk + base[at:],
        remove=base[:at] + base[at + len(junk) :],
    )[how]
    out, facts = decode_bytes(damaged, 16)
    assert (out is None) == bool(facts["reason"]) and facts["sha256"]
    assert out is None or out.shape == (3, 16, 16) and out.dtype == np.uint8


def test_what_was_decoded_before_is_passed_on():
    before = Decoded(np.zeros((3, 4, 4), np.uint8), dict(width=9, height=9, sha256="x", reason=""))
    assert decode_bytes(before, 4) is before


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 48))
def test_crop_always_has_the_size_asked_for(w, h, size):
    assert center_crop(Image.new("RGB", (w, h)), size).size == (size, size)


def center_crop_arr(pil_image, image_size):
    "The published function of ADM and DiT, as an independent reference."
    while min(*pil_image.size) >= 2 * image_size:
        pil_image = pil_image.resize(tuple(x // 2 for x in pil_image.size), resample=Image.BOX)
    scale = image_size / min(*pil_image.size)
    pil_image = pil_image.resize(tuple(round(x * scale) for x in pil_image.size), resample=Image.BICUBIC)
    arr = np.array(pil_image)
    crop_y, crop_x = (arr.shape[0] - image_size) // 2, (arr.shape[1] - image_size) // 2
    return arr[crop_y:crop_y + image_size, crop_x:crop_x + image_size]


@pytest.mark.parametrize("w,h,size", [(500, 375, 64), (375, 500, 64), (33, 90, 32), (20, 30, 64), (256, 256, 256), (255, 257, 16)])
def test_same_as_adm_and_dit(w, h, size):
    image = Image.fromarray(np.random.default_rng(w).integers(0, 256, (h, w, 3), dtype=np.uint8))
    assert np.array_equal(to_array(image, size).transpose(1, 2, 0), center_crop_arr(image, size))


# many files


def read_list(where):
    yield from where


def fragile(where):
    "A source where some records end the process that reads them, as a crash in a C decoder does."
    for data in where:
        if data == b"deadly": os._exit(11)
        yield data


def slowly(where, log):
    "Notes what was read and takes its time, so that a test can kill the run half-way."
    for data in where:
        with open(log, "a") as f: f.write(".")
        time.sleep(0.02)
        yield data


def records(contents, read=read_list):
    ids = [f"r{i:03d}" for i in range(len(contents))]
    return Records(ids, ids, list(contents), read, np.zeros(len(contents), int), ["only"])


def flat(value): return encoded(Image.new("RGB", (8, 8), (value, 0, 0)), "PNG")


def test_parallel_equals_serial_and_keeps_order(tmp_path):
    contents = [flat(i) if i % 7 else b"bad" for i in range(100)]
    a = decode_records(tmp_path/"a", _folder(records(contents), tmp_path/"a"), 8, workers=1, block=10)
    b = decode_records(tmp_path/"b", _folder(records(contents), tmp_path/"b"), 8, workers=2, block=7)
    assert a.equals(b)
    images = np.load(tmp_path/"b"/"images.npy")
    assert np.array_equal(images, np.load(tmp_path/"a"/"images.npy"))
    assert images[:, 0, 0, 0].tolist() == [i for i in range(100) if i % 7]
    assert b.loc[b["reason"] != "", "id"].tolist() == [f"r{i:03d}" for i in range(0, 100, 7)]


def _folder(value, folder):
    folder.mkdir()
    return value


def test_a_file_that_kills_its_process_is_left_out(tmp_path):
    contents = [flat(i) for i in range(30)]
    contents[4] = contents[17] = b"deadly"
    manifest = decode_records(tmp_path, records(contents, fragile), 8, workers=2, block=5)
    assert manifest.index[manifest["reason"] != ""].tolist() == [4, 17]
    assert "died" in manifest["reason"][4]
    assert np.load(tmp_path/"images.npy")[:, 0, 0, 0].tolist() == [i for i in range(30) if i not in (4, 17)]


SCRIPT = """
import sys; sys.path.insert(0, {here!r})
from functools import partial
from test_decode import *
contents = [flat(i) if i != 13 else b"bad" for i in range(40)]
decode_records({folder!r}, records(contents, partial(slowly, log={log!r})), 8, workers=1, block=4)
"""


@pytest.mark.parametrize("reads_before_kill", [6, 21, 39])
def test_resumes_after_sigkill(tmp_path, reads_before_kill):
    log, folder = tmp_path/"log", tmp_path/"work"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT.format(here=str(Path(__file__).parent), folder=str(folder), log=str(log))])
    deadline = time.monotonic() + 60
    while (not log.exists() or log.stat().st_size < reads_before_kill) and time.monotonic() < deadline: time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = log.stat().st_size
    contents = [flat(i) if i != 13 else b"bad" for i in range(40)]
    manifest = decode_records(folder, records(contents, partial(slowly, log=str(log))), 8, workers=1, block=4)
    assert log.stat().st_size - done <= 40 - (done // 4 - 1) * 4, "finished blocks are not read again"
    (tmp_path/"whole").mkdir()
    whole = decode_records(tmp_path/"whole", records(contents), 8)
    assert manifest.equals(whole)
    assert np.array_equal(np.load(folder/"images.npy"), np.load(tmp_path/"whole"/"images.npy"))


def test_finished_work_is_not_repeated(tmp_path):
    contents = [flat(1), b"bad", flat(2)]
    first = decode_records(tmp_path, records(contents), 8)
    before = (tmp_path/"images.npy").stat().st_mtime_ns
    def never(where): raise AssertionError("read again")
    again = decode_records(tmp_path, records(contents, never), 8)
    assert first.equals(again) and (tmp_path/"images.npy").stat().st_mtime_ns == before


def test_other_work_in_the_folder_is_not_mistaken_for_ours(tmp_path):
    decode_records(tmp_path, records([flat(1), flat(2)]), 8)
    decode_records(tmp_path, records([flat(3), flat(4)]), 4)
    assert np.load(tmp_path/"images.npy")[:, 0, 0, 0].tolist() == [3, 4]


@pytest.mark.parametrize("tail", ["", "[2, [[8, 8, ", "garbage\n[2, []]\n"])
def test_torn_journal_lines_do_not_count(tmp_path, tail):
    path = tmp_path/"journal.jsonl"
    path.write_text(json.dumps(dict(n=4)) + "\n" + "[0, [[8, 8, \"x\", \"\"]]]\n" + tail)
    assert read_journal(path, dict(n=4)) == {0: [[8, 8, "x", ""]]}
    assert read_journal(tmp_path/"absent", {}) == {}


def test_work_continues_after_a_torn_journal_line(tmp_path):
    contents = [flat(i) for i in range(6)]
    header = dict(n=6, block=2, image_size=8)
    whole = decode_records(tmp_path/"w", _folder(records(contents), tmp_path/"w"), 8, block=2)
    np.save(tmp_path/"images.npy", np.zeros((6, 3, 8, 8), np.uint8))
    (tmp_path/"journal.jsonl").write_text(json.dumps(header) + "\n[0, [[8,")
    manifest = decode_records(tmp_path, records(contents), 8, block=2)
    assert manifest.equals(whole) and np.load(tmp_path/"images.npy")[:, 0, 0, 0].tolist() == list(range(6))


def test_nothing_readable_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none of 2 images could be read.*r000: not an image"):
        decode_records(tmp_path, records([b"x", b""]), 8)
    with pytest.raises(ValueError, match="no images"): decode_records(tmp_path, records([]), 8)


def test_warns_of_left_out_files(tmp_path, caplog):
    decode_records(tmp_path, records([flat(1), b"x"]), 8)
    assert "1 of 2 images were left out" in caplog.text and "r001" in caplog.text


def test_drop_rows_in_blocks(tmp_path):
    np.save(tmp_path/"images.npy", np.arange(1000, dtype=np.uint8).reshape(1000, 1, 1, 1))
    keep = np.random.default_rng(0).random(1000) < 0.7
    drop_rows(tmp_path, keep)
    assert np.array_equal(np.load(tmp_path/"images.npy").ravel(), np.arange(1000, dtype=np.uint8)[keep])

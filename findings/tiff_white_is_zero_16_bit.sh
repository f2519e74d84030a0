#!/usr/bin/env bash
# Pillow: a 16-bit TIFF in which zero means white comes out as its negative; an 8-bit one does not.
#
# Guess:   Image.open honours PhotometricInterpretation = 0 whatever the number of bits.
# Seen:    8-bit values are inverted, so that 255 is white; 16-bit values are handed out as they are stored.
# Matters: Scanners and medical devices write such files. Beside files of the usual kind, black and white are swapped for some.
# Source:  TIFF 6.0, PhotometricInterpretation 0 (WhiteIsZero); Pillow's table of modes in TiffImagePlugin.OPEN_INFO
#
# Makes a folder of its own, installs the packages named below into it, runs them on small valid input and removes the folder.
# Exit status: 0 if the behaviour is still as described, 1 if it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0
cd "$work"
"$work/venv/bin/python" - <<'EOF'
import sys
import io
import struct

import PIL
from PIL import Image
print("version:  ", "Pillow", PIL.__version__)

SOURCE = "TIFF 6.0, PhotometricInterpretation 0 (WhiteIsZero); Pillow's table of modes in TiffImagePlugin.OPEN_INFO"
def tiff(bits, pixels):
    "A TIFF of two grey pixels, uncompressed, in which zero is white."
    data = struct.pack("<2H" if bits == 16 else "<2B", *pixels).ljust(4, b"\0")
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: 0, 273: 8, 277: 1, 278: 1, 279: 2 * bits // 8}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 12) + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)

opened = {bits: Image.open(io.BytesIO(tiff(bits, (0, 2**bits - 1)))) for bits in (8, 16)}  # a white pixel, a black one
seen = {bits: [image.getpixel((x, 0)) for x in (0, 1)] for bits, image in opened.items()}
guess = {8: [255, 0], 16: [65535, 0]}
known = {8: [255, 0], 16: [0, 65535]}
print("source:   ", SOURCE)
print("guess:    ", guess)
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF

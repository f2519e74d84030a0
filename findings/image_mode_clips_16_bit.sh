#!/usr/bin/env bash
# datasets: Image(mode="RGB") or Image(mode="L") turns 16-bit grey nearly white.
#
# Guess:   The mode of an Image feature scales 16-bit grey to 8 bits.
# Seen:    Values are clipped at 255, so everything above 0.4 % grey becomes white. Without a mode the values are kept.
# Matters: Medical, depth and microscopy images become white squares; no error, no warning.
# Source:  no issue known; datasets/features/image.py calls image.convert(mode), which clips I;16
#
# Makes a folder of its own, installs the packages named below into it, runs them on small valid input and removes the folder.
# Exit status: 0 if the behaviour is still as described, 1 if it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0 numpy==2.4.6 pyarrow==26.0.1
cd "$work"
export HF_HUB_OFFLINE=1 HF_HOME="$work/cache" HF_DATASETS_DISABLE_PROGRESS_BARS=1
"$work/venv/bin/python" - <<'EOF'
import sys
import io

import datasets
import numpy as np
import PIL
from PIL import Image
print("version:  ", "datasets", datasets.__version__, "Pillow", PIL.__version__)

SOURCE = 'no issue known; datasets/features/image.py calls image.convert(mode), which clips I;16'
buffer = io.BytesIO()
Image.fromarray(np.array([[0, 200, 300, 25700, 65535]], dtype=np.uint16)).save(buffer, "PNG")
row, seen = {"image": [{"bytes": buffer.getvalue(), "path": None}]}, {}
for mode in (None, "L", "RGB"):
    data = datasets.Dataset.from_dict(row, features=datasets.Features({"image": datasets.Image(mode=mode)}))
    pixels = np.asarray(data[0]["image"])
    seen[mode] = (pixels if pixels.ndim == 2 else pixels[..., 0])[0].tolist()
guess = {None: [0, 200, 300, 25700, 65535], "L": [0, 1, 1, 100, 255], "RGB": [0, 1, 1, 100, 255]}
known = {None: [0, 200, 300, 25700, 65535], "L": [0, 200, 255, 255, 255], "RGB": [0, 200, 255, 255, 255]}
print("source:   ", SOURCE)
print("guess:    ", guess)
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF

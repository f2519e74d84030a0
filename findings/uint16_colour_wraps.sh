#!/usr/bin/env bash
# datasets: colour arrays of 16 bits wrap around at 256.
#
# Guess:   An (H, W, 3) array of uint16 is scaled to 8 bits, or refused.
# Seen:    Each value is taken modulo 256: 300 becomes 44 and 25700 becomes 100. A warning speaks of downcasting the type.
# Matters: The pictures that are stored are noise, and nothing can bring them back.
# Source:  https://github.com/huggingface/datasets/pull/5365 (arrays are downcast to what Pillow can hold, with a warning)
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
import warnings

import datasets
import numpy as np
from PIL import Image
print("version:  ", "datasets", datasets.__version__)
warnings.simplefilter("ignore")

SOURCE = 'https://github.com/huggingface/datasets/pull/5365 (arrays are downcast to what Pillow can hold, with a warning)'
array = np.array([[[0, 255, 256], [300, 25700, 65535]]], dtype=np.uint16)
data = datasets.Dataset.from_dict({"image": [array]}, features=datasets.Features({"image": datasets.Image()}))
seen = np.asarray(data[0]["image"]).tolist()
guess = "[[[0, 1, 1], [1, 100, 255]]], or an error"
known = [[[0, 255, 0], [44, 100, 255]]]
print("source:   ", SOURCE)
print("guess:    ", guess)
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF

#!/usr/bin/env bash
# datasets: in an image folder, a class called "test" makes all other classes disappear.
#
# Guess:   Folders cat/, dog/ and test/ are three classes, or test/ is a split and the others are for training.
# Seen:    test/ is taken for the only split there is. The images of the other classes are not read, without a word.
# Matters: A class that happens to be called "test" costs the rest of the data set.
# Source:  https://github.com/huggingface/datasets/issues/5021 (the same for words in file names)
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
from pathlib import Path

import datasets
from PIL import Image
print("version:  ", "datasets", datasets.__version__)

SOURCE = 'https://github.com/huggingface/datasets/issues/5021 (the same for words in file names)'
for name in ("cat/1.png", "cat/2.png", "dog/3.png", "test/4.png"):
    Path("pets", name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(Path("pets", name))
data = datasets.load_dataset("imagefolder", data_dir="pets")
seen = {split: len(rows) for split, rows in data.items()}
guess = {"train": 4}
known = {"test": 1}
print("source:   ", SOURCE)
print("guess:    ", guess)
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF

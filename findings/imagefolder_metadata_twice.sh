#!/usr/bin/env bash
# datasets: an image that two metadata files name is counted twice.
#
# Guess:   An image is one row, whether its folder, a folder above it, or both have a metadata.csv that names it.
# Seen:    It becomes one row for each file that names it, with the label that each gives.
# Matters: Copies of the same picture, possibly under two labels, enter training; sizes of classes are wrong.
# Source:  no issue known; seen by running it
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

SOURCE = 'no issue known; seen by running it'
for name in ("a/1.png", "a/2.png"):
    Path("pets", name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(Path("pets", name))
Path("pets/metadata.csv").write_text("file_name,label\na/1.png,cat\na/2.png,dog\n")
Path("pets/a/metadata.csv").write_text("file_name,label\n1.png,cat\n2.png,fox\n")
data = datasets.load_dataset("imagefolder", data_dir="pets", split="train")
images = data.cast_column("image", datasets.Image(decode=False))["image"]
seen = sorted((Path(image["path"]).name, label) for image, label in zip(images, data["label"]))
guess = "two rows, or an error: 2.png is a dog and a fox"
known = [("1.png", "cat"), ("1.png", "cat"), ("2.png", "dog"), ("2.png", "fox")]
print("source:   ", SOURCE)
print("guess:    ", guess)
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF

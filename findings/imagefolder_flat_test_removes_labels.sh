#!/usr/bin/env bash
# datasets: images without class folders in test/ take the labels of train/ away.
#
# Guess:   train/cat/, train/dog/ and a flat test/ give a labelled training part and an unlabelled test part.
# Seen:    There is no column of labels at all. Without test/, the same training part has one.
# Matters: This is how competitions hand out their data: labels for training, none for testing.
# Source:  no issue known; datasets/packaged_modules/folder_based_builder takes labels only if all files of all splits are on one
#          level
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

SOURCE = 'no issue known; datasets/packaged_modules/folder_based_builder takes labels only if all files of all splits are on one level'
def columns(folder, *names):
    for name in names:
        Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(Path(folder, name))
    return datasets.load_dataset("imagefolder", data_dir=folder, split="train").column_names

train = ("train/cat/1.png", "train/dog/2.png")
seen = {"train/ alone": columns("alone", *train), "with a flat test/": columns("both", *train, "test/3.png")}
guess = {"train/ alone": ["image", "label"], "with a flat test/": ["image", "label"]}
known = {"train/ alone": ["image", "label"], "with a flat test/": ["image"]}
print("source:   ", SOURCE)
print("guess:    ", guess)
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF

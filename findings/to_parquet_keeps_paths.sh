#!/usr/bin/env bash
# datasets: Dataset.to_parquet stores the paths of images, save_to_disk their bytes.
#
# Guess:   A parquet file written from images holds the images, as what save_to_disk and push_to_hub write does.
# Seen:    The bytes are null and an absolute path of this machine is stored. save_to_disk of the same data set stores the bytes.
# Matters: The file looks complete, and is useless on another machine or once the images have moved.
# Source:  https://github.com/huggingface/datasets/pull/4193 (documents that save_to_disk and push_to_hub store the bytes of
#          images)
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
import datasets
import pyarrow.parquet as pq
from PIL import Image
print("version:  ", "datasets", datasets.__version__)

SOURCE = 'https://github.com/huggingface/datasets/pull/4193 (documents that save_to_disk and push_to_hub store the bytes of images)'
Image.new("RGB", (4, 4)).save("picture.png")
data = datasets.Dataset.from_dict({"image": ["picture.png"]}).cast_column("image", datasets.Image())
data.to_parquet("data.parquet")
data.save_to_disk("data")
in_parquet = pq.read_table("data.parquet")["image"][0].as_py()
on_disk = datasets.load_from_disk("data").with_format("arrow")[0]["image"][0].as_py()
seen = {"to_parquet": in_parquet["bytes"] is not None, "save_to_disk": on_disk["bytes"] is not None}
guess = {"to_parquet": True, "save_to_disk": True}
known = {"to_parquet": False, "save_to_disk": True}
print("source:   ", SOURCE)
print("guess:    ", guess)
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF

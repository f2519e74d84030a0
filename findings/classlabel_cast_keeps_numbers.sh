#!/usr/bin/env bash
# datasets: casting a ClassLabel to the same names in another order renames the classes.
#
# Guess:   cast_column("label", ClassLabel(names=["dog", "cat"])) keeps what each row means, as a cast from text to ClassLabel
#          does.
# Seen:    The numbers stay and the names change: every cat becomes a dog.
# Matters: The usual way to give two data sets one list of classes swaps labels in silence.
# Source:  no issue known; Dataset.align_labels_with_mapping is the method that maps labels
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
print("version:  ", "datasets", datasets.__version__)

SOURCE = 'no issue known; Dataset.align_labels_with_mapping is the method that maps labels'
features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"])})
data = datasets.Dataset.from_dict({"label": [0, 1, 1]}, features=features)
cast = data.cast_column("label", datasets.ClassLabel(names=["dog", "cat"]))
seen = cast.features["label"].int2str(cast["label"][:])
guess = ["cat", "dog", "dog"]
known = ["dog", "cat", "cat"]
print("source:   ", SOURCE)
print("guess:    ", guess)
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF

#!/usr/bin/env bash
# datasets: parquet files whose ClassLabel names are in another order are joined by number.
#
# Guess:   load_dataset("parquet", data_files=[a, b]) joins the classes of two files by name, or refuses.
# Seen:    It takes the names of the first file and the numbers of both, without a word: the dogs of the second file become cats.
# Matters: Shards written by two exports, or by two versions of a script, get wrong labels in silence.
# Source:  no issue known; datasets.concatenate_datasets refuses two such data sets with a ValueError
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

SOURCE = 'no issue known; datasets.concatenate_datasets refuses two such data sets with a ValueError'
def write(name, names, labels):
    features = datasets.Features({"label": datasets.ClassLabel(names=names)})
    datasets.Dataset.from_dict({"label": labels}, features=features).to_parquet(name)

write("a.parquet", ["cat", "dog"], [0, 1])  # a cat, a dog
write("b.parquet", ["dog", "cat"], [0, 0])  # two dogs
joined = datasets.load_dataset("parquet", data_files=["a.parquet", "b.parquet"], split="train")
seen = joined.features["label"].int2str(joined["label"][:])
guess = ["cat", "dog", "dog", "dog"]
known = ["cat", "dog", "cat", "cat"]
print("source:   ", SOURCE)
print("guess:    ", guess)
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF

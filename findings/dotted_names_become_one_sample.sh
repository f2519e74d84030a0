#!/usr/bin/env bash
# webdataset: samples whose names have a dot in the base become one sample.
#
# Guess:   scale0.5_0.png + scale0.5_0.cls and scale0.5_1.png + scale0.5_1.cls are two samples with a png and a cls each.
# Seen:    Keys end at the first dot: this is one sample "scale0" with four fields, none of which is called png or cls.
# Matters: Names with a decimal number or a version are common; asking for "png" and "cls" then finds nothing, or the samples of
#          a whole shard merge.
# Source:  https://github.com/webdataset/webdataset/issues/237 (periods in the base name are taken for extensions, by design)
#
# Makes a folder of its own, installs the packages named below into it, runs them on small valid input and removes the folder.
# Exit status: 0 if the behaviour is still as described, 1 if it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'EOF'
import sys
import io
import tarfile
from importlib.metadata import version

import webdataset
print("version:  ", "webdataset", version("webdataset"))

SOURCE = 'https://github.com/webdataset/webdataset/issues/237 (periods in the base name are taken for extensions, by design)'
with tarfile.open("shard.tar", "w") as tar:
    for name in ("scale0.5_0.png", "scale0.5_0.cls", "scale0.5_1.png", "scale0.5_1.cls"):
        info = tarfile.TarInfo(name); info.size = 1
        tar.addfile(info, io.BytesIO(b"0"))
members = webdataset.tariterators.tar_file_expander([{"url": "shard.tar", "stream": open("shard.tar", "rb")}])
samples = webdataset.tariterators.group_by_keys(members)
seen = [(s["__key__"], sorted(k for k in s if not k.startswith("__"))) for s in samples]
guess = [("scale0.5_0", ["cls", "png"]), ("scale0.5_1", ["cls", "png"])]
known = [("scale0", ["5_0.cls", "5_0.png", "5_1.cls", "5_1.png"])]
print("source:   ", SOURCE)
print("guess:    ", guess)
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF

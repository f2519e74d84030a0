"""How long it takes to open a folder of many pictures: for the first time, again unchanged, and with one picture more.

    python benchmarks/folders/run.py --files 100000

Every step runs in a process of its own, so that nothing is kept in memory from one to the next. An audit hook counts the files of the
folder that are opened.
"""
import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

STEP = """
import json, os, sys, time
from diffprune.core.store import Store
from diffprune.data.datasets import dataset_config, load_dataset
import diffprune.data.sources, pandas
folder, store, what = sys.argv[1:]
opened = [0]
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and os.fsdecode(args[0]).startswith(folder): opened[0] += 1
sys.addaudithook(hook)
start = time.perf_counter()
config = dataset_config(folder, image_size=8, store=Store(store))
if what == "stat": n = sum(len(names) for _, _, names in ((p, d, [os.stat(os.path.join(p, x)) for x in f]) for p, d, f in os.walk(folder)))
elif what == "identity": n = config.settings()["files"]
else: n = len(load_dataset(config, progress=False, workers=1))
print(json.dumps(dict(n=n, seconds=round(time.perf_counter() - start, 2), opened=opened[0])))
"""


def make_files(folder, n):
    "Write `n` different pictures of 8×8 pixels in a hundred class folders."
    rng = np.random.default_rng(0)
    for c in range(100): (folder / f"class{c:02d}").mkdir(parents=True)
    for i in range(n):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        (folder / f"class{i % 100:02d}" / f"{i:06d}.png").write_bytes(buffer.getvalue())


def step(folder, store, what):
    "Run a step in a process of its own."
    done = subprocess.run([sys.executable, "-c", STEP, str(folder), str(store), what], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(n, out):
    with tempfile.TemporaryDirectory() as tmp:
        folder, store, rows = Path(tmp) / "photos", Path(tmp) / "store", []
        make_files(folder, n)
        time.sleep(1)
        steps = [("stat of every file, by os.walk and os.stat", "stat"), ("identity, first time: every file is hashed", "identity"),
                 ("identity again, unchanged", "identity"), ("identity once more, unchanged", "identity"),
                 ("load, first time: every file is decoded", "load"), ("load again, unchanged", "load")]
        for name, what in steps: rows.append(dict(step=name, **step(folder, store, what)))
        extra = folder / "class00" / "new.png"
        Image.new("RGB", (8, 8), "red").save(extra)
        rows.append(dict(step="load with one picture more", **step(folder, store, "load")))
        extra.unlink()
        rows.append(dict(step="load without it again", **step(folder, store, "load")))
        for row in rows: print(row)
    facts = dict(files=n, python=platform.python_version(), system=platform.platform(), cpus=os.cpu_count(), rows=rows)
    out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "folders.json")
    args = parser.parse_args()
    main(args.files, args.out)

"""CPU time and memory of pruning a folder: this commit, an earlier one, and a plain script of timm and scikit-learn, in turn.

    git worktree add ../earlier 5c3566e
    python benchmarks/prune/run.py --earlier ../earlier --images 5000 --rounds 1
    python benchmarks/prune/run.py --small 25000 50000 100000

Photo-sized JPEGs are made from the two photographs that scikit-learn brings: crops, stretched to 500 × 375, mirrored or not, with
other colours and noise, quality 85. Seconds are of the processor, user and system, of the process and all that it started; memory is
the peak of the largest process. Every process has one thread in each pool.
"""
import argparse
import csv
import importlib.metadata
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

HERE = Path(__file__).parent
TODAY = HERE.parents[1]
FIELDS = ["round", "contender", "run", "images", "cpu_seconds", "wall_seconds", "peak_mib", "kept"]


def photo(i, sources):
    "The i-th picture, the same wherever and in whatever order it is made."
    rng, source = np.random.default_rng([15, i]), sources[i % len(sources)]
    width = rng.uniform(0.35, 1.0) * source.width
    height = width * 375 / 500
    if height > source.height: width, height = source.height * 500 / 375, source.height
    x, y = rng.uniform(0, source.width - width), rng.uniform(0, source.height - height)
    pixels = np.asarray(source.resize((500, 375), Image.Resampling.BICUBIC, box=(x, y, x + width, y + height)), np.float32)
    if rng.random() < 0.5: pixels = pixels[:, ::-1]
    pixels = pixels * rng.uniform(0.6, 1.3, 3) + rng.normal(0, rng.uniform(1, 6), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_photos(folder, n):
    from sklearn.datasets import load_sample_images
    sources = [Image.fromarray(x) for x in load_sample_images().images]
    folder.mkdir(parents=True)
    for i in range(n): photo(i, sources).save(folder / f"{i:06d}.jpg", quality=85)


def make_small(folder, n):
    "n pictures of 32 × 32, a thousand to a folder."
    for i in range(n):
        place = folder / f"{i // 1000:03d}" / f"{i:06d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([16, i])
        cells = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        cells.resize((32, 32), Image.Resampling.BICUBIC).save(place, compress_level=1)


def measured(command, tree, store):
    "CPU seconds, wall seconds and peak MiB of a command and all its descendants."
    threads = {k: "1" for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    env = os.environ | threads | dict(PYTHONPATH=str(tree), DIFFPRUNE_STORE=str(store), PYTHONWARNINGS="ignore")
    with tempfile.TemporaryFile() as said:
        begin = time.monotonic()
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=tree, env=env, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        if process.returncode: raise RuntimeError(said.read().decode()[-2000:])
    return dict(cpu_seconds=round(used.ru_utime + used.ru_stime, 1), wall_seconds=round(time.monotonic() - begin, 1),
                peak_mib=round(used.ru_maxrss / 1024))


def kept(path):
    "How many rows of a table say that they are kept."
    with open(path, newline="") as f: return sum(row[-1] == "True" or "True" in row for row in csv.reader(f))


def contenders(earlier, folder, tmp):
    "Name, run, command, tree, store; what runs second finds the store of the first."
    prune = lambda out, method: ["-m", "diffprune.cli", "prune", folder, "-r", "0.5", "-m", method, "-o", out]
    out = (tmp / f"{i}.csv" for i in range(99))
    if earlier:
        yield "earlier", "first", prune(o := next(out), "cluster_lite0"), earlier, tmp / "store-earlier", o
        yield "earlier", "second method", prune(o := next(out), "semdedup_lite0"), earlier, tmp / "store-earlier", o
    yield "timm + scikit-learn", "first", [HERE / "plain.py", folder, o := next(out)], TODAY, tmp / "store-none", o
    yield "today", "first", prune(o := next(out), "cluster_lite0"), TODAY, tmp / "store-today", o
    yield "today", "second method", prune(o := next(out), "semdedup_lite0"), TODAY, tmp / "store-today", o


def commit(tree):
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=tree, capture_output=True, text=True).stdout.strip()


def facts(earlier):
    versions = {p: importlib.metadata.version(p) for p in ("torch", "timm", "scikit-learn", "pillow", "numpy")}
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    return dict(python=platform.python_version(), processor=model, cores=os.cpu_count(), commit=commit(TODAY),
                earlier=commit(earlier) if earlier else None, **versions)


def note(path, row, new):
    with open(path, "w" if new else "a", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        if new: writer.writeheader()
        writer.writerow({k: row.get(k, "") for k in FIELDS})
    print(row, flush=True)


def photos(n, rounds, earlier, out, folder=None):
    new = True
    with tempfile.TemporaryDirectory() as tmp:
        if folder is None: make_photos(folder := Path(tmp) / "photos", n)
        for r in range(rounds):
            place = Path(tmp) / f"round{r}"
            place.mkdir()
            for name, run, command, tree, store, table in contenders(earlier, folder, place):
                row = dict(round=r, contender=name, run=run, images=n, **measured(command, tree, store), kept=kept(table))
                note(out / "photos.csv", row, new)
                new = False
    (out / "photos.json").write_text(json.dumps(facts(earlier), indent=1) + "\n")


def small(counts, out):
    "Memory with more and more small images, features of plain pixels."
    for k, n in enumerate(counts):
        with tempfile.TemporaryDirectory() as tmp:
            make_small(folder := Path(tmp) / "small", n)
            for run, method in (("first", "cluster_pixels"), ("second method", "semdedup_pixels")):
                command = ["-m", "diffprune.cli", "prune", folder, "-r", "0.5", "-m", method, "-o", table := Path(tmp) / f"{method}.csv",
                           "--image-size", "32", "--quiet"]
                row = dict(round=0, contender="today", run=f"{run}, {method}", images=n, **measured(command, TODAY, Path(tmp) / "store"),
                           kept=kept(table))
                note(out / "small.csv", row, k == 0 and run == "first")
    (out / "small.json").write_text(json.dumps(facts(None), indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--earlier", type=lambda p: Path(p).resolve(), help="worktree of the earlier commit")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of photographs made before, instead of new ones")
    parser.add_argument("--make", type=Path, help="only make the photographs, here")
    parser.add_argument("--small", type=int, nargs="+", help="numbers of small images, instead of photographs")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.make: make_photos(args.make, args.images)
    elif args.small: small(args.small, args.out)
    else: photos(args.images, args.rounds, args.earlier, args.out, args.folder and args.folder.resolve())

"""Selectors on a memory map: time and memory of each in a process of its own, and ZCore's draws beside a sort for each draw.

python benchmarks/selectors/run.py --rows 100000 --output benchmarks/selectors/results/cpu.csv
python benchmarks/selectors/run.py --rows 1281167 --only zcore hierarchy
"""
import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd


def write_features(path, rows, width, seed=0):
    "Samples of 200 crowds of different size and spread, float32, block by block."
    rng = np.random.default_rng(seed)
    centers, spread = rng.normal(size=(200, width)), rng.uniform(0.2, 1.5, 200)
    share = rng.dirichlet(np.full(200, 0.5))
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
    for i in range(0, rows, 8192):
        crowd = rng.choice(200, min(8192, rows - i), p=share)
        out[i:i + len(crowd)] = centers[crowd] + rng.normal(size=(len(crowd), width)) * spread[crowd][:, None]
    out.flush()


class Memory:
    "The largest private memory of this process while the block runs, above what it had before, in MB; pages of the map do not count."
    def __enter__(self):
        self.before, self.most, self.over = self.now(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    @staticmethod
    def now():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))

    def watch(self):
        while not self.over.wait(0.02): self.most = max(self.most, self.now() - self.before)


def timed(work):
    "Seconds of CPU, of all threads, and what the work returns."
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def zcore(X, args):
    from diffprune.pruning.zcore_pruners import column_statistics, zcore_draws, zcore_votes
    statistics_s, statistics = timed(lambda: column_statistics(X))
    dims, points = zcore_draws(*statistics[:, :8], args.draws)  # few columns, so that a sorted one serves many draws, as in a million
    few = min(args.sorted_draws, args.draws)

    def by_sorting():
        scores, columns = np.zeros(len(X)), X[:, :8].astype(np.float64)
        columns = [np.ascontiguousarray(c) for c in columns.T]
        began = time.process_time()
        for (a, b), point in zip(dims[:few].tolist(), points[:few]):
            c = (abs(columns[a] - point[0]) + abs(columns[b] - point[1])).argmin()
            scores[c] += 1
            away = abs(columns[a] - columns[a][c]) + abs(columns[b] - columns[b][c])
            order = np.argsort(away)
            order = order[order != c][:1000]
            weight = away[order]**-4.0
            scores[order] -= weight / weight.sum()
        return (time.process_time() - began) / few, scores

    sorting, slow = by_sorting()
    short_s, short = timed(lambda: zcore_votes(X, dims[:few], points[:few]))
    with Memory() as memory: seconds, _ = timed(lambda: zcore_votes(X, dims, points))
    draw = (seconds - short_s) / (args.draws - few)
    column = timed(lambda: np.argsort(np.array(X[:, 0])))[0]
    whole = statistics_s + X.shape[1] * column + 1_000_000 * draw
    return dict(work=f"{args.draws:,} draws", cpu_s=seconds, memory_mb=memory.most, whole=f"1,000,000 draws: {whole / 60:.0f} min",
                note=f"{1000 * draw:.2f} ms a draw, with a sort {1000 * sorting:.1f} ms: {sorting / draw:.0f} times; "
                     f"largest difference of scores {abs(short - slow).max():.0e}; a column sorted {1000 * column:.0f} ms, "
                     f"minima, medians and maxima {statistics_s:.0f} s")


def kernel(X, args):
    from diffprune.pruning.kernel_pruners import KernelPruner
    found = []
    for pool, choices in ((None, args.choices), (4096, 10 * args.choices)):
        pruner = KernelPruner(pool=pool)
        with Memory() as memory:
            fitted_s, fitted = timed(lambda pruner=pruner: pruner.fit(X))
            first_s, _ = timed(lambda fitted=fitted: fitted.first_chosen(0, 1))
            more_s, _ = timed(lambda fitted=fitted, choices=choices: fitted.first_chosen(0, choices + 1))
        each = more_s / choices
        whole = fitted_s + first_s + each * len(X) / 10
        found.append(dict(work=f"features and {choices:,} choices, {'all' if pool is None else pool} looked at",
                          cpu_s=fitted_s + first_s + more_s, memory_mb=memory.most, note=f"{1000 * each:.1f} ms a choice",
                          whole=f"a tenth: {whole / 60:.0f} min"))
        del fitted, pruner
    return found


def hierarchy(X, args):
    from diffprune.pruning.hierarchy_pruners import HierarchyPruner
    pruner = HierarchyPruner()
    with Memory() as memory: seconds, _ = timed(lambda: pruner.fit(X).select(0.9))
    return dict(work=f"levels {(round(len(X)**0.5), round(len(X)**0.25))}, ten resamplings, a tenth kept", cpu_s=seconds,
                memory_mb=memory.most, note="", whole=f"this is the whole: {seconds / 60:.1f} min")


def gadc(X, args):
    from diffprune.pruning.condense_pruners import GADCPruner
    classes = np.arange(len(X)) // 1300
    pruner = GADCPruner(stratify=True)
    with Memory() as memory:
        fitted_s, _ = timed(lambda: pruner.fit(X, classes))
        members = [np.flatnonzero(classes == c) for c in range(args.classes)]
        seconds, _ = timed(lambda: [pruner._of_cell(of, 10) for of in members])
    whole = fitted_s + seconds / args.classes * (classes.max() + 1)
    return dict(work=f"10 of each of {args.classes} classes of 1,300", cpu_s=fitted_s + seconds, memory_mb=memory.most,
                note=f"{seconds / args.classes:.1f} s a class", whole=f"10 of each of {classes.max() + 1} classes: {whole / 60:.0f} min")


SELECTORS = dict(zcore=zcore, kernel=kernel, hierarchy=hierarchy, gadc=gadc)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="samples; 1281167 is ImageNet")
    parser.add_argument("--width", type=int, default=768, help="features of each")
    parser.add_argument("--only", nargs="+", choices=SELECTORS, default=list(SELECTORS))
    parser.add_argument("--draws", type=int, default=2000, help="ZCore's draws that are timed")
    parser.add_argument("--sorted-draws", type=int, default=30, help="draws of them that are sorted for, too")
    parser.add_argument("--choices", type=int, default=100, help="choices of kernel herding that are timed")
    parser.add_argument("--classes", type=int, default=2, help="classes that GADC is timed on")
    parser.add_argument("--features", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="CSV")
    args = parser.parse_args()
    if args.features:
        found = SELECTORS[args.only[0]](np.load(args.features, mmap_mode="r"), args)
        print(json.dumps(found if isinstance(found, list) else [found]))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        write_features(path, args.rows, args.width)
        names = ("rows", "width", "draws", "sorted_draws", "choices", "classes")
        passed = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
        for name in args.only:
            command = [sys.executable, __file__, "--features", str(path), "--only", name, *passed]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode: raise SystemExit(done.stderr[-2000:])
            rows += [dict(selector=name, rows=args.rows, width=args.width, **row) for row in json.loads(done.stdout.splitlines()[-1])]
            print(pd.DataFrame(rows[-1:]).to_string(index=False), flush=True)
    table = pd.DataFrame(rows).round(dict(cpu_s=2, memory_mb=0))
    if args.output: table.to_csv(args.output, index=False)


if __name__ == "__main__": main()

"""Time, memory and error of the metrics beside torch-fidelity, vendi-score, scikit-learn and torch.cdist.

    python benchmarks/metrics/bench.py parity neighbours frechet vendi coverage   # comparisons, some minutes
    python benchmarks/metrics/bench.py scale_vendi scale_neighbours               # 50k x 768, and 50k x 1.28M x 512
    python benchmarks/metrics/bench.py report                                     # the stored results as tables

The methods of a comparison are run in turn, `--repeats` times round, and the fastest run of each counts, so that
whatever else the machine does falls on all of them. Beside the wall time stands the CPU time of all threads, which
other work on the machine hardly changes. Results are written to benchmarks/metrics/results/<case>.json.
"""
import argparse
import ctypes
import gc
import json
import os
import platform
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy import linalg
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from vendi_score import vendi

from diffprune.core.store import git_commit
from diffprune.metrics.coverage import precision_recall
from diffprune.metrics.fidelity import inception_score, kernel_distance
from diffprune.metrics.frechet import FeatureStats, frechet_distance
from diffprune.metrics.neighbours import nearest
from diffprune.metrics.vendi import vendi_score

RESULTS = Path(__file__).parent / "results"
trim = getattr(ctypes.CDLL(None), "malloc_trim", None)                           # of glibc


def own_gb():
    "Memory that this process holds now, in GB, without the pages of memory-mapped files."
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1e6


def watched(run, every=0.02):
    "Result of `run()`, its seconds, and the memory in GB before it and at its peak, sampled every 20 ms."
    samples, done = [own_gb()], threading.Event()

    def watch():
        while not done.wait(every): samples.append(own_gb())
    watcher, start = threading.Thread(target=watch, daemon=True), time.perf_counter()
    watcher.start()
    result = run()
    seconds = time.perf_counter() - start
    done.set(), watcher.join()
    return result, seconds, samples[0], max(samples)


def timed(run):
    "Result of `run()`, and its seconds and memory for a table."
    result, seconds, before, peak = watched(run)
    return result, {"seconds": round(seconds, 1), "gb_before": round(before, 2), "gb_peak": round(peak, 2)}


def compare(methods, repeats):
    "Least wall and CPU seconds of each method over interleaved runs, the GB it takes beyond what was there, and its last result."
    wall, cpu, grown, values = *({name: [] for name in methods} for _ in range(3)), {}
    for _ in range(repeats):
        for name, method in methods.items():
            gc.collect()
            if trim: trim(0)  # gives back what the method before has freed, so that it does not hide what this one takes
            work = time.process_time()
            values[name], seconds, before, peak = watched(method)
            cpu[name].append(time.process_time() - work)
            wall[name].append(seconds), grown[name].append(peak - before)
            print(f"  {name:24} {wall[name][-1]:9.3f} s, {cpu[name][-1]:9.3f} s of CPU, {grown[name][-1]:6.2f} GB", flush=True)
    return {name: (min(wall[name]), min(cpu[name]), max(grown[name])) for name in methods}, values


def table(seconds, errors, ours="diffprune"):
    "One row a method: seconds, how many times ours, error."
    wall, cpu, _ = seconds[ours]
    return {name: {"wall_s": round(w, 3), "cpu_s": round(c, 3), "wall_ratio": round(w / wall, 2), "cpu_ratio": round(c / cpu, 2),
                   "gb": round(g, 3), "error": errors[name]} for name, (w, c, g) in seconds.items()}


def relative(a, b):
    return float(np.max(np.abs(np.asarray(a, float) / b - 1)))


def plain_cdist(queries, points, block=8192):
    "Nearest neighbours as they are usually written with torch.cdist."
    best = torch.full((len(queries),), torch.inf)
    for start in range(0, len(points), block):
        best = torch.minimum(best, torch.cdist(queries, points[start:start + block]).amin(1))
    return best.numpy()


def neighbours(repeats, n=4096, m=65536, d=512):
    "Nearest of m points for n queries, a quarter of which are near-duplicates of a point; features as after a ReLU."
    rng = np.random.default_rng(0)
    points = np.maximum(rng.standard_normal((m, d), dtype=np.float32) + 0.5, 0)
    queries = np.maximum(rng.standard_normal((n, d), dtype=np.float32) + 0.5, 0)
    queries[:n // 4] = points[:n // 4] + 1e-4 * rng.standard_normal((n // 4, d), dtype=np.float32)
    brute = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(points)
    seconds, values = compare({
        "diffprune": lambda: nearest(queries, points).distances[:, 0],
        "scikit-learn": lambda: brute.kneighbors(queries)[0][:, 0],
        "torch.cdist": lambda: plain_cdist(torch.from_numpy(queries), torch.from_numpy(points)),
    }, repeats)
    rows = brute.kneighbors(queries.astype(np.float64))[1][:, 0]
    truth = np.linalg.norm(queries.astype(np.float64) - points[rows], axis=1)
    return {"case": f"{n} queries, {m} points, d = {d}", "error": "largest relative error of a distance",
            "methods": table(seconds, {name: relative(v, truth) for name, v in values.items()})}


def frechet(repeats, d=2048):
    "Fréchet distance of two sets with covariances of full rank, from the moments; and of two small sets, from the features."
    rng, out = np.random.default_rng(0), {}
    scale = np.geomspace(1, 0.05, d)
    for n in (3 * d, 500):
        a, b = (rng.standard_normal((n, d)) * scale * s + m for s, m in ((1, 0), (1.1, 0.1)))
        stats = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
        ours = [FeatureStats(s["mu"], s["sigma"], n) for s in stats]
        means = np.sum((stats[0]["mu"] - stats[1]["mu"])**2) + sum(np.trace(s["sigma"]) for s in stats)
        seconds, values = compare({
            "diffprune": (lambda: frechet_distance(*ours)) if n > d else (lambda: frechet_distance(a, b)),
            "scipy sqrtm": lambda: means - 2 * np.trace(linalg.sqrtm(stats[0]["sigma"] @ stats[1]["sigma"])).real,
            "torch-fidelity": lambda: fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"],
        }, repeats)
        out[f"n = {n}"] = table(seconds, {name: relative(v, values["diffprune"]) for name, v in values.items()})
    return {"case": f"d = {d}", "error": "relative difference from diffprune", "methods": out}


def vendi_comparison(repeats, n=10_000, d=768):
    "Vendi score of n samples: the d x d dual against the n x n eigenproblem."
    X = np.random.default_rng(0).standard_normal((n, d)) * np.geomspace(1, 0.1, d)
    seconds, values = compare({"diffprune": lambda: vendi_score(X), "vendi-score, n x n": lambda: vendi.score_X(X),
                               "vendi-score, dual": lambda: vendi.score_dual(X)}, repeats)
    return {"case": f"n = {n}, d = {d}", "error": "relative difference from diffprune",
            "methods": table(seconds, {name: relative(v, values["diffprune"]) for name, v in values.items()})}


def coverage(repeats, n=10_000, d=512):
    "Precision and recall of n against n samples."
    rng = np.random.default_rng(0)
    real, generated = (rng.standard_normal((n, d), dtype=np.float32) * np.geomspace(1, 0.1, d, dtype=np.float32) * s for s in (1, 0.95))
    theirs = lambda: prc_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), verbose=False)
    seconds, values = compare({
        "diffprune": lambda: sorted(precision_recall(generated, real)[:2]),
        "torch-fidelity": lambda: sorted(theirs()[k] for k in ("precision", "recall")),
    }, repeats)
    return {"case": f"{n} against {n} samples, d = {d}", "error": "relative difference from diffprune",
            "methods": table(seconds, {name: relative(v, values["diffprune"]) for name, v in values.items()})}


def parity(repeats, n=3000, d=256):
    "Relative differences from torch-fidelity and vendi-score on the same features, float32 and float64, as after a ReLU."
    rng, out = np.random.default_rng(0), {}
    base = [np.maximum(rng.standard_normal((n, d)) + 0.4 + shift, 0) * np.geomspace(1, 0.1, d) for shift in (0.1, 0)]
    for dtype in (np.float32, np.float64):
        a, b = (x.astype(dtype) for x in base)
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        theirs_kd = kid_features_to_metric(ta, tb, kid_subsets=10, kid_subset_size=1000, verbose=False)
        theirs_prc = prc_features_to_metric(ta, tb, verbose=False)
        stats = [{k: v.astype(np.float64) for k, v in fid_features_to_statistics(t).items()} for t in (ta, tb)]
        theirs_fd = fid_statistics_to_metric(*stats, verbose=False)
        ours_prc = precision_recall(a, b)
        out[np.dtype(dtype).name] = {
            "Fréchet distance": relative(frechet_distance(a, b), theirs_fd["frechet_inception_distance"]),
            "kernel distance": relative(kernel_distance(a, b, 10).mean, theirs_kd["kernel_inception_distance_mean"]),
            "Inception score": relative(inception_score(10 * a).mean, isc_features_to_metric(10 * ta)["inception_score_mean"]),
            "precision and recall": relative(sorted(ours_prc[:2]), sorted([theirs_prc["precision"], theirs_prc["recall"]])),
            "F-score": relative(ours_prc.f_score, theirs_prc["f_score"]),
            "Vendi score": relative(vendi_score(a), vendi.score_X(a.astype(np.float64))),
        }
    return {"case": f"{n} samples, d = {d}", "relative_difference": out}


def scale_vendi(repeats, n=50_000, d=768):
    "Vendi score of 50,000 samples."
    X = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    value, cost = timed(lambda: vendi_score(X, progress=True))
    return {"case": f"n = {n}, d = {d}", "value": value, **cost}


def write_features(path, m, d, seed):
    "A memory map (m, d) of random features, written in blocks."
    X = np.lib.format.open_memmap(path, "w+", np.float32, (m, d))
    rng = np.random.default_rng(seed)
    for i in range(0, m, 65536): X[i:i + 65536] = rng.standard_normal((min(65536, m - i), d), dtype=np.float32)
    X.flush()


def scale_neighbours(repeats, n=50_000, m=1_281_167, d=512, copies=500):
    "Nearest of ImageNet's number of points for 50,000 queries, 500 of them near-duplicates, from memory maps."
    with tempfile.TemporaryDirectory(dir=os.environ.get("DIFFPRUNE_BENCH_DIR")) as folder:
        write_features(f"{folder}/points.npy", m, d, 0), write_features(f"{folder}/queries.npy", n, d, 1)
        points, queries = np.load(f"{folder}/points.npy", mmap_mode="r"), np.load(f"{folder}/queries.npy", mmap_mode="r+")
        rows = np.linspace(0, m - 1, copies).astype(int)
        noise = np.random.default_rng(2).standard_normal((copies, d), dtype=np.float32)
        queries[:copies] = points[rows] + np.float32(1e-4) * noise
        found, cost = timed(lambda: nearest(queries, points, progress=True))
        truth = np.linalg.norm(queries[:copies].astype(np.float64) - points[rows], axis=1)
        cuda = torch.cuda.is_available()
        hits = int((found.indices[:copies, 0] == rows).sum())
        return {"case": f"{n} queries, {m} points, d = {d}", "copies_found": hits, "copies": copies,
                "error_of_copies": relative(found.distances[:copies, 0], truth), "device": "cuda" if cuda else "cpu",
                "gpu_peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None, **cost}


def flat(methods, prefix=""):
    "Rows of a comparison as (name, row), groups by their prefix."
    for name, row in methods.items():
        if "wall_s" in row: yield prefix + name, row
        else: yield from flat(row, f"{name}, ")


def report():
    "The stored results of the comparisons as Markdown tables."
    for path in sorted(RESULTS.glob("*.json")):
        if path.stem == "intervals": continue  # of intervals.py, which prints it
        result = json.loads(path.read_text())
        print(f"\n**{path.stem}**: {result['case']}; {result['threads']} thread(s), load of the machine {result['load'][0]}, "
              f"commit {result.get('commit', 'not recorded')}\n")
        if "methods" in result:
            print(f"| method | wall s | wall time / ours | CPU s | CPU time / ours | memory, GB | {result['error']} |\n" + "|---" * 7 + "|")
            for name, r in flat(result["methods"]):
                costs = (r[key] for key in ("wall_s", "wall_ratio", "cpu_s", "cpu_ratio", "gb"))
                print(f"| {name} | " + " | ".join(f"{c:.2f}" for c in costs) + f" | {r['error']:.1g} |")
        elif "relative_difference" in result:
            print("| metric | " + " | ".join(result["relative_difference"]) + " |\n|---|---|---|")
            for metric in result["relative_difference"]["float64"]:
                print(f"| {metric} | " + " | ".join(f"{d[metric]:.1g}" for d in result["relative_difference"].values()) + " |")
        else:
            hidden = ("case", "threads", "load", "python", "torch", "numpy", "commit")
            shown = {k: v for k, v in result.items() if k not in hidden and v is not None}
            print("| " + " | ".join(shown) + " |\n" + "|---" * len(shown) + "|\n| " + " | ".join(str(v) for v in shown.values()) + " |")


CASES = {"parity": parity, "neighbours": neighbours, "frechet": frechet, "vendi": vendi_comparison, "coverage": coverage,
         "scale_vendi": scale_vendi, "scale_neighbours": scale_neighbours}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=[*CASES, "report"])
    parser.add_argument("--repeats", type=int, default=3, help="rounds of a comparison")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every method")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    RESULTS.mkdir(exist_ok=True)
    for case in args.cases:
        if case == "report":
            report()
            continue
        print(case, flush=True)
        with threadpool_limits(args.threads):
            result = CASES[case](args.repeats)
        result |= {"threads": args.threads, "load": [round(x, 1) for x in os.getloadavg()], "commit": git_commit(),
                   "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        (RESULTS / f"{case}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()

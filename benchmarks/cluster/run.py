"""Time and memory of k-means and of the selection, at ImageNet's size or a tenth of it.

    python benchmarks/cluster/run.py small     128,000 x 768, k = 1000 (under 2 GB)
    python benchmarks/cluster/run.py full    1,281,167 x 768, k = 1000 (4 GB, scikit-learn's part 12 GB)

Every part runs in a process of its own, so that its peak memory is its own. Both k-means start from the same centres and
make the same number of iterations, so that their inertias can be compared. Results go to `results/<size>.json`.
"""
import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

SIZES = dict(tiny=(12_800, 64, 50), small=(128_000, 768, 1000), full=(1_281_167, 768, 1000))
PARTS = ("ours", "sklearn", "select")
SEED, BLOCK = 0, 50_000


def features(n, d):
    "Points around 2,000 centres of unequal weight, like embeddings of a data set with that many kinds of images."
    import numpy as np
    rng = np.random.default_rng(SEED)
    centers = rng.normal(size=(2000, d)).astype(np.float32)
    weight = rng.dirichlet(np.full(2000, 2.0))
    X = np.empty((n, d), np.float32)
    for i in range(0, n, BLOCK):
        part = X[i:i + BLOCK]
        rng.standard_normal(out=part, dtype=np.float32)
        part += centers[rng.choice(2000, len(part), p=weight)]
    return X


def start(X, k):
    import numpy as np
    return X[np.sort(np.random.default_rng(SEED + 1).choice(len(X), k, replace=False))].copy()


def now(): return time.perf_counter(), time.process_time()


def spent(began, iterations):
    "Wall and processor seconds of a fit; it also finds the labels of the final centres, which is a pass more than it has iterations."
    wall, cpu = (b - a for a, b in zip(began, now()))
    return dict(seconds_fit=wall, cpu_seconds_fit=cpu, seconds_an_iteration=wall / (iterations + 1),
                cpu_seconds_an_iteration=cpu / (iterations + 1))


def ours(X, k, iterations):
    import numpy as np

    from diffprune.features.cluster import KMeans
    centers, began = start(X, k), now()
    km = KMeans(k, init=centers, max_iter=iterations, tol=0).fit(X)
    result = dict(inertia=km.inertia_, iterations=km.n_iter_, **spent(began, km.n_iter_))
    began = now()
    KMeans(k)._start(X, np.random.RandomState(SEED))
    return dict(result, kmeanspp_start_seconds=now()[0] - began[0])


def sklearn(X, k, iterations):
    from sklearn.cluster import KMeans
    centers, began = start(X, k), now()
    km = KMeans(k, init=centers, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd", copy_x=False).fit(X)
    return dict(inertia=float(km.inertia_), iterations=int(km.n_iter_), **spent(began, int(km.n_iter_)))


def select(X, k, iterations):
    import numpy as np

    from diffprune.pruning.select import select
    n, rng = len(X), np.random.default_rng(SEED)
    scores, groups, labels, ids = rng.random(n), rng.integers(0, k, n), rng.integers(0, 1000, n), np.char.add("n", np.arange(n).astype(str))
    result = {}
    for name, how in dict(ranking=dict(), proportional=dict(groups=groups), balanced=dict(groups=groups, quotas="balanced"),
                          classes_and_clusters=dict(groups=groups, labels=labels)).items():
        began = time.perf_counter()
        kept = select(scores, 0.9, ids=ids, **how)
        result[name] = dict(seconds=time.perf_counter() - began, kept=len(kept))
    return result


def part(name, size, iterations):
    n, d, k = SIZES[size]
    import numpy as np
    X = np.empty((n, 0)) if name == "select" else features(n, d)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = globals()[name](X, k, iterations)
    gib = lambda kib: round(kib / 2**20, 2)
    return dict(result, data_gib=gib(before), peak_gib=gib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(part(args.one, args.size, args.iterations)))
        return
    n, d, k = SIZES[args.size]
    path = Path(__file__).parent / "results" / f"{args.size}.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    describe = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    results |= dict(samples=n, features=d, clusters=k, threads=args.threads, machine=platform.machine(), commit=commit)
    for name in args.parts:
        env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), OPENBLAS_NUM_THREADS=str(args.threads))
        load = os.getloadavg()[0]
        command = [sys.executable, __file__, args.size, "--one", name, "--iterations", str(args.iterations)]
        results[name] = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        results[name]["load_at_start"] = round(load, 1)
        print(name, json.dumps(results[name]), flush=True)
    if "ours" in results and "sklearn" in results:
        results["inertia_ratio_to_sklearn"] = results["ours"]["inertia"] / results["sklearn"]["inertia"]
        print("inertia, ours / scikit-learn:", results["inertia_ratio_to_sklearn"])
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    print("written:", path)


if __name__ == "__main__":
    main()

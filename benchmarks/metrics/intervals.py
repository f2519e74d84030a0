"""Metrics with intervals: CPU time, memory and values beside another commit and beside torch-fidelity run once for each draw.

    git worktree add ../before 9328808                                            # the commit to compare with
    python benchmarks/metrics/intervals.py --base ../before                       # digits, full rank, few: some minutes
    python benchmarks/metrics/intervals.py --base ../before --cases large --rounds 1 --base-draws 2 8   # ten minutes and more

Each method has a process of its own with one thread, and within a round they run in turn. A ratio is taken within a round; the table
gives its median and range over the rounds. The moments and radii of the real features are computed beforehand and given to both commits.
torch-fidelity computes fewer metrics (no density, coverage, Vendi score, FD∞). It is run on halves of the generated features,
`--peer-draws` of them, scaled to all draws; the real statistics of its Fréchet distance are given too. With `--base-draws A B` the base
runs with A and with B draws only: the difference gives the time of a draw, and so that of all, and the values of B draws are compared.
Memory is the peak of the whole process. Results are written to benchmarks/metrics/results/intervals.json.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results" / "intervals.json"
CASES = {"digits": "pixels of 500 noisy digits against 1,297 others, d = 192 (the real ones span 61 dimensions)",
         "full rank": "500 against 1,297 samples, d = 192, all covariances regular", "few": "500 against 1,297 samples, d = 1,280",
         "large": "4,096 against 28,000 samples, d = 1,280"}
SHAPES = {"full rank": (500, 1297, 192), "few": (500, 1297, 1280), "large": (4096, 28_000, 1280)}


def features(case):
    "Generated and real features (float32) and logits of the generated ones."
    rng = np.random.default_rng(0)
    if case == "digits":
        from sklearn.datasets import load_digits
        X = np.repeat(load_digits().data[rng.permutation(1797)] / 16, 3, axis=1).astype(np.float32)
        real, generated = X[:1297], X[1297:] + np.float32(0.05) * rng.standard_normal((500, 192), dtype=np.float32)
    else:
        n, m, d = SHAPES[case]
        scale = np.geomspace(1, 0.1, d, dtype=np.float32)
        real = np.maximum(rng.standard_normal((m, d), dtype=np.float32) + np.float32(0.4), 0) * scale
        generated = np.maximum(rng.standard_normal((n, d), dtype=np.float32) + np.float32(0.5), 0) * scale
    return generated, real, 5 * generated[:, :10]


def draws_of(commit):
    "A function of features, reference and number of draws that runs `measure` of the commit on the path."
    if commit == "base":
        from diffprune.metrics import FeatureStats, measure
    else:
        from diffprune.metrics.evaluate import FeatureStats, measure

    def run(generated, real, logits, reference, n_draws):
        stats = FeatureStats(reference["mean"], reference["cov"], len(real))
        found = measure(generated, real, logits, stats, {k: reference[f"radii_{k}"] for k in (3, 5)}, n_draws)
        return {name: list(i) for name, i in found.items()}
    return run


def peer(generated, real, logits, reference, n_draws):
    "The metrics of torch-fidelity for `n_draws` halves."
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
    rng, of_real = np.random.RandomState(0), torch.from_numpy(real)
    known = {"mu": reference["mean"], "sigma": reference["cov"]}
    for _ in range(n_draws):
        rows = np.sort(rng.permutation(len(generated))[:len(generated) // 2])
        half = torch.from_numpy(generated[rows])
        stats = {k: v.astype(np.float64) for k, v in fid_features_to_statistics(half).items()}
        fid_statistics_to_metric(stats, known, verbose=False)
        kid_features_to_metric(half, of_real, kid_subsets=10, kid_subset_size=min(1000, len(rows), len(real)), verbose=False)
        isc_features_to_metric(torch.from_numpy(logits[rows]))
        prc_features_to_metric(half, of_real, save_cpu_ram=True, verbose=False)  # not all distances of the real features at once
    return {}


def worker(method, case, reference):
    "Run the method for each number of draws read from the standard input; answer with a line of JSON."
    import torch
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    run, (generated, real, logits) = peer if method == "torch-fidelity" else draws_of(method), features(case)
    with np.load(reference) as f: known = dict(f)
    run(generated[:60, :8], real[:80, :8], logits[:60], {"mean": real[:80, :8].mean(0).astype(float), "cov": np.cov(real[:80, :8].T),
        "radii_3": np.ones(80), "radii_5": np.ones(80)}, 2)  # what is loaded or compiled at the first call is not measured
    print("ready", flush=True)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        cpu, wall = time.process_time(), time.perf_counter()
        values = run(generated, real, logits, known, int(line))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(json.dumps({"cpu_s": cpu, "wall_s": wall, "peak_gb": int(peak.split()[1]) / 1e6, "values": values}), flush=True)


def make_reference(case, path):
    "Write what is known of the real features beforehand."
    from diffprune.metrics.evaluate import ball_radii, feature_stats
    real = features(case)[1]
    stats = feature_stats(real)
    np.savez(path, mean=stats.mean, cov=stats.cov, **{f"radii_{k}": ball_radii(real, k) for k in (3, 5)})


def start(method, case, reference, tree):
    "A process that waits for numbers of draws."
    env = os.environ | {"PYTHONPATH": str(tree)} | {f"{pool}_NUM_THREADS": "1" for pool in ("OMP", "OPENBLAS", "MKL")}
    process = subprocess.Popen([sys.executable, HERE, "--worker", method, case, reference], env=env, text=True, bufsize=1,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n", f"{method} did not start"
    return process


def ask(process, n_draws):
    "What one run takes and gives."
    process.stdin.write(f"{n_draws}\n")
    return json.loads(process.stdout.readline())


def ask_scaled(process, method, a):
    "What a run with all draws takes, from one with fewer where that was asked for."
    if method == "torch-fidelity":
        found = ask(process, a.peer_draws)
        return found | {key: found[key] * a.draws / a.peer_draws for key in ("cpu_s", "wall_s")}
    if method != "base" or not a.base_draws: return ask(process, a.draws)
    few, more = (ask(process, n) for n in sorted(a.base_draws))
    missing = (a.draws - max(a.base_draws)) / abs(a.base_draws[1] - a.base_draws[0])
    return more | {key: more[key] + missing * (more[key] - few[key]) for key in ("cpu_s", "wall_s")}


def spread(values):
    return {"median": round(statistics.median(values), 2), "lowest": round(min(values), 2), "highest": round(max(values), 2)}


def costs(rows, ours):
    "A method's costs over the rounds, and its CPU time over ours of the same round."
    return {"cpu_s": spread([r["cpu_s"] for r in rows]), "wall_s": spread([r["wall_s"] for r in rows]),
            "peak_gb": round(max(r["peak_gb"] for r in rows), 2),
            "cpu_ratio": spread([r["cpu_s"] / o["cpu_s"] for r, o in zip(rows, ours)])}


def compare(case, a):
    "Costs of the three methods over the rounds, ratios within rounds, and the largest difference of an interval from that of the base."
    with tempfile.TemporaryDirectory() as folder:
        reference = f"{folder}/reference.npz"
        make_reference(case, reference)
        trees = {"diffprune": HERE.parents[2], "base": Path(a.base).resolve(), "torch-fidelity": HERE.parents[2]}
        running, taken = {m: start(m, case, reference, tree) for m, tree in trees.items()}, {m: [] for m in trees}
        for _ in range(a.rounds):
            for m, process in running.items():
                found = ask_scaled(process, m, a)
                taken[m].append(found)
                print(f"  {case}, {m}: {found['cpu_s']:.2f} s of CPU, {found['wall_s']:.2f} s, {found['peak_gb']:.2f} GB", flush=True)
        ours, base = taken["diffprune"][-1]["values"], taken["base"][-1]["values"]
        if a.base_draws: ours = ask(running["diffprune"], max(a.base_draws))["values"]
        for process in running.values(): process.stdin.close(), process.wait()
    gaps = {name: max(abs(x - y) for x, y in zip(ours[name], base[name])) for name in base}
    assert list(ours) == list(base)
    return {"case": CASES[case], "draws": a.draws, "peer_draws": a.peer_draws, "base_draws": a.base_draws or a.draws, "rounds": a.rounds,
            "values": taken["diffprune"][-1]["values"], "largest_difference": gaps,
            "methods": {m: costs(rows, taken["diffprune"]) for m, rows in taken.items()}}


def processor():
    found = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{found[0]}, {len(found)} cores" if found else platform.processor()


def report():
    "The stored results as a Markdown table."
    result = json.loads(RESULTS.read_text())
    print("| case | method | CPU s | CPU time / diffprune's | peak of the process, GB |\n|---|---|---|---|---|")
    for found in result["cases"].values():
        for m, r in found["methods"].items():
            ratio = "1" if m == "diffprune" else "{median} ({lowest} to {highest})".format(**r["cpu_ratio"])
            print(f"| {found['case']} | {m} | {r['cpu_s']['median']:.2f} | {ratio} | {r['peak_gb']:.2f} |")
    for case, found in result["cases"].items():
        name, gap = max(found["largest_difference"].items(), key=lambda item: item[1])
        print(f"\n{case}: largest difference of a value or end of an interval {gap:.1g} ({name}); {found['when']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="checkout of the commit to compare with, whose module `diffprune.metrics` has `measure`")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["digits", "full rank", "few"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--peer-draws", type=int, default=2, help="draws that torch-fidelity is run on")
    parser.add_argument("--base-draws", nargs=2, type=int, help="two numbers of draws from which the base's time is scaled")
    parser.add_argument("--report", action="store_true", help="print the stored results")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker: return worker(*a.worker)
    if a.report: return report()
    if not a.base: parser.error("--base is needed")
    from diffprune.core.store import git_commit
    stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"cases": {}}
    for case in a.cases:
        found = compare(case, a)
        found["when"] = {"commit": git_commit(HERE), "base": git_commit(a.base), "device": processor(), "threads": 1,
                         "load": [round(x, 1) for x in os.getloadavg()], "python": platform.python_version(),
                         **{p: version(p) for p in ("torch", "numpy", "scipy", "torch-fidelity")}}
        stored["cases"][case] = found
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    report()


if __name__ == "__main__":
    main()

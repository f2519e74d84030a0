"""One process against several: the same small study twice, in two stores, and the largest difference of everything in them.

    python benchmarks/parallel/compare.py                 two processes on the CPU (gloo)
    python benchmarks/parallel/compare.py --processes 4
    python benchmarks/parallel/compare.py --device cuda   one GPU a process (NCCL)

The study is on the bundled digits and takes part of every stage: VQ-VAE, latents, features, losses and gradient norms of a
short pre-training, MoSo's products, subsets, models, samples, metrics. Then the several processes encode, embed and sample once
more, this time with the weights that the single process trained: these rows are marked "same weights".
Results go to `results/compare.csv`.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

ROWS = ("latents", "features", "samples")  # kinds with one row per image
STUDY = dict(
    dataset="digits",
    preset="smoke",
    methods=["grand", "moso"],
    ratios=[0.5],
    seeds=[0],
    overrides={
        "vqvae_train.steps": 20,
        "vqvae_train.batch_size": 15,
        "vqvae_train.log_every": 1,
        "train.steps": 20,
        "train.batch_size": 15,
        "train.log_every": 1,
        "proxy.epochs": 1,
        "proxy.n_noise": 1,
        "proxy.n_surrogates": 1,
        "sample.n_samples": 100,
        "sample.batch_size": 64,
        "n_bootstrap": 20,
    },
)


def work(store, device="cpu", study=STUDY):
    "Compute the study; called in every process."
    from diffprune.core.store import Store
    from diffprune.study.study import Study
    Study(**study, store=Store(store), device=device, workers=1).run(progress=False)


def without_rows(store, copy):
    "A copy of a store in which images have to be encoded, embedded and sampled again."
    shutil.copytree(store, copy)
    for kind in (*ROWS, "metrics", "reference", "moments", "measures"): shutil.rmtree(Path(copy) / kind)


def arrays(artifact):
    "name -> array, for every array, weight tensor and column of a log in an artifact."
    found = {p.name: np.load(p, allow_pickle=False) for p in sorted(artifact.path.glob("*.npy"))}
    for p in sorted(artifact.path.glob("*.safetensors")):
        tensors = artifact.tensors(p.stem)
        found[p.name] = np.concatenate([np.ravel(tensors[k]).astype(np.float64) for k in sorted(tensors)])
    for p in artifact.path.glob("log.csv"): found["log.csv: loss"] = pd.read_csv(p).loss.to_numpy()
    if (artifact.path / "metrics.json").is_file():
        found["metrics.json"] = np.array([v for v in artifact.json("metrics").values() if isinstance(v, (int, float))])
    return found


def differences(one, several, kinds=None):
    "A row an array that two stores have under the same address: largest absolute difference, and that relative to the largest value."
    from diffprune.core.store import Store
    rows, others = [], {a.hash: a for a in Store(several).artifacts()}
    for a in Store(one).artifacts():
        if kinds and a.kind not in kinds or a.kind == "images": continue
        mine, theirs = arrays(a), arrays(others[a.hash])
        if mine.keys() != theirs.keys():
            raise ValueError(f"{a.kind} {a.hash}: {sorted(mine)} in one store and {sorted(theirs)} in the other")
        for name in mine:
            x, y = (np.asarray(v[name], dtype=np.float64) for v in (mine, theirs))
            d = np.abs(x - y).max() if x.size else 0.0
            rows.append(dict(kind=a.kind, what=name, values=x.size, largest_difference=d, relative=d / max(np.abs(x).max(), 1e-30),
                             differing=int((x != y).sum()), hash=a.hash))
    return pd.DataFrame(rows)


def launch(n, *args, **options):
    "Run this file, or another script, in n processes."
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n}", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    return subprocess.run(
        [*command, *map(str, args)], env=dict(os.environ, OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1")), **options
    )


def table(found):
    "The largest difference of each kind of array, over all artifacts of that kind."
    grouped = found.groupby(["weights", "kind", "what"], sort=False)
    return grouped.agg(values=("values", "sum"), differing=("differing", "sum"), largest_difference=("largest_difference", "max"),
                       relative=("relative", "max")).reset_index()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.work: return work(a.work, a.device)
    with tempfile.TemporaryDirectory() as folder:
        one, several, again = (Path(folder) / name for name in ("one", "several", "again"))
        work(one, a.device)
        launch(a.processes, __file__, "--device", a.device, "--work", several, check=True)
        without_rows(one, again)
        launch(a.processes, __file__, "--device", a.device, "--work", again, check=True)
        found = [differences(one, several).assign(weights="trained anew"), differences(one, again, ROWS).assign(weights="same weights")]
    results = table(pd.concat(found, ignore_index=True))
    results.to_csv(Path(__file__).parent / "results/compare.csv", index=False, float_format="%.3g")
    print(results.to_string(index=False, float_format=lambda v: f"{v:.2g}"))


if __name__ == "__main__": main()

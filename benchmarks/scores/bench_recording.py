"""What recording costs: a pre-training alone, and with monotonicity, EL2N and GraNd of one draw recorded beside it.

    python benchmarks/scores/bench_recording.py                      # DiT-S/2 at 16 tokens, 96 samples, 10 epochs

The variants run one after the other in every round, and each is compared with the pre-training alone of the same round. Losses are
recorded after every epoch, gradient norms after the last one. "A surrogate" is what MoSo adds for each of its models: products with
the mean gradient at one checkpoint, over all samples. Results go to `recording-<device>.csv` and `.json`.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from diffprune.models.dit import dit_model
from diffprune.models.train import TrainConfig, Trainer, diffusion_loss, seeded
from diffprune.pruning.probes import ProbeGrid, ProbeSet, Recorder, epoch_ends, probe_losses, probe_moso, probe_norms

HERE = Path(__file__).parent

def commit(): return subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
VARIANTS = {"pre-training alone": {}, "one draw, float32": dict(dtype=torch.float32), "one draw, bfloat16": dict(dtype=torch.bfloat16),
            "two draws, float32": dict(dtype=torch.float32, n_noise=2), "two draws, bfloat16": dict(dtype=torch.bfloat16, n_noise=2)}

def now(device):
    if device == "cuda": torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])

def run(samples, o, dtype=None, n_noise=1, moso=False):
    "Wall and processor seconds of a pre-training, recorded in `dtype` if it is given. With `moso`, those of MoSo's products alone."
    grid, dtype_of_probe = ProbeGrid((0.9,), n_noise), None if dtype == torch.float32 else dtype
    how = dict(device=o.device, progress=False, dtype=dtype_of_probe, batch_size=o.probe_batch)
    with seeded(0): model = dit_model(o.model, input_size=o.side, num_classes=0, learn_sigma=False)
    steps = epoch_ends(len(samples), o.batch, o.epochs)
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(folder, steps, partial(probe_losses, samples=samples, grid=grid, **how)) if dtype else None
        cfg = TrainConfig(steps=steps[-1], batch_size=o.batch)
        trainer = Trainer(model, diffusion_loss, dict(latent=samples.latents), cfg, device=o.device, on_step=recorder)
        start = now(o.device)
        if moso: probe_moso(trainer.model, samples, grid, **how)
        else:
            trainer.fit(progress=False)
            if dtype: probe_norms(trainer.model, samples, grid, **how)
        return now(o.device) - start

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", default="DiT-S/2"); a.add_argument("--side", type=int, default=8); a.add_argument("--n", type=int, default=96)
    a.add_argument("--epochs", type=int, default=10); a.add_argument("--batch", type=int, default=32)
    a.add_argument("--rounds", type=int, default=2); a.add_argument("--probe-batch", type=int, default=64)
    a.add_argument("--device", default="cpu"); a.add_argument("--out", default=str(HERE))
    a.add_argument("--threads", type=int, default=os.cpu_count())
    a.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="of the ratios; cpu for a busy machine")
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    samples = ProbeSet(np.random.default_rng(0).standard_normal((o.n, 4, o.side, o.side)).astype(np.float32), np.arange(o.n))
    variants = VARIANTS | {"MoSo, a surrogate's products at one checkpoint": dict(dtype=torch.float32, moso=True)}
    times = {name: [] for name in variants}
    run(ProbeSet(samples.latents[:o.batch], samples.ids[:o.batch]), argparse.Namespace(**{**vars(o), "epochs": 1}), torch.bfloat16)
    for _ in range(o.rounds):
        for name, kw in variants.items():
            times[name].append(run(samples, o, **kw))
            print(name, times[name][-1].round(1), file=sys.stderr, flush=True)
    clock = ("wall", "cpu").index(o.clock)
    base = np.array(times["pre-training alone"])[:, clock]
    rows = [dict(run=name, wall_s=min(t[0] for t in found), cpu_s=min(t[1] for t in found),
                 ratio=float(np.median(np.array(found)[:, clock] / base))) for name, found in times.items()]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((l.split(":")[1].strip() for l in lines if l.startswith("model name")), platform.processor())
    device = torch.cuda.get_device_name() if o.device == "cuda" else f"{cpu}, {o.threads} thread(s)"
    facts = dict(model=o.model, tokens=(o.side // 2)**2, samples=o.n, epochs=o.epochs, batch=o.batch, probe_batch=o.probe_batch,
                 clock=o.clock, rounds=o.rounds, device=device, torch=torch.__version__, commit=commit())
    pd.DataFrame(rows).to_csv(Path(o.out) / f"recording-{o.device}.csv", index=False)
    (Path(o.out) / f"recording-{o.device}.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts)); print("| run | wall, s | processor, s | times the pre-training alone |\n|---|---|---|---|")
    for r in rows: print(f"| {r['run']} | {r['wall_s']:.1f} | {r['cpu_s']:.1f} | {r['ratio']:.2f} |")

if __name__ == "__main__": main()

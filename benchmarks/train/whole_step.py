"""What `TrainConfig(compile="step")` costs and saves at the preset `cpu`, in one thread.

    python benchmarks/train/whole_step.py            about five minutes of CPU time; --blocks 3 for a look

For each data set: CPU seconds of compiling, in this process and with its compiler, into an empty folder; of loading what was compiled,
in another process; and of steps of two `Trainer`s, one plain and one compiled, in alternating blocks, so that whatever else the machine
does meets both. Losses of the two are compared after every block. From that follow the CPU seconds of six runs in two processes and the
number of steps at which compiling has repaid. CPU seconds are not stretched by a busy machine as wall time is. Weights and latents are
random: a step takes as long with them. Data sets whose steps are the same graph share it, and the table says so.
Results go to `results/whole-step-cpu.json`.
"""
import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from diffprune.models.dit import dit_model
from diffprune.models.train import Trainer, diffusion_loss, seeded
from diffprune.study.presets import load_preset

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from run import PRESETS, commit  # noqa: E402

RUNS, PROCESSES, RESULTS = 6, 2, HERE / "results" / "whole-step-cpu.json"


def cpu():
    "CPU seconds of this process and of those that it waited for."
    return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def trainer(name, compile, folder):
    size, classes, n = PRESETS[name]
    preset = load_preset("cpu", name)
    with seeded(0): model = dit_model(preset.dit, input_size=size, num_classes=classes, learn_sigma=False)
    data = dict(latent=torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(0)))
    if classes: data["label"] = torch.arange(n) % classes
    loss = partial(diffusion_loss, class_dropout_prob=preset.class_dropout_prob)
    return Trainer(model, loss, data, replace(preset.train, compile=compile, log_every=1), None, "cpu", None, folder)


def first_step(made):
    "CPU seconds until the first step has been made."
    start = cpu()
    made.train_step()
    if made.cfg.compile == "step" and not made._whole: raise SystemExit("the step could not be compiled")
    return cpu() - start


def measure(name, folder, blocks, steps):
    "One row of the table."
    graphs = lambda: {p.parent for p in folder.glob("*/complete.json")}
    known, made = graphs(), dict(eager=trainer(name, False, None), compiled=trainer(name, "step", folder))
    made["eager"].train_step()
    row = dict(preset=name, compile_s=round(first_step(made["compiled"]), 1))
    if graphs() == known: row["compile_s"] = 0.0  # another data set has the same graph
    load = subprocess.run([sys.executable, __file__, "--load", name, str(folder)], capture_output=True, text=True)
    if load.returncode: raise SystemExit(load.stderr)
    times = []
    for _ in range(blocks):
        for t in made.values():
            start = cpu()
            for _ in range(steps): t.train_step()
            times.append(1e3 * (cpu() - start) / steps)
    times = np.array(times).reshape(blocks, 2)
    low, ratio, high = np.quantile(times[:, 1] / times[:, 0], (0.25, 0.5, 0.75)).tolist()
    eager, whole = np.median(times, 0).tolist()
    losses = np.array([[r["loss"] for r in t.log] for t in made.values()])
    n, row["load_s"] = load_preset("cpu", name).train.steps, round(float(load.stdout), 1)
    once = row["compile_s"] + (PROCESSES - (row["compile_s"] > 0)) * row["load_s"]
    row |= dict(eager_ms=round(eager, 2), compiled_ms=round(whole, 2), ratio=round(ratio, 3), quartiles=[round(low, 3), round(high, 3)])
    row |= dict(eager_run_s=round(n * eager / 1e3, 1), compiled_run_s=round(n * whole / 1e3, 1), steps_of_a_run=n)
    row |= dict(six_runs_ratio=round((once + RUNS * n * whole / 1e3) / (RUNS * n * eager / 1e3), 3))
    row |= dict(repaid_after_steps=round(1e3 * once / (eager - whole)))
    return row | dict(steps_compared=losses.shape[1], largest_relative_error_of_loss=float(np.abs(losses[1] / losses[0] - 1).max()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", nargs=2, metavar=("PRESET", "FOLDER"), help="only print the CPU seconds of loading a compiled step")
    parser.add_argument("--blocks", type=int, default=10, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=20, help="steps of a block")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.load:
        print(first_step(trainer(args.load[0], "step", Path(args.load[1]))))
        sys.exit()
    here, rows = commit(HERE.parents[1]), []
    with tempfile.TemporaryDirectory() as folder:
        for name in PRESETS:
            rows.append(measure(name, Path(folder), args.blocks, args.steps))
            print(rows[-1], flush=True)
            about = dict(commit=here, torch=torch.__version__, machine=platform.machine(), threads=1, blocks=args.blocks, steps=args.steps,
                         capability=torch.backends.cpu.get_cpu_capability(), runs=RUNS, processes=PROCESSES,
                         load=round(os.getloadavg()[0], 1))
            RESULTS.write_text(json.dumps(dict(about=about, rows=rows), indent=1) + "\n")

"""The training step of the small presets, side by side with that of another commit.

    git worktree add /some/where COMMIT
    python benchmarks/train/run.py --against /some/where

One child process per tree trains the presets' models on latents of the presets' shapes; blocks of steps alternate between
the trees, so that whatever else the machine does meets both. The ratio of each pair of blocks is taken, and the median of the
ratios is reported with its quartiles. Times are CPU seconds of the training thread, which a busy machine does not stretch as
it does wall time; all pools have one thread.
Results go to `results/step-<device>.json`.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PRESETS = dict(digits=(4, 10, 1297), openmoji=(4, 10, 4045), avatars=(8, 0, 4000))  # height of the latents, classes, samples

CHILD = """
import json, sys, time
import torch
from diffprune.models.dit import dit_model
from diffprune.models.train import TrainConfig, Trainer, diffusion_loss, seeded
torch.set_num_threads(1)
trainers = {}
for line in sys.stdin:
    name, size, classes, n, steps = json.loads(line)
    if name not in trainers:
        with seeded(0): model = dit_model("DiT-N/2", input_size=size, num_classes=classes, learn_sigma=False)
        data = dict(latent=torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(0)))
        if classes: data["label"] = torch.arange(n) % classes
        cfg = TrainConfig(steps=10**6, batch_size=64, lr=2e-3, warmup=50, ema_decay=0.99, log_every=50)
        trainers[name] = Trainer(model, diffusion_loss, data, cfg, device="cpu")
        for _ in range(5): trainers[name].train_step()
    cpu, wall = time.thread_time(), time.perf_counter()
    for _ in range(steps): trainers[name].train_step()
    print(json.dumps([(time.thread_time() - cpu)/steps, (time.perf_counter() - wall)/steps]), flush=True)
"""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def start(tree):
    "A child that trains with the package of a tree."
    env = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(tree)}
    return subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=tree)


def block(child, *request):
    print(json.dumps(request), file=child.stdin, flush=True)
    return json.loads(child.stdout.readline())


def commit(tree):
    command = ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="a checkout of another commit")
    parser.add_argument("--blocks", type=int, default=15, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=20, help="steps of a block")
    args = parser.parse_args()
    trees = dict(before=args.against.resolve(), now=HERE.parents[1])
    children, rows = {name: start(tree) for name, tree in trees.items()}, []
    for name, shape in PRESETS.items():
        for child in children.values(): block(child, name, *shape, 1)
        times = np.array([[block(children[k], name, *shape, args.steps) for k in trees] for _ in range(args.blocks)])[:, :, 0]
        low, ratio, high = np.quantile(times[:, 1]/times[:, 0], (0.25, 0.5, 0.75)).tolist()
        before, now = (1e3*np.median(times, 0)).tolist()
        ratios = dict(ratio=round(ratio, 3), quartiles=[round(low, 3), round(high, 3)])
        rows.append(dict(preset=name, before_ms=round(before, 2), now_ms=round(now, 2), **ratios))
        print(rows[-1], flush=True)
    for child in children.values(): child.stdin.close(); child.wait()
    import torch
    about = dict(before=commit(trees["before"]), now=commit(trees["now"]), torch=torch.__version__, machine=platform.machine(),
                 capability=torch.backends.cpu.get_cpu_capability(), blocks=args.blocks, steps=args.steps, load=os.getloadavg()[0])
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "step-cpu.json").write_text(json.dumps(dict(about=about, rows=rows), indent=1) + "\n")

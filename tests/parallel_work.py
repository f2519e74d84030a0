"""What the processes of `test_parallel.py` do: `python parallel_work.py ONE TWO` under torchrun, the functions alone in one process."""
import contextlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from diffprune.core.parallel import agree, first_then_others, is_main, processes, start, together, write_rows
from diffprune.core.stages import Context, Stage, materialise
from diffprune.core.store import Store, save_array
from diffprune.models.dit import dit_model
from diffprune.models.train import TrainConfig, Trainer, diffusion_loss, seeded
from diffprune.models.vqvae import VQVAE, VQVAEConfig, vqvae_loss

STUDY = dict(dataset="digits", preset="smoke", methods=["grand", "moso"], ratios=[0.5], seeds=[0], overrides={"data.n_val": 1500,
    "vqvae_train.steps": 5, "vqvae_train.batch_size": 15, "vqvae_train.log_every": 1,
    "train.steps": 10, "train.batch_size": 31, "train.log_every": 1,
    "proxy.epochs": 1, "proxy.n_noise": 1, "proxy.n_surrogates": 1, "sample.n_samples": 100, "sample.batch_size": 64})
CONFIG = TrainConfig(steps=12, batch_size=7, lr=1e-3, ema_decay=0.9, log_every=1)       # 7 = 4 + 3: unequal parts


def trainer(folder=None, dtype=torch.float32, cfg=CONFIG, on_step=None, loss=diffusion_loss):
    with seeded(0): model = dit_model("DiT-N/2", input_size=4, in_channels=4, num_classes=10, learn_sigma=False).to(dtype)
    latents = torch.randn(50, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return Trainer(model, loss, dict(latent=latents, label=torch.arange(50) % 10), cfg, folder, "cpu", on_step)


def write_log(log, path):
    if is_main(): log.to_csv(path, index=False, float_format="%.17g")


def train_vqvae(out):
    "A codebook that is too large, so that codes die and are revived."
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 16, 16), dtype=np.uint8)
    with seeded(0): model = VQVAE(VQVAEConfig(base_channels=8, channel_mult=(1, 2), n_res_blocks=1, codebook_size=100, ema_decay=0.8))
    loss = lambda m, b, d: vqvae_loss(m, dict(image=b["image"].float() / 127.5 - 1), d)
    revived, replace = [], model.vq._codebook.replace
    model.vq._codebook.replace = lambda vectors, dead: (revived.append(int(dead.sum())), replace(vectors, dead))
    t = Trainer(model, loss, dict(image=images), TrainConfig(steps=12, batch_size=5, lr=2e-3, ema_decay=None, log_every=1), None, "cpu")
    write_log(t.fit(progress=False), out / "vqvae.csv")
    save_array(out / f"codebook {t.rank}.npy", t.model.codebook.numpy())
    if is_main(): (out / "revived.txt").write_text(str(sum(revived)))


class Stop(Exception): pass


SHORT = TrainConfig(steps=12, batch_size=7, lr=1e-3, ema_decay=0.9, log_every=4, checkpoint_every=5)


def first_half(folder):
    "Interrupted at step 8, with a checkpoint of step 5, in the middle of a row of the log."
    def stop(t):
        if t.step == 8: raise Stop
    try: trainer(folder, cfg=SHORT, on_step=stop).fit(progress=False)
    except Stop: pass


def second_half(folder, log): write_log(trainer(folder, cfg=SHORT).fit(progress=False), log)


def everything(out):
    "Whatever one process and two do alike."
    wanted = "step" if processes().world > 1 else False  # of one process it would be compiled, which takes a minute
    for dtype, compile in ((torch.float32, wanted), (torch.float64, False)):
        made = trainer(dtype=dtype, cfg=replace(CONFIG, compile=compile))
        write_log(made.fit(progress=False), out / f"dit {str(dtype)[6:]}.csv")
        assert made.segments[0]["compiled"] is False
    train_vqvae(out)
    second_half(None, out / "whole.csv")


def errors(out):
    "case -> what this process was told."
    me, told = processes(), {}
    context = Context(Store(out / "errors"), progress=False)
    def fail(only=None):
        if only in (None, me.rank): raise ValueError("no luck")
    def broken(rows, folder):
        if rows.stop > 4: raise ValueError("row 4 is broken")
    def stage(kind, work, **kw): return lambda: materialise(Stage(kind, {}, make=lambda *a: work(), **kw), context)
    def blocked():
        if is_main(): (out / "blocked").write_text("a file where a folder should be")
        materialise(Stage("toy", {}, make=lambda *a: None, parallel=True), Context(Store(out / "blocked"), progress=False))
    cases = {"a row of process 1": lambda: write_rows(out / "rows", 5, broken),
             "make in process 1": stage("one", lambda: fail(1), parallel=True),
             "make in both": stage("both", fail, parallel=True), "the first alone": stage("alone", fail), "before make": blocked,
             "training alone": stage("train", lambda: trainer()), "too many processes": lambda: trainer(cfg=TrainConfig(batch_size=1))}
    for case, run in cases.items():
        try: run()
        except Exception as e: told[case] = f"{type(e).__name__}: {e}"
    order = out / "order.txt"
    def turn():
        with open(order, "a") as f: f.write(f"{me.rank}\n")
    first_then_others(turn)
    told |= dict(agreed=agree(lambda: [me.rank, "of", me.world]), order=order.read_text().split())
    told["alone"] = agree(lambda: [processes().rank, processes().world])
    with together(): (out / f"errors {me.rank}.json").write_text(json.dumps(told))


def command_line(out, *args):
    "What `python -m diffprune.cli` does and prints in this process."
    import runpy
    argv, sys.argv, os.environ["DIFFPRUNE_STORE"] = sys.argv, ["diffprune", *args], str(out / "cli")
    with open(out / f"printed {processes().rank}.txt", "w") as f, contextlib.redirect_stdout(f):
        try: runpy.run_module("diffprune.cli", run_name="__main__")
        except SystemExit as e: print("exit status", e.code)
    sys.argv = argv


def fail_in_training(out):
    "Process 1 fails in a step while process 0 waits for its gradient."
    def loss(model, batch, draws):
        if processes().rank == 1: raise ValueError("process 1 has had enough")
        return diffusion_loss(model, batch, draws)
    start()
    def make(stage, artifacts, folder, context): trainer(folder, loss=loss).fit(progress=False)
    materialise(Stage("toy", {}, make=make, parallel=True), Context(Store(out / "store"), progress=False))


if __name__ == "__main__":
    if sys.argv[1] == "fail": fail_in_training(Path(sys.argv[2])); sys.exit()
    from diffprune.study.study import Study
    one, two = map(Path, sys.argv[1:])
    start()
    first_half(two / "stopped")
    agree(lambda: str(shutil.copytree(one / "stopped", two / "stopped by one")))
    second_half(two / "stopped by one", two / "finished by two.csv")
    everything(two)
    for store in ("store", "copy"): Study(**STUDY, store=Store(two / store), device="cpu").run(progress=False)
    errors(two)
    command_line(two, "study", "--dataset", "digits", "--preset", "smoke", "--methods", "random", "--ratios", "0")  # unpruned alone

"""The training loop: a real kill, mixed precision, divisibility, and draws that do not depend on the number of processes."""
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from diffprune.models.dit import dit_model
from diffprune.models.train import Batches, Draws, NotFiniteError, TrainConfig, Trainer, diffusion_loss, seeded
from diffprune.models.vqvae import VQVAE, VQVAEConfig, vqvae_loss

SCRIPT = """
import sys, torch
from diffprune.models.train import *
from diffprune.models.dit import dit_model
torch.set_num_threads(1)
with seeded(0): model = dit_model("DiT-N/2", input_size=4, in_channels=4, num_classes=10, learn_sigma=False)
g = torch.Generator().manual_seed(0)
data = dict(latent=torch.randn(50, 4, 4, 4, generator=g), label=torch.arange(50) % 10)
cfg = TrainConfig(steps=60, batch_size=16, lr=1e-3, ema_decay=0.9, log_every=7, checkpoint_every=10, schedule="cosine")
def report(trainer):
    print(trainer.step, flush=True)
    if len(sys.argv) > 2: import time; time.sleep(0.02)
t = Trainer(model, diffusion_loss, data, cfg, sys.argv[1], device="cpu", on_step=report)
t.fit(progress=False).to_csv(sys.argv[1] + "/log.csv", index=False)
t.export(sys.argv[1] + "/model.safetensors")
"""


def run(folder, kill_at=None):
    "Train in a process of its own; with `kill_at`, send SIGKILL when that step is reported."
    args = [sys.executable, "-c", SCRIPT, str(folder)] + (["slowly"] if kill_at else [])
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if kill_at and int(line) >= kill_at: process.send_signal(signal.SIGKILL); break
        process.stdout.read()
        return process.wait()


def test_killed_runs_end_in_the_same_weights(tmp_path):
    assert run(tmp_path / "whole") == 0
    for kill_at in (3, 23, 41): assert run(tmp_path / "killed", kill_at) == -signal.SIGKILL
    assert run(tmp_path / "killed") == 0
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[k], killed[k]) for k in whole)
    assert (tmp_path / "whole/log.csv").read_text() == (tmp_path / "killed/log.csv").read_text()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_mixed_precision_learns_and_keeps_float32_weights(precision):
    with seeded(0): model = dit_model("DiT-N/2", input_size=4, in_channels=4, num_classes=0, learn_sigma=False)
    latents = torch.randn(64, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    cfg = TrainConfig(steps=40, batch_size=16, lr=2e-3, precision=precision, log_every=10)
    trainer = Trainer(model, diffusion_loss, dict(latent=latents), cfg, device="cpu")
    log = trainer.fit(progress=False)
    assert log.loss.iloc[-1] < log.loss.iloc[0]
    assert all(p.dtype == torch.float32 for p in trainer.averaged.parameters())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_compiled_training_gives_the_same_losses():
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    loss = lambda m, b, d: ((m(b["x"]) - b["x"].sum(1, keepdim=True)).square().mean(), {})
    logs = []
    for compiled in (False, True):
        with seeded(0): model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
        trainer = Trainer(model, loss, dict(x=x), TrainConfig(steps=6, batch_size=8, lr=1e-2, log_every=2, compile=compiled), device="cpu")
        logs.append(trainer.fit(progress=False).loss)
        assert (model._compiled_call_impl is not None) == compiled
    pd.testing.assert_series_equal(*logs, rtol=1e-4)


def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="fp16"):
        Trainer(torch.nn.Linear(1, 1), None, dict(x=torch.zeros(2, 1)), TrainConfig(precision="fp16"), device="cpu")


def test_a_process_that_trained_on_the_cpu_may_train_elsewhere_next():
    "Accelerate alone stays on the device of the first training of a process, or refuses the CPU after a GPU."
    from accelerate.state import PartialState
    seen = []
    for device, precision in (("cpu", "no"), (None, "no"), ("cpu", "bf16"), (None, "bf16")):
        Trainer(torch.nn.Linear(1, 1), None, dict(x=torch.zeros(2, 1)), TrainConfig(precision=precision), device=device)
        seen.append(PartialState()._cpu)
    assert seen == [True, False, True, False]


def test_vqvae_resumes_exactly(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (32, 3, 8, 8), dtype=np.uint8)
    loss = lambda m, b, d: vqvae_loss(m, dict(image=b["image"].float() / 127.5 - 1), d)
    cfg = TrainConfig(steps=12, batch_size=8, lr=1e-3, ema_decay=None, log_every=4, checkpoint_every=5)

    class Stop(Exception): pass

    def stop(trainer):
        if trainer.step == 8: raise Stop

    def make(folder=None, hook=None):
        with seeded(0): model = VQVAE(VQVAEConfig(base_channels=8, channel_mult=(1, 2), n_res_blocks=1, codebook_size=16))
        return Trainer(model, loss, dict(image=images), cfg, folder, device="cpu", on_step=hook)

    whole = make()
    log = whole.fit(progress=False)
    with pytest.raises(Stop): make(tmp_path, stop).fit(progress=False)
    resumed = make(tmp_path)
    pd.testing.assert_frame_equal(log, resumed.fit(progress=False), check_exact=True)
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()): assert torch.equal(a, b)


def test_nan_in_the_data_is_an_error_that_says_what_to_do(tmp_path):
    latents = torch.zeros(8, 4, 4, 4)
    latents[3] = float("nan")
    model = dit_model("DiT-N/2", input_size=4, in_channels=4, num_classes=0, learn_sigma=False)
    trainer = Trainer(model, diffusion_loss, dict(latent=latents), TrainConfig(steps=20, batch_size=8, log_every=5), tmp_path, device="cpu")
    with pytest.raises(NotFiniteError, match="look for NaN in the data"): trainer.fit(progress=False)
    assert not trainer.checkpoints()


def test_bad_data_is_refused():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="differ in length"):
        Trainer(model, None, dict(a=torch.zeros(3), b=torch.zeros(4)), TrainConfig(), device="cpu")
    with pytest.raises(ValueError, match="empty"): Trainer(model, None, dict(a=torch.zeros(0)), TrainConfig(), device="cpu")


def test_caller_random_state_is_untouched():
    model = dit_model("DiT-N/2", input_size=4, in_channels=4, num_classes=0, learn_sigma=False)
    before = torch.random.get_rng_state()
    data = dict(latent=torch.randn(8, 4, 4, 4, generator=torch.Generator()))
    Trainer(model, diffusion_loss, data, TrainConfig(steps=2, batch_size=4), device="cpu").fit(progress=False)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_draws_of_one(world):
    whole = Draws(3, 11, 8).rand(2)
    parts = [Draws(3, 11, 8, rank, world).rand(2) for rank in range(world)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_batches_cover_every_epoch_evenly():
    stream = np.concatenate([Batches(7, 3, seed=5)[s] for s in range(7)])
    assert np.bincount(stream).tolist() == [3] * 7

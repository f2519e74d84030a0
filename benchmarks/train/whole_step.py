"""What a training step would cost with all of it (loss, gradients, clipping, AdamW, average) in one compiled graph.

    python benchmarks/train/whole_step.py            compile once, measure, compare the losses of 100 steps with the Trainer's
    python benchmarks/train/whole_step.py            again: what compiling costs a second process that finds the first one's cache

A measurement of a simpler graph than that of `TrainConfig(compile="step")`: see README.md. The cache is in
$TORCHINDUCTOR_CACHE_DIR. Results go to `results/whole-step-cpu.json`, with an entry for each call.
"""
import json
import os
import time
from pathlib import Path

import torch
from torch.func import functional_call, grad_and_value

from diffprune.models.dit import dit_model
from diffprune.models.train import Draws, TrainConfig, Trainer, diffusion_loss, learning_rate, seeded

RESULTS = Path(__file__).resolve().parent / "results" / "whole-step-cpu.json"
CFG = TrainConfig(steps=100, batch_size=64, lr=2e-3, warmup=50, schedule="cosine", ema_decay=0.99, log_every=1)
SIZE = 4  # of the latents of digits and openmoji at the preset cpu: 4 tokens


class Given:
    "Draws of a step that were made outside of the graph."
    def __init__(self, values): self.values = list(values)
    def randn(self, *shape): return self.values.pop(0)
    rand = randn


def trainer():
    with seeded(0): model = dit_model("DiT-N/2", input_size=SIZE, num_classes=10, learn_sigma=False)
    data = dict(latent=torch.randn(1297, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(0)), label=torch.arange(1297) % 10)
    return Trainer(model, diffusion_loss, data, CFG, device="cpu")


def compiled_step(model):
    "A function that makes a step in place, with attention in plain operations, which is faster than SDPA for a handful of tokens."
    for block in model.blocks: block.attn.fused_attn = False
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rest = {**{n: p for n, p in model.named_parameters() if n not in named}, **dict(model.named_buffers())}
    b1, b2 = CFG.betas

    def step(params, first, second, average, batch, draws, rates):
        def loss(ps):
            call = lambda *a, **k: functional_call(model, {**dict(zip(named, ps)), **rest}, a, k)
            return diffusion_loss(call, batch, Given(draws))[0]
        grads, value = grad_and_value(loss)(params)
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        scale, (lr, c1, c2) = torch.clamp(CFG.grad_clip/(norm + 1e-6), max=1.0), rates
        for p, g, m, v, e in zip(params, grads, first, second, average):
            g = g*scale
            m.lerp_(g, 1 - b1)
            v.mul_(b2).add_(g*g*(1 - b2))
            p.sub_(lr*(m/c1)/(v.sqrt()/c2 + 1e-8))
            e.lerp_(p, 1 - CFG.ema_decay)
        return value, norm
    params = [p.detach() for p in named.values()]
    state = [[torch.zeros_like(p) for p in params] for _ in range(2)] + [[p.clone() for p in params]]
    fast = torch.compile(step, fullgraph=True, dynamic=False)

    def at(t, s):
        d, b1t, b2t = Draws(CFG.seed, s, CFG.batch_size), 1 - b1**(s + 1), 1 - b2**(s + 1)
        draws = (d.randn(4, SIZE, SIZE), d.rand(), d.rand())
        rates = torch.tensor([learning_rate(CFG, s), b1t, b2t**0.5])
        with torch.no_grad(): return fast(params, *state, t.batch(s), draws, rates)[0].item()
    return at


if __name__ == "__main__":
    torch.set_num_threads(1)
    plain, other = trainer(), trainer()
    step, cpu, wall, times, ours = compiled_step(other.model), time.process_time(), time.perf_counter(), [], []
    ours.append(step(other, 0))
    found = dict(compile_cpu_s=round(time.process_time() - cpu, 1), compile_wall_s=round(time.perf_counter() - wall, 1))
    for s in range(1, CFG.steps):
        start = time.thread_time(); plain.train_step()
        middle = time.thread_time(); ours.append(step(other, s))
        times.append((middle - start, time.thread_time() - middle))
    plain.train_step()
    ratios = torch.tensor([b/a for a, b in times])
    eager, compiled = (1e3*torch.tensor(times).median(0).values).tolist()
    error = max(abs(a/row["loss"] - 1) for a, row in zip(ours, plain.log))
    found |= dict(eager_ms=round(eager, 2), compiled_ms=round(compiled, 2), ratio=round(ratios.median().item(), 3),
                  largest_relative_error_of_loss=error, torch=torch.__version__, load=os.getloadavg()[0])
    print(found)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps([*known, found], indent=1) + "\n")

"""Per-sample gradient norms (GraNd) and products with a mean gradient (MoSo): this library beside a loop, torch.func and Opacus.

    python benchmarks/scores/bench_gradients.py                    # DiT-S/2 at 16, 64 and 256 tokens, on the CPU
    python benchmarks/scores/bench_gradients.py --device cuda --batch 256 128 64

All contenders get the same model, samples, times and noises. In each round every contender runs once, one after the other, and is
compared with the loop of the same round, so that a machine that is busy for a while slows all of them. Peak memory is that of a
separate process per contender, beyond what model and data take. Opacus is optional (pip install opacus).
"""
import argparse
import copy
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffprune.models.dit import dit_model
from diffprune.models.flow import flow_matching_loss
from diffprune.pruning.gradients import CompiledGradients, plain_attention, sample_gradients

HERE = Path(__file__).parent

def commit(): return subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()

def setup(tokens, batch, name, device):
    "Model with random weights (none zero), and the arguments of `flow_matching_loss`."
    side = round(tokens**.5) * 2
    torch.manual_seed(0)
    model = dit_model(name, input_size=side, num_classes=0, learn_sigma=False)
    for p in model.parameters():
        if p.requires_grad: p.data += torch.randn_like(p) * .02
    x_1, x_0 = torch.randn(2, batch, 4, side, side)
    args = dict(x_1=x_1, x_0=x_0, t=torch.full((batch,), .9))
    return model.to(device), {k: v.to(device) for k, v in args.items()}

def parameters(model): return {n: p for n, p in model.named_parameters() if p.requires_grad}

def rows(args, i, n=1): return {k: v[i:i + n] for k, v in args.items()}

def direction(model):
    g = torch.Generator().manual_seed(1)
    return {n: torch.randn(p.shape, generator=g).to(p) for n, p in parameters(model).items()}

# --- contenders: (model, args) -> norms, or products with the direction; `n` samples of the batch, at most `chunk` gradients held

def loop(model, args, along=None):
    "One sample, one backward pass."
    params, out = parameters(model), []
    for i in range(len(args["t"])):
        g = torch.autograd.grad(flow_matching_loss(model, **rows(args, i)).sum(), list(params.values()))
        if along is None: out.append(torch.stack(torch._foreach_norm(g)).norm())
        else: out.append(torch.stack([torch.dot(a.flatten(), b.flatten()) for a, b in zip(g, along.values())]).sum())
    return torch.stack(out)

def hooks(model, args, along=None):
    found = sample_gradients(model, lambda: flow_matching_loss(model.forward, **args), along)
    return found.norm if along is None else found.dot

def compiled(model, args, along=None, fused=None):
    "The same pass as one compiled graph."
    found = fused(args, along)
    return found.norm if along is None else found.dot

def hooks_bf16(model, args, along=None, twin=None):
    low = None if along is None else {n: v.bfloat16() for n, v in along.items()}
    call = lambda x, t, y=None, drop=None: twin(x.bfloat16(), t, y, drop)
    with plain_attention(torch.bfloat16, args["t"].device): found = sample_gradients(twin, lambda: flow_matching_loss(call, **args), low)
    return found.norm if along is None else found.dot

def vmap_grad(model, args, along=None, chunk=4):
    "torch.func.vmap over torch.func.grad, in chunks, attention written out."
    params = {n: p.detach() for n, p in parameters(model).items()}
    def loss(params, row):
        call = lambda x, t, y=None, drop=None: torch.func.functional_call(model, params, (x, t, y, drop))
        return flow_matching_loss(call, **{k: v[None] for k, v in row.items()}).sum()
    def one(row):
        g = torch.func.grad(loss)(params, row)
        if along is None: return torch.stack([v.square().sum() for v in g.values()]).sum().sqrt()
        return torch.stack([(v * along[n]).sum() for n, v in g.items()]).sum()
    with sdpa_kernel(SDPBackend.MATH):          # the fused kernel has no batching rule and would be called sample by sample
        return torch.cat([torch.func.vmap(one)(rows(args, i, chunk)) for i in range(0, len(args["t"]), chunk)])

def opacus(model, args, along=None, chunk=4, wrapped=None):
    "Opacus' per-sample gradients, in chunks; `grad_sample` of each parameter."
    out = []
    for i in range(0, len(args["t"]), chunk):
        wrapped.zero_grad()
        part = rows(args, i, chunk)
        flow_matching_loss(wrapped, **part).sum().backward()
        found = parameters(wrapped._module)
        if along is None: out.append(sum(p.grad_sample.flatten(1).square().sum(1) for p in found.values()).sqrt())
        else: out.append(sum(p.grad_sample.flatten(1) @ along[n].flatten() for n, p in found.items()))
        for p in found.values(): p.grad_sample = None
    return torch.cat(out)

def products(model, params, along, args):
    def losses(params):
        return flow_matching_loss(lambda x, t, y=None, drop=None: torch.func.functional_call(model, params, (x, t, y, drop)), **args)
    with sdpa_kernel(SDPBackend.MATH): return torch.func.jvp(losses, (params,), (along,))[1]

def forward_mode(model, args, along=None):
    "torch.func.jvp along the direction, attention written out."
    return products(model, {n: p.detach() for n, p in parameters(model).items()}, along, args)

def forward_mode_compiled(model, args, along=None, fused=None):
    "The same as one compiled graph."
    with torch.no_grad(): return fused({n: p.detach() for n, p in parameters(model).items()}, along, args)

@torch.no_grad()
def matrix_products(model, args, along, tokens):
    "A floor for forward mode: the three products of each block's linear layers alone (two with the weights, one with the direction)."
    layers = [(n, m) for n, m in model.blocks.named_modules() if isinstance(m, nn.Linear) and "adaLN" not in n]
    x = {d: torch.randn(len(args["t"]) * tokens, d, device=args["t"].device) for d in {m.in_features for _, m in layers}}
    for n, m in layers:
        for w in (m.weight, m.weight, along[f"blocks.{n}.weight"]): nn.functional.linear(x[m.in_features], w)

def train_step(model, args, along=None, optimizer=None):
    optimizer.zero_grad(set_to_none=True)
    flow_matching_loss(model, **args).mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.)
    optimizer.step()

@torch.no_grad()
def forward(model, args, along=None): flow_matching_loss(model, **args)

def contenders(model, args, task, chunk, n_slow):
    "name -> (function, samples it handles). Those that hold or loop over gradients get fewer samples; times are per sample."
    few = rows(args, 0, n_slow)
    along = direction(model) if task == "MoSo" else None
    twin, fused = copy.deepcopy(model).bfloat16(), CompiledGradients(model, lambda batch: flow_matching_loss(model.forward, **batch))
    out = {"loop": (partial(loop, model, few, along), n_slow), "diffprune": (partial(hooks, model, args, along), len(args["t"])),
           "diffprune compiled": (partial(compiled, model, args, along, fused), len(args["t"])),
           "diffprune bf16": (partial(hooks_bf16, model, args, along, twin=twin), len(args["t"])),
           "vmap(grad)": (partial(vmap_grad, model, few, along, chunk), n_slow)}
    try:
        from opacus import GradSampleModule
        wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum", strict=False)
        out["Opacus"] = (partial(opacus, model, few, along, chunk, wrapped), n_slow)
    except ImportError: pass
    if task == "MoSo":
        out["jvp"] = (partial(forward_mode, model, args, along), len(args["t"]))
        out["matrix products of jvp"] = (partial(matrix_products, model, args, along, model.pos_embed.shape[1]), len(args["t"]))
        out["jvp compiled"] = (partial(forward_mode_compiled, model, args, along, torch.compile(partial(products, model))), len(args["t"]))
    else:
        student = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(student.parameters(), lr=0., fused=True)
        out["training step"] = (partial(train_step, student, args, optimizer=optimizer), len(args["t"]))
        out["forward"] = (partial(forward, model, args), len(args["t"]))
    return out

# --- measuring

def clock(device, kind):
    if device == "cuda": torch.cuda.synchronize()
    return time.process_time() if kind == "cpu" else time.perf_counter()

def timed(cases, rounds, device, kind):
    "name -> seconds a sample, in each round."
    times = {name: [] for name in cases}
    for f, _ in cases.values(): f()
    for _ in range(rounds):
        for name, (f, n) in cases.items():
            start = clock(device, kind); f(); times[name].append((clock(device, kind) - start) / n)
    return times

def errors(cases, n_slow):
    exact = cases["loop"][0]()
    relative = lambda v: ((v[:n_slow].float() - exact).abs() / exact.abs().max()).max().item()
    other = ("loop", "training step", "forward", "matrix products of jvp")
    return {name: relative(f()) for name, (f, _) in cases.items() if name not in other}

def peak_here(f, device):
    "Bytes beyond the present use while `f` runs."
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats(); before = torch.cuda.memory_allocated(); f()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")
    lines = lambda: Path("/proc/self/status").read_text().splitlines()
    read = lambda key: next(int(line.split()[1]) * 1024 for line in lines() if line.startswith(key))
    before = read("VmRSS:"); f()
    return read("VmHWM:") - before

def peak(name, task, tokens, batch, o):
    "The same in a fresh process, in MiB; None if it fails."
    cmd = [sys.executable, __file__, "--peak-of", name, "--tasks", task, "--tokens", str(tokens), "--batch", str(batch), "--model", o.model,
           "--device", o.device, "--threads", str(o.threads), "--chunk", str(o.chunk), "--slow", str(o.slow)]
    done = subprocess.run(cmd, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 2**20 if done.returncode == 0 else None

def markdown(table):
    head = ["task", "tokens", "contender", "ms a sample", "times the loop's speed", "peak memory, MiB", "samples at a time",
            "largest error"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    show = lambda v, f: "" if v is None or v != v else format(v, f)
    for r in table.itertuples():
        numbers = [show(r.ms, ".1f"), show(r.speedup, ".2f"), show(r.peak_mib, ".0f"), show(r.at_a_time, ".0f"), show(r.error, ".0e")]
        lines.append("| " + " | ".join([r.task, str(r.tokens), r.contender, *numbers]) + " |")
    return "\n".join(lines)

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", default="DiT-S/2"); a.add_argument("--device", default="cpu")
    a.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 256])
    a.add_argument("--batch", type=int, nargs="+", default=[128, 32, 8], help="samples at a time in batches, one for each --tokens")
    a.add_argument("--slow", type=int, default=4, help="samples for the loop and for those that hold gradients")
    a.add_argument("--chunk", type=int, default=4, help="per-sample gradients held at a time by vmap and Opacus")
    a.add_argument("--rounds", type=int, default=3); a.add_argument("--threads", type=int, default=os.cpu_count())
    a.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, for a busy machine")
    a.add_argument("--tasks", nargs="+", default=["GraNd", "MoSo"], choices=["GraNd", "MoSo"])
    a.add_argument("--measure", nargs="+", default=["time", "memory"], choices=["time", "memory"],
                   help="what is not measured is kept from the table that is there")
    a.add_argument("--only", nargs="+", help="contenders whose memory is measured; by default all")
    a.add_argument("--out", default=str(HERE)); a.add_argument("--peak-of")
    o = a.parse_args()
    torch.set_num_threads(o.threads)
    if o.peak_of:
        model, args = setup(o.tokens[0], o.batch[0], o.model, o.device)
        found = contenders(model, args, o.tasks[0], o.chunk, o.slow)
        f = found[o.peak_of][0]
        if "compiled" in o.peak_of:                                 # what the compiler itself takes does not count
            f(); gc.collect()
            if o.device == "cpu": ctypes.CDLL(None).malloc_trim(0)
        print(peak_here(f, o.device)); return
    path = Path(o.out) / f"gradients-{o.device}.csv"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((l.split(":")[1].strip() for l in lines if l.startswith("model name")), platform.processor())
    device = torch.cuda.get_device_name() if o.device == "cuda" else f"{cpu}, {o.threads} thread(s)"
    facts = dict(model=o.model, device=device, clock=o.clock, rounds=o.rounds, torch=torch.__version__, commit=commit())
    for tokens, batch in zip(o.tokens, o.batch):
        for task in o.tasks:
            found = []
            model, args = setup(tokens, batch, o.model, o.device)
            cases = contenders(model, args, task, o.chunk, o.slow)
            error, times = (errors(cases, o.slow), timed(cases, o.rounds, o.device, o.clock)) if "time" in o.measure else ({}, None)
            for name, (_, n) in cases.items():
                row = dict(task=task, tokens=tokens, contender=name)
                if times:
                    speedup = float(np.median(np.array(times["loop"]) / np.array(times[name])))
                    row |= dict(ms=1e3 * min(times[name]), speedup=speedup, error=error.get(name), at_a_time=1 if name == "loop" else n)
                if "memory" in o.measure and (not o.only or name in o.only): row["peak_mib"] = peak(name, task, tokens, batch, o)
                print(row, file=sys.stderr, flush=True)
                found.append(row)
            del model, cases
            table, key = pd.DataFrame(found), ["task", "tokens", "contender"]
            if path.is_file():                                      # other sizes, and what was not measured now, are kept
                old = pd.read_csv(path)
                before = old.set_index(key).reindex(pd.MultiIndex.from_frame(table[key])).reset_index(drop=True)
                for c in before: table[c] = table[c].fillna(before[c]) if c in table else before[c]
                table = pd.concat([old[(old.task != task) | (old.tokens != tokens)], table]).sort_values(["task", "tokens"], kind="stable")
            table = table.reindex(columns=[*key, "ms", "speedup", "peak_mib", "at_a_time", "error"])
            table.to_csv(path, index=False)
            known = json.loads(path.with_suffix(".json").read_text()) if path.with_suffix(".json").is_file() else {}
            path.with_suffix(".json").write_text(json.dumps(known | {measure: facts for measure in o.measure}, indent=1) + "\n")
            torch._dynamo.reset()
    print(json.dumps(facts)); print(markdown(table))

if __name__ == "__main__": main()

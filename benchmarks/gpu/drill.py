"""The paper-scale path on one GPU, in at most nine minutes: is it right, and how fast is it?

    make gpu                                                       # or python benchmarks/gpu/drill.py
    python benchmarks/gpu/drill.py --device cpu --quick            # every part at tiny sizes, on a machine without a GPU
    python3 benchmarks/gpu/drill.py --wheels .diffprune/wheels     # without a network, beside a torch that is there

Each part runs in a process of its own with a time limit of its own, the most valuable first. What a part has measured is written at once to
results/<device>.json and results/<device>.md, so that a part that fails, overruns or is cut off loses only what it had yet to do.
"""
import argparse
import gc
import glob
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SECONDS = dict(device=20, tests=100, study=60, training=210, sampling=60, scores=50, embedding=30)  # what one part leaves, the next may use
SIZES = ("DiT-XL/2", "DiT-B/2", "DiT-L/2", "DiT-S/2")
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "scipy", "scikit-learn", "triton", "fastcore", "faiss-cpu")


# --- what the parts share

def add(what, **values):
    "One more row of this part, on disk at once."
    with open(os.environ["DRILL_ROWS"], "a", encoding="utf-8") as f: print(json.dumps(dict(what=what, **values)), file=f, flush=True)
    print(what, {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}, flush=True)


def once(call, args):
    "Wall time of a call, until the device is through with it."
    import torch
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    wait(); start = time.perf_counter()
    call(); wait()
    return time.perf_counter() - start


def seconds(call, args, budget, least=3):
    "Wall times of calls until the budget is spent, after one that is not counted."
    times, until = [once(call, args)], time.perf_counter() + budget
    while len(times) <= least or time.perf_counter() < until and len(times) < 100: times.append(once(call, args))
    return times[1:]


def rates(times, n):
    "Median and quartiles of n per second."
    low, mid, high = statistics.quantiles([n/t for t in times], n=4) if len(times) > 1 else [n/times[0]]*3
    return dict(per_second=mid, quartiles=[low, high], rounds=len(times))


def clean():
    "Give back what the last model held; Accelerate's wrappers refer to each other."
    import torch
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available(): torch.cuda.empty_cache()


def halving(batch, call):
    "call(batch), with half the batch as often as memory does not suffice; (batch, result)."
    import torch
    while True:
        try: return batch, call(batch)
        except torch.OutOfMemoryError:
            if batch == 1: raise
        batch //= 2  # outside of `except`, where the traceback would hold the tensors
        clean()


def make_model(args, name, size, **options):
    "A model with random weights, none zero, drawn on the device."
    import torch

    from diffprune.models.dit import dit_model
    from diffprune.models.train import seeded
    with seeded(0), torch.device(args.device):
        model = dit_model(name, input_size=size, **options)
        for p in model.parameters():
            if p.requires_grad: p.data += 0.02*torch.randn_like(p)
    return model


def tf32(on):
    import torch
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def memory(args):
    "Peak memory in GiB since the last call; None on a CPU."
    import torch
    if args.device != "cuda": return None
    peak = torch.cuda.max_memory_allocated()/2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


def latents(args, n, size, classes=1000):
    import torch
    x = torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(0)).to(args.device)
    return x, (torch.arange(n) % classes).to(args.device)


# --- the parts, in their order

def machine(args):
    "The first row of every part: where it ran."
    import torch
    cuda = args.device == "cuda"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    versions = {p: metadata.version(p) for p in PACKAGES if any(metadata.distributions(name=p))}
    add("machine", device=torch.cuda.get_device_name() if cuda else processor, processor=processor, cores=os.cpu_count(),
        threads=torch.get_num_threads(), python=platform.python_version(), cuda=torch.version.cuda, versions=versions,
        gib=torch.cuda.get_device_properties(0).total_memory/2**30 if cuda else None)


def device(args):
    "What the machine reaches in a large product and a large copy."
    import torch
    cuda, n = args.device == "cuda", 256 if args.quick else 8192
    for name, dtype, on in (("bf16", torch.bfloat16, False), ("TF32", torch.float32, True), ("float32", torch.float32, False)):
        if name == "TF32" and not cuda: continue
        tf32(on)
        x = torch.randn(n, n, generator=torch.Generator().manual_seed(0)).to(args.device, dtype)
        times = seconds(lambda: x @ x, args, 0.5)  # noqa: B023 -- called before the next turn
        add("product", precision=name, side=n, flops=2*n**3/statistics.median(times))
    x = torch.empty(2**20 if args.quick else 2**30, dtype=torch.uint8, device=args.device)
    y = torch.empty_like(x)
    add("copy", bytes_per_second=2*x.numel()/statistics.median(seconds(lambda: y.copy_(x), args, 0.5)))


def tests(args):
    "Every test marked gpu: a row for each, with its differences from the CPU and their tolerances."
    import pytest
    last = lambda report: str(report.longrepr).splitlines()[-1][:300]
    class Rows:
        def pytest_runtest_logreport(self, report):
            if report.when != "call" and report.passed: return
            why = last(report) if report.failed else str(report.longrepr[-1]) if report.skipped else ""
            split = {True: {}, False: {}}
            for name, value in report.user_properties: split[isinstance(value, tuple)][name] = value
            add("test", test=report.nodeid.split("::", 1)[-1], outcome=report.outcome, seconds=report.duration, why=why,
                differences=split[True], notes=split[False])
        def pytest_collectreport(self, report):
            if report.failed: add("test", test=report.nodeid, outcome="failed", seconds=0.0, why=last(report))
    os.environ["DIFFPRUNE_TEST_DEVICE"] = args.device
    marked = [p for p in sorted((ROOT / "tests").glob("test_*.py")) if "pytest.mark.gpu" in p.read_text(encoding="utf-8")]
    picked = ["-k", "test_noise or test_loss_output or test_neighbours or test_features"] if args.quick else []
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors", *picked]
    status = pytest.main([*options, *map(str, marked)], plugins=[Rows()])
    if status not in (0, 1): raise SystemExit(f"pytest ended with {status!r}")


_STUDY = """
import json, sys
from diffprune.core.store import Store
from diffprune.study.study import Study
arguments, device, root, out = json.loads(sys.argv[1]), *sys.argv[2:]
study = Study(**arguments, store=Store(root), device=device, workers=1)
table = study.results(progress=False)
kept = {str(run): study.kept(run).tolist() for run in study.runs}
rows = table[["method", "metric", "value"]].astype(dict(value=object)).where(table.value.notna(), None).to_dict("records")
json.dump(dict(rows=rows, kept=kept), open(out, "w"))
"""
_METHODS = ["random", "cluster_pixels", "grand", "moso"]


def study(args):
    "The smoke study on the device and on the CPU: which images are kept, and the metrics of what the models draw."
    short = {"train.steps": 4, "vqvae_train.steps": 4, "proxy.epochs": 1, "sample.n_samples": 16} if args.quick else {}
    chosen = dict(dataset="digits", preset="smoke", methods=_METHODS[:2] if args.quick else _METHODS, ratios=[0.5], seeds=[0])
    chosen["overrides"] = short
    with tempfile.TemporaryDirectory() as scratch:
        running, found, begin = {}, {}, time.perf_counter()
        for place in ("device", "cpu"):
            command = [sys.executable, "-c", _STUDY, json.dumps(chosen), args.device if place == "device" else "cpu", f"{scratch}/{place}"]
            running[place] = subprocess.Popen([*command, f"{scratch}/{place}.json"])
        for place, process in running.items():
            if process.wait(): raise SystemExit(f"the study on the {place} ended with {process.returncode}")
            add("study", where=place, seconds=time.perf_counter() - begin, runs=len(chosen["methods"]))
            found[place] = json.loads(Path(f"{scratch}/{place}.json").read_text())
    for run, kept in found["cpu"]["kept"].items():
        share = len({*kept} & {*found["device"]["kept"][run]})/len(kept)
        least = 0.95 if run.split()[0] in ("grand", "moso") else 1.0
        add("kept", run=run, same=share, least=least, ok=share >= least)
    values = {(r["method"], r["metric"]): r["value"] for r in found["device"]["rows"]}
    for r in found["cpu"]["rows"]:
        ours, theirs, judged = values[r["method"], r["metric"]], r["value"], r["metric"] in ("fd", "fd_train", "fd_heldout", "vendi")
        gap = None if None in (ours, theirs) else abs(ours - theirs)/max(abs(theirs), 1e-12)
        ok, tolerance = (ours is None) == (theirs is None) and (not judged or gap is None or gap <= 0.1), 0.1 if judged else None
        add("metric", method=r["method"], metric=r["metric"], device=ours, cpu=theirs, difference=gap, tolerance=tolerance, ok=ok)


def plain_step(model, ema, x, y):
    "A training step as the official code has it: eager, float32 with TF32, AdamW, and an average kept parameter by parameter."
    import torch

    from diffprune.models.flow import flow_matching_loss
    optimizer, averages = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0), dict(ema.named_parameters())
    def step():
        drop = torch.rand(len(y), device=y.device) < 0.1
        loss = flow_matching_loss(model, x, torch.randn_like(x), torch.rand(len(x), device=x.device), y, drop).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters(): averages[name].mul_(0.9999).add_(p.data, alpha=1 - 0.9999)
        return loss.item()
    return step


def train_plain(args, name, size, batch, budget):
    import copy
    tf32(True)
    model = make_model(args, name, size)
    ema = copy.deepcopy(model).requires_grad_(False)
    return seconds(plain_step(model, ema, *latents(args, batch, size)), args, budget), None


def train_ours(args, name, size, batch, budget):
    "Through the `Trainer`, as studies train: bf16, compiled, fused AdamW and average, clipping, losses logged, data on the CPU."
    from diffprune.models.train import TrainConfig, Trainer, diffusion_loss
    tf32(False)
    x, y = (v.cpu() for v in latents(args, 2*batch, size))
    cfg = TrainConfig(steps=10**6, batch_size=batch, precision="bf16", compile=True, log_every=50)
    model, place = make_model(args, name, size, learn_sigma=False), "cpu" if args.device == "cpu" else None
    trainer, begin = Trainer(model, diffusion_loss, dict(latent=x, label=y), cfg, None, place), time.perf_counter()
    trainer.train_step(); trainer.train_step()
    compiling, steps = time.perf_counter() - begin, 1 if args.quick else 4  # the processor may run ahead of the GPU by some steps
    times = seconds(lambda: [trainer.train_step() for _ in range(steps)], args, budget)
    return [t/steps for t in times], compiling


def likely_batch(args, model, wanted):
    "The largest multiple of 32 that memory should suffice for when compiled: half as much again as the least that a step has to keep."
    import torch

    from diffprune.models.flops import dit_bytes
    if args.device == "cpu": return wanted
    kept, fixed = 1.5*dit_bytes(model)["activations"]/2, 22*sum(p.numel() for p in model.parameters())
    return min(wanted, max(32, int((0.9*torch.cuda.get_device_properties(0).total_memory - fixed)/kept)//32*32))


def training(args):
    "Training images per second and model FLOPs utilisation, compiled bf16 against the plain step, the largest model first."
    import torch

    from diffprune.models.dit import dit_model
    from diffprune.models.flops import device_peak, utilisation
    peak = device_peak(torch.cuda.get_device_name() if args.device == "cuda" else "")
    size, wanted, budget = (8, 4, 0.1) if args.quick else (32, args.batch, 4.0)
    for name in ("DiT-N/2",) if args.quick else args.sizes:
        begin, medians = time.perf_counter(), []
        for way, train in (("bf16, compiled", train_ours), ("float32/TF32, eager", train_plain)):
            memory(args)
            with torch.device("meta"): shape = dit_model(name, input_size=size, learn_sigma=train is train_plain)
            first = likely_batch(args, shape, wanted) if train is train_ours else wanted
            batch, (times, compiling) = halving(first, lambda b: train(args, name, size, b, budget))  # noqa: B023
            found = rates(times, batch)
            used = utilisation(shape, found["per_second"], peak.flops) if peak else None
            medians.append(found["per_second"])
            add("training", model=name, way=way, batch=batch, **found, utilisation=used, gib=memory(args), first_steps_s=compiling)
            clean()
        add("training ratio", model=name, ratio=medians[0]/medians[1], seconds=time.perf_counter() - begin)


def sampling(args):
    "Images sampled per second by Euler's method in 50 steps, compiled and eager in turn; a few of the steps are timed."
    import torch

    from diffprune.models.flow import sample_ode
    few, size, rounds = (1, 8, 1) if args.quick else (2, 32, 3)
    for name in ("DiT-N/2",) if args.quick else ("DiT-XL/2", "DiT-B/2"):
        model = make_model(args, name, size, learn_sigma=False).eval().requires_grad_(False)
        fast = torch.compile(model)
        x, y = latents(args, 4 if args.quick else args.batch, size)
        def draw(net, on=False, bf16=False, steps=few):  # noqa: B023
            tf32(on)
            with torch.autocast(args.device, torch.bfloat16, enabled=bf16): return sample_ode(net, x, y, n_steps=steps).float()  # noqa: B023
        ways = {"float32, eager": lambda: draw(model), "bf16, compiled": lambda: draw(fast, bf16=True),  # noqa: B023
                "float32/TF32, eager": lambda: draw(model, True), "bf16, eager": lambda: draw(model, bf16=True)}  # noqa: B023
        exact = draw(model)
        errors = {way: ((run() - exact).norm()/exact.norm()).item() for way, run in ways.items()}  # after which all is compiled
        times = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items(): times[way].append(once(run, args))
        for way, found in times.items():
            ratio, scaled = statistics.median(a/b for a, b in zip(times["float32, eager"], found)), [t*50/few for t in found]
            add("sampling", model=name, way=way, batch=len(x), timed_steps=few, **rates(scaled, len(x)), ratio=ratio, error=errors[way])
        whole = once(lambda: draw(fast, bf16=True, steps=50), args)  # noqa: B023
        add("sampling, all 50 steps", model=name, way="bf16, compiled", batch=len(x), per_second=len(x)/whole)
        clean()


def scores(args):
    "GraNd and MoSo against a loop of single backward passes, by the harness of benchmarks/scores; what has to be compiled comes last."
    sys.path.insert(0, str(ROOT / "benchmarks" / "scores"))
    import bench_gradients as bench
    tf32(False)
    small, large, plain = ("DiT-N/2", 4) if args.quick else ("DiT-S/2", 128), ("DiT-XL/2", 32), ("diffprune", "diffprune bf16")
    for (name, batch), task, kinds in ((small, "GraNd", plain), (small, "MoSo", plain), *[(large, "GraNd", plain)]*(not args.quick),
                                       (small, "GraNd", ("diffprune compiled",)), (small, "MoSo", ("diffprune compiled",))):
        model, inputs = bench.setup(16 if args.quick else 256, batch, name, args.device)
        slow = 2 if args.quick else 8
        cases = {k: v for k, v in bench.contenders(model, inputs, task, 1, slow).items() if k in ("loop", *kinds)}
        errors, times = bench.errors(cases, slow), bench.timed(cases, 1 if args.quick else 5, args.device, "wall")
        for way, found in times.items():
            ratio, n = statistics.median(a/b for a, b in zip(times["loop"], found)), cases[way][1]
            add("scores", model=name, task=task, way=way, **rates(found, 1), ratio=ratio, error=errors.get(way), at_a_time=n)
        clean()


def networks(quick):
    "name -> network with random weights, side of its images; a reason instead where a package is missing."
    import timm
    import torchvision
    yield "lite0", lambda: timm.create_model("tf_efficientnet_lite0", num_classes=0), 224
    if not quick: yield "dinov2 (ViT-S/14)", lambda: timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0), 224
    def inception():
        net = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=False)
        net.fc = torchvision.ops.Permute([0, 1])
        return net
    yield "inception", inception, 299
    def clip():
        import open_clip
        return open_clip.create_model("ViT-B-32", pretrained=None).visual
    yield "clip (ViT-B/32)", clip, 224


def embedding(args):
    "Images embedded per second from uint8 at 256 pixels, resizing included, by `embed_images`."
    import numpy as np
    import torch

    from diffprune.features.embed import Backbone, Preprocessing, embed_images
    from diffprune.models.train import seeded
    class Features(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, x): return self.net(x), None
    n = 2 if args.quick else 1024
    images = np.random.default_rng(0).integers(0, 256, (n, 3, 256, 256), dtype=np.uint8)
    for name, make, side in networks(args.quick):
        try:
            with seeded(0): net = make()
        except ModuleNotFoundError as e:
            add("embedding left out", backbone=name, why=str(e))
            continue
        for way, dtype, on in (("float32", torch.float32, False), ("float32/TF32", torch.float32, True), ("bf16", torch.bfloat16, False)):
            if args.device == "cpu" and way == "float32/TF32": continue
            tf32(on)
            backbone = Backbone(name, Features(net), Preprocessing(side, "bicubic", (.5,)*3, (.5,)*3), 1, side).to(args.device, dtype)
            backbone.dim = backbone(torch.from_numpy(images[:1])).shape[1]
            run = lambda: embed_images(backbone, images, 256 if args.device == "cuda" else 8, progress=False)  # noqa: B023
            add("embedding", backbone=name, way=way, images=n, **rates(seconds(run, args, 0, 1 if args.quick else 2), n))


PARTS = dict(device=device, tests=tests, study=study, training=training, sampling=sampling, scores=scores, embedding=embedding)


# --- the process that starts the parts

def environment(args, scratch):
    "Of the parts: this checkout first, then what the wheels brought."
    extra = []
    if args.wheels:
        wheels = sorted(glob.glob(f"{args.wheels}/*.whl"))
        if not wheels: raise SystemExit(f"{args.wheels} holds no wheels: make gpu-wheels fetches them, on a machine with a network")
        extra = [f"{scratch}/site"]
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", extra[0], *wheels]
        if subprocess.run(install, stdout=subprocess.DEVNULL).returncode: raise SystemExit("the wheels could not be installed, see above")
    paths = [str(ROOT), *extra, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "DIFFPRUNE_STORE": f"{scratch}/store", "PYTHONUNBUFFERED": "1"}


def commit():
    command = ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"]
    try: return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
    except OSError: return None


def rows_of(path):
    "The rows that a part has written so far; a line that was cut off is not one."
    text = Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def run_part(name, limit, args, scratch, env, changed):
    "One part in its own process: (status, seconds, error). Calls `changed(rows)` whenever there is a new row."
    rows, log, seen = Path(scratch) / f"{name}.jsonl", Path(scratch) / f"{name}.log", 0
    command = [sys.executable, str(HERE / "drill.py"), "--part", name, *args.passed]
    begin, ended, env = time.monotonic(), None, {**env, "DRILL_ROWS": str(rows)}
    with open(log, "w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while ended is None and time.monotonic() - begin < limit:
                time.sleep(0.1)
                ended = process.poll()
                if len(found := rows_of(rows)) > seen: seen = len(found); changed(found)
        finally:
            with suppress(ProcessLookupError): os.killpg(process.pid, signal.SIGKILL)  # what the part has started, too
            process.wait()
    changed(rows_of(rows))
    spent, lines = time.monotonic() - begin, [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if ended is None: return "overran", spent, f"stopped after {limit:.0f} s"
    return ("failed", spent, "\n".join(lines[-12:])) if ended else ("done", spent, None)


def goals(parts):
    "(goal, measured, met) for what is wanted on one H100; None where it was not measured."
    rows = [r for part in parts.values() for r in part["rows"]]
    def best(key, **which):
        found = [r[key] for r in rows if all(r.get(k) == v for k, v in which.items()) and r.get(key) is not None]
        return max(found, default=None)
    wanted = [("DiT-XL/2 trains at 500 images/s", 500, best("per_second", what="training", model="DiT-XL/2")),
              ("DiT-XL/2 trains at 45 % utilisation", 0.45, best("utilisation", what="training", model="DiT-XL/2")),
              ("GraNd at 20 times the speed of the loop", 20, best("ratio", what="scores", task="GraNd")),
              ("sampling at 3 times eager float32", 3, best("ratio", what="sampling", model="DiT-XL/2", way="bf16, compiled"))]
    return [dict(goal=g, measured=v, met=None if v is None else v >= least) for g, least, v in wanted]


def show(v):
    if v is None: return ""
    if isinstance(v, float): return f"{v:.3g}" if abs(v) < 1000 else f"{v:,.0f}"
    if isinstance(v, list): return " – ".join(map(show, v))
    return "yes" if v is True else "**no**" if v is False else str(v).replace("|", "/")


def table(rows, columns=None):
    columns = columns or list(dict.fromkeys(k for r in rows for k in r if k != "what"))
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([line(columns), "|" + "---|"*len(columns), *(line([show(r.get(c)) for c in columns]) for r in rows)])


def report(found):
    "The results as Markdown."
    about, lines = found["about"], [f"# {found['device']}", ""]
    if found["quick"]: lines += ["**A quick run at tiny sizes: its rates say nothing.**", ""]
    lines += ["; ".join(f"{k}: {v}" for k, v in about.items() if not isinstance(v, dict) and v is not None), ""]
    lines += [table([dict(part=n, status=p["status"], seconds=p["seconds"], limit=p["limit"]) for n, p in found["parts"].items()]), ""]
    if found["goals"]: lines += [table(found["goals"]), ""]
    for name, part in found["parts"].items():
        kinds = {}
        for r in part["rows"]:
            if r["what"] == "machine": continue
            row = {k: v for k, v in r.items() if k not in ("differences", "notes")}
            if r["what"] == "test":
                row["differences (tolerance)"] = ", ".join(f"{k} {d:.1e} ({t:g})" for k, (d, t) in r.get("differences", {}).items())
            kinds.setdefault(r["what"], []).append(row)
        lines += [f"## {name}", ""] + [f"```\n{part['error']}\n```\n"]*bool(part["error"])
        for rows in kinds.values(): lines += [table(rows), ""]
    return "\n".join(lines)


def path_of(found, out):
    return out / (re.sub(r"[^A-Za-z0-9]+", "-", found["device"]).strip("-") + ("-quick.json" if found["quick"] else ".json"))


def known(found, out):
    "What an earlier run on this device has of parts that are not run now, with the commit that they ran at."
    path = path_of(found, out)
    return json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() and "unknown" not in found["device"] else {}


def write(found, out):
    "results/<device>.json and .md, each in one step."
    path = path_of(found, out)
    out.mkdir(parents=True, exist_ok=True)
    for target, text in ((path, json.dumps(found, indent=1) + "\n"), (path.with_suffix(".md"), report(found) + "\n")):
        half = out / f".{target.name}.half"
        half.write_text(text, encoding="utf-8")
        os.replace(half, target)
    return path


def main(args):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part that runs is ended, too
    begin, scratch = time.monotonic(), tempfile.mkdtemp(prefix="drill-")
    about, slower = dict(commit=args.commit or commit(), options=" ".join(args.passed)), 1 if args.device == "cuda" else 5
    fresh = lambda n: dict(status="not begun", seconds=0.0, limit=SECONDS[n]*slower, commit=about["commit"], rows=[], error=None)
    found = dict(device=f"unknown {args.device}", quick=args.quick, about=about, goals=[], parts={n: fresh(n) for n in args.parts})
    end = 0.0
    paths = []
    def save():
        kept = known(found, args.out)
        every = dict(found, parts={n: {**kept, **found["parts"]}[n] for n in PARTS if n in kept or n in found["parts"]})
        every["goals"] = goals(every["parts"]) if "H100" in found["device"] and not args.quick else []
        paths.append(write(every, args.out))
        for old in {*paths} - {paths[-1]}: [p.unlink(missing_ok=True) for p in (old, old.with_suffix(".md"))]  # before the device was known
    try:
        env = environment(args, scratch)
        for name, part in found["parts"].items():
            def changed(rows, part=part):
                part["rows"] = rows
                for r in rows:
                    if r["what"] == "machine":
                        found["device"] = r["device"]
                        found["about"].update({k: v for k, v in r.items() if k not in ("what", "device")})
                save()
            end, now = min(end + SECONDS[name]*slower, 60*args.minutes*slower), time.monotonic() - begin
            part["limit"] = min(args.limit or end - now, 60*args.minutes*slower - now)
            if part["limit"] < 1: break
            part["status"] = "running"
            save()
            try: part["status"], part["seconds"], part["error"] = run_part(name, part["limit"], args, scratch, env, changed)
            finally:
                if part["status"] == "running": part["status"] = "cut off"
                save()
            print(f"{name}: {part['status']} after {part['seconds']:.0f} s, {len(part['rows'])} rows", flush=True)
        if paths: print(paths[-1].with_suffix(".md").read_text(encoding="utf-8"), flush=True)
        print(f"written to {paths[-1]} and .md" if paths else "no time was given to any part")
    finally: shutil.rmtree(scratch, ignore_errors=True)
    wrong = [n for n, p in found["parts"].items() if p["status"] != "done"]
    wrong += [n for n, p in found["parts"].items() if any(r.get("ok") is False or r.get("outcome") == "failed" for r in p["rows"])]
    if wrong: raise SystemExit(f"not as it should be: {', '.join(dict.fromkeys(wrong))}")


def names(allowed):
    def split(text):
        chosen = text.split(",")
        bad = [n for n in chosen if n not in allowed]
        if bad: raise argparse.ArgumentTypeError(f"unknown: {', '.join(bad)}; choose {', '.join(allowed)}")
        return chosen
    return split


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--parts", type=names(PARTS), default=list(PARTS), help=f"with commas, of {', '.join(PARTS)}")
    parser.add_argument("--sizes", type=names(SIZES), default=list(SIZES), help="models to train, with commas")
    parser.add_argument("--batch", type=int, default=256, help="images per step; fewer where memory does not suffice")
    parser.add_argument("--minutes", type=float, default=9, help="for everything; five times as many on a CPU")
    parser.add_argument("--limit", type=float, help="seconds for each part, instead of its own limit")
    parser.add_argument("--wheels", help="folder of wheels to install for this run, without a network")
    parser.add_argument("--commit", help="of this checkout, where git cannot tell")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the results go")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.batch < 1 or args.minutes <= 0: parser.error("--batch and --minutes must be positive")
    args.passed = ["--device", args.device, "--sizes", ",".join(args.sizes), "--batch", str(args.batch), *["--quick"]*args.quick]
    return args


if __name__ == "__main__":
    args = parse()
    if args.part:
        machine(args)
        PARTS[args.part](args)
    else: main(args)

"""Faults done to a study, many times: what breaks, what is noticed, and whether a rerun ends in the same bytes.

    python benchmarks/faults/run.py --trials 20 --minutes 8

A reference study is computed once in a folder of its own. A trial copies its store, takes some stages out, runs the study again in
a forked process, does the fault to it, and lets another process finish. It has recovered if every file of every artifact has the
checksum that it has in the reference, and if at no moment anything incomplete had a final name.
"""
import argparse
import csv
import itertools
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

torch.set_num_threads(1)  # before anything is computed: forked processes inherit no other threads

from diffprune.core import store as store_module  # noqa: E402
from diffprune.core.store import Store  # noqa: E402
from diffprune.study.study import Study  # noqa: E402

OVERRIDES = {
    "data.n_val": 1500,
    "vqvae_train.steps": 8,
    "vqvae_train.checkpoint_every": 3,
    "train.steps": 24,
    "train.checkpoint_every": 4,
    "n_bootstrap": 2,
}
METHODS = ["random", "el2n", "moso", "cluster_pixels"]
KINDS = [
    "images",
    "vqvae",
    "latents",
    "features",
    "clusters",
    "proxy",
    "surrogates",
    "scores",
    "subset",
    "model",
    "samples",
    "reference",
    "metrics",
]


def study_in(root, methods):
    return Study(
        "digits", "smoke", methods, [0.5], metrics_backbone="pixels", overrides=OVERRIDES, store=Store(root), device="cpu", workers=1
    )


class Child:
    "A forked process that runs a function; its words go to a file."
    def __init__(self, fn, log):
        self.log, self.start = Path(log), time.monotonic()
        self.pid = os.fork()
        if self.pid: return
        code = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1), os.dup2(out, 2)
            logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True)
            fn()
            code = 0
        except BaseException: traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def alive(self):
        if not hasattr(self, "code"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: self.code = os.waitstatus_to_exitcode(status)
        return not hasattr(self, "code")

    def wait(self, seconds=120):
        while self.alive():
            if time.monotonic() - self.start > seconds: self.kill(); raise TimeoutError("the study hangs")
            time.sleep(0.002)
        self.seconds = time.monotonic() - self.start
        return self.code

    def kill(self):
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            while self.alive(): time.sleep(0.001)

    @property
    def words(self): return self.log.read_text(errors="replace") if self.log.exists() else ""


class Bench:
    def __init__(self, folder, seed, methods):
        self.folder, self.random, self.n, self.methods = Path(folder), random.Random(seed), 0, methods
        self.reference = self.folder / "reference"
        child = Child(lambda: study_in(self.reference, methods).run(progress=False), self.folder / "reference.log")
        if child.wait(300): raise RuntimeError(child.words)
        self.study = study_in(self.reference, methods)
        self.stages = self.study.stages()  # hash -> stage
        self.files = self.contents(self.reference)
        self.seconds = {}  # kind -> of an undisturbed run that makes it

    def contents(self, root):
        return {a.hash: a.meta["files"] for a in Store(root).artifacts()}

    def fresh(self, without=None, keep=False):
        "A copy of the finished store without the artifacts of a kind (unless `keep`) and all that depend on them."
        self.n += 1
        root = self.folder / f"trial-{self.n}"
        shutil.copytree(self.reference, root, ignore=shutil.ignore_patterns("locks", "work", "trash"))
        for h, stage in self.stages.items():
            below = stage.tree() if not keep else stage.tree()[:-1]
            if without and any(s.kind == without for s in below): shutil.rmtree(root / stage.kind / h, ignore_errors=True)
        return root

    def child(self, root, before=lambda: None, methods=None):
        def go():
            before()
            study_in(root, methods or self.methods).run(progress=False)
        return Child(go, self.folder / f"{root.name}-{time.monotonic_ns()}.log")

    def whole(self, root):
        "Whether everything with a final name is complete and as in the reference, so far."
        found = self.contents(root)
        return Store(root).verify() == {} and all(self.files.get(h) == f for h, f in found.items())

    def finished(self, root): return self.whole(root) and self.contents(root).keys() >= self.files.keys()

    def time(self, kind):
        if kind not in self.seconds:
            child = self.child(self.fresh(kind))
            if child.wait(): raise RuntimeError(child.words)
            self.seconds[kind] = child.seconds
        return self.seconds[kind]

    # --- the faults: each returns what happened; `recovered` decides

    def kill(self, kind):
        "SIGKILL at a random moment while an artifact of a kind is made: its work folder is there."
        root = self.fresh(kind)
        seconds = [a.meta["seconds"] for a in Store(self.reference).artifacts(kind)]
        child = self.child(root)
        skip, seen = self.random.randrange(len(seconds)), set()  # which of them, in the order of their making
        while child.alive() and len(seen) <= skip:
            seen |= {p.name for p in (root / "work").glob(f"{kind}-*")}
            time.sleep(0.0002)
        time.sleep(self.random.uniform(0, max(seconds)))
        return self._kill(root, child, kind)

    def kill_anytime(self, kind):
        "SIGKILL at a random moment while the artifacts of a kind, and what follows, are made."
        root, limit = self.fresh(kind), self.time(kind)
        child = self.child(root)
        time.sleep(self.random.uniform(0, limit))
        return self._kill(root, child)

    def _kill(self, root, child, kind=None):
        hit = child.alive()
        child.kill()
        busy = sorted(p.name.partition("-")[0] for p in (root / "work").glob("*"))
        ok = self.whole(root)
        again = self.child(root)
        return dict(
            detail=f"killed in {', '.join(busy) or 'between stages'}" if hit else "was done before",
            hit=hit and (kind is None or kind in busy),
            recovered=ok and again.wait() == 0 and self.finished(root),
        )

    def full_disk(self, kind):
        "A tmpfs that is too small; then it grows."
        source = self.fresh(kind)
        used = sum(f.stat().st_size for f in source.rglob("*") if f.is_file())
        blocks = sum(-(-f.stat().st_size // 4096) + 1 for f in source.rglob("*")) * 4096
        need = sum(f.stat().st_size for f in self.reference.rglob("*") if f.is_file()) - used + 200_000
        root = self.folder / f"disk-{self.n}"
        root.mkdir()
        size = blocks + int(self.random.uniform(0, need))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)], check=True)
        try:
            shutil.copytree(source, root, dirs_exist_ok=True)
            child = self.child(root)
            code = child.wait()
            said, ok = "No space left on device" in child.words, self.whole(root)
            subprocess.run(["mount", "-o", "remount,size=1g", str(root)], check=True)
            again = self.child(root)
            fine = again.wait() == 0 and self.finished(root)
            return dict(
                detail=f"{kind}: {'no space left' if said else 'enough space' if code == 0 else f'exit code {code}'}",
                hit=code != 0,
                recovered=ok and fine and (code == 0 or code == 1 and said),
            )
        finally: subprocess.run(["umount", "-l", str(root)], check=True)

    def flip(self, kind):
        "One flipped bit in a file of a finished artifact that is needed again."
        root = self.fresh(kind, keep=True)
        folder = self.random.choice([p for p in sorted((root / kind).iterdir())])
        victim = self.random.choice([p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size])
        self._flip(victim)
        child = self.child(root)
        code = child.wait()
        noticed = "computed again" in child.words
        return dict(detail=f"{kind}: {victim.name}", hit=True, recovered=code == 0 and noticed and self.finished(root))

    def _flip(self, victim):
        raw = bytearray(victim.read_bytes())
        raw[self.random.randrange(len(raw))] ^= 1 << self.random.randrange(8)
        victim.write_bytes(raw)

    def flip_checkpoint(self, kind):
        "Killed in training; then one flipped bit in the newest checkpoint: the one before it is used."
        root = self.fresh(kind)
        child = self.child(root)
        found = lambda: [sorted(w.glob("**/checkpoint-*")) for w in (root / "work").glob(f"{kind}-*")]
        while child.alive() and not any(len(c) >= 2 for c in found()): time.sleep(0.001)
        hit = child.alive()
        child.kill()
        newest = max((c for c in found() if c), key=len, default=[None])[-1]
        if not hit or newest is None:
            return dict(detail=f"{kind}: was done before", hit=False, recovered=self.child(root).wait() == 0 and self.finished(root))
        victim = self.random.choice(sorted(p for p in newest.iterdir()))
        self._flip(victim)
        again = self.child(root)
        code = again.wait()
        return dict(
            detail=f"{kind}: {victim.name} of a checkpoint",
            hit=True,
            recovered=code == 0 and "is damaged" in again.words and self.finished(root),
        )

    def _counting(self, root):
        def before():
            finish = Store._finish
            def counted(store, key, *args):
                with open(root / "makes.txt", "a") as f: f.write(f"{key.kind}-{key.hash}\n")
                return finish(store, key, *args)
            Store._finish = counted
        return before

    def _made_once(self, root):
        makes = (root / "makes.txt").read_text().split()
        return len(makes) == len(set(makes)), len(makes)

    def two_studies(self, kind):
        "Two processes with overlapping grids on one store: each artifact is made once."
        root = self.fresh(kind)
        children = [self.child(root, self._counting(root), m) for m in (self.methods, self.methods[::-1])]
        fine = all(c.wait() == 0 for c in children)
        once, n = self._made_once(root)
        return dict(detail=f"{kind}: {n} artifacts made", hit=True, recovered=fine and once and self.finished(root))

    def delete(self, kind):
        "An artifact disappears while a study runs that needs it or has made it."
        root, limit = self.fresh(kind), self.time(kind)
        child = self.child(root)
        time.sleep(self.random.uniform(0, limit))
        there = [p for p in root.glob("*/*") if (p / "artifact.json").exists() and p.parent.name not in ("damaged", "trash", "work")]
        gone = self.random.choice(sorted(there))
        shutil.rmtree(gone, ignore_errors=True)
        code = child.wait()
        again = self.child(root)
        fine = again.wait() == 0 and self.whole(root) and self.study_results(root)
        return dict(
            detail=f"{gone.parent.name} deleted while {kind} was made: {'went on' if code == 0 else 'stopped with an error'}",
            hit=True,
            recovered=fine and code in (0, 1),
        )

    def study_results(self, root):
        study = study_in(root, self.methods)
        return not study.missing() and all(
            self.files[s.key(study.store).hash] == study.store.find(s.key(study.store)).meta["files"]
            for s in map(study.measured, study.runs)
        )

    def clock_jump(self, kind):
        "Two processes whose clocks are days apart and jump back while they work; then a collection of what is older than a day."
        root, limit = self.fresh(kind), self.time(kind)
        def jumping(days):
            def before():
                self._counting(root)()
                start, real_now, real_time = time.monotonic(), store_module.now, time.time
                shift = lambda: days if time.monotonic() - start < limit / 2 else -days
                store_module.now = lambda: real_now() + timedelta(days=shift())
                time.time = lambda: real_time() + 86400 * shift()
            return before
        children = [self.child(root, jumping(d), m) for d, m in ((3, self.methods), (400, self.methods[::-1]))]
        fine = all(c.wait() == 0 for c in children)
        once, n = self._made_once(root)
        artifacts = Store(root).artifacts()
        place = {a.hash: i for i, a in enumerate(artifacts)}
        made = set((root / "makes.txt").read_text().replace("-", "/").split())
        ordered = all(
            place[i["hash"]] < place[a.hash]
            for a in artifacts
            for i in a.meta["inputs"].values()
            if i["hash"] in place and f"{a.kind}/{a.hash}" in made
        )
        positive = all(a.meta["seconds"] >= 0 for a in artifacts)
        return dict(
            detail=f"{kind}: {n} artifacts made", hit=True, recovered=fine and once and ordered and positive and self.finished(root)
        )


FAULTS = dict(
    kill=KINDS,
    kill_anytime=KINDS,
    full_disk=["vqvae", "latents", "features", "proxy", "model", "samples"],
    flip=KINDS,
    flip_checkpoint=["vqvae", "proxy", "model"],
    two_studies=["vqvae", "model", "scores"],
    delete=["latents", "model", "samples"],
    clock_jump=["vqvae", "scores", "model"],
)


WHAT = dict(
    kill="SIGKILL at a random moment in a stage",
    kill_anytime="SIGKILL at a random moment of a study that begins with a stage",
    full_disk="the disk is full (a tmpfs of random size)",
    flip="one flipped bit in an artifact",
    flip_checkpoint="one flipped bit in the newest checkpoint, after a SIGKILL",
    two_studies="two studies at once on one store",
    delete="an artifact deleted while a study runs",
    clock_jump="two processes with jumping clocks, days apart",
)


def table(path):
    "The counts of a CSV of trials, as Markdown."
    rows = list(csv.DictReader(open(path)))
    lines = ["| fault | in stages | trials | fault happened in time | recovered |", "|---|---|---|---|---|"]
    for fault, what in WHAT.items():
        mine = [r for r in rows if r["fault"] == fault]
        hits = [r for r in mine if r["hit"] == "True"]
        stages = ", ".join(dict.fromkeys(r["stage"] for r in mine))
        if mine:
            lines.append(
                f"| {what} | {stages} | {len(mine)} | {len(hits)} | {sum(r['recovered'] == 'True' for r in mine)} of {len(mine)} |"
            )
    return "\n".join(lines) + "\n"


@contextmanager
def workplace():
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try: yield folder
    finally: shutil.rmtree(folder, ignore_errors=True)


def can_mount():
    "Whether a small file system can be mounted here: as root, outside most containers."
    with tempfile.TemporaryDirectory() as folder:
        try: done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
        except OSError: return False
        if done.returncode == 0: subprocess.run(["umount", "-l", folder], check=True)
        return done.returncode == 0


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--trials", type=int, default=5, help="of each fault and stage")
    p.add_argument("--minutes", type=float, default=60, help="no new trial after that")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--faults", default=",".join(FAULTS))
    p.add_argument("--kinds", default="", help="only these stages")
    p.add_argument("--methods", default=",".join(METHODS), help="of the study; fewer are quicker and have fewer kinds of stages")
    p.add_argument("--output", default=str(Path(__file__).parent / "results/trials.csv"))
    a = p.parse_args()
    faults = [f for f in a.faults.split(",") if f != "full_disk" or can_mount()]
    lists = [[(f, k) for k in FAULTS[f] if not a.kinds or k in a.kinds.split(",")] for f in faults]
    chosen = [c for row in itertools.zip_longest(*lists) for c in row if c]  # the faults in turn
    Path(a.output).parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with workplace() as folder, open(a.output, "w", newline="") as f:
        out = csv.DictWriter(f, ["fault", "stage", "trial", "detail", "hit", "recovered", "seconds"])
        out.writeheader()
        bench = Bench(folder, a.seed, a.methods.split(","))
        chosen = [(f, k) for f, k in chosen if any(s.kind == k for s in bench.stages.values())]
        for trial in range(a.trials):
            for fault, kind in chosen:
                if time.monotonic() - start > 60 * a.minutes: return a
                began = time.monotonic()
                try: row = getattr(bench, fault)(kind)
                except Exception as e: row = dict(detail=f"{type(e).__name__}: {e}", hit=True, recovered=False)
                out.writerow(dict(fault=fault, stage=kind, trial=trial, seconds=round(time.monotonic() - began, 2), **row))
                f.flush()
                if row["recovered"]:
                    for trash in folder.glob("*-[0-9]*"): shutil.rmtree(trash, ignore_errors=True) if trash.is_dir() else trash.unlink()
                elif os.environ.get("FAULTS_KEEP"): shutil.copytree(folder, os.environ["FAULTS_KEEP"], dirs_exist_ok=True); return a
    return a


if __name__ == "__main__":
    args = main()
    print(table(args.output))

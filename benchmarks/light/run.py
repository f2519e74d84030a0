"""What light commands cost: CPU time and memory of this checkout and of an older one, side by side.

    git worktree add ../diffprune-before 9328808
    python benchmarks/light/run.py --before ../diffprune-before
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
CONSOLE = "import sys; from diffprune.cli import app; sys.argv[0] = 'diffprune'; app()"  # what the console script runs
COMMANDS = {"python": ["-c", "pass"], "import diffprune": ["-c", "import diffprune"],
            **{f"diffprune {c}": ["-c", CONSOLE, *c.split()] for c in ("--help", "--version", "datasets", "store list", "store studies")}}
IMPORT = """
from time import perf_counter, process_time
wall, cpu = perf_counter(), process_time()
import diffprune
print(perf_counter() - wall, process_time() - cpu)
"""
FILL = """
import sys
from diffprune.core.store import Store, save_array
store = Store(sys.argv[1])
made = [store.build("toy", dict(n=n), make=lambda folder: save_array(folder/"n.npy", n)) for n in range(200)]
store.record_study("toys", dict(methods=["random"]), [a.hash for a in made])
"""


def environment(checkout, store=""):
    return {**os.environ, "PYTHONPATH": str(checkout), "DIFFPRUNE_STORE": str(store)}


def measure(command, checkout, store):
    "CPU seconds (user and system), peak resident MiB and exit status of one process."
    process = subprocess.Popen([sys.executable, *command], env=environment(checkout, store), cwd=store,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return dict(cpu_s=used.ru_utime + used.ru_stime, peak_mib=used.ru_maxrss / 2**10, exit=process.returncode)


def import_times(checkout, store, rounds):
    "Medians of the wall and CPU milliseconds of `import diffprune`, by the process's own clocks."
    runs = [subprocess.run([sys.executable, "-c", IMPORT], env=environment(checkout), cwd=store, capture_output=True, text=True, check=True)
            for _ in range(rounds)]
    return dict(zip(("wall_ms", "cpu_ms"), (1e3 * statistics.median(v) for v in zip(*(map(float, r.stdout.split()) for r in runs)))))


def commit(checkout):
    git = lambda *a: subprocess.run(["git", *a], cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()
    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")


def processor():
    "The processor's name as Linux has it, or as Python knows it."
    try: lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError: return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--before", required=True, help="checkout of the older commit")
    p.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that is not counted")
    p.add_argument("--output", default=str(Path(__file__).parent / "results/light.json"))
    a = p.parse_args()
    checkouts = dict(before=Path(a.before).resolve(), after=HERE)
    found = {name: {side: [] for side in checkouts} for name in COMMANDS}
    with tempfile.TemporaryDirectory() as store:
        subprocess.run([sys.executable, "-c", FILL, store], env=environment(HERE), check=True)
        for i in range(a.rounds + 1):  # both sides in turn, so that a busy machine disturbs both; the first round compiles and fills caches
            for name, command in COMMANDS.items():
                for side in sorted(checkouts, reverse=i % 2 == 0):
                    run = measure(command, checkouts[side], store)
                    if i: found[name][side].append(run)
        imported = import_times(HERE, store, 4 * a.rounds)
    versions = {name: metadata.version(name) for name in ("torch", "timm", "open_clip_torch", "numpy", "pandas", "typer")}
    about = dict(commits={side: commit(path) for side, path in checkouts.items()}, python=platform.python_version(), versions=versions,
                 processor=processor(), cores=os.cpu_count(), system=platform.system(), rounds=a.rounds)
    Path(a.output).parent.mkdir(parents=True, exist_ok=True)
    Path(a.output).write_text(json.dumps(dict(about, import_diffprune=imported, runs=found), indent=1) + "\n")
    print("| command | CPU before, s | after, s | ratio | memory before, MiB | after, MiB |\n|---|---|---|---|---|---|")
    for name, sides in found.items():
        cpu, peak = ([statistics.median(r[key] for r in sides[side]) for side in checkouts] for key in ("cpu_s", "peak_mib"))
        print(f"| `{name}` | {cpu[0]:.2f} | {cpu[1]:.2f} | 1/{cpu[0] / cpu[1]:.0f} | {peak[0]:.0f} | {peak[1]:.0f} |")
    print(f"\n`import diffprune`: {imported['wall_ms']:.1f} ms, of these {imported['cpu_ms']:.1f} ms CPU time")


if __name__ == "__main__": main()

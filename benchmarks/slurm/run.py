"""One study on a real Slurm of one node, with a job that is timed out on the way; writes what happened, without names of this machine.

    python benchmarks/slurm/run.py            (as root, with Debian's slurm-wlm and munge)
"""
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
from slurm_node import slurm_node, unavailable  # noqa: E402

from diffprune.core.store import Store  # noqa: E402
from diffprune.study.executors import submit  # noqa: E402
from diffprune.study.study import Study  # noqa: E402


def main():
    if reason := unavailable(): sys.exit(f"no Slurm here: {reason}")
    lines, start = [], time.monotonic()

    def say(text):
        lines.append(f"[{time.monotonic() - start:5.0f} s] {text}")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder, slurm_node(Path(folder) / "slurm") as env:
        os.environ.update(env, OMP_NUM_THREADS="1")
        store = Store(Path(folder) / "store")
        study = Study(
            "digits",
            "smoke",
            ["random", "cluster_pixels"],
            [0.5],
            metrics_backbone="pixels",
            store=store,
            device="cpu",
            workers=1,
            overrides={"train.steps": 400, "train.checkpoint_every": 20, "n_bootstrap": 2},
        )
        say(f"{study}; submit(study, 'slurm', minutes=10, cpus_per_task=1, slurm_signal_delay_s=30)")
        submission = submit(study, "slurm", minutes=10, cpus_per_task=1, slurm_signal_delay_s=30)
        before, interrupted = None, None
        while True:
            table = submission.status()
            if (states := table.state.tolist()) != before: say("\n" + table.to_string(index=False))
            before = states
            if all(s in ("done", "failed", "lost") for s in states): break
            if (
                interrupted is None
                and any(len(list(w.glob("checkpoint-*"))) for w in (store.root / "work").glob("model-*"))
                and "RUNNING" in states[1:]
            ):
                interrupted = submission.parts[1 + states[1:].index("RUNNING")][0]
                say(f"the time of job {interrupted.job_id} is up: SIGUSR2, as Slurm sends it before the limit")
                interrupted._interrupt(timeout=True)
            for line in subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i|%r"], capture_output=True, text=True).stdout.split():
                if line.endswith("|BeginTime"):
                    say(f"job {line.split('|')[0]} was requeued, to begin in two minutes; scontrol update StartTime=now")
                    subprocess.run(["scontrol", "update", f"JobId={line.split('|')[0]}", "StartTime=now"], check=True)
            time.sleep(0.5)
        say(
            "what the interrupted job wrote:\n"
            + "\n".join(w for w in submission.log(interrupted).splitlines() if "submitit" in w or w.startswith(("Study", "INFO")))
        )
        found = study.results(progress=False, provenance=["model.seconds", "model.resumed"])
        found = found[found.metric.isin(["fd", "f_score"])]
        say("\n" + found[["method", "pruning_ratio", "n_train", "name", "value", "model.resumed"]].round(3).to_string(index=False))
        say(f"{len(store.verify())} damaged artifacts of {len(store.artifacts())}")
        text = "\n".join(lines).replace(str(store.root), "STORE").replace(folder, "FOLDER")
    text = re.sub(rf"\b{re.escape(platform.node().split('.')[0])}\b", "node", text)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/log.txt").write_text(re.sub(r"\(pid=\d+\)|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+", "", text) + "\n")


if __name__ == "__main__": main()

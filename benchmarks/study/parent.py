"""What the parent of a study costs while its workers compute, side by side with that of another commit.

    git worktree add /some/where COMMIT
    python benchmarks/study/parent.py --against /some/where

The parent plans 147 runs, looks twice a second how far they are, and does nothing else while the workers are at it. One child
process per tree makes such a study in an empty store, in which folders stand for artifacts: none, half of them, all. Looks
alternate between the trees. Given are CPU milliseconds of a look and the share of a core that two looks a second are, CPU
seconds of planning (all stages with their keys) and of the imports. Results go to `results/parent.json`.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "train"))
from run import ONE_THREAD, commit  # noqa: E402

CHILD = """
import json, sys, time
start = time.process_time()
from diffprune.core.store import Store
from diffprune.study.study import Study
imports = time.process_time() - start
methods = ["random", "cluster_lite0", "cluster_lite0_mid", "cluster_lite0_inv", "el2n", "el2n_inv", "grand", "grand_inv",
           "moso", "moso_inv", "kcenter_lite0", "herding_lite0"]
start = time.process_time()
study = Study("digits", "smoke", methods, [0.25, 0.5, 0.75, 0.9], seeds=range(3), store=Store(sys.argv[1]), device="cpu")
stages = study.stages()
planning = time.process_time() - start
print(json.dumps(dict(imports_s=imports, planning_s=planning, runs=len(study.runs), stages=len(stages))), flush=True)
names = [s.key(study.store).name for s in stages.values()]
for line in sys.stdin:
    share, looks = json.loads(line)
    for name in names[:round(share*len(names))]: (study.store.root/name).mkdir(parents=True, exist_ok=True)
    study.done()
    start = time.process_time()
    for _ in range(looks): found = study.done()
    print(json.dumps([(time.process_time() - start)/looks, *found]), flush=True)
"""


def start(tree, store):
    "A child with the package of a tree."
    env = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(tree)}
    command, pipes = [sys.executable, "-c", CHILD, str(store)], dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return subprocess.Popen(command, **pipes, text=True, env=env, cwd=tree)


def ask(child, *request):
    print(json.dumps(request), file=child.stdin, flush=True)
    return json.loads(child.stdout.readline())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="a checkout of another commit")
    parser.add_argument("--blocks", type=int, default=7, help="pairs of blocks")
    parser.add_argument("--looks", type=int, default=5, help="looks of a block")
    args = parser.parse_args()
    trees = dict(before=args.against.resolve(), now=HERE.parents[1])
    with tempfile.TemporaryDirectory() as scratch:
        children = {name: start(tree, Path(scratch) / name) for name, tree in trees.items()}
        planned, rows = {name: json.loads(child.stdout.readline()) for name, child in children.items()}, []
        for share in (0, 0.5, 1):
            blocks = [{name: ask(child, share, args.looks) for name, child in children.items()} for _ in range(args.blocks)]
            row = dict(finished=share)
            for name in trees:
                ms = 1e3 * float(np.median([b[name][0] for b in blocks]))
                row |= {f"{name}_ms": round(ms, 2), f"{name}_share_of_core": round(2 * ms / 1e3, 4)}
            assert blocks[0]["before"][1:] == blocks[0]["now"][1:], "the trees disagree on what is finished"
            rows.append(row)
            print(row, flush=True)
        for child in children.values(): child.stdin.close(); child.wait()
    about = {name: dict(commit=commit(tree), **{k: round(v, 3) for k, v in planned[name].items()}) for name, tree in trees.items()}
    print(about)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "parent.json").write_text(json.dumps(dict(about=about, load=os.getloadavg()[0], rows=rows), indent=1) + "\n")

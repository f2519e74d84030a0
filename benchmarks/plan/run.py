"""How far the estimate of `Study.plan(estimate=True)` is from what a study then takes.

    python benchmarks/plan/run.py --preset cpu --methods random,cluster_pixels,el2n --ratios 0.5
"""
import argparse
import tempfile
from pathlib import Path

import torch

from diffprune.core.store import Store, folder_bytes
from diffprune.study.study import Study


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--dataset", default="digits")
    p.add_argument("--preset", default="cpu")
    p.add_argument("--methods", default="random,cluster_pixels,el2n")
    p.add_argument("--ratios", default="0.5")
    p.add_argument("--output", default=str(Path(__file__).parent / "results/estimate.csv"))
    a = p.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        study = Study(
            a.dataset, a.preset, a.methods.split(","), [float(r) for r in a.ratios.split(",")], store=Store(root), device="cpu", workers=1
        )
        plan = study.plan(estimate=True, progress=False).set_index("hash")
        study.run(progress=False)
        measured = study.provenance_table(["seconds"]).set_index("hash")
        kinds = plan.kind.unique()
        store = study.store
        sizes = {h: folder_bytes(store.root / plan.kind[h] / h) / 2**20 for h in plan.index}
    table = plan.assign(
        estimated_s=plan.device_hours * 3600, measured_s=measured.seconds, estimated_mib=plan.gib * 1024, measured_mib=sizes
    )
    columns = ["estimated_s", "measured_s", "estimated_mib", "measured_mib"]
    found = table.groupby("kind", sort=False)[columns].sum().loc[kinds]
    found.loc["total"] = found.sum()
    found["time_ratio"], found["disk_ratio"] = found.estimated_s / found.measured_s, found.estimated_mib / found.measured_mib
    Path(a.output).parent.mkdir(parents=True, exist_ok=True)
    found.insert(0, "stages", [*table.groupby("kind", sort=False).size().loc[kinds], len(table)])
    found.round(3).to_csv(a.output)
    print(found.round(2).to_string())


if __name__ == "__main__": main()

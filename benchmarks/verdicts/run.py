"""How often verdicts err where nothing differs, and what they see where something does: simulated studies.

    python benchmarks/verdicts/run.py null power            # some minutes; writes results/*.csv
    python benchmarks/verdicts/run.py report                # the tables of README.md
    python benchmarks/verdicts/run.py pilot                 # diffprune/assets/pilot_noise.csv from the committed results
"""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import f as fisher
from scipy.stats import t as student

from diffprune.core.store import provenance
from diffprune.metrics.comparisons import compare, log_margin, max_t_quantile, power
from diffprune.report.verdicts import better_than_random
from diffprune.study.study import _noise_of

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
METHODS, RATIOS = ["random", *(f"m{i}" for i in range(1, 12))], (0.25, 0.5, 0.75, 0.9)
BY_RATIO = np.array([0.05, 0.09, 0.12, 0.20])  # noise of log FD on the digits, by ratio
UNEQUAL = np.array([.13, .06, .07, .06, .03, .12, .48, .07, .10, .31, .26, .08])/0.2  # by method, at a ratio of 0.9
STUDIES = 10_000  # simulated studies
COMMIT = provenance()["commit"]  # when it started


def study(rng, n, scale, effects=()):
    "Log FD (methods, seeds, ratios): a seed effect that all share, and log-normal noise; the first methods have the given effects."
    y = rng.normal(scale=0.02, size=(1, n, 1)) + rng.normal(size=(len(METHODS), n, len(RATIOS)))*BY_RATIO*scale[:, None, None]
    y[1:1 + len(effects)] += np.asarray(effects)[:, None, None]
    return y


def separate(y):
    "Whether any method is decided by its own 95 % interval."
    d = y.mean(2)[1:] - y.mean(2)[:1]
    n = d.shape[1]
    return bool((np.abs(d.mean(1)) > student.ppf(0.975, n - 1)*d.std(1, ddof=1)/np.sqrt(n)).any())


def compared(y):
    "Simultaneous intervals of the mean over the ratios, as `better_than_random` has them at equal steps."
    return compare(pd.DataFrame(y.mean(2), index=METHODS), [(m, "random") for m in METHODS[1:]])


def decided(studies):
    "Which methods `compare` decides about (studies, methods), for many complete studies at once; held against it for the first fifty."
    y = np.stack([s.mean(2) for s in studies])
    k, n = y.shape[1] - 1, y.shape[2]
    d = y[:, 1:] - y[:, :1]
    e = y - y.mean(2, keepdims=True) - y.mean(1, keepdims=True) + y.mean((1, 2), keepdims=True)
    pooled, own = np.sqrt(2*(e**2).sum((1, 2))/(k*(n - 1))/n)[:, None], d.std(2, ddof=1)/np.sqrt(n)
    s2 = (e**2).sum(2)/(n - 1)
    df = np.clip(s2.sum(1)**2/(s2**2/(n + 1)).sum(1), n - 1, k*(n - 1))
    grid, shared = np.geomspace(n - 1, k*(n - 1), 60), (np.eye(k) + np.ones((k, k)))/2
    c = np.interp(df, grid, [max_t_quantile(0.95, shared, g) for g in grid])[:, None]
    noisy = (own**2 > fisher.isf(0.15, n - 1, df)[:, None]*pooled**2) & (df > n - 1)[:, None]
    c = np.where(noisy, max_t_quantile(0.95, shared, n - 1), c)
    found = np.abs(d.mean(2)) > np.maximum(c*np.maximum(pooled, own), student.ppf(0.975, n - 1)*own)
    slow = [compared(s).pipe(lambda t: ((t.low > 0) | (t.high < 0)).to_numpy()) for s in studies[:50]]
    assert (found[:50] == np.stack(slow)).all()
    return found


def tidy(y):
    index = pd.MultiIndex.from_product([METHODS, range(y.shape[1]), RATIOS], names=["method", "seed", "pruning_ratio"])
    return pd.DataFrame(dict(metric="fd", value=np.exp(y).ravel()), index=index).reset_index()


def words(y):
    "Verdicts of `better_than_random`, at equal steps and at equal cost."
    costs, table = pd.DataFrame([dict(method=m, seconds=1.0, random_steps=100) for m in METHODS[1:]]), tidy(y)
    found = better_than_random(table, costs, {100: table})
    return {*found["verdict at equal steps"], *found["verdict at equal cost"]}


def null():
    rows = []
    for n in (2, 3, 5, 8):
        for noise, scale in (("equal", np.ones(12)), ("unequal", UNEQUAL)):
            rng = np.random.default_rng(n)
            studies = [study(rng, n, scale) for _ in range(STUDIES)]
            whole = [bool({"better", "worse", "no difference"} & words(y)) for y in studies[:200]]
            rows.append(dict(seeds=n, noise=noise, studies=STUDIES, each_its_own_interval=np.mean([separate(y) for y in studies]),
                             simultaneous=decided(studies).any(1).mean(), better_than_random_of_200=np.mean(whole)))
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def seen():
    rows, effects = [], (0.05, 0.1, 0.2)
    sd = float(np.sqrt((BY_RATIO**2).sum())/len(RATIOS))
    for n in (2, 3, 5, 8, 12, 20):
        rng = np.random.default_rng(100 + n)
        hits = decided([study(rng, n, np.ones(12), log_margin(np.array(effects))) for _ in range(STUDIES)]).mean(0)
        rows.append(dict(seeds=n, noise=sd, studies=STUDIES, **{f"simulated +{e:.0%}": h for e, h in zip(effects, hits)},
                         **{f"study.power +{e:.0%}": power(log_margin(e), n, sd, 11) for e in effects}))
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def pilot():
    "The noise of the committed results, for `Study.power` before anything is computed."
    rows = []
    for path in sorted((ROOT/"papers_figures").glob("*/*/fig1_fid_curves.csv")):
        table = pd.read_csv(path)
        try: mean, worst = _noise_of(table, "fd")
        except ValueError: continue  # one seed
        first = table.iloc[0]
        methods = table[~table.method.isin(["unpruned", "validation"])].method.nunique()
        rows.append(dict(dataset=first.dataset, preset=first.preset, backbone=first.backbone, metric="fd", sd_mean=round(mean, 4),
                         sd_noisiest=round(worst, 4), methods=methods, seeds=table.seed.nunique()))
    pd.DataFrame(rows).to_csv(ROOT/"diffprune/assets/pilot_noise.csv", index=False)


def report():
    for path in (HERE/"results/null.csv", HERE/"results/power.csv"):
        table = pd.read_csv(path)
        shown = table.drop(columns="commit")
        print(f"**{path.stem}** (commit {table.commit[0]})\n\n| " + " | ".join(shown) + " |\n|" + "---|"*shown.shape[1])
        text = lambda v: f"{v:.3f}" if isinstance(v, float) else str(v)
        for row in shown.itertuples(index=False): print("| " + " | ".join(map(text, row)) + " |")
        print()


if __name__ == "__main__":
    for name in sys.argv[1:] or ["report"]:
        made = dict(null=null, power=seen, report=report, pilot=pilot)[name]()
        if made is not None: made.assign(commit=COMMIT).to_csv(HERE/"results"/f"{name}.csv", index=False)

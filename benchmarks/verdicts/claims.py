"""How often the table of claims errs in simulated studies, and what it sees: the rules of `report.verdicts`, for all studies at once.

    python benchmarks/verdicts/claims.py rates         # writes results/claims.csv; the first studies of each kind go through claims_table
    python benchmarks/verdicts/claims.py whole         # 2,000 studies through claims_table alone, half an hour; results/claims_whole.csv
    python benchmarks/verdicts/claims.py report        # the tables of README.md
"""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import f as fisher
from scipy.stats import t as student

from diffprune.core.store import provenance
from diffprune.metrics.comparisons import log_margin
from diffprune.report.verdicts import FAILS, HOLDS, claim_methods, claims_table, paper_claims

HERE, COMMIT = Path(__file__).parent, provenance()["commit"]
METHODS, RATIOS, STUDIES, HELD, WHOLE = claim_methods(), (0.25, 0.5, 0.75, 0.9), 10_000, 5, 2_000
BY_RATIO = dict(zip(RATIOS, (0.05, 0.09, 0.12, 0.20)))  # noise of log FD on the digits; half of its variance is common to the ratios
DIGITS = np.array([.13, .06, .07, .06, .03, .12, .48, .07, .10, .31, .26, .08])/0.2  # by method, as the digits have it at 0.9
UNCOMMON = {"noisy random": ("random",), "noisy grand": ("grand", "grand_inv")}  # thirty times the noise of all others
NOISE = dict(equal=np.ones(len(METHODS)), digits=DIGITS, **{k: np.where(np.isin(METHODS, v), 3.0, 0.1) for k, v in UNCOMMON.items()})
LOG = ("fd", "fd_rise")  # simulated as logarithms
WORLDS = dict(null=0.0, border=None) | {f"+{e:.0%}": e for e in (0.05, 0.1, 0.2)}


def truth(world, conditional):
    """What is true on average: metric, method, ratio -> value. "null": nothing differs. "border": every contrast is at its border, so
    that both words are wrong. Otherwise all differ by so much, in the direction of the claim, or for the worse where it says "alike"."""
    e, edge = WORLDS[world] or 0.0, world == "border"
    up, ten, null, sign = log_margin(e), log_margin(0.1), world == "null", 1 if conditional else -1
    near = 0.0 if conditional or not edge else -log_margin(0.05)
    def value(metric, method, ratio):
        if metric == "fd_rise": return up if method in ("vae", "gan") and ratio else 0.0
        if metric == "same_noise_auc": return 0.5*(1 + e)
        if metric == "minority_share": return 0.1*(1 + e*method.startswith("balanced"))
        if metric == "distance_to_control": return 1.0 if null else 0.9/(1 + e) if ratio == 0.95 else 0.9*(1 + e)
        base = 0.0 if method == "unpruned" or ratio == 0.9 else ten if edge else up
        balanced = base + near - up + ((ten if conditional else 0.0) if edge else up)
        known = {"random": base, "cluster_lite0": base + near - up, "cluster_lite0_inv": base + (0.0 if null else np.log(1.5) + up),
                 "balanced_lite0": balanced, "monotonicity_inv": -ten if edge else -up, "el2n_inv": -up, "grand_inv": -sign*up}
        return known.get(method, 0.0)
    return value


def words_of_truth(value, claims):
    "The word that each claim deserves; empty where something is at its border and nothing beyond."
    found, near = [], 1e-9
    for claim in claims:
        beyond = []
        for p in claim.parts:
            ratios = p.ratios or ((0.75,) if p.first.startswith("balanced") else RATIOS)
            second = lambda r: value(p.metric, p.second, 0.0 if p.second == "unpruned" else r) if isinstance(p.second, str) else p.second
            each = np.array([value(p.metric, p.first, r) - second(r) for r in ratios])
            for d in (each if p.each else [each.mean()]):
                beyond.append(p.border - abs(d) if p.says == "alike" else d - p.border if p.says == "higher" else -d - p.border)
        found.append(HOLDS if min(beyond) > near else FAILS if min(beyond) < -near else "")
    return np.array(found)


def simulate(rng, studies, n, scale, value):
    "Evidence as the notebook of claims gathers it: metric -> method -> ratio -> (studies, n)."
    shared, scale = rng.normal(scale=0.02, size=(studies, n)), dict(zip(METHODS, scale))
    def runs(method, ratios):
        z = {r: rng.normal(size=(studies, n)) for r in (None, *ratios)}
        return {r: shared + BY_RATIO.get(r, 0.05)*scale.get(method, 1.0)*(z[None] + z[r])/np.sqrt(2) for r in ratios}
    plain = lambda methods, sd, ratios: {m: {r: sd*scale.get(m, 1.0)*rng.normal(size=(studies, n)) for r in ratios(m)} for m in methods}
    fd = {m: runs(m, RATIOS) for m in METHODS} | dict(unpruned=runs("unpruned", [0.0]), balanced_lite0=runs("balanced_lite0", [0.75]))
    rise = {k: {r: v - whole[0.0] for r, v in whole.items()} for k in ("vae", "gan") for whole in [runs(k, (0.0, *RATIOS))]}
    rise |= dict(random={r: v - fd["unpruned"][0.0] for r, v in fd["random"].items()}, unpruned={0.0: np.zeros((studies, n))})
    inverted = [m for m in METHODS if f"{m}_inv" in METHODS]
    found = dict(fd=fd, fd_rise=rise, same_noise_auc=plain(inverted, 0.02, lambda m: [0.5]),
                 distance_to_control=plain(METHODS, 0.03, lambda m: (*RATIOS, 0.95) if m == "random" else RATIOS),
                 minority_share=plain(["balanced_lite0", "cluster_lite0"], 0.01, lambda m: [0.75]))
    return {k: {m: {r: v + value(k, m, r) for r, v in of.items()} for m, of in by.items()} for k, by in found.items()}


def tidy(evidence, i):
    "The evidence of one study, as the notebook has it."
    rows = [(m, r, seed, k, x) for k, by in evidence.items() for m, of in by.items() for r, v in of.items()
            for seed, x in enumerate(np.exp(v[i]) if k in LOG else v[i])]
    return pd.DataFrame(rows, columns=["method", "pruning_ratio", "seed", "metric", "value"])


def effects(by, part, ratios):
    "ratio -> difference of the two groups of a contrast (studies, n)."
    if part.first == "*":
        methods = [m for m in by if m != "unpruned"]
        first = {r: np.mean([by[m][r] for m in methods if r in by[m]], axis=0) for r in sorted({r for m in methods for r in by[m]})}
    else: first = by.get(part.first, {})
    first = {r: v for r, v in first.items() if ratios is None or r in ratios}
    if not isinstance(part.second, str): return {r: v - (np.log(part.second) if part.log else part.second) for r, v in first.items()}
    second = by.get(part.second, {})
    if part.second == "unpruned": second = dict.fromkeys(first, second[0.0])
    return {r: first[r] - second[r] for r in first if r in second}


def satterthwaite(s2, nu, most):
    "Degrees of freedom of a mean of variances (studies, k)."
    return np.clip(s2.sum(1)**2/(s2**2/(nu + 2)).sum(1), min(nu, most), most)


def pooled(by, part, ratios, n):
    "Noise of a difference, and its degrees of freedom, by the rule of `report.verdicts._pool`."
    if part.first == "*" or not isinstance(part.second, str):
        all_ratios = list(effects(by, part, None).values()) if part.each else []
        if len(all_ratios) < 3: return 0.0, float(n - 1)
        s2 = np.stack(all_ratios, 1).var(2, ddof=1)
        return np.sqrt(s2.mean(1)), satterthwaite(s2, n - 1, (n - 1)*s2.shape[1])
    rows = [of[0.0] if m == "unpruned" else np.mean([of[r] for r in ratios], axis=0) for m, of in by.items()
            if m == "unpruned" or all(r in of for r in ratios)]
    y = np.stack([v for v in rows if v.any()], 1)
    if y.shape[1] < 3: return 0.0, float(n - 1)
    e = y - y.mean(2, keepdims=True) - y.mean(1, keepdims=True) + y.mean((1, 2), keepdims=True)
    df = (y.shape[1] - 1)*(n - 1)
    return np.sqrt(2*(e**2).sum((1, 2))/df), satterthwaite((e**2).sum(2)/(n - 1), n - 1, df)


def p_values(by, part):
    "Of what a contrast says and of its opposite, one pair for each finding; each (2, studies), by the noise of all and by the own seeds."
    found, m = effects(by, part, part.ratios), part.border
    for ratios in ([r] for r in found) if part.each else [list(found)]:
        v = np.mean([found[r] for r in ratios], axis=0)
        n, own = v.shape[1], v.std(1, ddof=1)/np.sqrt(v.shape[1])
        sd, df = pooled(by, part, ratios, n)
        df = np.where(own**2 > fisher.isf(0.05, n - 1, df)*sd**2/n, n - 1, df)
        se = np.maximum(own, sd/np.sqrt(n))
        tail = lambda b, side: np.stack([student.sf(side*(v.mean(1) - b)/se, df), student.sf(side*(v.mean(1) - b)/own, n - 1)])
        if part.says == "alike":
            yield np.maximum(tail(-m, 1), tail(m, -1)), np.minimum(1, 2*np.minimum(tail(m, 1), tail(-m, -1)))
        else:
            side = 1 if part.says == "higher" else -1
            yield np.minimum(1, 2*tail(side*m, side)), np.minimum(1, 2*tail(side*m, -side))


def decisions(evidence, claims, alpha=0.05):
    "The word of each claim in each study (studies, claims); empty where it is not decided."
    sides = []
    for claim in claims:
        pairs = [pair for part in claim.parts for pair in p_values(evidence[part.metric], part)]
        holds = np.max([p for p, _ in pairs], axis=0)
        others = np.minimum(1, len(pairs)*np.stack([q for _, q in pairs]))
        fails = np.take_along_axis(others, others.max(1).argmin(0)[None, None], 0)[0]
        favoured = holds.max(0) <= fails.max(0)
        sides.append((np.where(favoured, holds, fails), np.where(favoured, HOLDS, FAILS)))
    p, words = np.stack([p for p, _ in sides], 2), np.stack([w for _, w in sides], 1)
    order, m = np.argsort(p[0], axis=1, kind="stable"), len(claims)
    adjusted = np.empty_like(p[0])
    ranked = np.maximum.accumulate(np.take_along_axis(p[0], order, 1)*np.arange(m, 0, -1), axis=1)
    np.put_along_axis(adjusted, order, ranked, 1)
    return np.where(np.maximum(adjusted, 2*p[1]) <= alpha, words, "")


def by_the_table(evidence, claims, studies):
    "The same, by `claims_table`."
    words = np.stack([claims_table(tidy(evidence, i), claims, "simulated").verdict for i in range(studies)])
    return np.where(np.isin(words, [HOLDS, FAILS]), words, "")


def settings():
    "Kinds of study: all noises where nothing may be decided, that of the digits for power."
    return [(model, noise, n, world) for model in ("conditional", "unconditional") for noise in NOISE for n in (2, 3, 5, 8)
            for world in WORLDS if world in ("null", "border") or noise == "digits"]


def drawn(model, noise, n, world, studies):
    "Claims, evidence and truth of simulated studies."
    conditional = model == "conditional"
    claims, value = paper_claims(conditional), truth(world, conditional)
    return claims, simulate(np.random.default_rng(n), studies, n, NOISE[noise], value), words_of_truth(value, claims)


def rows_of(how, claims, found, true):
    "Shares of studies that decide a claim rightly and wrongly, and in which any claim is decided wrongly."
    wrong = (found != "") & (found != true)
    any_claim = dict(how, claim="any", truth="", right=np.nan, wrong=wrong.any(1).mean())
    return [any_claim, *(dict(how, claim=c.number, truth=w, right=((found == w) & (found != "")).mean(), wrong=e)
                         for c, w, found, e in zip(claims, true, found.T, wrong.mean(0)))]


def rates():
    rows = []
    for setting in settings():
        claims, evidence, true = drawn(*setting, STUDIES)
        found = decisions(evidence, claims)
        assert (found[:HELD] == by_the_table(evidence, claims, HELD)).all(), setting
        rows += rows_of(dict(zip(("model", "noise", "seeds", "world"), setting), studies=STUDIES), claims, found, true)
        print(setting, f"any wrong: {rows[-len(claims) - 1]['wrong']:.4f}", flush=True)
    return pd.DataFrame(rows)


def whole():
    setting = ("conditional", "digits", 3, "null")
    claims, evidence, true = drawn(*setting, WHOLE)
    how = dict(zip(("model", "noise", "seeds", "world"), setting), studies=WHOLE)
    return pd.DataFrame(rows_of(how, claims, by_the_table(evidence, claims, WHOLE), true))


def markdown(table):
    text = lambda v: f"{v:.3f}" if isinstance(v, float) else str(v)
    lines = ["| " + " | ".join(map(str, table)) + " |", "|" + "---|"*table.shape[1]]
    return "\n".join(lines + ["| " + " | ".join(map(text, row)) + " |" for row in table.itertuples(index=False)])


def report():
    read = lambda name: pd.read_csv(HERE/f"results/{name}.csv", keep_default_na=False).astype(dict(wrong=float))
    table = pd.concat([read(name).assign(by=by) for name, by in (("claims", "all at once"), ("claims_whole", "claims_table"))
                       if (HERE/f"results/{name}.csv").exists()], ignore_index=True)
    table["right"] = pd.to_numeric(table.right)
    print(f"(commits {', '.join(sorted(set(table.commit)))})\n\n**Any claim decided wrongly**\n")
    errors = table[(table.claim == "any") & table.world.isin(["null", "border"])]
    print(markdown(errors.pivot_table(index=["model", "noise", "seeds", "studies", "by"], columns="world", values="wrong", sort=False)
                   .reset_index().astype(object).fillna("–")))
    print("\n**Decided rightly**, with the noise of the digits\n")
    power = table[(table.claim != "any") & (table.noise == "digits") & (table.by == "all at once") & (table.world != "border")
                  & table.seeds.isin([3, 8])]
    power = power.assign(shown=[f"{w} {r:.2f}" if w else "(border)" for w, r in zip(power.truth, power.right)],
                         column=[f"{n} seeds, {w}" for n, w in zip(power.seeds, power.world)])
    wide = power.pivot(index=["model", "claim"], columns="column", values="shown")
    print(markdown(wide[[f"{n} seeds, {w}" for n in (3, 8) for w in ("null", *list(WORLDS)[2:])]].reset_index()))


if __name__ == "__main__":
    for name in sys.argv[1:] or ["report"]:
        made, file = dict(rates=rates, whole=whole, report=report)[name](), dict(rates="claims", whole="claims_whole").get(name)
        if file: made.assign(commit=COMMIT).to_csv(HERE/f"results/{file}.csv", index=False)

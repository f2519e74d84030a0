"""Duplicates in a folder where they are known: groups found, false ones, time and memory, beside cleanvision and imagededup.

    python benchmarks/duplicates/run.py --originals 300 --peers /path/to/python/of/an/environment/with/both

The folder: crops of two photographs, drawings of animals, food and things, and handwritten digits, which are all different, and for every
third of them a copy of one kind. What was made from what is written in the file's name. Each tool runs in a process of its own; time is
of CPU, user and system, and includes imports.
"""
import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

EDITS = dict(
    byte=lambda im: im, bmp=lambda im: im, jpeg60=lambda im: im, half=lambda im: im.resize((im.width // 2, im.height // 2)),
    brighter=lambda im: im.point(lambda v: min(255, round(v * 1.1 + 8))),
    crop=lambda im: im.crop((im.width // 20, im.height // 20, im.width - im.width // 20, im.height - im.height // 20)).resize(im.size))
EXACT = ("byte", "bmp")
DRAWN = ("Animals & Nature", "Food & Drink", "Objects", "Travel & Places")

OURS = """
import json, sys
import numpy as np
from diffprune.core.store import Store
from diffprune.data.datasets import load_dataset
from diffprune.features.duplicates import find_duplicates
folder, store, how = sys.argv[1:]
data = load_dataset(folder, image_size=224, store=Store(store), progress=False, labels="none", splits="none")
X = None
if how != "hash":
    from diffprune.features.embed import embed_images, load_backbone
    X = embed_images(load_backbone("lite0"), data, progress=False)
options = dict(hash=dict(), both=dict(), features=dict(max_bits=None))[how]
found = find_duplicates(data, X, **options)
groups = lambda table: [g.tolist() for _, g in table.groupby("group").id]
pairs = found.table
exact = pairs[pairs.kind == "exact"]
print(json.dumps(dict(groups=groups(pairs), exact=[[a, b] for a, b in zip(exact.id, exact.duplicate_of)])))
"""
CLEANVISION = """
import json, os, sys
from cleanvision import Imagelab
lab = Imagelab(data_path=sys.argv[1])
lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=1, verbose=False)
name = lambda sets: [[os.path.relpath(p, sys.argv[1]) for p in s] for s in sets]
exact = name(lab.info["exact_duplicates"]["sets"])
near = name(lab.info["near_duplicates"]["sets"])
print(json.dumps(dict(groups=exact + near, exact=[[a, b] for s in exact for a in s for b in s if a < b])))
"""
IMAGEDEDUP = """
import json, sys
from imagededup.methods import CNN, PHash
how = sys.argv[3]
encoder = CNN(verbose=False) if how == "CNN" else PHash(verbose=False)
found = encoder.find_duplicates(image_dir=sys.argv[1], **({} if how == "CNN" else dict(max_distance_threshold=6)))
print(json.dumps(dict(groups=[[a, *b] for a, b in found.items() if b], exact=None)))
"""


def origin(name): return name.split("__")[0]


def make_folder(folder, n):
    "Different images, and copies of every third."
    from sklearn.datasets import load_sample_images

    from diffprune.data.datasets import load_dataset
    photos, emoji = [Image.fromarray(x) for x in load_sample_images().images], load_dataset("openmoji", image_size=224, progress=False)
    wanted = [i for i, c in enumerate(emoji.classes) if c in DRAWN]
    emoji, digits = emoji.subset(np.isin(emoji.labels, wanted)), load_dataset("digits", image_size=128, progress=False)
    rng, kinds = np.random.default_rng(0), itertools.cycle(EDITS)
    folder.mkdir()
    cells = [(p, x, y) for p in photos for x in range(0, p.width - 128, 64) for y in range(0, p.height - 128, 64)]  # crops overlap by half
    pictures = [p.crop((x, y, x + 128, y + 128)).resize((512, 512), Image.Resampling.BICUBIC) for p, x, y in cells][:n // 2]
    picture = lambda data, k: Image.fromarray(np.asarray(data.images[k]).transpose(1, 2, 0))
    pictures += [picture(emoji, k * (len(emoji) // (n // 4))) for k in range(n // 4)]
    pictures += [picture(digits, k) for k in range(n - len(pictures))]
    for k in range(4):  # 16-bit greys that differ in all but their range
        wide = np.sort(rng.integers(0, 2**16, (128, 128)), axis=k % 2)[:: 1 - k // 2 * 2].astype(np.uint16)
        Image.fromarray(wide).save(folder / f"wide{k}__original.png")
    for k, picture in enumerate(pictures):
        picture.save(folder / f"{k:04d}__original.png")
        if k % 3: continue
        kind = next(kinds)
        ending = dict(bmp="bmp", jpeg60="jpg").get(kind, "png")
        EDITS[kind](picture).save(folder / f"{k:04d}__{kind}.{ending}", **(dict(quality=60) if kind == "jpeg60" else {}))


def measured(python, code, *args):
    "What a script printed last, its CPU seconds and its peak memory."
    wrapped = f"import resource, sys\n{code}\nu = resource.getrusage(resource.RUSAGE_SELF)\nprint(u.ru_utime + u.ru_stime, u.ru_maxrss)"
    env = os.environ | dict(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    done = subprocess.run([python, "-c", wrapped, *map(str, args)], capture_output=True, text=True, env=env)
    if done.returncode: raise RuntimeError(done.stderr[-2000:])
    *_, found, usage = done.stdout.strip().splitlines()
    cpu, kib = map(float, usage.split())
    return json.loads(found), dict(cpu_seconds=round(cpu, 1), peak_mib=round(kib / 1024))


def judged(found, names):
    "Pairs found and missed, by kind of copy, and pairs of different images that were taken for copies."
    pairs = {tuple(sorted(p)) for g in found["groups"] for p in itertools.combinations(sorted(set(g)), 2)}
    true = {(n, f"{origin(n)}__original.png") for n in names if "__original" not in n}
    kinds = {k: [tuple(sorted(p)) in pairs for p in true if f"__{k}." in p[0]] for k in EDITS}
    exact = None if found["exact"] is None else {tuple(sorted(p)) for p in found["exact"]}
    right = {tuple(sorted(p)) for p in true if any(f"__{k}." in p[0] for k in EXACT)}
    counts = dict(groups=len({tuple(sorted(set(g))) for g in found["groups"]}), **{k: f"{sum(v)}/{len(v)}" for k, v in kinds.items()})
    exactly = {} if exact is None else dict(exact=f"{len(exact & right)}/{len(right)}", false_exact=len(exact - right))
    return dict(counts, false_pairs=sum(origin(a) != origin(b) for a, b in pairs), **exactly)


def main(n, peers, out):
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "pictures"
        subprocess.run([sys.executable, __file__, "--make", str(folder), "--originals", str(n)], check=True)  # apart: it takes memory
        names = sorted(p.name for p in folder.iterdir())
        tools = [(f"diffprune, {how}", sys.executable, OURS, how) for how in ("hash", "features", "both")]
        if peers:
            tools += [("cleanvision", peers, CLEANVISION, ""), ("imagededup, PHash ≤ 6", peers, IMAGEDEDUP, "PHash"),
                      ("imagededup, CNN", peers, IMAGEDEDUP, "CNN")]
        for name, python, code, how in tools:
            try: found, cost = measured(python, code, folder, Path(tmp) / f"store-{how}", how)
            except RuntimeError as e: rows.append(dict(tool=name, failed=str(e).strip().splitlines()[-1])); print(rows[-1]); continue
            rows.append(dict(tool=name, **judged(found, names), **cost))
            print(rows[-1], flush=True)
    facts = dict(images=len(names), originals=n, python=platform.python_version(), cpus=os.cpu_count(), rows=rows)
    out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--originals", type=int, default=300)
    parser.add_argument("--peers", help="python of an environment that has cleanvision and imagededup")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "duplicates.json")
    parser.add_argument("--make", type=Path, help="only make the folder, here")
    args = parser.parse_args()
    make_folder(args.make, args.originals) if args.make else main(args.originals, args.peers, args.out)

"""Choices and pages of them, for tests."""
import base64
import json
import re

import numpy as np
import pandas as pd

from diffprune.report.html_report import pruning_report

HOSTILE = [
    "plain.png",
    "with space/ä b.png",
    'quo"te\'s.png',
    "</script><script>window.hacked = 1</script>.png",
    "<img src=x onerror=hacked=1>.png",
    "图/写真 1.png",
    "עברית/תמונה.png",
    "a\nb.png",
    "a&amp;b.png",
    "%3Cb%3E.png",
    "\u202egnp.exe",
    "caf\udce9.png",
    "--><!--.png",
    "{{ 7 * 7 }}.png",
    "line\u2028break.png",
    "0001",
    "NA",
     "../../etc/passwd"]


def choice(n=60, **columns):
    "The table of a choice of every second image: 3 classes, 4 clusters, scores."
    at = np.arange(n)
    usual = dict(id=[f"f{i % 3}/{i:04d}.png" for i in at], kept=at % 2 == 0, label=np.array(["ant", "bee", "cat"], dtype=object)[at % 3],
                 cluster=at // 3 % 4, score=at % 2 * -1.0 + at / n, reason=np.where(at % 2 == 0, "", "pruned by toy"))
    return pd.DataFrame({k: pd.Series(v, dtype=object) if k in ("id", "label", "reason")
                        else v for k, v in (usual | columns).items() if v is not None})


def pictures(n, side=16, seed=0):
    "Small pictures of one colour each."
    colours = np.random.default_rng(seed).integers(256, size=(n, 3, 1, 1), dtype=np.uint8)
    return lambda positions: (np.broadcast_to(colours[i], (3, side, side)) for i in positions)


def written(folder, table=None, **options):
    "The text of a page and its data."
    table = choice() if table is None else table
    path = pruning_report(table, folder / "page.html", **dict(images=pictures(len(table)), overwrite=True) | options)
    text = path.read_text(encoding="utf-8")
    return text, json.loads(re.findall(r'id="data">(.*?)</script>', text, re.S)[0])


def column(data, name, dtype): return np.frombuffer(base64.b64decode(data[name]), dtype)


def names_of(data): return [data["folders"][f] + name for f, name in zip(column(data, "folder", "<i4"), data["names"])]

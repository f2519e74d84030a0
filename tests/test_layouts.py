"""Layouts of folders: what each means, what is refused, and drawn folders against a slow reader that shares no code with the package."""
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from layouts import folders, write_folder
from reference_reader import Unclear, read_folder

from diffprune.core.store import Store
from diffprune.data.datasets import load_dataset

FUZZ = int(os.environ.get("DIFFPRUNE_FUZZ", 60))  # drawn folders; `make fuzz` draws thousands


@pytest.fixture(scope="module")
def quiet():
    "What is printed while folders are read does not matter here."
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def ours(root, store, splits, labels):
    "Splits, classes, images left out and other files, as the package reads them; None if it refuses."
    options = dict(store=store, splits=splits, labels=labels, image_size=8, progress=False)
    try: whole = load_dataset(root, "all", **options)
    except (ValueError, FileNotFoundError): return None
    found = dict(all=whole)
    for split in ("train", "val", "test"):
        try: found[split] = load_dataset(root, split, **options)
        except FileNotFoundError: assert split == "train"
        except ValueError as e: assert "no part for" in str(e) or "none of" in str(e)
    return found


@settings(max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck))
@given(folders(), st.sampled_from(["auto"] * 4 + ["folders", "none"]), st.sampled_from(["auto"] * 4 + ["folders", "none"]))
def test_drawn_folders_are_read_as_the_reference_reads_them(quiet, drawn, splits, labels):
    base = Path(tempfile.mkdtemp())
    try: compare(write_folder(base / "data", drawn), Store(base / "store"), drawn, splits, labels)
    finally: shutil.rmtree(base)


def compare(root, store, drawn, splits, labels):
    found = ours(root, store, splits, labels)
    try: expected, classes, ignored = read_folder(root, splits, labels)
    except Unclear as e:
        event(f"refused: {e}")
        assert found is None, f"the reference refuses it: {e}"
        return
    readable = {p for of in expected.values() for p in of if drawn[p][2]}
    event("read" if readable else "nothing readable")
    if not readable: assert found is None; return
    assert found is not None, "the reference reads it"
    for split, of in expected.items():
        good = sorted(p for p in of if drawn[p][2])
        if not good: assert split not in found; continue
        data = found[split]
        assert data.ids.tolist() == good and data.classes == classes
        assert [data.classes[k] if k >= 0 else None for k in data.labels] == [of[p] for p in good]
        assert data.paths.tolist() == [str(root / p) for p in good]
        for image, path in zip(data.images, good):
            if drawn[path][1] is not None: assert np.abs(image[:, 4, 4].astype(int) - drawn[path][1]).max() <= 1, path
        left_out = data.report().left_out
        assert sorted(left_out["path"]) == sorted(set(of) - set(good)) and left_out["reason"].ne("").all()
        assert data.report().splits == {s: len(good) if s == split else len(o) for s, o in expected.items()}
    report = found["all"].report()
    assert sorted(p for p, _ in report.ignored.values) == sorted(ignored), "every other file is mentioned, and nothing else"
    assert {p for p, why in report.ignored.values if why == "in no split"} == {p for p, why in ignored.items() if why == "in no split"}
    everything = {*found["all"].ids, *report.left_out["path"], *report.ignored["path"]}
    assert everything >= set(drawn), "no file is lost"

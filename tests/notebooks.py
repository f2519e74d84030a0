"""Notebooks run by tests."""
import os
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]


def papermill(name, cwd, store_root, parameters, timeout=600):
    """The way the README says, with the figures and the store elsewhere."""
    env = dict(os.environ, DIFFPRUNE_STORE=str(store_root), DIFFPRUNE_DATA="", DIFFPRUNE_WORKERS="1", OMP_NUM_THREADS="1")
    args = [a for k, v in parameters.items() if v is not None for a in ("-p", k, v)]
    return subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", str(ROOT / f"nbs/{name}.ipynb"), *args],
                          cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def run_head(name, until, **parameters):
    """The cells of a notebook down to the first that calls `until`, here and now, with the parameters put in where papermill puts them."""
    cells = [c for c in nbformat.read(ROOT / f"nbs/{name}.ipynb", 4).cells if c.cell_type == "code"]
    at = next(i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", []))
    end = next(i for i, c in enumerate(cells) if f"{until}(" in c.source)
    found = {}
    for cell in cells[:at + 1]: exec(cell.source, found)
    found.update(parameters)
    for cell in cells[at + 1:end + 1]: exec(cell.source, found)

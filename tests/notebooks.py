"""Notebooks run by tests."""
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nbformat
from execnb.nbio import read_nb
from execnb.shell import CaptureShell

ROOT = Path(__file__).parents[1]


def environment(store_root):
    return dict(DIFFPRUNE_STORE=str(store_root), DIFFPRUNE_DATA="", DIFFPRUNE_WORKERS="1", OMP_NUM_THREADS="1")


def papermill(name, cwd, store_root, parameters, timeout=600):
    """The way the README says, with the figures and the store elsewhere."""
    args = [a for k, v in parameters.items() if v is not None for a in ("-p", k, v)]
    return subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", str(ROOT / f"nbs/{name}.ipynb"), *args],
                          cwd=cwd, env=os.environ | environment(store_root), capture_output=True, text=True, timeout=timeout)


def parameters_cell(cells):
    """Where papermill puts parameters: its position and source."""
    at = [i for i, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", [])]
    assert len(at) == 1, "one cell is tagged as parameters"
    return at[0], cells[at[0]]["source"]


def run_here(name, cwd, store_root, parameters, monkeypatch):
    """The same in this process, which has imported everything already; the text of all outputs."""
    for key, value in environment(store_root).items(): monkeypatch.setenv(key, value)
    monkeypatch.chdir(cwd)
    nb, backend = read_nb(ROOT / f"nbs/{name}.ipynb"), matplotlib.get_backend()
    at, source = parameters_cell(nb.cells)
    lines = [f"{k} = {int(v) if v.isdecimal() else v!r}" for k, v in parameters.items() if v is not None]  # as papermill reads them
    try: CaptureShell(cwd).run_all(nb, exc_stop=True, inject_code="\n".join([source, *lines]), inject_idx=at)
    finally:
        plt.close("all")
        matplotlib.use(backend)
    return str([c.get("outputs") for c in nb.cells])


def run_head(name, until, **parameters):
    """The cells down to the first that calls `until`, here and now."""
    cells = [c for c in nbformat.read(ROOT / f"nbs/{name}.ipynb", 4).cells if c.cell_type == "code"]
    at, _ = parameters_cell(cells)
    end = next(i for i, c in enumerate(cells) if f"{until}(" in c.source)
    found = {}
    for cell in cells[:at + 1]: exec(cell.source, found)
    found.update(parameters)
    for cell in cells[at + 1:end + 1]: exec(cell.source, found)

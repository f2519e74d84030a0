"""The front page and the site are made from the notebooks.

`python tools/pages.py` writes README.md from `nbs/index.ipynb`; `make readme` executes that notebook first, so that its map of the
modules is that of today. mkdocs loads this file as its hooks (`mkdocs.yml`), for the chapters of the site and the pages in them.
"""
import posixpath
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
WINGS = {  # in the order of reading; every list of wings and notebooks below is derived from it
    "core": "What everything rests on: results that are computed once, the code behind them, stages, parallel work, checks of input.",
    "data": "Images from wherever they are kept, decoded once, split the same way on every machine.",
    "models": "The VQ-VAE, the diffusion transformer, flow matching, the training loop, and a VAE and a GAN for comparison.",
    "features": "Images as vectors of a pretrained network, and clusters of them.",
    "pruning": "Scores of training images, and the choice of those that are kept.",
    "metrics": "How good, how diverse and how new generated images are, and how sure of that one can be.",
    "study": "Methods × ratios × seeds: settings, the pipeline of one run, its costs, and where it is computed.",
    "report": "What figures, tables and verdicts are made of.",
    "notes": "Background: the paper's settings, and all pruners side by side.",
}


def chapters() -> dict:  # heading -> notebooks in the order of reading
    "Every notebook except the front page, wing by wing; those on top are commands if they export a module, worked examples, or figures."
    found = {wing: sorted((NBS / wing).glob("*.ipynb")) for wing in WINGS}
    notes, on_top = found.pop("notes"), {n: described(n)[2] for n in sorted(NBS.glob("*.ipynb")) if n.stem != "index"}
    is_worked = lambda n: n.stem.startswith(("worked_", "report_"))
    kinds = {n: "commands" if module else "worked" if is_worked(n) else "figures" for n, module in on_top.items()}
    commands, worked, figures = ([n for n, k in kinds.items() if k == kind] for kind in ("commands", "worked", "figures"))
    return {**found, "commands": commands, "worked examples": worked, "notes": notes, "figures": figures}


ABOUT = {**WINGS, "commands": "The library in the terminal.",
         "worked examples": "A task from beginning to end, on bundled images: copy one, and put your own in their place.",
         "figures": "One notebook for each figure and table of the paper, its claims, and the errata; run by papermill."}


def described(
    path:Path,  # a notebook
) -> tuple:  # its title, the line below it that begins with `>`, and the module it exports to ("" for none)
    "What a notebook says of itself. Raises a ValueError if it has no title or no line that begins with `>`."
    text = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type in ("markdown", "code"))
    title, what = re.search(r"^# (.+)\n+> (.+)$", text, re.M) or (None, None), re.search(r"^#\| default_exp (\S+)", text, re.M)
    if title[0] is None: raise ValueError(f"{path.name} has no title followed by a line that begins with '>'")
    return title[1], title[2], what[1] if what else ""


def module_map() -> str:  # Markdown, with links from nbs/
    "A chapter for each wing and a row for each notebook: link, module, and its own one-line description."
    parts = []
    for chapter, notebooks in chapters().items():
        rows = [f"### {chapter}\n\n{ABOUT[chapter]}\n\n| notebook | module | what |\n|---|---|---|"]
        for n in notebooks:
            path, (_, what, module) = n.relative_to(NBS), described(n)
            module = f"`diffprune.{module}`" if module else "–"
            rows.append(f"| [{path.with_suffix('').as_posix()}]({path.as_posix()}) | {module} | {what} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def from_root(
    text:str,  # Markdown with links from nbs/
) -> str:  # with links from the root of the repository
    "Links and images as README.md must have them; addresses and anchors stay as they are."
    return re.sub(r"(\]\()(?![a-z]+:|#)([^)\s]+)", lambda m: m[1] + posixpath.normpath(posixpath.join("nbs", m[2])), text)


def shown(
    cell,  # a cell of the front page
) -> list:  # pieces of Markdown
    "A cell as README.md shows it: prose, code unless it is marked `echo: false`, and results, but no progress bars."
    if cell.cell_type == "markdown": return [from_root(cell.source)]
    if cell.cell_type != "code" or cell.source.startswith("#| hide"): return []
    code = [] if re.match(r"#\| echo: *false", cell.source) else [f"```python\n{cell.source}\n```"]
    results = [o.data for o in cell.outputs if "data" in o]
    return code + [from_root(d["text/markdown"]) if "text/markdown" in d else f"```\n{d['text/plain']}\n```" for d in results]


def readme() -> str:  # the text of README.md
    "README.md as `nbs/index.ipynb` gives it."
    cells = nbformat.read(NBS / "index.ipynb", 4).cells
    pieces = [piece.strip() for c in cells for piece in shown(c)]
    return "\n\n".join(["<!-- Made from nbs/index.ipynb by `make readme`: edit it there. -->", *pieces]) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")

"""Habits of the house that can be read off the source: rhythm, docments, one dialect."""
import ast
import io
import json
import re
import tokenize
from collections import Counter
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
name = lambda path: f"{path.parent.name}-{path.stem}"


def exported(cell): return cell.cell_type == "code" and re.match(r"\s*#\| *exporti?\b", cell.source) is not None


def imports_only(source):
    "Whether a cell does nothing but import."
    return all(isinstance(s, (ast.Import, ast.ImportFrom, ast.Try)) for s in ast.parse(source).body)


@pytest.fixture(params=NOTEBOOKS, ids=name)
def cells(request): return nbformat.read(request.param, 4).cells


def test_what_is_exported_is_shown_or_explained_at_once(cells):
    definitions = [i for i, c in enumerate(cells) if exported(c) and not imports_only(c.source)]
    bare = [cells[i].source.splitlines()[1] for i in definitions if i + 1 == len(cells) or exported(cells[i + 1])]
    assert not bare, "followed neither by prose nor by an example nor by an assertion: " + "; ".join(bare)


def test_exported_cells_are_short(cells):
    long = [c.source.splitlines()[1] for c in cells if exported(c) and len(c.source.splitlines()) > 46]
    assert not long, f"over 45 lines: {long}"


def functions(tree, inside=()):
    "Public functions and methods with their qualified names; not the functions within functions."
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"): yield from functions(node, (*inside, node.name))
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"): yield ".".join((*inside, node.name)), node


MAKER = ["stage", "artifacts", "folder", "context"]  # of every `make_*`, explained once in study/makers


def undocumented(source):
    "Parameters without a docment, and functions without a docstring."
    comments = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}
    for called, f in functions(ast.parse(source)):
        decorators = {n.id for d in f.decorator_list for n in ast.walk(d) if isinstance(n, ast.Name)}
        if ast.get_docstring(f) is None: yield f"{called} has no docstring"
        # typer: help= says it
        if any(isinstance(n, ast.Attribute) and n.attr == "command" for d in f.decorator_list for n in ast.walk(d)): continue
        args = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, *filter(None, [f.args.vararg, f.args.kwarg])]
        if args and (args[0].arg in ("self", "cls") or "patch" in decorators): args = args[1:]
        if [a.arg for a in args[:4]] == MAKER: args = args[4:]
        missing = [a.arg for a in args if a.lineno not in comments]
        if missing: yield f"{called}: no docment for {', '.join(missing)}"


def test_public_functions_have_docments(cells):
    found = [line for c in cells if exported(c) for line in undocumented(c.source)]
    assert not found, "\n".join(found)


def test_signatures_have_one_dialect(cells):
    spaced = []
    for c in cells:
        if not exported(c): continue
        lines = c.source.splitlines()
        for node in ast.walk(ast.parse(c.source)):
            if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
                line, at = lines[node.annotation.lineno - 1], node.annotation.col_offset
                if line[at - 1] == " ": spaced.append(line.strip())
    assert not spaced, "written `name:type=default,  # meaning` elsewhere: " + "; ".join(spaced)


WORDS = re.compile(r"[A-Za-z_]\w*")


def words_of(path):
    "The words in a file; of a notebook, those in its code."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb": text = "\n".join(c.source for c in nbformat.reads(text, 4).cells if c.cell_type == "code")
    return set(WORDS.findall(text))


def used_only_at_home():
    "Public functions and constants that no other module, notebook, test, benchmark, tool or recipe mentions. What is registered is used."
    users = {p: words_of(p) for folder in ("nbs", "tests", "benchmarks", "tools") for p in (ROOT / folder).rglob("*.*")
             if p.suffix in (".py", ".ipynb") and p != Path(__file__)}
    users[ROOT / "CONTRIBUTING.md"] = words_of(ROOT / "CONTRIBUTING.md")
    mentions = Counter(word for words in users.values() for word in words)
    for notebook in NOTEBOOKS:
        for cell in nbformat.read(notebook, 4).cells:
            if not exported(cell): continue
            for node in ast.parse(cell.source).body:
                names = [node.name] if isinstance(node, ast.FunctionDef) and not node.decorator_list else []
                if isinstance(node, ast.Assign): names = [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
                yield from (f"{notebook.parent.name}/{notebook.stem}: {n}" for n in names if not n.startswith("_") and mentions[n] == 1)


# Names of modules that are being worked on; the list only ever gets shorter.
WITHOUT = {
    "features/03_duplicates": "group_duplicates keep_order near_by_hash",
    "features/04_feature_store": "REASON_BYTES feature_folder pixel_records read_contents",
    "pruning/12_outputs": "catalogue_hf kept_rows",
}


def test_names_used_only_at_home_have_an_underscore():
    known = {f"{notebook}: {name}" for notebook, names in WITHOUT.items() for name in names.split()}
    assert sorted(set(used_only_at_home()) - known) == [], "names that nothing else uses begin with an underscore"


def test_temporary_folders_are_removed():
    leaving = [p.relative_to(ROOT).as_posix() for folder in ("nbs", "tests", "benchmarks") for p in sorted((ROOT / folder).rglob("*.*"))
               if p.suffix in (".py", ".ipynb") and p != Path(__file__)
               and "mkdtemp()" in (text := p.read_text(encoding="utf-8")) and "rmtree(" not in text]
    assert not leaving, f"tempfile.TemporaryDirectory removes itself: {leaving}"


def test_cells_have_ids_of_their_own():
    raw = {n: [c["id"] for c in json.loads(n.read_text(encoding="utf-8"))["cells"]] for n in NOTEBOOKS}
    assert {name(n): sorted({i for i in ids if ids.count(i) > 1}) for n, ids in raw.items() if len(set(ids)) < len(ids)} == {}

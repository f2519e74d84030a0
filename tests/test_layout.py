"""The shape of the repository: order of the layers, clean figure notebooks, a README that knows every notebook."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
WINGS = ("core", "data", "models", "features", "pruning", "metrics", "study", "report")  # imports go from right to left
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
IN_WINGS = [n for w in WINGS for n in sorted((ROOT / "nbs" / w).glob("*.ipynb"))]
ON_TOP = [n for n in NOTEBOOKS if n.parent.name == "nbs"]
PROGRAMS = [ROOT / "nbs/cli.ipynb", ROOT / "nbs/worker.ipynb"]
WORKED = [n for n in ON_TOP if n.stem.startswith("worked_")]
FIGURES = [n for n in ON_TOP if n not in (*PROGRAMS, *WORKED) and n.stem != "index"]


def module_of(path):
    "The module that a notebook exports to, such as `core.store`; None for one that exports nothing."
    source = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
    found = re.search(r"^#\| default_exp ([\w.]+)", source, re.M)
    return found and found[1]


def imports_of(module):
    "The diffprune modules that a module imports at any level, such as `core.store`."
    here = module.split(".")
    for node in ast.walk(ast.parse((ROOT / "diffprune" / f"{'/'.join(here)}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*here[:-node.level], *filter(None, (node.module or "").split("."))]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "diffprune":
            base = node.module.split(".")[1:]
        else: continue
        for a in node.names:
            whole = ".".join([*base, a.name])
            yield whole if (ROOT / "diffprune" / f"{whole.replace('.', '/')}.py").is_file() else ".".join(base)


def test_every_wing_is_numbered_in_the_order_of_reading():
    for wing in WINGS:
        numbers = [n.name[:2] for n in IN_WINGS if n.parent.name == wing]
        assert numbers == [f"{i:02d}" for i in range(len(numbers))]
    assert {n.parent.name for n in NOTEBOOKS} == {*WINGS, "notes", "nbs"}


def test_a_module_is_named_as_its_notebook():
    for n in IN_WINGS: assert module_of(n) in (None, f"{n.parent.name}.{n.stem[3:]}")


def test_imports_go_downhill_between_wings_and_within():
    rank = {module_of(n): i for i, n in enumerate([*IN_WINGS, *PROGRAMS]) if module_of(n)}
    for module, place in rank.items():
        for used in imports_of(module):
            assert used in rank, f"{module} imports {used}, which no notebook exports"
            assert rank[used] < place, f"{module} imports {used}, which comes after it"


def test_references_to_notebooks_lead_somewhere():
    known = {f"{n.parent.name}/{n.stem}" for n in NOTEBOOKS}
    for n in NOTEBOOKS:
        mentioned = {m[0] for m in re.finditer(rf"\b(?:{'|'.join(WINGS)})/\d\d_\w+", n.read_text(encoding="utf-8"))}
        assert mentioned <= known, f"{n.name} refers to {sorted(mentioned - known)}"


def test_every_module_has_a_notebook():
    files = [
        p.relative_to(ROOT / "diffprune").with_suffix("")
        for p in (ROOT / "diffprune").rglob("*.py")
        if p.name not in ("__init__.py", "_modidx.py")
    ]
    assert {".".join(f.parts) for f in files} == {module_of(n) for n in NOTEBOOKS} - {None}


def test_readme_names_every_notebook():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [n.name for n in NOTEBOOKS if n.name not in text and n.stem != "index"]
    assert not missing, f"README.md does not mention {missing}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_notebook_is_small_and_titled(path):
    assert path.stat().st_size < 1_000_000
    text = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"]
    assert text[0].startswith("# ")


@pytest.mark.parametrize("path", FIGURES, ids=lambda p: p.stem)
def test_figure_notebook_is_thin(path):
    code = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert len(code) <= 10
    assert not any(re.search(r"^def ", c.source, re.M) for c in code)
    parameters_are_literals(code)


def parameters_are_literals(code):
    "One cell has the tag, and literals only, so that papermill can replace them."
    parameters = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1
    for node in ast.parse(parameters[0].source).body:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)


@pytest.mark.parametrize("path", WORKED, ids=lambda p: p.stem)
def test_worked_notebook_is_a_text_with_short_cells(path):
    cells = nbformat.read(path, 4).cells
    code = [c for c in cells if c.cell_type == "code"]
    parameters_are_literals(code)
    assert "skip_exec: true" in cells[0].source, "run by papermill, not by nbdev_test"
    assert "code code code" not in " ".join(c.cell_type for c in cells), "prose between cells"
    long = [c.source.splitlines()[0] for c in code if len(c.source.splitlines()) > 20 and not re.match("from|import", c.source)]
    assert not long, f"over 20 lines: {long}"
    assert sum(c.source.count("assert ") + c.source.count("test_") for c in code) >= 4, "claims are asserted where they stand"
    assert any("image/png" in o.get("data", {}) or "image/jpeg" in o.get("data", {}) for c in code for o in c.outputs), "plots are stored"


def test_parameters_tag_survives_cleaning(tmp_path):
    copy = tmp_path / "fig.ipynb"
    copy.write_text(FIGURES[0].read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, "-c", "import sys; from nbdev.clean import nbdev_clean; nbdev_clean(sys.argv[1])", str(copy)],
                   check=True, cwd=ROOT)
    cells = json.loads(copy.read_text(encoding="utf-8"))["cells"]
    assert any("parameters" in c["metadata"].get("tags", []) for c in cells)


def definitions():
    "(module, statement, names that it defines) at the top of every module; without what `patch` adds to classes."
    for path in sorted((ROOT / "diffprune").rglob("*.py")):
        if path.name in ("_modidx.py", "__init__.py"): continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not patched(node) else []
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            yield path.relative_to(ROOT / "diffprune").with_suffix("").as_posix().replace("/", "."), node, names


def patched(node):
    "The names of the classes that a function is a method of by `patch`; none for other statements."
    if not any(isinstance(n, ast.Name) and n.id == "patch" for d in getattr(node, "decorator_list", []) for n in ast.walk(d)): return set()
    return {n.id for n in ast.walk(node.args.args[0].annotation) if isinstance(n, ast.Name)}


def public(name): return not name.startswith("_") and name != "log"


def test_a_public_name_means_one_thing():
    homes = {}
    for module, _, names in definitions():
        for name in filter(public, names): homes.setdefault(name, set()).add(module)
    assert len(homes) > 300
    assert {n: sorted(h) for n, h in homes.items() if len(h) > 1} == {}


def test_a_name_is_imported_from_its_home():
    homes, elsewhere = {name: module for module, _, names in definitions() for name in filter(public, names)}, []
    for module in {module for module, _, _ in definitions()}:
        for node in ast.walk(ast.parse((ROOT / "diffprune" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.level or (node.module or "").startswith("diffprune")): continue
            source = ".".join([*module.split(".")[:-node.level], *filter(None, (node.module or "").split("."))]) if node.level \
                else node.module.removeprefix("diffprune.")
            elsewhere += [f"{module}: {a.name} from {source}" for a in node.names
                          if homes.get(a.name, source) != source and source != "metrics.evaluate"]  # which gathers the metrics for users
    assert elsewhere == []


def test_methods_are_patched_at_home():
    classes = {(module, node.name) for module, node, _ in definitions() if isinstance(node, ast.ClassDef)}
    methods = [(module, node.name, owner) for module, node, _ in definitions() for owner in patched(node)]
    assert len(methods) > 100
    assert [m for m in methods if (m[0], m[2]) not in classes] == []


def test_constructor_attributes_are_set_at_home():
    fields, homes = {}, {}  # attribute -> classes; class -> module
    for module, node, _ in definitions():
        if not isinstance(node, ast.ClassDef): continue
        homes[node.name] = module
        for n in node.body:
            if isinstance(n, ast.AnnAssign): fields.setdefault(n.target.id, set()).add(node.name)
        for init in (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"):
            for n in ast.walk(init):
                if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and ast.unparse(n.value) == "self":
                    fields.setdefault(n.attr, set()).add(node.name)
    assert {"store", "root", "methods"} <= set(fields)
    found = []
    for module, node, _ in definitions():
        for n in ast.walk(node):
            if not isinstance(n, ast.Attribute) or not isinstance(n.ctx, ast.Store): continue
            if ast.unparse(n.value) in ("self", "cls", "bar", "entry", "node"): continue  # of tqdm, tarfile, ast
            if n.attr in fields and module not in {homes[c] for c in fields[n.attr]}: found.append(f"{module}: {ast.unparse(n)}")
    assert found == []

"""What readers see outside the notebooks: README.md as the front page gives it, the recipes of CONTRIBUTING.md, links, and the site."""
import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tools import pages  # noqa: E402

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "findings/README.md", "papers_figures/README.md")]
RECIPES = re.findall(r"^## Add a ([\w ]+)\n(.*?)(?=^## )", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)


def test_readme_is_what_the_front_page_gives():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == pages.readme(), "run `make readme`"


def test_the_map_is_that_of_the_notebooks():
    assert pages.from_root(pages.module_map()) in (ROOT / "README.md").read_text(encoding="utf-8"), "run `make readme`"


def test_the_map_has_every_notebook_once():
    links = re.findall(r"^\| \[[^]]+\]\((.+?\.ipynb)\)", pages.module_map(), re.M)
    assert sorted(links) == sorted(n.relative_to(pages.NBS).as_posix() for n in pages.NBS.rglob("*.ipynb") if n.stem != "index")


def test_links_of_the_front_page_lead_from_the_root():
    text = "[a](core/00_store.ipynb) ![b](../papers_figures/b.png) [c](https://example.org) [d](#map)"
    assert pages.from_root(text) == "[a](nbs/core/00_store.ipynb) ![b](papers_figures/b.png) [c](https://example.org) [d](#map)"


def test_front_page_shows_code_unless_told_not_to_and_results_always():
    result = nbformat.v4.new_output("execute_result", data={"text/plain": "42"})
    code = lambda source: nbformat.v4.new_code_cell(source, outputs=[result, nbformat.v4.new_output("stream", text="noise")])
    assert pages.shown(code("6 * 7")) == ["```python\n6 * 7\n```", "```\n42\n```"]
    assert pages.shown(code("#| echo: false\n6 * 7")) == ["```\n42\n```"]
    assert pages.shown(code("#| hide\n6 * 7")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.parent.name + "-" + p.stem)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```|`[^`\n]*`(?!\])", "", path.read_text(encoding="utf-8"), flags=re.S)
    links = [*re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text), *re.findall(r'(?:src|href)="(?![a-z]+:|#)([^"#]+)', text)]
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


def python_of(recipe): return "\n\n".join(re.findall(r"```python\n(.*?)```", recipe, re.S))


def test_there_are_four_recipes():
    assert [name for name, _ in RECIPES] == ["pruner", "data set", "metric", "figure"]


WORKS = {
    "pruner": """
from diffprune import make_pruner, method_names
from diffprune.pruning.registry import display_name, method_style
assert "toy_lite0" in method_names()
X = np.arange(1, 9)[:, None] * np.ones((1, 2))
assert make_pruner("toy_lite0").fit(X).select(0.5).indices.tolist() == [0, 1, 2, 3]
assert make_pruner("toy_lite0_inv").fit(X).select(0.5).indices.tolist() == [4, 5, 6, 7]
assert "Toy" in display_name("toy_lite0") and method_style("toy_lite0") != method_style("cluster_lite0")
""",
    "data set": """
from diffprune import Store, load_dataset
data = load_dataset("stripes", store=Store(sys.argv[1]), progress=False)
assert data.images.shape == (200, 3, 16, 16) and list(data.classes) == ["thin", "thick"]
assert len(load_dataset("stripes", split="val", store=Store(sys.argv[1]), progress=False).images) == 50
assert len(load_dataset("stripes", n_train=30, store=Store(sys.argv[1]), progress=False).images) == 30
""",
    "metric": """
assert mean_shift(np.zeros((9, 2)), np.full((7, 2), 3.)) == 18 ** .5
try: mean_shift(np.zeros((9, 2)), np.zeros((9, 3)))
except ValueError: pass
else: raise AssertionError("other dimensions were taken")
"""}


@pytest.mark.parametrize("name", WORKS)
def test_recipe_works(name, tmp_path):
    code = "import sys\n" + python_of(dict(RECIPES)[name]) + WORKS[name]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_recipe_of_a_figure_names_what_there_is():
    code = ast.parse(python_of(dict(RECIPES)["figure"]))
    found = [(node.module, a.name) for node in code.body if isinstance(node, ast.ImportFrom) for a in node.names]
    assert found and all(hasattr(importlib.import_module(module), name) for module, name in found)


NEEDED = ("mkdocs", "material", "mkdocs_jupyter", "mkdocstrings", "math_core", "bs4")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if MISSING: pytest.skip(f"{', '.join(MISSING)} not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_site_has_every_notebook_and_can_be_searched(site):
    notebooks = [n.relative_to(ROOT).with_suffix("") for chapter in pages.chapters().values() for n in chapter]
    assert not [n for n in notebooks if not (site / n / "index.html").is_file()]
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert all(f'"{n.as_posix()}/"' in index for n in notebooks)


def test_site_documents_the_front_door(site):
    import diffprune
    page = (site / "reference" / "index.html").read_text(encoding="utf-8")
    missing = [name for name in diffprune.__all__ if f'id="diffprune.{name}"' not in page]
    assert not missing
    assert "height and width in pixels" in page  # a comment beside a parameter of `load_dataset`
    assert 'id="diffprune.ImageDataset.subset"' in page  # a method that `patch` adds


def test_site_asks_other_hosts_for_nothing(site):
    tags = r'<(?:script|img|iframe)[^>]+src="?https?:|<link[^>]+rel="?(?:stylesheet|preconnect|preload)[^>]+https?:'
    asked = re.compile(tags + r'|@import|url\(["\']?https?:')
    texts = {p: p.read_text(encoding="utf-8") for p in site.rglob("*") if p.suffix in (".html", ".css")}
    assert texts and not [f"{p.relative_to(site)}: {asked.search(text)[0]}" for p, text in texts.items() if asked.search(text)]


def test_site_draws_formulas_without_scripts(site):
    import bs4
    page = bs4.BeautifulSoup((site / "nbs" / "models" / "02_flow" / "index.html").read_text(encoding="utf-8"), "html.parser")
    prose = page.select(".jp-RenderedMarkdown")
    assert sum(len(p.find_all("math")) for p in prose) > 20
    assert not [p for p in prose if "$" in p.get_text()]
    assert not page.find_all("script", string=re.compile("MathJax"))

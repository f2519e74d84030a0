"""What mkdocs builds the site from (`mkdocs.yml`): the repository itself, at the paths it has there, so that links work in both."""
import logging
import posixpath
import re
from pathlib import Path

import bs4
import math_core
import nbformat
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url
from pages import ROOT, chapters, described

from diffprune import __all__ as front_door

log = logging.getLogger("mkdocs.hooks.site")  # warnings fail the build: it is strict
PREPARED = ROOT / "_docs" / "notebooks"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "papers_figures", "benchmarks", "findings")
to_mathml = math_core.LatexToMathML(fancy_error=False)
STYLE, NOTEBOOK_CSS = re.compile(r"<style[^>]*>(.*?)</style>", re.S), "assets/notebooks.css"
ELSEWHERE = re.compile("mathjax|mermaid", re.I)  # scripts that would be fetched from other hosts
styles = {}  # every style that a notebook came with, once
MATH = re.compile(r"\$\$(.+?)\$\$|\$(?! )([^$]+?)\$", re.S)


def on_config(config):
    "The chapters: notebooks wing by wing, figures, reference, and the project's own pages."
    entry = lambda n: {described(n)[0]: n.relative_to(ROOT).as_posix()}
    notebooks = {chapter: [entry(n) for n in found] for chapter, found in chapters().items()}
    benchmarks = [{p.parent.name: p.relative_to(ROOT).as_posix()} for p in sorted(ROOT.glob("benchmarks/*/README.md"))]
    figures = [{"Index of figures and tables": "papers_figures/README.md"}, *notebooks.pop("figures")]
    project = ["CONTRIBUTING.md", "CHANGELOG.md", {"Findings": "findings/README.md"}, {"Benchmarks": benchmarks}]
    config.nav = [{"Home": "README.md"}, {"Notebooks": [{c: found} for c, found in notebooks.items()]}, {"Figures": figures},
                  {"Reference": "reference.md"}, {"Project": project}]


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files, config):
    "Every page and whatever it may link to, and the notebooks without what is meant for nbdev alone."
    add = lambda uri, folder: files.append(File(uri.as_posix(), str(folder), config.site_dir, config.use_directory_urls))
    found = [p for name in PAGES for p in ([ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*")))]
    for path in found:
        if path.is_file() and "__pycache__" not in path.parts: add(path.relative_to(ROOT), ROOT)
    reference = ["# Reference", "Everything here comes from the front door: `from diffprune import load_dataset`, and so on."]
    files.append(File.generated(config, "reference.md", content="\n\n".join([*reference, *(f"::: diffprune.{n}" for n in front_door)])))
    for path in [n for notebooks in chapters().values() for n in notebooks]:
        prepare(path)
        add(path.relative_to(ROOT), PREPARED)


def prepare(
    path:Path,  # a notebook
):
    "Copy a notebook without hidden cells, front matter and directives."
    nb = nbformat.read(path, 4)
    hidden = lambda c: c.cell_type == "raw" or re.match(r"\s*#\| *(hide|default_exp)", c.source)
    nb.cells = [c for c in nb.cells if not hidden(c)]
    for c in nb.cells:
        if c.cell_type == "code": c.source = re.sub(r"^#\|.*\n?", "", c.source, flags=re.M).strip("\n")
    copy = PREPARED / path.relative_to(ROOT)
    copy.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, copy)


def on_page_content(html, page, config, files):
    "Formulas as MathML, which browsers draw without scripts or fonts from elsewhere, and links between notebooks as links between pages."
    notebook = page.file.src_uri.endswith(".ipynb")
    styles.update(dict.fromkeys(STYLE.findall(html)))
    soup = bs4.BeautifulSoup(STYLE.sub("", html), "html.parser")
    for prose in soup.select(".jp-RenderedMarkdown") if notebook else [soup]:
        for text in [t for t in prose.find_all(string=MATH) if not t.find_parent(["code", "pre"])]:
            text.replace_with(bs4.BeautifulSoup(with_mathml(text, page), "html.parser"))
        for link in prose.find_all(["a", "img"]) if notebook else []: relink(link, page, files)
    if notebook:
        soup.insert(0, soup.new_tag("link", rel="stylesheet", href=get_relative_url(NOTEBOOK_CSS, page.url)))
        for button in soup.select(".zeroclipboard-container, .clipboard-copy-txt"): button["data-search-exclude"] = ""
        for script in [*soup.find_all("script", string=ELSEWHERE), *soup.find_all("script", src=True)]: script.decompose()
    return str(soup)


def on_post_build(config):
    "The style of all notebooks, once; nbconvert puts it into each of them."
    Path(config.site_dir, NOTEBOOK_CSS).write_text("\n".join(styles), encoding="utf-8")


def with_mathml(
    text:str,  # prose with formulas between dollar signs
    page,  # where it stands
) -> str:  # HTML
    "Prose with its formulas as MathML; a formula that cannot be read is a warning."
    def formula(found):
        tex = found[1] or found[2]
        if r"\tag" in tex: tex = rf"\begin{{equation}}{tex}\end{{equation}}"
        try: return to_mathml.convert_with_local_state(tex, displaystyle=bool(found[1]))
        except math_core.LatexError as error:
            log.warning(f"{page.file.src_uri}: the formula {tex!r} cannot be read: {error}")
            return found[0]
    pieces, end = [], 0
    for found in MATH.finditer(text):
        pieces += [bs4.dammit.EntitySubstitution.substitute_html(text[end:found.start()]), formula(found)]
        end = found.end()
    return "".join([*pieces, bs4.dammit.EntitySubstitution.substitute_html(text[end:])])


def relink(link, page, files):
    "Point a link in a notebook at the page made of its target; a target that the site has not is a warning."
    key = "href" if link.name == "a" else "src"
    target, hash_, anchor = link.get(key, "").partition("#")
    if not target or re.match(r"[a-z]+:", target): return
    found = files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target)))
    if found is None: log.warning(f"{page.file.src_uri}: the link {target!r} leads nowhere")
    else: link[key] = found.url_relative_to(page.file) + hash_ + anchor

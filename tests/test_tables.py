"""Tables: rounding, escaping, files and the index."""
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprune.report.figures import figure_folder
from diffprune.report.tables import (
    escape_latex,
    figures_index,
    format_value,
    mean_and_spread,
    save_table,
    to_latex,
    to_markdown,
    wide_table,
)

ORIGIN = dict(dataset="folder:/my photos", preset="cpu", seeds=[0], device="cpu", commit="abc", created="2026-01-01")


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(1, 5))
def test_formatting_keeps_the_significant_digits(value, digits):
    text = format_value(value, digits)
    assert "e" not in text
    assert abs(float(text) - value) <= 0.51*10.0**(np.floor(np.log10(value)) - digits + 1) or abs(float(text) - value) <= 0.5


@pytest.mark.parametrize("value, text", [(None, "–"), (float("nan"), "–"), (pd.NA, "–"), (float("inf"), "∞"), (True, "yes"), (7, "7"),
                                         ("a|b", "a|b")])
def test_formatting_of_odd_values(value, text):
    assert format_value(value) == text


def test_spread_is_half_the_range():
    assert mean_and_spread([1.0, 2.0, 4.0]) == "2.33 ± 1.50"
    assert mean_and_spread([np.nan, np.nan]) == "–"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abAB019 _%&#{}~^\\$-.±", max_size=30))
def test_escaped_text_is_safe_for_latex(text):
    out = escape_latex(text)
    outside = re.sub(r"(?<!\\)\$[^$]*(?<!\\)\$", "", out)
    outside = re.sub(r"\\textbackslash\{\}|\\textasciitilde\{\}|\\textasciicircum\{\}|\\[&%#_{}$]", "", outside)
    if text.count("$") == 0: assert not re.search(r"[&%#_{}~^]", outside)


def test_markdown_escapes_pipes_and_lines():
    text = to_markdown(pd.DataFrame(dict(a=["x|y", "two\nlines"])))
    assert text.splitlines()[2] == "| x\\|y |" and "two lines" in text


def test_latex_aligns_numbers_right():
    shown = pd.DataFrame(dict(method=["Random", "EL2N$^{-1}$"], fd=["5.69 ± 0.03", "–"], n=[1, 2]))
    assert r"\begin{tabular}{lrr}" in to_latex(shown)


def test_wide_table_keeps_the_order_and_marks_what_is_missing():
    table = pd.DataFrame([dict(method=m, pruning_ratio=r, seed=0, name=n, value=1.0) for m, r, n in
                          (("unpruned", 0.0, "FD"), ("random", 0.9, "FD"), ("random", 0.9, "recall"), ("el2n", 0.5, "FD"))])
    shown = wide_table(table, ["method", "pruning_ratio"], "name")
    assert shown.method.tolist() == ["unpruned", "Random", "EL2N"]
    assert shown.recall.tolist() == ["–", "1.00", "–"]


def test_validation_images_have_no_ratio_and_stay():
    table = pd.DataFrame([dict(method="validation", pruning_ratio=np.nan, seed=pd.NA, name="FD", value=0.1)])
    assert wide_table(table, ["method", "pruning_ratio"], "name").loc[0].tolist()[0] == "validation images"


def test_empty_table_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="empty"): save_table(pd.DataFrame(dict(a=[])), "t", ORIGIN, root=tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_index_lists_tables_without_pictures(tmp_path):
    save_table(pd.DataFrame(dict(a=[1])), "table1", ORIGIN, root=tmp_path)
    text = figures_index(tmp_path).read_text()
    assert "## folder_my_photos, preset `cpu`" in text and "[table](folder_my_photos/cpu/table1.md)" in text and "abc" in text
    assert "<img" not in text


def test_index_is_written_where_the_figures_are(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFPRUNE_FIGURES", str(tmp_path))
    assert figure_folder("digits", "cpu").parents[1] == figures_index().parent == tmp_path

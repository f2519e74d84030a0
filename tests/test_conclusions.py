"""The two notebooks that need most runs: the claims and the errata."""
import pytest
from figure_runs import LONGEST, run_alone


@pytest.mark.parametrize("name", LONGEST)
def test_figure_notebook_runs_alone(name, tmp_path, store_root, monkeypatch): run_alone(name, tmp_path, store_root, monkeypatch)

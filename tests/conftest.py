"""One store for the whole test session and all its processes, so that what several tests need is computed once and nothing of the user's
is touched."""
import os
import sys

import pytest

from diffprune.core.store import Store


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: compares a GPU with the CPU; skipped where there is none, and part of `make gpu`")


@pytest.fixture(scope="session")
def store_root(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "store"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture
def store(store_root):
    return Store(store_root)


@pytest.fixture
def fresh_store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def same_threads():
    "No test leaves PyTorch with another number of threads: that would change the rounding, and so codes, of the tests after it."
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if before: assert sys.modules["torch"].get_num_threads() == before

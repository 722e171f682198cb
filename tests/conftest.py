"""What every test shares."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("pliant") is None:
    raise pytest.UsageError("pliant is not installed: run `make test`, or `pip install -e '.[test]'` first")

from pliant.common.spinning import bound_spinning

bound_spinning()  # tests share the machine; it counts only before torch is loaded, so nothing above loads it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first and the laws, which are many and short, last: so that workers end at the same time."""
    order = ("test_sweep.py", "test_runs.py", "test_fork.py", "test_pool.py", "test_claims.py", "test_dashboard.py")
    rank = {name: place for place, name in enumerate(order)} | {"test_laws.py": 1000}
    items.sort(key=lambda item: rank.get(item.path.name, 100))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two busy torch processes of two threads each slow each other down twenty-fold."""
    import torch

    torch.set_num_threads(1)

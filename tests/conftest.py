"""What every test shares."""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("pliant") is None:
    raise pytest.UsageError("pliant is not installed: run `make test`, or `pip install -e '.[test]'` first")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two busy torch processes of two threads each slow each other down twenty-fold."""
    torch.set_num_threads(1)

"""The statistics of the learning study, against numbers worked out elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).resolve().parent.parent / "studies" / "learning.py"


@pytest.fixture(scope="module")
def learning() -> ModuleType:
    spec = importlib.util.spec_from_file_location("learning_study", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["learning_study"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_intervals_are_those_of_students_t(learning: ModuleType) -> None:
    # scipy.stats.t.interval(0.95, 4, loc=3, scale=sem) of 1 … 5: 3 ± 1.96324
    assert learning.interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3.0, 1.96324), abs=1e-3)


def test_differences_are_welchs(learning: ModuleType) -> None:
    # Welch on (1 … 5) and (2, 4, 6, 8, 10): variances 2.5 and 10, standard error sqrt(2.5), 5.88 degrees of freedom,
    # rounded down to 5: t = 2.571.
    gap, half = learning.difference([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0])
    assert (gap, half) == pytest.approx((-3.0, 2.571 * 2.5**0.5))


def test_the_training_score_looks_at_the_last_fifth(learning: ModuleType) -> None:
    episodes = [[100, 1.0], [800, 2.0], [801, 10.0], [1000, 20.0]]
    assert learning.training_score({"steps": 1000, "episodes": episodes}) == 15.0
    assert learning.training_score({"steps": 10_000, "episodes": episodes}) == 20.0


def test_every_task_has_settings_for_both_libraries(learning: ModuleType) -> None:
    shared = {"lr", "batch", "buffer", "starts", "gamma", "hidden", "replay_ratio", "update_every"}
    for name, task in learning.TASKS.items():
        assert shared <= task.settings.keys(), name
        assert (task.settings["replay_ratio"] * task.settings["update_every"]).is_integer(), name
        assert task.seeds >= 5

"""What every test shares."""

from __future__ import annotations

import importlib.util

import hypothesis
import pytest
from rotation import VARIABLE, find_seed, generator, pick

if importlib.util.find_spec("pliant") is None:
    raise pytest.UsageError("pliant is not installed: run `make test`, or `pip install -e '.[test]'` first")

from pliant.common.spinning import bound_spinning

bound_spinning()  # tests share the machine; it counts only before torch is loaded, so nothing above loads it

# A test that takes long on a busy machine is no failure.
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")


# How many cases of each parametrised test of a file, or of a class in it, `make test` runs. Measured: with all their
# cases these files take most of the time of `make test-all`, because most of their cases start a run or a process.
CASES_IN_QUICK_RUN = {
    "test_attach.py": 9,
    "test_attribution.py": 1,
    "test_bad_command_lines.py": 2,
    "test_baselines.py": 3,
    "test_board.py": 3,
    "test_checkpoint.py": 6,
    "test_claims.py": 3,
    "test_commands.py": 2,
    "test_config.py": 2,
    "test_deep_monitors.py": 1,
    "test_drift.py": 1,
    "test_folder.py": 1,
    "test_fork.py": 1,
    "test_heads.py": 8,
    "test_hostile_files.py": 2,
    "test_monitors.py": 2,
    "test_monitors.py::TestEveryMonitorAlone": 13,  # every monitor with one of its two agents
    "test_noise.py": 1,
    "test_not_finite.py": 1,
    "test_numbers.py": 8,
    "test_own_envs.py": 2,
    "test_pool.py": 1,
    "test_priming.py": 2,
    "test_probe.py": 4,
    "test_refusals.py": 2,
    "test_report.py": 2,
    "test_runs.py": 1,
    "test_stopping.py": 1,
    "test_studies.py": 1,
    "test_threads.py": 2,
    "test_units.py": 4,
}


def pytest_report_header() -> str:
    return f"cases of the quick run chosen by {VARIABLE}={find_seed()}"


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_cases(items)
    order_by_length(items)


def mark_cases(items: list[pytest.Item]) -> None:
    """Mark as `full` all cases of parametrised tests but those that the quick run takes."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if hasattr(item, "callspec"):
            cases.setdefault(f"{item.path.name}::{item.nodeid.partition('[')[0].partition('::')[2]}", []).append(item)
    for name, same in cases.items():
        file, _, test = name.partition("::")
        group = f"{file}::{test.partition('::')[0]}"
        if (number := CASES_IN_QUICK_RUN.get(group, CASES_IN_QUICK_RUN.get(file))) is None:
            continue
        ready = [item for item in same if not any(mark.name in ("full", "slow") for mark in item.iter_markers())]
        first = generator(name).randrange(len(same))
        taken = {item.nodeid for item in pick(ready, number, first)}
        for item in same:
            if item.nodeid not in taken:
                item.add_marker("full")


def order_by_length(items: list[pytest.Item]) -> None:
    """Long tests first and the laws, which are many and short, last: so that workers end at the same time."""
    order = ("test_sweep.py", "test_runs.py", "test_fork.py", "test_pool.py", "test_claims.py", "test_dashboard.py")
    rank = {name: place for place, name in enumerate(order)} | {"test_laws.py": 1000}
    items.sort(key=lambda item: rank.get(item.path.name, 100))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two busy torch processes of two threads each slow each other down twenty-fold."""
    import torch

    torch.set_num_threads(1)

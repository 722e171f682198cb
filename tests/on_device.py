"""A plugin of pytest: agents are built on another device, and the outcome of each test is written as it comes.

    python -m pytest -p on_device --agents-on cuda --outcomes laws.jsonl tests/laws/test_laws.py

Outcomes are lines of JSON: test, outcome, seconds and, of a failure, its reason and place. Each line is flushed, so a
session that is killed leaves all tests that it has finished. The most important tests run first.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

# Substrings of test ids, the most important first; others follow.
ORDER = (
    "TestLaws::test_a_seed",
    "test_an_update_never_waits",
    "TestLaws::test_edited",
    "TestEveryMonitorAlone",
    "test_replay.py",
    "test_methods_draw",
    "test_every_ordered_pair",
    "test_effects.py",
    "test_graph.py",
)


def put_agents_on(device: str) -> None:
    """Make this device the default of agents that are built or loaded from now on."""
    from pliant.agents import Agent

    for function in (Agent.__init__, Agent.load.__func__, Agent.from_content.__func__):  # type: ignore[attr-defined]
        function.__kwdefaults__["device"] = device


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("on_device")
    group.addoption("--agents-on", metavar="DEVICE", help="device of agents that name none")
    group.addoption("--outcomes", type=Path, metavar="FILE", help="append the outcome of each test to this file")
    group.addoption("--cases", type=int, metavar="NUMBER", help="run only this many tests, the most important")


def pytest_configure(config: pytest.Config) -> None:
    if device := config.getoption("--agents-on"):
        put_agents_on(device)
    file = config.getoption("--outcomes")
    if file is not None and not hasattr(config, "workerinput"):  # workers report to the process that started them
        config.pluginmanager.register(Outcomes(file), "outcomes")


@pytest.hookimpl(trylast=True)  # after marks have been applied
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=importance)
    seen: Counter[Any] = Counter()
    turns: dict[str, int] = {}
    for item in items:  # one case of each method, or of each other test, then a second one, and so on
        params = item.callspec.params if hasattr(item, "callspec") else {}
        group = importance(item), item.nodeid.partition("[")[0], str(params.get("method", ""))
        turns[item.nodeid] = seen[group]
        seen[group] += 1
    items.sort(key=lambda item: (*importance(item), turns[item.nodeid]))
    if (cases := config.getoption("--cases")) is not None:
        config.hook.pytest_deselected(items=items[cases:])
        del items[cases:]


def importance(item: pytest.Item) -> tuple[bool, int]:
    """Sorts cases of the quick run first, then by ORDER."""
    place = next((i for i, part in enumerate(ORDER) if part in item.nodeid), len(ORDER))
    return item.get_closest_marker("full") is not None, place


class Outcomes:
    """Appends a line for each finished test."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.write(report, report.duration)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:  # a file that cannot be imported
            self.write(report, 0.0)

    def write(self, report: Any, seconds: float) -> None:
        line: dict[str, Any] = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(seconds, 2)}
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = crash.message if crash is not None else str(report.longrepr).splitlines()[-1]
            line["reason"] = " ".join(text.split())[:300]
            if crash is not None:
                line["place"] = f"{Path(crash.path).name}:{crash.lineno}"
        with self.file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")

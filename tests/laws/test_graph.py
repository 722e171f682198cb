"""The law of the graph: updates that run as recorded operators do what eager updates do, to the last bit.

Every agent, every method and the cheap monitors run twice: eagerly, and with updates that are recorded at their first
occurrence and then run again on the same addresses, as a CUDA graph does (`recorder`). An update that depends on a
number of the host, on a tensor that moves, on a shape that changes or on a generator that is not registered differs, or
is refused while it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from law_agents import build_run, current_state, differences, take_steps_with_monitors
from recorder import RecordedGraph
from test_laws import cells, examples

from pliant.agents.captured import CapturedLearner
from pliant.agents.run import Run

STEPS = 14


def captured(run: Run) -> Run:
    """The same run with recorded updates."""
    run.learner = CapturedLearner(run.agent, run.memory, RecordedGraph, warm_up=1)
    return run


def compare(make: Callable[[], Run], steps: int = STEPS) -> CapturedLearner:
    """Assert that eager and recorded updates give the same run."""
    eager, recorded = make(), captured(make())
    for run in (eager, recorded):
        take_steps_with_monitors(run, steps)
    assert not differences(current_state(eager), current_state(recorded))
    learner = recorded.learner
    assert isinstance(learner, CapturedLearner) and learner.captured, "no update was recorded: the law checked nothing"
    return learner


@pytest.mark.parametrize(
    ("agent", "method"),
    [pytest.param(agent, method, marks=() if quick else pytest.mark.full) for agent, method, quick in cells()],
)
def test_recorded_updates_do_what_eager_updates_do(agent: str, method: str) -> None:
    compare(lambda: build_run(agent, examples(method), monitors=("cheap",)))

"""The law of the graph: updates that run as recorded operators do what eager updates do, to the last bit.

Every agent, every method and the cheap monitors run twice: eagerly, and with updates that are recorded at their first
occurrence and then run again on the same addresses, as a CUDA graph does (`recorder`). An update that depends on a
number of the host, on a tensor that moves, on a shape that changes or on a generator that is not registered differs, or
is refused while it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from law_agents import (
    DISCRETE,
    VECTOR,
    begin_run,
    build_run,
    current_state,
    differences,
    dqn,
    ppo,
    take_steps_with_monitors,
)
from no_wait import HostWaits
from recorder import CannotCapture, RecordedGraph
from test_laws import cells, examples

from pliant.agents import Batch, Intervention
from pliant.agents.captured import CapturedLearner, Learner, learner_of
from pliant.agents.clock import Plan
from pliant.agents.run import Run
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build

STEPS = 14


def captured(run: Run) -> Run:
    """The same run with recorded updates."""
    run.learner = CapturedLearner(run.agent, run.memory, RecordedGraph, warm_up=1, check=False)
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


class Planted(Intervention):
    """A method whose change of the rewards has one of the bugs that a graph does not forgive."""

    name = "planted"

    def __init__(self, bug: str) -> None:
        super().__init__()
        self.bug, self.updates = bug, 0
        self.noise = torch.zeros(())
        self.own = torch.Generator().manual_seed(0)

    def transform_batch(self, batch: Batch) -> Batch:
        change: Any = {
            "a number of the host": lambda: self.updates,
            "a tensor that moves": lambda: self.noise,
            "a shape that changes": lambda: batch.reward[: 1 + self.updates].sum(),
            "a generator that is not registered": lambda: torch.rand((), generator=self.own),
            "the global generator": lambda: torch.rand(()),
            "data of the host": lambda: torch.tensor(float(self.updates)),
            "a value that the host reads": lambda: float(batch.reward[0]),
        }[self.bug]()
        return batch.replace(reward=batch.reward + change)

    def after_update(self, run: Any, activations: Any) -> None:
        self.updates += 1
        self.noise = torch.full((), float(self.updates))


@pytest.mark.parametrize(
    ("bug", "error", "message"),
    [
        ("a number of the host", AssertionError, "agent"),
        ("a tensor that moves", AssertionError, "agent"),
        ("a shape that changes", AssertionError, "agent"),
        ("a generator that is not registered", CannotCapture, "a generator that the graph does not know"),
        ("the global generator", CannotCapture, "the global generator"),
        ("data of the host", HostWaits, "copies numbers of the host"),
        ("a value that the host reads", HostWaits, "makes the host wait"),
    ],
)
def test_the_law_sees_each_planted_bug(bug: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compare(lambda: build_run("dqn", [Planted(bug)]))


def test_a_graph_is_captured_for_each_plan_and_each_structure() -> None:
    """The target moves at every third update; an injection opens a pair of copies."""
    learner = compare(lambda: build_run("dqn"))
    assert {plan for plan, _, _ in learner.captured} == {Plan(target=False), Plan(target=True)}
    learner = compare(lambda: build_run("dqn", examples("plasticity_injection")), 24)
    assert len({structure for _, _, structure in learner.captured}) > 1


def test_annealed_numbers_reach_a_graph() -> None:
    """The learning rate of PPO and the discount and n-step of BBF change from update to update."""
    compare(lambda: begin_run(ppo(VECTOR, DISCRETE, anneal_steps=200)()))
    spec = "bbf(every=30, n_start=3, n_end=2, gamma_start=0.9, gamma_end=0.99, anneal=20)"
    learner = compare(lambda: build_run("dqn, minatar, dueling", build([spec], INTERVENTIONS)), 30)
    assert {draw for _, draw, _ in learner.captured} == {(8, 3), (8, 2)}


class Twice(RecordedGraph):
    """A graph that does not do what its function does."""

    def record(self, function: Callable[[], Any]) -> Any:
        super().record(function)
        return super().record(function)


class Refusing(RecordedGraph):
    """A graph that cannot hold the function."""

    def record(self, function: Callable[[], Any]) -> Any:
        super().record(function)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize("agent", ["dqn, double dueling prioritised 3-step", "sac", "ppo"])
@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (Twice, "the first graph does not give the result of the update that it captured"),
        (Refusing, "the agent's update cannot be captured (operation not permitted when stream is capturing)"),
    ],
)
def test_a_graph_that_fails_its_check_leaves_an_eager_run(agent: str, graph: Any, why: str) -> None:
    eager, refused, lines = build_run(agent), build_run(agent), []
    refused.learner = CapturedLearner(refused.agent, refused.memory, graph, warm_up=1, notify=lines.append)
    for run in (eager, refused):
        take_steps_with_monitors(run, STEPS)
    assert not differences(current_state(eager), current_state(refused))
    assert lines == [f"updates run operator by operator, not as CUDA graphs: {why}"]


def test_a_graph_needs_a_gpu() -> None:
    agent = dqn(VECTOR, compile="graph")()
    with pytest.raises(ValueError, match=r"^--agent\.compile graph needs a CUDA device, and this agent is on cpu"):
        learner_of(agent, agent.memory())
    agent = dqn(VECTOR)()
    assert type(learner_of(agent, agent.memory())) is Learner

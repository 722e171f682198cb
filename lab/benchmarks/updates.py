"""Updates without environments: updates per second, and operators or GPU kernels per update.

A run has a replay full of noise. An update is what training makes: sampling, learning, metrics, hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701

from pliant.agents import DQN, SAC, DQNConfig, SACConfig
from pliant.agents.captured import CapturedLearner, CudaGraph
from pliant.agents.config import AgentConfig
from pliant.agents.networks import NetworkConfig
from pliant.agents.run import Run
from pliant.common.spaces import ActionSpec, ObservationSpec, Step

from .machine import rate, synchronise

TITLES = {
    "dqn": "DQN, Nature CNN, batch 32",
    "mlp": "DQN, MLP 120-84, batch 128",
    "sac": "SAC, two critics of 256x256, batch 256",
}
TRANSITIONS = 600
GRANTED = 1e6  # updates per stored transition: more than any measurement makes
WARM_UP = 24  # updates before the clock starts


class _NoEnvs:
    """The interface of environments, for a run that never steps them."""

    num_envs, frame_skip = 1, 1

    def __init__(self, observation: Any, action: Any) -> None:
        self.observation, self.action = observation, action


def has_precision() -> bool:
    """Whether agents have the setting `precision`."""
    return any(field.name == "precision" for field in fields(AgentConfig))


def prepared(workload: str, interventions: Sequence[Any] = (), device: str = "cpu", **settings: Any) -> Run:
    """A run with a replay full of noise, ready to update.

    Args:
        workload: One of TITLES.
        settings: Further settings of the agent.

    Raises:
        ValueError: The agent refuses an intervention.
    """
    settings.setdefault("buffer_size", 1_000)
    settings.setdefault("learning_starts", 0)
    parts: dict[str, Any] = {"interventions": tuple(interventions), "device": device}
    made: Any
    if workload == "dqn":
        pixels = ObservationSpec((4, 84, 84), torch.uint8, 255.0, stack=4)
        config = replace(DQNConfig.for_suite("atari"), network=NetworkConfig(hidden=(512,)), **settings)
        made = DQN(pixels, 6, config, **parts)
    elif workload == "mlp":
        shape = replace(DQNConfig(), batch_size=128, network=NetworkConfig(hidden=(120, 84)), target_period=500)
        made = DQN((4,), 2, replace(shape, **settings), **parts)
    else:
        box = ActionSpec(6, False, (-1.0,) * 6, (1.0,) * 6)
        made = SAC((17,), box, replace(SACConfig(), **settings), **parts)
    run = Run(made, _NoEnvs(made.observation, made.action))  # type: ignore[arg-type]
    _fill(run)
    return run


def _fill(run: Run) -> None:
    """Store noise, and make more updates pending than any measurement makes."""
    rng, observation, action = np.random.default_rng(0), run.agent.observation, run.agent.action

    def observe() -> Any:
        if observation.pixels:
            return rng.integers(255, size=(1, *observation.shape), dtype=np.uint8)
        return rng.normal(size=(1, *observation.shape)).astype(np.float32)

    no = np.zeros(1, bool)
    first = observe()
    if observation.stack > 1:
        first[:, :-1] = 0
    run.memory.start(first)
    for _ in range(TRANSITIONS):
        chosen = (
            rng.integers(action.size, size=1)
            if action.discrete
            else rng.uniform(-1, 1, (1, action.size)).astype(np.float32)
        )
        seen = observe()
        run.memory.add(chosen, Step(seen, np.ones(1, np.float32), no, no, no, seen, (), True))
    run.clock = run.clock.stepped(TRANSITIONS)
    next(iter(run.memory.draws(replace(run.agent.sampling(run.clock), replay_ratio=GRANTED))))


def make_updates(run: Run, updates: int) -> None:
    """Make updates of a prepared run."""
    left = updates
    while left:
        before = left
        sampling = replace(run.agent.sampling(run.clock), replay_ratio=0.0)
        for draw in islice(run.memory.draws(sampling), left):
            run.clock = run.clock.stepped(1)
            run.learn(draw)
            left -= 1
        if left == before:
            raise RuntimeError("the replay of a benchmark has no pending updates: its agent forgot them")


def eager(workload: str, device: str = "cpu", **settings: Any) -> Run:
    """A prepared run whose updates are made operator by operator, warmed up."""
    run = prepared(workload, device=device, compile="off", **settings)
    make_updates(run, WARM_UP)
    return run


def captured(workload: str, device: str, graph: Callable[..., Any] = CudaGraph, **settings: Any) -> Run:
    """A prepared run whose updates are graphs, warmed up.

    Raises:
        RuntimeError: The updates cannot be captured.
    """
    run = prepared(workload, device=device, compile="off", **settings)
    run.learner = learner = CapturedLearner(run.agent, run.memory, graph)
    make_updates(run, WARM_UP)
    if learner.refused or not learner.captured:
        raise RuntimeError(learner.refused or "no update was captured")
    return run


def updates_per_second(run: Run, seconds: float, device: str = "cpu") -> float:
    return rate(lambda updates: make_updates(run, updates), seconds, device)


class _Counter(TorchDispatchMode):
    """Counts operators below autograd."""

    operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


def operators(run: Run) -> int:
    """Operators of one update, views included."""
    with _Counter() as counter:  # type: ignore[no-untyped-call]
        make_updates(run, 1)
    return counter.operators


def kernels(run: Run, device: str) -> tuple[float, float]:
    """GPU kernels and copies of one update, and the microseconds that they take: means of four updates."""
    from torch.profiler import ProfilerActivity, profile

    updates = 4
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        make_updates(run, updates)
        synchronise(device)
    events = [
        event
        for event in profiler.events()
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    return len(events) / updates, sum(event.time_range.elapsed_us() for event in events) / updates

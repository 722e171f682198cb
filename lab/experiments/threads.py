"""Chooses the number of CPU threads of a run by measurement (`pliant train --threads 0`, the default).

The number of threads affects the last bits of a run. So it is chosen once, before the first step, and recorded in
`config.yaml`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...agents import Agent
from ...agents.clock import Clock
from ...agents.rollout import RolloutBatch
from ...common.moved import moved
from .config import RunConfig, load

SECONDS = 1.0  # seconds of a measurement, at most
SHARE = 0.02  # share of the expected time of all updates of the run, at most
BLOCK = 0.05  # seconds (and at least one update) before switching to the other number of threads
LEAST = 4  # updates for which a measurement must have time
GAIN = 1.1  # required speed-up of all cores over one; one thread leaves cores to environments and other processes


class Choice(NamedTuple):
    """A number of threads, and a short reason (empty if there was no choice)."""

    threads: int
    why: str = ""

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads != 1)}" + (f": {self.why}" if self.why else "")


class Measured(NamedTuple):
    """Updates per second by number of threads, and the cores that other processes used (None: unknown)."""

    rates: Mapping[int, float]
    others: float | None = None


def recorded_threads(config: RunConfig, folder: Path) -> int:
    """The number of threads given by the command line or recorded by the run in the folder; otherwise 0.

    Raises:
        BadInput: The folder's config.yaml cannot be read.
    """
    if config.threads or not (folder / "config.yaml").exists():
        return config.threads
    return load(folder).threads


def choose(
    config: RunConfig, agent: Agent, most: int, measure: Callable[[Agent, int, int, float], Measured] | None = None
) -> Choice:
    """One thread or all that torch would use, whichever gives more updates per second.

    Args:
        config: The run's configuration, with its device resolved.
        agent: A copy of the run's agent. It is trained on noise and must not be used afterwards.
        most: Threads that torch would use by default.
        measure: `updates_per_second`; tests may replace it.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if name in os.environ:
            return Choice(most, f"{name} is set")
    if most == 1 or agent.device.type != "cpu":
        return Choice(most)
    batch = batch_size(config, agent)
    measured = (measure or updates_per_second)(agent, batch, most, updates(config, agent))
    return choice_from(measured, most)


def choice_from(measured: Measured, most: int) -> Choice:
    """The choice that follows from a measurement."""
    rates, others = measured
    if not rates:
        return Choice(1, "too few updates to measure")
    chosen = most if rates[most] >= GAIN * rates[1] else 1
    other = 1 if chosen == most else most
    why = f"{_number(rates[chosen])} updates/s, {_number(rates[other])} with {other}"
    if others is not None and others >= 0.5:
        why += f"; other processes use {others:.1f} of {most} cores"
    return Choice(chosen, why)


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def updates(config: RunConfig, agent: Agent) -> float:
    """The approximate number of updates of the run."""
    steps = max(0, config.steps - getattr(agent.config, "learning_starts", 0))
    if agent.learns_from_targets:
        steps //= config.num_envs  # a step of all environments is one minibatch
    return steps * agent.sampling(Clock()).replay_ratio


def batch_size(config: RunConfig, agent: Agent) -> int:
    """Transitions in a batch of the run."""
    if agent.learns_from_targets:
        return config.num_envs
    size = agent.sampling(Clock()).batch_size
    return min(size, agent.config.rollout * config.num_envs) if hasattr(agent.config, "rollout") else size


def budget(expected: float, seconds: float) -> float:
    """Seconds to measure for: at most a second, and at most a small share of the time of the run's updates.

    Args:
        expected: Updates that the run makes.
        seconds: Seconds of one update.

    Returns:
        0 if the time is too short for a useful measurement.
    """
    allowed = min(SECONDS, SHARE * expected * seconds)
    return allowed if SHARE * expected >= LEAST else 0.0


def updates_per_second(agent: Agent, batch_size: int, most: int, expected: float) -> Measured:
    """Time real updates on noise, with one thread and with `most` in turn, so that other load affects both.

    The mean counts, not the fastest time, because it includes the load of other processes. Afterwards the number of
    threads and torch's global random state are restored.

    Args:
        agent: Is trained on noise.
        batch_size: Transitions in a batch.
        most: Threads to compare with one.
        expected: Updates of the whole run, which bound the time.
    """
    before, clock = torch.get_num_threads(), Clock()
    batch = noise(agent, batch_size)

    def seconds(threads: int, at_least: float) -> tuple[float, int]:
        nonlocal clock
        torch.set_num_threads(threads)
        started, made = time.perf_counter(), 0
        while True:
            clock = clock.stepped(1).updated()
            agent.update(batch, agent.plan(clock))
            made += 1
            if (spent := time.perf_counter() - started) >= at_least:
                return spent, made

    with torch.random.fork_rng(devices=()):
        try:
            seconds(1, 0.0)  # creates kernels, optimizer moments and the like, outside of the timing
            if not (allowed := budget(expected, seconds(1, 0.0)[0])):
                return Measured({})
            seconds(most, 0.0)
            spent, made = dict.fromkeys((1, most), 0.0), dict.fromkeys((1, most), 0)
            busy, own, started = _busy(), time.process_time(), time.perf_counter()
            while sum(spent.values()) < allowed:
                for threads in spent:
                    some, more = seconds(threads, min(BLOCK, allowed / 4))
                    spent[threads] += some
                    made[threads] += more
            now = _busy()
            others = None
            if busy is not None and now is not None:
                others = (now - busy - (time.process_time() - own)) / (time.perf_counter() - started)
            return Measured({threads: made[threads] / spent[threads] for threads in spent}, others)
        finally:
            torch.set_num_threads(before)


def noise(agent: Agent, batch_size: int) -> Any:
    """A batch [B] of noise from a separate random stream: a `RolloutBatch`, which has all fields of a `Batch`."""
    generator = torch.Generator().manual_seed(0)
    observation, action = agent.observation, agent.action

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch_size, *shape, generator=generator)

    def seen() -> torch.Tensor:
        if observation.dtype.is_floating_point:
            return normal(*observation.shape).to(observation.dtype)
        shape = (batch_size, *observation.shape)
        return torch.randint(int(observation.high) + 1, shape, generator=generator).to(observation.dtype)

    done = torch.randint(action.size, (batch_size,), generator=generator) if action.discrete else normal(action.size)
    ones = torch.ones(batch_size)
    parts = RolloutBatch(
        obs=seen(),
        action=done,
        reward=normal(),
        discount=0.99 * ones,
        next_obs=seen(),
        weight=ones,
        index=torch.arange(batch_size),
        log_prob=-ones,
        value=normal(),
        advantage=normal(),
        ret=normal(),
    )
    return RolloutBatch(*(part.to(agent.device) for part in parts))


def _busy() -> float | None:
    """Core-seconds that the machine has been busy since it started; None if this is unknown (not Linux)."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq = (int(field) for field in fields[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


__getattr__ = moved(
    __name__,
    {"told": f"{__name__}.recorded_threads", "judged": f"{__name__}.choice_from"},  # former names
)

"""The cost of monitors: the share of training time that each takes at its default cadence.

A run trains with updates only. Then the monitors measure one after the other, each once, at an update that is timed
whole: the preparation before it, the measurement, and the processing on the host one update later. The share is the
extra time over a plain update, divided by the time between two measurements. The base is the update alone, without
acting and environments, so the shares are upper bounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from .interventions import block, once, prepared
from .updates import TITLES

REAL = {"dqn": "ALE/Pong-v5", "sac": "HalfCheetah-v5"}  # environments for monitors that play
# Steps between two updates, for monitors whose clock counts steps.
STEPS_PER_UPDATE = {"dqn": 4, "sac": 1}


def shares(
    agents: list[str], rounds: int, once: Callable[[str, Callable[[], Any]], Any] = once
) -> dict[str, dict[str, dict[str, float]]]:
    """Monitor → agent's title → `share` of training's time, `event_ms` and `period`; `cheap` is all cheap ones
    together, which share their measurements. `once` as in `interventions.costs`."""
    from pliant.monitors import MONITORS

    by_monitor: dict[str, dict[str, dict[str, float]]] = {}
    for agent in agents:
        updates = 12 if agent == "dqn" else 60
        run = prepared(agent, None)
        run.fresh_envs = partial(make_real, agent)
        block(run, updates)
        for name in ("cheap", *MONITORS):
            # The probe trains networks for minutes, so it is measured once.
            turns = 1 if name == "probe" else rounds
            measure = partial(cost, run, agent, name, updates, turns)
            by_monitor.setdefault(name, {})[TITLES[agent]] = once(f"monitors/{agent}/{name}", measure)
    return by_monitor


def cost(run: Any, agent: str, spec: str, updates: int, rounds: int) -> dict[str, float]:
    """The cost of one monitor, or of a group with the same schedule, measured in turns with plain updates."""
    from pliant.agents.clock import Clock
    from pliant.monitors import watch

    monitors = watch(run.agent, spec)
    when: Any = next(iter(monitors.parts.values())).when
    period, in_steps = int(when.period), when.of == "steps"
    extras, each = [], []
    for _ in range(rounds + 1):
        run.monitors = None
        each.append(block(run, updates) / updates)
        run.monitors = monitors
        if in_steps:
            run.clock = Clock(period, 9, period - 1, 9)
            start = time.perf_counter()
            monitors.between(run, period - 1)
            extras.append(time.perf_counter() - start)
        else:
            run.clock = Clock(period - 1, period - 1, period - 1, period - 1)
            # The update at which it measures, and the one at which the host reads the result.
            extras.append(block(run, 2) - 2 * each[-1])
    run.monitors = None
    extra = max(0.0, statistics.median(extras[1:]))
    update = statistics.median(each)
    between = period / STEPS_PER_UPDATE[agent] if in_steps else period
    return {"share": extra / (extra + between * update), "event_ms": 1e3 * extra, "period": float(period)}


def make_real(agent: str) -> Any:
    """Environments for monitors that play."""
    from pliant.envs import make

    return make(REAL[agent], num_envs=1, seed=0)


def table(by_monitor: dict[str, dict[str, dict[str, float]]], agents: list[str]) -> list[str]:
    """The results as a Markdown table, with sums for the cheap monitors and for all."""
    from pliant.monitors import MONITORS

    titles = [TITLES[agent] for agent in agents]
    rows = [
        "| share of the time of updates | " + " | ".join(titles) + " | every | a measurement takes (ms) |",
        "|---|" + "---|" * (len(titles) + 2),
    ]

    def percent(names: list[str]) -> str:
        sums = (sum(by_monitor[n][t]["share"] for n in names if t in by_monitor[n]) for t in titles)
        return " | ".join(f"{100 * share:.2f} %" for share in sums)

    for name, costs in by_monitor.items():
        if name == "cheap":
            continue
        period, clock = int(next(iter(costs.values()))["period"]), getattr(MONITORS[name]().when, "of", "updates")
        events = " / ".join(f"{costs[t]['event_ms']:,.3g}" for t in titles)
        rows.append(f"| {name} | {percent([name])} | {period:,} {clock} | {events} |")
    deep = [name for name in by_monitor if name in MONITORS and MONITORS[name].group == "deep"]
    events = " / ".join(f"{by_monitor['cheap'][t]['event_ms']:,.3g}" for t in titles)
    rows.append(f"| **all cheap monitors together** (the default) | {percent(['cheap'])} | | {events} |")
    rows.append(f"| **everything** (`--monitors all`) | {percent(['cheap', *deep])} | | |")
    return rows


def end_to_end(rounds: int) -> list[str]:
    """Markdown rows: steps per second of real training with the cheap monitors, relative to training without them."""
    from pliant.agents import DQN, SAC, DQNConfig, SACConfig
    from pliant.agents.run import Run
    from pliant.envs import make
    from pliant.monitors import watch

    rows = ["| real training, cheap monitors at their default cadence | steps/s, relative to none |", "|---|---|"]
    for agent, steps in (("dqn", 4_000), ("sac", 1_000)):
        runs: list[Any] = []
        for watched in (False, True):
            envs = make(REAL[agent], num_envs=1, seed=0)
            made: Any
            if agent == "dqn":
                config = DQNConfig.for_suite("atari")
                made = DQN(envs.observation, envs.action, replace(config, buffer_size=20_000, learning_starts=500))
            else:
                made = SAC(envs.observation, envs.action, SACConfig(buffer_size=20_000, learning_starts=300))
            runs.append(Run(made, envs, monitors=watch(made, "cheap") if watched else None))
        for run in runs:
            run.train(1_000)
        ratios = []
        for _ in range(rounds):
            seconds = []
            for run in runs:
                start = time.perf_counter()
                run.train(run.clock.steps + steps)
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[0] / seconds[1])
        title = {"dqn": "DQN, Pong", "sac": "SAC, HalfCheetah"}[agent]
        rows.append(f"| {title} | {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}) |")
    return rows

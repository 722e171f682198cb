"""The cost of every intervention: updates per second with it, relative to the plain agent's, in one process.

Plain and treated agents take turns in short blocks, so that other load on the machine affects both. The fastest block
of each counts. Blocks are timed between firings. A firing is timed separately, and its cost per period is added.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from pliant.common.moved import moved

# Typical parameters of each method; defaults where none are given.
SPECS = {
    "activation": "activation(name=silu)",
    "fresh_agent": "fresh_agent(every=100000, memory=keep)",
    "heavy_priming": "heavy_priming(updates=1000000)",
    "matched_random": "matched_random(like=reset)",
    "plasticity_injection": "plasticity_injection(at=1000000)",
    "replay_ratio": "replay_ratio(1, reset_every=2560000)",
    "quantile": "quantile(quantiles=32)",
}
TITLES = {"dqn": "DQN, Nature CNN, batch 32", "sac": "SAC, two critics of 256x256, batch 256"}


def prepared(agent: str, spec: str | None) -> Any:
    """A run with a replay full of noise, ready to update; None if the agent refuses the intervention."""
    import torch

    from pliant.agents import DQN, SAC, DQNConfig, SACConfig
    from pliant.agents.networks import NetworkConfig
    from pliant.agents.run import Run
    from pliant.common.spaces import ActionSpec, ObservationSpec, Step
    from pliant.interventions import INTERVENTIONS
    from pliant.interventions.core.spec import build

    parts = tuple(build([spec] if spec else [], INTERVENTIONS))
    made: Any
    try:
        if agent == "dqn":
            pixels = ObservationSpec((4, 84, 84), torch.uint8, 255.0, stack=4)
            config = DQNConfig.for_suite("atari")
            config = replace(config, buffer_size=1_000, learning_starts=0, network=NetworkConfig(hidden=(512,)))
            made = DQN(pixels, 6, config, interventions=parts)
        else:
            box = ActionSpec(6, False, (-1.0,) * 6, (1.0,) * 6)
            made = SAC((17,), box, replace(SACConfig(), buffer_size=1_000, learning_starts=0), interventions=parts)
    except ValueError:
        return None
    run = Run(made, _NoEnvs(made.observation, made.action))  # type: ignore[arg-type]
    rng, observation = np.random.default_rng(0), made.observation

    def obs() -> Any:
        if observation.pixels:
            return rng.integers(255, size=(1, *observation.shape), dtype=np.uint8)
        return rng.normal(size=(1, *observation.shape)).astype(np.float32)

    no = np.zeros(1, bool)
    first = obs()
    if observation.stack > 1:
        first[:, :-1] = 0
    run.memory.start(first)
    for _ in range(600):
        action = rng.integers(6, size=1) if made.action.discrete else rng.uniform(-1, 1, (1, 6)).astype(np.float32)
        seen = obs()
        run.memory.add(action, Step(seen, np.ones(1, np.float32), no, no, no, seen, (), True))
    run.clock = run.clock.stepped(600)
    return run


class _NoEnvs:
    """The interface of environments, for a run that never steps them."""

    num_envs, frame_skip = 1, 1

    def __init__(self, observation: Any, action: Any) -> None:
        self.observation, self.action = observation, action


def block(run: Any, updates: int) -> float:
    """Seconds for a number of updates, including the sampling of batches."""
    sampling = run.agent.sampling(run.clock)
    start = time.perf_counter()
    for _ in range(updates):
        run.clock = run.clock.stepped(1)
        run.learn(run.memory.sample(sampling.batch_size, sampling.n_step, sampling.gamma))
    return time.perf_counter() - start


def firing(run: Any) -> tuple[float, int] | None:
    """Seconds of one update at which the method fires, and its period in updates; None if it has no period."""
    from pliant.agents.clock import Clock, Every

    part = next(iter(run.agent.interventions))
    part = getattr(part, "resets", None) or part
    when = part.when
    if not isinstance(when, Every) or when.period <= 1 or when.of == "episodes":
        return None
    before = when.period - 1
    run.clock = Clock(before, before, before, before)
    seconds = block(run, 1)
    run.clock = Clock(when.period, when.period, when.period, when.period)
    return seconds, when.period


def costs(agents: list[str], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Method → agent's title → `relative` (updates/s of the plain agent's) and `event_ms`."""
    from pliant.interventions import INTERVENTIONS

    by_method: dict[str, dict[str, dict[str, float]]] = {}
    for agent in agents:
        updates = 12 if agent == "dqn" else 40
        plain = prepared(agent, None)
        block(plain, updates)
        for method in sorted(INTERVENTIONS):
            run = prepared(agent, SPECS.get(method, method))
            if run is None:
                continue
            block(run, updates)
            pairs = [(block(plain, updates), block(run, updates)) for _ in range(2 * rounds)]
            # The fastest block of each is the one least disturbed by other load.
            fastest, each = min(a for a, _ in pairs) / updates, min(b for _, b in pairs) / updates
            cost = {"relative": fastest / each}
            if events := [event for _ in range(3) if (event := firing(run)) is not None]:
                extra = max(0.0, min(seconds for seconds, _ in events) - each)
                cost["event_ms"] = 1e3 * extra
                cost["relative"] *= each / (each + extra / events[0][1])
            by_method.setdefault(method, {})[TITLES[agent]] = cost
    return by_method


def table(costs: dict[str, dict[str, dict[str, float]]], agents: list[str]) -> list[str]:
    """The results as a Markdown table."""
    titles = [TITLES[agent] for agent in agents]
    rows = [
        "| updates a second, relative to the plain agent | " + " | ".join(titles) + " | a firing takes (ms more) |",
        "|---|" + "---|" * (len(titles) + 1),
    ]
    for method, cost in costs.items():
        cells = [f"{cost[t]['relative']:.2f}" if t in cost else "refused" for t in titles]
        events = [f"{cost[t]['event_ms']:.3g}" for t in titles if t in cost and "event_ms" in cost[t]]
        rows.append(f"| {SPECS.get(method, method)} | {' | '.join(cells)} | {' / '.join(events)} |")
    return rows


__getattr__ = moved(__name__, {"WORDS": f"{__name__}.SPECS"})  # former names

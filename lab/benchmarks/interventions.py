"""The cost of every intervention: updates per second with it, relative to the plain agent's, in one process.

Plain and treated agents take turns in short blocks, so that other load on the machine affects both. The fastest block
of each counts. Blocks are timed between firings. A firing is timed separately, and its cost per period is added.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pliant.common.moved import moved

from . import updates
from .updates import TITLES

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
UPDATES = {"dqn": 12, "sac": 40}  # of a block


def prepared(agent: str, spec: str | None) -> Any:
    """A run with a replay full of noise, ready to update; None if the agent refuses the intervention."""
    from pliant.interventions import INTERVENTIONS
    from pliant.interventions.core.spec import build

    parts = tuple(build([spec] if spec else [], INTERVENTIONS))
    try:
        return updates.prepared(agent, parts)
    except ValueError:
        return None


def block(run: Any, number: int) -> float:
    """Seconds for a number of updates, including the sampling of batches."""
    start = time.perf_counter()
    updates.make_updates(run, number)
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


def once(key: str, measure: Callable[[], Any]) -> Any:
    """Measure without a record; `Record.once` has the same arguments."""
    return measure()


def costs(
    agents: list[str], rounds: int, once: Callable[[str, Callable[[], Any]], Any] = once
) -> dict[str, dict[str, dict[str, float]]]:
    """Method → agent's title → `relative` (updates/s of the plain agent's) and `event_ms`.

    Args:
        once: Called with a key and a measurement; a record of earlier measurements may answer in its place.
    """
    from pliant.interventions import INTERVENTIONS

    by_method: dict[str, dict[str, dict[str, float]]] = {}
    for agent in agents:
        plain = prepared(agent, None)
        block(plain, UPDATES[agent])
        for method in sorted(INTERVENTIONS):
            cost = once(f"interventions/{agent}/{method}", partial(cost_of, agent, method, plain, rounds))
            if cost is not None:
                by_method.setdefault(method, {})[TITLES[agent]] = cost
    return by_method


def cost_of(agent: str, method: str, plain: Any, rounds: int) -> dict[str, float] | None:
    """The cost of one method; None if the agent refuses it."""
    number = UPDATES[agent]
    run = prepared(agent, SPECS.get(method, method))
    if run is None:
        return None
    block(run, number)
    pairs = [(block(plain, number), block(run, number)) for _ in range(2 * rounds)]
    # The fastest block of each is the one least disturbed by other load.
    fastest, each = min(a for a, _ in pairs) / number, min(b for _, b in pairs) / number
    cost = {"relative": fastest / each}
    if events := [event for _ in range(3) if (event := firing(run)) is not None]:
        extra = max(0.0, min(seconds for seconds, _ in events) - each)
        cost["event_ms"] = 1e3 * extra
        cost["relative"] *= each / (each + extra / events[0][1])
    return cost


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

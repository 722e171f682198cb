"""Monitors by their words, and how a run gets them."""

from __future__ import annotations

from collections.abc import Iterable

from ..agents.agent import Agent
from ..agents.hooks import Intervention
from .monitor import Monitor, Monitors, triggers
from .monitor_activity import Activity
from .monitor_churn import Churn
from .monitor_criticality import Criticality
from .monitor_curvature import Curvature
from .monitor_kernel import Kernel
from .monitor_landscape import Landscape
from .monitor_norms import Norms
from .monitor_overestimation import Overestimation
from .monitor_probe import ProbeMonitor
from .monitor_ranks import Ranks
from .monitor_tandem import Tandem
from .monitor_units import Units
from .monitor_values import Values
from .spec import SentenceError, build_parts, check, did_you_mean, parse

MONITORS: dict[str, type[Monitor]] = {
    kind.name: kind for kind in (
        Units, Norms, Ranks, Values, Activity,
        Churn, Criticality, Curvature, Kernel, Landscape, Overestimation, ProbeMonitor, Tandem,
    )
}  # fmt: skip
"""Every monitor by the word that names it."""

GROUPS = ("cheap", "deep", "all", "none")


def watch(agent: Agent, *monitors: str | Monitor) -> Monitors:
    """Let monitors look at an agent while it learns: `Run(agent, envs, monitors=watch(agent, "cheap", "probe"))`.

    Args:
        agent: Who is looked at.
        monitors: Words (`"units(every=100)"`), groups of them (`cheap`, `deep`, `all`, `none`) or monitors; the cheap
            ones if nothing is said. What an intervention's trigger waits for is measured in any case.

    Raises:
        ValueError: A word is not understood, or a monitor does not fit the agent.
    """
    given = [part for part in monitors if isinstance(part, Monitor)]
    words = [word for word in monitors if isinstance(word, str)]
    parts = [*given, *built(words if monitors else ["cheap"])]
    measured = {metric for part in parts for metric in part.metrics}
    for _, when in triggers(agent):
        metric = when.metric.rpartition("/")[2]
        if metric not in measured and (name := measurer(metric)) is not None:
            parts.append(MONITORS[name]())
            measured |= set(MONITORS[name].metrics)
    return Monitors(parts).bind(agent)


def expand(words: Iterable[str]) -> list[str]:
    """The words that groups stand for; a word of its own takes the place of what a group says of the same monitor.

    Raises:
        SentenceError: A word is not understood.
    """
    words = list(words)
    own: dict[str, str] = {}
    for word in words:
        if word in GROUPS:
            continue
        name = parse(word, "monitor", "units(every=100)").name
        if name in GROUPS:
            raise SentenceError(
                f"{word}: {name} stands for several monitors and takes no parameters; write {name}, and those that "
                "differ beside it, like units(every=100)"
            )
        if name not in MONITORS:
            known = [*MONITORS, *GROUPS]
            raise SentenceError(
                f"unknown monitor {name!r}.{did_you_mean(name, known)} known monitors: {', '.join(known)}"
            )
        if name in own:
            raise SentenceError(f"the monitor {name} is given twice: {own[name]} and {word}")
        own[name] = word
    wanted = {
        name: name for word in words if word in GROUPS and word != "none"
        for name, kind in MONITORS.items() if word in ("all", kind.group) and kind.group != "alone"
    }  # fmt: skip
    return list((wanted | own).values())


def check_monitors(words: Iterable[str]) -> tuple[str, ...]:
    """The words in canonical spelling, groups as they are (SentenceError)."""
    words = list(words)
    expand(words)
    return tuple(word if word in GROUPS else check([word], MONITORS)[0] for word in words)


def built(words: Iterable[str]) -> list[Monitor]:
    """The monitors that words name (SentenceError)."""
    parts: list[Intervention] = build_parts(expand(list(words)), MONITORS)
    return [part for part in parts if isinstance(part, Monitor)]


def measurer(metric: str) -> str | None:
    """The word of the monitor that measures a metric, if there is one."""
    return next((name for name, kind in MONITORS.items() if metric in kind.metrics), None)

"""Monitors by their specs, and how a run gets them."""

from __future__ import annotations

from collections.abc import Iterable

from ..agents.agent import Agent
from ..agents.hooks import Intervention
from ..interventions.core.spec import SpecError, build_parts, check, did_you_mean, parse
from .activity import Activity
from .base import Monitor, Monitors, triggers
from .churn import Churn
from .criticality import Criticality
from .curvature import Curvature
from .kernel import Kernel
from .landscape import Landscape
from .norms import Norms
from .overestimation import Overestimation
from .probe import ProbeMonitor
from .ranks import Ranks
from .tandem import Tandem
from .units import Units
from .values import Values

MONITORS: dict[str, type[Monitor]] = {
    kind.name: kind
    for kind in (
        Units,
        Norms,
        Ranks,
        Values,
        Activity,
        Churn,
        Criticality,
        Curvature,
        Kernel,
        Landscape,
        Overestimation,
        ProbeMonitor,
        Tandem,
    )
}
"""Every monitor by its name in specs."""

GROUPS = ("cheap", "deep", "all", "none")


def watch(agent: Agent, *monitors: str | Monitor) -> Monitors:
    """Let monitors observe an agent while it learns: `Run(agent, envs, monitors=watch(agent, "cheap", "probe"))`.

    Args:
        agent: The agent to observe.
        monitors: Specs (`"units(every=100)"`), groups (`cheap`, `deep`, `all`, `none`) or monitors; the cheap monitors
            by default. The metrics that triggers of interventions wait for are measured in any case.

    Raises:
        ValueError: A spec is invalid, or a monitor does not fit the agent.
    """
    given = [part for part in monitors if isinstance(part, Monitor)]
    specs = [spec for spec in monitors if isinstance(spec, str)]
    parts = [*given, *built(specs if monitors else ["cheap"])]
    measured = {metric for part in parts for metric in part.metrics}
    for _, when in triggers(agent):
        metric = when.metric.rpartition("/")[2]
        if metric not in measured and (name := measurer(metric)) is not None:
            parts.append(MONITORS[name]())
            measured |= set(MONITORS[name].metrics)
    return Monitors(parts).bind(agent)


def expand(specs: Iterable[str]) -> list[str]:
    """The specs of the monitors in the groups; an explicit spec replaces the group's spec of the same monitor.

    Raises:
        SpecError: A spec is invalid.
    """
    specs = list(specs)
    own: dict[str, str] = {}
    for spec in specs:
        if spec in GROUPS:
            continue
        name = parse(spec, "monitor", "units(every=100)").name
        if name in GROUPS:
            raise SpecError(
                f"{spec}: {name} is a group of monitors and has no parameters; write {name}, and beside it the "
                "monitors with other parameters, like units(every=100)"
            )
        if name not in MONITORS:
            known = [*MONITORS, *GROUPS]
            raise SpecError(f"unknown monitor {name!r}.{did_you_mean(name, known)} known monitors: {', '.join(known)}")
        if name in own:
            raise SpecError(f"the monitor {name} is given twice: {own[name]} and {spec}")
        own[name] = spec
    wanted = {
        name: name
        for spec in specs
        if spec in GROUPS and spec != "none"
        for name, kind in MONITORS.items()
        if spec in ("all", kind.group) and kind.group != "alone"
    }
    return list((wanted | own).values())


def check_monitors(specs: Iterable[str]) -> tuple[str, ...]:
    """The specs in canonical spelling; groups stay as they are (SpecError)."""
    specs = list(specs)
    expand(specs)
    return tuple(spec if spec in GROUPS else check([spec], MONITORS)[0] for spec in specs)


def built(specs: Iterable[str]) -> list[Monitor]:
    """The monitors of these specs (SpecError)."""
    parts: list[Intervention] = build_parts(expand(list(specs)), MONITORS)
    return [part for part in parts if isinstance(part, Monitor)]


def measurer(metric: str) -> str | None:
    """The name of the monitor that measures a metric; None if no monitor does."""
    return next((name for name, kind in MONITORS.items() if metric in kind.metrics), None)

"""The monitor of plasticity; the experiment itself is `probe` in `probing.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Clock, Unit
from ..agents.replay import Batch
from ..agents.views import view
from ..common.ranges import Period, Positive, Samples, SomeUpdates
from ..interventions.core.spec import did_you_mean
from .base import Finding, Monitor, MonitorContext, trigger
from .probing import ARMS, Budget, Draws, Probe, TargetKind, check_targets, experiment, pooled, subjects

MEASURED: tuple[TargetKind, ...] = ("random", "noise", "replay")
MEANINGS = {
    "plasticity_ratio_{}": "fit of copies of the module to {} over that of fresh modules; 1: as plastic as new",
    "plasticity_ratio_{}_low": "lower end of the ratio's 95 % bootstrap interval over draws, for {}",
    "plasticity_ratio_{}_high": "upper end of the ratio's 95 % bootstrap interval over draws, for {}",
    "plasticity_ratio_{}_rescaled": "the ratio for {}, relative to fresh modules with the agent's norms",
    "plasticity_ratio_{}_present_optimizer": "the ratio for {}, with the agent's optimizer state",
    "probe_loss_ratio_{}": "mean final loss of the copies on {} over that of fresh modules",
    "probe_fit_{}": "1 - final loss / variance of {}, mean of the copies",
    "probe_fit_{}_fresh": "1 - final loss / variance of {}, mean of fresh modules",
}
KINDS = {
    "random": "random targets (another fresh module's outputs)",
    "noise": "noise targets (memorisation)",
    "replay": "temporal-difference targets",
}


class ProbeMonitor(Monitor):
    """How well copies of each module learn new targets, compared with fresh modules: a direct measure of plasticity.

    Healthy: The ratio is about 1, and its interval contains 1. For targets from the replay it may exceed 1, because the
        agent has learnt features for them.
    When: The ratio for random targets falls: on the same data, the module learns less than a new module. If `rescaled`
        stays near 1 while the ratio falls, the size of the weights is the only cause, and smaller weights or a smaller
        learning rate are the remedy; if both fall, their size alone does not explain it. If only
        `present_optimizer` falls, the cause is the state of the optimizer. If the interval ends at inf, or there is no
        ratio (nan), the fresh modules learnt nothing either, and the budget is too small.
    Paper: Lyle et al. 2022, "Understanding and Preventing Capacity Loss in Reinforcement Learning", 2204.09560, section
        3 (target-fitting capacity); Lyle et al. 2023, "Understanding Plasticity in Neural Networks", 2303.01486,
        section 3, which subtracts the loss from a baseline, where this monitor divides by that of a fresh module.
    Differs: Targets are added to the initial outputs of a copy, so that large outputs are no disadvantage in themselves
        (with relative=False they are not added, as in the first paper). The budget is small, so that a training run can
        afford it; the papers train for tens of thousands of steps, in which slow learners catch up.

    The interval covers the draws, for this one agent. It does not cover the choice of the agent's initial weights, so a
    freshly initialised small network may deviate from 1 by a few per cent.

    Places are the modules that the agent names: `critic`, `actor`, `encoder`; the members of an ensemble are
    `critic.0`, `critic.1` and so on, and `critic` is the mean of their fits.

    Args:
        every: Period.
        of: Clock of the period.
        steps: Gradient steps of every training; if None 100, or 60 on images.
        batch_size: States per gradient step; if None 64, or 16 on images.
        samples: States from the replay; if None 512, or 256 on images.
        draws: Repetitions, each with its own targets, controls and order of the data.
        lr: Learning rate of Adam, in all arms.
        targets: Kinds of target: random, noise, replay.
        modules: Places to probe; all by default.
        relative: Add targets to the initial outputs of a copy.
    """

    name = "probe"
    group = "deep"
    every = 250_000
    example: ClassVar[str] = "probe(every=4, steps=2, batch_size=8, samples=8, draws=2, lr=0.0002)"
    metrics: ClassVar[Mapping[str, str]] = {
        metric.format(kind): meaning.format(what)
        for kind, what in KINDS.items()
        for metric, meaning in MEANINGS.items()
    }

    def __init__(
        self,
        every: Period = 250_000,
        of: Unit = "updates",
        steps: SomeUpdates | None = None,
        batch_size: Samples | None = None,
        samples: Samples | None = None,
        draws: Draws = 10,
        lr: Positive = 1e-3,
        targets: tuple[TargetKind, ...] = ("random", "replay"),
        modules: tuple[str, ...] = ("all",),
        relative: bool = True,
    ) -> None:
        super().__init__(trigger(every, of))
        check_targets(targets)
        if not targets or not set(targets) <= set(MEASURED):
            raise ValueError(f"targets must be among {', '.join(MEASURED)}; a run has no next task")
        self.given: dict[str, int | None] = {"steps": steps, "batch_size": batch_size}
        self.others: dict[str, Any] = {"draws": draws, "lr": lr, "relative": relative}
        Budget(**self.others)  # refused here rather than at the first measurement
        self.samples, self.targets, self.wanted = samples, targets, modules
        # Only the metrics of the chosen targets, so that the dashboard has no empty charts.
        measured = {metric.format(kind) for kind in targets for metric in MEANINGS}
        vars(self)["metrics"] = {name: meaning for name, meaning in type(self).metrics.items() if name in measured}

    def bind(self, agent: Agent) -> None:
        pixels = agent.observation.pixels
        self.budget = Budget.of(pixels, self.given["steps"], self.given["batch_size"], **self.others)
        self.states = self.samples or (256 if pixels else 512)
        groups = grouped(view(agent).probed(_blank(agent)))
        known = [*groups, *(place(name) for names in groups.values() if len(names) > 1 for name in names)]
        if unknown := [name for name in self.wanted if name not in (*known, "all")]:
            raise ValueError(
                f"{self.name}: this {agent.name} has no module {unknown[0]!r}.{did_you_mean(unknown[0], known)} "
                f"It has {', '.join(known)}"
            )
        self.chosen = {
            group: [n for n in names if {"all", group, place(n)} & set(self.wanted)] for group, names in groups.items()
        }
        self.chosen = {group: names for group, names in self.chosen.items() if names}

    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        names = [name for group in self.chosen.values() for name in group]
        modules = subjects(context.agent, context.batch(self.states, "probe"), "replay", names)
        for group, members in self.chosen.items():
            rows = [experiment(modules[name], self.targets, self.budget, context.seed("probe")) for name in members]
            for kind in self.targets:
                yield f"{group}/probe_{kind}", torch.stack([row[kind] for row in rows])

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        group, _, kind = key.partition("/probe_")
        # The bootstrap's seed depends only on clock and key, so that a resumed run draws the same samples.
        seed = int(np.random.SeedSequence([clock.updates, *key.encode()]).generate_state(1)[0])
        members = self.chosen.get(group, [group])
        probes = [Probe.of(place(name), kind, rows, seed) for name, rows in zip(members, array, strict=True)]
        if len(probes) > 1:
            probes.append(pooled(group, probes))
        for probe in probes:
            for metric, value in readings(probe).items():
                yield f"{probe.module}/{metric}", value


def readings(probe: Probe) -> dict[str, float]:
    """The logged numbers of a probe, by metric."""
    (low, high), fits = probe.interval, probe.fits
    values = (
        probe.ratio,
        low,
        high,
        probe.ratio_rescaled,
        probe.ratio_present,
        probe.loss_ratio,
        float(fits[ARMS[0]].mean()),
        float(fits["fresh"].mean()),
    )
    return {metric.format(probe.target): value for metric, value in zip(MEANINGS, values, strict=True)}


def place(name: str) -> str:
    """`critic 0` → `critic.0`."""
    return name.replace(" ", ".")


def grouped(names: Mapping[str, Any]) -> dict[str, list[str]]:
    """Modules by the component that they belong to: critic → critic 0, critic 1."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(" ")[0], []).append(name)
    return groups


def _blank(agent: Agent) -> Batch:
    """A batch of one blank transition."""
    obs = agent.blank()
    action = torch.zeros(1, dtype=torch.int64) if agent.action.discrete else torch.zeros(1, agent.action.size)
    one = torch.ones(1, device=agent.device)
    return Batch(obs, action.to(agent.device), one, one, obs, one, torch.zeros(1, dtype=torch.int64))

"""A target network set anew on a beat: a part of the diagnosis which of an agent's networks misleads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..agents.agent import Agent, sync_target_
from ..agents.hooks import Intervention, Run, Unit
from ..common.ranges import Moment, Period, Start
from .core.parts import Survey, survey
from .core.resetting import beat
from .core.surgery import load_layer_


class ResetTarget(Intervention):
    """Set the target network anew on a beat: equal to the online network, or drawn like a newborn one.

    When: In a fork, to find out whether a target that is stale or has diverged holds an agent back.
    Paper: Mnih et al. 2015, "Human-level control through deep reinforcement learning" (the copy); with `to=drawn` what
        Nikishin et al. 2022, 2205.07802, do to targets when they reset networks, by itself.
    Differs: A verb of its own, so that the target can be told from the rest.
    Excludes: Agents without a target network.

    Args:
        every: Period.
        of: Clock of the period: steps (environment steps), updates or episodes.
        to: online: equal to the online network. drawn: new weights from the law of their birth.
        at: Moments of the clock, instead of a period.
        start: First reading of the clock at which it may fire.
        stop: Last reading at which it may fire.
    """

    name = "reset_target"
    example: ClassVar[str] = "reset_target(every=2, of=updates)"
    effect = "layer_surgery"

    def __init__(
        self,
        every: Period = 100_000,
        of: Unit = "steps",
        to: Literal["online", "drawn"] = "online",
        at: tuple[Moment, ...] = (),
        start: Start = 0,
        stop: Start | None = None,
    ) -> None:
        super().__init__()
        self.when, self.taken_from = beat(every, of, at, start, stop), to
        self.fired: dict[str, Tensor] = {}

    def bind(self, agent: Agent) -> None:
        if all(component.target is None for component in agent.components.values()):
            raise ValueError(f"reset_target: this {agent.name} has no target network")
        self.found: Survey = survey(agent)

    @torch.no_grad()
    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        if self.taken_from == "online":
            for component in run.agent.components.values():
                if component.target is not None:
                    sync_target_(component, 1.0)
        else:
            for twin in self.found.twins.values():
                load_layer_(twin, twin.fresh(self.generator), None)
        self.touched = {name: float(layer.units) for name, layer in self.found.twins.items()}
        count = torch.full((), float(len(self.found.twins)), device=run.agent.device)
        self.fired = {"interventions/reset_target_layers": count}

    def measurements(self) -> dict[str, Tensor]:
        found, self.fired = self.fired, {}
        return found

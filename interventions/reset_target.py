"""The reset of a target network on a schedule. In a fork it helps to find which network misleads an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..agents.agent import Agent, sync_target_
from ..agents.clock import Unit
from ..agents.hooks import Intervention, Run
from ..common.ranges import Moment, Period, Start
from .core.parts import Survey, survey
from .core.resetting import trigger
from .core.surgery import load_layer_


class ResetTarget(Intervention):
    """Reset the target network on a schedule: to a copy of the online network, or to a fresh initialisation.

    When: In a fork, to test whether a stale or diverged target network limits an agent.
    Paper: Mnih et al. 2015, "Human-level control through deep reinforcement learning" (the copy). With `to=drawn` it is
        the reset of target networks of Nikishin et al. 2022, 2205.07802, without their reset of online networks.
    Differs: A separate intervention, so that the effect of the target network can be separated from the rest.
    Excludes: Agents without a target network.

    Args:
        every: Period.
        of: Clock of the period: steps (environment steps), updates or episodes.
        to: online: equal to the online network. drawn: new weights from the initialiser.
        at: Clock values at which it fires, instead of a period.
        start: First clock value at which it may fire.
        stop: Last clock value at which it may fire.
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
        self.when, self.taken_from = trigger(every, of, at, start, stop), to
        self.fired: dict[str, Tensor] = {}

    def bind(self, agent: Agent) -> None:
        if all(component.target is None for component in agent.components.values()):
            raise ValueError(f"reset_target: this {agent.name} has no target network")
        self.survey: Survey = survey(agent)

    @torch.no_grad()
    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        if self.taken_from == "online":
            for component in run.agent.components.values():
                if component.target is not None:
                    sync_target_(component, 1.0)
        else:
            for layer in self.survey.copies.values():
                load_layer_(layer, layer.fresh(self.generator), None)
        self.touched = {name: float(layer.units) for name, layer in self.survey.copies.items()}
        count = torch.full((), float(len(self.survey.copies)), device=run.agent.device)
        self.fired = {"interventions/reset_target_layers": count}

    def measurements(self) -> dict[str, Tensor]:
        fired, self.fired = self.fired, {}
        return fired

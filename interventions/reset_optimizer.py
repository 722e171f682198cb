"""The reset of the optimizer state alone: Asadi et al. 2023, 2306.17833; Lyle et al. 2023, 2303.01486."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Every, Unit, When
from ..agents.hooks import Intervention, Run
from ..common.ranges import Moment, Period, Start
from .core.parts import chosen_layers, survey
from .core.resetting import trigger
from .core.surgery import Optimizers, forget_


class ResetOptimizer(Intervention):
    """Reset the optimizer state on a schedule, and leave every weight unchanged.

    When: As the baseline of methods that reset weights together with optimizer state. With `syncs`, because every new
        target network is a new problem for the optimizer.
    Paper: Asadi, Fakoor & Sabach 2023, "Resetting the Optimizer in Deep RL: An Empirical Study", 2306.17833: moments
        and counter at every update of the target network. Lyle et al. 2023, "Understanding Plasticity in Neural
        Networks", 2303.01486: optimizer state from another task as a cause of plasticity loss.
    Differs: No known difference. `keep_step` reproduces code that zeroes only the moments: bias correction then treats
        them as moments of long training, and the first steps are 3.2, 4.2, 4.9 times the learning rate. If an Adam with
        such a stale counter learns faster than a new network, that is faster optimisation and not restored plasticity.
    Excludes: No intervention.

    Args:
        every: Period.
        of: Clock of the period: steps (environment steps), updates or episodes.
        on: Parameters whose optimizer state is reset: all, or components (critic, actor, temperature), encoder, head,
            last, or layers by name.
        keep_step: Zero the moments, but keep the step counter.
        syncs: Fire at every update of the target network, instead of a period.
        at: Clock values at which it fires, instead of a period.
        start: First clock value at which it may fire.
        stop: Last clock value at which it may fire.
    """

    name = "reset_optimizer"
    example: ClassVar[str] = "reset_optimizer(every=3)"
    effect = "optimizer"

    def __init__(
        self,
        every: Period = 10_000,
        of: Unit = "steps",
        on: tuple[str, ...] = ("all",),
        keep_step: bool = False,
        syncs: bool = False,
        at: tuple[Moment, ...] = (),
        start: Start = 0,
        stop: Start | None = None,
    ) -> None:
        super().__init__()
        self.parts = (on,) if isinstance(on, str) else tuple(on)
        if not self.parts:
            raise ValueError("on= is empty; on=all means all optimizers")
        self.when, self.keep_step, self.syncs = trigger(every, of, at, start, stop), keep_step, syncs
        self.fired: dict[str, Tensor] = {}

    def fire_when(self, when: When) -> None:
        if self.syncs:
            raise ValueError("'syncs' and 'when' exclude each other")
        super().fire_when(when)

    def bind(self, agent: Agent) -> None:
        self.optimizers = Optimizers(optimizer for _, optimizer in agent.optimizers())
        held = [p for _, o in agent.optimizers() for group in o.param_groups for p in group["params"]]
        named = {id(p) for part in self.parts for p in self.meant(agent, part, held)}
        self.chosen = [p for p in held if id(p) in named]
        if self.syncs:
            self.when = self._target_schedule(agent)

    def meant(self, agent: Agent, part: str, held: list[Tensor]) -> list[Tensor]:
        """The parameters of a part, including those outside all layers, such as a temperature."""
        if part == "all":
            return held
        if part in agent.components:
            return list(agent.components[part].online.parameters())
        surveyed = survey(agent)
        return [p for name in chosen_layers(surveyed, part, self.name) for p in surveyed.layers[name].parameters()]

    def _target_schedule(self, agent: Agent) -> Every:
        period = getattr(getattr(agent, "config", None), "target_period", None)
        if period is None:
            raise ValueError(f"reset_optimizer: syncs needs a target network, and this {agent.name} has none")
        if period == 1:
            raise ValueError(
                f"reset_optimizer: the target network of this {agent.name} moves at every update, so every update "
                "would reset the optimizer; set agent.target_period, or write every=..."
            )
        return Every(period)

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        for parameter in self.chosen:
            forget_(self.optimizers, parameter, keep_step=self.keep_step)
        count = torch.full((), float(len(self.chosen)), device=run.agent.device)
        self.fired = {"interventions/reset_optimizer_tensors": count}

    def measurements(self) -> dict[str, Tensor]:
        fired, self.fired = self.fired, {}
        return fired

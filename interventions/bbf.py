"""Bigger, better, faster: Schwarzer et al. 2023, 2305.19452; SR-SPR: D'Oro et al. 2023 (OpC-9aBBVJe)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, TypeAlias

from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Clock, Sampling, Unit
from ..agents.hooks import Run
from ..common.ranges import NStep, Period, Share, SomeUpdates, Start, between
from .core.config_edits import edit
from .core.parts import ENCODER
from .core.resetting import Target
from .core.surgery import blend_layer_
from .reset import Reset

Discount: TypeAlias = Annotated[float, between(0, 1, above=True, below=True)]


class SoftReset(Reset):
    """Base of composite methods that reinitialise the head, and shrink and perturb the encoder."""

    def __init__(
        self, every: Period, of: Unit, shrink: Share, target: Target, start: Start = 0, stop: Start | None = None
    ) -> None:
        super().__init__(every, of, ("all",), target, start=start, stop=stop)
        self.shrink = shrink

    def need_encoder(self, intervention: str, agent: Agent) -> None:
        """Refuse an agent that has no encoder (ValueError). The message begins with `intervention`."""
        if not any(name.startswith(ENCODER) for name in self.names):
            raise ValueError(
                f"{intervention} shrinks the encoder, and this {agent.name} has none; for vectors use reset"
            )

    def redraw(self, name: str) -> None:
        if not name.startswith(ENCODER):
            return super().redraw(name)
        noise = self.draw(name, self.generator)
        blend_layer_(self.survey.layers[name], noise, self.shrink, 1 - self.shrink)
        if self.target in ("same", "own") and name in self.survey.copies:
            own = self.draw(name, self.generator) if self.target == "own" else noise
            blend_layer_(self.survey.copies[name], own, self.shrink, 1 - self.shrink)


class BBF(SoftReset):
    """Shrink and perturb the encoder, reset the head, and anneal n-step and discount after each reset.

    When: Few environment steps, many updates, image observations. This is the recipe of BBF; combine it with
        `replay_ratio(2)`, `c51` and a wide IMPALA network.
    Paper: Schwarzer et al. 2023, "Bigger, Better, Faster: Human-level Atari with human-level efficiency", 2305.19452,
        section 4 and the authors' BBF.gin: a reset every 20,000 of 100,000 steps; a whole period follows each reset.
        The encoder keeps half of its weights. Over 10,000 updates, n goes from 10 to 3 and the discount from 0.97 to
        0.997, both exponentially, the discount in 1 - discount.
    Differs: The self-predictive loss is not included. As in the authors' code, online and target networks get different
        draws, the target network acts, and the whole optimizer state is reset.
    Excludes: value_mapping and every other intervention that sets n-step; plasticity_injection.

    Args:
        every: Period of the resets.
        of: Clock of the period: steps (environment steps), updates or episodes.
        shrink: Fraction of the old weights that the encoder keeps. The rest is a fresh draw from the initialiser.
        n_start: Rewards summed before bootstrapping, right after a reset.
        n_end: Rewards summed before bootstrapping, after annealing.
        gamma_start: Discount right after a reset.
        gamma_end: Discount after annealing.
        anneal: Updates that the annealing takes.
        act_with_target: The target network selects the actions (DQN).
        stop: Clock value at which training ends. The last reset comes at least a whole period earlier.
    """

    name = "bbf"
    example: ClassVar[str] = "bbf(every=3, anneal=4, n_start=3, n_end=1)"
    reserves = ("n-step and discount",)

    def __init__(
        self,
        every: Period = 20_000,
        of: Unit = "steps",
        shrink: Share = 0.5,
        n_start: NStep = 10,
        n_end: NStep = 3,
        gamma_start: Discount = 0.97,
        gamma_end: Discount = 0.997,
        anneal: SomeUpdates = 10_000,
        act_with_target: bool = True,
        stop: Start | None = 100_000,
    ) -> None:
        super().__init__(every, of, shrink, "own", stop=None if stop is None else max(0, stop - every))
        self.n, self.gamma, self.anneal = (n_start, n_end), (gamma_start, gamma_end), anneal
        self.act_with_target = act_with_target
        self.since = 0  # the update at which the latest reset happened

    def configure(self, config: Any) -> Any:
        edit(config, self.name, n_step=self.n[0])  # refuses an agent without n-step returns by name
        # SAC acts with its actor, which has no target network.
        if self.act_with_target and hasattr(config, "act_with_target"):
            return edit(config, self.name, act_with_target=True)
        return config

    def bind(self, agent: Agent) -> None:
        super().bind(agent)
        self.need_encoder(self.name, agent)

    def host_state(self) -> dict[str, Any]:
        return {"since": self.since}

    def load_host_state(self, state: dict[str, Any]) -> None:
        self.since = state["since"]

    def reinitialised(self, run: Run) -> None:
        self.since = run.clock.updates

    def annealed(self, updates: int) -> tuple[int, float]:
        """n-step and discount `updates` gradient updates after a reset."""
        left = min(1.0, max(0.0, (self.anneal - updates) / self.anneal))
        n = self.n[0] * math.exp((1 - left) * math.log(self.n[1] / self.n[0]))
        horizon = left * math.log(1 - self.gamma[0]) + (1 - left) * math.log(1 - self.gamma[1])
        return round(n), 1 - math.exp(horizon)

    def schedule(self, sampling: Sampling, clock: Clock) -> Sampling:
        n, gamma = self.annealed(clock.updates - self.since)
        return replace(sampling, n_step=n, gamma=gamma)

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        super().fire(run, activations)
        self.since = run.clock.updates

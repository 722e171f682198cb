"""Periodic resets: Nikishin et al. 2022, 2205.07802; D'Oro et al. 2023 (OpC-9aBBVJe)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Unit
from ..agents.hooks import Run
from ..common.ranges import Moment, Period, Start
from .core.resetting import LayerMethod, Target, trigger
from .core.surgery import forget_, load_layer_


class Reset(LayerMethod):
    """Reinitialise layers on a schedule, while the replay keeps its transitions.

    When: The replay ratio is high, or early experience has too much influence (primacy bias).
    Paper: Nikishin et al. 2022, "The Primacy Bias in Deep Reinforcement Learning", 2205.07802, section 5: SAC from
        states resets everything every 200,000 steps, DrQ resets all but the encoder (`layers=head`), SPR resets the
        last layer (`layers=last, target=none`). D'Oro et al. 2023, "Sample-Efficient Reinforcement Learning by Breaking
        the Replay Ratio Barrier": every 2,560,000 updates.
    Differs: No network is rebuilt: new weights are written into the same tensors, so optimizers and target networks
        keep their references. The authors intend to keep the encoder's moments when heads are reset, but their code
        resets all (`moments=all`).
    Excludes: plasticity_injection, unless layers=encoder or layers=actor.

    Args:
        every: Period.
        of: Clock of the period: steps (environment steps), updates or episodes.
        layers: Layers that are reinitialised: all, critic, actor, encoder, head (all but the encoder), last, or layers
            by name.
        target: The target network's layers. copy: copied from the online layers. same or own: reinitialised too, with
            the same draws or their own (no effect on layers without a target). none: unchanged.
        moments: The optimizer state that is reset. all: that of every component with a reset layer. reset: that of the
            reset layers.
        temperature: SAC's temperature, when the actor or everything is reset: fresh (back to its initial value, with
            its optimizer state) or keep.
        log_std: PPO's deviation, likewise: fresh or keep.
        norms: Gains and shifts of normalisation layers: fresh or keep.
        at: Clock values at which it fires, instead of a period.
        start: First clock value at which it may fire.
        stop: Last clock value at which it may fire.
    """

    name = "reset"
    example: ClassVar[str] = "reset(every=3)"

    def __init__(
        self,
        every: Period = 200_000,
        of: Unit = "steps",
        layers: tuple[str, ...] = ("all",),
        target: Target = "copy",
        moments: Literal["all", "reset"] = "all",
        temperature: Literal["fresh", "keep"] = "fresh",
        log_std: Literal["fresh", "keep"] = "fresh",
        norms: Literal["fresh", "keep"] = "fresh",
        at: tuple[Moment, ...] = (),
        start: Start = 0,
        stop: Start | None = None,
    ) -> None:
        super().__init__(layers, trigger(every, of, at, start, stop), target, moments)
        self.temperature, self.log_std, self.edits_norms = temperature, log_std, norms == "fresh"

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        self.reset(run.agent)

    def reset(self, agent: Agent) -> None:
        """Reinitialise the chosen layers, in the order of their initialisation when the agent was built."""
        for name in self.names:
            self.redraw(name)
        self.finish(agent, self.names)
        if {"all", "actor", "head"} & {*self.layers}:
            if self.temperature == "fresh":
                reset_temperature_(self, agent)
            if self.log_std == "fresh":
                reset_deviation_(self, agent)

    def redraw(self, name: str) -> None:
        """Reinitialise one layer, and its target layer if `target` is same or own."""
        fresh = self.draw(name, self.generator)
        # `finish` resets the optimizer state of all layers at once.
        load_layer_(self.survey.layers[name], fresh, None, norms=self.edits_norms)
        if self.target in ("same", "own") and name in self.survey.copies:
            own = self.draw(name, self.generator) if self.target == "own" else fresh
            load_layer_(self.survey.copies[name], own, None, norms=self.edits_norms)


def reset_temperature_(method: LayerMethod, agent: Agent) -> None:
    """Set SAC's temperature to its initial value. Does nothing for agents without a temperature."""
    if "temperature" in agent.components:
        module = agent.components["temperature"].online
        module.load_fresh()
        method.forget(module)


def reset_deviation_(method: LayerMethod, agent: Agent) -> None:
    """Set the deviation of PPO's Gaussian policy to its initial value. Does nothing if the policy has no deviation
    or outputs it."""
    policy: Any = agent.components["actor"].online if "actor" in agent.components else None
    log_std = getattr(policy, "log_std", None)
    if log_std is not None:
        policy.load_fresh_deviation()
        forget_(method.optimizers, log_std)

"""Periodic resets: Nikishin et al. 2022, 2205.07802; D'Oro et al. 2023 (OpC-9aBBVJe)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..agents.agent import Agent
from ..agents.hooks import Run, Unit
from ..common.ranges import Moment, Period, Start
from .core.resetting import LayerMethod, Target, beat
from .core.surgery import forget_, load_layer_


class Reset(LayerMethod):
    """Draw layers anew on a beat, while the replay keeps what was lived through.

    When: The replay ratio is high, or early experience weighs too much (primacy bias).
    Paper: Nikishin et al. 2022, "The Primacy Bias in Deep Reinforcement Learning", 2205.07802, section 5: SAC from
        states resets everything every 200,000 steps, DrQ all but the encoder (`layers=head`), SPR the last layer
        (`layers=last, target=none`). D'Oro et al. 2023, "Sample-Efficient Reinforcement Learning by Breaking the Replay
        Ratio Barrier": every 2,560,000 updates.
    Differs: Nothing is rebuilt: weights are drawn into the same tensors, so optimizers and targets cannot lose them.
        The authors mean to keep the encoder's moments when heads are reset, but their code resets all (`moments=all`).
    Excludes: plasticity_injection, unless layers=encoder or layers=actor.

    Args:
        every: Period.
        of: Clock of the period: steps (environment steps), updates or episodes.
        layers: What is drawn anew: all, critic, actor, encoder, head (all but the encoder), last, or layers by name.
        target: The target network's layers. copy: as the online ones. same or own: drawn too, alike or on their own
            (what a layer without a target has nothing to do with). none: left alone.
        moments: The optimizers' memory that is reset. all: that of every component of which a layer was reset. reset:
            that of the reset layers.
        temperature: SAC's temperature, when the actor or everything is reset: fresh (back to where it began, its
            optimizer too) or keep.
        log_std: PPO's deviation, likewise: fresh or keep.
        norms: Gains and shifts of normalisation layers: fresh or keep.
        at: Moments of the clock, instead of a period.
        start: First reading of the clock at which it may fire.
        stop: Last reading at which it may fire.
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
        super().__init__(layers, beat(every, of, at, start, stop), target, moments)
        self.temperature, self.log_std, self.edits_norms = temperature, log_std, norms == "fresh"

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        self.reset(run.agent)

    def reset(self, agent: Agent) -> None:
        """Draw everything anew, in the order in which it was drawn when the agent was built."""
        for name in self.names:
            self.redraw(name)
        self.finish(agent, self.names)
        if {"all", "actor", "head"} & {*self.layers}:
            if self.temperature == "fresh":
                reset_temperature_(self, agent)
            if self.log_std == "fresh":
                reset_deviation_(self, agent)

    def redraw(self, name: str) -> None:
        """One layer, and its twin in the target network where that is drawn too."""
        fresh = self.draw(name, self.generator)
        # Forgetting comes with `finish`, for all at once.
        load_layer_(self.found.layers[name], fresh, None, norms=self.edits_norms)
        if self.target in ("same", "own") and name in self.found.twins:
            own = self.draw(name, self.generator) if self.target == "own" else fresh
            load_layer_(self.found.twins[name], own, None, norms=self.edits_norms)


def reset_temperature_(method: LayerMethod, agent: Agent) -> None:
    """SAC's temperature back to where it began; agents without one have nothing to reset."""
    if "temperature" in agent.components:
        module = agent.components["temperature"].online
        module.load_fresh()
        method.forget(module)


def reset_deviation_(method: LayerMethod, agent: Agent) -> None:
    """The deviation of PPO's Gaussian policy back to where it began; a policy whose deviation is an output of its
    network, or none, has nothing to reset."""
    policy: Any = agent.components["actor"].online if "actor" in agent.components else None
    log_std = getattr(policy, "log_std", None)
    if log_std is not None:
        policy.load_fresh_deviation()
        forget_(method.optimizers, log_std)

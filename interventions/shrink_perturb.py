"""Shrink and perturb, with its published variants: Ash & Adams 2020, 1910.08475."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from ..agents.agent import Agent
from ..agents.clock import Unit
from ..agents.hooks import Run
from ..common.ranges import Moment, NotNegative, Period, Share, Start
from .core.resetting import LayerMethod, Moments, Target, trigger
from .core.surgery import blend_layer_

Noise = Literal["fresh", "gaussian", "initial"]


class ShrinkPerturb(LayerMethod):
    """Shrink weights towards zero and add noise: weight <- shrink * weight + perturb * noise.

    When: A reset would lose too much; or, at every update with tiny steps, as a continual renewal of weights.
    Paper: Ash & Adams 2020, "On Warm-Starting Neural Network Training", 1910.08475, section 4 (noise=gaussian, once per
        chunk of data). D'Oro et al. 2023 and Schwarzer et al. 2023, 2305.19452: noise=fresh, on the encoder, 0.8 and
        0.2, or 0.5 and 0.5.
    Differs: Parameters select among the five variants in use. At every update, with noise=fresh or gaussian, it is the
        form of Kumar et al. 2023 and of Dohare et al. 2024: `every=1, of=updates, target=none, moments=keep`; with
        another `moments`, Adam would restart each time. noise=initial pulls towards the initial weights; public code
        also calls this shrink and perturb, though it does not change a freshly initialised network. Norms, temperature
        and running statistics are not changed. An equal mixture of two independent draws has 0.71 of the standard
        deviation of one.
    Excludes: plasticity_injection, unless layers=encoder or layers=actor.

    Args:
        shrink: Factor on the weights.
        perturb: Factor on the noise; with noise=gaussian its standard deviation.
        noise: fresh: a draw from the layer's initialiser. gaussian: standard normal. initial: the layer's initial
            weights.
        every: Period.
        of: Clock of the period: steps (environment steps), updates or episodes.
        layers: Layers that change: all, critic, actor, encoder, head (all but the encoder), last, or layers by name.
        target: The target network's layers. same: shrunk and perturbed with the same noise. own: with their own noise.
            copy: copied from the online layers. none: unchanged.
        moments: The optimizer state that is reset. keep: none. reset: that of the changed layers. all: that of every
            component with a changed layer.
        at: Clock values at which it fires, instead of a period.
        start: First clock value at which it may fire.
        stop: Last clock value at which it may fire.
    """

    name = "shrink_perturb"
    example: ClassVar[str] = "shrink_perturb(every=3)"
    edits_norms = False

    def __init__(
        self,
        shrink: Share = 0.8,
        perturb: NotNegative = 0.2,
        noise: Noise = "fresh",
        every: Period = 20_000,
        of: Unit = "steps",
        layers: tuple[str, ...] = ("all",),
        target: Target = "same",
        moments: Moments = "reset",
        at: tuple[Moment, ...] = (),
        start: Start = 0,
        stop: Start | None = None,
    ) -> None:
        super().__init__(layers, trigger(every, of, at, start, stop), target, moments)
        self.shrink, self.perturb, self.noise = shrink, perturb, noise

    def bind(self, agent: Agent) -> None:
        super().bind(agent)
        if self.noise == "initial":
            for name in self.names:
                for key, parameter in self.survey.layers[name].named_parameters():
                    self.register_buffer(_initial_buffer(name, key), parameter.detach().clone())

    def draw(self, name: str, generator: Generator) -> dict[str, Tensor]:
        layer = self.survey.layers[name]
        if self.noise == "fresh":
            return layer.fresh(generator)
        if self.noise == "gaussian":
            # Draw in contiguous layout, so that the draws do not depend on the memory layout of the weights.
            return {
                key: torch.randn(p.shape, generator=generator, device=p.device) for key, p in layer.named_parameters()
            }
        return {key: getattr(self, _initial_buffer(name, key)) for key, _ in layer.named_parameters()}

    @torch.no_grad()
    def reinitialised(self, run: Run) -> None:
        if self.noise == "initial":
            for name in self.names:
                for key, parameter in self.survey.layers[name].named_parameters():
                    getattr(self, _initial_buffer(name, key)).copy_(parameter)

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        for name in self.names:
            noise = self.draw(name, self.generator)
            blend_layer_(self.survey.layers[name], noise, self.shrink, self.perturb)
            if self.target in ("same", "own") and name in self.survey.copies:
                own = self.draw(name, self.generator) if self.target == "own" else noise
                blend_layer_(self.survey.copies[name], own, self.shrink, self.perturb)
        self.finish(run.agent, self.names)


def _initial_buffer(name: str, key: str) -> str:
    return f"birth:{name}:{key}".replace(".", "/")  # a key of checkpoints

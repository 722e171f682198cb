"""The base class of methods that reinitialise whole layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from ...agents.agent import Agent
from ...agents.clock import At, Every, Trigger, Unit
from ...agents.hooks import Effect, Intervention
from ...common.moved import moved
from .parts import Survey, chosen_layers, edited, survey
from .surgery import Optimizers, copy_layer_, forget_

Target = Literal["copy", "same", "own", "none"]
Moments = Literal["all", "reset", "keep"]


def trigger(every: int, of: Unit, at: Sequence[int], start: int, stop: int | None) -> Trigger:
    """The trigger of a schedule: every `every`, or at the given clock values."""
    if at:
        return At(tuple(at), of)
    return Every(every, of, start, stop)


class LayerMethod(Intervention):
    """Base of methods that redraw whole layers. It defines what happens to target networks and to the optimizer
    state."""

    effect: ClassVar[Effect] = "layer_surgery"
    edits_norms = True  # whether gains and shifts of normalisation change, too

    def __init__(self, layers: str | Iterable[str], when: Trigger, target: Target, moments: Moments) -> None:
        super().__init__()
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        if not self.layers:
            raise ValueError("layers= is empty; layers=all means all layers")
        self.when, self.target, self.moments = when, target, moments
        self.edits = edited(self.layers)
        self.fired: dict[str, Tensor] = {}

    def bind(self, agent: Agent) -> None:
        self.survey: Survey = survey(agent)
        self.names = chosen_layers(self.survey, self.layers, self.name)
        self.optimizers = Optimizers(optimizer for _, optimizer in agent.optimizers())

    def draw(self, name: str, generator: Generator) -> dict[str, Tensor]:
        """New weights for a layer from its initialiser."""
        return self.survey.layers[name].fresh(generator)

    def finish(self, agent: Agent, changed: Sequence[str]) -> None:
        """After a change of the online layers: copy them to target networks, and reset the optimizer state, as
        configured."""
        if self.target == "copy":
            for name in changed:
                if name in self.survey.copies:
                    copy_layer_(self.survey.copies[name], self.survey.layers[name])
        if self.moments == "all":
            # Reset the optimizer state of every parameter of a component with a changed layer.
            for component in dict.fromkeys(name.partition(".")[0] for name in changed):
                self.forget(agent.components[component].online)
        elif self.moments == "reset":
            for name in changed:
                for key, parameter in self.survey.layers[name].named_parameters():
                    if self.edits_norms or not key.startswith("norm."):
                        forget_(self.optimizers, parameter)
        self.touched = {name: float(self.survey.layers[name].units) for name in changed}
        self.fired = {f"interventions/{self.name}_layers": torch.full((), float(len(changed)), device=agent.device)}

    def forget(self, module: nn.Module) -> None:
        """Reset the optimizer state of all parameters of a module."""
        for parameter in module.parameters():
            forget_(self.optimizers, parameter)

    def measurements(self) -> dict[str, Tensor]:
        fired, self.fired = self.fired, {}
        return fired


__getattr__ = moved(__name__, {"beat": f"{__name__}.trigger"})  # a former name

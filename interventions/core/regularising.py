"""What penalties on weights have in common: of which layers, at which component's loss, and what the log is told."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from ...agents.agent import Agent
from ...agents.hooks import Intervention, Run
from ...agents.networks import Layer
from ...common.ranges import NotNegative
from .parts import Survey, chosen_layers, survey


class Penalty(Intervention):
    """Base of penalties on the weights of `on`.

    The penalty of a layer is added to the loss of the component that it belongs to, once an update of that component,
    and reaches that component's optimizer alone. What target networks and frozen copies hold is never penalised, nor is
    what belongs to no layer (the temperature of SAC, the log-deviation of a policy that has one for all states).
    """

    effect = "penalty"

    def __init__(self, on: str, weight: NotNegative) -> None:
        super().__init__()
        self.on, self.weight = on, weight
        self.claims = tuple(f"the {self.name} of the {component}" for component in reached(on))
        self.terms: dict[str, Tensor] = {}

    def bind(self, agent: Agent) -> None:
        self.found: Survey = survey(agent)
        self.layers: dict[str, dict[str, Layer]] = {}
        for name in chosen_layers(self.found, self.on, self.name):
            if self.means(name, layer := self.found.layers[name]):
                self.layers.setdefault(name.partition(".")[0], {})[name] = layer
        if not self.layers:
            raise ValueError(f"{self.name}: {self.on} of this {self.found.name} holds nothing that it acts on")

    def means(self, name: str, layer: Layer) -> bool:
        """Is this one of the layers that are penalised?"""
        return True

    def term(self, layers: dict[str, Layer]) -> Tensor:
        """The penalty of some layers of one component (0-d), `weight` included."""
        raise NotImplementedError

    def penalty(self, agent: Agent, component: str) -> Tensor | float:
        if component not in self.layers:
            return 0.0
        term = self.term(self.layers[component])
        self.terms[f"interventions/{self.name}_{component}"] = term.detach()
        return term

    def measurements(self) -> dict[str, Tensor]:
        found, self.terms = self.terms, {}
        return found


class FromBirth(Penalty):
    """Base of penalties on how far weights are from those that they were born with, which are kept as buffers."""

    def __init__(self, on: str, weight: NotNegative, norms: bool) -> None:
        super().__init__(on, weight)
        self.norms = norms

    def bind(self, agent: Agent) -> None:
        super().bind(agent)
        for layers in self.layers.values():
            for key, parameter in tensors(layers, self.norms):
                self.register_buffer(birth(key), self.remembered(parameter))

    @torch.no_grad()
    def reborn(self, run: Run) -> None:
        for layers in self.layers.values():
            for key, parameter in tensors(layers, self.norms):
                self.get_buffer(birth(key)).copy_(self.remembered(parameter))

    def remembered(self, parameter: Tensor) -> Tensor:
        """What is kept of a parameter as it was born."""
        return parameter.detach().clone(memory_format=torch.preserve_format)


def tensors(layers: dict[str, Layer], norms: bool) -> Iterator[tuple[str, Tensor]]:
    """Weights and biases by name, and gains and shifts of normalisation where they are asked for."""
    for name, layer in layers.items():
        for key, parameter in layer.named_parameters():
            if parameter.requires_grad and (norms or not key.startswith("norm.")):
                yield f"{name}.{key}", parameter


def birth(key: str) -> str:
    """The name of the buffer that holds what a parameter was born as."""
    return f"{key.replace('.', '/')}:born"


def reached(on: str) -> tuple[str, ...]:
    """The components to which layers of `on` belong."""
    if on == "encoder" or fnmatchcase(on, "critic*"):
        return ("critic",)
    return ("actor",) if fnmatchcase(on, "actor*") else ("critic", "actor")

"""Base classes of penalties on weights: they choose layers, add to the component's loss, and log the penalty."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...agents.agent import Agent
from ...agents.hooks import Effect, Intervention, Run
from ...agents.networks import Layer
from ...common.moved import moved
from ...common.ranges import NotNegative
from .parts import Survey, chosen_layers, survey

Gradient: TypeAlias = Callable[[Tensor], Sequence[Tensor]]
"""The gradients of a penalty by its parameters, times a factor (0-d)."""


class _ClosedForm(torch.autograd.Function):
    """A scalar whose gradients its own formula computes."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[], tuple[Tensor, Gradient]], *parameters: Tensor) -> Tensor:
        value, ctx.gradient = compute()
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradient(factor)


def closed_form(compute: Callable[[], tuple[Tensor, Gradient]], parameters: Sequence[Tensor]) -> Tensor:
    """A penalty (0-d) whose gradients are known, so that autograd neither records nor repeats its operators.

    Args:
        compute: Returns the value, and the function that computes the gradients. Runs without autograd.
        parameters: The tensors that the gradients belong to, in their order.
    """
    value: Tensor = _ClosedForm.apply(compute, *parameters)  # type: ignore[no-untyped-call]
    return value


class Penalty(Intervention):
    """Base of penalties on the weights of `on`.

    The penalty of a layer is added to the loss of its component, once per update of that component, and affects only
    that component's optimizer. Target networks and frozen copies are never penalised. Parameters outside all layers are
    not penalised either (the temperature of SAC, the log-deviation of a policy that has one for all states).
    """

    effect: ClassVar[Effect] = "penalty"

    def __init__(self, on: str, weight: NotNegative) -> None:
        super().__init__()
        self.on, self.weight = on, weight
        self.reserves = tuple(f"the {self.name} of the {component}" for component in reached(on))
        self.terms: dict[str, Tensor] = {}

    def bind(self, agent: Agent) -> None:
        self.survey: Survey = survey(agent)
        self.layers: dict[str, dict[str, Layer]] = {}
        for name in chosen_layers(self.survey, self.on, self.name):
            if self.means(name, layer := self.survey.layers[name]):
                self.layers.setdefault(name.partition(".")[0], {})[name] = layer
        if not self.layers:
            raise ValueError(f"{self.name}: {self.on} of this {self.survey.name} contains no layer that it penalises")

    def means(self, name: str, layer: Layer) -> bool:
        """Whether this layer is penalised."""
        return True

    def term(self, layers: dict[str, Layer]) -> Tensor:
        """The penalty of the given layers of one component (0-d), `weight` included."""
        raise NotImplementedError

    def penalty(self, agent: Agent, component: str) -> Tensor | float:
        if component not in self.layers:
            return 0.0
        term = self.term(self.layers[component])
        self.terms[f"interventions/{self.name}_{component}"] = term.detach()
        return term

    def measurements(self) -> dict[str, Tensor]:
        terms, self.terms = self.terms, {}
        return terms


class FromInitial(Penalty):
    """Base of penalties on the distance of weights from their initial values, which are kept as buffers."""

    def __init__(self, on: str, weight: NotNegative, norms: bool) -> None:
        super().__init__(on, weight)
        self.norms = norms

    def bind(self, agent: Agent) -> None:
        super().bind(agent)
        for layers in self.layers.values():
            for key, parameter in tensors(layers, self.norms):
                self.register_buffer(initial_buffer(key), self.remembered(parameter))

    @torch.no_grad()
    def reinitialised(self, run: Run) -> None:
        for layers in self.layers.values():
            for key, parameter in tensors(layers, self.norms):
                self.get_buffer(initial_buffer(key)).copy_(self.remembered(parameter))

    def remembered(self, parameter: Tensor) -> Tensor:
        """The part of a parameter's initial value that the penalty needs."""
        return parameter.detach().clone(memory_format=torch.preserve_format)


def tensors(layers: dict[str, Layer], norms: bool) -> Iterator[tuple[str, Tensor]]:
    """Weights and biases by name, and with `norms` also gains and shifts of normalisation."""
    for name, layer in layers.items():
        for key, parameter in layer.named_parameters():
            if parameter.requires_grad and (norms or not key.startswith("norm.")):
                yield f"{name}.{key}", parameter


def initial_buffer(key: str) -> str:
    """The name of the buffer that holds a parameter's initial value."""
    return f"{key.replace('.', '/')}:born"  # a key of checkpoints


def reached(on: str) -> tuple[str, ...]:
    """The components that may contain layers of `on`."""
    if on == "encoder" or fnmatchcase(on, "critic*"):
        return ("critic",)
    return ("actor",) if fnmatchcase(on, "actor*") else ("critic", "actor")


FORMER = {"FromBirth": "FromInitial", "birth": "initial_buffer"}  # former names
__getattr__ = moved(__name__, {former: f"{__name__}.{new}" for former, new in FORMER.items()})

"""The unit graph: which weights take which unit as their input. It is measured, not inferred from the code.

Each unit gets a number, and the numbers pass through the network in place of activations. Everything that is not a
`Layer` (flattening, pooling, the concatenation of an action, the split of a dueling head) moves them in the same way as
the units' outputs. The numbers that arrive at a layer's inputs identify the unit of each input. Convolution to linear,
CReLU's two copies, dueling streams, ensembles and encoders with several consumers need no special case.

A unit whose output joins a residual stream has no consumer of its own and cannot be reset. Such layers are output
layers in `pliant.agents.networks`; they carry no number, and appear here only as consumers. Frozen copies of a head,
too, appear only as consumers: none of their own units can be reset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...agents.agent import Agent
from ...agents.networks import Fourier, Injection, Layer, frozen_modules

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Consumer:
    """A layer that reads units: `owner[j]` is the unit that its input feature or channel j comes from, or -1."""

    layer: Layer
    owner: Tensor  # [inputs] int64, on the layer's device

    @cached_property
    def columns(self) -> Tensor:
        """[units, m] int64: the positions in the consumer's input that each unit feeds; all units feed equally many."""
        owner = self.owner.cpu()
        order = torch.argsort(owner, stable=True)
        order = order[owner[order] >= 0]
        units = int(owner.max()) + 1
        if not torch.equal(torch.bincount(owner[owner >= 0]), torch.full((units,), len(order) // units)):
            raise NotMeasurable("some units of a layer feed more inputs of a consumer than others")
        return order.view(units, -1).to(self.owner.device)

    @cached_property
    def in_order(self) -> bool:
        """Whether the inputs are those of the first unit, then those of the second, and no others."""
        return torch.equal(self.columns.flatten().cpu(), torch.arange(len(self.owner)))

    @cached_property
    def places(self) -> Tensor:
        """[units * m] int64: the places of `columns` among the inputs that come from this layer."""
        return (torch.cumsum(self.owner >= 0, 0) - 1).index_select(0, self.columns.flatten())

    @property
    def weight(self) -> Tensor:
        return self.layer.linear.weight


@dataclass
class Units:
    """The units of one hidden layer, and all their consumers."""

    name: str  # qualified name of the layer in its network
    layer: Layer
    consumers: list[Consumer] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.layer.units

    @property
    def resettable(self) -> bool:
        """Whether every unit has a consumer, so that zeroing the consumers' weights removes the unit's effect."""
        read = torch.zeros(self.count, dtype=torch.bool)
        for consumer in self.consumers:
            read[consumer.owner[consumer.owner >= 0].cpu()] = True
        return bool(read.all())


UnitGraph = dict[str, Units]


class NotMeasurable(ValueError):
    """The network mixes units, so that they cannot be distinguished. The message names the place."""


def agent_graph(agent: Agent) -> UnitGraph:
    """The units of all of an agent's online networks, named `<component>.<layer>`.

    There is one graph for all networks, because a unit's consumer may belong to another component: the actor reads the
    critics' encoder.
    """
    networks = online_networks(agent)
    with _all_open(networks):
        return unit_graph(networks, agent.blank_pass)


@contextmanager
def _all_open(network: nn.Module) -> Iterator[None]:
    """Within the block, use all copies of a head, also those that no injection has opened yet: they are consumers."""
    injections = [m for m in network.modules() if isinstance(m, Injection)]
    opened = [injection.opened for injection in injections]
    for injection in injections:
        injection.opened = len(injection.old)
    try:
        yield
    finally:
        for injection, number in zip(injections, opened, strict=True):
            injection.opened = number


def online_networks(agent: Agent) -> nn.ModuleDict:
    """An agent's online networks by component."""
    return nn.ModuleDict({name: component.online for name, component in agent.components.items()})


def unit_graph(network: nn.Module, forward: Callable[[], Any]) -> UnitGraph:
    """The units of every hidden layer of `network`, by the layer's qualified name, in the order of modules.

    Args:
        network: The network to measure.
        forward: Runs the network once on inputs of all zeros, with a batch of one.

    Raises:
        NotMeasurable: A layer receives mixed numbers.
    """
    frozen = frozen_modules(network)
    layers = {m: name for name, m in network.named_modules() if isinstance(m, Layer)}
    without_units = {m for m in layers if m.is_output or m in frozen}
    graph = {name: Units(name, layer) for layer, name in layers.items() if layer not in without_units}
    # Zero means "no unit". This takes for granted that zeros stay zeros through everything that is not a layer.
    first: dict[str, int] = {}
    total = 1
    for name, units in graph.items():
        first[name] = total
        total += units.count
    if total >= 2**24:
        raise NotMeasurable("more than 16 million units: float32 cannot number them")
    starts = torch.tensor([*first.values(), total])

    def numbered(layer: Layer, x: Tensor) -> Tensor:
        """A tensor in the shape of the layer's output that holds the numbers of the layer's units."""
        name = layers[layer]
        _note_consumers(name, layer, x, graph, starts)
        shape = layer.linear(x).shape
        if layer in without_units:
            places = (shape[0], shape[1] * layer.copies, *shape[2:])
            return torch.zeros(places, dtype=x.dtype, device=x.device)
        numbers = torch.arange(first[name], first[name] + layer.units, dtype=x.dtype, device=x.device)
        numbers = numbers.repeat(layer.copies).view(1, -1, *(1,) * (len(shape) - 2))
        return numbers.expand(shape[0], -1, *shape[2:]).contiguous()

    def carried(activation: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([x, x], dim=1)

    # Fourier activations outside a layer are not zero at zero, so they are replaced, too.
    bare = {m: name for name, m in network.named_modules() if isinstance(m, Fourier)}
    with torch.no_grad(), _replaced_forward(layers, numbered), _replaced_forward(bare, carried):
        forward()
    return graph


def _note_consumers(name: str, layer: Layer, x: Tensor, graph: UnitGraph, starts: Tensor) -> None:
    """Record a layer as the consumer of the units whose numbers arrive at its inputs."""
    positions = x[0].reshape(x.shape[1], -1)
    numbers = positions[:, 0].round()
    mixed = not torch.equal(positions, numbers[:, None].expand_as(positions))
    numbers = numbers.long().cpu()
    if mixed or bool(((numbers < 0) | (numbers >= starts[-1])).any()):
        raise NotMeasurable(f"the inputs of {name} mix units with each other")
    sources = torch.bucketize(numbers, starts, right=True) - 1
    for place in sources[numbers > 0].unique().tolist():
        owner = torch.where(sources == place, numbers - starts[place], -1)
        graph[list(graph)[place]].consumers.append(Consumer(layer, owner.to(layer.linear.weight.device)))


@contextmanager
def _replaced_forward(layers: dict[M, str], numbered: Callable[[M, Tensor], Tensor]) -> Iterator[None]:
    """Temporarily let every layer output numbers instead of activations."""

    def bind(layer: M) -> Callable[..., Tensor]:
        return lambda x, trace=None: numbered(layer, x)

    for layer in layers:
        layer.forward = bind(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward

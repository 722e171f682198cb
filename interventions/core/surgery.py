"""The verbs that edit weights, and the only ones.

Every edit of a weight is followed by the reset of the optimizer's memory of exactly that weight. Nothing is replaced:
tensors keep their identity, so optimizers, targets, compiled graphs and checkpoints stay right. Nothing here makes the
host wait for the device: which units are meant stays a tensor, and what is not to change is written back as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ...agents.networks import Layer
from .units import Consumer, UnitGraph

# Per-element memory of torch's optimizers and of pliant's own, all of the parameter's shape.
MEMORY = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "filled", "filled_sq")
# Of these, what tells an optimizer how old a weight is, as the step counter tells it of a whole tensor.
AGES = ("filled", "filled_sq")


class Optimizers:
    """Which optimizer holds which parameter, found by the parameter itself and never by position."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self._of = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}

    def memory(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is remembered of a parameter, element by element; empty for what nobody trains."""
        return {
            name: value
            for name, value in self.state(parameter).items()
            if name in MEMORY and isinstance(value, Tensor) and value.shape == parameter.shape
        }

    def step(self, parameter: Tensor) -> Tensor | None:
        """The counter that all elements of a parameter share."""
        step = self.state(parameter).get("step")
        return step if isinstance(step, Tensor) else None

    def give_age(self, parameter: Tensor) -> None:
        """Let single weights of a parameter begin anew, where the optimizer knows how (that of pliant does)."""
        optimizer = self._of.get(parameter)
        if optimizer is not None and hasattr(optimizer, "give_age"):
            optimizer.give_age(parameter)

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        """All that is remembered of a parameter, its step counter included; empty for what nobody trains."""
        optimizer = self._of.get(parameter)
        # A plain lookup would enter an empty state, which torch's optimizers take for a started one.
        return {} if optimizer is None or parameter not in optimizer.state else optimizer.state[parameter]


class Chosen(NamedTuple):
    """Units of one layer, without saying on the host how many: those of `index` [k] int64 at which `valid` [k] holds.

    Every unit stands in `index` at most once.
    """

    index: Tensor  # type: ignore[assignment]
    valid: Tensor

    @classmethod
    def where(cls, mask: Tensor) -> Chosen:
        """The units at which a mask [units] holds."""
        return cls(torch.arange(len(mask), device=mask.device), mask)


@torch.no_grad()
def forget_(optimizers: Optimizers, parameter: Tensor, *, keep_step: bool = False) -> None:
    """Let the optimizer begin with a whole parameter from scratch, its step counter included; or forget the moments and
    go on counting, so that they are taken for those of long training while they are none (`keep_step`)."""
    for name, memory in optimizers.memory(parameter).items():
        if not (keep_step and name in AGES):
            memory.zero_()
    step = optimizers.step(parameter)
    if step is not None and not keep_step:
        # In place: it may live on the device, and an integer in its stead crashes the next step.
        step.zero_()


def _put_(tensor: Tensor, dim: int, index: Tensor, valid: Tensor, value: Tensor | float) -> None:
    """tensor[index along dim] <- value where valid; everything else is written back as it was."""
    old = tensor.index_select(dim, index)
    shape = [1] * tensor.ndim
    shape[dim] = -1
    fresh = value if isinstance(value, Tensor) else old.new_tensor(0.0) if value == 0.0 else old.new_full((), value)
    tensor.index_copy_(dim, index, torch.where(valid.view(shape), fresh, old))


def _edit_(
    optimizers: Optimizers, parameter: Tensor, dim: int, index: Tensor, valid: Tensor, value: Tensor | float
) -> None:
    """Set slices of a parameter, and forget what the optimizer remembers of exactly these."""
    _put_(parameter, dim, index, valid, value)
    for memory in optimizers.memory(parameter).values():
        _put_(memory, dim, index, valid, 0.0)


@torch.no_grad()
def reinit_units_(
    graph: UnitGraph,
    chosen: Mapping[str, Chosen],
    optimizers: Optimizers,
    generator: Generator,
    *,
    outgoing: bool = True,
) -> None:
    """Give the chosen units new incoming weights from the law of their layer's birth, and zero outgoing ones.

    First all that is incoming, then all that is outgoing (Sokar et al. 2023), so that the weight between two recycled
    units of neighbouring layers ends at zero.

    Args:
        chosen: By layer name, on the network's device.
        generator: On the network's device; its stream depends on how many units could be chosen, never on which.
        outgoing: Zero outgoing weights too.
    """
    for name, (index, valid) in chosen.items():
        layer = graph[name].layer
        for key, fresh in layer.fresh_units(len(index), generator).items():
            _edit_(optimizers, layer.get_parameter(key), 0, index, valid, fresh)
    if not outgoing:
        return
    for name, (index, valid) in chosen.items():
        for consumer in graph[name].consumers:
            columns = consumer.columns.index_select(0, index)
            _edit_(optimizers, consumer.weight, 1, columns.flatten(), valid[:, None].expand_as(columns).flatten(), 0.0)


@torch.no_grad()
def fold_into_bias_(consumer: Consumer, chosen: Chosen, mean: Tensor) -> None:
    """bias += weight of the chosen units * their mean outputs, so that silencing them keeps what reads them on average.

    Args:
        mean: [units * m], the mean of the consumer's input behind each unit, in the order of `consumer.columns`.
    """
    bias = consumer.layer.linear.bias
    if bias is None:
        return
    columns = consumer.columns.index_select(0, chosen.index)
    weight = consumer.weight.flatten(2).sum(2) if consumer.weight.ndim > 2 else consumer.weight
    means = mean.view(len(consumer.columns), -1).index_select(0, chosen.index) * chosen.valid[:, None]
    bias.add_(weight.index_select(1, columns.flatten()) @ means.flatten())


@torch.no_grad()
def load_layer_(
    layer: Layer, fresh: Mapping[str, Tensor], optimizers: Optimizers | None, *, norms: bool = True
) -> None:
    """Give a whole layer the weights that were drawn for it, and let the optimizer (none for a target network, or
    where another verb sees to it) begin with them from scratch.

    Args:
        norms: Gains and shifts of the layer's normalisation too.
    """
    for key, value in fresh.items():
        if norms or not key.startswith("norm."):
            parameter = layer.get_parameter(key)
            parameter.copy_(value)
            if optimizers is not None:
                forget_(optimizers, parameter)


@torch.no_grad()
def blend_layer_(layer: Layer, fresh: Mapping[str, Tensor], shrink: float, perturb: float) -> None:
    """weight <- shrink * weight + perturb * drawn, for weights and biases; gains and shifts of norms stay.

    The optimizer's memory is the caller's to keep or to reset: the papers differ.
    """
    for key, value in fresh.items():
        if key.startswith("linear."):
            layer.get_parameter(key).mul_(shrink).add_(value, alpha=perturb)


@torch.no_grad()
def copy_layer_(layer: Layer, source: Layer) -> None:
    """Let a layer hold the weights of another of its kind, and the running statistics, where it has any."""
    held, given = ((*one.parameters(), *one.buffers()) for one in (layer, source))
    for mine, theirs in zip(held, given, strict=True):
        mine.copy_(theirs)

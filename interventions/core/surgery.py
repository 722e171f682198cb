"""The functions that edit weights. No other code edits weights.

After every edit of a weight, the optimizer state of exactly that weight is reset. Tensors keep their identity, so
optimizers, targets, compiled graphs and checkpoints stay valid. Nothing here makes the host wait for the device: the
choice of units stays a tensor, and weights that do not change are written back unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ...agents.networks import Layer
from .units import Consumer, UnitGraph

# Per-element state of torch's optimizers and of pliant's own, all with the parameter's shape.
MEMORY = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "filled", "filled_sq")
# Entries of MEMORY from which Adam computes the step count of each weight; `step` is the count of a whole tensor.
PER_WEIGHT = ("filled", "filled_sq")

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Optimizers:
    """Maps each parameter to the optimizer that holds it, by the parameter's identity and never by position."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self._of = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}

    def memory(self, parameter: Tensor) -> dict[str, Tensor]:
        """The optimizer state of a parameter, element by element; empty for a parameter that is not trained."""
        return {
            name: value
            for name, value in self.state(parameter).items()
            if name in MEMORY and isinstance(value, Tensor) and value.shape == parameter.shape
        }

    def step(self, parameter: Tensor) -> Tensor | None:
        """The step counter that all elements of a parameter share."""
        step = self.state(parameter).get("step")
        return step if isinstance(step, Tensor) else None

    def count_per_weight(self, parameter: Tensor) -> None:
        """Give each weight of a parameter its own step count, if the optimizer supports it (pliant's Adam does)."""
        optimizer = self._of.get(parameter)
        if optimizer is not None and hasattr(optimizer, "count_per_weight"):
            optimizer.count_per_weight(parameter)

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The whole optimizer state of a parameter, step counter included; empty for a parameter that is not
        trained."""
        optimizer = self._of.get(parameter)
        # A plain lookup would insert an empty state, and torch's optimizers would not initialise it any more.
        return {} if optimizer is None or parameter not in optimizer.state else optimizer.state[parameter]


class Chosen(NamedTuple):
    """Units of one layer, whose number is not known on the host: those of `index` [k] int64 for which `valid` [k]
    holds.

    `index` contains each unit at most once.
    """

    index: Tensor  # type: ignore[assignment]
    valid: Tensor

    @classmethod
    def where(cls, mask: Tensor) -> Chosen:
        """The units for which a mask [units] holds."""
        return cls(torch.arange(len(mask), device=mask.device), mask)


@torch.no_grad()
def forget_(optimizers: Optimizers, parameter: Tensor, *, keep_step: bool = False) -> None:
    """Reset the optimizer state of a whole parameter, its step counter included.

    With `keep_step` only the moments are zeroed and the counter is kept, so Adam treats the zeros as moments of long
    training.
    """
    for name, memory in optimizers.memory(parameter).items():
        if not (keep_step and name in PER_WEIGHT):
            memory.zero_()
    step = optimizers.step(parameter)
    if step is not None and not keep_step:
        # In place: the counter may be a device tensor, and replacing it by an integer crashes the next step.
        step.zero_()


def _put_(tensor: Tensor, dim: int, index: Tensor, valid: Tensor, value: Tensor | float, block: int = 1) -> None:
    """tensor[index along dim] <- value if valid (0-d); otherwise the same numbers are written back.

    With `block` above 1, `index` counts blocks of so many columns, which are moved as a whole.
    """
    if block > 1:
        tensor = tensor.view(len(tensor), -1, block)
    old = tensor.index_select(dim, index)
    if isinstance(value, Tensor):
        old = torch.where(valid, value, old)
    else:
        assert value == 0.0
        # All bits are kept or cleared, which a CPU does many times as fast as a choice between two numbers.
        old.view(BITS[old.element_size()]).bitwise_and_(valid.to(torch.int64) - 1)
    tensor.index_copy_(dim, index, old)


def _edit_(
    optimizers: Optimizers,
    parameter: Tensor,
    dim: int,
    index: Tensor,
    valid: Tensor,
    value: Tensor | float,
    block: int = 1,
) -> None:
    """Set slices of a parameter, and zero the optimizer state of exactly these slices."""
    _put_(parameter, dim, index, valid, value, block)
    for memory in optimizers.memory(parameter).values():
        _put_(memory, dim, index, valid, 0.0, block)


def _zero_outgoing_(optimizers: Optimizers, consumer: Consumer, index: Tensor, valid: Tensor) -> None:
    """Zero the weights by which a consumer reads units, and their optimizer state."""
    weight, columns = consumer.weight, consumer.columns
    if consumer.in_order and weight.ndim == 2 and weight.is_contiguous():
        # The weights of a unit lie side by side in each row.
        _edit_(optimizers, weight, 1, index, valid, 0.0, columns.shape[1])
        return
    _edit_(optimizers, weight, 1, columns.index_select(0, index).flatten(), valid, 0.0)


@torch.no_grad()
def reinit_units_(
    graph: UnitGraph,
    chosen: Mapping[str, Chosen],
    optimizers: Optimizers,
    generator: Generator,
    *,
    outgoing: bool = True,
) -> None:
    """Give the chosen units new incoming weights from their layer's initialiser, and zero outgoing weights.

    All incoming weights change first, then all outgoing ones (Sokar et al. 2023), so that the weight between two
    recycled units of neighbouring layers ends at zero.

    Args:
        chosen: By layer name, on the network's device.
        generator: On the network's device. Its stream depends on the number of candidate units, never on the choice.
        outgoing: Zero outgoing weights too.
    """
    repeating = {name: _repeating(units) for name, units in chosen.items()}
    for name, (places, index, valid) in repeating.items():
        layer = graph[name].layer
        for key, fresh in layer.fresh_units(len(index), generator).items():
            _edit_(optimizers, layer.get_parameter(key), 0, index, valid, fresh.index_select(0, places))
    if not outgoing:
        return
    for name, (_, index, valid) in repeating.items():
        for consumer in graph[name].consumers:
            _zero_outgoing_(optimizers, consumer, index, valid)


def _repeating(chosen: Chosen) -> tuple[Tensor, Tensor, Tensor]:
    """Chosen units, with the first valid one in the place of all that are not valid: their places in `chosen`, their
    index, and whether any is valid (0-d).

    The edit is the same, since a unit that occurs twice gets the same values twice. But all units are now alike, and
    few: if none is valid, only the first unit's weights are read and written back.
    """
    index, valid = chosen
    some, first = valid.to(torch.uint8).max(0)
    places = torch.where(valid, torch.arange(len(index), device=index.device), first)
    return places, index.index_select(0, places), some.to(torch.bool)


@torch.no_grad()
def fold_into_bias_(consumer: Consumer, chosen: Chosen, mean: Tensor) -> None:
    """bias += weight of the chosen units * their mean outputs, so that zeroing the units keeps the consumer's mean
    output.

    Args:
        mean: [units * m], the mean of the consumer's inputs that belong to each unit, in the order of
            `consumer.columns`.
    """
    bias = consumer.layer.linear.bias
    if bias is None:
        return
    weight, columns = consumer.weight, consumer.columns
    weight = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    if consumer.in_order:
        weight = weight.view(len(weight), *columns.shape).index_select(1, chosen.index).flatten(1)
    else:
        weight = weight.index_select(1, columns.index_select(0, chosen.index).flatten())
    means = mean.view(len(consumer.columns), -1).index_select(0, chosen.index) * chosen.valid[:, None]
    bias.add_(weight @ means.flatten())


@torch.no_grad()
def load_layer_(
    layer: Layer, fresh: Mapping[str, Tensor], optimizers: Optimizers | None, *, norms: bool = True
) -> None:
    """Load freshly drawn weights into a whole layer, and reset the optimizer state of each.

    Args:
        optimizers: None for a target network, or if the caller resets the optimizer state.
        norms: Load gains and shifts of the layer's normalisation too.
    """
    for key, value in fresh.items():
        if norms or not key.startswith("norm."):
            parameter = layer.get_parameter(key)
            parameter.copy_(value)
            if optimizers is not None:
                forget_(optimizers, parameter)


@torch.no_grad()
def blend_layer_(layer: Layer, fresh: Mapping[str, Tensor], shrink: float, perturb: float) -> None:
    """weight <- shrink * weight + perturb * drawn, for weights and biases; gains and shifts of norms do not change.

    The caller decides whether to keep or to reset the optimizer state, because the papers differ.
    """
    for key, value in fresh.items():
        if key.startswith("linear."):
            layer.get_parameter(key).mul_(shrink).add_(value, alpha=perturb)


@torch.no_grad()
def copy_layer_(layer: Layer, source: Layer) -> None:
    """Copy the weights, and running statistics if any, from another layer of the same kind."""
    held, given = ((*one.parameters(), *one.buffers()) for one in (layer, source))
    for mine, theirs in zip(held, given, strict=True):
        mine.copy_(theirs)

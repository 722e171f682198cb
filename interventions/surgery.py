"""The verbs that edit weights, and the only ones.

Every edit of a weight is followed by the reset of the optimizer's memory of exactly that weight. Nothing is replaced:
tensors keep their identity, so optimizers, targets, compiled graphs and checkpoints stay right. Nothing here makes the
host wait for the device: masks stay tensors, and what is not to change is written back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from ..agents.networks import Layer
from .units import UnitGraph

# Per-element memory of torch's optimizers and of pliant's own, all of the parameter's shape.
MEMORY = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "age")


@torch.no_grad()
def reset_optimizer_state_(
    optimizer: torch.optim.Optimizer, parameter: Tensor, mask: Tensor | None = None, *, step: bool = False
) -> None:
    """Forget what the optimizer remembers of a parameter: of all of it, or of the elements where `mask` holds.

    Found by the parameter itself, never by position. Adam keeps one step counter per tensor: zeroing the moments of
    some elements alone makes their first steps 3.2 times the learning rate, zeroing the counter too slows all other
    elements of the tensor down (0.3 times and less). So `step` is for whole parameters; single units want an optimizer
    that keeps an `age` per weight, which is reset here with the moments.
    """
    if step and mask is not None:
        raise ValueError("the step counter belongs to the whole tensor; it cannot be reset for some of its elements")
    state = optimizer.state.get(parameter)
    if not state:
        return
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and name in MEMORY:
            if mask is None:
                value.zero_()
            else:
                value.masked_fill_(mask.expand_as(value), 0.0)
    if step and "step" in state:
        # In place: it may live on the device, and an integer in its stead crashes the next step.
        state["step"].zero_()


@torch.no_grad()
def reinit_units_(
    graph: UnitGraph, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, generator: Generator
) -> None:
    """Give the masked units new incoming weights from the law of their layer's birth, and zero outgoing ones.

    First all that is incoming, then all that is outgoing (Sokar et al. 2023), so that the weight between two recycled
    units of neighbouring layers ends at zero.

    Args:
        masks: By layer name, [units] bool on the device.
        generator: On the network's device; draws whole layers, so its stream does not depend on the masks.
    """
    for name, mask in masks.items():
        layer = graph[name].layer
        for key, fresh in layer.fresh(generator).items():
            parameter = layer.get_parameter(key)
            rows = mask.view(-1, *(1,) * (parameter.ndim - 1))
            parameter.copy_(torch.where(rows, fresh, parameter))
            reset_optimizer_state_(optimizer, parameter, rows)
    for name, mask in masks.items():
        for reader in graph[name].readers:
            weight = reader.layer.linear.weight
            columns = (mask[reader.owner.clamp(min=0)] & (reader.owner >= 0)).view(1, -1, *(1,) * (weight.ndim - 2))
            weight.masked_fill_(columns, 0.0)
            reset_optimizer_state_(optimizer, weight, columns)


@torch.no_grad()
def reinit_layer_(layer: Layer, optimizer: torch.optim.Optimizer | None, generator: Generator) -> None:
    """Draw a whole layer anew, and let the optimizer (none for a target network) begin with it from scratch."""
    layer.load_fresh(generator)
    if optimizer is not None:
        for parameter in layer.parameters():
            reset_optimizer_state_(optimizer, parameter, step=True)


@torch.no_grad()
def shrink_perturb_(layer: Layer, shrink: float, perturb: float, generator: Generator) -> None:
    """weight <- shrink * weight + perturb * fresh draw, for weights and biases; gains and shifts of norms stay.

    The optimizer's memory is the caller's to keep or to reset: the papers differ.
    """
    for key, fresh in layer.fresh(generator).items():
        if key.startswith("linear."):
            parameter = layer.get_parameter(key)
            parameter.mul_(shrink).add_(fresh, alpha=perturb)


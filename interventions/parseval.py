"""Parseval regularisation: Chung et al. 2024, 2412.07224."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..agents.networks import Layer
from ..common.ranges import NotNegative
from .core.matrices import gram
from .core.parts import ENCODER
from .core.regularising import Penalty


class Parseval(Penalty):
    """Keep the rows of hidden weight matrices orthogonal, and of the length that they were born with.

    When: Policies and values learn one task after another; made for networks that are born orthogonal.
    Paper: Chung, Cherif, Precup & Meger 2024, "Parseval Regularization for Continual Reinforcement Learning",
        2412.07224: weight * (64 / width)^2 * sum over hidden layers of |W W^T - s I|^2, with s the squared gain of the
        orthogonal birth (2), without biases and output layers; 1e-3 in gridworlds and Meta-World, 1e-4 on CARL.
    Differs: A layer of more outputs than inputs cannot have orthogonal rows: its columns are made so (W^T W), which has
        the same gradient, less the constant s^2 (out - in) that the code's value has. width is the layer's own number
        of units. A convolution counts as the matrix [out, in * kernel] that it is stored as. The learnable diagonal,
        the scaled input and the groups of rows are not here.
    Excludes: another parseval on the same component.

    Args:
        weight: Strength of the penalty.
        on: Whose weights: all, critic, actor, encoder, head, or layers by name.
        s: Squared length of the rows; 0 is the squared gain of each layer (2 if hidden, also where the network was born
            by PyTorch's law, whose rows have a squared length near 1/3 and are pulled up).
    """

    name = "parseval"
    example: ClassVar[str] = "parseval(weight=0.01)"

    def __init__(self, weight: NotNegative = 1e-3, on: str = "all", s: NotNegative = 0.0) -> None:
        super().__init__(on, weight)
        self.s = s

    def means(self, name: str, layer: Layer) -> bool:
        return not layer.is_output or name.startswith(ENCODER)

    def term(self, layers: dict[str, Layer]) -> Tensor:
        parts = []
        for layer in layers.values():
            product = gram(layer.linear.weight.flatten(1))
            wanted = self.length(layer) * torch.eye(len(product), device=product.device, dtype=product.dtype)
            parts.append((64 / layer.units) ** 2 * (product - wanted).square().sum())
        return self.weight * torch.stack(parts).sum()

    def length(self, layer: Layer) -> float:
        """The squared length that the rows of a layer are to have."""
        return self.s or layer.gain**2

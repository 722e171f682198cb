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
    """Keep the rows of hidden weight matrices orthogonal, and at the length of their initialisation.

    When: Policies and values learn one task after another; intended for networks with orthogonal initialisation.
    Paper: Chung, Cherif, Precup & Meger 2024, "Parseval Regularization for Continual Reinforcement Learning",
        2412.07224: weight * (64 / width)^2 * sum over hidden layers of |W W^T - s I|^2, with s the squared gain of the
        orthogonal initialisation (2), without biases and output layers; 1e-3 in gridworlds and Meta-World, 1e-4 on
        CARL.
    Differs: A layer with more outputs than inputs cannot have orthogonal rows, so its columns are made orthogonal (W^T
        W). This has the same gradient; the value lacks the constant s^2 (out - in) of the code's value. width is the
        layer's own number of units. A convolution is treated as the matrix [out, in * kernel] in which it is stored.
        The learnable diagonal, the scaled input and the groups of rows are not implemented.
    Excludes: another parseval on the same component.

    Args:
        weight: Strength of the penalty.
        on: Weights that are penalised: all, critic, actor, encoder, head, or layers by name.
        s: Squared length of the rows. 0 is the squared gain of each layer: 2 for hidden layers. This also holds for
            PyTorch's default initialisation, whose rows have a squared length near 1/3, so the penalty increases them.
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
            target = self.length(layer) * torch.eye(len(product), device=product.device, dtype=product.dtype)
            parts.append((64 / layer.units) ** 2 * (product - target).square().sum())
        return self.weight * torch.stack(parts).sum()

    def length(self, layer: Layer) -> float:
        """The squared row length that the penalty aims at."""
        return self.s or layer.gain**2

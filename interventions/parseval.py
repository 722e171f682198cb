"""Parseval regularisation: Chung et al. 2024, 2412.07224."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..agents.networks import Layer
from ..common.ranges import NotNegative
from .core.matrices import gram_in_blocks
from .core.parts import ENCODER
from .core.regularising import Gradient, Penalty, closed_form


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
        weights = [layer.linear.weight for layer in layers.values()]
        strengths = [self.weight * (64 / layer.units) ** 2 for layer in layers.values()]

        def compute() -> tuple[Tensor, Gradient]:
            excess = []
            for layer in layers.values():
                product = gram_in_blocks(layer.linear.weight.flatten(1))
                product.diagonal().sub_(self.length(layer))
                excess.append(product)
            flat = [product.flatten() for product in excess]
            squares = torch._foreach_mul([torch.dot(x, x) for x in flat], strengths)

            def gradient(factor: Tensor) -> Sequence[Tensor]:
                """4 c (W W^T - s I) W, or 4 c W (W^T W - s I)."""
                gradients = []
                for weight, strength, product in zip(weights, strengths, excess, strict=True):
                    matrix, scaled = weight.flatten(1), product * (factor * (4 * strength))
                    side = scaled @ matrix if len(scaled) == len(matrix) else matrix @ scaled
                    gradients.append(side.view(weight.shape))
                return gradients

            return torch.stack(squares).sum(), gradient

        return closed_form(compute, weights)

    def length(self, layer: Layer) -> float:
        """The squared row length that the penalty aims at."""
        return self.s or layer.gain**2

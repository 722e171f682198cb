"""The Wasserstein regulariser: Lewandowski et al. 2023, 2312.00246."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..agents.networks import Layer
from ..common.ranges import NotNegative
from .core.regularising import FromInitial, Gradient, closed_form, initial_buffer, tensors
from .core.sorting import sorted_values


class Wasserstein(FromInitial):
    """Keep the distribution of each tensor's weights as it was at initialisation, whichever weight has which value.

    When: As for l2_init, where single weights should be free to move.
    Paper: Lewandowski, Tanaka, Schuurmans & Machado 2023, "Directions of Curvature as an Explanation for Loss of
        Plasticity", 2312.00246: the squared 2-Wasserstein distance between the empirical distributions of present and
        initial weights. For two samples of equal size this is the mean squared difference of the sorted values.
    Differs: The distance is computed for each tensor, biases included, and summed over tensors. Gains and shifts of
        normalisation are excluded, unless norms=True. Reset weights follow the layer's initialiser, so the reference
        needs no update after a reset.
    Excludes: another wasserstein on the same component.

    Args:
        weight: Strength of the penalty.
        on: Weights that are penalised: all, critic, actor, encoder, head, last, or layers by name.
        norms: Include gains and shifts of normalisation.
    """

    name = "wasserstein"
    example: ClassVar[str] = "wasserstein(weight=1.0)"

    def __init__(self, weight: NotNegative = 1e-2, on: str = "all", norms: bool = False) -> None:
        super().__init__(on, weight, norms)

    def remembered(self, parameter: Tensor) -> Tensor:
        return sorted_values(parameter.detach().flatten())[0]

    def term(self, layers: dict[str, Layer]) -> Tensor:
        keys, parameters = zip(*tensors(layers, self.norms), strict=True)

        def compute() -> tuple[Tensor, Gradient]:
            ordered = [sorted_values(parameter.flatten()) for parameter in parameters]
            initial = [self.get_buffer(initial_buffer(key)) for key in keys]
            away = torch._foreach_sub([values for values, _ in ordered], initial)
            lengths = torch._foreach_div(torch._foreach_norm(away), [math.sqrt(x.numel()) for x in away])

            def gradient(factor: Tensor) -> Sequence[Tensor]:
                """Each weight is pulled to the initial value of its rank."""
                gradients = []
                for parameter, (_, order), x in zip(parameters, ordered, away, strict=True):
                    pull = x * (factor * (2 * self.weight / x.numel()))
                    gradients.append(torch.empty_like(x).scatter_(0, order, pull).view(parameter.shape))
                return gradients

            return self.weight * torch.stack(lengths).square().sum(), gradient

        return closed_form(compute, parameters)

"""The Wasserstein regulariser: Lewandowski et al. 2023, 2312.00246."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..agents.networks import Layer
from ..common.ranges import NotNegative
from .core.regularising import FromInitial, initial_buffer, tensors


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
        return parameter.detach().flatten().sort().values

    def term(self, layers: dict[str, Layer]) -> Tensor:
        distances = [
            (parameter.flatten().sort().values - self.get_buffer(initial_buffer(key))).square().mean()
            for key, parameter in tensors(layers, self.norms)
        ]
        return self.weight * torch.stack(distances).sum()

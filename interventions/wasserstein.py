"""The Wasserstein regulariser: Lewandowski et al. 2023, 2312.00246."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..agents.networks import Layer
from ..common.ranges import NotNegative
from .core.regularising import FromBirth, birth, tensors


class Wasserstein(FromBirth):
    """Keep the distribution of each tensor's weights what it was at birth, whichever weight is where.

    When: As for l2_init, where single weights should be free to move.
    Paper: Lewandowski, Tanaka, Schuurmans & Machado 2023, "Directions of Curvature as an Explanation for Loss of
        Plasticity", 2312.00246: the squared 2-Wasserstein distance between the empirical distributions of weights now
        and at birth, which for as many numbers on either side is the mean squared difference of the sorted ones.
    Differs: Of each tensor for itself, biases too, and summed over tensors. Gains and shifts of normalisation are left
        out, unless norms=True. What was reset follows its law of birth, so there is nothing to rebase.
    Excludes: another wasserstein on the same component.

    Args:
        weight: Strength of the pull.
        on: Whose weights: all, critic, actor, encoder, head, last, or layers by name.
        norms: Gains and shifts of normalisation too.
    """

    name = "wasserstein"
    example: ClassVar[str] = "wasserstein(weight=1.0)"

    def __init__(self, weight: NotNegative = 1e-2, on: str = "all", norms: bool = False) -> None:
        super().__init__(on, weight, norms)

    def remembered(self, parameter: Tensor) -> Tensor:
        return parameter.detach().flatten().sort().values

    def term(self, layers: dict[str, Layer]) -> Tensor:
        distances = [
            (parameter.flatten().sort().values - self.get_buffer(birth(key))).square().mean()
            for key, parameter in tensors(layers, self.norms)
        ]
        return self.weight * torch.stack(distances).sum()

"""Concatenated ReLU: Shang et al. 2016, 1603.05201; against loss of plasticity: Abbas et al. 2023, 2303.07507."""

from __future__ import annotations

from typing import ClassVar, Literal

from .core.activations import Activating, Keep


class CReLU(Activating):
    """Output both relu(z) and relu(-z) from every hidden unit, so that one of the two always passes a gradient.

    When: Units become dormant, for instance when an agent returns to a game after others.
    Paper: Shang, Sohn, Almeida & Lee 2016, "Understanding and Improving Convolutional Neural Networks via Concatenated
        Rectified Linear Units", 1603.05201. Abbas, Zhao, Modayil, White & Machado 2023, "Loss of Plasticity in
        Continual Deep Reinforcement Learning", 2303.07507.
    Differs: By default the number of features stays the same, with half the units and about half the parameters, so
        that size does not explain an improvement. Some public code keeps the units (keep=units), which doubles the
        inputs of the next layer and its parameters.
    Excludes: activation, fourier, linear or another crelu on the same component.

    Args:
        on: Components whose networks change: all, critic or actor.
        keep: Quantity that stays the same for a layer of n units. features: n / 2 units. parameters: n / sqrt(2) units
            (exact between layers of equal width). units: n units.
    """

    name = "crelu"
    example: ClassVar[str] = "crelu"

    def __init__(self, on: Literal["all", "critic", "actor"] = "all", keep: Keep = "features") -> None:
        super().__init__(on, "crelu", keep)

"""Concatenated ReLU: Shang et al. 2016, 1603.05201; for loss of plasticity Abbas et al. 2023, 2303.07507."""

from __future__ import annotations

from typing import ClassVar, Literal

from .core.activations import Activating, Keep


class CReLU(Activating):
    """Let every hidden unit put out relu(z) and relu(-z), so that one of the two always passes a gradient.

    When: Units die or fall silent, as when a game is come back to after others.
    Paper: Shang, Sohn, Almeida & Lee 2016, "Understanding and Improving Convolutional Neural Networks via Concatenated
        Rectified Linear Units", 1603.05201. Abbas, Zhao, Modayil, White & Machado 2023, "Loss of Plasticity in
        Continual Deep Reinforcement Learning", 2303.07507.
    Differs: As many features as before by default, that is half the units and about half the parameters, so that
        nothing gained is owed to size. Some public code keeps the units (keep=units), which doubles what the next
        layer reads and its parameters.
    Excludes: activation, fourier, linear or another crelu on the same component.

    Args:
        on: Whose networks: all, critic or actor.
        keep: What stays as it was. features: n / 2 units. parameters: n / sqrt(2) units (exact between layers of equal
            width). units: n units.
    """

    name = "crelu"
    example: ClassVar[str] = "crelu"

    def __init__(self, on: Literal["all", "critic", "actor"] = "all", keep: Keep = "features") -> None:
        super().__init__(on, "crelu", keep)

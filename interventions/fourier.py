"""Deep Fourier features: Lewandowski et al. 2024, 2410.20634."""

from __future__ import annotations

from typing import ClassVar, Literal

from .core.activations import Activating, Keep


class Fourier(Activating):
    """Output both sin(z) and cos(z) from every hidden unit, so that one of the two is always close to linear.

    When: The task changes repeatedly. Fourier features often learn better than a fresh ReLU network: compare with a
        fresh network of the same kind before concluding that plasticity was restored.
    Paper: Lewandowski, Schuurmans & Machado 2024, "Plastic Learning with Deep Fourier Features", 2410.20634: every
        layer outputs [sin z, cos z] with z of half the width.
    Differs: Output layers stay linear, and the network's own initialiser draws the weights.
    Excludes: activation, crelu, linear or another fourier on the same component.

    Args:
        on: Components whose networks change: all, critic or actor.
        keep: Quantity that stays the same for a layer of n units. features (the paper's): n / 2 units. parameters: n /
            sqrt(2) units (exact between layers of equal width). units: n units.
    """

    name = "fourier"
    example: ClassVar[str] = "fourier"

    def __init__(self, on: Literal["all", "critic", "actor"] = "all", keep: Keep = "features") -> None:
        super().__init__(on, "fourier", keep)

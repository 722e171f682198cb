"""Deep Fourier features: Lewandowski et al. 2024, 2410.20634."""

from __future__ import annotations

from typing import ClassVar, Literal

from .core.activations import Activating, Keep


class Fourier(Activating):
    """Let every hidden unit put out sin(z) and cos(z), of which one is always close to a line.

    When: The task changes again and again. It often learns better than a fresh network of ReLUs: compare with a fresh
        network of its own kind before calling that restored plasticity.
    Paper: Lewandowski, Schuurmans & Machado 2024, "Plastic Learning with Deep Fourier Features", 2410.20634: every
        layer [sin z, cos z] with z of half the width.
    Differs: Output layers stay linear, and weights are born by the network's own law.
    Excludes: activation, crelu, linear or another fourier on the same component.

    Args:
        on: Whose networks: all, critic or actor.
        keep: What stays as it was. features (the paper's): n / 2 units. parameters: n / sqrt(2) units (exact between
            layers of equal width). units: n units.
    """

    name = "fourier"
    example: ClassVar[str] = "fourier"

    def __init__(self, on: Literal["all", "critic", "actor"] = "all", keep: Keep = "features") -> None:
        super().__init__(on, "fourier", keep)

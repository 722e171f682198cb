"""A chosen activation. Dohare et al. 2024 (Nature 632) study the activation as a cause of plasticity loss."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..agents.networks import ActivationName
from .core.activations import Activating


class Activation(Activating):
    """Replace the activation of all hidden layers, and change nothing else.

    When: A comparison of activations, or a control for crelu and fourier.
    Paper: Dohare et al. 2024, "Loss of Plasticity in Deep Continual Learning", Nature 632: the activation changes how
        fast plasticity is lost, and none of the activations tested prevents the loss.
    Differs: The network's own initialiser draws the weights, whatever the activation. With crelu and fourier the number
        of units stays, so the next layer has twice as many inputs; the interventions crelu and fourier halve the units
        by default.
    Excludes: crelu, fourier, linear or another activation on the same component.

    Args:
        name: relu, leaky_relu, elu, gelu, silu, tanh, crelu, fourier or identity.
        on: Components whose networks change: all, critic or actor.
    """

    name = "activation"
    example: ClassVar[str] = "activation(name=tanh)"

    def __init__(self, name: ActivationName, on: Literal["all", "critic", "actor"] = "all") -> None:
        super().__init__(on, name, "units")

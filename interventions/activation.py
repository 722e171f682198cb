"""Any activation: the choice is treated as a cause of plasticity loss by Dohare et al. 2024 (Nature 632)."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..agents.networks import ActivationName
from .core.activations import Activating


class Activation(Activating):
    """Give all hidden layers another activation, and change nothing else.

    When: A comparison of activations, or a control beside crelu and fourier.
    Paper: Dohare et al. 2024, "Loss of Plasticity in Deep Continual Learning", Nature 632: how fast plasticity is lost
        depends on the activation, and none that was tried keeps it.
    Differs: Weights are born by the network's own law, whatever the activation. With crelu and fourier, units are kept,
        so that the next layer reads twice as much; the words of these names halve them.
    Excludes: crelu, fourier, linear or another activation on the same component.

    Args:
        name: relu, leaky_relu, elu, gelu, silu, tanh, crelu, fourier or identity.
        on: Whose networks: all, critic or actor.
    """

    name = "activation"
    example: ClassVar[str] = "activation(name=tanh)"

    def __init__(self, name: ActivationName, on: Literal["all", "critic", "actor"] = "all") -> None:
        super().__init__(on, name, "units")

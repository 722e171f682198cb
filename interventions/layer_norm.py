"""Layer normalisation: Ba et al. 2016, 1607.06450; in reinforcement learning Lyle et al. 2024, 2402.18762."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ..agents.agent import Agent
from ..agents.hooks import Intervention
from ..agents.networks import ConvNorm, NormPlacement, Projection, all_layers
from .core.config_edits import edit_network


class LayerNorm(Intervention):
    """Normalise the inputs of the activations of hidden layers.

    When: Almost always for critics. With weight decay it is the strongest simple combination known.
    Paper: Ba, Kiros & Hinton 2016, "Layer Normalization", 1607.06450. Lyle et al. 2024, "Disentangling the Causes of
        Plasticity Loss in Neural Networks", 2402.18762: between linear map and activation, and never after the last
        linear map of a value.
    Differs: In convolutions each channel has its own gain (`gn1`), so that single units can be reset. Public code often
        has one gain for every channel and position (`ln_chw`), which is a different network.
    Excludes: another layer_norm on the same component.

    Args:
        on: Components whose networks change: critic, actor, or both.
        placement: all: every hidden layer. dense: hidden layers after the encoder. encoder: the convolutions. last:
            only the last hidden layer.
        conv: Normalisation of a convolution: gn1 or ln_chw.
    """

    name = "layer_norm"
    example: ClassVar[str] = "layer_norm"
    effect = "configuration"

    def __init__(
        self,
        on: Literal["critic", "actor", "both"] = "critic",
        placement: NormPlacement = "all",
        conv: ConvNorm = "gn1",
    ) -> None:
        super().__init__()
        self.components = ("critic", "actor") if on == "both" else (on,)
        self.placement, self.conv = placement, conv
        self.reserves = tuple(f"the normalisation of the {component}" for component in self.components)

    def configure(self, config: Any) -> Any:
        for component in self.components:
            config = edit_network(
                config, component, self.name, norm="layer_norm", norm_placement=self.placement, norm_conv=self.conv
            )
        return config

    def bind(self, agent: Agent) -> None:
        for component in self.components:
            network = agent.components[component].online
            # A projection of image features always has a norm, so it does not count.
            own = {module.layer for module in network.modules() if isinstance(module, Projection)}
            if all(layer.norm is None or layer in own for layer in all_layers(network).values()):
                raise ValueError(
                    f"layer_norm: placement={self.placement} leaves nothing to normalise in the {component} of this "
                    f"{agent.name}"
                )

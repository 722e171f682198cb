"""The linear network as a baseline: Dohare et al. 2024 (Nature 632)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from ..agents.agent import Agent
from ..agents.networks import ImpalaStage, Projection
from .core.activations import Activating, chosen
from .core.config_edits import edit_network

NOT_LINEAR: dict[type[nn.Module], str] = {
    Projection: "a projection that is normalised and bounded by tanh",
    ImpalaStage: "max-pooling",
}


class Linear(Activating):
    """Make the network a linear function of its observations: a baseline that a deep network should exceed.

    When: As a baseline for any deep network in long training. A deep network that ends below it has lost more than its
        depth contributed.
    Paper: Dohare et al. 2024, "Loss of Plasticity in Deep Continual Learning", Nature 632: after enough tasks deep
        networks do no better than a linear one. Lewandowski et al. 2024, 2410.20634: linear networks, including deep
        ones, keep their plasticity.
    Differs: For images the convolutions stay, without their activations, because they reduce images of any size to a
        vector. The function is then linear in the pixels, and its rank is at most that of the convolutions. The same
        holds for form=deep, which is trained like a deep network. Distributions over values, squashed actions and
        softmax lie outside the network and do not change.
    Excludes: activation, crelu, fourier, layer_norm or another linear on the same component. Methods that act on hidden
        units find none in the shallow network of a vector. Networks that are not linear without activations are
        refused: impala (max-pooling), and SAC's projection of image features.

    Args:
        on: Components whose networks change: all, critic or actor.
        form: shallow: no dense hidden layers. deep: the same layers without activations.
    """

    name = "linear"
    example: ClassVar[str] = "linear(form=deep)"

    def __init__(
        self, on: Literal["all", "critic", "actor"] = "all", form: Literal["shallow", "deep"] = "shallow"
    ) -> None:
        super().__init__(on, "identity", "units")
        self.form = form
        self.reserves += tuple(resource.replace("activation", "normalisation") for resource in self.reserves)

    def shape(self, config: Any, component: str) -> Any:
        network = getattr(config, config.parts[component][0])
        return edit_network(
            config,
            component,
            self.name,
            activation="identity",
            norm="none",
            hidden=() if self.form == "shallow" else network.hidden,
        )

    def bind(self, agent: Agent) -> None:
        for name in chosen(agent.config, self.on, self.name):
            for module in agent.components[name].online.modules():
                if (reason := NOT_LINEAR.get(type(module))) is not None:
                    raise ValueError(
                        f"linear: the {name} of this {agent.name} contains {reason}, so it cannot be linear; use "
                        "vectors, or another body with --agent.network.body"
                    )

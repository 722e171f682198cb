"""The linear network, as a baseline: Dohare et al. 2024 (Nature 632)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from ..agents.agent import Agent
from ..agents.networks import ImpalaStage, Projection
from .core.activations import Activating, chosen
from .core.config_edits import edit_network

BENT: dict[type[nn.Module], str] = {
    Projection: "a projection that is normalised and bounded by tanh",
    ImpalaStage: "max-pooling",
}


class Linear(Activating):
    """Make the network a linear function of what it sees: the baseline that a deep one should stay above.

    When: Beside any deep network that learns for long: one that ends below it has lost more than its depth gave.
    Paper: Dohare et al. 2024, "Loss of Plasticity in Deep Continual Learning", Nature 632: after enough tasks deep
        networks do no better than a linear one. Lewandowski et al. 2024, 2410.20634: linear networks, deep ones too,
        keep their plasticity.
    Differs: Convolutions stay where there are images, without their activations, since they are what fits images of any
        size into a vector: the function is linear in the pixels, of no higher rank than they let through. So is that of
        form=deep, which is trained like a deep network. Distributions over values, squashed actions and softmax stay
        what they are, outside the network.
    Excludes: activation, crelu, fourier, layer_norm or another linear on the same component. What acts on hidden units
        finds none in the shallow network of a vector. Bodies that are not linear without activations are refused: the
        max-pooling of impala, and what projects image features in SAC.

    Args:
        on: Whose networks: all, critic or actor.
        form: shallow: no dense hidden layers. deep: the same layers without activations.
    """

    name = "linear"
    example: ClassVar[str] = "linear(form=deep)"

    def __init__(
        self, on: Literal["all", "critic", "actor"] = "all", form: Literal["shallow", "deep"] = "shallow"
    ) -> None:
        super().__init__(on, "identity", "units")
        self.form = form
        self.claims += tuple(claim.replace("activation", "normalisation") for claim in self.claims)

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
                if (bent := BENT.get(type(module))) is not None:
                    raise ValueError(
                        f"linear: the {name} of this {agent.name} holds {bent}, so it cannot be linear; use vectors, "
                        "or another body with --agent.network.body"
                    )

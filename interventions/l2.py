"""L2 regularisation and decoupled weight decay: Krogh & Hertz 1991; Loshchilov & Hutter 2019, 1711.05101."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.networks import Layer
from ..common.ranges import NotNegative
from .core.config_edits import edit, edit_network
from .core.regularising import Gradient, Penalty, closed_form, tensors


class L2(Penalty):
    """Keep weights small, by a penalty on their squares or by weight decay in the optimizer's step.

    When: Weights keep growing during training. With layer_norm it is the strongest simple combination known (Lyle et
        al. 2024, 2402.18762).
    Paper: Krogh & Hertz 1991, "A Simple Weight Decay Can Improve Generalization": a penalty of weight / 2 times the sum
        of squares, with the gradient weight * theta. Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization",
        1711.05101, algorithm 2: theta <- (1 - lr * weight) theta in every step, apart from the gradient. For loss of
        plasticity Dohare et al. 2024 (Nature 632): the penalty with 1e-3 and Adam.
    Differs: The penalty equals weight_decay of torch's Adam, but covers only weights and biases, and is logged. Adam
        divides its gradient by the root of the second moment like every gradient, so the penalty hardly moves weights
        with large gradients; the decoupled form moves all weights alike. The optimizer applies the decoupled form and
        does not know layers, so it decays every tensor that it holds.
    Excludes: another l2 on the same component. With form=decoupled, a configuration that already has a weight decay.

    Args:
        weight: Strength of the penalty, or rate of decay.
        form: penalty (coupled) or decoupled.
        on: Weights that are penalised: all, critic, actor, and for the penalty also encoder, head, last, or layers by
            name.
        norms: Include gains and shifts of normalisation. The decoupled form always includes them, so it requires
            norms=True in a network that has them.
    """

    name = "l2"
    example: ClassVar[str] = "l2(weight=0.01)"

    def __init__(
        self,
        weight: NotNegative = 1e-3,
        form: Literal["penalty", "decoupled"] = "penalty",
        on: str = "all",
        norms: bool = False,
    ) -> None:
        super().__init__(on, weight)
        self.form, self.norms = form, norms
        if form == "decoupled" and on not in ("all", "critic", "actor"):
            raise ValueError(
                f"l2(form=decoupled) decays all parameters of an optimizer: on must be all, critic or actor, not {on}"
            )

    def configure(self, config: Any) -> Any:
        if self.form == "penalty":
            return config
        if self.on != "all":
            edit_network(config, self.on, self.name)  # refuses a component that does not exist
        mine = {config.parts[c][1] for c in config.parts if self.on in ("all", c)}
        others = {config.parts[c][1]: c for c in config.parts if self.on not in ("all", c)}
        for field in sorted(mine):
            if field in others:
                raise ValueError(
                    f"l2(form=decoupled): one optimizer trains the {self.on} and the {others[field]} of "
                    "this agent; write on=all, or form=penalty"
                )
            optimizer = getattr(config, field)
            if optimizer.weight_decay:
                raise ValueError(
                    f"l2(form=decoupled): {field}.weight_decay is {optimizer.weight_decay:g} already; set "
                    "it to 0, or remove l2 from the interventions"
                )
            config = edit(config, self.name, **{field: replace(optimizer, weight_decay=self.weight)})
        return config

    def bind(self, agent: Agent) -> None:
        super().bind(agent)
        if self.form == "penalty":
            return
        if not hasattr(agent, "config"):
            raise ValueError(
                "l2: in a loop of your own form=decoupled is torch.optim.AdamW(weight_decay=...); write "
                "form=penalty for the penalty"
            )
        meant = {p for layers in self.layers.values() for _, p in tensors(layers, norms=False)}
        held = {p for c in self.layers for p in agent.components[c].online.parameters() if p.requires_grad}
        if held - meant and not self.norms:
            raise ValueError(
                f"l2(form=decoupled) decays all parameters of an optimizer, and those of this {agent.name} include "
                "more than weights and biases; write norms=True to accept this, or form=penalty"
            )

    def term(self, layers: dict[str, Layer]) -> Tensor:
        parameters = [parameter for _, parameter in tensors(layers, self.norms)]

        def compute() -> tuple[Tensor, Gradient]:
            value = 0.5 * self.weight * torch.stack(torch._foreach_norm(parameters)).square().sum()
            return value, lambda factor: torch._foreach_mul(parameters, factor * self.weight)

        return closed_form(compute, parameters)

    def penalty(self, agent: Agent, component: str) -> Tensor | float:
        return 0.0 if self.form == "decoupled" else super().penalty(agent, component)

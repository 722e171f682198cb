"""L2-Init, regenerative regularisation: Kumar et al. 2023, 2308.11958."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.hooks import Intervention, Run
from ..agents.networks import Layer
from ..common.ranges import NotNegative
from .core.regularising import FromBirth, birth, tensors


class L2Init(FromBirth):
    """Pull weights back to those that they were born with.

    When: The task changes again and again; what no gradient holds returns to where learning was easy.
    Paper: Kumar, Marklund & Van Roy 2023, "Maintaining Plasticity in Continual Learning via Regenerative
        Regularization", 2308.11958, equation 1: weight * sum (theta - theta_0)^2.
    Differs: The authors' code has half of that (form=half), Chung et al. 2024 (2412.07224) the mean over each tensor
        (form=mean), so that one weight means different pulls in the three. Gains and shifts of normalisation are left
        out, unless norms=True. The code's variant that draws theta_0 anew at every update is not here.
    Excludes: another l2_init on the same component; with rebase=True a place behind what edits weights.

    Args:
        weight: Strength of the pull.
        on: Whose weights: all, critic, actor, encoder, head, last, or layers by name.
        form: sum: the paper's. half: half of it. mean: the mean over each tensor, summed over tensors.
        norms: Gains and shifts of normalisation too.
        rebase: Weights that another intervention of the sentence edits are from then on pulled to what it made of them;
            otherwise what was reset is pulled back to where it was first born.
    """

    name = "l2_init"
    example: ClassVar[str] = "l2_init(weight=0.1)"

    def __init__(
        self,
        weight: NotNegative = 1e-2,
        on: str = "all",
        form: Literal["sum", "half", "mean"] = "sum",
        norms: bool = False,
        rebase: bool = False,
    ) -> None:
        super().__init__(on, weight, norms)
        self.form, self.rebase = form, rebase

    def bind(self, agent: Agent) -> None:
        super().bind(agent)
        if not self.rebase:
            return
        for part in getattr(agent, "interventions", ()):
            if part is self:
                break
            if type(part).after_update is not Intervention.after_update or type(part).fire is not Intervention.fire:
                raise ValueError(
                    f"l2_init(rebase=True) looks at the weights before others edit them: write it before {part.name}"
                )
        for layers in self.layers.values():
            for key, parameter in tensors(layers, self.norms):
                self.register_buffer(stepped(key), self.remembered(parameter))

    def term(self, layers: dict[str, Layer]) -> Tensor:
        if self.rebase:
            self.follow_edits_(layers)
        parts = []
        for key, parameter in tensors(layers, self.norms):
            away = (parameter - self.get_buffer(birth(key))).square()
            parts.append(away.mean() if self.form == "mean" else away.sum())
        return (0.5 if self.form == "half" else 1.0) * self.weight * torch.stack(parts).sum()

    @torch.no_grad()
    def follow_edits_(self, layers: dict[str, Layer]) -> None:
        """Whatever is not as the optimizer left it was edited since, and begins anew from there."""
        for key, parameter in tensors(layers, self.norms):
            born = self.get_buffer(birth(key))
            born.copy_(torch.where(parameter != self.get_buffer(stepped(key)), parameter, born))

    @torch.no_grad()
    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        if self.rebase:
            for layers in self.layers.values():
                for key, parameter in tensors(layers, self.norms):
                    self.get_buffer(stepped(key)).copy_(parameter)


def stepped(key: str) -> str:
    """The name of the buffer that holds a parameter as the optimizer's latest step left it."""
    return f"{key.replace('.', '/')}:stepped"

"""L2-Init, regenerative regularisation: Kumar et al. 2023, 2308.11958."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.hooks import Intervention, Run
from ..agents.networks import Layer
from ..common.ranges import NotNegative
from .core.regularising import FromInitial, Gradient, closed_form, initial_buffer, tensors


class L2Init(FromInitial):
    """Penalise the distance of weights from their initial values.

    When: The task changes repeatedly; weights without a gradient return to the initialisation, where learning was easy.
    Paper: Kumar, Marklund & Van Roy 2023, "Maintaining Plasticity in Continual Learning via Regenerative
        Regularization", 2308.11958, equation 1: weight * sum (theta - theta_0)^2.
    Differs: The authors' code uses half of that (form=half), Chung et al. 2024 (2412.07224) use the mean over each
        tensor (form=mean), so the same `weight` has a different effect in each form. Gains and shifts of normalisation
        are excluded, unless norms=True. The code's variant that redraws theta_0 at every update is not implemented.
    Excludes: another l2_init on the same component. With rebase=True it must stand before every intervention that edits
        weights.

    Args:
        weight: Strength of the penalty.
        on: Weights that are penalised: all, critic, actor, encoder, head, last, or layers by name.
        form: sum: the paper's. half: half of it. mean: the mean over each tensor, summed over tensors.
        norms: Include gains and shifts of normalisation.
        rebase: After another intervention of the same specs edits a weight, penalise the distance from the edited
            value. Without it, the penalty pulls a reset weight back to its first initial value.
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
                    f"l2_init(rebase=True) must read weights before they are edited: write it before {part.name}"
                )
        for layers in self.layers.values():
            for key, parameter in tensors(layers, self.norms):
                self.register_buffer(stepped(key), self.remembered(parameter))

    def term(self, layers: dict[str, Layer]) -> Tensor:
        if self.rebase:
            self.follow_edits_(layers)
        keys, parameters = zip(*tensors(layers, self.norms), strict=True)
        strength = (0.5 if self.form == "half" else 1.0) * self.weight
        roots = [math.sqrt(p.numel() if self.form == "mean" else 1) for p in parameters]

        def compute() -> tuple[Tensor, Gradient]:
            away = torch._foreach_sub(parameters, [self.get_buffer(initial_buffer(key)) for key in keys])
            lengths = torch._foreach_norm(away)
            if self.form == "mean":
                torch._foreach_div_(lengths, roots)

            def gradient(factor: Tensor) -> Sequence[Tensor]:
                if self.form == "mean":
                    return [x * (factor * (2 * strength / x.numel())) for x in away]
                return torch._foreach_mul(away, factor * (2 * strength))

            return strength * torch.stack(lengths).square().sum(), gradient

        return closed_form(compute, parameters)

    @torch.no_grad()
    def follow_edits_(self, layers: dict[str, Layer]) -> None:
        """Set the reference of every weight that was edited after the optimizer's latest step to its present value."""
        for key, parameter in tensors(layers, self.norms):
            initial = self.get_buffer(initial_buffer(key))
            initial.copy_(torch.where(parameter != self.get_buffer(stepped(key)), parameter, initial))

    @torch.no_grad()
    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        if self.rebase:
            for layers in self.layers.values():
                for key, parameter in tensors(layers, self.norms):
                    self.get_buffer(stepped(key)).copy_(parameter)


def stepped(key: str) -> str:
    """The name of the buffer that holds a parameter as it was after the optimizer's latest step."""
    return f"{key.replace('.', '/')}:stepped"

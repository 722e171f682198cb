"""Continual backpropagation: Dohare et al. 2021, 2108.06325; Dohare et al. 2024, Nature 632."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.hooks import Run
from ..common.ranges import Share, ShareBelow, Updates
from .core.recycling import Recycler, StepCounts, at_inputs, per_unit
from .core.surgery import Chosen, fold_into_bias_
from .core.units import Units

Utility = Literal["contribution", "zero_mean", "adaptable"]


class ContinualBackprop(Recycler):
    """Reinitialise, at every update, a small fraction of the mature units with the lowest utility.

    When: Training never ends, and the network should always have some freshly initialised units.
    Paper: Dohare, Sutton & Mahmood 2021, 2108.06325, algorithm 1 (utility=adaptable); Dohare et al. 2024, "Loss of
        plasticity in deep continual learning", Nature 632 (utility=contribution; rho 1e-4 and maturity 10,000 are its
        values for control).
    Differs: The authors' code clears the running mean before it folds the mean into the next bias, so a replacement
        changes the output; its PPO never resets moments. Here the mean is folded first and moments are reset, with a
        step count per weight as intended for its AdamGnT (`step_counts=per_tensor` uses one count per tensor). The
        released AdamGnT computes the bias correction and does not use it: with a constant gradient the first steps of a
        new weight are 0.0032, 0.0085 and 0.015 times the learning rate there (betas 0.9 and 0.999), and 1, 1 and 1
        here. Utilities use sums over weights as in the papers; the code uses means. The layer's initialiser draws the
        biases of new units as well as their weights; the code sets biases to zero. If two units of neighbouring layers
        are replaced at once, the weight between them ends at zero; the code processes the layers one by one and leaves
        that weight as drawn. An update replaces at most ceil(rho * units) + 1 units of a layer; further due units wait
        for the next update.
    Excludes: plasticity_injection, unless on=encoder or on=actor.

    Args:
        rho: Fraction of a layer's mature units that is replaced per update.
        maturity: Minimum age of a unit, in updates, before it may be replaced.
        decay: Decay rate of the running averages of activity and utility.
        utility: contribution: mean |h| * sum of outgoing weights. zero_mean: mean |h - mean h| * sum of outgoing
            weights. adaptable: zero_mean divided by the sum of incoming weights.
        on: Part of the agent whose units are replaced: critic, actor, encoder, head, all, or layers by name.
        step_counts: Step counts of Adam. per_weight: each weight has its own count, so a replaced weight starts like a
            new one. per_tensor: moments are zeroed and the step counter of the whole tensor is kept, so the first steps
            are 3.2, 4.2, 4.9 times the learning rate.
    """

    name = "continual_backprop"
    example: ClassVar[str] = "continual_backprop(rho=0.05, maturity=2)"

    def __init__(
        self,
        rho: Share = 1e-4,
        maturity: Updates = 10_000,
        decay: ShareBelow = 0.99,
        utility: Utility = "contribution",
        on: str = "critic",
        step_counts: StepCounts = "per_weight",
    ) -> None:
        super().__init__(on, 1, "updates", 0, None, step_counts)
        self.rho, self.maturity, self.decay, self.utility = rho, maturity, decay, utility

    def bind(self, agent: Agent) -> None:
        super().bind(agent)
        self.most = {name: min(u.count, math.ceil(self.rho * u.count) + 1) for name, u in self.units.items()}
        self.keys = {name: name.replace(".", "/") for name in self.units}
        for name, units in self.units.items():
            zeros = torch.zeros(units.count, device=agent.device)
            shapes = {"age": zeros, "utility": zeros, "mean": zeros.repeat(units.layer.copies, 1)}
            for key, value in shapes.items():
                self.register_buffer(self._key(name, key), value.clone())
            # Double precision: float32 rounding would shift the time of the thousandth replacement.
            kind = torch.float32 if agent.device.type == "mps" else torch.float64
            self.register_buffer(self._key(name, "due"), torch.zeros((), dtype=kind, device=agent.device))

    def reinitialised(self, run: Run) -> None:
        for name in self.units:
            for key in ("age", "utility", "mean", "due"):
                getattr(self, self._key(name, key)).zero_()

    def _key(self, layer: str, what: str) -> str:
        return f"{self.keys[layer]}:{what}"

    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        chosen = {}
        for name, h in self.measured_outputs(run, activations, 0).items():
            chosen[name] = self.choose(name, self.units[name], h)
        for name, replaced in chosen.items():
            self.compensate(name, replaced)
        self.recycle(chosen)
        for name, (index, valid) in chosen.items():
            for key in ("age", "utility"):
                self._clear(getattr(self, self._key(name, key)), index, valid)
            for mean in getattr(self, self._key(name, "mean")):
                self._clear(mean, index, valid)

    @torch.no_grad()
    def choose(self, name: str, units: Units, h: Tensor) -> Chosen:
        """Update age, mean activity and utility, and select the units to replace."""
        age, utility, mean = (getattr(self, self._key(name, key)) for key in ("age", "utility", "mean"))
        due = getattr(self, self._key(name, "due"))
        age.add_(1)
        filled = 1 - self.decay**age
        mean.lerp_(per_unit(units.layer, h).mean(dim=(0, 3)), 1 - self.decay)
        utility.lerp_(self.instant_utility(units, h, mean / filled), 1 - self.decay)
        eligible = age > self.maturity
        due.add_(eligible.sum().to(due.dtype) * self.rho)
        # The tolerance is needed because 0.3 added four times is slightly less than 1.2.
        count = torch.minimum((due + 1e-9).floor(), eligible.sum()).clamp(max=self.most[name])
        due.sub_(count)
        order = torch.where(eligible, utility / filled, torch.inf).argsort(stable=True)[: self.most[name]]
        return Chosen(order, torch.arange(len(order), device=order.device) < count)

    def instant_utility(self, units: Units, h: Tensor, mean: Tensor) -> Tensor:
        """Utility [units] on one batch; section 3 of the paper. `mean` [copies, units] is the bias-corrected running
        mean."""
        if self.utility == "contribution":
            size = h.abs().mean(0)
        else:
            shape = (1, -1, *(1,) * (h.ndim - 2))
            size = (h - mean.view(shape)).abs().mean(0)
        total = torch.zeros(units.count, device=h.device)
        for consumer in units.consumers:
            weight = consumer.weight
            outgoing = weight.abs().sum(dim=(0, *range(2, weight.ndim)))
            if not consumer.in_order:
                outgoing = outgoing.index_select(0, consumer.columns.flatten())
            total += (at_inputs(consumer, units, size) * outgoing.view(consumer.columns.shape)).sum(1)
        if self.utility == "adaptable":
            # A unit without incoming weights is constant. Without the clamp, 0 / 0 would leave a permanent NaN.
            total = total / units.layer.linear.weight.abs().flatten(1).sum(1).clamp(min=1e-9)
        return total

    def compensate(self, name: str, chosen: Chosen) -> None:
        """Add the mean contribution of the chosen units to the biases of their consumers, before outgoing weights
        are zeroed."""
        units = self.units[name]
        age, mean = (getattr(self, self._key(name, key)) for key in ("age", "mean"))
        corrected = (mean / (1 - self.decay**age).clamp(min=1e-9)).flatten()
        for consumer in units.consumers:
            places = consumer.columns.numel() // corrected.numel()
            fold_into_bias_(consumer, chosen, at_inputs(consumer, units, corrected[:, None].expand(-1, places)))

    @staticmethod
    def _clear(values: Tensor, index: Tensor, valid: Tensor) -> None:
        values.index_copy_(0, index, torch.where(valid, torch.zeros_like(index, dtype=values.dtype), values[index]))

"""ReGraMa: Liu et al. 2025, 2505.24061."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..agents.clock import Unit
from ..agents.hooks import Run, sample_like_training
from ..agents.views import view
from ..common.ranges import NotNegative, Period, Samples, SomeShare, Start
from .core.recycling import Recycler, StepCounts, lowest, per_unit
from .core.surgery import Chosen
from .redo import dormancy_score


class ReGraMa(Recycler):
    """Reinitialise units with small gradient magnitudes, which the loss no longer changes.

    When: Activity is misleading, as with residual networks, or with activations that are never zero.
    Paper: Liu et al. 2025, "Measure gradients, not activations! Enhancing neuronal activity in deep reinforcement
        learning", 2505.24061: gradient magnitude instead of ReDo's activity.
    Differs: The public code first averages signed gradients of incoming weights over the batch, so samples that cancel
        make an active unit look inactive (`mode=weight_grad`), and leaves outgoing weights as they are
        (`outgoing=False`). It also counts the output layer's units. An earlier version of it crashes Adam with an
        integer step counter. The present version leaves the counter unchanged, and its SAC scripts pass no optimizer,
        so no moments are reset there. Here every weight has its own step count (`step_counts=per_tensor` is the common
        practice, and inflates first steps). The loss of mode=unit is the agent's own, with its current n-step and
        discount, without augmentation and without penalties. With outgoing=True, if two units of neighbouring layers
        are recycled at once, the weight between them ends at zero.
    Excludes: plasticity_injection, unless on=encoder or on=actor.

    Args:
        tau: A unit is inactive if its gradient magnitude is at most tau times the mean over its layer.
        every: Period of the check.
        of: Clock of the period: updates, steps (environment steps) or episodes.
        on: Part of the agent whose units are recycled: critic, actor, encoder, head, all, or layers by name.
        mode: unit: mean over samples of |d loss / d output of the unit|. weight_grad: mean |gradient| of its incoming
            weights in the latest update; only in this mode is a dead ReLU unit inactive.
        samples: Transitions from the replay on which gradients are measured (mode=unit).
        outgoing: Zero the outgoing weights of recycled units.
        max_fraction: Largest fraction of a layer that is recycled at once, the least active units first.
        step_counts: Step counts of Adam. per_weight: each weight has its own count, so a recycled weight starts like a
            new one. per_tensor: moments are zeroed and the step counter of the whole tensor is kept, so the first steps
            are 3.2, 4.2, 4.9 times the learning rate.
        start: First clock value at which it may fire.
        stop: Last clock value at which it may fire.
    """

    name = "regrama"
    example: ClassVar[str] = "regrama(tau=0.7, every=2, samples=16)"

    def __init__(
        self,
        tau: NotNegative = 0.01,
        every: Period = 1000,
        of: Unit = "updates",
        on: str = "critic",
        mode: Literal["unit", "weight_grad"] = "unit",
        samples: Samples = 64,
        outgoing: bool = True,
        max_fraction: SomeShare = 1.0,
        step_counts: StepCounts = "per_weight",
        start: Start = 0,
        stop: Start | None = None,
    ) -> None:
        super().__init__(on, every, of, start, stop, step_counts)
        self.tau, self.mode, self.samples = tau, mode, samples
        self.outgoing, self.max_fraction = outgoing, max_fraction
        self.needs_view = mode == "unit"

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        sizes = self.unit_gradients(run) if self.mode == "unit" else self.weight_gradients()
        chosen = {}
        for name, size in sizes.items():
            score = dormancy_score(size)
            chosen[name] = Chosen.where(lowest(score, score <= self.tau, self.max_fraction))
        self.recycle(chosen, outgoing=self.outgoing)

    def unit_gradients(self, run: Run) -> dict[str, Tensor]:
        """Mean over samples, copies and positions of the absolute gradient with respect to each unit's output."""
        batch = sample_like_training(run, self.samples, self.generator)
        sizes = {}
        with run.agent.drawing_from(self.generator):
            for component, loss, trace in view(run.agent).losses(batch):
                wanted = [(n, h) for n, h in zip(self.survey.traced[component], trace, strict=True) if n in self.units]
                if not wanted:
                    continue
                gradients = torch.autograd.grad(loss, [h for _, h in wanted], allow_unused=True)
                for (name, h), gradient in zip(wanted, gradients, strict=True):
                    gradient = torch.zeros_like(h) if gradient is None else gradient
                    sizes[name] = per_unit(self.units[name].layer, gradient).abs().mean(dim=(0, 1, 3))
        return sizes

    def weight_gradients(self) -> dict[str, Tensor]:
        """Mean absolute gradient of each unit's incoming weights in the latest update."""
        sizes = {}
        for name, units in self.units.items():
            if (gradient := units.layer.linear.weight.grad) is not None:
                sizes[name] = gradient.abs().flatten(1).mean(1)
        return sizes

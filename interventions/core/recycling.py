"""The base class of methods that reset single units: which units can be reset, and how their outputs are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...agents.agent import Agent
from ...agents.clock import Every, Unit
from ...agents.hooks import Effect, Intervention, Run, sample_like_training
from ...agents.networks import Fourier
from ...agents.views import view
from ...common.moved import moved
from .parts import Survey, chosen_layers, edited, survey
from .surgery import Chosen, Optimizers, reinit_units_
from .units import Consumer, Units

StepCounts = Literal["per_weight", "per_tensor"]


class Recycler(Intervention):
    """Base of methods that reset single units of `on` on a schedule.

    Units without a consumer, and units whose output joins a residual stream, are not reset. With
    `step_counts=per_weight` Adam treats a recycled weight like a new one. With `per_tensor`, as in torch, a whole
    tensor has one step counter, so Adam corrects zeroed moments like moments of long training.
    """

    effect: ClassVar[Effect] = "unit_surgery"
    needs_view: bool = False  # it measures outputs or gradients on transitions from the replay
    former_parameters: ClassVar[Mapping[str, tuple[str, Mapping[Any, Any]]]] = {
        "ages": ("step_counts", {"own": "per_weight", "shared": "per_tensor"})
    }

    def __init__(
        self,
        on: str,
        every: int,
        of: Unit,
        start: int,
        stop: int | None,
        step_counts: Literal["per_weight", "per_tensor", "zeroed"],
    ) -> None:
        super().__init__()
        self.on, self.step_counts = on, step_counts
        self.when = Every(every, of, start, stop)
        self.edits = edited(on)
        self.recycled: dict[str, Tensor] = {}

    def bind(self, agent: Agent) -> None:
        if self.needs_view and isinstance(agent, Agent):  # an external network measures its own passes
            view(agent, self.name)
        self.survey: Survey = survey(agent)
        names = chosen_layers(self.survey, self.on, self.name)
        graph = self.survey.graph
        self.units: dict[str, Units] = {n: graph[n] for n in names if n in graph and graph[n].resettable}
        if not self.units:
            raise ValueError(
                f"{self.name}: {self.on} of this {self.survey.name} has no unit that can be reset: no hidden layer, or "
                "only layers that join a residual stream"
            )
        for units in self.units.values():
            for consumer in units.consumers:
                # Computed on the host and cached, so do it before training begins.
                _ = consumer.columns, consumer.in_order, consumer.places
        self.optimizers = Optimizers(optimizer for _, optimizer in agent.optimizers())
        self._refuse_other_step_counts(agent)
        if self.step_counts == "per_weight":
            for parameter in self.edited_weights():
                self.optimizers.count_per_weight(parameter)

    def edited_weights(self) -> list[Tensor]:
        """Every parameter in which single weights may be reinitialised or zeroed."""
        weights: dict[Tensor, None] = {}
        for units in self.units.values():
            weights |= dict.fromkeys((*units.layer.parameters(), *(consumer.weight for consumer in units.consumers)))
        return list(weights)

    def _refuse_other_step_counts(self, agent: Agent) -> None:
        """Refuse a `step_counts` that differs from that of another intervention on the same tensors (ValueError naming
        both)."""
        mine = set(self.edited_weights())
        others = [part for outer in getattr(agent, "interventions", ()) for part in outer.modules()]
        for other in others:
            if other is self or not isinstance(other, Recycler) or not hasattr(other, "optimizers"):
                continue
            differ = (self.step_counts == "per_weight") != (other.step_counts == "per_weight")
            if differ and not mine.isdisjoint(other.edited_weights()):
                raise ValueError(
                    f"{self.name} and {other.name} exclude each other: step_counts={self.step_counts} and "
                    f"step_counts={other.step_counts} on the same weights"
                )

    def measured_outputs(
        self, run: Run, activations: Mapping[str, Sequence[Tensor]], samples: int
    ) -> dict[str, Tensor]:
        """Outputs by layer on `samples` transitions from the replay, or on the update's own batch if `samples` is 0."""
        if samples and run.memory is not None:
            activations = view(run.agent).activations(sample_like_training(run, samples, self.generator))
        return {name: h for name, h in self.survey.outputs(activations).items() if name in self.units}

    def recycle(self, chosen: Mapping[str, Chosen], *, outgoing: bool = True) -> None:
        """Reset the chosen units, and count them for the log."""
        if not chosen:  # the updated components have no units of `on`
            return
        reinit_units_(self.survey.graph, chosen, self.optimizers, self.generator, outgoing=outgoing)
        counts = {name: c.valid.sum(dtype=torch.float32) for name, c in chosen.items()}
        self.touched = counts
        self.recycled = {f"interventions/{self.name}_units": torch.stack(list(counts.values())).sum()}

    def measurements(self) -> dict[str, Tensor]:
        recycled, self.recycled = self.recycled, {}
        return recycled


def per_unit(layer: Any, h: Tensor) -> Tensor:
    """[B, copies * units, *positions] → [B, copies, units, positions], which groups the outputs of each unit."""
    return h.reshape(len(h), layer.copies, layer.units, -1)


def magnitude(layer: Any, h: Tensor) -> Tensor:
    """Mean absolute output of every unit [units], over samples, copies and positions (Sokar et al. 2023).

    The two outputs of a Fourier unit lie on a circle, so their magnitude is never small. For such a unit it is the mean
    absolute deviation, which is zero if the unit's output is constant.
    """
    h = per_unit(layer, h)
    if isinstance(getattr(layer, "activation", None), Fourier):
        h = h - h.mean(dim=(0, 3), keepdim=True)
    return h.abs().mean(dim=(0, 1, 3))


def lowest(score: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """The mask, restricted to the lowest-scoring `fraction` of a layer's units."""
    if fraction >= 1.0:
        return mask
    rank = torch.where(mask, score, torch.inf).argsort(stable=True).argsort(stable=True)
    # The tolerance is needed because 0.29 * 100 is slightly less than 29.
    return mask & (rank < int(fraction * len(score) + 1e-9))


def at_inputs(consumer: Consumer, units: Units, statistic: Tensor) -> Tensor:
    """Map a statistic of outputs [copies * units, *positions] to the consumer's inputs that belong to each unit [units,
    m].

    A linear consumer of a convolution has one input per position. Any other consumer reads a channel as a whole, and
    gets the mean over the channel's positions.
    """
    owned = consumer.columns.numel()
    flat = statistic.reshape(-1)
    if owned != flat.numel():
        flat = statistic.flatten(1).mean(1)
        if owned != flat.numel():
            raise ValueError(f"the modules between {units.name} and its consumer change the number of its outputs")
    # The inputs that come from this layer are in the order of its outputs, even with other inputs between them.
    if not consumer.in_order:
        flat = flat.index_select(0, consumer.places)
    return flat.view(consumer.columns.shape)


__getattr__ = moved(__name__, {"Ages": f"{__name__}.StepCounts"})

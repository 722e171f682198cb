"""Self-normalized resets: Farias & Jozefiak 2024, 2410.20098."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, TypeAlias

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Every
from ..agents.hooks import Run
from ..common.ranges import NotNegative, Period, SomeShare, SomeUpdates, at_least
from .core.recycling import Recycler, StepCounts, per_unit
from .core.surgery import Chosen

EXACT = 64  # inactive periods shorter than this many updates have a bin each; longer ones share bins of 1/16 octave
BINS = EXACT + 16 * 14

Factor: TypeAlias = Annotated[float, at_least(1.0)]


class SelfNormalizedReset(Recycler):
    """Reset a unit that has been inactive for longer than its own history makes plausible.

    When: Units differ in how often they fire, so no single activity threshold fits all.
    Paper: Farias & Jozefiak 2024, "Self-Normalized Resets for Plasticity in Continual Learning", 2410.20098, algorithm
        1: it tests whether a unit should have fired by now, given the unit's own inter-firing times.
    Differs: Thresholds are updated every `renew` updates, because reinforcement learning has no end of a task to
        trigger this. Times between firings are in updates; beyond 64 they share bins of a sixteenth of an octave, while
        the code counts every length. A threshold decreases or grows exactly when the code's does, and after a decrease
        it is up to two bins (9 %) lower. A unit with no recorded firing keeps its threshold; in the code an empty
        record gives the smallest possible threshold. At most `most` units of a layer are reset per update, the most
        overdue first. The layer's initialiser draws the biases of new units; the code sets them to zero. A unit fires
        if any of its outputs on the batch exceeds eps in magnitude (for ReLU: is positive). The code keeps Adam's step
        counts, which inflates the first steps of reset weights (`step_counts=per_tensor`). If two units of neighbouring
        layers are reset at once, the weight between them ends at zero.
    Excludes: plasticity_injection, unless on=encoder or on=actor.

    Args:
        percentile: A unit is reset if its current inactive period exceeds this fraction of its past ones.
        renew: Updates between two updates of the thresholds.
        expansion: Factor by which a threshold grows when the record would not lower it.
        longest: Largest threshold, in updates; also the initial threshold.
        eps: An output above this magnitude counts as firing.
        most: Maximum number of units of a layer that are reset per update.
        on: Part of the agent whose units are reset: critic, actor, encoder, head, all, or layers by name.
        step_counts: Step counts of Adam. per_weight: each weight has its own count, so a reset weight starts like a new
            one. per_tensor: moments are zeroed and the step counter of the whole tensor is kept, so the first steps are
            3.2, 4.2, 4.9 times the learning rate.
    """

    name = "self_normalized_reset"
    example: ClassVar[str] = "self_normalized_reset(percentile=0.5, renew=2, longest=2, eps=0.6)"

    def __init__(
        self,
        percentile: SomeShare = 0.95,
        renew: Period = 1000,
        expansion: Factor = 2.0,
        longest: SomeUpdates = 20_000,
        eps: NotNegative = 0.0,
        most: Annotated[int, at_least(1, "units")] = 8,
        on: str = "critic",
        step_counts: StepCounts = "per_weight",
    ) -> None:
        super().__init__(on, 1, "updates", 0, None, step_counts)
        self.percentile, self.expansion, self.longest, self.eps, self.most = percentile, expansion, longest, eps, most
        self.renewal = Every(renew)

    def bind(self, agent: Agent) -> None:
        super().bind(agent)
        self.keys = {name: name.replace(".", "/") for name in self.units}
        for name, units in self.units.items():
            zeros = torch.zeros(units.count, device=agent.device)
            self.register_buffer(self._key(name, "age"), zeros.clone())  # updates since it last fired
            self.register_buffer(self._key(name, "threshold"), zeros + self.longest)
            record = torch.zeros(units.count, BINS, dtype=torch.int32, device=agent.device)
            self.register_buffer(self._key(name, "record"), record)
        self.lengths: Tensor
        self.register_buffer("lengths", bin_lengths().to(agent.device), persistent=False)

    def reinitialised(self, run: Run) -> None:
        for name in self.units:
            getattr(self, self._key(name, "age")).zero_()
            getattr(self, self._key(name, "threshold")).fill_(self.longest)
            getattr(self, self._key(name, "record")).zero_()

    def _key(self, layer: str, what: str) -> str:
        return f"{self.keys[layer]}:{what}"

    @torch.no_grad()
    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        chosen = {}
        for name, h in self.measured_outputs(run, activations, 0).items():
            age, threshold, record = (getattr(self, self._key(name, k)) for k in ("age", "threshold", "record"))
            fired = per_unit(self.units[name].layer, h).abs().amax(dim=(0, 1, 3)) > self.eps
            self.note(record, age, fired & (age > 0), threshold)
            age.add_(1).masked_fill_(fired, 0.0)
            overdue = age - threshold
            order = overdue.argsort(descending=True, stable=True)[: self.most]
            reset = overdue.index_select(0, order) >= 0
            chosen[name] = Chosen(order, reset)
            # Record the inactive period that ended in a reset; without the reset it would have been at least as long.
            reset_mask = torch.zeros_like(fired).index_copy_(0, order, reset)
            self.note(record, age, reset_mask, threshold)
            age.masked_fill_(reset_mask, 0.0)
            if self.renewal(run.clock):
                self.renew(threshold, record)
        self.recycle(chosen)

    def note(self, record: Tensor, age: Tensor, which: Tensor, threshold: Tensor) -> None:
        """Record the current inactive periods of the units for which `which` holds.

        The number of periods shorter than a threshold decides whether the threshold decreases. A period that is
        shorter, but falls into the threshold's own bin, is recorded one bin lower, so that the record preserves this
        fact.
        """
        bins, limit = bin_of(age, self.lengths), bin_of(threshold.ceil(), self.lengths)
        bins = torch.where(age < threshold, bins.minimum(limit - 1), bins)
        record.scatter_add_(1, bins[:, None], which[:, None].to(record.dtype))

    def renew(self, threshold: Tensor, record: Tensor) -> None:
        """Set each threshold to the percentile of the unit's record, or expand the old one if that would not lower
        it."""
        total = record.sum(1)
        share = record.cumsum(1) / total.clamp(min=1)[:, None]
        # The first bin at which the percentile is reached. Bins are compared with bins, not with the threshold: the
        # shortest period of the threshold's own bin is shorter than the threshold, and would seem to lower it.
        reached = (share >= self.percentile).to(torch.uint8).argmax(1)
        lowered = reached < bin_of(threshold.ceil(), self.lengths)
        renewed = torch.where(lowered, self.lengths.index_select(0, reached), threshold * self.expansion)
        threshold.copy_(torch.where(total > 0, renewed.clamp(1.0, float(self.longest)), threshold))
        record.zero_()


def bin_of(length: Tensor, lengths: Tensor) -> Tensor:
    """[units] whole numbers of updates → the bin of an inactive period of that length."""
    return torch.bucketize(length, lengths, right=True) - 1


def bin_lengths() -> Tensor:
    """[BINS] the shortest inactive period, in whole updates, of each bin."""
    coarse = EXACT * 2 ** (torch.arange(BINS - EXACT, dtype=torch.float64) / 16)
    return torch.cat([torch.arange(EXACT, dtype=torch.float64), coarse.ceil()]).float()

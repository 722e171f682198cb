"""Self-normalized resets: Farias & Jozefiak 2024, 2410.20098."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, TypeAlias

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.hooks import Every, Run
from ..common.ranges import NotNegative, Period, SomeShare, SomeUpdates, at_least
from .core.recycling import Ages, Recycler, per_unit
from .core.surgery import Chosen

EXACT = 64  # silences of up to so many updates have a bin each, longer ones share bins of width 1/16 octave
BINS = EXACT + 16 * 14

Factor: TypeAlias = Annotated[float, at_least(1.0)]


class SelfNormalizedReset(Recycler):
    """Reset a unit that has been silent for longer than its own past makes plausible.

    When: Units differ in how often they fire, so that no one threshold of activity fits all.
    Paper: Farias & Jozefiak 2024, "Self-Normalized Resets for Plasticity in Continual Learning", 2410.20098,
        algorithm 1: a test of "it should have fired by now" against the unit's own inter-firing times.
    Differs: Thresholds are renewed every `renew` updates, since reinforcement learning has no tasks at whose end to do
        it. Times between firings are counted in updates and, beyond 64, in bins of a sixteenth of an octave, where the
        code keeps a count for every length: a threshold falls or grows exactly when the code's does, and where it falls
        it ends up to two bins (9 %) lower. A unit with no recorded firing keeps its threshold; in the code an empty
        record makes it the smallest there is. At most `most` units of a layer are reset per update, the most overdue
        first. Biases of new units come from their layer's law of birth, where the code has zeros. A unit fires if any
        of its outputs on the batch exceeds eps in magnitude (for ReLU: is positive). Adam's counts are kept in the
        code, which inflates the first steps of what is reset (`ages=shared`). The weight between two units of
        neighbouring layers that are reset at once ends at zero.
    Excludes: plasticity_injection, unless on=encoder or on=actor.

    Args:
        percentile: Share of past silences that a silence must outlast.
        renew: Updates between two renewals of the thresholds.
        expansion: Factor by which a threshold grows where the record would not lower it.
        longest: Largest threshold, in updates; also the first one.
        eps: Magnitude from which on an output counts as firing.
        most: Units of a layer that are reset per update at most.
        on: The part whose units are reset: critic, actor, encoder, head, all, or layers by name.
        ages: Of Adam. own: a reset weight begins like a new one. shared: its moments are zeroed and the step counter
            of the whole tensor is kept, so that its first steps are 3.2, 4.2, 4.9 times the learning rate.
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
        ages: Ages = "own",
    ) -> None:
        super().__init__(on, 1, "updates", 0, None, ages)
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

    def reborn(self, run: Run) -> None:
        for name in self.units:
            getattr(self, self._key(name, "age")).zero_()
            getattr(self, self._key(name, "threshold")).fill_(self.longest)
            getattr(self, self._key(name, "record")).zero_()

    def _key(self, layer: str, what: str) -> str:
        return f"{self.keys[layer]}:{what}"

    @torch.no_grad()
    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        chosen = {}
        for name, h in self.look(run, activations, 0).items():
            age, threshold, record = (getattr(self, self._key(name, k)) for k in ("age", "threshold", "record"))
            fired = (per_unit(self.units[name].layer, h).abs() > self.eps).any(3).any(1).any(0)
            self.note(record, age, fired & (age > 0), threshold)
            age.add_(1).masked_fill_(fired, 0.0)
            overdue = age - threshold
            order = overdue.argsort(descending=True, stable=True)[: self.most]
            reset = overdue.index_select(0, order) >= 0
            chosen[name] = Chosen(order, reset)
            # The silence that ended in a reset is one that was at least so long.
            gone = torch.zeros_like(fired).index_copy_(0, order, reset)
            self.note(record, age, gone, threshold)
            age.masked_fill_(gone, 0.0)
            if self.renewal(run.clock):
                self.renew(threshold, record)
        self.recycle(chosen)

    def note(self, record: Tensor, age: Tensor, which: Tensor, threshold: Tensor) -> None:
        """Enter the present silences of the units at which `which` holds.

        Whether a threshold is lowered depends on how many silences were shorter than it. One that was, but falls into
        the threshold's own bin, is entered one bin lower, so that the record can tell.
        """
        bins, limit = bin_of(age, self.lengths), bin_of(threshold.ceil(), self.lengths)
        bins = torch.where(age < threshold, bins.minimum(limit - 1), bins)
        record.scatter_add_(1, bins[:, None], which[:, None].to(record.dtype))

    def renew(self, threshold: Tensor, record: Tensor) -> None:
        """The percentile of each unit's record, or the old threshold expanded where that would not lower it."""
        total = record.sum(1)
        share = record.cumsum(1) / total.clamp(min=1)[:, None]
        # The first bin at which the share is reached. Bins are compared with bins: the shortest silence of the bin that
        # a threshold lies in is shorter than the threshold itself, and would seem to lower it.
        reached = (share >= self.percentile).to(torch.uint8).argmax(1)
        lowered = reached < bin_of(threshold.ceil(), self.lengths)
        renewed = torch.where(lowered, self.lengths.index_select(0, reached), threshold * self.expansion)
        threshold.copy_(torch.where(total > 0, renewed.clamp(1.0, float(self.longest)), threshold))
        record.zero_()


def bin_of(length: Tensor, lengths: Tensor) -> Tensor:
    """[units] whole numbers of updates → the bin of a silence of that length."""
    return torch.bucketize(length, lengths, right=True) - 1


def bin_lengths() -> Tensor:
    """[BINS] the shortest silence, in whole updates, that falls into each bin."""
    coarse = EXACT * 2 ** (torch.arange(BINS - EXACT, dtype=torch.float64) / 16)
    return torch.cat([torch.arange(EXACT, dtype=torch.float64), coarse.ceil()]).float()

"""Proportional prioritisation (Schaul et al. 2016, "Prioritized Experience Replay", arXiv 1511.05952).

A transition with temporal-difference error d is drawn with probability proportional to (|d| + epsilon) ** alpha, and
its loss is weighted by (N P) ** -beta, divided by the greatest weight of the batch (Algorithm 1 of the paper).

The paper's sum tree is replaced by two levels, the priorities and the sums of blocks of them, searched by cumulative
sums over whole batches: on a GPU a handful of kernels instead of a loop in Python. A block's sum is always recomputed
from its priorities, so that no rounding error accumulates. Nothing here makes the host wait for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from ..common.ranges import Positive, Share, SomeEnvSteps, between, check_numbers

BLOCK = 128


@dataclass(frozen=True)
class PrioritisedConfig:
    """Prioritised replay; the defaults are those of Rainbow (Hessel et al. 2018, arXiv 1710.02298)."""

    alpha: Annotated[float, between(0, 10)] = 0.5
    """How strongly errors count: 0 is uniform, 1 proportional."""
    beta: Share = 0.4
    """Correction by importance weights at the start; it rises linearly to `beta_final`."""
    beta_final: Share = 1.0
    """Correction by importance weights at the end; 1 is full."""
    beta_steps: SomeEnvSteps = 50_000_000
    """Environment steps over which beta rises: the length of a run (200 million Atari frames)."""
    epsilon: Positive = 1e-6
    """Added to every error, so that none is never seen again."""

    def __post_init__(self) -> None:
        check_numbers(self)

    def beta_at(self, steps: int) -> float:
        """Beta after so many environment steps: a function of them alone, so that the replay ratio cannot bend it."""
        return self.beta + (self.beta_final - self.beta) * min(1.0, steps / self.beta_steps)


class Priorities:
    """Priorities of a ring of transitions, spoken of by ordinal (how many were stored before); drawable or zero.

    What becomes drawable gets the highest priority given so far, as in the paper.
    """

    def __init__(self, size: int, config: PrioritisedConfig, device: torch.device) -> None:
        self._size, self._config = size, config
        # At least one place is never drawn: errors of transitions that have gone are thrown there.
        self._table = torch.zeros(size // BLOCK + 1, BLOCK, dtype=torch.float64, device=device)
        self._sums = torch.zeros(len(self._table), dtype=torch.float64, device=device)
        self._highest = torch.ones((), dtype=torch.float64, device=device)
        self._first = self._last = 0

    @staticmethod
    def size_of(size: int) -> int:
        """Bytes that the priorities of so many transitions take."""
        return (size // BLOCK + 1) * (BLOCK + 1) * 8 + 8

    @property
    def nbytes(self) -> int:
        return self._table.nbytes + self._sums.nbytes + self._highest.nbytes

    def limit(self, first: int, last: int) -> None:
        """Make exactly the ordinals from `first` up to `last` (exclusive) drawable."""
        self._fill(self._first, min(first, self._last), None)
        self._fill(max(last, first), self._last, None)  # a longer n-step window is no longer complete
        self._fill(max(self._last, first), last, self._highest)
        self._first, self._last = first, last

    def begin_anew(self) -> None:
        """What becomes drawable from now on gets the first priority there was."""
        self._highest.fill_(1.0)

    def _fill(self, first: int, last: int, value: Tensor | None) -> None:
        """Set the priorities of a range of ordinals (at most one round of the ring), zero without a value."""
        while first < last:
            begin = first % self._size
            end = min(begin + last - first, self._size)
            places = self._table.view(-1)[begin:end]
            places.zero_() if value is None else places.copy_(value.expand_as(places))
            blocks = slice(begin // BLOCK, (end - 1) // BLOCK + 1)
            self._sums[blocks] = self._table[blocks].sum(1)
            first += end - begin

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """[count] int64 ordinals: one from each of `count` equal slices of the total priority (stratified)."""
        upper = self._sums.cumsum(0)
        total = upper[-1]
        slices = torch.arange(count, dtype=torch.float64, device=upper.device)
        slices += torch.rand(count, dtype=torch.float64, device=upper.device, generator=generator)
        # `right` finds the first place whose cumulative sum lies above the point: its own priority is above zero. That
        # holds if the point lies below the greatest sum, which rounding alone does not promise.
        points = torch.minimum(slices * (total / count), torch.nextafter(total, torch.zeros_like(total)))
        block = torch.searchsorted(upper, points, right=True).clamp_(max=len(upper) - 1)
        within = self._table.index_select(0, block).cumsum(1)
        ends = within[:, -1]
        points = points - upper.index_select(0, block) + self._sums.index_select(0, block)
        points = torch.minimum(points.clamp_(min=0.0), torch.nextafter(ends, torch.zeros_like(ends)))
        place = torch.searchsorted(within, points[:, None], right=True).squeeze(1).clamp_(max=BLOCK - 1)
        # Places count up from that of the first drawable transition, around the ring.
        return (block * BLOCK + place - self._first % self._size).remainder_(self._size) + self._first

    def weights(self, ordinals: Tensor, steps: int) -> Tensor:
        """[B] float32 importance weights of drawn ordinals, the greatest of them 1."""
        # (N P)^-beta over the greatest of the batch: N and the total priority cancel.
        priority = self._table.view(-1).index_select(0, ordinals.remainder(self._size))
        return (priority.min() / priority).pow_(self._config.beta_at(steps)).float()

    def update(self, ordinals: Tensor, td_error: Tensor) -> None:
        """Set priorities from the errors of drawn ordinals; those that are no longer drawable are passed over."""
        # A run that diverges should end by an error of its own, not by an index out of range here.
        error = td_error.detach().double().abs().nan_to_num_(nan=0.0, posinf=torch.finfo(torch.float32).max)
        drawable = (ordinals >= self._first) & (ordinals < self._last)
        priority = (error + self._config.epsilon).pow_(self._config.alpha).mul_(drawable)
        place = torch.where(drawable, ordinals.remainder(self._size), self._size)
        table = self._table.view(-1)
        # Of two errors of one transition the larger counts, so that the order of a GPU's threads does not.
        table.index_fill_(0, place, 0.0).scatter_reduce_(0, place, priority, "amax")
        block = place.div(BLOCK, rounding_mode="floor")
        self._sums.index_copy_(0, block, self._table.index_select(0, block).sum(1))
        torch.maximum(self._highest, priority.max(), out=self._highest)

    def state_dict(self) -> dict[str, Any]:
        tensors = {"table": self._table, "sums": self._sums, "highest": self._highest}
        return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()} | {
            "first": self._first,
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._table.copy_(state["table"])
        self._sums.copy_(state["sums"])
        self._highest.copy_(state["highest"])
        self._first, self._last = state["first"], state["last"]

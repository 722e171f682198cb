"""Proportional prioritisation (Schaul et al. 2016, "Prioritized Experience Replay", arXiv 1511.05952).

A transition with temporal-difference error d is drawn with probability proportional to (|d| + epsilon) ** alpha, and
its loss is weighted by (N P) ** -beta, divided by the largest weight of the batch (Algorithm 1 of the paper).

Two levels replace the paper's sum tree: the priorities, and the sums of blocks of priorities. Both are searched with
cumulative sums for a whole batch at once, which takes a few GPU kernels instead of a loop in Python. A block's sum is
always recomputed from its priorities, so that rounding errors do not accumulate. The host never waits for the device.
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
    """Exponent of the error: 0 is uniform sampling, 1 is proportional."""
    beta: Share = 0.4
    """Initial exponent of the importance weights; it rises linearly to `beta_final`."""
    beta_final: Share = 1.0
    """Final exponent of the importance weights; 1 is full correction."""
    beta_steps: SomeEnvSteps = 50_000_000
    """Environment steps over which beta rises: the length of a run (200 million Atari frames)."""
    epsilon: Positive = 1e-6
    """Added to every error, so that every transition can be sampled again."""

    def __post_init__(self) -> None:
        check_numbers(self)

    def beta_at(self, steps: int) -> float:
        """Beta after `steps` environment steps; it does not depend on the replay ratio."""
        return self.beta + (self.beta_final - self.beta) * min(1.0, steps / self.beta_steps)


class Priorities:
    """Priorities of a ring buffer of transitions, addressed by ordinal (the number of transitions stored before).

    Transitions that cannot be drawn have priority zero. A transition that becomes drawable gets the highest priority
    assigned so far, as in the paper.
    """

    def __init__(self, size: int, config: PrioritisedConfig, device: torch.device) -> None:
        self._size, self._config = size, config
        # At least one entry is never drawn: errors of dropped transitions are written there.
        self._table = torch.zeros(size // BLOCK + 1, BLOCK, dtype=torch.float64, device=device)
        self._sums = torch.zeros(len(self._table), dtype=torch.float64, device=device)
        self._highest = torch.ones((), dtype=torch.float64, device=device)
        self._first = self._last = 0
        # The same numbers on the device, where a captured graph reads them, and the present beta.
        self._bounds = torch.zeros(2, dtype=torch.int64, device=device)
        self._beta = torch.full((), config.beta, dtype=torch.float64, device=device)
        self._steps = -1

    @staticmethod
    def size_of(size: int) -> int:
        """Bytes that the priorities of `size` transitions take."""
        return (size // BLOCK + 1) * (BLOCK + 1) * 8 + 32

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that `update` changes."""
        return self._table, self._sums, self._highest

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self._table, self._sums, self._highest, self._bounds, self._beta))

    def limit(self, first: int, last: int) -> None:
        """Make exactly the ordinals from `first` up to `last` (exclusive) drawable."""
        self._fill(self._first, min(first, self._last), None)
        self._fill(max(last, first), self._last, None)  # a longer n-step window is no longer complete
        self._fill(max(self._last, first), last, self._highest)
        self._set_bounds(first, last)

    def _set_bounds(self, first: int, last: int) -> None:
        for place, old, new in zip(self._bounds, (self._first, self._last), (first, last), strict=True):
            if old != new:
                place.fill_(new)
        self._first, self._last = first, last

    def set_steps(self, steps: int) -> None:
        """Set beta to its value after `steps` environment steps."""
        if steps != self._steps:
            self._steps = steps
            self._beta.fill_(self._config.beta_at(steps))

    def begin_anew(self) -> None:
        """Transitions that become drawable from now on get the initial priority 1."""
        self._highest.fill_(1.0)

    def _fill(self, first: int, last: int, value: Tensor | None) -> None:
        """Set the priorities of a range of ordinals (at most one round of the ring) to `value`, or to zero if None."""
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
        # `right` finds the first entry whose cumulative sum is above the point, so its own priority is above zero. This
        # needs points below the largest sum; nextafter ensures that in spite of rounding.
        points = torch.minimum(slices * (total / count), torch.nextafter(total, torch.zeros_like(total)))
        block = torch.searchsorted(upper, points, right=True).clamp_(max=len(upper) - 1)
        within = self._table.index_select(0, block).cumsum(1)
        ends = within[:, -1]
        points = points - upper.index_select(0, block) + self._sums.index_select(0, block)
        points = torch.minimum(points.clamp_(min=0.0), torch.nextafter(ends, torch.zeros_like(ends)))
        place = torch.searchsorted(within, points[:, None], right=True).squeeze(1).clamp_(max=BLOCK - 1)
        # Convert positions in the ring to ordinals, counted from the first drawable transition.
        first = self._bounds[0]
        return (block * BLOCK + place - first.remainder(self._size)).remainder_(self._size) + first

    def weights(self, ordinals: Tensor) -> Tensor:
        """Importance weights [B] float32 of drawn ordinals; the largest is 1."""
        # (N P)^-beta divided by the largest of the batch: N and the total priority cancel.
        priority = self._table.view(-1).index_select(0, ordinals.remainder(self._size))
        return (priority.min() / priority).pow_(self._beta).float()

    def update(self, ordinals: Tensor, td_error: Tensor) -> None:
        """Set priorities from the errors of drawn ordinals; ordinals that are no longer drawable are ignored."""
        # Replace NaN: a run that diverges should end with its own error, not with an index out of range here.
        error = td_error.detach().double().abs().nan_to_num_(nan=0.0, posinf=torch.finfo(torch.float32).max)
        drawable = (ordinals >= self._bounds[0]) & (ordinals < self._bounds[1])
        priority = (error + self._config.epsilon).pow_(self._config.alpha).mul_(drawable)
        place = torch.where(drawable, ordinals.remainder(self._size), self._size)
        table = self._table.view(-1)
        # If a transition occurs twice, its larger error counts, so the order of GPU threads has no effect.
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
        self._set_bounds(state["first"], state["last"])

"""The schedule of a non-stationary problem: its level as a pure function of the run's environment steps."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeAlias

from ..common.ranges import EnvSteps, Share, SomeEnvSteps, at_least, check_numbers

Level: TypeAlias = Annotated[int, at_least(0, most=1_000_000, why="a level may be drawn from all before it")]
"""The number of a level."""


class Moment(NamedTuple):
    """The state of a schedule at one moment: the level, the next level, and the progress towards it (0 … 1)."""

    task: int
    level: int
    next_level: int
    blend: float


@dataclass(frozen=True)
class Schedule:
    """A sequence of tasks, each with a level.

    Attributes:
        every: Length of a task in environment steps (of all environments together) …
        at: … or the steps at which the second, third, … task begins; the last task has no end.
        order: The level of each task, repeated: (0, 1) is A-B-A-B. If empty, every task has a new level.
        abruptness: 1 changes at once at the end of a task; below 1, the last share `1 - abruptness` of a task moves
            steadily to the next level; 0 moves all the time.

    Raises:
        ValueError: Tasks overlap, or a number is out of range.
    """

    every: EnvSteps = 0
    at: tuple[SomeEnvSteps, ...] = ()
    order: tuple[Level, ...] = ()
    abruptness: Share = 1.0

    def __post_init__(self) -> None:
        check_numbers(self)
        if bool(self.every) == bool(self.at):
            raise ValueError("give exactly one of every=STEPS (length of a task) and at=(STEPS, ...) (starts of tasks)")
        if any(b <= a for a, b in zip(self.at, self.at[1:], strict=False)):
            raise ValueError(f"tasks overlap: the steps in at={self.at} must increase")

    def task(self, steps: int) -> int:
        """The number of the task at these environment steps, from 0."""
        return steps // self.every if self.every else bisect_right(self.at, steps)

    def begin(self, task: int) -> int:
        """The environment steps at which a task begins."""
        if self.every:
            return task * self.every
        return 0 if task == 0 else self.at[task - 1]

    def level(self, task: int) -> int:
        """The level of a task."""
        return self.order[task % len(self.order)] if self.order else task

    def moment(self, steps: int) -> Moment:
        """The state of the schedule at these environment steps."""
        task = self.task(steps)
        level = self.level(task)
        if self.abruptness == 1 or (self.at and task == len(self.at)):
            return Moment(task, level, level, 0.0)
        begin, end = self.begin(task), self.begin(task + 1)
        gone = (steps - begin) / (end - begin)
        blend = max(0.0, (gone - self.abruptness) / (1 - self.abruptness))
        return Moment(task, level, self.level(task + 1), blend)

"""When a non-stationary problem shows which of its levels: a pure function of the environment steps of the run."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeAlias

from ..common.ranges import EnvSteps, Share, SomeEnvSteps, at_least, check_numbers

Level: TypeAlias = Annotated[int, at_least(0, most=1_000_000, why="a level may be drawn from all before it")]
"""The number of a level."""


class Moment(NamedTuple):
    """What holds at one moment: the level, the one that it moves towards, and how far (0 … 1)."""

    task: int
    level: int
    next_level: int
    blend: float


@dataclass(frozen=True)
class Schedule:
    """Tasks in a row, each of which shows a level.

    Attributes:
        every: Environment steps (of all environments together) that a task lasts …
        at: … or the steps at which the second task, the third … begin; the last one lasts for ever.
        order: Which level each task shows, over and over again: (0, 1) is A-B-A-B. Empty: every task shows a new one.
        abruptness: 1 changes all at once at the edge; less spends the last `1 - abruptness` of a task on moving
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
            raise ValueError("tasks last for every=STEPS, or begin at=(STEPS, ...): give one of the two")
        if any(b <= a for a, b in zip(self.at, self.at[1:], strict=False)):
            raise ValueError(f"tasks overlap: each begins after the one before it, and at={self.at} does not rise")

    def task(self, steps: int) -> int:
        """The number of the task at so many environment steps, from 0."""
        return steps // self.every if self.every else bisect_right(self.at, steps)

    def begin(self, task: int) -> int:
        """The environment steps at which a task begins."""
        if self.every:
            return task * self.every
        return 0 if task == 0 else self.at[task - 1]

    def level(self, task: int) -> int:
        """The level that a task shows."""
        return self.order[task % len(self.order)] if self.order else task

    def moment(self, steps: int) -> Moment:
        """What holds at so many environment steps."""
        task = self.task(steps)
        level = self.level(task)
        if self.abruptness == 1 or (self.at and task == len(self.at)):
            return Moment(task, level, level, 0.0)
        begin, end = self.begin(task), self.begin(task + 1)
        gone = (steps - begin) / (end - begin)
        blend = max(0.0, (gone - self.abruptness) / (1 - self.abruptness))
        return Moment(task, level, self.level(task + 1), blend)

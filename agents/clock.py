"""Time: the clock of a run, triggers that are functions of it, linear schedules, and what the clock decides about an
update.

Environment steps, gradient updates and episodes are three different clocks. Nothing counts time in an attribute of its
own, so a run that resumes goes on at the same moment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from ..common.ranges import Moment, Number, Period, Start, Updates, at_least, check_numbers, checked

Unit = Literal["updates", "steps", "episodes"]
UNITS = ("updates", "steps", "episodes")
Patience: TypeAlias = Annotated[int, at_least(1, "measurements")]


@dataclass(frozen=True)
class Clock:
    """The progress of a run: environment steps (decisions), gradient updates and finished episodes, now and at the
    previous update.

    These are three different clocks. Emulator frames are steps times frame skip and appear in logs only. Triggers are
    evaluated after each update and compare with the previous update, so at any replay ratio no moment in between is
    missed or counted twice.
    """

    steps: int = 0
    updates: int = 0
    last_steps: int = 0
    last_updates: int = 0
    episodes: int = 0
    last_episodes: int = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("actor", "target"):
            raise AttributeError("agents learn by a plan: agent.update(batch, agent.plan(clock))")
        raise AttributeError(f"a clock has no {name!r}")

    def stepped(self, steps: int, episodes: int = 0) -> Clock:
        """The clock after `steps` more environment steps, in which `episodes` episodes ended."""
        return self._at(self.steps + steps, self.updates, self.episodes + episodes)

    def updated(self) -> Clock:
        """The clock after one more gradient update."""
        return self._at(self.steps, self.updates + 1, self.episodes)

    def _at(self, steps: int, updates: int, episodes: int) -> Clock:
        """The clock with new readings; the present ones become those of the previous update if an update was
        counted."""
        if self.last_updates == self.updates:
            return Clock(steps, updates, self.last_steps, self.last_updates, episodes, self.last_episodes)
        return Clock(steps, updates, self.steps, self.updates, episodes, self.episodes)

    def read(self, of: Unit) -> tuple[int, int]:
        """(reading at the previous update, present reading) of one of the clocks."""
        if of == "updates":
            return self.last_updates, self.updates
        return (self.last_steps, self.steps) if of == "steps" else (self.last_episodes, self.episodes)


class Trigger(Protocol):
    """A pure function of the clock: True if the trigger fires between the previous update and this one."""

    def __call__(self, clock: Clock) -> bool: ...


@dataclass(frozen=True)
class Every:
    """Fires once per `period` of a clock, whatever the stride of the clock; never at zero, before `start` or after
    `stop`."""

    period: Period
    of: Unit = "updates"
    start: Start = 0
    stop: Start | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.of not in UNITS:
            raise ValueError(f"unknown clock {self.of!r}: {', '.join(map(repr, UNITS))}")

    def __call__(self, clock: Clock) -> bool:
        last, now = clock.read(self.of)
        # It suffices to check the latest multiple of the period that is not after `stop`.
        latest = (now if self.stop is None else min(now, self.stop)) // self.period * self.period
        return last < latest and latest >= max(self.start, 1)


@dataclass(frozen=True)
class At:
    """Fires when a clock passes each of the given moments."""

    moments: tuple[Moment, ...]
    of: Unit = "updates"

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.of not in UNITS:
            raise ValueError(f"unknown clock {self.of!r}: {', '.join(map(repr, UNITS))}")

    def __call__(self, clock: Clock) -> bool:
        last, now = clock.read(self.of)
        return any(last < moment <= now for moment in self.moments)


class Never:
    """The trigger that never fires, for interventions without a schedule."""

    def __call__(self, clock: Clock) -> bool:
        return False


class Readings(Protocol):
    """Access to the latest measurements; the monitors of a run implement it."""

    def latest(self, metric: str) -> tuple[float, int] | None:
        """The latest value and the update at which it was measured; None before the first measurement."""
        ...


class When:
    """Fires when a monitor's measurement crosses a bound (closed loop).

    A measurement is read one update after it was made, so that the host never waits for it. A NaN resets the count of
    consecutive measurements and fires nothing. Measurements from before the latest firing are ignored, since they do
    not show its effect. However often the trigger is evaluated, each measurement counts once.

    Args:
        metric: Place and metric, such as `critic/dormant_fraction`.
        below: Fires if the measurement is smaller than this. Give exactly one of `below` and `above`.
        above: Fires if the measurement is larger than this.
        patience: Consecutive measurements that must meet the condition.
        cooldown: Gradient updates after a firing during which the trigger does not fire and counts no measurement.

    Raises:
        ValueError: Neither or both of `below` and `above` are given, or a number is out of range.
    """

    of: Unit = "updates"

    @checked
    def __init__(
        self,
        metric: str,
        *,
        below: Number | None = None,
        above: Number | None = None,
        patience: Patience = 1,
        cooldown: Updates = 0,
    ) -> None:
        if (below is None) == (above is None):
            raise ValueError("when: give exactly one of below and above")
        self.metric, self.below, self.above = metric, below, above
        self.patience, self.cooldown = patience, cooldown
        self.readings: Readings | None = None
        self.row = 0  # consecutive measurements that met the condition
        self.seen = 0  # update of the latest measurement that was counted
        self.asked: tuple[int, bool] = (0, False)  # update of the latest evaluation, and its result
        self.fired: int | None = None  # update of the latest firing

    @classmethod
    def parse(cls, text: str, patience: int = 1, cooldown: int = 0) -> When:
        """Parse a condition such as `critic/dormant_fraction > 0.2`.

        Raises:
            ValueError: The text is not of the form `metric > number` or `metric < number`.
        """
        match = re.fullmatch(r"\s*(\S+?)\s*([<>])\s*(\S+)\s*", text)
        try:
            assert match is not None
            metric, sign, bound = match[1], match[2], float(match[3])
        except (AssertionError, ValueError):
            raise ValueError(
                f"cannot read when={text!r}: write place/metric > number, like 'critic/dormant_fraction > 0.2'"
            ) from None
        bounds = {"above": bound} if sign == ">" else {"below": bound}
        return cls(metric, **bounds, patience=patience, cooldown=cooldown)

    def __str__(self) -> str:
        sign, bound = ("<", self.below) if self.above is None else (">", self.above)
        return f"{self.metric} {sign} {bound:g}"

    def __call__(self, clock: Clock) -> bool:
        if self.readings is None:
            raise RuntimeError(f"no monitor measures {self.metric}: add one that does")
        if clock.updates == self.asked[0]:
            return self.asked[1]
        reading = self.readings.latest(self.metric)
        fires = False
        resting = self.fired is not None and clock.updates - self.fired <= self.cooldown
        if reading is not None and reading[1] > self.seen:
            value, self.seen = reading
            resting |= self.fired is not None and self.seen <= self.fired
            holds = value > self.above if self.above is not None else value < self.below  # type: ignore[operator]
            self.row = self.row + 1 if holds and not resting else 0
            fires = self.row >= self.patience
        if fires:
            self.row, self.fired = 0, clock.updates
        self.asked = (clock.updates, fires)
        return fires

    def state(self) -> dict[str, Any]:
        """The trigger's state, in plain values."""
        return {"row": self.row, "seen": self.seen, "asked": list(self.asked), "fired": self.fired}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.row, self.seen, self.fired = state["row"], state["seen"], state["fired"]
        self.asked = (state["asked"][0], state["asked"][1])


@dataclass(frozen=True)
class Sampling:
    """How the next batches are drawn; interventions may anneal it (`Intervention.schedule`).

    `replay_ratio` is gradient updates per environment step. `extra_updates` is the total number of additional updates
    that were requested until this moment: it only grows, and each is made once.
    """

    batch_size: int
    n_step: int
    gamma: float
    replay_ratio: float
    extra_updates: int = 0


@dataclass(frozen=True)
class Plan:
    """What the host decides about a gradient update before it begins (`Agent.plan`); the rest is tensors in, tensors
    out.

    Two updates with equal plans run the same operators, so one captured graph per plan suffices.

    Attributes:
        actor: The actor (and the temperature of SAC) is updated too.
        target: The target network follows the online network after the update.
    """

    actor: bool = True
    target: bool = False


@dataclass(frozen=True)
class Linear:
    """A schedule: constant `start` until `begin`, then linear over `steps`, then constant `end`."""

    start: float
    end: float
    steps: int
    begin: int = 0

    def __call__(self, step: int) -> float:
        share = min(1.0, max(0, step - self.begin) / max(1, self.steps))
        return self.start + share * (self.end - self.start)


class Update(NamedTuple):
    """The results of one gradient update; all tensors are on the device."""

    metrics: dict[str, Tensor]  # 0-d
    activations: dict[str, list[Tensor]]  # per component, the output of every layer on the batch, in forward order
    td_error: Tensor  # [B], absolute; the priorities of prioritised replay

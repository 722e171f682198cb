"""The hooks through which interventions change an agent, the clock, and the triggers.

An `Intervention` overrides the hooks that it needs; every default is the identity. `Compose` is a list of interventions
and is itself an intervention, so an agent always holds exactly one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import combinations
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, get_args

import torch
from torch import Generator, Tensor, nn

from ..common.ranges import Moment, Number, Period, Start, Updates, at_least, check_numbers, checked
from ..common.seeds import derive_seed

if TYPE_CHECKING:
    from .agent import Agent
    from .replay import Batch

Unit = Literal["updates", "steps", "episodes"]
UNITS = ("updates", "steps", "episodes")
Effect = Literal[
    "configuration", "penalty", "batch", "schedule", "optimizer", "unit_surgery", "layer_surgery", "memory"
]
EFFECTS: tuple[Effect, ...] = get_args(Effect)
"""Effect classes of interventions, from the weakest to the strongest.

configuration: a field of the agent's configuration, before anything is built (`configure`).
penalty: a term added to a loss (`penalty`).
batch: the transitions of an update (`transform_batch`).
schedule: how batches are drawn, and how many (`schedule`).
optimizer: the optimizer's state, and no weight (`after_update`).
unit_surgery: weights of single units (`after_update`, with `edits`).
layer_surgery: weights of whole layers, of online or of target networks (`after_update`).
memory: the contents of the agent's replay or rollout (`after_update`).
"""
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

    def stepped(self, steps: int, episodes: int = 0) -> Clock:
        """The clock after `steps` more environment steps, in which `episodes` episodes ended."""
        now = self._settled()
        return replace(now, steps=now.steps + steps, episodes=now.episodes + episodes)

    def updated(self) -> Clock:
        """The clock after one more gradient update."""
        now = self._settled()
        return replace(now, updates=now.updates + 1)

    def _settled(self) -> Clock:
        """This clock, with the present readings as those of the previous update if an update was counted."""
        if self.last_updates == self.updates:
            return self
        return replace(self, last_steps=self.steps, last_updates=self.updates, last_episodes=self.episodes)

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


class Update(NamedTuple):
    """The results of one gradient update; all tensors are on the device."""

    metrics: dict[str, Tensor]  # 0-d
    activations: dict[str, list[Tensor]]  # per component, the output of every layer on the batch, in forward order
    td_error: Tensor  # [B], absolute; the priorities of prioritised replay


class Learning(Protocol):
    """An agent, the clock, and the memory that the agent learns from."""

    @property
    def agent(self) -> Agent: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def memory(self) -> Memory: ...


class Run(Learning, Protocol):
    """The part of a run that `after_update` may use."""

    def firing(self, part: Intervention) -> AbstractContextManager[None]:
        """Record that an intervention fires within the block, and what the firing changes."""
        ...


class Memory(Protocol):
    """The part of a run's memory that an intervention may use.

    `clear` forgets all transitions. `sample` with a generator draws a batch without changing the memory's state.
    """

    def clear(self) -> None: ...
    def sample(
        self, batch_size: int, n_step: int = 1, gamma: float = 0.99, generator: Generator | None = None
    ) -> Batch: ...


def sample_like_training(run: Learning, samples: int, generator: Generator) -> Batch:
    """Draw B = `samples` transitions as training would draw them now, without changing the memory's state.

    Uses the agent's present n-step and discount (which may be annealed), not the defaults of `Memory.sample`.

    Raises:
        RuntimeError: The memory holds no transition with a complete window.
    """
    sampling = run.agent.sampling(run.clock)
    return run.memory.sample(samples, sampling.n_step, sampling.gamma, generator=generator)


class Intervention(nn.Module):
    """A change to an agent or its training, such as a method against plasticity loss.

    Override the hooks that you need; every default is the identity. Keep state in buffers, so that a checkpoint holds
    it, and in `host_state` what only the host needs. Use the clock for time, never a counter in an attribute. Draw
    random numbers from `generator`, which `seed` creates and a checkpoint holds.

    Attributes:
        name: The intervention's name in an intervention spec.
        on: The component of the agent that it changes, or a part of one.
        when: The trigger of `fire`.
        claims: Resources that it reserves: no other intervention may claim or edit them.
        edits: Parts of the agent whose weights it changes: no other intervention may claim them.
        effect: Its effect class, one of `EFFECTS`; if it has several, the last of them in `EFFECTS`. Tests choose pairs
            of interventions by it.
        example: An intervention spec with which it acts within a few updates, for the tests of laws.
        touched: Units that the latest firing changed, by layer name, as numbers or 0-d tensors on the device.
        comes_late: Reason why it cannot be added to an agent that is already trained; empty if it can.
    """

    name: ClassVar[str] = ""
    example: ClassVar[str] = ""
    effect: ClassVar[Effect | Literal[""]] = ""
    on: str = "critic"
    when: Trigger = Never()
    claims: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    generator: Generator
    touched: Mapping[str, Tensor | float] = MappingProxyType({})
    comes_late: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:  # check arguments against the ranges that their annotations declare
            cls.__init__ = checked(cls.__dict__["__init__"])  # type: ignore[method-assign]

    def seed(self, seed: int, device: torch.device) -> None:
        """Create the intervention's own random generator, on the device."""
        self.generator = Generator(device).manual_seed(seed)

    def host_state(self) -> dict[str, Any]:
        """State that only the host needs, in plain values; empty for most interventions."""
        return {}

    def load_host_state(self, state: dict[str, Any]) -> None:
        """Restore what `host_state` returned."""

    def get_extra_state(self) -> dict[str, Any]:
        generator = self.__dict__.get("generator")
        when = {"when": self.when.state()} if isinstance(self.when, When) else {}
        return {"host": self.host_state(), "generator": None if generator is None else generator.get_state()} | when

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.load_host_state(state["host"])
        if isinstance(self.when, When) and "when" in state:
            self.when.load_state(state["when"])
        if state["generator"] is not None:
            restore_stream_(self.generator, state["generator"], derive_seed(0, self.name))

    def configure(self, config: Any) -> Any:
        """Return an edited copy of the agent's frozen configuration; called before anything is built."""
        return config

    def bind(self, agent: Agent) -> None:
        """Allocate buffers; called once, when the agent is built.

        Raises:
            ValueError: The intervention cannot be applied to this agent.
        """

    def schedule(self, sampling: Sampling, clock: Clock) -> Sampling:
        """Return the batch size, n-step, discount and replay ratio for this moment."""
        return sampling

    def transform_batch(self, batch: Batch) -> Batch:
        """Return a changed batch (augmented observations, mapped rewards); called in the update, before the loss."""
        return batch

    def penalty(self, agent: Agent, component: str) -> Tensor | float:
        """A term that the update adds to a component's loss. Terms are summed, so their order has no effect."""
        return 0.0

    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        """Edit the agent in place between updates; by default call `fire` if `when` triggers.

        The host must not wait for the device.
        """
        if self.when(run.clock):
            with firing(run, self):
                self.fire(run, activations)

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        """The action that `when` triggers."""

    def fire_now(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        """Fire, whatever `when` says; a fork uses it to compare a run with and without the firing."""
        with firing(run, self):
            self.fire(run, activations)

    def reborn(self, run: Run) -> None:
        """Reset the intervention's state; called after the agent was reinitialised in place."""

    def joined(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        """Called when the intervention was added to a trained agent, after the agent's state was loaded.

        `bind` saw the freshly initialised agent. Recompute here the state that should come from the present agent; keep
        the state that should come from the initialisation.
        """

    def fire_when(self, when: When) -> None:
        """Fire on a measurement instead of a schedule.

        Raises:
            ValueError: The intervention has no `fire`, so it does not act on a schedule.
        """
        if type(self).fire is Intervention.fire:
            raise ValueError(f"{self.name} does not fire now and then, so there is nothing for when= to set off")
        self.when = when

    def measurements(self) -> dict[str, Tensor]:
        """Measurements of its latest actions for the log, as 0-d tensors on the device; each name begins with the
        intervention's name."""
        return {}


def firing(run: Any, part: Intervention) -> AbstractContextManager[None]:
    """The run's record of a firing; does nothing if the run object has no `firing` (a stand-in for a run)."""
    record = getattr(run, "firing", None)
    return nullcontext() if record is None else record(part)


def _changes(before: Any, after: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a (nested) dataclass that differ, by dotted name."""
    if type(before) is not type(after) or not is_dataclass(before):
        return {} if before == after else {prefix: after}
    changes: dict[str, Any] = {}
    for field in fields(before):
        name = f"{prefix}.{field.name}" if prefix else field.name
        changes |= _changes(getattr(before, field.name), getattr(after, field.name), name)
    return changes


class Compose(Intervention):
    """Interventions in order of application.

    Raises:
        ValueError: Two interventions claim the same resource, or one edits what the other claims (at construction), or
            both set the same field of the configuration (in `configure`).
    """

    def __init__(self, interventions: Sequence[Intervention] = ()) -> None:
        super().__init__()
        self.parts = nn.ModuleList(interventions)
        for first, second in combinations(self, 2):
            for one, other in ((first, second), (second, first)):
                if shared := set(one.claims) & {*other.claims, *other.edits}:
                    what = ", ".join(sorted(shared))
                    how = "both claim" if set(other.claims) & shared else f"{one.name} has to itself what both edit,"
                    raise ValueError(f"{second.name} and {first.name} exclude each other: {how} {what}")

    # Only the parts have state of their own, so the state dict of an agent without interventions stays unchanged.
    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    def __iter__(self) -> Iterator[Intervention]:
        yield from self.parts  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.parts)

    def configure(self, config: Any) -> Any:
        setters: dict[str, str] = {}
        for part in self:
            edited = part.configure(config)
            for field in _changes(config, edited):
                if field in setters:
                    raise ValueError(f"{part.name} and {setters[field]} exclude each other: both set agent.{field}")
                setters[field] = part.name
            config = edited
        return config

    def bind(self, agent: Agent) -> None:
        for i, part in enumerate(self):
            part.seed(derive_seed(agent.seed, f"intervention {i} {part.name}"), agent.device)
            part.bind(agent)

    def schedule(self, sampling: Sampling, clock: Clock) -> Sampling:
        for part in self:
            sampling = part.schedule(sampling, clock)
        return sampling

    def transform_batch(self, batch: Batch) -> Batch:
        for part in self:
            batch = part.transform_batch(batch)
        return batch

    def penalty(self, agent: Agent, component: str) -> Tensor | float:
        total: Tensor | float = 0.0
        for part in self:
            total = total + part.penalty(agent, component)
        return total

    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        for part in self:
            part.after_update(run, activations)

    def measurements(self) -> dict[str, Tensor]:
        measurements: dict[str, Tensor] = {}
        for part in self:
            measurements |= part.measurements()
        return measurements


def restore_stream_(generator: Generator, state: Tensor, seed: int) -> None:
    """Restore a generator's state. A state from another kind of device cannot be loaded; then the generator starts from
    `seed`."""
    if state.numel() == generator.get_state().numel():
        generator.set_state(state.cpu())
    else:
        generator.manual_seed(seed)

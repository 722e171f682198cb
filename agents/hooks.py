"""The joints at which interventions reach into an agent, and the clocks they run on.

An `Intervention` overrides the hooks it needs; every default is the identity. `Compose` is a list of interventions
that is itself one, so an agent always holds exactly one.
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
"""What a method changes, from the weakest effect to the strongest.

configuration: a field of the agent's configuration, before anything is built (`configure`).
penalty: a term added to a loss (`penalty`).
batch: the transitions of an update (`transform_batch`).
schedule: how batches are drawn, and how many (`schedule`).
optimizer: the optimizer's state, and no weight (`after_update`).
unit_surgery: weights of single units (`after_update`, with `edits`).
layer_surgery: weights of whole layers, of online or of target networks (`after_update`).
memory: what the agent's replay or rollout holds (`after_update`).
"""
Patience: TypeAlias = Annotated[int, at_least(1, "measurements")]


@dataclass(frozen=True)
class Clock:
    """How far a run has come: environment steps (decisions), gradient updates and finished episodes, now and at the
    previous update.

    They are different clocks; emulator frames are steps times frame skip and matter to logs alone. Triggers are
    asked after each update, so what they compare with is the previous one: at any replay ratio nothing that was
    crossed in between is missed or seen twice.
    """

    steps: int = 0
    updates: int = 0
    last_steps: int = 0
    last_updates: int = 0
    episodes: int = 0
    last_episodes: int = 0

    def stepped(self, steps: int, episodes: int = 0) -> Clock:
        """The clock after `steps` more environment steps, at which `episodes` ended."""
        now = self._settled()
        return replace(now, steps=now.steps + steps, episodes=now.episodes + episodes)

    def updated(self) -> Clock:
        """The clock after one more gradient update."""
        now = self._settled()
        return replace(now, updates=now.updates + 1)

    def _settled(self) -> Clock:
        """This clock once its own update is the previous one."""
        if self.last_updates == self.updates:
            return self
        return replace(self, last_steps=self.steps, last_updates=self.updates, last_episodes=self.episodes)

    def read(self, of: Unit) -> tuple[int, int]:
        """(previous, present) reading of one of the clocks."""
        if of == "updates":
            return self.last_updates, self.updates
        return (self.last_steps, self.steps) if of == "steps" else (self.last_episodes, self.episodes)


class Trigger(Protocol):
    """A pure function of the clock: does something fire between the previous tick and this one?"""

    def __call__(self, clock: Clock) -> bool: ...


@dataclass(frozen=True)
class Every:
    """Fires once per `period` of a clock, at any stride; never at zero, never before `start` nor after `stop`."""

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
        # The latest multiple that lies within [start, stop] is the only one that can have been crossed last.
        beat = (now if self.stop is None else min(now, self.stop)) // self.period * self.period
        return last < beat and beat >= max(self.start, 1)


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
    """The trigger of what does not act on a beat."""

    def __call__(self, clock: Clock) -> bool:
        return False


class Readings(Protocol):
    """Who knows what was measured last; the monitors of a run do."""

    def latest(self, metric: str) -> tuple[float, int] | None:
        """The value, and the update at which it was measured; None if it was not yet."""
        ...


class When:
    """Fires on what a monitor measured: closed loop.

    A measurement is read one update after it was made, so that the host never waits for it. One that is not a number
    breaks a row of patience and fires nothing; one from before the latest firing says nothing of what that changed, and
    is passed over. Asked at any number of moments, it counts every measurement once.

    Args:
        metric: Place and metric, such as `critic/dormant_fraction`.
        below: Fires if the measurement is smaller than this …
        above: … or larger than this; one of the two.
        patience: Measurements in a row of which this must hold.
        cooldown: Gradient updates after a firing during which it does not fire again, and nothing is counted.

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
            raise ValueError(f"when {metric} is what: give either below or above")
        self.metric, self.below, self.above = metric, below, above
        self.patience, self.cooldown = patience, cooldown
        self.readings: Readings | None = None
        self.row = 0  # measurements in a row of which it held
        self.seen = 0  # update of the latest measurement that was counted
        self.asked: tuple[int, bool] = (0, False)  # update of the latest question, and the answer
        self.fired: int | None = None  # update of the latest firing

    @classmethod
    def parse(cls, text: str, patience: int = 1, cooldown: int = 0) -> When:
        """`critic/dormant_fraction > 0.2` (ValueError if it is not that)."""
        found = re.fullmatch(r"\s*(\S+?)\s*([<>])\s*(\S+)\s*", text)
        try:
            assert found is not None
            metric, sign, bound = found[1], found[2], float(found[3])
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
            raise RuntimeError(f"nobody measures {self.metric}: give the run a monitor that does")
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
        """What it remembers, in plain values."""
        return {"row": self.row, "seen": self.seen, "asked": list(self.asked), "fired": self.fired}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.row, self.seen, self.fired = state["row"], state["seen"], state["fired"]
        self.asked = (state["asked"][0], state["asked"][1])


@dataclass(frozen=True)
class Sampling:
    """How the next batches are drawn; interventions may anneal it (`Intervention.schedule`).

    `replay_ratio` is gradient updates per environment step, `extra_updates` the number of those that a run owes up to
    this moment besides: it only grows, and each is made once.
    """

    batch_size: int
    n_step: int
    gamma: float
    replay_ratio: float
    extra_updates: int = 0


class Update(NamedTuple):
    """What one gradient update returns, all of it on the device."""

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
    """What `after_update` may see of the run around the agent."""

    def firing(self, part: Intervention) -> AbstractContextManager[None]:
        """Take note that an intervention fires within the block, and of what that changes."""
        ...


class Memory(Protocol):
    """What an intervention may ask of a run's memory: a batch to look at, drawn without a trace; to forget."""

    def clear(self) -> None: ...
    def sample(
        self, batch_size: int, n_step: int = 1, gamma: float = 0.99, generator: Generator | None = None
    ) -> Batch: ...


def sample_like_training(run: Learning, samples: int, generator: Generator) -> Batch:
    """B = `samples` transitions as the agent learns from them at this moment, drawn without a trace.

    The agent's n-step and discount count, annealed or not; the defaults of `Memory.sample` are no agent's.

    Raises:
        RuntimeError: The memory holds no transition with a complete window.
    """
    sampling = run.agent.sampling(run.clock)
    return run.memory.sample(samples, sampling.n_step, sampling.gamma, generator=generator)


class Intervention(nn.Module):
    """Something done to an agent so that it keeps learning. Override what you need; the rest is the identity.

    Memory is buffers, so that a checkpoint holds it; what only the host needs is `host_state`. Time is the clock, never
    a counter in an attribute. Randomness comes from `generator`, which `seed` gives and a checkpoint holds.

    Attributes:
        name: The word that names it.
        on: What it acts on: a component of the agent, or a part of one.
        when: When it acts.
        claims: What no other intervention may claim or edit.
        edits: What no other intervention may claim: the parts of the agent whose weights it changes.
        effect: What it changes; of several effects the one that comes last in `EFFECTS`. Tests choose pairs by it.
        example: A word that makes it act within a few updates, for the laws.
        touched: What the latest firing changed: units by layer name, as numbers or 0-d tensors on the device.
        comes_late: Why it cannot be added to an agent that has lived already; empty if it can.
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
        if "__init__" in cls.__dict__:  # numbers are checked by the ranges that the annotations declare
            cls.__init__ = checked(cls.__dict__["__init__"])  # type: ignore[method-assign]

    def seed(self, seed: int, device: torch.device) -> None:
        """Give the intervention a random stream of its own, on the device where it draws."""
        self.generator = Generator(device).manual_seed(seed)

    def host_state(self) -> dict[str, Any]:
        """What the host has to remember, in plain values; most interventions remember nothing."""
        return {}

    def load_host_state(self, state: dict[str, Any]) -> None:
        """Take back what `host_state` gave."""

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
        """A pure edit of the agent's frozen configuration, before anything is built."""
        return config

    def bind(self, agent: Agent) -> None:
        """Once, when the agent is built: allocate buffers; refuse by name what cannot apply (ValueError)."""

    def schedule(self, sampling: Sampling, clock: Clock) -> Sampling:
        """Batch size, n-step, discount and replay ratio at this moment."""
        return sampling

    def transform_batch(self, batch: Batch) -> Batch:
        """Inside the update, before the loss: augmentation, mapping of rewards."""
        return batch

    def penalty(self, agent: Agent, component: str) -> Tensor | float:
        """Inside the update: a term added to a component's loss. Terms are summed, so order cannot matter."""
        return 0.0

    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        """Between updates: edit in place, without making the host wait for the device. Fires if it is time to."""
        if self.when(run.clock):
            with firing(run, self):
                self.fire(run, activations)

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        """What is done when `when` says so."""

    def fire_now(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        """Fire, whatever `when` says: a fork asks what had become of it."""
        with firing(run, self):
            self.fire(run, activations)

    def reborn(self, run: Run) -> None:
        """The agent has become a newly born one, in place: forget what was remembered of the one before."""

    def joined(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        """It was added to an agent that has lived already, whose state is loaded by now: what `bind` took from the
        newborn agent and is meant of the present one is taken again. What is meant of the birth stays."""

    def fire_when(self, when: When) -> None:
        """Fire on what is measured rather than on a beat.

        Raises:
            ValueError: It does not act on a beat.
        """
        if type(self).fire is Intervention.fire:
            raise ValueError(f"{self.name} does not fire now and then, so there is nothing for when= to set off")
        self.when = when

    def measurements(self) -> dict[str, Tensor]:
        """What it did lately, as 0-d tensors on the device, for the log; names begin with the intervention's."""
        return {}


def firing(run: Any, part: Intervention) -> AbstractContextManager[None]:
    """The run's note of a firing; whoever stands in for a run need not take one."""
    note = getattr(run, "firing", None)
    return nullcontext() if note is None else note(part)


def _changes(before: Any, after: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a (nested) dataclass that differ, by dotted name."""
    if type(before) is not type(after) or not is_dataclass(before):
        return {} if before == after else {prefix: after}
    found: dict[str, Any] = {}
    for field in fields(before):
        name = f"{prefix}.{field.name}" if prefix else field.name
        found |= _changes(getattr(before, field.name), getattr(after, field.name), name)
    return found


class Compose(Intervention):
    """Interventions in order of application.

    Two that set the same field of the configuration, claim the same resource, or of which one edits what the other
    claims, are refused by name (ValueError).
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

    # What it remembers, its parts do; so an agent without any has the state that it always had.
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
        found: dict[str, Tensor] = {}
        for part in self:
            found |= part.measurements()
        return found


def restore_stream_(generator: Generator, state: Tensor, seed: int) -> None:
    """Let a random stream go on where its state was taken. The state of another kind of device cannot be read here, and
    the stream begins anew from a seed."""
    if state.numel() == generator.get_state().numel():
        generator.set_state(state.cpu())
    else:
        generator.manual_seed(seed)

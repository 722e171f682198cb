"""The hooks through which interventions change an agent.

An `Intervention` overrides the hooks that it needs; every default is the identity. `Compose` is a list of interventions
and is itself an intervention, so an agent always holds exactly one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from itertools import combinations
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Generator, Tensor, nn

from ..common.moved import moved
from ..common.ranges import checked
from ..common.seeds import derive_seed
from .clock import Clock, Never, Sampling, Trigger, When

if TYPE_CHECKING:
    from .agent import Agent
    from .memory import Memory
    from .replay import Batch

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
        reserves: Resources that no other intervention may reserve or edit.
        edits: Parts of the agent whose weights it changes; no other intervention may reserve them.
        effect: Its effect class, one of `EFFECTS`; if it has several, the last of them in `EFFECTS`. Tests choose pairs
            of interventions by it.
        example: An intervention spec with which it acts within a few updates, for the tests of laws.
        touched: Units that the latest firing changed, by layer name, as numbers or 0-d tensors on the device.
        only_from_start: Reason why it cannot be added to an agent that is already trained; empty if it can.
        former_parameters: Renamed parameters of its constructor: former name → new name, and new value by former value.
    """

    name: ClassVar[str] = ""
    example: ClassVar[str] = ""
    effect: ClassVar[Effect | Literal[""]] = ""
    on: str = "critic"
    when: Trigger = Never()
    reserves: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    generator: Generator
    touched: Mapping[str, Tensor | float] = MappingProxyType({})
    only_from_start: ClassVar[str] = ""
    former_parameters: ClassVar[Mapping[str, tuple[str, Mapping[Any, Any]]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _refuse_former_names(cls.__name__, cls.__dict__)
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
        """Fire now, independently of `when`; a fork uses it to compare a run with and without the firing."""
        with firing(run, self):
            self.fire(run, activations)

    def reinitialised(self, run: Run) -> None:
        """Reset the intervention's state; called after the agent was reinitialised in place."""

    def added_late(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
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


FORMER_NAMES = {
    "claims": "reserves",
    "comes_late": "only_from_start",
    "joined": "added_late",
    "reborn": "reinitialised",  # a former name
}
"""New name of each attribute of `Intervention` that was renamed. An intervention that defines the former name is
refused, because pliant would ignore it."""


def _refuse_former_names(owner: str, names: Iterable[str]) -> None:
    for former in FORMER_NAMES.keys() & set(names):
        raise TypeError(f"{owner}.{former}: Intervention.{former} is now called {FORMER_NAMES[former]}; rename it")


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
        TypeError: An intervention has an attribute with a former name (`FORMER_NAMES`).
        ValueError: Two interventions reserve the same resource, or one edits a resource that the other reserves (at
            construction), or both set the same field of the configuration (in `configure`).
    """

    def __init__(self, interventions: Sequence[Intervention] = ()) -> None:
        super().__init__()
        self.parts = nn.ModuleList(interventions)
        self.ordered = tuple(interventions)  # a module list takes longer to iterate than most hooks to run
        for part in self:
            _refuse_former_names(type(part).__name__, vars(part))
        for first, second in combinations(self, 2):
            for one, other in ((first, second), (second, first)):
                if shared := set(one.reserves) & {*other.reserves, *other.edits}:
                    both = bool(set(other.reserves) & shared)
                    how = "both reserve" if both else f"{one.name} reserves, and {other.name} edits,"
                    raise ValueError(
                        f"{second.name} and {first.name} exclude each other: {how} {', '.join(sorted(shared))}"
                    )

    # Only the parts have state of their own, so the state dict of an agent without interventions stays unchanged.
    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    def __iter__(self) -> Iterator[Intervention]:
        return iter(self.ordered)

    def __len__(self) -> int:
        return len(self.ordered)

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
        for part in self.ordered:
            sampling = part.schedule(sampling, clock)
        return sampling

    def transform_batch(self, batch: Batch) -> Batch:
        for part in self.ordered:
            batch = part.transform_batch(batch)
        return batch

    def penalty(self, agent: Agent, component: str) -> Tensor | float:
        total: Tensor | float = 0.0
        for part in self.ordered:
            total = total + part.penalty(agent, component)
        return total

    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        for part in self.ordered:
            part.after_update(run, activations)

    def measurements(self) -> dict[str, Tensor]:
        measurements: dict[str, Tensor] = {}
        for part in self.ordered:
            measurements |= part.measurements()
        return measurements


def restore_stream_(generator: Generator, state: Tensor, seed: int) -> None:
    """Restore a generator's state. A state from another kind of device cannot be loaded; then the generator starts from
    `seed`."""
    if state.numel() == generator.get_state().numel():
        generator.set_state(state.cpu())
    else:
        generator.manual_seed(seed)


__getattr__ = moved(
    __name__,
    {name: f"pliant.agents.clock.{name}" for name in ("At", "Every", "Readings", "UNITS", "Unit", "Update")}
    | {"Memory": "pliant.agents.memory.Memory"},
)

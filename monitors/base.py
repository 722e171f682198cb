"""Monitors: what only looks, and the machinery that lets it look without anybody waiting.

A monitor measures on its beat, from what the update has computed and from batches of its own, and yields what it found
as tensors on the device, by key: `<place>/<metric>`, where a place is a component (`critic`), a layer
(`critic.encoder.blocks.0`) or a module.

    class Dead(Monitor):
        name, metrics = "dead", {"dead_fraction": "share of units that are zero on the whole batch"}

        def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
            for layer, h in context.outputs().items():
                h = per_unit(context.survey.layers[layer], h)  # [B, copies, units, positions]
                yield f"{layer}/dead_fraction", (h == 0).all(dim=(0, 1, 3)).float().mean()

All that is found at one update is a page: one tensor, one copy to the host that nobody waits for. It is read one update
later, when it has long arrived; what is no single number (a spectrum, a picture) is worked out on the host then, by
`finish`. Triggers (`When`) read the same pages.

Nothing that a monitor does reaches the agent: it edits no weight, its randomness is a function of the run's seed and of
the clock, and what it tries out it tries on a twin. A run with monitors and a run without end with equal bits.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..agents.agent import Agent
from ..agents.hooks import Clock, Every, Intervention, Trigger, Unit, Update, When, sample_like_training
from ..agents.replay import Batch
from ..common.seeds import derive_seed
from ..interventions.core.parts import ENCODER, Survey, chosen_layers, survey
from ..interventions.core.spec import did_you_mean
from .dashboard import Arrived, Board, Picture

SAMPLES = 256  # transitions on which activations are looked at, and on which a firing is weighed
ENOUGH = 10  # looks after which what a monitor has not found of an agent is taken for something that it never will


Finding = tuple[str, "float | Picture"]


class Known(NamedTuple):
    """What is known of an agent from the start."""

    survey: Survey
    twin: Agent
    twin_survey: Survey
    born: dict[str, dict[str, Tensor]]  # by layer and parameter name

    @classmethod
    def of(cls, agent: Agent) -> Known:
        """Measure an agent. What it was born with follows from its seed, however much it has learnt since."""
        twin = agent.twin()
        born = survey(twin)
        weights = {
            name: {key: p.detach().clone() for key, p in layer.named_parameters()}
            for name, layer in born.layers.items()
        }
        return cls(survey(agent), twin, born, weights)


class MonitorContext:
    """What a monitor may look at, at one update. What several look at is computed once.

    Attributes:
        agent: Whose weights are, in `before_update`, those that the update starts from.
        clock: It counts the update already.
        update: What the update returned; None before it was made.
        survey: The agent's layers by name.
        born: The weights that the agent was born with, by layer and parameter name.
        twin_survey: The layers of what `twin` gives, by the same names.
    """

    def __init__(self, agent: Agent, clock: Clock, memory: Any, known: Known, update: Update | None = None) -> None:
        self.agent, self.clock, self.memory, self.update = agent, clock, memory, update
        self.survey, self.born = known.survey, known.born
        self._twin, self.twin_survey = known.twin, known.twin_survey
        self._batches: dict[tuple[str, int], Batch] = {}

    def twin(self) -> Agent:
        """A copy of the agent as it is now, to be experimented on until the next one asks for it."""
        self._twin.become_(self.agent)
        return self._twin

    def seed(self, purpose: str) -> int:
        """A seed of its own for each purpose at each update."""
        return derive_seed(self.agent.seed, f"{purpose} at {self.clock.updates}")

    def generator(self, purpose: str) -> Generator:
        """A random stream on the device, of its own for each purpose at each update."""
        return Generator(self.agent.device).manual_seed(self.seed(purpose))

    def batch(self, samples: int = SAMPLES, purpose: str = "monitors") -> Batch:
        """Transitions of the replay as the agent learns from them, drawn without a trace; the same for whoever asks
        for as many at this update."""
        if (purpose, samples) not in self._batches:
            self._batches[purpose, samples] = sample_like_training(self, samples, self.generator(purpose))
        return self._batches[purpose, samples]

    def outputs(self, samples: int = SAMPLES) -> dict[str, Tensor]:
        """The outputs of every hidden layer [B, units * copies, *positions], by layer name: those of the update itself
        if its batch is as large as asked for, else those of a batch from the replay, without dropout."""
        own = self.update.activations if self.update is not None else {}
        complete = all(own.get(name) for name, layers in self.survey.taps.items() if layers)
        if complete and not self.agent.dropouts:
            size = min((len(h) for trace in own.values() for h in trace if h is not None), default=0)
            if size >= samples or self.memory is None:
                return self.survey.outputs(own)
        return self._outputs(samples)

    def _outputs(self, samples: int) -> dict[str, Tensor]:
        kept = self.__dict__.setdefault("_kept", {})
        if samples not in kept:
            kept[samples] = self.survey.outputs(self.agent.activations(self.batch(samples)))
        return kept[samples]

    @cached_property
    def gradients(self) -> dict[str, dict[str, Tensor]]:
        """The latest gradients as they were before clipping, by layer and parameter name."""
        clipped = {
            p: getattr(optimizer, "clipped", None)
            for _, optimizer in self.agent.optimizers()
            for group in optimizer.param_groups
            for p in group["params"]
        }

        def whole(p: Tensor) -> Tensor:
            factor = clipped.get(p)
            assert p.grad is not None
            return p.grad if factor is None else p.grad / factor

        found = {
            name: {key: whole(p) for key, p in layer.named_parameters() if p.grad is not None}
            for name, layer in self.survey.layers.items()
        }
        return {name: grads for name, grads in found.items() if grads}


class Monitor(Intervention):
    """Something that looks at an agent while it learns. Give it a name, its metrics, and `measure`.

    Attributes:
        group: cheap monitors look at what the update computed, deep ones make an experiment of their own; one that
            is alone belongs to no group, and must be asked for by name.
        metrics: What it measures, by the last part of the key, and what that means, in one line.
        when: When it looks.
    """

    group: ClassVar[Literal["cheap", "deep", "alone"]] = "cheap"
    metrics: ClassVar[Mapping[str, str]] = {}
    every: ClassVar[int] = 250  # gradient updates, unless a word says otherwise

    def __init__(self, when: Trigger | None = None) -> None:
        super().__init__()
        self.when = Every(self.every) if when is None else when

    def before_update(self, context: MonitorContext) -> None:
        """Before an update at which it will measure: keep what is to be compared."""

    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        """What is found, by key: 0-d tensors are logged, others go through `finish` first. The host never waits.

        A deep monitor that takes long calls `heed` in its loop, so that a run can be stopped meanwhile.
        """
        return iter(())

    def follow(self, run: Any) -> None:
        """After every update, whatever the beat: what learns along with the agent, from `run.batch`."""

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        """On the host: the numbers by key, and pictures by tag, that an array stands for."""
        return iter(())

    def between(self, run: Any) -> Iterator[Finding]:
        """Between two steps, where the host may wait: what needs environments of its own. A monitor that overrides this
        is asked here alone, on its beat, which then must count steps."""
        return iter(())

    @property
    def plays(self) -> bool:
        """Does it look between two steps, rather than at updates?"""
        return type(self).between is not Monitor.between


def beat(every: int, of: Unit = "updates", start: int = 0) -> Every:
    """The trigger that a monitor's word describes."""
    return Every(every, of, start)


@dataclass
class _Page:
    """What was found at one update, on its way to the host."""

    clock: Clock
    who: str  # the monitor; or, if `fired`, the intervention
    keys: list[str]
    shapes: list[tuple[int, ...]]
    array: NDArray[Any]  # float64, flat
    fired: bool = False
    event: Any = field(default=None, repr=False)

    @classmethod
    def sent(cls, clock: Clock, who: str, found: Sequence[tuple[str, Tensor]], fired: bool = False) -> _Page:
        """Gather on the device, and begin the one copy."""
        device = found[0][1].device
        kind = torch.float32 if device.type == "mps" else torch.float64
        flat = torch.cat([value.detach().reshape(-1).to(kind) for _, value in found])
        if device.type == "cuda":
            buffer = torch.empty(flat.shape, dtype=kind, pin_memory=True)
            array = np.from_dlpack(buffer)
        else:
            array = np.empty(flat.shape, np.float32 if kind is torch.float32 else np.float64)
            buffer = torch.from_numpy(array)
        buffer.copy_(flat, non_blocking=True)
        event = torch.cuda.Event() if device.type == "cuda" else None
        if event is not None:
            event.record(torch.cuda.current_stream(device))  # not the current device's, which may be another
        keys, shapes = [key for key, _ in found], [tuple(value.shape) for _, value in found]
        return cls(clock, who, keys, shapes, array, fired, event)

    def read(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Key and array; waits, if the copy should still be on its way an update later."""
        if self.event is not None:
            self.event.synchronize()
        place = 0
        for key, shape in zip(self.keys, self.shapes, strict=True):
            size = math.prod(shape)
            yield key, self.array[place : place + size].reshape(shape)
            place += size

    def state(self) -> dict[str, Any]:
        arrays = [array.copy() for _, array in self.read()]
        return {
            "clock": asdict(self.clock),
            "who": self.who,
            "keys": list(self.keys),
            "fired": self.fired,
            "values": [torch.from_numpy(array) for array in arrays],
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> _Page:
        arrays = [value.numpy() for value in state["values"]]
        flat = np.concatenate([array.reshape(-1) for array in arrays])
        shapes = [array.shape for array in arrays]
        return cls(Clock(**state["clock"]), state["who"], list(state["keys"]), shapes, flat, state["fired"])


class Monitors:
    """All monitors of a run: what `watch` returns.

    Attributes:
        parts: The monitors.
        readings: Key → latest value, and the update at which it was measured.
    """

    def __init__(self, parts: Sequence[Monitor] = ()) -> None:
        self.parts = {part.name: part for part in parts}
        if len(self.parts) < len(parts):
            twice = [part.name for i, part in enumerate(parts) if part.name in {p.name for p in parts[:i]}]
            raise ValueError(f"the monitor {twice[0]} is given twice")
        # An experiment of their own may take long, and asks whether a stop was asked for.
        self.experimenting = [part for part in parts if part.group != "cheap" and not part.plays]
        self.followers = [part for part in parts if type(part).follow is not Monitor.follow]
        self.readings: dict[str, tuple[float, int]] = {}
        self.pages: list[_Page] = []
        self.board = Board(self.parts)
        self.known: Known | None = None
        self.awaited: dict[str, str] = {}  # key that a trigger waits for and nobody has delivered → who waits
        self.looks: Counter[str] = Counter()

    def bind(self, agent: Agent) -> Monitors:
        """Look at this agent from now on; its interventions' triggers are answered.

        Raises:
            ValueError: A monitor does not fit the agent, or a trigger waits for what no monitor measures.
        """
        self.known = Known.of(agent) if self.parts else None
        for part in self.parts.values():
            if part.plays and getattr(part.when, "of", "steps") != "steps":
                raise ValueError(f"{part.name} looks between two steps, so its period counts steps, not {part.when}")
            part.to(agent.device)
            part.seed(derive_seed(agent.seed, f"monitor {part.name}"), agent.device)
            part.bind(agent)
        self.board.bind(agent)
        for name, when in triggers(agent):
            check_metric(when.metric, name, agent, self.parts.values())
            when.readings = self
            self.awaited[when.metric] = name
        return self

    def latest(self, metric: str) -> tuple[float, int] | None:
        """The latest value of a key, and the update at which it was measured."""
        return self.readings.get(metric)

    # ------------------------------------------------------------------------------------------- called by the run

    def before_update(self, run: Any) -> None:
        """Before an update: write what the updates before it have found, and take a last look at the weights."""
        self.publish(run)
        due = [part for part in self.parts.values() if not part.plays and part.when(run.clock)]
        if due:
            context = self._context(run)
            for part in due:
                part.before_update(context)

    def after_update(self, run: Any, update: Update) -> None:
        """After an update, before anything is done to the agent: measure."""
        for part in self.followers:
            part.follow(run)
        context: MonitorContext | None = None
        for part in self.parts.values():
            if not part.plays and part.when(run.clock):
                context = self._context(run, update) if context is None else context
                found = list(part.measure(context))
                if found:
                    self.pages.append(_Page.sent(run.clock, part.name, found))

    @contextmanager
    def firing(self, run: Any, part: Intervention) -> Iterator[None]:
        """An intervention fires within the block: weigh the agent's values before and after, and count what it touched.

        Nothing is weighed if there is no monitor.
        """
        batch = None
        if self.parts and run.memory is not None:
            batch = self._context(run).batch(SAMPLES, "firing")
            with torch.no_grad():
                before = run.agent.values(batch)
        part.touched = {}
        yield
        found: list[tuple[str, Tensor]] = []
        for layer, units in part.touched.items():
            units = units if isinstance(units, Tensor) else torch.full((), units, device=run.agent.device)
            found.append((f"{part.name}/units/{layer}", units))
        if batch is not None:
            with torch.no_grad():
                found.append((f"{part.name}/value_change", (run.agent.values(batch) - before).abs().mean()))
        if not found:
            found.append((f"{part.name}/fired", torch.ones((), device=run.agent.device)))
        self.pages.append(_Page.sent(run.clock, part.name, found, fired=True))

    def between(self, run: Any, before: int) -> None:
        """Between two steps of the environments, of which `before` were done at the last call."""
        now: Clock = run.clock
        clock = Clock(now.steps, now.updates, before, now.updates, now.episodes, now.episodes)
        # All are asked before anything is written, so that who is interrupted leaves nothing behind.
        found = [list(part.between(run)) for part in self.parts.values() if part.plays and part.when(clock)]
        for each in found:
            self.board.write(run.log, self._taken(now, (), each))

    def heavy(self, clock: Clock, updates: int) -> bool:
        """May it take long to look at one of so many updates after `clock`?"""
        if self.experimenting:
            for _ in range(updates):
                clock = clock.updated()
                if any(part.when(clock) for part in self.experimenting):
                    return True
        return False

    def publish(self, run: Any) -> None:
        """Write to the run's log what has come in."""
        for arrived in self.arrive():
            self.board.write(run.log, arrived)

    def arrive(self) -> list[Arrived]:
        """What pages have brought to the host; they are read once."""
        pages, self.pages = self.pages, []
        arrived = []
        for page in pages:
            fired = (page.who,) if page.fired else ()
            arrived.append(self._taken(page.clock, fired, self._read(page)))
            if not page.fired and self.awaited:
                self._check_awaited(page.who)
        return arrived

    def _check_awaited(self, who: str) -> None:
        """Warn of triggers that wait for what a monitor, which has looked often enough, does not find in this agent."""
        self.looks[who] += 1
        for metric in [m for m in self.awaited if m in self.readings]:
            del self.awaited[metric]
        if self.looks[who] < ENOUGH or who not in self.parts:
            return
        for metric in [m for m in self.awaited if m.rpartition("/")[2] in self.parts[who].metrics]:
            name = metric.rpartition("/")[2]
            found = sorted(key for key in self.readings if key.rpartition("/")[2] == name)
            warnings.warn(
                f"{self.awaited.pop(metric)} waits for {metric}, which {who} has not found in {ENOUGH} looks and may "
                f"never find in this agent; {name} is measured of {', '.join(found) or 'nothing here'}",
                stacklevel=2,
            )

    def _read(self, page: _Page) -> Iterator[Finding]:
        for key, array in page.read():
            if array.ndim == 0:
                yield key, float(array)
            elif page.who in self.parts:
                yield from self.parts[page.who].finish(key, array, page.clock)

    def _taken(self, clock: Clock, fired: tuple[str, ...], found: Iterable[Finding]) -> Arrived:
        values: dict[str, float] = {}
        pictures: dict[str, Picture] = {}
        for key, value in found:
            if isinstance(value, Picture):
                pictures[key] = value
            else:
                values[key] = value
                self.readings[key] = (value, clock.updates)
        return Arrived(clock, values, pictures, fired)

    def _context(self, run: Any, update: Update | None = None) -> MonitorContext:
        assert self.known is not None, "monitors are bound to an agent before they look at it"
        return MonitorContext(run.agent, run.clock, run.memory, self.known, update)

    # ------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """What monitors remember, what they found and nobody has read yet, and the latest readings."""
        return {
            "monitors": {name: dict(part.state_dict()) for name, part in self.parts.items()},
            "readings": {key: list(reading) for key, reading in self.readings.items()},
            "pages": [page.state() for page in self.pages],
            "board": self.board.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Monitors may come and go between two sessions of a run: those that are
        new begin anew, and what those remember that are gone is dropped."""
        for name, part in self.parts.items():
            if name in state["monitors"]:
                part.load_state_dict(state["monitors"][name])
        self.readings = {key: (reading[0], reading[1]) for key, reading in state["readings"].items()}
        self.pages = [_Page.of(page) for page in state["pages"] if page["fired"] or page["who"] in self.parts]
        self.board.load_state_dict(state["board"])


def triggers(agent: Agent) -> list[tuple[str, When]]:
    """The triggers of an agent's interventions that wait for a measurement, with the interventions' names."""
    return [(part.name, part.when) for part in agent.interventions if isinstance(part.when, When)]


def check_metric(metric: str, who: str, agent: Agent, parts: Iterable[Monitor]) -> None:
    """Refuse a key that names no place of the agent, or no metric of the monitors (ValueError)."""
    place, _, name = metric.rpartition("/")
    known = {m for part in parts for m in part.metrics}
    if name not in known:
        raise ValueError(
            f"{who} waits for {metric}, and no monitor measures {name!r}.{did_you_mean(name, known)} "
            "`pliant monitors` lists what is measured"
        )
    found = survey(agent)
    encoder = ["encoder"] if any(name.startswith(ENCODER) for name in found.layers) else []
    places = [*found.taps, *found.layers, *encoder]
    if place not in places:
        raise ValueError(
            f"{who} waits for {metric}, and this {agent.name} has no {place!r}."
            f"{did_you_mean(place, places)} It has {', '.join(found.taps)}, and layers such as "
            f"{next(iter(found.layers), 'none')}"
        )


__all__ = [
    "SAMPLES",
    "Arrived",
    "Finding",
    "Monitor",
    "MonitorContext",
    "Monitors",
    "Picture",
    "beat",
    "check_metric",
    "chosen_layers",
    "triggers",
]

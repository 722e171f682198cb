"""Monitors: they observe an agent without changing it and without making the training loop wait.

A monitor measures on its schedule, from results of the update and from its own batches. It yields its measurements as
tensors on the device, by key: `<place>/<metric>`. A place is a component (`critic`), a layer
(`critic.encoder.blocks.0`) or a module.

    class Dead(Monitor):
        name, metrics = "dead", {"dead_fraction": "share of units that are zero on the whole batch"}

        def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
            for layer, h in context.outputs().items():
                h = per_unit(context.survey.layers[layer], h)  # [B, copies, units, positions]
                yield f"{layer}/dead_fraction", (h == 0).all(dim=(0, 1, 3)).float().mean()

All measurements of one update form a page: one tensor, with one copy to the host that does not block. The page is read
at the next update, when the copy is complete. Then `finish` computes on the host the results that are not single
numbers (a spectrum, a picture). Triggers (`When`) read the same pages.

A monitor never affects the agent: it edits no weight, its random numbers are a function of the run's seed and of the
clock, and it makes its experiments on a copy. A run with monitors and a run without them end with equal bits.
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
from ..agents.clock import Clock, Every, Trigger, Unit, Update, When
from ..agents.hooks import Intervention, sample_like_training
from ..agents.replay import Batch
from ..agents.views import view
from ..common.moved import moved
from ..common.seeds import derive_seed
from ..interventions.core.parts import ENCODER, Survey, chosen_layers, survey
from ..interventions.core.spec import did_you_mean
from .dashboard import Arrived, Board, Picture

SAMPLES = 256  # transitions for measuring activations and the effect of a firing
ENOUGH = 10  # measurements after which a metric that is still missing is assumed not to exist


Finding = tuple[str, "float | Picture"]


class Known(NamedTuple):
    """Facts about an agent that are known from the start."""

    survey: Survey
    copy: Agent  # for experiments
    copy_survey: Survey
    initial: dict[str, dict[str, Tensor]]  # initial weights, by layer and parameter name

    @classmethod
    def of(cls, agent: Agent) -> Known:
        """Survey an agent. Its initial weights follow from its seed, no matter how long it has been trained."""
        copy = agent.fresh_copy()
        copy_survey = survey(copy)
        initial = {
            name: {key: p.detach().clone() for key, p in layer.named_parameters()}
            for name, layer in copy_survey.layers.items()
        }
        return cls(survey(agent), copy, copy_survey, initial)


class MonitorContext:
    """The inputs of monitors at one update. Results that several monitors need are computed once.

    Attributes:
        agent: The agent; in `before_update`, with the weights before the update.
        clock: Counts the present update already.
        update: The result of the update; None before it.
        survey: The agent's layers by name.
        initial: The agent's initial weights, by layer and parameter name.
        copy_survey: The layers of the copy that the method `copy` returns, by the same names.
    """

    def __init__(self, agent: Agent, clock: Clock, memory: Any, known: Known, update: Update | None = None) -> None:
        self.agent, self.clock, self.memory, self.update = agent, clock, memory, update
        self.survey, self.initial = known.survey, known.initial
        self._copy, self.copy_survey = known.copy, known.copy_survey
        self._batches: dict[tuple[str, int], Batch] = {}

    def __getattr__(self, name: str) -> Any:
        former = {"born": "initial", "twin": "copy", "twin_survey": "copy_survey"}  # former names
        if name in former:
            raise AttributeError(f"MonitorContext.{name} is called {former[name]} now")
        raise AttributeError(f"MonitorContext has no attribute {name!r}")

    def copy(self) -> Agent:
        """A copy of the agent in its present state, for experiments; valid until the next call."""
        self._copy.copy_from_(self.agent)
        return self._copy

    def seed(self, purpose: str) -> int:
        """A separate seed for each purpose and each update."""
        return derive_seed(self.agent.seed, f"{purpose} at {self.clock.updates}")

    def generator(self, purpose: str) -> Generator:
        """A separate random stream on the device for each purpose and each update."""
        return Generator(self.agent.device).manual_seed(self.seed(purpose))

    def batch(self, samples: int = SAMPLES, purpose: str = "monitors") -> Batch:
        """Transitions from the replay, as the agent learns from them; sampling them changes no state. Calls with equal
        arguments at the same update return the same batch."""
        if (purpose, samples) not in self._batches:
            self._batches[purpose, samples] = sample_like_training(self, samples, self.generator(purpose))
        return self._batches[purpose, samples]

    def outputs(self, samples: int = SAMPLES) -> dict[str, Tensor]:
        """The outputs of every hidden layer [B, units * copies, *positions], by layer name: those of the update itself
        if its batch has at least `samples` transitions, else those of a batch from the replay, without dropout."""
        own = self.update.activations if self.update is not None else {}
        complete = all(own.get(name) for name, layers in self.survey.traced.items() if layers)
        if complete and not self.agent.dropouts:
            size = min((len(h) for trace in own.values() for h in trace if h is not None), default=0)
            if size >= samples or self.memory is None:
                return self.survey.outputs(own)
        return self._outputs(samples)

    def _outputs(self, samples: int) -> dict[str, Tensor]:
        kept = self.__dict__.setdefault("_kept", {})
        if samples not in kept:
            kept[samples] = self.survey.outputs(view(self.agent).activations(self.batch(samples)))
        return kept[samples]

    @cached_property
    def gradients(self) -> dict[str, dict[str, Tensor]]:
        """The latest gradients before clipping, by layer and parameter name."""
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

        by_layer = {
            name: {key: whole(p) for key, p in layer.named_parameters() if p.grad is not None}
            for name, layer in self.survey.layers.items()
        }
        return {name: grads for name, grads in by_layer.items() if grads}


class Monitor(Intervention):
    """Base class: observes an agent while it learns. Subclasses define a name, metrics, and `measure`.

    Attributes:
        group: cheap monitors use results of the update; deep monitors run separate experiments; alone: in no group,
            runs only if requested by name.
        metrics: Last part of the key → meaning in one line.
        when: The trigger of the measurements.
    """

    group: ClassVar[Literal["cheap", "deep", "alone"]] = "cheap"
    metrics: ClassVar[Mapping[str, str]] = {}
    every: ClassVar[int] = 250  # default period, in gradient updates

    def __init__(self, when: Trigger | None = None) -> None:
        super().__init__()
        self.when = Every(self.every) if when is None else when

    def before_update(self, context: MonitorContext) -> None:
        """Before an update at which the monitor measures: store the values to compare with."""

    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        """The measurements by key: 0-d tensors are logged, others go through `finish` first. The host never waits.

        A deep monitor with a long computation calls `heed` in its loop, so that the run can be stopped.
        """
        return iter(())

    def follow(self, run: Any) -> None:
        """After every update, on no schedule: for learners that train along with the agent, from `run.batch`."""

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        """On the host: convert an array to numbers by key, and pictures by tag."""
        return iter(())

    def between(self, run: Any) -> Iterator[Finding]:
        """Between two environment steps, where the host may wait: for measurements in separate environments. A monitor
        that overrides this method is called only here, on its schedule, which must count steps."""
        return iter(())

    @property
    def plays(self) -> bool:
        """Return whether the monitor measures between two environment steps rather than at updates."""
        return type(self).between is not Monitor.between


def trigger(every: int, of: Unit = "updates", start: int = 0) -> Every:
    """The trigger that a monitor's spec describes."""
    return Every(every, of, start)


@dataclass
class _Page:
    """The measurements of one update, on their way to the host."""

    clock: Clock
    source: str  # the monitor; or, if `fired`, the intervention
    keys: list[str]
    shapes: list[tuple[int, ...]]
    array: NDArray[Any]  # float64, flat
    fired: bool = False
    event: Any = field(default=None, repr=False)

    @classmethod
    def sent(cls, clock: Clock, source: str, measured: Sequence[tuple[str, Tensor]], fired: bool = False) -> _Page:
        """Gather the measurements on the device, and start the copy to the host."""
        device = measured[0][1].device
        kind = torch.float32 if device.type == "mps" else torch.float64
        flat = torch.cat([value.detach().reshape(-1).to(kind) for _, value in measured])
        if device.type == "cuda":
            buffer = torch.empty(flat.shape, dtype=kind, pin_memory=True)
            array = np.from_dlpack(buffer)
        else:
            array = np.empty(flat.shape, np.float32 if kind is torch.float32 else np.float64)
            buffer = torch.from_numpy(array)
        buffer.copy_(flat, non_blocking=True)
        event = torch.cuda.Event() if device.type == "cuda" else None
        if event is not None:
            event.record(
                torch.cuda.current_stream(device)
            )  # the stream of the tensors' device, which may differ from the current device
        keys, shapes = [key for key, _ in measured], [tuple(value.shape) for _, value in measured]
        return cls(clock, source, keys, shapes, array, fired, event)

    def read(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Keys and arrays; waits if the copy is not complete one update later."""
        if self.event is not None:
            self.event.synchronize()
        start = 0
        for key, shape in zip(self.keys, self.shapes, strict=True):
            size = math.prod(shape)
            yield key, self.array[start : start + size].reshape(shape)
            start += size

    def state(self) -> dict[str, Any]:
        arrays = [array.copy() for _, array in self.read()]
        return {
            "clock": asdict(self.clock),
            "who": self.source,
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
    """All monitors of a run, as `watch` returns them.

    Attributes:
        parts: The monitors.
        readings: Key → latest value, and the update at which it was measured.
    """

    def __init__(self, parts: Sequence[Monitor] = ()) -> None:
        self.parts = {part.name: part for part in parts}
        if len(self.parts) < len(parts):
            twice = [part.name for i, part in enumerate(parts) if part.name in {p.name for p in parts[:i]}]
            raise ValueError(f"the monitor {twice[0]} is given twice")
        # Their experiments may take long; they check whether the run should stop.
        self.experimenting = [part for part in parts if part.group != "cheap" and not part.plays]
        self.followers = [part for part in parts if type(part).follow is not Monitor.follow]
        self.readings: dict[str, tuple[float, int]] = {}
        self.pages: list[_Page] = []
        self.board = Board(self.parts)
        self.known: Known | None = None
        self.awaited: dict[str, str] = {}  # key that a trigger waits for and that was never measured → intervention
        self.measured: Counter[str] = Counter()  # measurements of each monitor, while a trigger waits

    def bind(self, agent: Agent) -> Monitors:
        """Observe this agent from now on, and supply the triggers of its interventions with measurements.

        Raises:
            ValueError: A monitor does not fit the agent, the agent has no view, or a trigger waits for a metric that no
                monitor measures.
        """
        if self.parts:
            view(agent, f"monitor {next(iter(self.parts))}")
        self.known = Known.of(agent) if self.parts else None
        for part in self.parts.values():
            if part.plays and getattr(part.when, "of", "steps") != "steps":
                raise ValueError(f"{part.name} measures between two steps, so its period must count steps: {part.when}")
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
        """Before an update: log the measurements of earlier updates, and store values before the update."""
        self.publish(run)
        due = [part for part in self.parts.values() if not part.plays and part.when(run.clock)]
        if due:
            context = self._context(run)
            for part in due:
                part.before_update(context)

    def after_update(self, run: Any, update: Update) -> None:
        """After an update, before interventions change the agent: measure."""
        for part in self.followers:
            part.follow(run)
        context: MonitorContext | None = None
        for part in self.parts.values():
            if not part.plays and part.when(run.clock):
                context = self._context(run, update) if context is None else context
                measured = list(part.measure(context))
                if measured:
                    self.pages.append(_Page.sent(run.clock, part.name, measured))

    @contextmanager
    def firing(self, run: Any, part: Intervention) -> Iterator[None]:
        """An intervention fires within the block: compare the agent's values before and after, and count the units
        changed.

        Values are not compared if there are no monitors.
        """
        batch = None
        if self.parts and run.memory is not None:
            batch = self._context(run).batch(SAMPLES, "firing")
            with torch.no_grad():
                before = view(run.agent).values(batch)
        part.touched = {}
        yield
        measured: list[tuple[str, Tensor]] = []
        for layer, units in part.touched.items():
            units = units if isinstance(units, Tensor) else torch.full((), units, device=run.agent.device)
            measured.append((f"{part.name}/units/{layer}", units))
        if batch is not None:
            with torch.no_grad():
                measured.append((f"{part.name}/value_change", (view(run.agent).values(batch) - before).abs().mean()))
        if not measured:
            measured.append((f"{part.name}/fired", torch.ones((), device=run.agent.device)))
        self.pages.append(_Page.sent(run.clock, part.name, measured, fired=True))

    def between(self, run: Any, before: int) -> None:
        """Between two environment steps; `before` is the number of steps at the previous call."""
        now: Clock = run.clock
        clock = Clock(now.steps, now.updates, before, now.updates, now.episodes, now.episodes)
        # All monitors measure before anything is logged, so that an interruption leaves no partial results.
        measured = [list(part.between(run)) for part in self.parts.values() if part.plays and part.when(clock)]
        for each in measured:
            self.board.write(run.log, self._taken(now, (), each))

    def heavy(self, clock: Clock, updates: int) -> bool:
        """Return whether a deep monitor measures at one of this many updates after `clock`."""
        if self.experimenting:
            for _ in range(updates):
                clock = clock.updated()
                if any(part.when(clock) for part in self.experimenting):
                    return True
        return False

    def publish(self, run: Any) -> None:
        """Write the measurements that have arrived to the run's log."""
        for arrived in self.arrive():
            self.board.write(run.log, arrived)

    def arrive(self) -> list[Arrived]:
        """The measurements of the pages sent so far; each page is read once."""
        pages, self.pages = self.pages, []
        arrived = []
        for page in pages:
            fired = (page.source,) if page.fired else ()
            arrived.append(self._taken(page.clock, fired, self._read(page)))
            if not page.fired and self.awaited:
                self._check_awaited(page.source)
        return arrived

    def _check_awaited(self, monitor: str) -> None:
        """Warn about triggers that wait for a metric which its monitor repeatedly failed to measure in this agent."""
        self.measured[monitor] += 1
        for metric in [m for m in self.awaited if m in self.readings]:
            del self.awaited[metric]
        if self.measured[monitor] < ENOUGH or monitor not in self.parts:
            return
        for metric in [m for m in self.awaited if m.rpartition("/")[2] in self.parts[monitor].metrics]:
            name = metric.rpartition("/")[2]
            measured = sorted(key for key in self.readings if key.rpartition("/")[2] == name)
            warnings.warn(
                f"{self.awaited.pop(metric)} waits for {metric}, but {ENOUGH} measurements of {monitor} did not "
                f"contain it; this agent may not have it. Measured so far: {', '.join(measured) or 'no ' + name}",
                stacklevel=2,
            )

    def _read(self, page: _Page) -> Iterator[Finding]:
        for key, array in page.read():
            if array.ndim == 0:
                yield key, float(array)
            elif page.source in self.parts:
                yield from self.parts[page.source].finish(key, array, page.clock)

    def _taken(self, clock: Clock, fired: tuple[str, ...], measured: Iterable[Finding]) -> Arrived:
        values: dict[str, float] = {}
        pictures: dict[str, Picture] = {}
        for key, value in measured:
            if isinstance(value, Picture):
                pictures[key] = value
            else:
                values[key] = value
                self.readings[key] = (value, clock.updates)
        return Arrived(clock, values, pictures, fired)

    def _context(self, run: Any, update: Update | None = None) -> MonitorContext:
        assert self.known is not None, "monitors are bound to an agent before they measure it"
        return MonitorContext(run.agent, run.clock, run.memory, self.known, update)

    # ------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The state of the monitors, the pages not yet read, and the latest readings."""
        return {
            "monitors": {name: dict(part.state_dict()) for name, part in self.parts.items()},
            "readings": {key: list(reading) for key, reading in self.readings.items()},
            "pages": [page.state() for page in self.pages],
            "board": self.board.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of `state_dict`. The set of monitors may change between sessions of a run: new
        monitors start from scratch, and the state of removed ones is dropped."""
        for name, part in self.parts.items():
            if name in state["monitors"]:
                part.load_state_dict(state["monitors"][name])
        self.readings = {key: (reading[0], reading[1]) for key, reading in state["readings"].items()}
        self.pages = [_Page.of(page) for page in state["pages"] if page["fired"] or page["who"] in self.parts]
        self.board.load_state_dict(state["board"])


def triggers(agent: Agent) -> list[tuple[str, When]]:
    """The triggers of an agent's interventions that wait for a measurement, with the interventions' names."""
    return [(part.name, part.when) for part in agent.interventions if isinstance(part.when, When)]


def check_metric(metric: str, intervention: str, agent: Agent, parts: Iterable[Monitor]) -> None:
    """Refuse a key with an unknown place of the agent, or an unknown metric of the monitors (ValueError)."""
    place, _, name = metric.rpartition("/")
    known = {m for part in parts for m in part.metrics}
    if name not in known:
        raise ValueError(
            f"{intervention} waits for {metric}, and no monitor measures {name!r}.{did_you_mean(name, known)} "
            "`pliant monitors` lists all metrics"
        )
    surveyed = survey(agent)
    encoder = ["encoder"] if any(name.startswith(ENCODER) for name in surveyed.layers) else []
    places = [*surveyed.traced, *surveyed.layers, *encoder]
    if place not in places:
        raise ValueError(
            f"{intervention} waits for {metric}, and this {agent.name} has no {place!r}."
            f"{did_you_mean(place, places)} It has {', '.join(surveyed.traced)}, and layers such as "
            f"{next(iter(surveyed.layers), 'none')}"
        )


__all__ = [
    "SAMPLES",
    "Arrived",
    "Finding",
    "Monitor",
    "MonitorContext",
    "Monitors",
    "Picture",
    "check_metric",
    "chosen_layers",
    "trigger",
    "triggers",
]

__getattr__ = moved(__name__, {"beat": f"{__name__}.trigger"})  # a former name

"""Pictures of units over time: units that become dead, and units that recover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Clock, Unit
from ..common.ranges import Period, Samples
from ..interventions.core.parts import survey
from ..interventions.core.recycling import magnitude
from ..interventions.redo import dormancy_score
from .base import SAMPLES, Finding, Monitor, MonitorContext, trigger
from .dashboard import short
from .pictures import stack

ROWS, COLUMNS = 64, 128  # maximum size of a layer's panel
BRIGHTEST = 3.0  # score of the brightest colour; higher scores have the same colour
LEVELS = 255  # number of distinct colours; level zero is reserved for scores of exactly zero
MORE = 4  # the interval between pictures is at least the run so far divided by this number


class Activity(Monitor):
    """Draw how active every unit is over the whole run, one picture per component.

    A row is a unit; a column is an interval of time. The colour of a unit is its score: its mean absolute output
    divided by the mean of its layer. Black is a dead unit, dark a dormant one, violet the average, and yellow three
    times the average or more. The picture always covers the whole run: when all columns are in use, neighbouring
    columns are merged. Thin vertical lines mark firings of interventions.

    Healthy: Rows fluctuate around the same colour, and hardly any row turns black.
    When: Rows turn black and stay black: units are dead, and their layer loses width. Rows that are black before a
        firing and bright after it were recycled; if they are soon black again, the cause persists. A few bright rows in
        a dark layer mean that only few units are in use.
    Paper: The score is that of Sokar, Agarwal, Castro & Evci 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement
        Learning", 2302.12902, equation 1. The picture is pliant's own.
    Differs: No known difference. A picture shows at most 64 units of a layer, evenly spaced and always the same ones;
        the mean is over all units. Of an ensemble, only the first member is shown.

    Args:
        every: Period.
        of: Clock of the period.
        samples: Number of transitions used.
        draw: Minimum number of measurements between two pictures; the intervals grow with the run.
    """

    name = "activity"
    example: ClassVar[str] = "activity(every=2, samples=16, draw=2)"
    metrics: ClassVar[Mapping[str, str]] = {}  # pictures only

    def __init__(
        self, every: Period = 250, of: Unit = "updates", samples: Samples = SAMPLES, draw: Period = 20
    ) -> None:
        super().__init__(trigger(every, of))
        self.samples, self.draw = samples, draw
        self.films: dict[str, Film] = {}

    def bind(self, agent: Agent) -> None:
        surveyed = survey(agent)
        self.films = {}
        for component, names in surveyed.traced.items():
            shown = {name: evenly(surveyed.layers[name].units) for name in names if first_member(name)}
            if shown:
                self.films[component] = Film({name: len(units) for name, units in shown.items()}, self.draw)
                for name, units in shown.items():
                    self.register_buffer(buffer(name), torch.tensor(units, device=agent.device), persistent=False)

    @torch.no_grad()
    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        outputs = context.outputs(self.samples)
        for component, film in self.films.items():
            scores = [
                dormancy_score(magnitude(context.survey.layers[name], outputs[name])).index_select(
                    0, self.get_buffer(buffer(name))
                )
                for name in film.rows
            ]
            yield f"{component}/activity", torch.cat(scores)

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        component = key.partition("/")[0]
        film = self.films[component]
        film.add(array, clock.steps)
        if film.due():
            yield (
                f"activity/{component}",
                stack(
                    {short(name): panel for name, panel in film.panels().items()},
                    title=f"activity of units, {component}: mean |output| / mean of the layer",
                    x_label="environment steps",
                    low=0.0,
                    high=BRIGHTEST,
                    marks=film.marks(),
                    x_ticks=film.ticks(),
                ),
            )

    def note_firing(self, clock: Clock) -> None:
        """An intervention fired: mark the time in the pictures by a line."""
        for film in self.films.values():
            film.note(clock.steps)

    def host_state(self) -> dict[str, Any]:
        return {component: film.state() for component, film in self.films.items()}

    def load_host_state(self, state: dict[str, Any]) -> None:
        for component, film in self.films.items():
            if component in state:
                film.load_state(state[component])


class Film:
    """The scores of some units over a whole run, in a bounded number of columns with equally many measurements each.

    Attributes:
        rows: Layer → number of its units that are recorded.
        columns: Levels of all rows, [columns][rows], 0 … 255.
        ends: Environment steps at the end of every column.
        first: Environment steps of the first measurement.
        stride: Measurements per column.
        sums: For the incomplete column: the sum of its levels, and the number of measurements in it.
        count: Measurements so far.
        next: Number of measurements at which the next picture is due.
        fired: Environment steps of firings, at most one per column.
    """

    def __init__(self, rows: Mapping[str, int], draw: int, most: int = COLUMNS) -> None:
        if most < 2 or most % 2:
            raise ValueError(f"columns are merged in pairs, so their number must be even, not {most}")
        self.rows, self.draw, self.most = dict(rows), draw, most
        self.columns: list[list[int]] = []
        self.ends: list[int] = []
        self.first = 0
        self.stride = 1
        self.sums: tuple[list[int], int] = ([0] * sum(self.rows.values()), 0)
        self.count, self.next = 0, draw
        self.fired: list[int] = []

    def add(self, scores: NDArray[Any], steps: int) -> None:
        """Add one measurement of all rows [rows], taken at this number of environment steps."""
        if not self.count:
            self.first = steps
        self.count += 1
        sums, many = self.sums
        sums, many = [a + b for a, b in zip(sums, levels(scores), strict=True)], many + 1
        if many == self.stride:
            self.columns.append([mean_level(a, many) for a in sums])
            self.ends.append(steps)
            sums, many = [0] * len(sums), 0
        self.sums = (sums, many)
        if len(self.columns) == self.most:
            pairs = zip(self.columns[::2], self.columns[1::2], strict=True)
            self.columns = [[mean_level(a + b, 2) for a, b in zip(one, two, strict=True)] for one, two in pairs]
            self.ends = self.ends[1::2]
            self.stride *= 2
            fired, self.fired = self.fired, []
            for moment in fired:
                self.note(moment)

    def due(self) -> bool:
        """Return whether a picture is due. Call this once after every measurement."""
        if self.count < self.next or not self.columns:
            return False
        self.next = self.count + max(self.draw, self.count // MORE)
        return True

    def note(self, steps: int) -> None:
        """Record a firing, unless the same column has one already."""
        if not self.fired or self._place(steps) - self._place(self.fired[-1]) >= 1:
            self.fired.append(steps)

    def _place(self, steps: int) -> float:
        """The position of a time on the axis, in columns from the left edge; extrapolated beyond the last column."""
        edges = self._edges()
        if steps <= edges[-1]:
            return float(np.interp(steps, edges, np.arange(len(edges))))
        wide = (edges[-1] - edges[0]) / (len(edges) - 1) if len(edges) > 1 else 1.0
        return len(edges) - 1 + (steps - edges[-1]) / max(wide, 1.0)

    def _edges(self) -> list[float]:
        """Environment steps at the edges of columns. A measurement covers the time since the previous one; the first
        measurement, which has no predecessor, covers an interval of the same length."""
        if not self.ends:
            return [float(self.first)]
        if self.stride > 1:
            gap = (self.ends[0] - self.first) / (self.stride - 1)
        else:
            gap = self.ends[1] - self.ends[0] if len(self.ends) > 1 else 1
        return [max(self.first - gap, 0.0), *map(float, self.ends)]

    def panels(self) -> dict[str, NDArray[np.float64]]:
        """Scores by layer [rows, columns], without the incomplete column."""
        scores = np.array(self.columns, np.float64).T * (BRIGHTEST / LEVELS)
        panels, begin = {}, 0
        for name, rows in self.rows.items():
            panels[name] = scores[begin : begin + rows]
            begin += rows
        return panels

    def marks(self) -> list[float]:
        return [place for steps in self.fired if (place := self._place(steps)) <= len(self.columns)]

    def ticks(self) -> dict[float, str]:
        """Five positions on the axis, and the environment steps there."""
        places = np.linspace(0, len(self.ends), 5)
        steps = np.interp(places, np.arange(len(self.ends) + 1), self._edges())
        return {float(place): counted(int(step)) for place, step in zip(places, steps, strict=True)}

    def state(self) -> dict[str, Any]:
        return {
            "columns": [list(column) for column in self.columns],
            "ends": list(self.ends),
            "first": self.first,
            "stride": self.stride,
            "sums": list(self.sums[0]),
            "many": self.sums[1],
            "count": self.count,
            "next": self.next,
            "fired": list(self.fired),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.columns, self.ends = [list(column) for column in state["columns"]], list(state["ends"])
        self.first, self.stride, self.fired = state["first"], state["stride"], list(state["fired"])
        self.sums = (list(state["sums"]), state["many"])
        self.count, self.next = state["count"], state["next"]


def levels(scores: NDArray[Any]) -> list[int]:
    """Scores as colour levels; only scores of exactly zero (or NaN) have level zero."""
    rounded = np.ceil(np.clip(np.nan_to_num(scores), 0, BRIGHTEST) * (LEVELS / BRIGHTEST))
    return rounded.astype(int).tolist()


def mean_level(total: int, count: int) -> int:
    """The mean, rounded up, so that a unit that was active for part of the time does not appear dead."""
    return -(-total // count)


def evenly(units: int) -> list[int]:
    """At most 64 of a layer's units, evenly spaced."""
    return [i * units // min(units, ROWS) for i in range(min(units, ROWS))]


def first_member(layer: str) -> bool:
    """Return whether a layer belongs to no ensemble, or to the first member of one."""
    return ".members." not in layer or ".members.0." in layer


def buffer(layer: str) -> str:
    return f"rows {layer}".replace(".", " ")


def counted(number: int) -> str:
    """A number of steps in short form: 950, 12k, 1.5M."""
    if number < 10_000:
        return str(number)
    return f"{number / 1000:.3g}k" if number < 1_000_000 else f"{number / 1e6:.3g}M"

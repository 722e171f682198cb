"""How TensorBoard shows the monitors: tags, charts and pictures.

`metrics.jsonl` receives every measurement, as `plasticity/<metric>/<place>`. TensorBoard receives tens of tags rather
than thousands: names of places are shortened, the members of an ensemble are averaged, and layers have separate lines
only in charts where the difference matters (`CHARTS`). Numbers that are not finite are not shown.

Every chart marks the firings of interventions, by a series that is otherwise zero: a spike at the firing, as high
as the chart's largest latest value, followed by zeros, so that TensorBoard's smoothing returns to zero quickly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal, NamedTuple

from ..agents.agent import Agent
from ..agents.clock import Clock, Never
from ..agents.hooks import Intervention
from ..agents.log import LAYOUT, Band, Charts, Log

Detail = Literal["layers", "parts", "components"]
MOST_LAYERS = 12  # layers of a component with separate lines; if there are more, their mean is shown
ZEROS = 6  # zeros after a spike: with smoothing 0.6, 0.6 ** 6 = 5 % of it remain
ENDS = ("", "_low", "_high")  # suffixes of the three metrics of a band
APART = 200  # firings closer than the 200th part of the run so far, two pixels, share a spike


@dataclass(frozen=True)
class Picture:
    """An image for the dashboard: a PNG and its size in pixels."""

    png: bytes
    width: int
    height: int


class Arrived(NamedTuple):
    """The measurements of one moment, on the host."""

    clock: Clock
    values: dict[str, float]  # by key, `<place>/<metric>`
    pictures: dict[str, Picture]  # by tag
    fired: tuple[str, ...]  # names of the interventions whose firing these values describe


class Chart(NamedTuple):
    """A chart of the page "Plasticity"."""

    title: str
    metrics: tuple[str, ...]  # names with wildcards
    # Places with separate lines: layers and components; components and the encoder; components only.
    detail: Detail = "components"

    @property
    def slug(self) -> str:
        """The name of its markers: its first metric."""
        return self.metrics[0].strip("_*")


CHARTS = (
    Chart("dormant units", ("dormant_fraction",), "layers"),
    Chart("dead units", ("dead_fraction",), "layers"),
    Chart("active units", ("active_fraction",), "layers"),
    Chart("linearised units", ("linearised_fraction",), "layers"),
    Chart("nonlinearity of units", ("nonlinearity",)),
    Chart("dormant units: lower threshold, and overlap", ("dormant_overlap", "dormant_fraction_*")),
    Chart("effective rank of features", ("effective_rank", "effective_rank_centred"), "parts"),
    Chart("stable rank of features", ("stable_rank",), "parts"),
    Chart("srank of features", ("srank_*",), "parts"),
    Chart("other ranks of features", ("pca_rank_*", "feature_rank_*", "numerical_rank")),
    Chart("norm of features", ("feature_norm",), "parts"),
    Chart("norm of weights", ("weight_norm",), "layers"),
    Chart("distance from init", ("distance_from_init",), "layers"),
    Chart("relative distance from init", ("relative_distance_from_init",)),
    Chart("norm of gradients", ("gradient_norm",), "layers"),
    Chart("update to weight", ("update_to_weight",), "layers"),
    Chart("gradients equal to zero", ("gradient_zero_fraction",)),
    Chart("L1 norm of gradients", ("gradient_norm_l1",)),
    Chart("spectral norm of gradients", ("gradient_spectral_norm",)),
    Chart("ranks of gradients", ("gradient_stable_rank", "gradient_effective_rank")),
    Chart("values", ("q_mean", "q_std", "q_abs_max", "ensemble_disagreement")),
    Chart("target gap and TD error", ("target_gap", "td_error")),
    Chart("loss", ("loss",)),
    Chart("entropy and temperature", ("entropy", "temperature")),
    Chart("churn of values", ("value_churn", "relative_value_churn")),
    Chart("churn of the policy", ("policy_churn",)),
    Chart("extreme eigenvalues of the Hessian", ("top_eigenvalue", "bottom_eigenvalue")),
    Chart("trace of the Hessian", ("hessian_trace",)),
    Chart("stable rank of the Hessian", ("hessian_stable_rank",)),
    Chart("sharpness", ("sharpness",)),
    Chart("landscape of the loss", ("landscape_*",)),
    Chart("tangent kernel: largest eigenvalue", ("ntk_top_eigenvalue",)),
    Chart("tangent kernel: condition", ("ntk_condition",)),
    Chart("tangent kernel: ranks", ("ntk_*_rank",)),
    Chart("cosines of gradients", ("gradient_cosine", "gradient_cosine_abs", "gradient_zero_fraction_samples")),
    Chart("rank of gradients' cosines", ("gradient_covariance_rank",)),
    Chart("interference", ("interference_*",)),
    Chart("overestimation", ("overestimation", "overestimation_normalised")),
    Chart("returns that followed", ("mc_return",)),
    Chart("values and returns: rank correlation", ("value_rank_correlation",)),
    Chart("plasticity ratio: rescaled, and with the present optimizer", ("plasticity_ratio_*",), "parts"),
    Chart("probes: loss relative to fresh modules", ("probe_loss_ratio_*",), "parts"),
    Chart("probes: fit", ("probe_fit_*",), "parts"),
    Chart("criticality: initial weights", ("reset_criticality",), "layers"),
    Chart("criticality: reinitialised", ("rerandomised_criticality",), "layers"),
    Chart("criticality: unchanged actions, or divergence of policies", ("*_action_agreement", "*_policy_churn")),
)


class Board:
    """Writes measurements to a run's log.

    Attributes:
        heights: Chart → tag → the latest value shown.
        marked: Intervention → frame of its latest spike.
        trails: Marker tag → frames at which a zero must still be written, in order.
        ends: Marker tag → the last frame written.
    """

    def __init__(self, monitors: Mapping[str, Any]) -> None:
        self.monitors = monitors
        self.agent: Agent | None = None
        self.heights: dict[str, dict[str, float]] = {}
        self.marked: dict[str, int] = {}
        self.trails: dict[str, list[int]] = {}
        self.ends: dict[str, int] = {}

    def bind(self, agent: Agent) -> None:
        """Arrange the charts for this agent."""
        self.agent = agent

    # ------------------------------------------------------------------------------------------------------ writing

    def write(self, log: Log, arrived: Arrived) -> None:
        """Write all values to `metrics.jsonl`, and a selection of them to TensorBoard."""
        if arrived.fired:
            self._write_firing(log, arrived)
            return
        values = {tag(key): value for key, value in arrived.values.items()}
        shown = folded(arrived.values)
        for name, value in shown.items():
            self.heights.setdefault(chart_of(name.split("/")[1]).slug, {})[name] = value
        log.scalars(values, arrived.clock, shown)
        for name, picture in arrived.pictures.items():
            log.image(name, picture.png, (picture.width, picture.height), arrived.clock)
        self._rest(log, log.frame(arrived.clock))

    def _write_firing(self, log: Log, arrived: Arrived) -> None:
        values: dict[str, float] = {}
        shown: dict[str, float] = {}
        for name in arrived.fired:
            own = {key: value for key, value in arrived.values.items() if key.startswith(f"{name}/")}
            units = [value for key, value in own.items() if key.startswith(f"{name}/units/")]
            values |= {f"firings/{key}": value for key, value in own.items()}
            totals = {f"firings/{name}/units": math.fsum(units)} if units else {}
            values |= totals
            change = own.get(f"{name}/value_change", math.nan)
            shown |= totals | ({f"firings/{name}/value_change": change} if math.isfinite(change) else {})
        log.scalars(values, arrived.clock, shown)
        frame = log.frame(arrived.clock)
        self._rest(log, frame - 1)
        for name in arrived.fired:
            self._mark(log, name, frame)
        for part in self.monitors.values():
            if (note := getattr(part, "note_firing", None)) is not None:
                note(arrived.clock)

    def _mark(self, log: Log, name: str, frame: int) -> None:
        """Write a spike to every chart that shows values, unless it is too close to the previous spike."""
        if name in self.marked and frame - self.marked[name] <= frame // APART:
            return
        self.marked[name] = frame
        spikes = {f"markers/{chart}/{name}": height(tags.values()) for chart, tags in self.heights.items()}
        before = {marker: 0.0 for marker in spikes if self.ends.get(marker, -1) < frame - 1}
        self._points(log, before, frame - 1)
        # An earlier firing's zeros may extend beyond this one, if measurements between steps arrived before it.
        late = {marker: self.ends[marker] + 1 for marker in spikes if self.ends.get(marker, -1) >= frame}
        for at in sorted({frame, *late.values()}):
            self._points(log, {m: value for m, value in spikes.items() if late.get(m, frame) == at}, at)
        for marker in spikes:
            self.trails[marker] = [self.ends[marker] + i for i in range(1, ZEROS + 1)]

    def _rest(self, log: Log, until: int) -> None:
        """Write the zeros that are due."""
        for frame in sorted({f for frames in self.trails.values() for f in frames if f <= until}):
            self._points(log, {marker: 0.0 for marker, frames in self.trails.items() if frame in frames}, frame)
        self.trails = {m: left for m, frames in self.trails.items() if (left := [f for f in frames if f > until])}

    def _points(self, log: Log, values: Mapping[str, float], frame: int) -> None:
        if values:
            log.points(values, frame)
            self.ends |= dict.fromkeys(values, frame)

    # ------------------------------------------------------------------------------------------------------- layout

    def charts(self) -> dict[str, Charts]:
        """Pages of TensorBoard's custom scalars: page → chart → regular expressions of its tags, or bands."""
        overview = dict(LAYOUT["Overview"])
        agent = self.agent
        if agent is not None and "interventions/replay_ratio" in agent.interventions.measurements():
            overview["replay ratio"] = ("^interventions/replay_ratio$",)
        if not self.monitors:
            return {"Overview": overview}
        page: Charts = {}
        if agent is not None and any(map(may_fire, agent.interventions)):
            page["firings: units"] = ("^firings/[^/]+/units$",)
            page["firings: mean change of values"] = ("^firings/[^/]+/value_change$",)
        measured = [name for part in self.monitors.values() for name in part.metrics]
        if agent is not None and "temperature" not in agent.components:
            measured = [name for name in measured if name not in ("entropy", "temperature")]
        for chart, metrics in charted(measured).items():
            bands = [name for name in metrics if {f"{name}_low", f"{name}_high"} <= set(metrics)]
            places = self._places()
            if bands and places:
                for name in bands:
                    page[spelled(name)] = tuple(
                        Band(*(f"plasticity/{name}{end}/{place}" for end in ENDS)) for place in places
                    )
                metrics = [name for name in metrics if name.removesuffix("_low").removesuffix("_high") not in bands]
            if metrics:
                lines = (f"^plasticity/{re.escape(name)}/.*$" for name in metrics)
                page[chart.title] = (*lines, f"^markers/{re.escape(chart.slug)}/.*$")
        return {"Overview": overview, "Plasticity": page}

    def _places(self) -> list[str]:
        """The parts of the agent that probes distinguish."""
        if self.agent is None:
            return []
        networks = [name for name, c in self.agent.components.items() if any(p.ndim > 1 for p in c.online.parameters())]
        return [*networks, *(["encoder"] if self.agent.observation.pixels else [])]

    # -------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The state, in plain values."""
        return {
            "heights": {chart: dict(tags) for chart, tags in self.heights.items()},
            "marked": dict(self.marked),
            "trails": {marker: list(frames) for marker, frames in self.trails.items()},
            "ends": dict(self.ends),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.heights = {chart: dict(tags) for chart, tags in state.get("heights", {}).items()}
        self.marked = dict(state.get("marked", {}))
        self.trails = {marker: list(frames) for marker, frames in state.get("trails", {}).items()}
        self.ends = dict(state.get("ends", {}))


def tag(key: str) -> str:
    """`critic/dormant_fraction` → `plasticity/dormant_fraction/critic`: groups the charts of one metric."""
    place, _, metric = key.rpartition("/")
    return f"plasticity/{metric}/{place}"


def short(place: str) -> str:
    """The displayed name of a place: `critic.members.1.body.layers.0` → `critic.body.0`, and `critic.1` → `critic`.

    The name omits the numbers of ensemble members, and of convolutions within a residual stage.
    """
    place = re.sub(r"^(\w+)[. ]\d+$", r"\1", place)
    place = re.sub(r"\.members\.\d+", "", place)
    place = re.sub(r"\.(blocks|layers|layer)(?=\.|$)", "", place)
    return re.sub(r"^([^.]+\.encoder\.\d+)\..*", r"\1", place)


def folded(values: Mapping[str, float]) -> dict[str, float]:
    """The values that TensorBoard shows, from values by key: tag → value."""
    by_metric: dict[str, dict[str, list[float]]] = {}
    for key, value in values.items():
        place, _, metric = key.rpartition("/")
        name = short(place)
        if name == place or f"{name}/{metric}" not in values:  # a component's own number replaces its members' mean
            by_metric.setdefault(metric, {}).setdefault(name, []).append(value)
    shown: dict[str, float] = {}
    for metric, places in by_metric.items():
        kept = _detailed(places, chart_of(metric).detail)
        for place, numbers in kept.items():
            if finite := [number for number in numbers if math.isfinite(number)]:
                shown[f"plasticity/{metric}/{place}"] = math.fsum(finite) / len(finite)
    for metric in by_metric:
        if {f"{metric}_low", f"{metric}_high"} <= by_metric.keys():
            # TensorBoard draws a band only where its three lines have the same steps.
            for place in by_metric[metric]:
                band = [f"plasticity/{metric}{end}/{place}" for end in ENDS]
                if not set(band) <= shown.keys():
                    shown = {name: value for name, value in shown.items() if name not in band}
    return shown


def _detailed(places: Mapping[str, list[float]], detail: Detail) -> dict[str, list[float]]:
    """Numbers by the places with separate lines. A component's own number replaces the mean of its layers."""
    layers: dict[str, list[str]] = {}
    for place in places:
        if "." in place:
            layers.setdefault(place.partition(".")[0], []).append(place)
    whole = {place: numbers for place, numbers in places.items() if "." not in place}
    if detail == "layers" and max(map(len, layers.values()), default=0) <= MOST_LAYERS:
        kept = {place: numbers for place, numbers in places.items() if "." in place}
        return kept | {place: numbers for place, numbers in whole.items() if place != "encoder"}
    means = {
        component: [number for place in own for number in places[place]]
        for component, own in layers.items()
        if component not in whole
    }
    if detail == "components" and len(whole | means) > 1:
        whole.pop("encoder", None)
    return whole | means


@cache
def chart_of(metric: str) -> Chart:
    """The chart that shows a metric; a separate chart if the table does not contain the metric."""
    known = (chart for chart in CHARTS if any(fnmatchcase(metric, pattern) for pattern in chart.metrics))
    return next(known, Chart(spelled(metric), (metric,)))


def charted(metrics: Iterable[str]) -> dict[Chart, list[str]]:
    """Charts in the order of the page, those missing from the table last, and the metrics of each."""
    shown: dict[Chart, list[str]] = {}
    for metric in dict.fromkeys(metrics):
        shown.setdefault(chart_of(metric), []).append(metric)
    known = [chart for chart in CHARTS if chart in shown]
    return {chart: shown[chart] for chart in (*known, *(chart for chart in shown if chart not in known))}


def spelled(metric: str) -> str:
    """A metric's name as a title."""
    return metric.replace("_", " ")


def height(values: Iterable[float]) -> float:
    """The height of a spike among these values: the largest; if none is positive the lowest; if all are zero 0.1."""
    values = list(values)
    return max(values) if max(values) > 0 else min(values) or 0.1


def may_fire(part: Intervention) -> bool:
    """Return whether an intervention, or one inside it, fires on a schedule, so that charts should have markers for
    firings. Interventions that act at every update do not."""
    inner = (p for p in part.modules() if isinstance(p, Intervention))
    return any(type(p).fire is not Intervention.fire and not isinstance(p.when, Never) for p in inner)


__all__ = ["CHARTS", "Arrived", "Board", "Chart", "Picture", "chart_of", "charted", "folded", "short", "tag"]

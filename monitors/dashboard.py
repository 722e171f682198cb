"""What TensorBoard shows of monitors: which tags, which charts, which pictures.

`metrics.jsonl` gets everything that is measured, as `plasticity/<metric>/<place>`. TensorBoard gets tens of tags, not
thousands: names of places are shortened, the members of an ensemble are averaged, and layers stand side by side only
where telling them apart is worth it (`CHARTS`). Numbers that are not finite are not shown.

A firing of an intervention is marked in every chart, by a series that is zero at rest: a spike at the firing, as high
as the chart's largest latest value, and zeros after it, so that TensorBoard's smoothing lets go of it at once.
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
from ..agents.hooks import Clock, Intervention, Never
from ..agents.log import LAYOUT, Band, Charts, Log

Detail = Literal["layers", "parts", "components"]
MOST_LAYERS = 12  # of a component that are shown side by side; of more, their mean is
ZEROS = 6  # after a spike: of a smoothed one (0.6), 0.6 ** 6, which is 5 %, are left
ENDS = ("", "_low", "_high")  # of the names of three metrics that make a band
APART = 200  # firings closer than the 200th part of the run so far, two pixels, share a spike


@dataclass(frozen=True)
class Picture:
    """An image for the dashboard: a PNG and its size in pixels."""

    png: bytes
    width: int
    height: int


class Arrived(NamedTuple):
    """What has come to the host of one moment."""

    clock: Clock
    values: dict[str, float]  # by key, `<place>/<metric>`
    pictures: dict[str, Picture]  # by tag
    fired: tuple[str, ...]  # names of the interventions of which these values tell a firing


class Chart(NamedTuple):
    """A chart of the page "Plasticity"."""

    title: str
    metrics: tuple[str, ...]  # names with wildcards
    # What gets a line of its own: every layer and component; every component and the encoder; every component.
    detail: Detail = "components"

    @property
    def slug(self) -> str:
        """What its markers are called by: its first metric."""
        return self.metrics[0].strip("_*")


CHARTS = (
    Chart("dormant units", ("dormant_fraction",), "layers"),
    Chart("dead units", ("dead_fraction",), "layers"),
    Chart("active units", ("active_fraction",), "layers"),
    Chart("linearised units", ("linearised_fraction",), "layers"),
    Chart("nonlinearity of units", ("nonlinearity",)),
    Chart("dormant units: stricter, and those that stay", ("dormant_overlap", "dormant_fraction_*")),
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
    Chart("gradients that are zero", ("gradient_zero_fraction",)),
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
    Chart("probes: loss beside that of fresh modules", ("probe_loss_ratio_*",), "parts"),
    Chart("probes: fit", ("probe_fit_*",), "parts"),
    Chart("criticality: back to birth", ("reset_criticality",), "layers"),
    Chart("criticality: drawn anew", ("rerandomised_criticality",), "layers"),
    Chart("criticality: actions that stay, or divergence of policies", ("*_action_agreement", "*_policy_churn")),
)


class Board:
    """Writes what arrives to a run's log.

    Attributes:
        heights: Chart → tag → the latest value that was shown.
        marked: Intervention → frame of its latest spike.
        trails: Tag of a marker → frames at which a zero is still to be written, in their order.
        ends: Tag of a marker → the last frame written.
    """

    def __init__(self, monitors: Mapping[str, Any]) -> None:
        self.monitors = monitors
        self.agent: Agent | None = None
        self.heights: dict[str, dict[str, float]] = {}
        self.marked: dict[str, int] = {}
        self.trails: dict[str, list[int]] = {}
        self.ends: dict[str, int] = {}

    def bind(self, agent: Agent) -> None:
        """Lay charts out for this agent."""
        self.agent = agent

    # ------------------------------------------------------------------------------------------------------ writing

    def write(self, log: Log, arrived: Arrived) -> None:
        """Values to `metrics.jsonl`, and what is worth to be seen of them to TensorBoard."""
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
        """A spike in every chart that shows something, unless the last one is too close to be told apart."""
        if name in self.marked and frame - self.marked[name] <= frame // APART:
            return
        self.marked[name] = frame
        spikes = {f"markers/{chart}/{name}": height(tags.values()) for chart, tags in self.heights.items()}
        before = {marker: 0.0 for marker in spikes if self.ends.get(marker, -1) < frame - 1}
        self._points(log, before, frame - 1)
        # An earlier firing's zeros may reach beyond this one, if what is measured between steps came in before it.
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
        """The parts of the agent that probes tell apart."""
        if self.agent is None:
            return []
        networks = [name for name, c in self.agent.components.items() if any(p.ndim > 1 for p in c.online.parameters())]
        return [*networks, *(["encoder"] if self.agent.observation.pixels else [])]

    # -------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, in plain values."""
        return {
            "heights": {chart: dict(tags) for chart, tags in self.heights.items()},
            "marked": dict(self.marked),
            "trails": {marker: list(frames) for marker, frames in self.trails.items()},
            "ends": dict(self.ends),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.heights = {chart: dict(tags) for chart, tags in state.get("heights", {}).items()}
        self.marked = dict(state.get("marked", {}))
        self.trails = {marker: list(frames) for marker, frames in state.get("trails", {}).items()}
        self.ends = dict(state.get("ends", {}))


def tag(key: str) -> str:
    """`critic/dormant_fraction` → `plasticity/dormant_fraction/critic`: charts of one metric stand together."""
    place, _, metric = key.rpartition("/")
    return f"plasticity/{metric}/{place}"


def short(place: str) -> str:
    """A place as it is shown: `critic.members.1.body.layers.0` → `critic.body.0`, and `critic.1` → `critic`.

    What tells the members of an ensemble, or the convolutions of a residual stage, apart is left out.
    """
    place = re.sub(r"^(\w+)[. ]\d+$", r"\1", place)
    place = re.sub(r"\.members\.\d+", "", place)
    place = re.sub(r"\.(blocks|layers|layer)(?=\.|$)", "", place)
    return re.sub(r"^([^.]+\.encoder\.\d+)\..*", r"\1", place)


def folded(values: Mapping[str, float]) -> dict[str, float]:
    """What TensorBoard shows of values by key: tag → value."""
    found: dict[str, dict[str, list[float]]] = {}
    for key, value in values.items():
        place, _, metric = key.rpartition("/")
        name = short(place)
        if name == place or f"{name}/{metric}" not in values:  # a number of the whole goes before its members'
            found.setdefault(metric, {}).setdefault(name, []).append(value)
    shown: dict[str, float] = {}
    for metric, places in found.items():
        kept = _detailed(places, chart_of(metric).detail)
        for place, numbers in kept.items():
            if finite := [number for number in numbers if math.isfinite(number)]:
                shown[f"plasticity/{metric}/{place}"] = math.fsum(finite) / len(finite)
    for metric in found:
        if {f"{metric}_low", f"{metric}_high"} <= found.keys():
            # TensorBoard draws a band only where its three lines have the same steps.
            for place in found[metric]:
                band = [f"plasticity/{metric}{end}/{place}" for end in ENDS]
                if not set(band) <= shown.keys():
                    shown = {name: value for name, value in shown.items() if name not in band}
    return shown


def _detailed(places: Mapping[str, list[float]], detail: Detail) -> dict[str, list[float]]:
    """Numbers by the places that get a line of their own. A component's own number goes before its layers' mean."""
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
    """The chart in which a metric is shown; one of its own if the table does not know it."""
    known = (chart for chart in CHARTS if any(fnmatchcase(metric, pattern) for pattern in chart.metrics))
    return next(known, Chart(spelled(metric), (metric,)))


def charted(metrics: Iterable[str]) -> dict[Chart, list[str]]:
    """Charts in the order of the page, those that the table does not know last, and which metrics each shows."""
    found: dict[Chart, list[str]] = {}
    for metric in dict.fromkeys(metrics):
        found.setdefault(chart_of(metric), []).append(metric)
    known = [chart for chart in CHARTS if chart in found]
    return {chart: found[chart] for chart in (*known, *(chart for chart in found if chart not in known))}


def spelled(metric: str) -> str:
    """A metric's name as a title."""
    return metric.replace("_", " ")


def height(values: Iterable[float]) -> float:
    """Of a spike among these values: the largest one; if none is positive the lowest one, and if all are zero 0.1."""
    values = list(values)
    return max(values) if max(values) > 0 else min(values) or 0.1


def may_fire(part: Intervention) -> bool:
    """Does an intervention, or one within it, fire now and then, so that there may be firings to be shown? Those that
    act at every update do not."""
    inner = (p for p in part.modules() if isinstance(p, Intervention))
    return any(type(p).fire is not Intervention.fire and not isinstance(p.when, Never) for p in inner)


__all__ = ["CHARTS", "Arrived", "Board", "Chart", "Picture", "chart_of", "charted", "folded", "short", "tag"]

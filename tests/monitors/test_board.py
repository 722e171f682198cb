"""Monitors in TensorBoard: folded tags, the layout of charts, markers of firings, and pictures."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from law_agents import AGENTS, RandomEnvs, build_run, resume, saved, take_steps
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from pliant.agents.clock import Clock
from pliant.agents.log import METRICS, Band, Log, read_metrics
from pliant.agents.run import Run
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build
from pliant.monitors import MONITORS, watch
from pliant.monitors.activity import Activity, Film, evenly, levels
from pliant.monitors.dashboard import CHARTS, ZEROS, Arrived, Board, Picture, chart_of, charted, folded, height, short
from pliant.monitors.pictures import COLOURS, LINE, MARGIN, MARK, SQUARE, UNKNOWN, colours, heatmap, stack

CHEAP = tuple(kind.example for kind in MONITORS.values() if kind.group == "cheap")
DORMANT = "plasticity/dormant_fraction/critic.head.0"
MARKER = "markers/dormant_fraction/redo"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync: no test makes a power cut."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points that TensorBoard shows, except those that depend on the wall clock."""
    accumulated = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulated.Reload()
    tags = [t for t in accumulated.Tags()["scalars"] if t != "charts/SPS" and not t.startswith("time/")]
    return {tag: [(e.step, e.value) for e in accumulated.Scalars(tag)] for tag in tags}


def measured(values: Mapping[str, float], steps: int, updates: int | None = None) -> Arrived:
    return Arrived(Clock(steps, steps if updates is None else updates), dict(values), {}, ())


def fired(name: str, steps: int, units: float = 2.0, change: float = 0.5) -> Arrived:
    values = {f"{name}/units/critic.head.layers.0": units, f"{name}/units/critic.head.layers.1": 1.0}
    return Arrived(Clock(steps, steps), values | {f"{name}/value_change": change}, {}, (name,))


def dormant(value: float) -> dict[str, float]:
    return {"critic.head.layers.0/dormant_fraction": value, "critic/dormant_fraction": value / 2}


# ------------------------------------------------------------------------------------------------------------- tags


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("critic", "critic"),
        ("critic.0", "critic"),
        ("critic 12", "critic"),
        ("encoder", "encoder"),
        ("critic.members.0.body.layers.1", "critic.body.1"),
        ("critic.members.11.output", "critic.output"),
        ("critic.encoder.blocks.0", "critic.encoder.0"),
        ("critic.encoder.blocks.2.second.inner", "critic.encoder.2"),
        ("critic.head.layers.0", "critic.head.0"),
        ("critic.value_head.layers.1", "critic.value_head.1"),
        ("critic.projection.layer", "critic.projection"),
        ("critic.advantage", "critic.advantage"),
        ("actor.body.layers.0", "actor.body.0"),
    ],
)
def test_places_have_short_names_in_tags(place: str, name: str) -> None:
    assert short(place) == name


def test_members_of_an_ensemble_are_averaged() -> None:
    values = {f"critic.members.{i}.body.layers.1/dormant_fraction": v for i, v in enumerate((0.1, 0.2, math.nan, 0.6))}
    assert folded(values) == {"plasticity/dormant_fraction/critic.body.1": pytest.approx(0.3)}


def test_a_component_value_replaces_the_mean_of_its_members() -> None:
    values = {"critic.0/probe_fit_random": 0.0, "critic.1/probe_fit_random": 0.2, "critic/probe_fit_random": 0.7}
    assert folded(values) == {"plasticity/probe_fit_random/critic": 0.7}


def test_values_that_are_not_finite_are_not_shown() -> None:
    values = {"critic/feature_norm": math.nan, "critic/q_mean": math.inf, "critic/td_error": 1.0}
    assert folded(values) == {"plasticity/td_error/critic": 1.0}


def test_layers_have_separate_lines_only_where_the_table_requires_them() -> None:
    places = ("critic", "encoder", "critic.encoder.blocks.0", "critic.head.layers.0", "actor")

    def shown(metric: str, among: Sequence[str] = places) -> set[str]:
        tags = folded({f"{place}/{metric}": 1.0 for place in among})
        assert all(tag.startswith(f"plasticity/{metric}/") for tag in tags)
        return {tag.rpartition("/")[2] for tag in tags}

    assert shown("dormant_fraction") == {"critic", "critic.encoder.0", "critic.head.0", "actor"}
    assert shown("feature_norm") == {"critic", "encoder", "actor"}
    assert shown("nonlinearity") == {"critic", "actor"}
    assert shown("not_in_the_table") == {"critic", "actor"}
    assert shown("not_in_the_table", ["encoder"]) == {"encoder"}


def test_a_component_without_its_own_value_is_the_mean_of_its_layers() -> None:
    values = {"critic.head.layers.0/unheard": 1.0, "critic.head.layers.1/unheard": 4.0, "actor.body/unheard": 7}
    assert folded(values) == {"plasticity/unheard/critic": 2.5, "plasticity/unheard/actor": 7}


def test_many_layers_are_shown_as_their_mean() -> None:
    values = {f"net.{i}/dead_fraction": float(i) for i in range(30)} | {"net.body.layers.0.x/dead_fraction": 0.0}
    deep = {f"critic.stage{i}/dead_fraction": float(i) for i in range(13)}
    assert folded(deep) == {"plasticity/dead_fraction/critic": 6.0}
    assert len(folded({k: v for k, v in deep.items() if "stage12" not in k})) == 12
    assert set(folded(values)) <= {"plasticity/dead_fraction/net", "plasticity/dead_fraction/net.body.0.x"}


def test_a_band_is_shown_completely_or_not_at_all() -> None:
    whole = {f"critic/plasticity_ratio_random{end}": v for end, v in (("", 0.9), ("_low", 0.8), ("_high", 1.0))}
    assert len(folded(whole)) == 3
    assert folded(whole | {"critic/plasticity_ratio_random_high": math.inf, "critic/q_mean": 1.0}) == {
        "plasticity/q_mean/critic": 1.0
    }
    other = {key.replace("critic", "actor"): value for key, value in whole.items()}
    assert len(folded(whole | other | {"critic/plasticity_ratio_random_low": math.nan})) == 3


# ------------------------------------------------------------------------------------------------- layout and budget


def watched(folder: Path, agent: str, monitor_specs: Sequence[str], steps: int = 12, specs: Sequence[str] = ()) -> Run:
    """A short run that is logged like one of `pliant train`."""
    made = AGENTS[agent](interventions=tuple(build(specs, INTERVENTIONS)))
    log = Log(folder, frame_skip=4, log_every=8)
    monitors = watch(made, *monitor_specs)
    log.layout |= monitors.board.charts()
    run = Run(
        made,
        RandomEnvs(made.observation, made.action, 2),
        log=log,
        monitors=monitors,
        fresh_envs=lambda: RandomEnvs(made.observation, made.action, 1, 7),
    )
    run.train(2 * steps)
    log.close()
    return run


def layout_of(folder: Path) -> dict[str, dict[str, Any]]:
    accumulated = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulated.Reload()
    (event,) = accumulated.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {category.title: {chart.title: chart for chart in category.chart} for category in layout.category}


@pytest.fixture(scope="module")
def tags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The tags of all cheap monitors in TensorBoard, by agent."""
    shown = {}
    for agent in ("dqn, nature", "dqn, impala", "sac", "redq", "sac, pixels"):
        folder = tmp_path_factory.mktemp("budget")
        run = watched(folder, agent, CHEAP)
        shown[agent] = list(points(folder))
        logged = {key for row in read_metrics(folder) for key in row if key.startswith("plasticity/")}
        everything = {f"plasticity/{k.rpartition('/')[2]}/{k.rpartition('/')[0]}" for k in run.monitors.readings}  # type: ignore[union-attr]
        assert logged == everything and len(logged) > len([t for t in shown[agent] if t.startswith("plasticity/")])
    return shown


def test_there_are_tens_of_tags_and_not_thousands(tags: dict[str, list[str]]) -> None:
    assert 40 < len(tags["dqn, nature"]) < 90
    assert 40 < len(tags["sac"]) < 130
    assert len(tags["sac, pixels"]) < 150
    assert len(tags["dqn, impala"]) < 110
    assert set(tags["redq"]) == set(tags["sac"])


def test_every_tag_of_a_monitor_is_in_a_chart_and_every_chart_has_a_tag(tmp_path: Path) -> None:
    examples = [kind.example for kind in MONITORS.values()]
    run = watched(tmp_path, "sac, pixels", examples, steps=14, specs=("redo(tau=0.7, every=4, samples=16)",))
    shown, page = points(tmp_path), layout_of(tmp_path)["Plasticity"]
    patterns = [re.compile(tag) for chart in page.values() for tag in chart.multiline.tag]
    bands = {t for chart in page.values() for s in chart.margin.series for t in (s.value, s.lower, s.upper)}
    assert run.log.latest["firings/redo/units"] >= 0
    for tag in shown:
        if tag.startswith(("plasticity/", "markers/", "firings/")):
            assert tag in bands or sum(bool(p.match(tag)) for p in patterns) == 1, tag
    for title, chart in page.items():
        if chart.multiline.tag and "noise" not in title:
            matching = [tag for tag in shown for p in chart.multiline.tag if re.match(p, tag)]
            lines = [tag for tag in matching if not tag.startswith("markers/")]
            assert lines, title
            marks = [tag for tag in matching if tag.startswith("markers/")]
            assert title.startswith("firings") or len(marks) <= 1, title


def test_the_layout_holds_only_charts_of_active_monitors(tmp_path: Path) -> None:
    watched(tmp_path, "dqn", ["units(every=2, samples=16)"])
    pages = layout_of(tmp_path)
    assert list(pages) == ["Overview", "Plasticity"]
    assert list(pages["Plasticity"])[:4] == ["dormant units", "dead units", "active units", "linearised units"]
    assert all("firings" not in title and "norm of" not in title for title in pages["Plasticity"])
    assert Board({}).charts().keys() == {"Overview"}


def test_there_are_charts_of_firings_only_for_methods_that_fire() -> None:
    shown = {}
    for spec in ("continual_backprop", "replay_ratio(2)", "replay_ratio(2, reset_every=3)", "redo"):
        agent = AGENTS["dqn"](interventions=tuple(build([spec], INTERVENTIONS)))
        shown[spec] = "firings: units" in watch(agent, "units").board.charts()["Plasticity"]
    assert list(shown.values()) == [False, False, True, True], shown


def test_charts_follow_the_order_of_the_table() -> None:
    titles = [chart.title for chart in charted(m for kind in MONITORS.values() for m in kind.metrics)]
    order = [chart.title for chart in CHARTS]
    known = [title for title in titles if title in order]
    assert known == sorted(known, key=order.index)
    assert titles[: len(known)] == known, "metrics that are not in the table come last"
    assert len({chart.slug for chart in CHARTS}) == len(CHARTS)
    beginnings = ["dormant units", "dead units", "active units", "linearised units", "effective rank of features"]
    beginnings += ["norm of features", "norm of weights", "distance from init", "norm of gradients", "update to weight"]
    assert [title for title in order if title in beginnings] == beginnings


class NotInTable:
    """A monitor with a metric that is not in the table."""

    metrics: ClassVar[Mapping[str, str]] = {"oddness_0.5": "how odd it is", "dormant_fraction": "known"}


def test_metrics_that_are_not_in_the_table_have_charts_at_the_end() -> None:
    page = Board({"strange": NotInTable()}).charts()["Plasticity"]
    assert list(page) == ["dormant units", "oddness 0.5"]
    assert page["oddness 0.5"] == (r"^plasticity/oddness_0\.5/.*$", r"^markers/oddness_0\.5/.*$")
    assert page["dormant units"] == ("^plasticity/dormant_fraction/.*$", "^markers/dormant_fraction/.*$")


def test_metrics_with_a_common_prefix_do_not_share_a_chart() -> None:
    assert chart_of("dormant_fraction").title != chart_of("dormant_fraction_0.025").title
    assert chart_of("gradient_zero_fraction").title != chart_of("gradient_zero_fraction_samples").title
    (first, *_) = Board({"strange": NotInTable()}).charts()["Plasticity"]["dormant units"]
    assert isinstance(first, str) and not re.match(first, "plasticity/dormant_fraction_0.025/critic")


ENDS = ("", "_low", "_high", "_raw")


class Ratio:
    metrics: ClassVar[Mapping[str, str]] = dict.fromkeys((f"plasticity_ratio_random{end}" for end in ENDS), "")


@pytest.mark.parametrize(
    ("agent", "places"), [("sac", ("critic", "actor")), ("dqn, minatar, dueling", ("critic", "encoder"))]
)
def test_a_metric_with_an_interval_is_a_band(agent: str, places: tuple[str, ...]) -> None:
    board = Board({"ratio": Ratio()})
    board.bind(AGENTS[agent]())
    page = board.charts()["Plasticity"]
    name = "plasticity/plasticity_ratio_random"
    bands = tuple(Band(f"{name}/{place}", f"{name}_low/{place}", f"{name}_high/{place}") for place in places)
    assert page["plasticity ratio random"] == bands
    assert len(page) == 2 and "^plasticity/plasticity_ratio_random_raw/.*$" in list(page.values())[1]


def test_the_overview_has_a_band_of_the_evaluation_and_an_adaptive_ratio(tmp_path: Path) -> None:
    watched(tmp_path / "adaptive", "dqn", ["none"], specs=("adaptive_replay_ratio",))
    watched(tmp_path / "plain", "dqn", ["none"])
    charts = layout_of(tmp_path / "adaptive")["Overview"]
    (series,) = charts["eval: mean return, and its 95 % interval"].margin.series
    assert [series.value, series.lower, series.upper] == [f"eval/episodic_return{end}" for end in ("", "_low", "_high")]
    (pattern,) = charts["replay ratio"].multiline.tag
    assert [tag for tag in points(tmp_path / "adaptive") if re.match(pattern, tag)] == ["interventions/replay_ratio"]
    assert "replay ratio" not in layout_of(tmp_path / "plain")["Overview"]


# ---------------------------------------------------------------------------------------------------------- firings


def played(folder: Path, moments: Sequence[Arrived], frame_skip: int = 4) -> dict[str, list[tuple[int, float]]]:
    with Log(folder, frame_skip) as log:
        board = Board({})
        for arrived in moments:
            board.write(log, arrived)
    return points(folder)


def near(series: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Values without the rounding of TensorBoard's float32."""
    return [(step, round(value, 5)) for step, value in series]


def test_a_firing_is_marked_by_a_spike_and_zeros_after_it(tmp_path: Path) -> None:
    shown = played(tmp_path, [measured(dormant(0.7), 90), fired("redo", 100), measured(dormant(0.2), 110)])
    assert near(shown[MARKER]) == [(399, 0.0), (400, 0.7), *((400 + i, 0.0) for i in range(1, ZEROS + 1))]
    assert near(shown[DORMANT]) == [(360, 0.7), (440, 0.2)]
    assert [tag for tag in shown if tag.startswith("markers/")] == [MARKER], "there must be no marker without a chart"


def test_no_point_is_written_before_its_time(tmp_path: Path) -> None:
    log, board = Log(tmp_path, 1), Board({})
    for arrived in (measured(dormant(0.7), 90), fired("redo", 100), measured(dormant(0.7), 102)):
        board.write(log, arrived)
        assert max(log._frames.values()) <= arrived.clock.steps
    log.close()
    assert near(points(tmp_path)[MARKER]) == [(99, 0.0), (100, 0.7), (101, 0.0), (102, 0.0)]


def test_a_second_firing_soon_after_has_its_own_spike(tmp_path: Path) -> None:
    moments = [measured(dormant(0.7), 90), fired("redo", 100), fired("redo", 101), measured(dormant(0.4), 103)]
    shown = played(tmp_path, [*moments, fired("redo", 104), measured(dormant(0.4), 200)])
    assert near(shown[MARKER]) == [
        (399, 0.0),
        (400, 0.7),
        (401, 0.0),
        (402, 0.0),
        (403, 0.0),
        (404, 0.7),
        *((404 + i, 0.0) for i in range(1, ZEROS + 1)),
        (415, 0.0),
        (416, 0.4),
        *((416 + i, 0.0) for i in range(1, ZEROS + 1)),
    ]


def test_only_firings_of_the_same_frame_share_a_spike(tmp_path: Path) -> None:
    shown = played(
        tmp_path, [measured(dormant(0.7), 9), *(fired("redo", s) for s in (10, 10, 11, 11)), measured({}, 12)], 1
    )
    assert near(shown[MARKER]) == [(9, 0.0), (10, 0.7), (11, 0.7), (12, 0.0)]
    assert [step for step, _ in shown["firings/redo/units"]] == [10, 10, 11, 11]


def test_firings_too_close_to_distinguish_share_a_spike(tmp_path: Path) -> None:
    moments = [measured(dormant(0.7), 1), *(fired("redo", steps) for steps in range(10, 20_001, 10))]
    shown = played(tmp_path, moments, 1)
    spikes = [step for step, value in shown[MARKER] if value]
    assert spikes[:20] == list(range(10, 201, 10)), "all early firings are marked"
    assert all(later - sooner > later // 200 for sooner, later in pairwise(spikes))
    assert max(b - a for a, b in pairwise(spikes)) <= 20_000 // 200 + 10
    assert len(shown[MARKER]) < len(spikes) * (ZEROS + 2) + 1 and len(spikes) < 700
    assert len(shown["firings/redo/units"]) == 2000, "all firings are logged"


def test_measurements_between_steps_may_arrive_before_an_earlier_firing(tmp_path: Path) -> None:
    moments = [
        measured(dormant(0.7), 90),
        fired("redo", 100),
        measured({"critic/mc_return": 1.0}, 108),
        fired("redo", 103),
    ]
    shown = played(tmp_path, [*moments, measured(dormant(0.7), 200)], 1)
    assert near(shown[MARKER]) == [
        (99, 0.0),
        (100, 0.7),
        *((100 + i, 0.0) for i in range(1, ZEROS + 1)),
        (107, 0.7),
        *((107 + i, 0.0) for i in range(1, ZEROS + 1)),
    ]


def test_a_spike_is_as_high_as_the_largest_latest_value_of_its_chart(tmp_path: Path) -> None:
    values = {"critic/q_mean": -3.0, "critic/q_std": -1.0, "critic/loss": 0.0, "critic/dead_fraction": math.nan}
    sequence = [measured(dormant(0.9), 5), measured(dormant(0.3) | values, 10), fired("redo", 20), fired("reset", 25)]
    shown = played(tmp_path, sequence, 1)
    heights = {tag: max((v for _, v in series), key=abs) for tag, series in shown.items() if tag.startswith("markers/")}
    assert heights == {
        f"markers/{chart}/{name}": pytest.approx(value)
        for chart, value in (("dormant_fraction", 0.3), ("q_mean", -3.0), ("loss", 0.1))
        for name in ("redo", "reset")
    }
    assert (height([0.0, 2.0, -5.0]), height([-1.0, -4.0]), height([0.0])) == (2.0, -4.0, 0.1)


def test_the_effect_of_a_firing_is_logged(tmp_path: Path) -> None:
    nothing = Arrived(Clock(30, 30), {"inject/fired": 1.0}, {}, ("inject",))
    shown = played(tmp_path, [fired("redo", 10), fired("redo", 20, change=math.nan), nothing], 1)
    first, second, third = read_metrics(tmp_path)
    assert first["firings/redo/units/critic.head.layers.0"] == 2.0
    assert (first["firings/redo/units"], first["firings/redo/value_change"]) == (3.0, 0.5)
    assert math.isnan(second["firings/redo/value_change"]) and third["firings/inject/fired"] == 1.0
    assert shown == {"firings/redo/units": [(10, 3.0), (20, 3.0)], "firings/redo/value_change": [(10, 0.5)]}


def test_smoothing_returns_to_zero_after_a_spike(tmp_path: Path) -> None:
    moments = [measured(dormant(1.0), 90), fired("redo", 100), measured(dormant(1.0), 900), fired("redo", 1000)]
    shown = played(tmp_path, moments)
    last, count, smoothed = 0.0, 0, []
    for _, value in shown[MARKER]:  # TensorBoard's moving average, debiased
        last, count = 0.6 * last + 0.4 * value, count + 1
        smoothed.append(last / (1 - 0.6**count))
    assert max(smoothed[:2]) > 0.5 and smoothed[1 + ZEROS] < 0.05, (
        "between two firings the smoothed marker is near zero"
    )
    assert smoothed[-1] > 0.35


def test_monitors_are_notified_of_firings(tmp_path: Path) -> None:
    class RecordsFirings:
        recorded: ClassVar[list[int]] = []

        def note_firing(self, clock: Clock) -> None:
            self.recorded.append(clock.steps)

    with Log(tmp_path) as log:
        board = Board({"records": RecordsFirings(), "ignores": NotInTable()})
        for arrived in (fired("redo", 7), measured(dormant(0.1), 8), fired("redo", 9)):
            board.write(log, arrived)
    assert RecordsFirings.recorded == [7, 9]


STORY = [
    measured(dormant(0.7), 90),
    fired("redo", 100),
    measured({"critic/q_mean": 2.0}, 101),
    fired("redo", 103),
    measured(dormant(0.4), 104),
    fired("reset", 104),
    measured(dormant(0.2), 110),
    fired("redo", 150),
    fired("redo", 150),
    measured({}, 152),
    measured({}, 160),
    fired("redo", 154),
    measured(dormant(0.1), 300),
]


@pytest.mark.parametrize("cut", range(len(STORY) + 1))
def test_two_sessions_write_the_same_as_one(tmp_path: Path, cut: int) -> None:
    whole = played(tmp_path / "whole", STORY, 1)
    log, board = Log(tmp_path / "two", 1), Board({})
    for arrived in STORY[:cut]:
        board.write(log, arrived)
    file = io.BytesIO()
    torch.save({"board": board.state_dict(), "log": log.state_dict()}, file)
    for arrived in STORY[cut:]:  # lost
        board.write(log, arrived)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    log, board = Log(tmp_path / "two", 1), Board({})
    log.resume(state["log"])
    board.load_state_dict(state["board"])
    for arrived in STORY[cut:]:
        board.write(log, arrived)
    assert board.state_dict() == json.loads(json.dumps(board.state_dict()))
    log.close()
    assert points(tmp_path / "two") == whole
    assert (tmp_path / "two" / METRICS).read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()


def test_a_board_loads_an_old_state_without_entries(tmp_path: Path) -> None:
    board = Board({})
    board.load_state_dict({})
    assert board.state_dict() == Board({}).state_dict()


# --------------------------------------------------------------------------------------------------------- pictures


def pixels(picture: Picture) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(picture.png))
    assert image.format == "PNG" and image.mode == "RGB" and image.size == (picture.width, picture.height)
    return np.asarray(image)


TOP = MARGIN + 2 * LINE


def test_the_cells_of_a_heatmap_have_the_colours_of_their_numbers() -> None:
    array = np.array([[0.0, 1.0], [2.0, 3.0]])
    drawn = pixels(heatmap(array, title="four numbers"))
    cell = SQUARE // 2
    for (row, column), value in np.ndenumerate(array):
        y, x = TOP + row * cell, MARGIN + column * cell
        expected = colours(np.array(value / 3))
        assert (drawn[y : y + cell, x : x + cell] == expected).all(), (row, column)
    assert (drawn[0] == 255).all() and (drawn[:, :MARGIN] == 255).all()


def test_low_and_high_limit_the_colours_and_nan_is_grey() -> None:
    drawn = pixels(heatmap([[-5.0, 0.0, 1.0, 9.0, math.inf, -math.inf, math.nan]] * 7, title="", low=0.0, high=1.0))
    cell = SQUARE // 7
    row = [tuple(drawn[TOP + 5, MARGIN + cell * i + 5]) for i in range(7)]
    dark, bright = (tuple(c) for c in COLOURS[[0, -1]].astype(int))
    assert row == [dark, dark, bright, bright, bright, dark, UNKNOWN]


def test_colours_become_lighter_with_the_value() -> None:
    steps = colours(np.linspace(0, 1, 101)).astype(float) / 255
    linear = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    gains = np.diff(lightness[5:])
    assert gains.min() > 0.3 and gains.max() < 2.5, "the lightness must increase evenly"
    assert lightness[-1] > 95 and tuple(colours(np.array(0.0))) == (0, 0, 0)


def test_the_same_numbers_give_the_same_bytes() -> None:
    array = np.random.default_rng(0).normal(size=(20, 130))
    one, two = (stack({"a": array, "b": array[:3]}, title="t", x_label="x", marks=(3, 50.5)) for _ in range(2))
    assert one == two and one.png != stack({"a": array + 1e-3, "b": array[:3]}, title="t", x_label="x", low=0).png


def test_marks_are_dotted_lines_with_ticks_below() -> None:
    array = np.zeros((4, 128))
    plain, marked = (pixels(heatmap(array, title="", marks=marks)) for marks in ((), (64.0, 300.0)))
    x = MARGIN + 64 * (512 // 128)
    differing = np.unique(np.nonzero((plain != marked).any(2))[1])
    assert x in differing and set(differing) <= {x - 1, x, x + 1}, "nothing may be drawn beyond the edge"
    assert tuple(marked[TOP, x]) == MARK and tuple(marked[TOP + 1, x]) != MARK
    crowded = pixels(heatmap(array, title="", marks=tuple(range(128))))
    assert not (crowded[TOP : TOP + 20] == MARK).all(2).any(), "too many lines are left out"
    assert (crowded[TOP - 4] == MARK).all(1).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (700, 3), (3, 1025), (64, 128), (320, 320)])
def test_pictures_of_every_shape_are_drawn(shape: tuple[int, int]) -> None:
    drawn = pixels(heatmap(np.ones(shape), title="one value", y_label="rows", x_label="columns"))
    assert drawn.shape[0] < 450 and drawn.shape[1] < 1300


def test_panels_of_different_shapes_are_refused() -> None:
    for panels in ({}, {"a": np.ones(3)}, {"a": np.ones((2, 3)), "b": np.ones((2, 4))}, {"a": np.ones((0, 3))}):
        with pytest.raises(ValueError, match="heat: panels must be matrices with equal numbers of columns"):
            stack(panels, title="heat")


# --------------------------------------------------------------------------------------------------------- activity


FIRED = (3000, 3010, 3200, 4000)  # two within a column, and a third that is in it after columns are merged


def filmed(moments: int, every: int = 10, most: int = 16, first: int = 1000) -> Film:
    """Two units: one is dead from step 4000 to 5000, the score of the other is the time."""
    film = Film({"a": 1, "b": 1}, draw=5, most=most)
    for i in range(moments):
        steps = first + every * i
        film.add(np.array([0.0 if 4000 < steps <= 5000 else 1.0, 3 * steps / 10_000]), steps)
        if steps in FIRED:
            film.note(steps)
        film.due()
    return film


@pytest.mark.parametrize("moments", [16, 17, 31, 400, 500, 777])
def test_merging_columns_keeps_the_time_axis_right(moments: int) -> None:
    film = filmed(moments)
    panels, edges = film.panels(), film._edges()
    columns = panels["b"].shape[1]
    assert columns <= 16 and len(edges) == columns + 1 and (moments < 16 or columns >= 8)
    assert edges[0] == 990 and film.stride * columns + film.sums[1] == moments
    assert [b - a for a, b in pairwise(edges)] == [10 * film.stride] * columns
    # The second unit's score is the time of the measurement: on average half a column before its end.
    when = panels["b"][0] / 3 * 10_000
    middle = np.array(edges[1:]) - 5 * (film.stride - 1)
    assert np.abs(when - middle).max() < 10_000 / 255 * 2
    for place, steps in film.ticks().items():
        assert steps == str(int(np.interp(place, range(columns + 1), edges)))


def test_a_dead_unit_is_dark_until_it_is_active_again() -> None:
    film = filmed(777)
    row, edges = film.panels()["a"][0], film._edges()
    for value, (begin, end) in zip(row, pairwise(edges), strict=True):
        if end <= 4000 or begin >= 5000:
            assert value == pytest.approx(1.0, abs=0.02)
        elif begin >= 4000 and end <= 5000:
            assert value == 0.0
        else:
            assert 0 < value < 1
    assert (row == 0).any()


def test_only_exact_zeros_are_black() -> None:
    assert levels(np.array([0.0, 1e-12, 3.0, 9.0, math.nan])) == [0, 1, 255, 255, 0]
    film = Film({"a": 2}, draw=1, most=2)
    for scores in ([0.0, 0.0], [0.0, 1e-12], [0.0, 0.0], [0.0, 0.0]):
        film.add(np.array(scores), 10 * film.count)
    assert (film.panels()["a"] > 0).tolist() == [[False], [True]], "it was active for a part of the time"


def test_firings_are_marked_once_per_column_at_their_time() -> None:
    film = filmed(777)
    edges = film._edges()
    assert [np.interp(place, range(len(edges)), edges) for place in film.marks()] == pytest.approx([3000, 4000])
    film.note(10**9)
    assert len(film.marks()) == 2 and film.fired[-1] == 10**9, "a firing after the last column is not drawn"
    for steps in range(20_000, 90_000, 7):
        film.note(steps)
    assert len(film.fired) < 1000


def test_pictures_are_drawn_at_growing_intervals() -> None:
    film, due = Film({"a": 1}, draw=5), []
    for i in range(1, 3001):
        film.add(np.ones(1), i)
        if film.due():
            due.append(i)
    assert due[:4] == [5, 10, 15, 20] and 15 < len(due) < 40
    gaps = np.diff(due)
    assert (gaps >= 5).all() and (np.diff(gaps) >= 0).all()


@pytest.mark.parametrize("cut", [0, 1, 7, 15, 16, 17, 100])
def test_a_film_resumes_exactly(cut: int) -> None:
    straight, first = filmed(200), filmed(cut)
    second = Film({"a": 1, "b": 1}, draw=5, most=16)
    second.load_state(json.loads(json.dumps(first.state())))
    for i in range(cut, 200):
        steps = 1000 + 10 * i
        second.add(np.array([0.0 if 4000 < steps <= 5000 else 1.0, 3 * steps / 10_000]), steps)
        if steps in FIRED:
            second.note(steps)
        second.due()
    assert second.state() == straight.state() and second.next == straight.next


def test_units_are_chosen_evenly() -> None:
    assert evenly(5) == [0, 1, 2, 3, 4]
    chosen = evenly(512)
    assert len(chosen) == 64 and chosen[0] == 0 and set(np.diff(chosen)) == {8}
    assert len(set(evenly(100))) == 64 and max(evenly(100)) == 98


def test_a_dead_unit_is_black_in_the_picture_of_its_layer(tmp_path: Path) -> None:
    run = build_run("dqn", monitors=["activity(every=1, samples=16, draw=1)"])
    shown: dict[int, Picture] = {}
    run.log.image = lambda tag, png, size, clock: shown.update({clock.updates: Picture(png, *size)})  # type: ignore[method-assign]
    take_steps(run, 12)
    at = run.clock.updates
    layer = run.agent.components["critic"].online.head.layers[0]  # type: ignore[union-attr,index]
    before = (layer(torch.randn(200, 5)).abs().mean(0) > 0).nonzero().flatten()
    unit = int(before[0])
    with torch.no_grad():
        layer.linear.weight[unit] = 0.0
        layer.linear.bias[unit] = -1e3
    take_steps(run, 12)
    part = run.monitors.parts["activity"]  # type: ignore[union-attr]
    assert isinstance(part, Activity)
    row = part.films["critic"].panels()["critic.head.layers.0"][unit]
    assert (row[:at] > 0).any() and row[at - 2] > 0 and (row[at:] == 0).all() and len(row) > at + 5
    last = pixels(shown[max(shown)])
    columns = max(shown)  # one column per update
    cell, wide = 128 // 12, 512 // columns
    assert columns > at + 2
    left = next(x for x in range(last.shape[1]) if (last[TOP + 1, x] != 255).any())
    y = TOP + unit * cell + cell // 2
    assert all((last[y, left + wide * i + wide // 2] == 0).all() for i in range(at, columns))
    assert (last[y, left + wide * (at - 2) + wide // 2] != 0).any()


@pytest.mark.full
def test_activity_is_drawn_for_every_component_and_the_first_member(tmp_path: Path) -> None:
    for agent in ("redq", "sac, pixels", "dqn, impala"):
        run = watched(tmp_path / agent, agent, ["activity(every=2, samples=16, draw=2)"], specs=("reset(every=3)",))
        part = run.monitors.parts["activity"]  # type: ignore[union-attr]
        assert isinstance(part, Activity) and all(film.fired for film in part.films.values())
        assert not [name for film in part.films.values() for name in film.rows if ".members.1." in name]
        accumulated = EventAccumulator(str(tmp_path / agent), size_guidance={"images": 0})
        accumulated.Reload()
        assert set(accumulated.Tags()["images"]) == {f"activity/{component}" for component in part.films}
        assert len(accumulated.Images("activity/critic")) >= 2


def test_pictures_resume_exactly() -> None:
    specs = ("activity(every=1, samples=16, draw=2)",)

    def drawn(run: Run) -> dict[int, bytes]:
        images: dict[int, bytes] = {}
        run.log.image = lambda tag, png, size, clock: images.update({clock.updates: png})  # type: ignore[method-assign]
        return images

    straight, stopped = build_run("dqn", monitors=specs), build_run("dqn", monitors=specs)
    whole = drawn(straight)
    take_steps(straight, 20)
    take_steps(stopped, 11)
    resumed = build_run("dqn", monitors=specs)
    later = drawn(resumed)
    resume(resumed, saved(stopped))
    take_steps(resumed, 9)
    assert later and later == {updates: png for updates, png in whole.items() if updates in later}
    assert max(later) == max(whole)


def test_parameters_out_of_range_are_refused() -> None:
    for wrong in ({"draw": 0}, {"samples": 0}):
        with pytest.raises(ValueError, match=r"activity: (draw|samples) must be at least 1"):
            Activity(**wrong)
    with pytest.raises(ValueError, match="must be even, not 7"):
        Film({"a": 1}, 1, most=7)

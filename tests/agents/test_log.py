"""The record of a run: exact after a kill, correct with NaN and on full disks, readable by TensorBoard."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from no_wait import HostWaits, no_wait
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from pliant.agents.clock import Clock
from pliant.agents.log import LAYOUT, METRICS, TIMING, Log, LogDamaged, LogWriteFailed, read_metrics
from pliant.agents.progress import Progress, ProgressLine, duration
from pliant.common.spaces import Episode

ENVS, SKIP = 3, 4


def step(log: Log, i: int) -> None:
    """Log what a training loop logs at step `i` of every environment: a pure function of `i`."""
    clock = Clock(i * ENVS, 2 * i, (i - 1) * ENVS, 2 * i - 1)
    for k in (1, 2):
        metrics = {"td_loss": torch.tensor(1 / (3 * i + k)), "losses/q_values": torch.tensor(i * 0.1)}
        if k == 2:  # learns every second update
            metrics["actor_loss"] = torch.tensor(math.sin(i), dtype=torch.float64)
        log.update(metrics, clock)
    if i % 7 == 0:
        for env in range(i % 3 + 1):
            log.episode(Episode(env, i / 3 + env, i, seed=2**40 + i), clock)
    if log.due(clock):
        log.flush(clock, {"replay/size": i, "charts/learning_rate": 1e-4 / i}, {"act": 0.1, "env": 0.2})
    if i % 50 == 0:
        log.scalars({"eval/episodic_return": i / 7}, clock)


def new_log(folder: Path | None) -> Log:
    return Log(folder, SKIP, log_every=30)


def start(log: Log) -> Log:
    log.text("config", "lr: 1e-4")
    log.hparams({"env": "Pong", "lr": 1e-4, "double": True, "none": None})
    return log


def run(log: Log, first: int, last: int) -> Log:
    for i in range(first, last + 1):
        step(log, i)
    return log


def through_disk(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def accumulator(folder: Path) -> EventAccumulator:
    accumulated = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulated.Reload()
    return accumulated


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points that TensorBoard shows, except those that depend on the wall clock."""
    accumulated = accumulator(folder)
    tags = [t for t in accumulated.Tags()["scalars"] if t != "charts/SPS" and not t.startswith("time/")]
    return {tag: [(e.step, e.value) for e in accumulated.Scalars(tag)] for tag in tags}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "whole"
    run(start(new_log(folder)), 1, 200).close()
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync: it matters only in a power cut, which no test makes. Written data survive a kill without it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# Content


def test_metrics_are_means_over_the_updates_that_report_them(whole: Path) -> None:
    rows = [row for row in read_metrics(whole) if "losses/td_loss" in row]
    assert [row["steps"] for row in rows] == list(range(30, 601, 30))
    row = rows[2]
    steps = range(21, 31)
    assert row["frames"] == 90 * SKIP and row["updates"] == 60
    losses = [torch.tensor(1 / (3 * i + k)).item() for i in steps for k in (1, 2)]
    assert row["losses/td_loss"] == pytest.approx(sum(losses) / 20, rel=1e-12)
    assert row["losses/actor_loss"] == pytest.approx(sum(math.sin(i) for i in steps) / 10, rel=1e-12)
    assert row["losses/q_values"] == pytest.approx(sum(0.1 * i for i in steps) / 10, rel=1e-6)
    assert row["replay/size"] == 30 and row["charts/learning_rate"] == 1e-4 / 30


def test_means_restart_after_a_flush() -> None:
    log = Log(None, log_every=1)
    for i, value in enumerate((1.0, 5.0), start=1):
        log.update({"loss": torch.tensor(value)}, Clock(i, i))
        log.flush(Clock(i, i))
        assert log.latest["losses/loss"] == value


def test_episodes_of_one_step_are_separate_lines_and_one_mean_in_tensorboard(whole: Path) -> None:
    rows = [row for row in read_metrics(whole) if "env" in row]
    at = 14 * ENVS * SKIP
    assert [(r["env"], r["charts/episodic_return"], r["seed"]) for r in rows if r["frames"] == at] == [
        (env, 14 / 3 + env, 2**40 + 14) for env in range(3)
    ]
    shown = points(whole)
    assert dict(shown["charts/episodic_return"])[at] == pytest.approx(14 / 3 + 1)
    assert len(shown["charts/episodic_return"]) == len(
        {r["frames"] for r in rows}
    )  # the last mean is written when the log is closed
    assert [value for _, value in shown["charts/gradient_steps"]] == [2.0 * s for s in range(10, 201, 10)]


def test_closing_the_log_writes_the_last_episodes(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.episode(Episode(0, 3.0, 5, 1), Clock(10))
    log.episode(Episode(1, 4.0, 5, 1), Clock(10))
    log.close()
    assert points(tmp_path)["charts/episodic_return"] == [(10, 3.5)]


def test_the_metrics_hold_no_wall_clock_times(whole: Path) -> None:
    assert not [k for row in read_metrics(whole) for k in row if k == "charts/SPS" or k.startswith(("time/", "wall"))]
    timing = read_metrics(whole / TIMING)
    assert timing[0].keys() == {"frames", "steps", "updates", "wall_time", "charts/SPS", "time/act", "time/env"}
    assert timing[1]["time/env"] == pytest.approx(200 / 30)  # seconds per 1000 steps
    assert {"charts/SPS", "time/act"} <= set(accumulator(whole).Tags()["scalars"])


def test_numbers_that_are_not_finite_are_written_as_valid_json(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.update({"loss": torch.tensor(math.nan)}, Clock(1, 1))
        log.update({"loss": torch.tensor(1.0)}, Clock(1, 2))
        log.flush(Clock(1, 2), {"a": math.inf, "b": -math.inf, "c": 0.1, "d": 2})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads((tmp_path / METRICS).read_text(), parse_constant=refuse)
    assert (row["losses/loss"], row["a"], row["b"]) == ("NaN", "Infinity", "-Infinity")
    assert math.isnan(float(row["losses/loss"])) and float(row["b"]) == -math.inf
    assert '"c": 0.1, "d": 2}' in (tmp_path / METRICS).read_text()
    (read,) = read_metrics(tmp_path)
    assert math.isnan(read["losses/loss"]) and read["a"] == math.inf
    assert math.isnan(points(tmp_path)["losses/loss"][0][1])


def test_an_incomplete_last_line_is_not_read(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"frames": 1}\n{"fra')
    assert read_metrics(tmp_path) == [{"frames": 1}]


@pytest.mark.parametrize("stride", [1, 3, 7, 30, 1000])
def test_a_flush_is_due_once_a_period_at_any_stride(stride: int) -> None:
    log, due = Log(None, log_every=30), []
    for steps in range(stride, 3001, stride):
        clock = Clock(steps, steps, steps, steps - 1)  # the state after an update, whose last tick added no steps
        if log.due(clock):
            log.flush(clock)
            due.append(steps)
    assert due == sorted({-(-boundary // stride) * stride for boundary in range(30, 3001, 30)} & set(range(3001)))


def test_the_step_of_a_tag_never_decreases() -> None:
    log = Log(None)
    log.scalars({"eval/a": 1.0}, Clock(10))
    log.scalars({"eval/a": 2.0}, Clock(10))
    log.scalars({"eval/b": 2.0}, Clock(5))
    with pytest.raises(ValueError, match="eval/a was logged at frame 10 and cannot be logged at frame 9"):
        log.scalars({"eval/a": 1.0}, Clock(9))


def test_metrics_must_be_scalar_tensors() -> None:
    with pytest.raises(TypeError, match=r"'q' must be a 0-d tensor, not a tensor of shape \(3,\)"):
        Log(None).update({"q": torch.zeros(3)}, Clock())
    with pytest.raises(TypeError, match=r"'q' must be a 0-d tensor, not 1\.0; host values go to `scalars`"):
        Log(None).update({"q": 1.0}, Clock())


def test_logging_an_update_never_waits_and_keeps_no_graph() -> None:
    log = Log(None)
    weight = torch.ones((), requires_grad=True)
    with no_wait():
        for i in range(1, 4):
            log.update({"loss": weight * i, "count": torch.full((), i)}, Clock(i, i))
    assert not any(group.total.requires_grad for group in log._sums.values())
    with pytest.raises(HostWaits), no_wait():
        log.flush(Clock(3, 3))  # the flush waits for the device
    log.flush(Clock(3, 3))
    assert log.latest == {"losses/loss": 2.0, "losses/count": 2.0, "charts/gradient_steps": 3.0}


def test_a_log_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = run(start(new_log(None)), 1, 60)
    state = through_disk(log.state_dict())
    log.close()
    assert not list(tmp_path.iterdir())
    again = new_log(None)
    again.resume(state)
    assert again.latest == log.latest and again.mean_return == log.mean_return
    assert log.mean_return == pytest.approx(sum(log._recent) / len(log._recent))


# TensorBoard


def test_hparams_are_written_to_the_folder_of_the_run(whole: Path) -> None:
    assert [p.name for p in whole.iterdir() if p.is_dir()] == []
    content = accumulator(whole).summary_metadata
    read = plugin_data_pb2.HParamsPluginData.FromString

    def data(tag: str) -> Any:
        assert content[tag].plugin_data.plugin_name == "hparams"
        return read(content[tag].plugin_data.content)

    experiment = data("_hparams_/experiment").experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["eval/episodic_return"]
    kinds = {info.name: api_pb2.DataType.Name(info.type) for info in experiment.hparam_infos}
    expected = {"env": "STRING", "lr": "FLOAT64", "double": "BOOL", "none": "STRING"}
    assert kinds == {k: f"DATA_TYPE_{v}" for k, v in expected.items()}
    session = data("_hparams_/session_start_info").session_start_info
    assert session.hparams["lr"].number_value == 1e-4 and session.hparams["double"].bool_value
    assert session.hparams["none"].string_value == "-"
    assert data("_hparams_/session_end_info").session_end_info.status == api_pb2.Status.Value("STATUS_SUCCESS")


@pytest.mark.parametrize(("status", "shown"), [("failed", "STATUS_FAILURE"), ("stopped", None)])
def test_the_session_ends_with_the_status_of_the_run(tmp_path: Path, status: Any, shown: str | None) -> None:
    start(new_log(tmp_path)).close(status)
    tag = "_hparams_/session_end_info"
    content = accumulator(tmp_path).summary_metadata
    assert (tag in content) is (shown is not None)
    if shown is not None:
        end = plugin_data_pb2.HParamsPluginData.FromString(content[tag].plugin_data.content).session_end_info
        assert end.status == api_pb2.Status.Value(shown)


def test_the_layout_matches_tags_that_exist(whole: Path) -> None:
    accumulated = accumulator(whole)
    (event,) = accumulated.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    titles = {category.title: [chart.title for chart in category.chart] for category in layout.category}
    assert titles == {title: list(charts) for title, charts in LAYOUT.items()}
    patterns = [p for category in layout.category for chart in category.chart for p in chart.multiline.tag]
    assert {p.strip("^$") for p in patterns} <= set(accumulated.Tags()["scalars"])


def test_text_is_written_once(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        for text in ("a", "a", "b"):
            log.text("config", text)
    accumulated = accumulator(tmp_path)
    assert accumulated.summary_metadata["config"].plugin_data.plugin_name == "text"
    assert [e.tensor_proto.string_val[0] for e in accumulated.Tensors("config")] == [b"a", b"b"]


# Stopping and resuming


def kill_and_resume(folder: Path, kept: int, lost: int, last: int = 200) -> None:
    """A run that saves after step `kept`, is killed after `kept + lost` steps, and resumes from the save."""
    first = start(new_log(folder))
    run(first, 1, kept)
    state = through_disk(first.state_dict())
    run(first, kept + 1, kept + lost)  # lost
    del first
    second = new_log(folder)
    second.resume(state)
    run(start(second), kept + 1, last).close()


# 14: three episodes end at that step, and may not be written yet. 100: an evaluation at exactly that step.
@pytest.mark.parametrize("kept", [0, 1, 14, 57, 100])
@pytest.mark.parametrize("lost", [0, 3, 60])
def test_a_resumed_record_equals_the_uninterrupted_record(tmp_path: Path, whole: Path, kept: int, lost: int) -> None:
    folder = tmp_path / "resumed"
    kill_and_resume(folder, kept, lost)
    assert (folder / METRICS).read_bytes() == (whole / METRICS).read_bytes()
    assert points(folder) == points(whole)
    assert len(event_files(folder)) == 2
    once = ("config", "custom_scalars__config__", "_hparams_/session_start_info", "_hparams_/session_end_info")
    assert [len(accumulator(folder).Tensors(tag)) for tag in once] == [1, 1, 1, 1]


def test_a_record_survives_many_kills(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "resumed"
    state: Mapping[str, Any] | None = None
    saved = 0
    for kill in (13, 40, 41, 90, 150):
        log = new_log(folder)
        if state is not None:
            log.resume(state)
        run(start(log), saved + 1, kill)
        saved, state = kill, through_disk(log.state_dict())
        run(log, kill + 1, kill + 5)
    log = new_log(folder)
    log.resume(state or {})
    run(log, saved + 1, 200).close()
    assert (folder / METRICS).read_bytes() == (whole / METRICS).read_bytes()
    assert points(folder) == points(whole)
    assert len(event_files(folder)) == 6
    assert [row["steps"] for row in read_metrics(folder / TIMING)] == list(range(30, 601, 30))


def test_a_session_killed_before_its_first_save_leaves_no_trace_in_the_record(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "resumed"
    log = run(start(new_log(folder)), 1, 57)
    state = through_disk(log.state_dict())
    lost = new_log(folder)
    lost.resume(state)
    run(lost, 58, 160)
    log = new_log(folder)
    log.resume(state)
    assert len(event_files(folder)) == 2
    run(log, 58, 200).close()
    assert (folder / METRICS).read_bytes() == (whole / METRICS).read_bytes()
    assert points(folder) == points(whole)


def test_later_logging_does_not_change_a_saved_state() -> None:
    log = run(new_log(None), 1, 57)
    state = log.state_dict()
    before = through_disk(state)
    run(log, 58, 65)
    assert str(state) == str(before)


def test_an_open_tensorboard_drops_the_points_that_were_cut_off(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "resumed"
    first = start(new_log(folder))
    run(first, 1, 100)
    state = through_disk(first.state_dict())
    run(first, 101, 160)
    watching = accumulator(folder)
    assert max(e.step for e in watching.Scalars("eval/episodic_return")) == 150 * ENVS * SKIP
    second = new_log(folder)
    second.resume(state)
    run(second, 101, 120)
    watching.Reload()
    # The evaluation at the step of the save is kept; the later one, which was cut off, is purged.
    assert [e.step for e in watching.Scalars("eval/episodic_return")] == [50 * ENVS * SKIP, 100 * ENVS * SKIP]


@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_a_damaged_record_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    log = run(new_log(tmp_path), 1, 50)
    state = log.state_dict()
    log.close("stopped")
    path = tmp_path / METRICS
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, 100)
    with pytest.raises(LogDamaged, match=rf"{METRICS} .*(missing|has 100 bytes).*in another folder"):
        new_log(tmp_path).resume(state)


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_bit_in_the_record_is_refused_by_name(tmp_path: Path, where: float, sessions: int) -> None:
    log = run(new_log(tmp_path), 1, 50)
    state = through_disk(log.state_dict())
    run(log, 51, 60)
    for _ in range(1, sessions):
        log.close("stopped")
        log = new_log(tmp_path)
        log.resume(state)
        run(log, 51, 70)
        state = through_disk(log.state_dict())
    log.close("stopped")
    data = bytearray((tmp_path / METRICS).read_bytes())
    data[int(where * (state["files"][METRICS] - 1))] ^= 1
    (tmp_path / METRICS).write_bytes(data)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LogDamaged, match=rf"{METRICS} have changed since the checkpoint.*in another folder"):
        new_log(tmp_path).resume(state)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_flipped_bit_after_the_checkpoint_is_cut_off(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "resumed"
    log = run(start(new_log(folder)), 1, 57)
    state = through_disk(log.state_dict())
    run(log, 58, 90).close("stopped")
    data = bytearray((folder / METRICS).read_bytes())
    data[state["files"][METRICS]] ^= 1
    (folder / METRICS).write_bytes(data)
    log = new_log(folder)
    log.resume(state)
    run(log, 58, 200).close()
    assert (folder / METRICS).read_bytes() == (whole / METRICS).read_bytes()


def test_a_checkpoint_without_a_checksum_loads_and_the_next_one_has_a_checksum(tmp_path: Path) -> None:
    log = run(new_log(tmp_path), 1, 50)
    state = through_disk(log.state_dict())
    log.close("stopped")
    digests = state.pop("digests")
    log = new_log(tmp_path)
    log.resume(state)
    assert log.state_dict()["digests"] == digests
    log.close("stopped")


def test_a_state_is_adopted_without_changing_a_file(tmp_path: Path) -> None:
    log = run(new_log(tmp_path), 1, 50)
    state = through_disk(log.state_dict())
    run(log, 51, 60).close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    log = new_log(tmp_path)
    log.load_state_dict(state)
    log.close("stopped")
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    log = new_log(tmp_path)
    log.load_state_dict(state)
    again = log.state_dict()
    assert again["digests"] == state["digests"]
    assert {name: again["files"][name] for name in state["files"]} == state["files"]
    log.close("stopped")


@pytest.mark.parametrize("line", [b"{\n", b"3\n", b'{"a": \xff}\n', b"[" * 100_000 + b"\n"])
def test_a_line_that_is_not_an_object_is_refused_by_number(tmp_path: Path, line: bytes) -> None:
    (tmp_path / METRICS).write_bytes(b'{"a": 1}\n' + line + b'{"a": 2}\n')
    with pytest.raises(LogDamaged, match=rf"{METRICS} is damaged: its line 2 is not a JSON object"):
        read_metrics(tmp_path)


def test_a_record_is_synced_before_its_sizes_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    log = run(new_log(tmp_path), 1, 20)
    files = log.state_dict()["files"]
    assert files.keys() == {path.name for path in tmp_path.iterdir()}
    assert set(synced) == {str(tmp_path), *(str(tmp_path / name) for name in files)}
    assert all((tmp_path / name).stat().st_size == size for name, size in files.items())


def test_tensorboard_files_may_be_deleted(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "resumed"
    log = run(new_log(folder), 1, 57)
    state = log.state_dict()
    log.close("stopped")
    event_files(folder)[0].unlink()
    timing = (folder / TIMING).read_bytes()
    os.truncate(folder / TIMING, len(timing) - 3)
    log = new_log(folder)
    log.resume(state)
    state = through_disk(log.state_dict())
    assert state["files"].keys() == {METRICS, TIMING, event_files(folder)[0].name}
    run(log, 58, 200).close()
    assert (folder / METRICS).read_bytes() == (whole / METRICS).read_bytes()
    assert [row["steps"] for row in read_metrics(folder / TIMING)] == [s for s in range(30, 601, 30) if s != 150]


def test_event_files_of_other_programs_are_not_touched(tmp_path: Path) -> None:
    other = tmp_path / "events.out.tfevents.1.profiler"
    other.write_bytes(b"x")
    log = Log(tmp_path)
    log.scalars({"a": 1.0}, Clock(1))
    state = log.state_dict()
    log.close("stopped")
    Log(tmp_path).resume(state)
    Log(tmp_path).restart()
    assert other.read_bytes() == b"x"
    assert list(tmp_path.iterdir()) == [other]


def test_a_folder_with_a_record_is_not_written_to_without_a_resume(tmp_path: Path) -> None:
    run(new_log(tmp_path), 1, 50).close()
    before = (tmp_path / METRICS).read_bytes()
    with pytest.raises(FileExistsError, match="holds the log of an earlier run"):
        Log(tmp_path).scalars({"a": 1.0}, Clock(1))
    assert (tmp_path / METRICS).read_bytes() == before
    log = new_log(tmp_path)
    log.restart()
    run(log, 1, 50).close()
    assert (tmp_path / METRICS).read_bytes() == before and len(event_files(tmp_path)) == 1


def test_states_of_a_newer_schema_and_late_resumes_are_refused(tmp_path: Path) -> None:
    state = Log(None).state_dict()
    with pytest.raises(LogDamaged, match="newer pliant"):
        Log(None).resume({**state, "schema": 99})
    log = Log(tmp_path)
    log.scalars({"a": 1.0}, Clock(1))
    with pytest.raises(RuntimeError, match="before anything is written"):
        log.resume(state)
    log.close()
    log.close("failed")
    with pytest.raises(RuntimeError, match="closed"):
        log.scalars({"a": 1.0}, Clock(2))


FULL = """
    import errno, resource, signal, sys
    from pathlib import Path
    from pliant.agents.hooks import Clock
    from pliant.agents.log import Log, LogWriteFailed
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the limit is an error of the write, as a full disk is
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    log = Log(Path(sys.argv[1]))
    try:
        with log:
            for i in range(1, 10_000):
                log.scalars({"eval/episodic_return": float(i)}, Clock(i))
    except LogWriteFailed as error:
        assert error.errno == errno.EFBIG, error.errno
        print(error)
"""


def test_a_full_disk_is_an_error_at_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "bytes are free there" in done.stdout and "make room and resume" in done.stdout
    assert read_metrics(tmp_path)[-1]["steps"] > 10


def test_closing_the_log_does_not_hide_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = start(Log(tmp_path))

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pliant.agents.log.os.write", full)
    with pytest.raises(LogWriteFailed, match=rf"{METRICS}: No space left on device; [\d,]+ bytes are free"), log:
        log.scalars({"a": 1.0}, Clock(1))


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr("pliant.agents.log.os.write", lambda d, data: write(d, bytes(data)[:7]))
    with Log(tmp_path) as log:
        log.scalars({"eval/episodic_return": 0.25}, Clock(3))
    monkeypatch.undo()
    assert read_metrics(tmp_path) == [{"frames": 3, "steps": 3, "updates": 0, "eval/episodic_return": 0.25}]
    assert points(tmp_path)["eval/episodic_return"] == [(3, 0.25)]


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Seconds:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(stream: io.StringIO, total: int, steps_a_second: int, seconds: int, resumed: int = 0) -> Progress:
    now = Seconds()
    progress = Progress(total, stream, now)
    for i in range(seconds + 1):
        now.now = float(i)
        progress.update(Clock(min(resumed + i * steps_a_second, total)), 21.5)
    return progress


def test_progress_in_a_log_file_is_a_few_complete_lines() -> None:
    stream = io.StringIO()
    watch(stream, 100_000_000, 1000, 3600).close()  # an hour of a run that takes a day
    lines = stream.getvalue().splitlines()
    assert 8 <= len(lines) <= 14 and "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert lines[0] == "  0%  10,000/100,000,000 steps  return 21.5  1,000 SPS  1d 03:46 left"


def test_progress_lines_in_a_log_file_are_at_least_ten_seconds_apart() -> None:
    stream = io.StringIO()
    watch(stream, 1000, 25, 40).close()
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["25%", "50%", "75%", "100%"]


def test_speed_is_measured_from_the_step_of_the_resume() -> None:
    stream = io.StringIO()
    watch(stream, 10_000, 100, 20, resumed=5000)
    assert stream.getvalue().splitlines()[0].endswith("60%  6,000/10,000 steps  return 21.5  100 SPS  0:40 left")


def test_progress_in_a_terminal_is_one_line_that_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(ProgressLine, "_width", lambda self: 30)
    progress = watch(stream, 1000, 10, 50)
    progress.note("checkpoint saved")
    progress.close()
    progress.close()
    text = stream.getvalue()
    assert text.count("\n") == 2 and text.endswith("\n") and "\rcheckpoint saved\n" in text
    shown = [line for line in text.replace("\n", "\r").split("\r") if line]
    assert max(map(len, shown)) == 29
    assert "50% ██████████░░" in shown[-1]


def test_progress_without_a_return_or_speed_is_shown() -> None:
    stream = Terminal()
    now = Seconds()
    progress = Progress(100, stream, now)
    progress.update(Clock(0))
    progress.update(Clock(100))
    assert "100%" in stream.getvalue() and "return -" in stream.getvalue() and "? left" in stream.getvalue()


def test_durations_are_formatted_in_readable_units() -> None:
    assert [duration(s) for s in (0, 42, 3723, 2 * 86400 + 3 * 3600 + 240)] == ["0:00", "0:42", "1:02:03", "2d 03:04"]

"""The log of a run: `metrics.jsonl`, and a copy of it as TensorBoard events.

    metrics.jsonl   one JSON object per line: {"frames", "steps", "updates", tag: value, …}, or a finished episode
    timing.jsonl    values that depend on the wall clock (speed, seconds per section)
    events.out.tfevents.*.pliant   the same values for TensorBoard, one file per session

`metrics.jsonl` is the record of the run. It does not depend on the wall clock, so a run that was killed and resumed
writes the same bytes as an uninterrupted one. The other files are views of it, for people.

The x-axis is environment frames, `steps * frame_skip`. Names follow CleanRL: `charts/episodic_return`,
`charts/episodic_length`, `charts/SPS` (agent steps per second), `losses/*`; and `eval/*`, `replay/*`, `time/*`.

JSON has no NaN. Numbers that are not finite are written as the strings "NaN", "Infinity" and "-Infinity" (protobuf's
convention), which Python's `float()` and JavaScript's `Number()` read; `read_metrics` converts them back to numbers.

Events are written synchronously: tensorboard's own writer passes them to a thread, which reports a full disk late or
never. One event per flush takes little time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.text.plugin_data_pb2 import TextPluginData
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from ..common.files import sync_folder
from ..common.spaces import Episode
from .clock import Clock

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
EVENTS = re.compile(r"events\.out\.tfevents\.(\d{10})\..*\.pliant")
SCHEMA = 1
Status = Literal["done", "failed", "stopped"]


class Band(NamedTuple):
    """Three tags that TensorBoard draws as a line with a band from `low` to `high`."""

    value: str
    low: str
    high: str


# Charts of TensorBoard's custom-scalars tab: regular expressions, which are matched at the start of a tag, or bands.
Charts = dict[str, tuple[str, ...] | tuple[Band, ...]]
EVAL_BAND = "eval: mean return, and its 95 % interval"
LAYOUT: dict[str, Charts] = {
    "Overview": {
        "episodic return: train and eval": ("^charts/episodic_return$", "^eval/episodic_return$"),
        EVAL_BAND: (Band("eval/episodic_return", "eval/episodic_return_low", "eval/episodic_return_high"),),
        "agent steps per second": ("^charts/SPS$",),
        "gradient steps": ("^charts/gradient_steps$",),
    }
}


class LogDamaged(RuntimeError):
    """The log files of a run do not match its checkpoint."""


class LogWriteFailed(OSError):
    """A line of the log could not be written (most often because the disk is full)."""


class _Accumulator:
    """Running sums, on the device, of metrics that are logged together."""

    def __init__(self, total: Tensor, count: int = 0) -> None:
        self.total = total  # [number of metrics]
        self.count = count


class _File:
    """A file opened for unbuffered appending; error messages name the file and the free disk space.

    `digest` is the digest of the file's content; every write updates it.
    """

    def __init__(self, path: Path, digest: hashlib.blake2b | None = None) -> None:
        self.path = path
        self.digest = digest
        self.failed = False
        try:
            self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise self._explained(error) from error

    def write(self, data: bytes) -> None:
        if self._descriptor is None:
            raise RuntimeError(f"the log is closed: {self.path}")
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise self._explained(error) from error
        if self.digest is not None:
            self.digest.update(data)

    def sync(self) -> int:
        """Make the content durable; return its size in bytes."""
        if self._descriptor is None:
            raise RuntimeError(f"the log is closed: {self.path}")
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._explained(error) from error
        return os.fstat(self._descriptor).st_size

    def _explained(self, error: OSError) -> LogWriteFailed:
        self.failed = True
        free = shutil.disk_usage(self.path.parent).free
        failed = LogWriteFailed(
            f"cannot write {self.path}: {error.strerror}; {free:,} bytes are free there. "
            "The last checkpoint is unchanged: make room and resume"
        )
        failed.errno = error.errno
        return failed

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _plain(value: Any) -> int | float | str:
    """A number in a form that JSON can hold; see the module's docstring for NaN."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` or `timing.jsonl` as dicts, with non-finite numbers as floats.

    If `path` is a run folder, its `metrics.jsonl` is read. A last line without a newline is left out: the run is still
    writing it, or was killed while writing.

    Raises:
        LogDamaged: Another line is not a JSON object; the message gives its number.
    """
    file = path / METRICS if path.is_dir() else path
    not_finite = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    rows = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise LogDamaged(f"{file} is damaged: its line {number} is not a JSON object. Restore it from a backup")
        rows.append({k: not_finite.get(v, v) if isinstance(v, str) else v for k, v in row.items()})
    return rows


class Log:
    """The log of a run.

    With `folder=None` all values stay in memory and no file is written. Files are opened at the first write, so that
    `resume` or `restart` can be called first. Without such a call, the first write to a folder that already holds a
    record raises FileExistsError.
    """

    def __init__(
        self, folder: Path | None, frame_skip: int = 1, *, log_every: int = 1000, episodes_in_mean: int = 20
    ) -> None:
        """`log_every`: environment steps between flushes; `episodes_in_mean`: number of episodes in `mean_return`."""
        if frame_skip < 1 or log_every < 1:
            raise ValueError(f"frame_skip and log_every must be at least 1, not {frame_skip} and {log_every}")
        self.folder = None if folder is None else Path(folder)
        self.frame_skip = frame_skip
        self.log_every = log_every
        self.latest: dict[str, float] = {}  # the last value of every tag
        self.layout = {title: dict(charts) for title, charts in LAYOUT.items()}  # before anything is written
        self._metrics: _File | None = None
        self._timing: _File | None = None
        self._events: _File | None = None
        self._closed = False
        self._sums: dict[tuple[str, ...], _Accumulator] = {}
        self._pending: list[tuple[int, float, int]] = []  # (frame, return, length) of episodes that ended together
        self._recent: deque[float] = deque(maxlen=episodes_in_mean)
        self._flushed = 0  # environment steps at the last flush
        self._frames: dict[str, int] = {}  # the last frame of every tag
        self._texts: dict[str, str] = {}  # sha256 of the latest text of every text tag
        self._hparams = False
        self._old_files: dict[str, int] = {}  # files of earlier sessions and their sizes
        self._digest = _digest()  # digest of the part of `metrics.jsonl` that belongs to the run
        self._cut: dict[str, int] | None = None  # sizes to which files are truncated before the next write
        self._mark: tuple[int, float] | None = None  # (steps, seconds) from which speed is measured

    # Methods that the run calls

    @property
    def mean_return(self) -> float | None:
        """Mean return of the latest `episodes_in_mean` episodes, or None before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def due(self, clock: Clock) -> bool:
        """True if the environment steps have passed a multiple of `log_every` since the last flush.

        This depends on the clock only, so a resumed run flushes at the same steps as an uninterrupted one.
        """
        if self._mark is None:
            self._mark = (clock.steps, time.perf_counter())
        return clock.steps // self.log_every > self._flushed // self.log_every

    def update(self, metrics: Mapping[str, Tensor], clock: Clock) -> None:
        """Add the metrics of one gradient update, 0-d tensors on one device, without waiting for the device.

        A name without a slash is a loss: `td_loss` becomes `losses/td_loss`. Updates may have different metrics (if the
        actor is updated every second time, for example); each metric is averaged over the updates that have it.

        Raises:
            TypeError: A metric is not a 0-d tensor.
        """
        del clock
        if not metrics:
            return
        tags = tuple(metrics)
        for tag, value in metrics.items():
            if not isinstance(value, Tensor) or value.ndim:
                given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
                raise TypeError(f"the metric {tag!r} must be a 0-d tensor, not {given}; host values go to `scalars`")
        with torch.no_grad():
            values = torch.stack(tuple(metrics.values()))
            group = self._sums.get(tags)
            if group is None:
                # Thousands of float32 losses are summed; double precision costs nothing here.
                kind = torch.float32 if values.device.type == "mps" else torch.float64
                group = self._sums[tags] = _Accumulator(torch.zeros(values.shape, dtype=kind, device=values.device))
            elif group.total.device != values.device:  # the first update after `resume`
                group.total = group.total.to(values.device, non_blocking=True)
            group.total.add_(values)
            group.count += 1

    def flush(
        self, clock: Clock, extra: Mapping[str, float] | None = None, seconds: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Write the mean of each metric that `update` collected since the last flush; return the written values by tag.

        The host waits for the device here.

        `extra`: present host values (learning rates, replay size), by tag. `seconds`: wall-clock seconds per section
        since the last flush, written as `time/<section>` in seconds per 1000 steps.
        """
        sums: dict[str, tuple[float, int]] = {}
        for tags, group in self._sums.items():
            if not group.count:
                continue
            for tag, total in zip(tags, group.total.tolist(), strict=True):
                tag = tag if "/" in tag else f"losses/{tag}"
                before, count = sums.get(tag, (0.0, 0))
                sums[tag] = (before + total, count + group.count)
            group.total.zero_()
            group.count = 0
        values: dict[str, float] = {tag: total / count for tag, (total, count) in sums.items()}
        values |= extra or {}

        now = time.perf_counter()
        steps, since = self._mark or (clock.steps, now)
        timing: dict[str, float] = {}
        if clock.steps > steps:
            timing["charts/SPS"] = (clock.steps - steps) / max(now - since, 1e-9)
            timing |= {f"time/{name}": 1000 * s / (clock.steps - steps) for name, s in (seconds or {}).items()}
        self._mark = (clock.steps, now)
        self._flushed = clock.steps

        frames = self.frame(clock)
        self._advance({**values, **timing, "charts/gradient_steps": clock.updates}, frames)
        if values:
            self._line(self._metrics_file(), clock, values)
        if timing and self._metrics_file() is not None:
            self._line(self._timing, clock, {"wall_time": round(time.time(), 3), **timing})
        self._emit_episodes(before=frames)
        self._scalars({**values, **timing, "charts/gradient_steps": clock.updates}, frames)
        return values

    def episode(self, episode: Episode, clock: Clock) -> None:
        """Write a finished episode.

        `metrics.jsonl` holds every episode, with its environment and seed. TensorBoard keeps only the last point of a
        step, so it shows the mean of the episodes that end at the same step.
        """
        frames = self.frame(clock)
        self._recent.append(float(episode.ret))
        values = {"charts/episodic_return": float(episode.ret), "charts/episodic_length": int(episode.length)}
        self._advance(values, frames)
        where = {"env": int(episode.env), "seed": int(episode.seed)}
        if episode.task is not None:
            where["task"] = int(episode.task)
        self._line(self._metrics_file(), clock, {**values, **where})
        self._emit_episodes(before=frames)
        self._pending.append((frames, float(episode.ret), int(episode.length)))

    def scalars(self, values: Mapping[str, float], clock: Clock, shown: Mapping[str, float] | None = None) -> None:
        """Write present host values (an evaluation, a monitor's table).

        `shown`: the values for TensorBoard, if they differ from `values`.
        """
        shown = values if shown is None else shown
        if not values and not shown:
            return
        frames = self.frame(clock)
        self._advance({**values, **shown}, frames)
        if values:
            self._line(self._metrics_file(), clock, values)
        if shown:
            self._scalars(shown, frames)

    def points(self, values: Mapping[str, float], frames: int) -> None:
        """Write values to TensorBoard only, at a frame that may be earlier than the present one.

        Raises:
            ValueError: The frame is earlier than the last one of a tag.
        """
        self._move_on(values, frames)
        self._scalars(values, frames)

    def image(self, tag: str, png: bytes, size: tuple[int, int], clock: Clock) -> None:
        """Write an image (PNG; width and height in pixels) to TensorBoard only."""
        frames = self.frame(clock)
        self._move_on((tag,), frames)
        image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=png)
        self._summary(Summary.Value(tag=tag, image=image), frames=frames)

    def text(self, tag: str, markdown: str) -> None:
        """Write a text (the configuration, for example) to TensorBoard; an unchanged text is not written again."""
        digest = hashlib.sha256(markdown.encode()).hexdigest()
        if self._texts.get(tag) == digest:
            return
        self._texts[tag] = digest
        content = TextPluginData(version=0).SerializeToString()
        data = SummaryMetadata.PluginData(plugin_name="text", content=content)
        self._summary(_tensor_value(tag, SummaryMetadata(plugin_data=data), markdown.encode(), shape=(1,)))

    def hparams(self, values: Mapping[str, Any], metrics: Iterable[str] = ("eval/episodic_return",)) -> None:
        """Register this run in TensorBoard's HParams tab, in its own event file; once per run.

        `values` is flat; use the same dozen keys in all runs. None is shown as "-"; values that are not bools, numbers
        or strings are shown as their `str`. `metrics` are the tags whose latest value the tab shows.
        """
        if self._hparams:
            return
        self._hparams = True
        experiment = api_pb2.Experiment(
            metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
        )
        session = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in values.items():
            # bool first, since it is a subclass of int.
            if isinstance(value, bool):
                kind, session.hparams[name].bool_value = "DATA_TYPE_BOOL", value
            elif isinstance(value, int | float):
                kind, session.hparams[name].number_value = "DATA_TYPE_FLOAT64", value
            else:
                kind, session.hparams[name].string_value = "DATA_TYPE_STRING", "-" if value is None else str(value)
            experiment.hparam_infos.append(api_pb2.HParamInfo(name=name, type=api_pb2.DataType.Value(kind)))
        self._summary(
            _hparams_value(hparams_metadata.EXPERIMENT_TAG, experiment=experiment),
            _hparams_value(hparams_metadata.SESSION_START_INFO_TAG, session_start_info=session),
        )

    def close(self, status: Status = "done") -> None:
        """Close the log; a second call does nothing. A "stopped" run may resume, so its HParams session stays open."""
        if self._closed:
            return
        try:
            # After a failed write, further writes would fail again and hide the cause.
            opened = [file for file in (self._metrics, self._timing, self._events) if file is not None]
            if len(opened) in (0, 3) and not any(file.failed for file in opened):
                self._emit_episodes()
                if self._hparams and status != "stopped":
                    outcome = "STATUS_SUCCESS" if status == "done" else "STATUS_FAILURE"
                    info = plugin_data_pb2.SessionEndInfo(
                        status=api_pb2.Status.Value(outcome), end_time_secs=time.time()
                    )
                    self._summary(_hparams_value(hparams_metadata.SESSION_END_INFO_TAG, session_end_info=info))
        finally:
            self._closed = True
            for file in opened:
                file.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("done" if kind is None else "failed")

    # Stopping and resuming

    def state_dict(self) -> dict[str, Any]:
        """The values that are collected but not yet written, and the present size of every file (made durable first).

        Writes no line: the log must not depend on the times of checkpoints.
        """
        self._metrics_file()
        files = dict(self._old_files)
        if self.folder is not None:
            for file in (self._metrics, self._timing, self._events):
                assert file is not None
                files[file.path.name] = file.sync()
        return {
            "schema": SCHEMA,
            "files": files,
            "digests": {} if self.folder is None else {METRICS: self._digest.hexdigest()},
            "sums": [
                {"tags": list(tags), "total": group.total.cpu().clone(), "count": group.count}
                for tags, group in self._sums.items()
            ],
            "pending": list(self._pending),
            "recent": list(self._recent),
            "flushed": self._flushed,
            "frames": dict(self._frames),
            "latest": dict(self.latest),
            "texts": dict(self._texts),
            "hparams": self._hparams,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint, after a check of `metrics.jsonl` against it. Changes no file.

        Files are truncated later, by `go_on` or before the first write. A checkpoint of an earlier version has no
        checksum; then only the size is checked.

        Raises:
            LogDamaged: `metrics.jsonl` is missing, shorter than at the checkpoint, or has other content; or a newer
                version wrote the state.
            RuntimeError: The log has been written to already.
        """
        if self._metrics is not None or self._closed:
            raise RuntimeError("resume a log before anything is written to it")
        if state["schema"] > SCHEMA:
            raise LogDamaged(f"this log was written by a newer pliant (schema {state['schema']}; known: {SCHEMA})")
        if self.folder is not None:
            files: dict[str, int] = dict(state["files"])
            if METRICS in files:
                self._digest = _checked(self.folder / METRICS, files[METRICS], state.get("digests", {}).get(METRICS))
            self._cut = files
        self._sums = {tuple(s["tags"]): _Accumulator(s["total"].clone(), s["count"]) for s in state["sums"]}
        self._pending = [tuple(episode) for episode in state["pending"]]
        self._recent = deque(state["recent"], maxlen=self._recent.maxlen)
        self._flushed = state["flushed"]
        self._frames = dict(state["frames"])
        self.latest = dict(state["latest"])
        self._texts = dict(state["texts"])
        self._hparams = state["hparams"]

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue the log from a checkpoint; every file is truncated to its size at the checkpoint.

        TensorBoard's events and `timing.jsonl` are views and may be deleted at any time to save space; deleted parts
        are not restored.

        Raises:
            LogDamaged: As `load_state_dict`.
            LogWriteFailed: A file cannot be truncated.
        """
        self.load_state_dict(state)
        self.go_on()

    def go_on(self) -> None:
        """Truncate every file to its size at the loaded checkpoint, and open the files.

        Does nothing if no state was loaded, or at a second call.

        Raises:
            LogWriteFailed: A file cannot be truncated.
        """
        if self.folder is None or self._cut is None:
            return
        files, self._cut = self._cut, None
        sessions = self._event_files()
        for name in (METRICS, TIMING, *sessions):
            path = self.folder / name
            try:
                if name not in files:
                    path.unlink(missing_ok=True)
                elif path.exists():
                    _truncate(path, files[name])
                    if EVENTS.fullmatch(name):
                        self._old_files[name] = path.stat().st_size
            except OSError as error:
                failed = LogWriteFailed(f"cannot truncate {path} to its size at the checkpoint: {error.strerror}")
                failed.errno = error.errno
                raise failed from error
        # An open TensorBoard still has the points that were cut off; the START event of a new file removes them.
        self._open(first_frame=max(self._frames.values(), default=-1) + 1, sessions=sessions)

    def restart(self) -> None:
        """Delete the log of an earlier attempt that left no checkpoint.

        Raises:
            RuntimeError: The log has been written to already.
        """
        if self._metrics is not None or self._closed:
            raise RuntimeError("restart a log before anything is written to it")
        if self.folder is not None:
            for name in (METRICS, TIMING, *self._event_files()):
                (self.folder / name).unlink(missing_ok=True)

    # Writing

    def frame(self, clock: Clock) -> int:
        """The position of a moment on the x-axis, in environment frames."""
        return clock.steps * self.frame_skip

    def _move_on(self, tags: Iterable[str], frames: int) -> None:
        """Record the frame of each tag; ValueError if it is before the last one, as TensorBoard drops such points."""
        for tag in tags:
            last = self._frames.get(tag, -1)
            if frames < last:
                raise ValueError(f"{tag} was logged at frame {last} and cannot be logged at frame {frames} after that")
            self._frames[tag] = frames

    def _advance(self, values: Mapping[str, float], frames: int) -> None:
        self._move_on(values, frames)
        self.latest |= {tag: float(value) for tag, value in values.items()}

    def _event_files(self) -> list[str]:
        assert self.folder is not None
        if not self.folder.is_dir():
            return []
        return sorted(name for name in os.listdir(self.folder) if EVENTS.fullmatch(name))

    def _metrics_file(self) -> _File | None:
        """The open `metrics.jsonl`, or None if the log writes no files."""
        if self.folder is not None and self._metrics is None:
            if self._closed:
                raise RuntimeError("the log is closed")
            if self._cut is not None:
                self.go_on()
                return self._metrics
            left = [name for name in (METRICS, TIMING, *self._event_files()) if (self.folder / name).exists()]
            if left:
                raise FileExistsError(
                    f"{self.folder} holds the log of an earlier run ({', '.join(left)}): resume it, or start over"
                )
            self._open()
            self._layout()
        return self._metrics

    def _open(self, first_frame: int = 0, sessions: Iterable[str] = ()) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads event files in the order of their names, so the name of a later session must sort after that
        # of an earlier one, even if both started in the same second, or on machines with different clocks.
        before = [int(match[1]) for name in sessions if (match := EVENTS.fullmatch(name))]
        second = max([int(time.time()), *(seconds + 1 for seconds in before)])
        events = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.pliant"
        self._metrics = _File(self.folder / METRICS, self._digest)
        self._timing = _File(self.folder / TIMING)
        self._events = _File(self.folder / events)
        sync_folder(self.folder)
        self._event(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._event(Event(wall_time=time.time(), step=first_frame, session_log=start))

    def _line(self, file: _File | None, clock: Clock, values: Mapping[str, float]) -> None:
        if file is None:
            return
        row: dict[str, Any] = {"frames": self.frame(clock), "steps": clock.steps, "updates": clock.updates}
        row |= {tag: _plain(value) for tag, value in values.items()}
        file.write((json.dumps(row, allow_nan=False) + "\n").encode())

    def _event(self, event: Event) -> None:
        if self.folder is None:
            return
        if self._events is None:
            self._metrics_file()
        assert self._events is not None
        RecordWriter(self._events).write(event.SerializeToString())

    def _summary(self, *values: Summary.Value, frames: int = 0) -> None:
        self._event(Event(wall_time=time.time(), step=frames, summary=Summary(value=values)))

    def _scalars(self, values: Mapping[str, float], frames: int) -> None:
        self._summary(*(Summary.Value(tag=k, simple_value=float(v)) for k, v in values.items()), frames=frames)

    def _emit_episodes(self, before: int | None = None) -> None:
        """Write the mean of the pending episodes to TensorBoard, if they ended before frame `before` (None: always)."""
        if not self._pending or (before is not None and self._pending[0][0] >= before):
            return
        frames, count = self._pending[0][0], len(self._pending)
        returns, lengths = (sum(episode[i] for episode in self._pending) / count for i in (1, 2))
        self._pending = []
        self._scalars({"charts/episodic_return": returns, "charts/episodic_length": lengths}, frames)

    def _layout(self) -> None:
        layout = layout_pb2.Layout(
            category=[
                layout_pb2.Category(title=title, chart=[_chart(name, tags) for name, tags in charts.items()])
                for title, charts in self.layout.items()
            ]
        )
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
        self._summary(_tensor_value("custom_scalars__config__", metadata, layout.SerializeToString()))


def _chart(title: str, tags: tuple[str, ...] | tuple[Band, ...]) -> layout_pb2.Chart:
    bands = [tag for tag in tags if isinstance(tag, Band)]
    if not bands:
        return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))
    series = [layout_pb2.MarginChartContent.Series(value=b.value, lower=b.low, upper=b.high) for b in bands]
    return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=series))


def _tensor_value(tag: str, metadata: SummaryMetadata, content: bytes, shape: tuple[int, ...] = ()) -> Summary.Value:
    dims = TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in shape])
    tensor = TensorProto(dtype="DT_STRING", string_val=[content], tensor_shape=dims)
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def _hparams_value(tag: str, **info: Any) -> Summary.Value:
    metadata = hparams_metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**info))
    return Summary.Value(tag=tag, metadata=metadata, tensor=hparams_metadata.NULL_TENSOR)


def _digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _checked(path: Path, size: int, digest: str | None) -> hashlib.blake2b:
    """The digest of the first `size` bytes of a file.

    Raises:
        LogDamaged: The file is missing, unreadable or too short, or `digest` is given and differs.
    """
    then = f"{size:,} bytes at the checkpoint"
    way_out = "Restore it from a backup, or start over in another folder"
    running, left = _digest(), size
    try:
        with path.open("rb") as file:
            there = os.fstat(file.fileno()).st_size
            if there < size:
                raise LogDamaged(f"{path} has {there:,} bytes, and had {then}. {way_out}")
            while left and (block := file.read(min(left, 1 << 20))):
                running.update(block)
                left -= len(block)
    except FileNotFoundError:
        raise LogDamaged(f"{path} is missing; it had {then}. {way_out}") from None
    except OSError as error:
        raise LogDamaged(f"{path} cannot be read: {error.strerror}. {way_out}") from error
    if digest is not None and running.hexdigest() != digest:
        raise LogDamaged(f"the first {size:,} bytes of {path} have changed since the checkpoint. {way_out}")
    return running


def _truncate(path: Path, size: int) -> None:
    """Truncate a file to `size` bytes; a shorter `.jsonl` file is truncated after its last complete line."""
    with path.open("r+b") as file:
        if path.stat().st_size >= size:
            file.truncate(size)
        elif path.suffix == ".jsonl":
            file.truncate(file.read().rfind(b"\n") + 1)
        os.fsync(file.fileno())

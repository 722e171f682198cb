"""A pool of single-threaded processes that executes runs on one machine. Only the run folders record progress.

Finished runs are not repeated, and interrupted runs continue from their checkpoints, to the last bit. So a pool may be
stopped or killed at any moment and started again. Workers are forked from a server that has already imported torch,
which saves three seconds per run. A run's output goes to `output.log` in its folder, its cost to `cost.jsonl`.

If the pool ends for any reason, its workers save, as after any SIGTERM, and exit.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any, Literal, TextIO

import torch

from ...agents.checkpoint import FolderUnusable, RunLock, RunLocked, make_folder
from ...agents.progress import ProgressLine, duration
from ...agents.stopping import graceful_stop
from ...common.files import write_whole
from ...common.spinning import bounded
from ..commands.exits import TERMINATED, exit_code
from ..errors import BadInput
from . import folder
from .config import RunConfig, differences, load, run_folder
from .folder import FAILURE, STOPPED
from .training import train

OUTPUT, COST = "output.log", "cost.jsonl"
TAIL = 5  # number of last lines shown of a failed run
LOST = 255  # multiprocessing's exit code of a worker whose server is gone
SERVERS = 3  # servers tried for one run before it counts as failed
GRACE = 120.0  # seconds that a run has to save before it is killed
# Modules that every run imports, some as late as its first optimizer: two seconds, once for all runs.
PRELOAD = (
    "pliant.lab.experiments.pool_server",
    "pliant.lab.experiments.training",
    "pliant.envs.control",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "numpy.fft",
)

Status = Literal["done", "failed", "stopped", "waiting"]


@dataclass(frozen=True)
class Job:
    """A run for the pool.

    Attributes:
        config: The run's configuration; its `run` is the folder (None: the default folder).
        line: The arguments of its `pliant train` command, for the record in the folder.
        seconds: Expected time on one core; 0 if unknown.
    """

    config: RunConfig
    line: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def folder(self) -> Path:
        return run_folder(self.config)


@dataclass(frozen=True, kw_only=True)
class Call(Job):
    """A function for the pool, called in a process of one thread. Its result is written to a file as JSON.

    Attributes:
        function: A function that a new process can import.
        file: The file of the result; the call is done if it exists.
        log: The folder of the output and the cost.
    """

    config: RunConfig = field(default_factory=RunConfig)
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    file: Path
    log: Path

    @property
    def folder(self) -> Path:
        return self.log

    def make_result(self) -> int:
        torch.set_num_threads(1)
        result = self.function(*self.arguments)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, json.dumps(result) + "\n")
        return 0


@dataclass
class Outcome:
    """The result of a job: done, failed, stopped (saved, and able to continue) or waiting (never started here).

    `ran` is False for a job that was done before. `attempts` counts the processes started for it. `tail` holds the last
    lines printed by a failed run.
    """

    job: Job
    status: Status = "waiting"
    ran: bool = False
    attempts: int = 0
    tail: tuple[str, ...] = ()


def is_done(job: Job) -> bool:
    """Does the folder hold this run, finished? (BadInput if it holds another run; FileDamaged if DONE is damaged.)"""
    if isinstance(job, Call):
        return job.file.exists()
    if not folder.is_done(job.folder, job.config):
        return False
    there = load(job.folder)
    # Chosen by the run's own process if the job does not set them.
    settled = replace(job.config, device=there.device, threads=there.threads)
    if changed := [name for name in differences(there, settled) if name not in folder.FREE]:
        raise BadInput(f"{job.folder} holds another run, which differs in {', '.join(changed)}; move it away")
    return True


def costs(place: Path) -> list[dict[str, float]]:
    """Seconds of processor time (`cpu`) and of wall clock (`wall`) of every session of the run in a folder.

    Other lines in the file are skipped with a message, since only a sum depends on them.
    """
    file, sessions, others = place / COST, [], 0
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        print(f"{file} cannot be read, and is left out: {error.strerror}", file=sys.stderr)
        return []
    for line in lines:
        try:
            session = json.loads(line)
            sessions.append({name: float(session[name]) for name in ("cpu", "wall")})
            others += not all(map(math.isfinite, sessions[-1].values()))
        except (ValueError, KeyError, TypeError, RecursionError):
            others += 1
    if others:
        print(f"{file}: {others} of {len(lines)} lines do not hold a session's cost and are skipped", file=sys.stderr)
    return [session for session in sessions if all(map(math.isfinite, session.values()))]


def cost(place: Path) -> float:
    """Seconds of processor time of all recorded sessions of a run."""
    return sum(session["cpu"] for session in costs(place))


def run_all(
    jobs: Iterable[Job],
    *,
    workers: int = 1,
    budget: float | None = None,
    progress: Progress | None = None,
    finished: Callable[[Outcome], None] = lambda outcome: None,
    gpus: Sequence[str] = (),
) -> list[Outcome]:
    """Run the jobs that are not done, `workers` at a time, in the given order. Returns the outcome of every job.

    Args:
        jobs: The runs. Two may not share a folder.
        workers: Processes at a time.
        budget: Seconds of wall clock after which no run is started and running ones are asked to save and stop.
        progress: Displays the progress; None for no display.
        finished: Called in this process whenever a job is done, also for those that were done before.
        gpus: Values of `CUDA_VISIBLE_DEVICES` for the processes, one entry per process that may run at a time (a
            shared GPU appears several times); if empty, the variable is unchanged.

    SIGINT and SIGTERM act like the end of the budget; a second signal kills the runs.

    Raises:
        BadInput: Two jobs share a folder, or a folder holds another run.
    """
    outcomes = [Outcome(job) for job in jobs]
    folders = [outcome.job.folder.resolve() for outcome in outcomes]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise BadInput(f"two runs want the folder {twice}: give one of them another --run or --seed")
    if workers < 1:
        raise BadInput(f"a pool has at least one worker, not {workers}")
    workers = min(workers, len(gpus)) if gpus else workers
    queue: deque[Outcome] = deque()
    for outcome in outcomes:
        if is_done(outcome.job):
            outcome.status = "done"
            finished(outcome)
        else:
            queue.append(outcome)
    if not queue:
        return outcomes
    ends = None if budget is None else time.monotonic() + budget
    shown = progress or Progress(None)
    with graceful_stop() as stop, _Workers(gpus) as team:
        while queue or team.busy:
            over = stop() or (ends is not None and time.monotonic() >= ends)
            if over:
                team.stop()
                queue.clear()
            while queue and len(team.busy) < workers:
                if not team.start(outcome := queue.popleft()):
                    shown.note(_failure(outcome))
            for outcome in team.wait(0.2):
                if outcome.status == "waiting":  # killed from outside, and tried again
                    if not over:
                        queue.appendleft(outcome)
                    continue
                if outcome.status == "done":
                    finished(outcome)
                if outcome.status == "failed":
                    shown.note(_failure(outcome))
            shown.update(outcomes, len(team.busy), workers, ends)
    shown.close()
    return outcomes


def _failure(outcome: Outcome) -> str:
    return "\n    ".join([f"failed: {outcome.job.folder / OUTPUT}", *outcome.tail])


class _ServerLost(RuntimeError):
    """The process from which workers are forked was killed, and so were its replacements."""


class _Workers:
    """The running processes, each with its job."""

    def __init__(self, gpus: Sequence[str] = ()) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.busy: dict[Any, Outcome] = {}
        self.free = list(gpus)
        self.gpus: dict[Any, str] = {}
        self.stopping: float | None = None

    def __enter__(self) -> _Workers:
        with one_thread():
            self.context.set_forkserver_preload(list(PRELOAD))
            forkserver.ensure_running()
        return self

    def __exit__(self, *error: object) -> None:
        """After an error or a second signal, kill all processes that are still running."""
        for process in self.busy:
            process.kill()
        for process in self.busy:
            process.join()

    def start(self, outcome: Outcome) -> bool:
        """Start a run. False: it could not be started and has failed; other runs are unaffected."""
        outcome.attempts += 1
        outcome.ran = True
        gpu = self.free[0] if self.free else None
        try:
            make_folder(outcome.job.folder)
            process = self._forked(outcome.job, gpu)
        except (FolderUnusable, _ServerLost) as error:
            outcome.status, outcome.tail = "failed", (str(error),)
            if isinstance(error, _ServerLost):
                mark_failed(outcome.job.folder, str(error))
            return False
        self.busy[process] = outcome
        if gpu is not None:
            self.gpus[process] = self.free.pop(0)
        return True

    def _forked(self, job: Job, gpu: str | None) -> Any:
        """A process that executes the run. A killed server is restarted."""
        for _ in range(SERVERS):
            process = self.context.Process(target=_work, args=(job, gpu))
            try:
                with one_thread():
                    process.start()
            except (EOFError, ConnectionError):
                # If it was forked already, it ends now, and its successor waits for that.
                time.sleep(0.2)
            else:
                return process
        raise _ServerLost(f"the server of the pool was killed {SERVERS} times while the run was begun")

    def stop(self) -> None:
        """Ask all processes to save and exit; kill those that do not."""
        if self.stopping is None:
            self.stopping = time.monotonic()
            for process in self.busy:
                process.terminate()
        elif time.monotonic() > self.stopping + GRACE:
            for process in self.busy:
                process.kill()

    def wait(self, seconds: float) -> Iterator[Outcome]:
        """The jobs that have ended meanwhile, with their outcomes."""
        ended = connection.wait([process.sentinel for process in self.busy], timeout=seconds)
        for process in [p for p in self.busy if p.sentinel in ended]:
            process.join()
            outcome = self.busy.pop(process)
            if process in self.gpus:
                self.free.append(self.gpus.pop(process))
            code = process.exitcode
            if code == LOST:
                code = _ended(process.pid, outcome.job)
            outcome.status = self._status(outcome, code)
            if outcome.status == "failed":
                outcome.tail = tail(outcome.job.folder / OUTPUT, how_it_ended(code))
                mark_failed(outcome.job.folder, how_it_ended(code))
            yield outcome

    def _status(self, outcome: Outcome, code: int) -> Status:
        if code == 0:
            return "done"
        if code == STOPPED or (self.stopping is not None and code in (-signal.SIGTERM, -signal.SIGKILL, LOST)):
            return "stopped"
        if code in (-signal.SIGKILL, LOST) and outcome.attempts < 2:
            return "waiting"
        return "failed"


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes started within have one thread in every library, because the thread pools of the server would not exist
    in its forks. In runs with more threads, waiting threads sleep, since other runs share the cores."""
    wanted = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | bounded(os.environ)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _ended(pid: int, job: Job) -> int:
    """The outcome of a worker whose server is gone, so that its exit code is unknown: it is asked to stop, and after it
    has ended, its folder decides."""
    try:
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + GRACE
        while time.monotonic() < until:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return 0 if is_done(job) else LOST


def tail(file: Path, end: str) -> tuple[str, ...]:
    """The last lines of an output file, and how the run ended."""
    try:
        text = file.read_text(errors="replace")
    except OSError:  # no output, or unreadable: how the run ended is reported in any case
        text = ""
    lines = [line for line in text.splitlines() if line.strip()]
    return (*lines[-TAIL:], end)


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code == LOST:
        return "lost, with the server of the pool"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def mark_failed(folder: Path, end: str) -> None:
    """Record in the folder that a run failed. The next attempt removes the record."""
    try:
        (folder / FAILURE).write_text(end + "\n")
    except OSError as error:  # many runs fail because the disk is full
        print(f"{folder / FAILURE} cannot be written: {error.strerror}", file=sys.stderr)


# ------------------------------------------------------------------------------------------------ in the worker


def _work(job: Job, gpu: str | None = None) -> None:
    """The main function of a worker process: one run."""
    os.setsid()  # only the pool handles Ctrl-C
    _leave_with_the_pool()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # torch reads it when it first uses a GPU, which is later
    sys.exit(work(job))


def work(job: Job) -> int:
    """Execute one run in this process, which must not be reused, with output to the folder. Returns the exit code."""
    try:
        output = os.open(job.folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        print(f"{job.folder / OUTPUT} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(output, stream.fileno())

    sys.argv = ["pliant", "train", *(job.line or ("--config", str(job.folder / "config.yaml")))]
    started, before = time.monotonic(), time.process_time()

    def run() -> int:
        if isinstance(job, Call):
            return job.make_result()
        wait_for_predecessor(job.folder)
        # One thread unless the run has more: how sums are split among threads affects their last bits.
        return train(replace(job.config, threads=job.config.threads or 1), "in a pool")

    try:
        code = exit_code(run)
        return STOPPED if code == TERMINATED else code  # stopped before there was anything to save
    finally:
        line = {"cpu": round(time.process_time() - before, 3), "wall": round(time.monotonic() - started, 3)}
        try:
            with (job.folder / COST).open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            print(f"{job.folder / COST} cannot be written: {error.strerror}", file=sys.stderr)


PREDECESSOR = 120.0  # seconds that a run waits for its previous process


def wait_for_predecessor(folder: Path) -> None:
    """Wait until no process runs in the folder: after the loss of a pool or node, its run may still be saving
    (RunLocked if it does not end)."""
    until = time.monotonic() + PREDECESSOR
    while True:
        try:
            RunLock(folder).release()
        except RunLocked:
            if time.monotonic() >= until:
                raise
            time.sleep(0.1)
        else:
            return


def _leave_with_the_pool() -> None:
    """Save and stop when the pool's process is gone."""
    pool = multiprocessing.parent_process()
    assert pool is not None

    def wait() -> None:
        connection.wait([pool.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


# ------------------------------------------------------------------------------------------------ progress


class Progress:
    """The progress of a pool on one line; no output if `stream` is None.

    On a terminal the line is rewritten at most five times per second. On other streams it is written after a change,
    but not within ten seconds of the last one.
    """

    def __init__(self, stream: TextIO | None, now: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now = stream, now
        self._line: ProgressLine | None = None
        self._begun = now()
        self._shown: tuple[float, str] = (-1e9, "")

    def update(self, outcomes: Sequence[Outcome], running: int, workers: int, ends: float | None = None) -> None:
        """Write the line if it is due."""
        if self._line is None:
            self._line = ProgressLine(len(outcomes), self._stream)
        text = self.text(outcomes, running, workers, ends)
        counts = text.rpartition(",")[0]
        age = self._now() - self._shown[0]
        if age >= 0.2 if self._line.terminal else age >= 10.0 and counts != self._shown[1]:
            self._line.write(sum(o.status == "done" for o in outcomes), text)
            self._shown = (self._now(), counts)

    def text(self, outcomes: Sequence[Outcome], running: int, workers: int, ends: float | None = None) -> str:
        count = {status: sum(o.status == status for o in outcomes) for status in ("done", "failed")}
        failed = f"{count['failed']} failed, " if count["failed"] else ""
        left = self._left(outcomes, workers, ends)
        return f"{count['done']} of {len(outcomes)} runs done, {running} running, {failed}{left}"

    def _left(self, outcomes: Sequence[Outcome], workers: int, ends: float | None) -> str:
        """Time left, estimated from the runs' expected and measured times; or until the budget ends."""
        elapsed = self._now() - self._begun
        ran = [o for o in outcomes if o.ran and o.status == "done"]
        left = [o for o in outcomes if o.status == "waiting"]
        known = all(o.job.seconds > 0 for o in outcomes)
        weigh: Callable[[Outcome], float] = (lambda o: o.job.seconds) if known else (lambda o: 1.0)
        if ran:
            rate = sum(map(weigh, ran)) / max(elapsed, 1e-9)
            seconds = sum(map(weigh, left)) / rate
        elif known:
            seconds = max(sum(map(weigh, left)) / workers - elapsed, 0.0)
        else:
            return "? left"
        over = ends is not None and elapsed + seconds > ends - self._begun
        return (
            f"{duration(max(ends - self._now(), 0.0))} left of the budget"
            if over and ends
            else (f"{duration(seconds)} left")
        )

    def note(self, text: str) -> None:
        """Write a separate message above the line."""
        (self._line or ProgressLine(1, self._stream)).note(text)

    def close(self) -> None:
        """End the display; the last line stays."""
        if self._line is not None:
            self._line.close()

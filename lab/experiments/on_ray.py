"""Runs on a Ray cluster, or on a local Ray: one task per run, with the run folders as the only record of progress.

The nodes must share the folders (NFS, Lustre, …) and have pliant installed. If a worker is killed or a node is lost,
another worker continues the run from its checkpoint, to the last bit. A run that fails by itself is not retried, since
it would fail again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...agents.stopping import graceful_stop
from ...common.spinning import bounded
from ..errors import BadInput
from .folder import STOPPED
from .pool import GRACE, OUTPUT, Job, Outcome, Progress, how_it_ended, is_done, mark_failed, tail, work
from .status import locked

RETRIES = 5
STOP = ".stop"  # in the folder of a run that must save and stop
STORE = 100 * 2**20  # bytes; results are a few numbers
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def do(job: Job, where: str) -> tuple[int, str]:
    """A task: one run, in a worker that ends with it. Returns its exit code and a message."""
    try:
        os.chdir(where)
        if not job.folder.is_dir():
            raise FileNotFoundError(job.folder)
    except OSError:
        return (
            1,
            f"{Path(where) / job.folder} does not exist on node {socket.gethostname()}: the nodes must share the "
            "folders",
        )
    if is_done(job):  # by a worker that was lost before its result arrived
        return 0, ""
    if (job.folder / STOP).exists():
        return STOPPED, ""
    threading.Thread(target=_watch, args=(job.folder / STOP,), daemon=True).start()
    try:
        code = work(job)
    except BaseException:
        import traceback

        traceback.print_exc()  # in the run's output, as at the end of every process
        code = 1
    return code, "" if code in (0, STOPPED) else how_it_ended(code)


def _watch(file: Path) -> None:
    """Ask this process to save and stop as soon as the file exists. Cancelling the task would end it for Ray at once,
    and the worker would be killed while it saves."""
    while not file.exists():
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)


def run_on_ray(
    jobs: Iterable[Job],
    *,
    workers: int = 0,
    gpus: float = 0.0,
    budget: float | None = None,
    progress: Progress | None = None,
    finished: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """`pool.run_all` on Ray: on the cluster at `RAY_ADDRESS`, or on a local one, started for this call.

    Args:
        workers: Runs at a time; 0 for the number of cores of the cluster (of this machine for a local Ray).
        gpus: GPUs of a run, possibly a fraction.

    Raises:
        BadInput: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise BadInput("--executor ray needs Ray: pip install -c constraints.txt -e '.[sweep]'") from None
    outcomes = [Outcome(job) for job in jobs]
    left = []
    for outcome in outcomes:
        if is_done(outcome.job):
            outcome.status = "done"
            finished(outcome)
        else:
            left.append(outcome)
    if not left:
        return outcomes
    shown = progress or Progress(None)
    _connect(ray, workers)
    try:
        with graceful_stop() as stop:  # within: Ray replaces our handler by its own
            _run(ray, outcomes, left, workers, gpus, budget, shown, finished, stop)
    finally:
        ray.shutdown()
    shown.close()
    return outcomes


def _connect(ray: Any, workers: int) -> None:
    address = os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": ONE_THREAD | bounded(os.environ)},
    }
    if address:
        try:
            ray.init(address=address, **settings)
        except (ConnectionError, ValueError) as error:
            why = " ".join(str(error).split())
            raise BadInput(f"there is no Ray cluster at RAY_ADDRESS={address}: {why}") from None
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=workers or os.cpu_count(),
            object_store_memory=STORE,
            **settings,
        )


def _run(
    ray: Any,
    outcomes: list[Outcome],
    left: list[Outcome],
    workers: int,
    gpus: float,
    budget: float | None,
    shown: Progress,
    finished: Callable[[Outcome], None],
    stop: Callable[[], bool],
) -> None:
    # A worker ends with its run, so that leftovers in its process cannot affect another run.
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, max_calls=1)(do)
    ends = None if budget is None else time.monotonic() + budget
    queue, pending = list(left), dict[Any, Outcome]()
    stopping: float | None = None
    forced = False
    while queue or pending:
        if stopping is None and (stop() or (ends is not None and time.monotonic() >= ends)):
            stopping = time.monotonic()
            queue.clear()
            for ref, outcome in pending.items():
                (outcome.job.folder / STOP).touch()
                if not locked(outcome.job.folder / ".lock"):
                    ray.cancel(ref)  # not started
        if stopping is not None and not forced and time.monotonic() > stopping + GRACE:
            forced = True
            for ref in pending:
                ray.cancel(ref, force=True)
        while queue and (not workers or len(pending) < workers):
            outcome = queue.pop(0)
            outcome.job.folder.mkdir(parents=True, exist_ok=True)
            (outcome.job.folder / STOP).unlink(missing_ok=True)
            absolute = replace(outcome.job, config=replace(outcome.job.config, run=str(outcome.job.folder)))
            pending[task.remote(absolute, os.getcwd())] = outcome
        ready, _ = ray.wait(list(pending), timeout=0.2) if pending else ([], [])
        for ref in ready:
            outcome = pending.pop(ref)
            outcome.ran, outcome.attempts = True, 1
            (outcome.job.folder / STOP).unlink(missing_ok=True)
            _outcome(ray, ref, outcome, stopping is not None)
            if outcome.status == "done":
                finished(outcome)
            elif outcome.status == "failed":
                shown.note("\n    ".join([f"failed: {outcome.job.folder / OUTPUT}", *outcome.tail]))
        cores = int(ray.cluster_resources().get("CPU", 1))
        shown.update(outcomes, min(len(pending), cores), workers or cores, ends)


def _outcome(ray: Any, ref: Any, outcome: Outcome, stopping: bool) -> None:
    """The outcome of a task."""
    folder = outcome.job.folder
    try:
        code, message = ray.get(ref)
    except ray.exceptions.TaskCancelledError:
        outcome.status = "done" if is_done(outcome.job) else "stopped"
        return
    except ray.exceptions.RayError as error:
        if is_done(outcome.job):
            outcome.status = "done"
            return
        outcome.attempts = RETRIES + 1
        code, message = 1, f"lost {RETRIES + 1} times: {' '.join(str(error).split())[:200]}"
        if isinstance(error, ray.exceptions.RayTaskError):
            message = " ".join(str(error.cause).split())[:300]
        if stopping:
            outcome.status = "stopped"
            return
    outcome.status = "done" if code == 0 else "stopped" if code == STOPPED else "failed"
    if outcome.status == "failed":
        outcome.tail = tail(folder / OUTPUT, message)
        mark_failed(folder, message)

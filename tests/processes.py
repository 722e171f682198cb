"""`pliant …` as a process of its own, without three to six seconds of imports for each. The process is forked from a
server that has imported the modules of a run, as the pool's workers are."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

from pliant.lab.experiments.pool import PRELOAD, one_thread


class Command:
    """A `pliant` command that runs; its output goes to a file.

    Args:
        arguments: The command line after `pliant`.
        file: A script that Python runs in the place of `pliant`.
    """

    def __init__(self, *arguments: str, file: Path | None = None) -> None:
        handle, name = tempfile.mkstemp(prefix="output", suffix=".log")
        os.close(handle)
        self.output = Path(name)
        context = multiprocessing.get_context("forkserver")
        with one_thread():
            context.set_forkserver_preload(list(PRELOAD))
            forkserver.ensure_running()
        self._process = context.Process(target=_work, args=(arguments, name, os.getcwd(), file))
        self._process.start()
        atexit.register(self._forget)

    def _forget(self) -> None:
        """Kill the process if a test has left it running, before Python waits for its end, and delete its output."""
        self._process.kill()
        self.output.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or minus the signal that killed it; None while it runs."""
        return self._process.exitcode

    def printed(self) -> str:
        """All that the command has printed so far."""
        return self.output.read_text()

    def wait_for_line(self, text: str) -> None:
        """Wait until the command has printed a line that begins with this text, or has ended."""
        while not any(line.startswith(text) for line in self.printed().splitlines()) and self.poll() is None:
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        """Wait for the end and return the exit code; after the timeout, kill the process and raise TimeoutError."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            self.send(signal.SIGKILL)
            raise TimeoutError(f"not done after {timeout} seconds:\n{self.printed()}")
        return code


def has_checkpoint(folder: Path) -> bool:
    """Whether the run in this folder has a complete checkpoint."""
    return any(path.suffix == "" for path in folder.glob("checkpoints/step_*"))


def outcome_of(*arguments: str, file: Path | None = None) -> tuple[int, str]:
    """Run a command to its end: its exit code and output."""
    command = Command(*arguments, file=file)
    return command.wait(), command.printed()


def _work(arguments: tuple[str, ...], output: str, folder: str, script: Path | None) -> None:
    os.setsid()  # a process group of its own, as in a terminal
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    from pliant.scripts.main import main

    sys.argv = [str(script or "pliant"), *arguments]
    if script is not None:
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
    sys.exit(main(arguments))

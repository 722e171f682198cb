"""`pliant …` as a process of its own, without three to six seconds of imports for each: forked from a server that has
imported what every run does, as the pool's workers are."""

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
    """A `pliant` command that runs; what it prints goes to a file.

    Args:
        words: What stands behind `pliant`.
        file: The script that Python is told to run in the place of `pliant`.
    """

    def __init__(self, *words: str, file: Path | None = None) -> None:
        handle, name = tempfile.mkstemp(prefix="output", suffix=".log")
        os.close(handle)
        self.output = Path(name)
        context = multiprocessing.get_context("forkserver")
        with one_thread():
            context.set_forkserver_preload(list(PRELOAD))
            forkserver.ensure_running()
        self._process = context.Process(target=_work, args=(words, name, os.getcwd(), file))
        self._process.start()
        atexit.register(self._forget)

    def _forget(self) -> None:
        """Kill what a test has left behind, before its end is waited for, and throw away what was printed."""
        self._process.kill()
        self.output.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or minus the signal that killed it; None while it runs."""
        return self._process.exitcode

    def said(self) -> str:
        """All that it has printed so far."""
        return self.output.read_text()

    def until_it_says(self, text: str) -> None:
        """Wait for a line that begins so, or for its end."""
        while not any(line.startswith(text) for line in self.said().splitlines()) and self.poll() is None:
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 300) -> int:
        """The exit code at its end; killed and an error if that does not come."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            self.send(signal.SIGKILL)
            raise TimeoutError(f"not done after {timeout} seconds:\n{self.said()}")
        return code


def outcome_of(*words: str, file: Path | None = None) -> tuple[int, str]:
    """Exit code and output of a command that is waited for."""
    command = Command(*words, file=file)
    return command.wait(), command.said()


def _work(words: tuple[str, ...], output: str, folder: str, script: Path | None) -> None:
    os.setsid()  # a group of its own, as a terminal makes it
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    from pliant.scripts.main import main

    sys.argv = [str(script or "pliant"), *words]
    if script is not None:
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
    sys.exit(main(words))

"""How commands end: an error gives one line and an exit code, and SIGTERM undoes unfinished work."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

FAILED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED, TERMINATED = 1, 2, 130, 141, 143
LONGEST_LINE = 2_000  # characters of an error message


def exit_code(command: Callable[[], int]) -> int:
    """Run a command. A user's mistake is reported in one line; a bug keeps its traceback.

    Users' mistakes are exactly the ValueErrors and ImportErrors that pliant itself defines (`BadInput`, `SpecError`,
    unknown environments, a replay that does not fit into memory). A plain ValueError may come from anywhere and
    counts as a bug, unless it was raised within `pliant.lab.errors.bad_input`. Other errors that pliant defines (a
    full disk, a folder in use, no good checkpoint) also give one line, but exit code 1.

    A command whose output goes to a pipe that has been closed (`pliant monitors | head -1`) ends without a message.
    """
    try:
        code = _run(command)
    except SystemExit:  # argparse, after --help
        if not _output_closed():
            raise
        return PIPE_CLOSED
    except BrokenPipeError:
        if not _output_closed():  # another pipe
            raise
        return PIPE_CLOSED
    return code or (PIPE_CLOSED if _output_closed() else 0)


def _output_closed() -> bool:
    """Whether the reading end of standard output has been closed. If so, remaining output is discarded, so that Python
    does not report it when the process ends."""
    try:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        descriptor = sys.stdout.fileno()
        pipe = select.poll()
        pipe.register(descriptor, 0)
        closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))
    except (AttributeError, OSError, ValueError):  # no standard output, or one without a descriptor
        return False
    if closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    return closed


def _run(command: Callable[[], int]) -> int:
    try:
        with _terminable():
            return command()
    except BrokenPipeError:  # an OSError that `exit_code` handles
        raise
    except (ValueError, ImportError) as error:
        return _reported(error, BAD_INPUT)
    except (RuntimeError, OSError) as error:
        return _reported(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated:
        return TERMINATED


class Terminated(BaseException):
    """SIGTERM was received by a command that has nothing to save."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that unfinished work is undone. `pliant train` replaces this handler
    while it trains. A process that ignores SIGTERM continues to ignore it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _reported(error: Exception, code: int) -> int:
    """Print one line for an error defined by pliant; raise any other error again."""
    if type(error).__module__.partition(".")[0] != "pliant":
        raise error
    print(f"error: {_as_line(str(error))}", file=sys.stderr)
    return code


def _as_line(text: str) -> str:
    """A text as one line of bounded length, with unprintable characters escaped."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 300]} ... {line[-250:]}"

"""How commands end: an error gives one line and an exit code, and SIGTERM undoes unfinished work."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
LONGEST_LINE = 2_000  # characters of an error message


def exit_code(command: Callable[[], int]) -> int:
    """Run a command. A user's mistake is reported in one line; a bug keeps its traceback.

    Users' mistakes are exactly the ValueErrors and ImportErrors that pliant itself defines (`BadInput`, `SpecError`,
    unknown environments, a replay that does not fit into memory). A plain ValueError may come from anywhere and
    counts as a bug, unless it was raised within `pliant.lab.errors.bad_input`. Other errors that pliant defines (a
    full disk, a folder in use, no good checkpoint) also give one line, but exit code 1.
    """
    try:
        with _terminable():
            return command()
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

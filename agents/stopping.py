"""How a run is stopped: a signal asks for it, and what takes long asks in turn whether it should.

A step ends before a stop is obeyed. What may take longer than anybody waits (an evaluation, a probe) calls `heed` in
its loop and is left in the midst of it, if the run has said that it can be done again from its beginning: within
`interruptible` alone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

Asked = Callable[[], bool]


class Interrupted(BaseException):
    """A stop was asked for in the midst of something that is done again from its beginning later.

    It is no `Exception`: nobody who deals with errors should take it for one.
    """


_asked: ContextVar[Asked | None] = ContextVar("asked", default=None)


def heed() -> None:
    """Leave what is being done if a stop is asked for and it is interruptible (Interrupted)."""
    asked = _asked.get()
    if asked is not None and asked():
        raise Interrupted


@contextmanager
def interruptible(asked: Asked | None) -> Iterator[None]:
    """Let `heed` leave the block when `asked` says so; nothing does if it is None."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def never() -> bool:
    """Nobody asks for a stop."""
    return False


@contextmanager
def graceful_stop() -> Iterator[Asked]:
    """SIGTERM and SIGINT ask for a stop, which is obeyed at the end of a step or where `heed` is called; a second one
    insists (KeyboardInterrupt)."""
    received: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def signals_held() -> Iterator[None]:
    """SIGTERM and SIGINT wait until the block is done: for files that belong together, which are written in no time."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)

"""Stopping of a run: a signal requests a stop, and long operations check for the request.

A run stops at the end of a step. An operation that may take very long (an evaluation, a probe) calls `heed` in its
loop. Within `interruptible`, a stop request interrupts it there, and the resumed run repeats it from its beginning.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

Asked = Callable[[], bool]


class Interrupted(BaseException):
    """A stop was requested during an operation that is repeated from its beginning later.

    Not a subclass of `Exception`, so that error handlers do not catch it.
    """


_asked: ContextVar[Asked | None] = ContextVar("asked", default=None)


def heed() -> None:
    """Interrupt the current operation if a stop is requested, within `interruptible`.

    Raises:
        Interrupted: A stop is requested.
    """
    asked = _asked.get()
    if asked is not None and asked():
        raise Interrupted


@contextmanager
def interruptible(asked: Asked | None) -> Iterator[None]:
    """Let `heed` interrupt the block when `asked()` is True; never if `asked` is None."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def never() -> bool:
    """A stop request that is never made."""
    return False


@contextmanager
def graceful_stop() -> Iterator[Asked]:
    """SIGTERM and SIGINT request a stop within the block. The run stops at the end of a step or at a call of `heed`.

    Yields a function that returns True once a stop is requested.

    Raises:
        KeyboardInterrupt: A second signal arrives; it stops the process at once.
    """
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
    """Delay SIGTERM and SIGINT until the end of the block, for a quick write of several files that belong together."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread alone
        return
    # Blocking the signals for this thread would not hold them: the system may deliver them to any other thread, and
    # Python then runs the handler here.
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, lambda caught, frame: received.append(caught))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught in dict.fromkeys(received):
            signal.raise_signal(caught)

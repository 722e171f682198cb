"""Progress on one line: a bar (tqdm) on a terminal, plain lines at intervals in a file."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

from .clock import Clock


def duration(seconds: float) -> str:
    """A duration as text: `0:42`, `1:02:03`, `2d 03:04`."""
    total = round(seconds)
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{total % 60:02d}" if hours else f"{minutes}:{total % 60:02d}"


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm without its thread, and without its lock between processes, which a display of one process does not need."""

    monitor_interval = 0
    _lock = threading.RLock()


class ProgressLine:
    """A line about work of `total` units: a bar and a text on a terminal, the text alone on other streams.

    On a terminal the line is rewritten in place, and cut at the terminal's width.
    """

    def __init__(self, total: int, stream: TextIO | None) -> None:
        self._total, self._stream = max(total, 1), stream
        self.terminal = stream is not None and stream.isatty()
        self._bar: Bar | None = None

    def write(self, done: int, text: str) -> None:
        """Show that `done` units are done, with a text."""
        if self._stream is None:
            return
        if not self.terminal:
            self._stream.write(text + "\n")
            self._stream.flush()
            return
        # On some terminals a line of full width wraps, and can then no longer be rewritten.
        done, width = min(done, self._total), max(self._width() - 1, 1)
        if self._bar is None:
            form: dict[str, Any] = {"bar_format": "{percentage:3.0f}% {bar:20}  {desc}", "ascii": "░█", "position": 0}
            self._bar = Bar(initial=done, total=self._total, desc=text, ncols=width, file=self._stream, **form)
        else:
            self._bar.n, self._bar.ncols = done, width
            self._bar.set_description_str(text)

    def note(self, text: str) -> None:
        """Write a separate line above this one."""
        if self._stream is None:
            return
        if self._bar is not None:
            self._bar.clear()
        self._stream.write(f"{text}\n")
        self._stream.flush()
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Finish the line and leave it on the terminal; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()

    def _width(self) -> int:
        assert self._stream is not None
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):  # the terminal does not report its width, or the stream has no descriptor
            return 80


class Progress:
    """Progress of a run of `total_steps` environment steps, on `stream` (stderr if None).

    On a terminal the line is rewritten at most ten times per second. On other streams complete lines are written: at
    every 5 %, and after 10, 20, 40 seconds … up to every ten minutes, but never within 10 seconds of the last one.
    """

    def __init__(
        self, total_steps: int, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = max(total_steps, 1)
        self._line = ProgressLine(self._total, sys.stderr if stream is None else stream)
        self._now = now
        self._shortest = 0.1 if self._line.terminal else 10.0  # seconds between two lines
        self._interval = self._shortest  # seconds after which a line is due, whatever its content
        self._last: float | None = None  # time of the last written line
        self._shown_steps = 0
        self._samples: deque[tuple[float, int]] = deque(maxlen=50)  # (seconds, steps), at least half a second apart

    def update(self, clock: Clock, mean_return: float | None = None) -> None:
        """Write the progress of the run, if it is time to."""
        now = self._now()
        if self._last is None:  # speed is measured from here, also in a resumed run
            self._last, self._shown_steps = now, clock.steps
            self._samples.append((now, clock.steps))
        if now - self._samples[-1][0] >= 0.5:
            self._samples.append((now, clock.steps))
        done = clock.steps >= self._total
        # Formatting the text costs more than all of the above, and most calls do not write a line.
        if not done and now - self._last < self._shortest:
            return
        text = self._text(clock, mean_return, now)
        if self._line.terminal:
            self._line.write(clock.steps, text)
        else:
            advanced = clock.steps - self._shown_steps
            if not done and now - self._last < self._interval and advanced < 0.05 * self._total:
                return
            if now - self._last >= self._interval:
                self._interval = min(2 * self._interval, 600.0)
            if advanced:
                self._line.write(clock.steps, f"{min(clock.steps / self._total, 1.0):4.0%}  {text}")
        self._last, self._shown_steps = now, clock.steps

    def note(self, text: str) -> None:
        """Write a separate line above the progress line."""
        self._line.note(text)

    def close(self) -> None:
        """Finish the progress line and leave it on the terminal; a second call does nothing."""
        self._line.close()

    def _text(self, clock: Clock, mean_return: float | None, now: float) -> str:
        since, steps = self._samples[0]
        speed = (clock.steps - steps) / (now - since) if now > since else 0.0
        left = duration((self._total - clock.steps) / speed) if speed > 0 else "?"
        score = "-" if mean_return is None else f"{mean_return:.4g}"
        return f"{clock.steps:,}/{self._total:,} steps  return {score}  {speed:,.0f} SPS  {left} left"

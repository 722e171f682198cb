"""A progress line for a run: rewritten in place on a terminal, written at intervals to a file."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from .clock import Clock

BAR = 20


def duration(seconds: float) -> str:
    """A duration as text: `0:42`, `1:02:03`, `2d 03:04`."""
    total = round(seconds)
    days, hours, minutes = total // 86400, total // 3600 % 24, total // 60 % 60
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{total % 60:02d}" if hours else f"{minutes}:{total % 60:02d}"


class Progress:
    """Progress of a run of `total_steps` environment steps, on `stream`.

    On a terminal the line is rewritten at most ten times per second, and truncated to the terminal's width. On other
    streams complete lines are written: at every 5 %, and after 10, 20, 40 seconds … up to every ten minutes, but never
    within 10 seconds of the last one.
    """

    def __init__(
        self, total_steps: int, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = max(total_steps, 1)
        self._stream = sys.stderr if stream is None else stream
        self._now = now
        self._terminal = self._stream.isatty()
        self._interval = 0.1 if self._terminal else 10.0
        self._last: float | None = None  # time of the last written line
        self._shown_steps = 0
        self._samples: deque[tuple[float, int]] = deque(maxlen=50)  # (seconds, steps), at least half a second apart
        self._line = ""
        self._stale = False
        self._closed = False

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
        if not done and now - self._last < (0.1 if self._terminal else 10.0):
            return
        self._line = self._text(clock, mean_return, now)
        if not self._terminal:
            advanced = clock.steps - self._shown_steps
            if not done and now - self._last < self._interval and advanced < 0.05 * self._total:
                return
            if now - self._last >= self._interval:
                self._interval = min(2 * self._interval, 600.0)
            if advanced:
                self._stream.write(self._line + "\n")
        else:
            self._draw()
        self._last, self._shown_steps = now, clock.steps
        self._stream.flush()

    def note(self, text: str) -> None:
        """Write a separate line above the progress line."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
        if self._terminal and self._line:
            self._draw()
        self._stream.flush()

    def close(self) -> None:
        """Finish the progress line and leave it on the terminal; a second call does nothing."""
        if not self._closed and self._terminal and self._line:
            self._stream.write("\n")
            self._stream.flush()
        self._closed = True

    def _draw(self) -> None:
        # On some terminals a line of full width wraps, and can then no longer be rewritten.
        self._stream.write("\r" + self._line[: max(self._width() - 1, 1)] + "\x1b[K")

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):  # the terminal does not report its width, or the stream has no descriptor
            return 80

    def _text(self, clock: Clock, mean_return: float | None, now: float) -> str:
        share = min(clock.steps / self._total, 1.0)
        since, steps = self._samples[0]
        speed = (clock.steps - steps) / (now - since) if now > since else 0.0
        left = duration((self._total - clock.steps) / speed) if speed > 0 else "?"
        score = "-" if mean_return is None else f"{mean_return:.4g}"
        parts = [f"{share:4.0%}", f"{clock.steps:,}/{self._total:,} steps", f"return {score}", f"{speed:,.0f} SPS"]
        parts.append(f"{left} left")
        if self._terminal:
            filled = int(share * BAR)
            parts[0] += " " + "█" * filled + "░" * (BAR - filled)
        return "  ".join(parts)

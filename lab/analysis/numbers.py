"""Numbers and intervals, formatted for people."""

from __future__ import annotations

import math

from ..statistics import Interval


def number(value: float) -> str:
    """Three digits."""
    if not math.isfinite(value):
        return "" if math.isnan(value) else str(value)
    if value == 0 or abs(value) < 1e-12:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interval(x: Interval) -> str:
    """`87 [60, 110]`, with as many decimal places as distinguish the two ends; `87` without an interval."""
    if not x.known or not math.isfinite(x.high - x.low):
        return number(x.estimate)
    width = x.high - x.low
    if width <= 1e-12 * max(abs(x.low), abs(x.high), 1e-300):
        return f"{number(x.estimate)} [{number(x.low)}, {number(x.high)}]"
    places = min(max(0, 1 - math.floor(math.log10(width))), 8)
    shown = [f"{v:,.{places}f}" for v in x]
    estimate, low, high = (s[1:] if float(s.replace(",", "")) == 0 and s.startswith("-") else s for s in shown)
    return f"{estimate} [{low}, {high}]"

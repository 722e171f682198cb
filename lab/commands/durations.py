"""Durations as users write them, such as 1h30m."""

from __future__ import annotations

import re

from ...common.specs import shorten
from ..errors import BadInput

LONGEST_BUDGET = 366 * 24 * 3600  # seconds


def seconds(text: str) -> float:
    """Seconds of a duration such as `30m`, `90s` or `1h30m` (BadInput)."""
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    total = sum(float(n) * u for n, u in zip(match.groups(), (3600, 60, 1), strict=True) if n) if match else 0.0
    if total <= 0:
        raise BadInput(f"--budget is a time like 30m, 90s or 1h30m, not {shorten(text)}")
    if total > LONGEST_BUDGET:
        raise BadInput(f"--budget must be at most {LONGEST_BUDGET // 3600:,}h, a year, not {shorten(text)}")
    return total

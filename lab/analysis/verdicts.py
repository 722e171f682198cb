"""Verdicts on the comparisons of a study: from the values of its runs to shown, not shown, contradicted, underpowered.

Let d be the difference in the expected direction and m the margin, the smallest difference that matters. For a
comparison such as a > b the verdict follows from the 95 % interval and the 90 % interval of d:

    shown          the 95 % interval lies above 0 and the 90 % interval reaches m: there is an effect, and it may be
                   large enough to matter
    contradicted   the reverse: the 95 % interval lies below 0 and the 90 % interval reaches -m
    not shown      the 90 % interval ends below m: an effect that matters is excluded (a one-sided test at 5 %); a
                   smaller effect may exist
    underpowered   none of these: the interval includes both no effect and an effect that matters; more seeds are needed

For a = b (equivalence):

    shown          the 90 % interval lies within (-m, m): two one-sided tests at 5 %
    contradicted   the 95 % interval lies beyond m, or beyond -m
    not shown      the 95 % interval excludes 0 and includes m or -m: there is a difference, which may matter
    underpowered   none of these

With fewer than three seeds there is no interval, and the verdict is underpowered. A claim is shown if all its
comparisons are shown. Otherwise its verdict is the worst of theirs: contradicted, not shown, underpowered. Because all
comparisons must hold, none is corrected for the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..experiments.predicates import Comparison
from ..statistics import FEWEST, Difference, against, paired, welch

Verdict = Literal["shown", "not shown", "contradicted", "underpowered", "not run"]
ORDER: tuple[Verdict, ...] = ("contradicted", "not shown", "underpowered", "not run", "shown")
"""Verdicts from the worst to the best."""


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison with its result; `why` explains the verdict."""

    comparison: Comparison
    verdict: Verdict
    difference: Difference | None
    why: str


def verdict_on(comparison: Comparison, difference: Difference) -> tuple[Verdict, str]:
    """The verdict and its reason, by the rules in the module's docstring."""
    if not difference.known:
        return "underpowered", f"{difference.seeds} seeds; there is no interval from fewer than {FEWEST}"
    if not math.isfinite(difference.estimate):
        return "underpowered", "a run has no such number"
    m = comparison.margin
    if comparison.expect == "equal":
        wide, narrow = difference.interval(0.95), difference.interval(0.90)
        if -m < narrow.low and narrow.high < m:
            return "shown", f"any difference is smaller than {m:g}"
        if wide.low >= m or wide.high <= -m:
            return "contradicted", f"they differ by more than {m:g}"
        if wide.low > 0 or wide.high < 0:
            return "not shown", f"they differ, perhaps by more than {m:g}"
        return "underpowered", f"no difference, or one of {m:g}: the interval has room for both"
    sign = 1.0 if comparison.expect == "higher" else -1.0
    turned = replace(difference, estimate=sign * difference.estimate)
    wide, narrow = turned.interval(0.95), turned.interval(0.90)
    if wide.low > 0 and narrow.high >= m:
        return "shown", "the interval excludes no effect"
    if wide.high < 0 and narrow.low <= -m:
        return "contradicted", "the effect is the other way round"
    if narrow.high < m:
        return "not shown", f"an effect of {m:g} is excluded"
    return "underpowered", (
        f"no effect, or one of {m:g}: the interval has room for both; these seeds could have shown "
        f"{difference.detectable():.2g}"
    )


def compare(comparison: Comparison, values: Mapping[str, Mapping[int, float]]) -> ComparisonResult:
    """The verdict of a comparison from the values of its arms, by seed."""
    first = values.get(comparison.a, {})
    second = values.get(comparison.b, {}) if isinstance(comparison.b, str) else first  # a number needs no runs
    if not first or not second:
        return ComparisonResult(comparison, "not run", None, "no results yet")
    shared = sorted(first.keys() & second.keys())
    if not isinstance(comparison.b, str):
        difference = against(list(first.values()), comparison.b)
    elif comparison.paired and shared:
        difference = paired([first[s] for s in shared], [second[s] for s in shared])
    else:
        difference = welch(list(first.values()), list(second.values()))
    verdict, why = verdict_on(comparison, difference)
    return ComparisonResult(comparison, verdict, difference, why)


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst verdict; `not run` if any comparison was not run."""
    given = set(verdicts)
    return "not run" if "not run" in given else next(verdict for verdict in ORDER if verdict in given)

"""The predicates of a study: the number read from each run, and the result expected of two arms.

    measures:
      accuracy in the last tasks: {read: losses/accuracy, last: 5}
    comparisons:
      - {a: layer_norm, b: plain, expect: higher, margin: 0.05, measure: accuracy in the last tasks}

A comparison without `measure` uses the first measure of the file, or the score of the report if the file has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...common.specs import LONGEST_SHOWN, shorten
from ...interventions.core.spec import did_you_mean
from .sections import Wrong, labelled, make

Expect = Literal["higher", "lower", "equal"]
SERIES = ("return", "end_return", "reward", "end_reward", "length", "eval")


@dataclass(frozen=True)
class Measure:
    """The single number that is read from a run.

    Attributes:
        read: return (mean return of the episodes of a segment), reward (the same per step, which on streams is the
            accuracy), end_return and end_reward (of the segment's last quarter), length, eval (evaluations, the final
            one last), or a tag of metrics.jsonl.
        of: For a tag, its mean within a segment or the last value there.
        first, last: Number of segments (evaluations) used, from the beginning or the end; 0 is all.
        reduce: How they are combined: their mean, largest or smallest value.
        relative: ratio or difference to the run's own first `base` segments.
        better: Which direction is better.
        unit: The number's name on an axis.
    """

    name: str
    read: str
    of: Literal["mean", "last"] = "mean"
    first: int = 0
    last: int = 0
    reduce: Literal["mean", "max", "min"] = "mean"
    relative: Literal["none", "ratio", "difference"] = "none"
    base: int = 1
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""


@dataclass(frozen=True)
class Comparison:
    """A comparison of two arms, or of an arm and a number, with its expected result.

    Attributes:
        a, b: Names of arms; `b` may be a number.
        expect: a is higher than b, lower, or equal.
        margin: The smallest difference that matters, in the measure's unit.
        measure: The measure's name (default: the first one of the file).
        paired: Compare arms seed by seed (same task, same initial weights); otherwise use Welch's test.
    """

    a: str
    b: str | float
    expect: Expect
    margin: float
    measure: str = ""
    paired: bool = True

    @property
    def text(self) -> str:
        """`layer_norm > plain`."""
        sign = {"higher": ">", "lower": "<", "equal": "="}[self.expect]
        return f"{self.a} {sign} {self.b if isinstance(self.b, str) else format(self.b, 'g')}"


def read_measures(content: Any, where: str) -> dict[str, Measure]:
    """The measures of a file, by label."""
    measures: dict[str, Measure] = {}
    for name, item in labelled(content, "measures").items():
        measure = measures[name] = make(Measure, item, f"measure {name!r}", name=name)
        if measure.read not in SERIES and "/" not in measure.read:
            raise Wrong(
                f"measure {name!r}: unknown reading {shorten(measure.read)}.{did_you_mean(measure.read, SERIES)} "
                f"Read {', '.join(SERIES)}, or a tag like losses/accuracy"
            )
        if measure.first and measure.last:
            raise Wrong(f"measure {name!r}: give first or last, not both")
        if measure.first < 0 or measure.last < 0 or measure.base < 1:
            raise Wrong(f"measure {name!r}: first and last must not be negative, and base at least 1")
    return measures


def read_comparisons(content: Any, where: str) -> tuple[Comparison, ...]:
    """The comparisons of a file."""
    if not isinstance(content, list) or not content:
        raise Wrong("'comparisons' must be a list of comparisons between arms")
    comparisons: list[Comparison] = [make(Comparison, item, f"comparisons[{i}]") for i, item in enumerate(content)]
    for i, comparison in enumerate(comparisons):
        if comparison.margin <= 0:
            raise Wrong(f"comparisons[{i}]: the margin is the smallest difference that would matter, and positive")
        if comparison.a == comparison.b:
            raise Wrong(f"comparisons[{i}]: {comparison.a!r} is compared with itself")
    return tuple(comparisons)


def with_measures(
    comparisons: Iterable[Comparison], arms: Iterable[str], measures: Mapping[str, Measure]
) -> tuple[Comparison, ...]:
    """The comparisons, each with its measure; refuses unknown arms and measures."""
    arms = list(arms)
    for i, comparison in enumerate(comparisons := list(comparisons)):
        for key, name in (("a", comparison.a), ("b", comparison.b)):
            if isinstance(name, str) and name not in arms:
                hint = did_you_mean(name, arms)
                raise Wrong(f"comparisons[{i}]: '{key}': there is no arm {shorten(name)}.{hint}")
        if (name := comparison.measure) and name not in measures:
            hint = did_you_mean(name, measures)
            raise Wrong(f"comparisons[{i}]: 'measure': there is no measure {shorten(name)}.{hint}")
    default = next(iter(measures), "")
    return tuple(replace(comparison, measure=comparison.measure or default) for comparison in comparisons)


def refuse_unrecorded(measures: Iterable[Measure], recorded: Iterable[str], testbed: str) -> None:
    """Refuse measures of tags that a testbed does not record."""
    for measure in measures:
        if "/" in measure.read and measure.read not in (known := list(recorded)):
            raise Wrong(
                f"measure {measure.name!r}: the testbed {testbed} does not record {measure.read[:LONGEST_SHOWN]}."
                f"{did_you_mean(measure.read, known)} Add it to 'record'"
            )

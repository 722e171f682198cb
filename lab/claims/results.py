"""From run folders to verdicts: the stored result of a run, the number that a claim reads from it, and the statistics.

Let d be the difference in the claimed direction and m the margin, the smallest difference that matters. For a
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

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...agents.log import read_metrics
from ...common.files import DONE, FileDamaged, read_json, steps_done, write_whole
from ..errors import BadInput
from ..experiments.pool import cost
from ..statistics import BINS, FEWEST, Difference, Gap, Interval, against, gap_closed, mean_interval, paired, welch
from .cards import BUILT_IN, Arm, Card, Comparison, Measure

Verdict = Literal["shown", "not shown", "contradicted", "underpowered", "not run"]
ORDER: tuple[Verdict, ...] = ("contradicted", "not shown", "underpowered", "not run", "shown")
"""Verdicts from the worst to the best."""
SCHEMA = 1


# ------------------------------------------------------------------------------------------------ what is kept of a run


def results_folder(card: Card) -> Path:
    """The folder of a card's results: beside the card, or in the current folder for cards of an installed package."""
    if card.path.parent.resolve() != BUILT_IN.resolve():
        return card.path.parent / "results"
    return BUILT_IN / "results" if (BUILT_IN.parent / "pyproject.toml").exists() else Path("claims", "results")


def result_file(card: Card, arm: Arm, seed: int) -> Path:
    """The file with the result of one run."""
    return results_folder(card) / card.key(arm) / f"seed{seed}.json"


def summarise(
    folder: Path, segment: int = 0, record: Sequence[str] = (), command: Sequence[str] = ()
) -> dict[str, Any]:
    """The stored result of a finished run: a few kilobytes that contain all possible readings.

    The run is divided into segments of `segment` environment steps (twenty if 0). A segment's returns, lengths and
    rewards are those of the episodes that end in it; for a tag, the mean of its values there and the last value.
    Missing values are None.
    """
    rows = read_metrics(folder)
    steps, done = steps_done(folder), read_json(folder / DONE, dict, "Delete it, and the run goes on")
    versions = (read_json(folder / "versions.json", list, "Put it back from a copy, or run it again") or [None])[-1]
    if steps is None or done is None or versions is None:
        raise FileDamaged(f"{folder} is not done: there is no {DONE if done is None else 'versions.json'}")
    size = segment or max(-(-steps // BINS), 1)
    count = -(-steps // size)
    place: Callable[[int], int] = lambda at: min(max(at - 1, 0) // size, count - 1)  # noqa: E731
    episodes: list[list[tuple[int, float, int]]] = [[] for _ in range(count)]
    tags: dict[str, list[list[float]]] = {tag: [[] for _ in range(count)] for tag in record}
    evaluations: list[tuple[int, float | str]] = []
    for row in rows:
        at = row["steps"]
        if "charts/episodic_return" in row:
            length = row["charts/episodic_length"]
            episodes[place(at)].append((at, row["charts/episodic_return"], length))
        for tag in record:
            if tag in row:
                tags[tag][place(at)].append(row[tag])
        if "eval/episodic_return" in row:
            evaluations.append((at, _short(row["eval/episodic_return"])))
    end = [[e for e in these if e[0] > (i + 1) * size - size / 4] for i, these in enumerate(episodes)]
    return {
        "schema": SCHEMA,
        "command": list(command),
        "steps": steps,
        "updates": done["updates"],
        "segment": segment,
        "segments": {
            "episodes": [len(these) for these in episodes],
            "return": [_mean(e[1] for e in these) for these in episodes],
            "end_return": [_mean(e[1] for e in these) for these in end],
            "length": [_mean(e[2] for e in these) for these in episodes],
            "reward": [_rate(these) for these in episodes],
            "end_reward": [_rate(these) for these in end],
        },
        "tags": {
            tag: {
                "mean": [_mean(values) for values in by_segment],
                "last": [_mean(values[-1:]) for values in by_segment],
            }
            for tag, by_segment in tags.items()
        },
        "evaluations": [list(pair) for pair in evaluations],
        "cpu_seconds": round(cost(folder), 1),
        "versions": {"git": versions["git"], "python": versions["python"], **versions["packages"]},
        "platform": versions["platform"],
    }


def _short(value: float) -> float | str:
    """A number with six digits (figures show fewer), or None for NaN, which JSON does not have."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


def _rate(episodes: Sequence[tuple[int, float, int]]) -> float | str | None:
    """Reward per step."""
    return _short(sum(e[1] for e in episodes) / sum(e[2] for e in episodes)) if episodes else None


def _mean(values: Iterable[float]) -> float | str | None:
    known = list(values)
    return _short(sum(known) / len(known)) if known else None


def write_result(file: Path, result: Mapping[str, Any]) -> None:
    """Write a result atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result, separators=(",", ":")) + "\n")


@contextmanager
def _stored_in(file: Path) -> Iterator[None]:
    """Wraps the reading of a result: errors name the file (BadInput)."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise BadInput(
            f"{file} does not hold a run's result: {' '.join(repr(error).split())[:200]}. Put it back from a copy, "
            "or delete it and run the claim again"
        ) from error


def stored(card: Card, arm: Arm) -> dict[int, dict[str, Any]]:
    """All stored results of an arm that contain the readings of the card, by seed."""
    assert card.testbed is not None
    folder = result_file(card, arm, 0).parent
    results: dict[int, dict[str, Any]] = {}
    for file in folder.glob("seed*.json"):
        with _stored_in(file):
            result = json.loads(file.read_text(encoding="utf-8"))
            held = result["schema"] == SCHEMA and result["segment"] == card.testbed.segment
            if held and set(card.testbed.record) <= set(result["tags"]):
                float(result["cpu_seconds"])
                for measure in card.measures.values():
                    value(result, measure)
                results[int(file.stem.removeprefix("seed"))] = result
    return dict(sorted(results.items()))


# ------------------------------------------------------------------------------------------------ one number a run


def series(result: Mapping[str, Any], read: str, of: str = "mean") -> list[float]:
    """A reading by segment (or by evaluation); NaN if missing."""
    if read == "eval":
        readings = [value for _, value in result["evaluations"]]
    elif "/" in read:
        readings = result["tags"][read][of]
    else:
        readings = result["segments"][read]
    return [math.nan if value is None else float(value) for value in readings]


def value(result: Mapping[str, Any], measure: Measure) -> float:
    """The number that a measure reads from a run; NaN if the run has none."""
    row = series(result, measure.read, measure.of)
    part = row[: measure.first] if measure.first else row[-measure.last :] if measure.last else row
    part = [x for x in part if not math.isnan(x)]
    if not part:
        return math.nan
    reduced = sum(part) / len(part) if measure.reduce == "mean" else max(part) if measure.reduce == "max" else min(part)
    if measure.relative == "none":
        return float(reduced)
    base = [x for x in row[: measure.base] if not math.isnan(x)]
    if not base:
        return math.nan
    own = sum(base) / len(base)
    if measure.relative == "difference":
        return float(reduced - own)
    return float(reduced / own) if own else math.nan


# ------------------------------------------------------------------------------------------------ verdicts


@dataclass(frozen=True)
class Judged:
    """A comparison with its result; `why` explains the verdict."""

    comparison: Comparison
    verdict: Verdict
    difference: Difference | None
    why: str


@dataclass(frozen=True)
class ArmResult:
    """The results of an arm under one measure: the values by seed, their mean and interval, the gap closed."""

    arm: Arm
    values: Mapping[int, float]
    mean: Interval | None
    gap: Gap | None
    cpu_seconds: float  # mean of a run


@dataclass(frozen=True)
class Judgement:
    """A card with its verdict."""

    card: Card
    verdict: Verdict
    comparisons: tuple[Judged, ...] = ()
    arms: Mapping[str, Mapping[str, ArmResult]] | None = None  # by measure and arm
    check: Mapping[str, Any] | None = None


def judge_difference(comparison: Comparison, difference: Difference) -> tuple[Verdict, str]:
    """The rules in the module's docstring."""
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
    turned = Difference(sign * difference.estimate, difference.error, difference.df, difference.seeds)
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


def compare(comparison: Comparison, values: Mapping[str, Mapping[int, float]]) -> Judged:
    """The verdict of a comparison from the values of its arms, by seed."""
    first = values[comparison.a]
    if not isinstance(comparison.b, str):
        if not first:
            return Judged(comparison, "not run", None, "no results yet")
        difference = against(list(first.values()), comparison.b)
    else:
        second = values[comparison.b]
        if not first or not second:
            return Judged(comparison, "not run", None, "no results yet")
        shared = sorted(first.keys() & second.keys())
        if comparison.paired and shared:
            difference = paired([first[s] for s in shared], [second[s] for s in shared])
        else:
            difference = welch(list(first.values()), list(second.values()))
    verdict, why = judge_difference(comparison, difference)
    return Judged(comparison, verdict, difference, why)


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst verdict; `not run` if any comparison was not run."""
    given = set(verdicts)
    if "not run" in given:
        return "not run"
    return next(verdict for verdict in ORDER if verdict in given)


def judge(card: Card) -> Judgement:
    """The verdict of a card from its stored results."""
    if card.kind == "check":
        file = results_folder(card) / "checks" / f"{card.name}.json"
        if not file.exists():
            return Judgement(card, "not run")
        with _stored_in(file):
            result = json.loads(file.read_text(encoding="utf-8"))
            float(result["cpu_seconds"])
            [row[name] for row in result["rows"] for name in ("what", "found", "expected", "holds")]
            return Judgement(card, "shown" if result["holds"] else "contradicted", check=result)
    results = {name: stored(card, arm) for name, arm in card.arms.items()}
    values = {
        measure.name: {arm: {s: value(r, measure) for s, r in by_seed.items()} for arm, by_seed in results.items()}
        for measure in card.measures.values()
    }
    judged = tuple(compare(comparison, values[comparison.measure]) for comparison in card.comparisons)
    arms = {
        name: {arm: _arm_result(card, card.arms[arm], measure, values[name], results) for arm in card.arms}
        for name, measure in card.measures.items()
    }
    return Judgement(card, overall(j.verdict for j in judged), judged, arms)


def _arm_result(
    card: Card,
    arm: Arm,
    measure: Measure,
    values: Mapping[str, Mapping[int, float]],
    results: Mapping[str, Mapping[int, Mapping[str, Any]]],
) -> ArmResult:
    own = values[arm.name]
    mean = mean_interval(list(own.values())) if own else None
    spent = [result["cpu_seconds"] for result in results[arm.name].values()]
    plain, oracle = card.of_kind("control"), card.of_kind("oracle")
    gap = None
    if own and plain is not None and oracle is not None and arm.kind not in ("control", "oracle", "fixed_task"):
        shared = sorted(own.keys() & values[plain.name].keys() & values[oracle.name].keys())
        rows = [[values[name][s] for s in shared] for name in (arm.name, plain.name, oracle.name)]
        if len(shared) >= FEWEST and np.isfinite(rows).all():
            gap = gap_closed(*rows, higher_is_better=measure.better == "higher")
    return ArmResult(arm, own, mean, gap, float(np.mean(spent)) if spent else 0.0)

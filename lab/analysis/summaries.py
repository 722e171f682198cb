"""The summary of a finished run, and the number that a measure reads from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...agents.log import read_metrics
from ...common.files import DONE, FileDamaged, read_json, steps_done
from ..experiments.pool import cost
from ..experiments.predicates import Measure
from ..statistics import BINS

SCHEMA = 1


def summarise(
    folder: Path, segment: int = 0, record: Sequence[str] = (), command: Sequence[str] = ()
) -> dict[str, Any]:
    """The summary of a finished run, which claims store: a few kilobytes that contain all possible readings.

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


def series(result: Mapping[str, Any], read: str, of: str = "mean") -> list[float]:
    """A reading of a run's summary by segment (or by evaluation); NaN if missing."""
    if read == "eval":
        readings = [value for _, value in result["evaluations"]]
    elif "/" in read:
        readings = result["tags"][read][of]
    else:
        readings = result["segments"][read]
    return [math.nan if value is None else float(value) for value in readings]


def value(result: Mapping[str, Any], measure: Measure) -> float:
    """The number that a measure reads from a run's summary; NaN if the run has none."""
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

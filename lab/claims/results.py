"""The stored results of claims: the summaries of their runs, and the verdicts that follow from them.

`analysis/verdicts.py` has the rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.files import write_whole
from ..analysis.summaries import SCHEMA, value
from ..analysis.verdicts import ComparisonResult, Verdict, compare, overall
from ..errors import BadInput
from ..experiments.predicates import Measure
from ..experiments.study import Arm, Claim
from ..statistics import Gap, Interval, gap_by_seed, mean_interval
from .cards import BUILT_IN

# ------------------------------------------------------------------------------------------------ stored results


def results_folder(claim: Claim) -> Path:
    """The folder of a claim's results: beside its file, or in the current folder for claims of an installed package."""
    if claim.path.parent.resolve() != BUILT_IN.resolve():
        return claim.path.parent / "results"
    return BUILT_IN / "results" if (BUILT_IN.parent / "pyproject.toml").exists() else Path("claims", "results")


def result_file(claim: Claim, arm: Arm, seed: int) -> Path:
    """The file with the result of one run."""
    return results_folder(claim) / claim.key(arm) / f"seed{seed}.json"


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


def stored(claim: Claim, arm: Arm) -> dict[int, dict[str, Any]]:
    """All stored results of an arm that contain the readings of the claim, by seed."""
    folder = result_file(claim, arm, 0).parent
    results: dict[int, dict[str, Any]] = {}
    for file in folder.glob("seed*.json"):
        with _stored_in(file):
            result = json.loads(file.read_text(encoding="utf-8"))
            held = result["schema"] == SCHEMA and result["segment"] == claim.segment
            if held and set(claim.record) <= set(result["tags"]):
                float(result["cpu_seconds"])
                for measure in claim.measures.values():
                    value(result, measure)
                results[int(file.stem.removeprefix("seed"))] = result
    return dict(sorted(results.items()))


# ------------------------------------------------------------------------------------------------ verdicts


@dataclass(frozen=True)
class ArmResult:
    """The results of an arm under one measure: the values by seed, their mean and interval, the gap closed."""

    arm: Arm
    values: Mapping[int, float]
    mean: Interval | None
    gap: Gap | None


@dataclass(frozen=True)
class ClaimResult:
    """A claim with its verdict."""

    claim: Claim
    verdict: Verdict
    comparisons: tuple[ComparisonResult, ...] = ()
    arms: Mapping[str, Mapping[str, ArmResult]] | None = None  # by measure and arm
    check: Mapping[str, Any] | None = None


def evaluate(claim: Claim) -> ClaimResult:
    """The verdict of a claim from its stored results."""
    if claim.kind == "check":
        file = results_folder(claim) / "checks" / f"{claim.name}.json"
        if not file.exists():
            return ClaimResult(claim, "not run")
        with _stored_in(file):
            result = json.loads(file.read_text(encoding="utf-8"))
            float(result["cpu_seconds"])
            [row[name] for row in result["rows"] for name in ("what", "found", "expected", "holds")]
            return ClaimResult(claim, "shown" if result["holds"] else "contradicted", check=result)
    results = {name: stored(claim, arm) for name, arm in claim.arms.items()}
    values = {
        measure.name: {arm: {s: value(r, measure) for s, r in by_seed.items()} for arm, by_seed in results.items()}
        for measure in claim.measures.values()
    }
    comparisons = tuple(compare(comparison, values[comparison.measure]) for comparison in claim.comparisons)
    arms = {
        name: {arm.name: _arm_result(claim, arm, measure, values[name]) for arm in claim.arms.values()}
        for name, measure in claim.measures.items()
    }
    return ClaimResult(claim, overall(each.verdict for each in comparisons), comparisons, arms)


def _arm_result(claim: Claim, arm: Arm, measure: Measure, values: Mapping[str, Mapping[int, float]]) -> ArmResult:
    own = values[arm.name]
    plain, oracle = claim.of_kind("control"), claim.of_kind("oracle")
    gap = None
    if plain is not None and oracle is not None and arm.kind not in ("control", "oracle", "fixed_task"):
        gap = gap_by_seed(own, values[plain.name], values[oracle.name], higher_is_better=measure.better == "higher")
    return ArmResult(arm, own, mean_interval(list(own.values())) if own else None, gap)

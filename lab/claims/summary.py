"""Verdicts, seeds and costs of claims as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ..analysis.verdicts import ORDER, ComparisonResult
from .results import ClaimResult, stored
from .running import cost_of


def minutes(result: ClaimResult) -> tuple[float, bool]:
    """Processor minutes of a claim with all seeds, and whether they were measured."""
    claim = result.claim
    if result.check is not None:
        return float(result.check["cpu_seconds"]) / 60, True
    if claim.kind == "check":
        return claim.minutes, False
    measured = all(stored(claim, arm) for arm in claim.arms.values())
    return sum(cost_of(claim, arm) * len(claim.seeds) for arm in claim.arms.values()) / 60, measured


def cost_text(result: ClaimResult) -> str:
    """`3.2 min`, `~10 min` for an estimate, `?` if unknown."""
    time, measured = minutes(result)
    return "?" if not measured and time == 0 else f"{'' if measured else '~'}{time:.2g} min"


def seeds_text(result: ClaimResult) -> str:
    """The number of seeds of the arms: `5`, or `3-5` if arms differ."""
    if result.arms is None:
        return "-"
    counts = [len(arm.values) for arms in result.arms.values() for arm in arms.values()]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}"


def in_order(results: Sequence[ClaimResult]) -> list[ClaimResult]:
    """The worst verdict first."""
    return sorted(results, key=lambda result: (ORDER.index(result.verdict), result.claim.name))


def table(results: Sequence[ClaimResult]) -> str:
    """Name, verdict, seeds, processor time and title of every claim, the worst verdict first."""
    rows = [("claim", "verdict", "seeds", "cost", "")]
    for each in in_order(results):
        rows.append((each.claim.name, each.verdict, seeds_text(each), cost_text(each), each.claim.title))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def summary(result: ClaimResult) -> str:
    """A claim's verdict and its evidence."""
    lines = [f"{result.claim.name}: {result.verdict.upper()}", f"  {result.claim.claim}"]
    for each in result.comparisons:
        lines.append(f"  {each.comparison.text} in {each.comparison.measure}: {each.verdict}; {_difference(each)}")
    if result.check is not None:
        lines += [
            f"  {'ok ' if row['holds'] else 'NO '} {row['what']}: {row['found']} (expected {row['expected']})"
            for row in result.check["rows"]
        ]
    return "\n".join(lines)


def _difference(result: ComparisonResult) -> str:
    if result.difference is None:
        return result.why
    low, high = result.difference.interval()[1:]
    interval = f" [{low:.3g}, {high:.3g}]" if result.difference.known else ""
    return f"difference {result.difference.estimate:.3g}{interval}, margin {result.comparison.margin:g}: {result.why}"

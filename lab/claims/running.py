"""Running claims: choose the missing runs that fit a budget, run them, and store their results.

The runs are in runs/claims; their stored results are in `results` beside the claim files. Claims share runs. Finished
runs are not repeated, and interrupted runs continue.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pliant.lab.analysis.summaries import summarise
from pliant.lab.claims.cards import find
from pliant.lab.claims.checks import CHECKS
from pliant.lab.claims.results import result_file, results_folder, stored, write_result
from pliant.lab.errors import BadInput
from pliant.lab.experiments.folder import PACKAGES, git, package
from pliant.lab.experiments.pool import Job, Outcome, Progress, run_all
from pliant.lab.experiments.study import Arm, Cell, Claim
from pliant.lab.experiments.sweep import exit_code_of

RUNS = Path("runs", "claims")
FEW = 5  # seeds that every claim gets before any claim gets more
SPARE = 0.9  # share of the budget that is planned, because costs are estimates


# ------------------------------------------------------------------------------------------------ planning


def cost_of(claim: Claim, arm: Arm) -> float:
    """Seconds of a run of an arm on one core: measured, or the claim's estimate, or 0."""
    spent = [result["cpu_seconds"] for result in stored(claim, arm).values()]
    if spent:
        return float(sum(spent) / len(spent))
    return 60 * claim.minutes / (len(claim.arms) * len(claim.seeds))


@dataclass(frozen=True)
class Planned:
    """A run of a claim, and its expected seconds on one core (0 if unknown)."""

    claim: Claim
    cell: Cell
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The planned runs, in order, and the claims for which the budget is too small or the cost unknown."""

    runs: Sequence[Planned]
    checks: Sequence[Claim]
    chosen: Sequence[Claim]
    left_out: Sequence[Claim]


def runs_of(claim: Claim, root: Path, seeds: int = 0) -> list[list[Planned]]:
    """The runs of a claim: for each seed, those of all arms."""
    costs = {name: cost_of(claim, arm) for name, arm in claim.arms.items()}
    cells = claim.cells(root, range(seeds), by_configuration=True)
    planned = [Planned(claim, cell, costs[cell.arm]) for cell in cells]
    return [planned[i : i + len(costs)] for i in range(0, len(planned), len(costs))]


def plan(claims: Sequence[Claim], root: Path, budget: float | None, workers: int, seeds: int = 0) -> Plan:
    """Choose the runs and their order.

    Without a budget: all seeds of all claims. With one, the claims are taken in the order of what their first five
    seeds still cost, cheapest first, as long as they fit; then further seeds of these, one of each claim in turn. A run
    that several claims share is paid for once.
    """
    checks = [claim for claim in claims if claim.kind == "check"]
    waiting = {claim.name: runs_of(claim, root, seeds) for claim in claims if claim.kind == "runs"}
    by_name = {claim.name: claim for claim in claims}
    planned: dict[Path, Planned] = {}
    if budget is None:
        for run in (run for rows in waiting.values() for row in rows for run in row):
            planned.setdefault(run.cell.folder, run)
        return Plan(list(planned.values()), checks, [*checks, *(by_name[name] for name in waiting)], [])
    left = budget * workers * SPARE
    chosen: dict[str, list[list[Planned]]] = {}

    def price(runs: Iterable[Planned]) -> float:
        """Seconds of the runs that are neither done nor planned already."""
        new = {run.cell.folder: run for run in runs if run.cell.folder not in planned}
        return sum(run.seconds for folder, run in new.items() if not (folder / "DONE").exists())

    def take(runs: Iterable[Planned]) -> None:
        nonlocal left
        left -= price(runs := list(runs))
        for run in runs:
            planned.setdefault(run.cell.folder, run)

    while waiting:
        first = {name: [run for row in rows[:FEW] for run in row] for name, rows in waiting.items()}
        # Claims of unknown cost go last.
        unknown = {name: any(run.seconds == 0 for run in runs) for name, runs in first.items()}
        name = min(waiting, key=lambda name: (unknown[name], price(first[name]), name))
        if price(first[name]) > left or (unknown[name] and (chosen or checks)):
            break
        take(first[name])
        chosen[name] = waiting.pop(name)
    for seed in range(FEW, max(map(len, chosen.values()), default=0)):
        for rows in chosen.values():
            if seed < len(rows) and price(rows[seed]) <= left:
                take(rows[seed])
    taken, left_out = ([by_name[name] for name in names] for names in (chosen, waiting))
    return Plan(list(planned.values()), checks, [*checks, *taken], left_out)


# ------------------------------------------------------------------------------------------------ running


def run_claims(claims: Sequence[Claim], root: Path, budget: float | None, workers: int, seeds: int = 0) -> int:
    """Do the missing runs and store their results. Returns the exit code."""
    planned = plan(claims, root, budget, workers, seeds)
    if planned.left_out:
        names = ", ".join(claim.name for claim in planned.left_out)
        print(f"not within the budget: {names}", file=sys.stderr)
    for claim in planned.checks:
        run_check(claim)
    divisions = _divisions([*claims, *find()])
    by_folder = {run.cell.config.run: run for run in planned.runs}

    def keep(outcome: Outcome) -> None:
        run = by_folder[outcome.job.config.run]
        claim, cell, arm = run.claim, run.cell, run.claim.arms[run.cell.arm]
        segment, record = divisions[claim.key(arm)]
        result = summarise(cell.folder, segment, record, ("pliant", "train", *cell.line))
        write_result(result_file(claim, arm, cell.seed), result)

    jobs = [Job(run.cell.config, run.cell.line, run.seconds) for run in planned.runs]
    return exit_code_of(run_all(jobs, workers=workers, budget=budget, progress=Progress(sys.stderr), finished=keep))


def _divisions(claims: Iterable[Claim]) -> dict[str, tuple[int, tuple[str, ...]]]:
    """The segment length and the recorded tags of every run, for all claims that read it (BadInput if the claims
    disagree)."""
    divisions: dict[str, tuple[int, tuple[str, ...], str]] = {}
    for claim in claims:
        for arm in claim.arms.values():
            segment, record, first = divisions.setdefault(claim.key(arm), (claim.segment, (), claim.name))
            if segment != claim.segment:
                raise BadInput(
                    f"{first} and {claim.name} share runs, and divide them by {segment} and "
                    f"{claim.segment} steps: give their testbeds the same segment"
                )
            divisions[claim.key(arm)] = (segment, tuple(sorted({*record, *claim.record})), first)
    return {name: (segment, record) for name, (segment, record, _) in divisions.items()}


def run_check(claim: Claim) -> None:
    """Execute a check and store its rows."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    try:
        rows = CHECKS[claim.check]()
    finally:
        torch.set_num_threads(threads)
    write_result(
        results_folder(claim) / "checks" / f"{claim.name}.json",
        {
            "holds": all(row.holds for row in rows),
            "rows": [{"what": r.what, "found": r.measured, "expected": r.expected, "holds": r.holds} for r in rows],
            "cpu_seconds": round(time.process_time() - started, 1),
            "versions": {
                "git": git(),
                "python": platform.python_version(),
                **{name: package(name) for name in PACKAGES},
            },
            "platform": platform.platform(),
        },
    )

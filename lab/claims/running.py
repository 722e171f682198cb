"""Running claims: choose the missing runs that fit a budget, run them, and store their results.

The runs are in runs/claims; their stored results are in `results` beside the cards. Claims share runs. Finished runs
are not repeated, and interrupted runs continue.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant.lab.claims.cards import Arm, Card, find
from pliant.lab.claims.checks import CHECKS
from pliant.lab.claims.results import ORDER, Judgement, result_file, results_folder, stored, summarise, write_result
from pliant.lab.errors import BadInput
from pliant.lab.experiments.folder import PACKAGES, STOPPED, git, package
from pliant.lab.experiments.pool import Job, Outcome, Progress, run_all

RUNS = Path("runs", "claims")
FEW = 5  # seeds that every claim gets before any claim gets more
SPARE = 0.9  # share of the budget that is planned, because costs are estimates


# ------------------------------------------------------------------------------------------------ planning


def cost_of(card: Card, arm: Arm) -> float:
    """Seconds of a run of an arm on one core: measured, or the card's estimate, or 0."""
    spent = [result["cpu_seconds"] for result in stored(card, arm).values()]
    if spent:
        return sum(spent) / len(spent)
    return 60 * card.minutes / (len(card.arms) * card.seeds)


def jobs_of(card: Card, seeds: Iterable[int], runs: Path) -> list[tuple[Card, Arm, Job]]:
    """The runs of a card, all arms of a seed together."""
    costs = {name: cost_of(card, arm) for name, arm in card.arms.items()}
    return [
        (card, arm, Job(card.config(arm, seed, runs), _line(card, arm, seed, runs), costs[name]))
        for seed in seeds
        for name, arm in card.arms.items()
    ]


def _line(card: Card, arm: Arm, seed: int, runs: Path) -> tuple[str, ...]:
    """The command line of the same run."""
    config = card.config(arm, seed, runs)
    chosen = ("--seed", str(seed), "--device", config.device, "--threads", "1", "--run", str(config.run))
    return (*card.command(arm), *chosen)


@dataclass(frozen=True)
class Plan:
    """The planned runs, in order, and the claims for which the budget is too small or the cost unknown."""

    jobs: Sequence[tuple[Card, Arm, Job]]
    checks: Sequence[Card]
    chosen: Sequence[Card]
    left_out: Sequence[Card]


def plan(cards: Sequence[Card], runs: Path, budget: float | None, workers: int, seeds: int = 0) -> Plan:
    """Choose the runs and their order.

    Without a budget: all seeds of all cards. With one, the claims are taken in the order of what their first five seeds
    still cost, cheapest first, as long as they fit; then further seeds of these, one of each claim in turn. A run that
    several claims share is paid for once.
    """
    checks = [card for card in cards if card.kind == "check"]
    cards = [card for card in cards if card.kind == "runs"]
    wanted = {card.name: seeds or card.seeds for card in cards}
    if budget is None:
        order = [job for card in cards for job in jobs_of(card, range(wanted[card.name]), runs)]
        return Plan(_once(order), checks, [*checks, *cards], [])
    left = budget * workers * SPARE
    taken: set[str] = set()
    order, chosen = [], list(checks)
    waiting = list(cards)
    while waiting:
        first = {card.name: jobs_of(card, range(min(FEW, wanted[card.name])), runs) for card in waiting}
        price = {name: _price(jobs, taken) for name, jobs in first.items()}
        # Claims of unknown cost go last.
        card = min(waiting, key=lambda c: (_unknown(first[c.name]), price[c.name], c.name))
        if price[card.name] > left or (_unknown(first[card.name]) and chosen):
            break
        waiting.remove(card)
        chosen.append(card)
        order += first[card.name]
        left -= price[card.name]
        taken |= {str(job.config.run) for _, _, job in first[card.name]}
    for seed in range(FEW, max(wanted.values(), default=0)):
        for card in chosen:
            if card.kind == "runs" and seed < wanted[card.name]:
                more = jobs_of(card, [seed], runs)
                if (price_of := _price(more, taken)) <= left:
                    order += more
                    left -= price_of
                    taken |= {str(job.config.run) for _, _, job in more}
    return Plan(_once(order), checks, chosen, waiting)


def _once(jobs: Iterable[tuple[Card, Arm, Job]]) -> list[tuple[Card, Arm, Job]]:
    """The list without repeated runs."""
    unique: dict[str, tuple[Card, Arm, Job]] = {}
    for card, arm, job in jobs:
        unique.setdefault(str(job.config.run), (card, arm, job))
    return list(unique.values())


def _price(jobs: Iterable[tuple[Card, Arm, Job]], taken: set[str]) -> float:
    """Seconds of the runs that are neither done nor planned already."""
    new = {str(job.config.run): job for _, _, job in jobs if str(job.config.run) not in taken}
    return sum(job.seconds for run, job in new.items() if not (Path(run) / "DONE").exists())


def _unknown(jobs: Iterable[tuple[Card, Arm, Job]]) -> bool:
    return any(job.seconds == 0 for _, _, job in jobs)


# ------------------------------------------------------------------------------------------------ running


def run_claims(cards: Sequence[Card], runs: Path, budget: float | None, workers: int, seeds: int = 0) -> int:
    """Do the missing runs and store their results. Returns the exit code."""
    planned = plan(cards, runs, budget, workers, seeds)
    if planned.left_out:
        names = ", ".join(card.name for card in planned.left_out)
        print(f"not within the budget: {names}", file=sys.stderr)
    for card in planned.checks:
        run_check(card)
    kept = _divisions([*cards, *find()])
    lines = {str(job.config.run): (card, arm, job.words) for card, arm, job in planned.jobs}

    def keep(outcome: Outcome) -> None:
        config = outcome.job.config
        card, arm, words = lines[str(config.run)]
        segment, record = kept[card.key(arm)]
        result = summarise(outcome.job.folder, segment, record, ("pliant", "train", *words))
        write_result(result_file(card, arm, config.seed), result)

    outcomes = run_all(
        [job for _, _, job in planned.jobs],
        workers=workers,
        budget=budget,
        progress=Progress(sys.stderr),
        finished=keep,
    )
    failed = [o for o in outcomes if o.status == "failed"]
    stopped = [o for o in outcomes if o.status in ("stopped", "waiting")]
    if stopped:
        print(f"{len(stopped)} runs are not done; the same command goes on with them", file=sys.stderr)
    return 1 if failed else STOPPED if stopped else 0


def _divisions(cards: Iterable[Card]) -> dict[str, tuple[int, tuple[str, ...]]]:
    """The segment length and the recorded tags of every run, for all cards that read it (BadInput if the cards
    disagree)."""
    divisions: dict[str, tuple[int, tuple[str, ...], str]] = {}
    for card in cards:
        for arm in card.arms.values():
            assert card.testbed is not None
            segment, record, first = divisions.setdefault(card.key(arm), (card.testbed.segment, (), card.name))
            if segment != card.testbed.segment:
                raise BadInput(
                    f"{first} and {card.name} share runs, and divide them by {segment} and "
                    f"{card.testbed.segment} steps: give their testbeds the same segment"
                )
            more = tuple(sorted({*record, *card.testbed.record}))
            divisions[card.key(arm)] = (segment, more, first)
    return {name: (segment, record) for name, (segment, record, _) in divisions.items()}


def run_check(card: Card) -> None:
    """Execute a check and store its rows."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    try:
        rows = CHECKS[card.check]()
    finally:
        torch.set_num_threads(threads)
    write_result(
        results_folder(card) / "checks" / f"{card.name}.json",
        {
            "holds": all(row.holds for row in rows),
            "rows": [row._asdict() for row in rows],
            "cpu_seconds": round(time.process_time() - started, 1),
            "versions": {
                "git": git(),
                "python": platform.python_version(),
                **{name: package(name) for name in PACKAGES},
            },
            "platform": platform.platform(),
        },
    )


# ------------------------------------------------------------------------------------------------ telling


def minutes(judgement: Judgement) -> tuple[float, bool]:
    """Processor minutes of a claim with all seeds, and whether they were measured."""
    card = judgement.card
    if judgement.check is not None:
        return float(judgement.check["cpu_seconds"]) / 60, True
    if card.kind == "check":
        return card.minutes, False
    measured = all(stored(card, arm) for arm in card.arms.values())
    return sum(cost_of(card, arm) * card.seeds for arm in card.arms.values()) / 60, measured


def spelled(time_in_minutes: float, measured: bool) -> str:
    """`3.2 min`, `~10 min` for an estimate, `?` if unknown."""
    if not measured and time_in_minutes == 0:
        return "?"
    return f"{'' if measured else '~'}{time_in_minutes:.2g} min"


def table(judged: Sequence[Judgement]) -> str:
    """Name, verdict, seeds, processor time and title of every claim, the worst verdict first."""
    rows = [("claim", "verdict", "seeds", "cost", "")]
    for each in sorted(judged, key=lambda j: (ORDER.index(j.verdict), j.card.name)):
        rows.append((each.card.name, each.verdict, seeds_of(each), spelled(*minutes(each)), each.card.title))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def seeds_of(judgement: Judgement) -> str:
    """The number of seeds of the arms: `5`, or `3-5` if arms differ."""
    if judgement.arms is None:
        return "-"
    counts = [len(arm.values) for arms in judgement.arms.values() for arm in arms.values()]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}"


def in_words(judgement: Judgement) -> str:
    """A claim's verdict and its evidence, for the terminal."""
    card = judgement.card
    lines = [f"{card.name}: {judgement.verdict.upper()}", f"  {card.claim}"]
    for each in judgement.comparisons:
        lines.append(f"  {each.comparison.text} in {each.comparison.measure}: {each.verdict}; {_gap(each)}")
    if judgement.check is not None:
        lines += [
            f"  {'ok ' if row['holds'] else 'NO '} {row['what']}: {row['found']} (expected {row['expected']})"
            for row in judgement.check["rows"]
        ]
    return "\n".join(lines)


def _gap(judged: Any) -> str:
    if judged.difference is None:
        return str(judged.why)
    low, high = judged.difference.interval()[1:]
    interval = "" if not judged.difference.known else f" [{low:.3g}, {high:.3g}]"
    return f"difference {judged.difference.estimate:.3g}{interval}, margin {judged.comparison.margin:g}: {judged.why}"

"""Run published claims about plasticity, or your own, and evaluate them: `pliant claims`.

    pliant claims                                     # list all claims: verdict, cost, title
    pliant claims run random_labels                   # do its missing runs; print its verdict; write the page
    pliant claims run --budget 30m --jobs 2           # as many claims as fit into the time, the cheapest first
    pliant claims run my_claim.yaml --seeds 8         # your own claim file
    pliant claims render                              # write docs/claims.md and its figures from the stored results

A claim file defines the runs and the result that they must show (see `lab/experiments/study.py`). Fixed rules turn the
results into a verdict (see `lab/analysis/verdicts.py`). The runs are in runs/claims; their stored results are in
`results` next to the claim files. Claims share runs. Finished runs are not repeated, and interrupted runs continue. A
claim is also a study, which `pliant sweep` runs and `pliant report` reports.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pliant.lab.claims.cards import BUILT_IN, find
from pliant.lab.claims.page import write_page
from pliant.lab.claims.results import evaluate
from pliant.lab.claims.running import RUNS, run_claims
from pliant.lab.claims.summary import summary, table
from pliant.lab.commands.arguments import HowManySeeds, Jobs, Parser, read
from pliant.lab.commands.durations import seconds
from pliant.lab.commands.outputs import folder_for, written
from pliant.lab.errors import BadInput
from pliant.lab.experiments.study import Claim


def render(cards: Sequence[Claim], out: Path | None) -> None:
    """Write the page of claims and its figures."""
    if out is None:
        checkout = (BUILT_IN.parent / "pyproject.toml").exists()
        own = all(card.path.parent == BUILT_IN for card in cards)
        out = BUILT_IN.parent / "docs" if own and checkout else Path("claims" if own else cards[0].path.parent)
    with written(out, "--out"):
        page = write_page([evaluate(card) for card in cards], out)
    print(f"written to {page}")


def main(argv: list[str] | None = None) -> int:
    line = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="pliant claims", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    listing = commands.add_parser("list", help="all claims, their verdicts and costs (also without a command)")
    run = commands.add_parser("run", help="do the missing runs of the named claims, or of as many as fit a budget")
    page = commands.add_parser("render", help="write the page and its figures from the stored results")
    for command in (listing, run, page):
        command.add_argument("names", nargs="*", metavar="NAME", help="claims, or claim files (default: all)")
        command.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help=f"folder of the runs ({RUNS})")
    run.add_argument("--budget", metavar="TIME", help="wall clock to use, such as 30m, 90s or 1h30m")
    run.add_argument("--jobs", type=read(Jobs), default=0, help="processes at a time (default: one per core)")
    run.add_argument("--seeds", type=read(HowManySeeds), default=0, help="seeds of every arm (default: the card's)")
    for command in (run, page):
        command.add_argument(
            "--out", type=Path, metavar="DIR", help="folder of claims.md (docs, or the folder of the card)"
        )
    arguments = parser.parse_args(line)
    if arguments.command is None:
        arguments = parser.parse_args(["list", *line])
    if arguments.command == "run":
        folder_for(arguments.runs, "--runs")
    if getattr(arguments, "out", None) is not None:
        folder_for(arguments.out, "--out")
    if arguments.command == "run" and not arguments.names and arguments.budget is None:
        raise BadInput("name claims (`pliant claims` lists them), or give --budget TIME to run as many as fit")
    budget = seconds(arguments.budget) if getattr(arguments, "budget", None) is not None else None
    cards = find(arguments.names)
    if not cards:
        raise BadInput(f"there are no cards in {BUILT_IN}: give the path of one")
    if arguments.command == "list":
        print(table([evaluate(card) for card in cards]))
        return 0
    if arguments.command == "run":
        code = run_claims(cards, arguments.runs, budget, arguments.jobs or os.cpu_count() or 1, arguments.seeds)
        results = [evaluate(card) for card in cards]
        print(table(results))
        for each in results:
            if arguments.names or each.verdict != "not run":
                print(f"\n{summary(each)}")
        # The page shows all claims that come with pliant, not only those that were run.
        if all(card.path.parent == BUILT_IN for card in cards):
            render(find(), arguments.out)
        elif arguments.out is not None:
            render(cards, arguments.out)
        return code
    render(cards, arguments.out)
    return 0


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("claims"))

"""Report on runs: a page with the results, their uncertainty, and the questions that the runs cannot answer.

    pliant report runs/CartPole-v1 --out report                 # every run below a folder
    pliant report runs/studies/first_sweep --out report         # a study, including its missing runs
    pliant report studies/first_sweep.yaml --out report --measure last
    pliant report runs/CartPole-v1/ppo/seed0 --out forks        # a run and its forks

Writes report.html, which contains its figures and loads no other file; report.md with the same content; figures/*.png;
and *.csv with every number (a text that a spreadsheet would read as a formula gets an apostrophe in front). Figures
need matplotlib (pip install 'pliant[report]'); without it the report has all tables and no figures.

The score of a run is its final evaluation if all runs have one. Otherwise, for tasks of a known length (a study's
segment, or --segment), it is the mean return per task over the last half of the tasks. Otherwise it is the mean return
over the last tenth of the run's steps. --measure chooses another score.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from pliant.common.ranges import Positive, SomeEnvSteps
from pliant.lab.analysis.page import as_html, as_markdown
from pliant.lab.analysis.report import HTML, make_report, write
from pliant.lab.analysis.runs import collect
from pliant.lab.commands.arguments import Parser, read
from pliant.lab.commands.outputs import folder_for
from pliant.lab.errors import BadInput


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="pliant report", description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUNS",
        help="run folders, folders with runs below them, a study or its file",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder that the report is written to")
    parser.add_argument(
        "--measure",
        metavar="NAME",
        help="score of a run: final, last, tasks, area, or the tag of a measurement (its mean over the last tenth)",
    )
    parser.add_argument(
        "--lower-is-better", action="store_true", help="lower values of the measure are better (default: higher)"
    )
    parser.add_argument(
        "--segment", type=read(SomeEnvSteps), metavar="N", help="environment steps per task (default: the study's)"
    )
    parser.add_argument("--baseline", metavar="ARM", help="the arm that the others are compared with")
    parser.add_argument("--oracle", metavar="ARM", help="the arm whose lead over the baseline is the gap to be closed")
    parser.add_argument("--margin", type=read(Positive), metavar="M", help="smallest difference of scores that matters")
    parser.add_argument(
        "--flops",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="count the floating-point operations of an update, on freshly built agents (default: yes)",
    )
    given = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(given)
    line = shlex.join(["pliant", "report", *(given[1:] if argv is None and given[:1] == ["report"] else given)])
    out = folder_for(arguments.out, "--out")
    if (out / "figures").exists() and not (out / HTML).exists():  # writing a report replaces its figures
        raise BadInput(f"--out {out} holds figures that do not belong to a report: choose another folder")
    report = make_report(
        collect(arguments.runs),
        line,
        measure=arguments.measure,
        segment=arguments.segment,
        baseline=arguments.baseline,
        oracle=arguments.oracle,
        margin=arguments.margin,
        flops=arguments.flops,
        higher_is_better=not arguments.lower_is_better,
    )
    page = report.page()
    write(arguments.out, report, as_html(page), as_markdown(page))
    done = len(report.runs.finished)
    print(f"{done} of {len(report.runs.records)} runs done, {len(report.runs.forks)} forks: {arguments.out / HTML}")
    if not report.drawing:
        print("No figures: they need matplotlib, pip install 'pliant[report]'", file=sys.stderr)
    return 0


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("report"))

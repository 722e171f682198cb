"""Measure speed against Stable-Baselines3: limits of the machine, updates, training, memory, and checkpoints.

    pliant bench                         # limits, updates, training and memory as Markdown; at most five minutes
    pliant bench --write docs/benchmarks.md    # the same, written between the markers of that file
    pliant bench --only pong --rounds 5 --threads 2 --minutes 20
    pliant bench --cleanrl ~/cleanrl --leanrl ~/LeanRL     # their scripts run as they are, in their own folders
    pliant bench --device cuda
    pliant bench --only checkpoint --transitions 100000
    pliant bench --only interventions --save   # the cost of each intervention; saved for its card
    pliant bench --only monitors --save        # the same for monitors

Training needs the extra `peers`. Each measurement of it runs in its own process and trains for real. It warms up past
`learning starts` and then times whole steps: acting, environment, storage, and updates. Within every round, pliant and
its peers take turns, so that other load on the machine affects all. The result is the median of the rounds' ratios.

Every measurement is written to a file as it comes. The same command after a kill goes on with what is missing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pliant.common.files import replacing
from pliant.lab.benchmarks import peers
from pliant.lab.benchmarks.record import Record
from pliant.lab.benchmarks.speed import (
    MEASURES,
    TASKS,
    Settings,
    checkpoint_table,
    interventions_table,
    limits_table,
    measure_speeds,
    memory_table,
    monitors_table,
    speed_rows,
    updates_table,
)
from pliant.lab.commands.arguments import Minutes, Parser, ReplaySizes, Rounds, SomeThreads, read
from pliant.lab.commands.cards import COSTS
from pliant.lab.commands.outputs import file_for, folder_for, written
from pliant.lab.errors import BadInput

DEFAULT = ("limits", "updates", "memory", *TASKS)
TABLES = (*TASKS, "memory", "checkpoint", "interventions", "monitors", "limits", "updates")
RECORD = Path("runs/bench.json")
MARKERS = ("<!-- pliant bench: begin -->", "<!-- pliant bench: end -->")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="pliant bench", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("measure", help="one measurement, in this process")
    one.add_argument("library", choices=MEASURES)
    one.add_argument("task", choices=TASKS)
    for each in (parser, one):
        each.add_argument("--threads", type=read(SomeThreads), default=1, help="threads of each process")
        each.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of both libraries")
    parser.add_argument("--only", nargs="+", choices=TABLES, help="only these tables")
    parser.add_argument("--save", action="store_true", help="save the costs of interventions and monitors for cards")
    parser.add_argument(
        "--rounds", type=read(Rounds), default=3, help="number of rounds: each library is measured once per round"
    )
    parser.add_argument(
        "--minutes",
        type=read(Minutes),
        default=4.0,
        help="time for training; the first round is always made, and a later one only if it will probably end in time",
    )
    parser.add_argument(
        "--transitions", type=read(ReplaySizes), nargs="+", default=[100_000, 1_000_000], help="replay sizes to save"
    )
    parser.add_argument("--cleanrl", type=Path, metavar="DIR", help="a checkout of CleanRL, whose scripts are peers")
    parser.add_argument("--leanrl", type=Path, metavar="DIR", help="a checkout of LeanRL, whose scripts are peers")
    parser.add_argument(
        "--record", type=Path, default=RECORD, metavar="FILE", help=f"file of the measurements (default: {RECORD})"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables between the markers of this file")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadInput("--device cuda: not available on this machine; --device cpu is")
    if arguments.command == "measure":
        import torch

        torch.set_num_threads(arguments.threads)
        seconds = MEASURES[arguments.library](TASKS[arguments.task], arguments.device)
        print(json.dumps({"seconds": seconds}))
        return 0
    wanted = arguments.only or DEFAULT
    names = [name for name in TASKS if name in wanted]
    scripts = {library: folder for library in peers.SCRIPTS if (folder := getattr(arguments, library)) is not None}
    for library, folder in scripts.items():
        peers.check(library, folder, names)
    page = None if arguments.write is None else _page(arguments.write)
    needed = ["stable_baselines3", *(["cv2"] if "pong" in names else [])] if names else []
    if any(find_spec(package) is None for package in needed):
        others = " ".join(name for name in TABLES if name not in TASKS)
        raise BadInput(
            f"--only {' '.join(names)} needs Stable-Baselines3, and OpenCV for Atari: pip install 'pliant[peers]', or "
            f"measure without them: --only {others}"
        )
    if arguments.save:
        file_for(COSTS, "--save")
    folder_for(arguments.record.parent, "--record")
    settings = Settings(arguments.rounds, arguments.threads, arguments.device, 60 * arguments.minutes, scripts)
    lines = _measure(wanted, names, settings, arguments)
    if page is not None:
        begin, end = MARKERS
        with written(arguments.write, "--write"), replacing(arguments.write) as scratch:
            scratch.write_text(f"{page[0]}{begin}\n\n{lines}\n{end}{page[1]}")
    print(lines, end="")
    return 0


def _measure(wanted: Sequence[str], names: list[str], settings: Settings, arguments: object) -> str:
    """Make the tables, as Markdown."""
    import torch

    from pliant.lab.benchmarks.machine import describe, load

    given = {key: str(value) for key, value in vars(arguments).items() if key not in ("record", "write", "command")}
    machine = describe(settings.device)
    record = Record(vars(arguments)["record"], {"machine": machine} | given)
    if record.resumed:
        _note(f"{record.resumed} measurements are in {record.file}; going on with what is missing")
    torch.set_num_threads(settings.threads)
    sections = [[f"- {title}: {text}" for title, text in machine.items()]]
    sections[0].append(f"- load at the start: {record.once('load', load)}")
    if "limits" in wanted:
        sections.append(limits_table(settings.device, record))
    if "updates" in wanted:
        sections.append(updates_table(settings.device, record, _note))
    if "memory" in wanted:
        sections.append(memory_table())
    if names:
        sections.append(speed_rows(measure_speeds(names, settings, record, _note), settings))
    if "checkpoint" in wanted:
        sections.append(checkpoint_table(vars(arguments)["transitions"], record))
    if "interventions" in wanted:
        sections.append(interventions_table(settings.rounds, settings.threads, vars(arguments)["save"], record))
    if "monitors" in wanted:
        sections.append(monitors_table(settings.rounds, settings.threads, vars(arguments)["save"], record))
    record.finish()
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _page(file: Path) -> tuple[str, str]:
    """The text of a page before and after its markers."""
    file_for(file, "--write")
    begin, end = MARKERS
    text = file.read_text() if file.exists() else ""
    parts = re.split(f"{begin}.*?{end}", text, flags=re.DOTALL)
    if len(parts) != 2:
        raise BadInput(f"--write {file} does not contain the lines {begin} and {end} once: name a page that does")
    return parts[0], parts[1]


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("bench"))

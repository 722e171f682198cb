"""Measure speed against Stable-Baselines3: environment steps and updates per second, memory, and checkpoints.

    pliant bench                         # every table, three rounds each, as Markdown
    pliant bench --only pong --rounds 5 --threads 2
    pliant bench --only checkpoint --transitions 100000
    pliant bench --only interventions --save   # the cost of each intervention; saved for its card
    pliant bench --only monitors --save        # the same for monitors

The speed tables need the extra `peers`. Each measurement runs in its own process and trains for real. It warms up past
`learning starts` and then times whole steps: acting, environment, storage, and updates. Within every round, pliant and
Stable-Baselines3 take turns, so that other load on the machine affects both. The result is the median of the rounds'
ratios.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.util import find_spec

from pliant.lab.benchmarks.speed import (
    MEASURES,
    TASKS,
    checkpoint_table,
    interventions_table,
    memory_table,
    monitors_table,
    speed_table,
)
from pliant.lab.commands.arguments import Parser, ReplaySizes, Rounds, SomeThreads, read
from pliant.lab.commands.cards import COSTS
from pliant.lab.commands.outputs import file_for
from pliant.lab.errors import BadInput


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="pliant bench", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("measure", help="one measurement, in this process")
    one.add_argument("library", choices=MEASURES)
    one.add_argument("task", choices=TASKS)
    one.add_argument("--threads", type=read(SomeThreads), default=1)
    tables = [*TASKS, "memory", "checkpoint", "interventions", "monitors"]
    parser.add_argument("--only", nargs="+", choices=tables, help="only these tables")
    parser.add_argument("--save", action="store_true", help="save the costs of interventions and monitors for cards")
    parser.add_argument(
        "--rounds", type=read(Rounds), default=3, help="number of rounds: each library is measured once per round"
    )
    parser.add_argument("--threads", type=read(SomeThreads), default=1, help="threads of each process")
    parser.add_argument(
        "--transitions", type=read(ReplaySizes), nargs="+", default=[100_000, 1_000_000], help="replay sizes to save"
    )
    arguments = parser.parse_args(argv)
    if arguments.command == "measure":
        import torch

        torch.set_num_threads(arguments.threads)
        print(json.dumps({"seconds": MEASURES[arguments.library](TASKS[arguments.task])}))
        return 0
    wanted = arguments.only or tables
    names = [name for name in TASKS if name in wanted]
    if names and find_spec("stable_baselines3") is None:
        others = " ".join(name for name in tables if name not in TASKS)
        raise BadInput(
            f"--only {' '.join(names)} needs Stable-Baselines3: pip install 'pliant[peers]', or measure "
            f"without it: --only {others}"
        )
    if arguments.save:
        file_for(COSTS, "--save")
    import torch

    print(f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores\n")
    if names:
        print("\n".join(speed_table(names, arguments.rounds, arguments.threads)) + "\n")
    if "memory" in wanted:
        print("\n".join(memory_table()) + "\n")
    if "checkpoint" in wanted:
        print("\n".join(checkpoint_table(arguments.transitions)) + "\n")
    if "interventions" in wanted:
        torch.set_num_threads(arguments.threads)
        print("\n".join(interventions_table(arguments.rounds, arguments.threads, arguments.save)) + "\n")
    if "monitors" in wanted:
        torch.set_num_threads(arguments.threads)
        print("\n".join(monitors_table(arguments.rounds, arguments.threads, arguments.save)) + "\n")
    return 0


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("bench"))

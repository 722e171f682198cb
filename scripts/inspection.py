"""Measure a saved agent with the monitors, and test how plastic it still is.

    pliant inspect runs/ALE-Pong-v5/dqn/seed1                     # the newest intact checkpoint of a run
    pliant inspect runs/…/checkpoints/step_000000100000 --monitors units ranks "probe(steps=500)" --json report.json
    pliant inspect agent.pt --env CartPole-v1                     # an agent file has no replay: play to collect states
    pliant inspect agent.pt --observations states.npy
    pliant inspect model.pt --module my_project.nets:QNet --module-args '{"actions": 6}' --input states.npy

The report shows the values that the run's own monitors would have measured at its next update, on states from its
replay. One update is made, on a copy in memory. No file is written except the one given by --json. `pliant monitors`
explains every number.

For a module that is not an agent, the monitors of weights and outputs are available: units, norms, ranks, probe.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pliant.common.ranges import Seed
from pliant.lab.analysis.inspection import SAMPLES, States, agent_inspection, module_inspection
from pliant.lab.commands.arguments import Parser, read
from pliant.lab.commands.outputs import file_for, written
from pliant.lab.errors import BadInput, bad_input
from pliant.lab.experiments.config import usable_device
from pliant.monitors.registry import GROUPS


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="pliant inspect", description=__doc__)
    parser.add_argument("path", type=Path, metavar="PATH", help="a run's folder, a checkpoint, an agent, or weights")
    parser.add_argument(
        "--monitors",
        nargs="+",
        metavar="SPEC",
        help=f'monitors: names, calls like "probe(steps=500)", {", ".join(GROUPS)} (default: all that apply)',
    )
    parser.add_argument("--no-probe", dest="probe", action="store_false", help="leave out the probe, which takes long")
    parser.add_argument(
        "--json", metavar="FILE", help="file for the numbers as JSON; - prints JSON instead of the table"
    )
    parser.add_argument(
        "--env",
        metavar="NAME",
        help="environment to play in, for states or overestimation (default: the run's, for named monitors)",
    )
    parser.add_argument(
        "--interventions",
        nargs="+",
        default=(),
        metavar="SPEC",
        help="interventions of an agent file; a run's are in its configuration",
    )
    parser.add_argument("--observations", type=Path, metavar="FILE", help="states (.npy) instead of the replay")
    parser.add_argument(
        "--samples",
        type=read(States),
        default=SAMPLES,
        help=f"number of states to collect or draw (default: {SAMPLES})",
    )
    parser.add_argument("--module", metavar="PACKAGE.MODULE:CLASS", help="PATH holds a state dict of this module")
    parser.add_argument("--module-args", metavar="JSON", help="arguments of its constructor: an object or a list")
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="FILE|SHAPE",
        help="each argument of the module: a .npy of samples, or the shape of one sample (standard normal draws)",
    )
    parser.add_argument("--seed", type=read(Seed), default=0, help="seed of playing, drawing and sampling (default: 0)")
    parser.add_argument("--device", default="cpu", help="device of the networks (default: cpu)")
    arguments = parser.parse_args(argv)
    arguments.device = usable_device(arguments.device)
    if arguments.module is None and (arguments.module_args is not None or arguments.input):
        raise BadInput("--module-args and --input belong to --module PACKAGE.MODULE:CLASS")
    if arguments.module is not None and (arguments.env or arguments.observations):
        raise BadInput("--env and --observations are for agents; a module gets its --input")
    if arguments.json not in (None, "-"):
        file_for(Path(arguments.json), "--json")
    with bad_input():
        inspection = module_inspection(arguments) if arguments.module is not None else agent_inspection(arguments)
    text = json.dumps(inspection.json(), indent=1)
    if arguments.json == "-":
        print(text)
        return 0
    print(inspection)
    if arguments.json is not None:
        with written(Path(arguments.json), "--json"):
            Path(arguments.json).write_text(text + "\n", encoding="utf-8")
        print(f"\nwritten to {arguments.json}")
    return 0


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("inspect"))

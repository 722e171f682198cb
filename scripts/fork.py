"""Branch a run at one step into arms that share everything up to it: `pliant fork`.

    pliant fork RUN --at 200000 --with "redo(tau=0.1)" --with "reset(layers=head)"
    pliant fork RUN --at 200000 --diagnose --reseed 5        # which component has lost its plasticity?
    pliant fork runs/x/dqn/seed? --at latest --with "shrink_perturb" --for 50000
    pliant fork RUN --at 200000 --why                        # which repair of its weights helps? (starts no runs)

Every arm is a run in its own folder, RUN/forks/<step>/<arm>/seed<k>. It starts with the parent's weights, optimizer,
replay, environments, and random streams at that step, and with the parent's log up to it. `pliant train --config`
continues an arm like any other run. The control arm changes nothing and repeats the parent to the last bit. `k` is the
replicate: replicate 0 continues the parent's random streams; --reseed draws new streams for the others. The streams are
the same in all arms, so that arms are compared in pairs.

An arm's interventions are added to the parent's. Scheduled interventions (`every=`) fire at the fork itself and then on
their schedule. Interventions with `start=` or `when='...'` wait for their condition. Interventions that would change a
network's outputs at once, such as layer norm, cannot be added to a trained network, and are refused by name.

If no checkpoint holds the step, the parent is run again from the last checkpoint before it (or from the start), which
repeats the parent to the last bit.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pliant.agents.checkpoint import saved_steps
from pliant.common.ranges import SomeEnvSteps
from pliant.lab.commands.arguments import Jobs, Parser, Replicates, read
from pliant.lab.errors import BadInput, bad_input
from pliant.lab.experiments.fork import (
    CONTROL,
    Arm,
    arm_of,
    checkpoint_at,
    diagnosis,
    fork,
    fork_step,
    locked_against_forks,
    parent_of,
    resolved,
)
from pliant.lab.experiments.why import explain
from pliant.monitors.registry import check_monitors


def main(argv: list[str] | None = None) -> int:
    line = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="pliant fork", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of the runs to fork")
    parser.add_argument("--at", required=True, metavar="STEP", help="environment steps at which to fork, or latest")
    parser.add_argument(
        "--with",
        type=str,
        dest="arms",
        action="append",
        default=[],
        metavar="SPECS",
        help='an arm: intervention specs, such as "redo(tau=0.1) l2_init"; "" is the control',
    )
    parser.add_argument(
        "--diagnose", action="store_true", help="add arms that show which component has lost plasticity"
    )
    parser.add_argument(
        "--why",
        action="store_true",
        help="repair copies of the networks, one property at a time, and probe each; starts no runs",
    )
    parser.add_argument(
        "--tandem",
        nargs="?",
        type=read(SomeEnvSteps),
        const=10_000,
        metavar="EVERY",
        help="a new agent learns passively from the control's replay; compare them every EVERY steps",
    )
    parser.add_argument("--reseed", type=read(Replicates), default=1, metavar="N", help="replicates of every arm (1)")
    parser.add_argument(
        "--steps", type=read(SomeEnvSteps), metavar="STEP", help="step at which arms end (default: the parent's end)"
    )
    parser.add_argument(
        "--for", dest="length", type=read(SomeEnvSteps), metavar="N", help="or the number of steps after the fork"
    )
    parser.add_argument("--jobs", type=read(Jobs), default=0, help="processes at a time (default: one per core)")
    arguments = parser.parse_args(line)
    if arguments.steps is not None and arguments.length is not None:
        raise BadInput("give --steps or --for, not both")
    parents = [parent_of(folder) for folder in arguments.runs]
    at = fork_step(arguments.at, parents)
    if arguments.why:
        to_reach = [parent for parent in parents if at not in saved_steps(parent.folder)]  # the others need no lock
        with bad_input(), locked_against_forks(to_reach):
            return explain([(parent.folder, checkpoint_at(parent, at)) for parent in parents])
    beside = () if arguments.tandem is None else check_monitors([f"tandem(every={arguments.tandem})"])
    given = [Arm((), CONTROL, None, beside)]
    given += [arm for text in arguments.arms if (arm := arm_of(text)).specs]
    if arguments.diagnose:
        given += diagnosis(parents[0].config)
    by_folder: dict[str, Arm] = {}
    for arm in given:
        if by_folder.setdefault(arm.folder, arm).specs != arm.specs:
            raise BadInput(
                f"two arms have the same folder {arm.folder}, {' '.join(by_folder[arm.folder].specs)!r} and "
                f"{' '.join(arm.specs)!r}: spell out a parameter, or use two commands"
            )
    arms = list(by_folder.values())
    if len(arms) == 1 and not (beside or arguments.arms):
        raise BadInput('nothing to compare: give arms with --with "redo(tau=0.1)", or --diagnose, --tandem or --why')
    threads = max(resolved(parent.config).threads for parent in parents)
    with locked_against_forks(parents):
        return fork(
            parents,
            at,
            arms,
            replicates=arguments.reseed,
            steps=arguments.steps,
            length=arguments.length,
            jobs=arguments.jobs or max(1, (os.cpu_count() or 1) // threads),
        )


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("fork"))

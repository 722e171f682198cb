"""Run a study: `pliant sweep STUDY.yaml`, or `python scripts/sweep.py STUDY.yaml`.

    pliant sweep studies/first_sweep.yaml --dry-run
    pliant sweep studies/first_sweep.yaml --budget 30m
    pliant sweep studies/first_sweep.yaml --status
    pliant sweep studies/first_sweep.yaml --executor slurm --emit sweep.sh --time 04:00:00

A study defines agents, environments, arms and seeds. Every combination is a run of `pliant train` in its own folder.
The run folders are the only record of progress: finished runs are skipped and interrupted runs continue, so repeating
the command completes a sweep that was killed. STUDY may also be the folder of a study that has been started.

Exit codes: 0 all done, 1 some failed, 2 bad input, 75 stopped by a signal or the budget (repeat to continue).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

try:
    from pliant.agents.checkpoint import RunLock
except ModuleNotFoundError as missing:
    if missing.name not in ("pliant", "pliant.agents"):
        raise
    sys.exit("error: pliant is not installed. Run `make train`, or `pip install -e .` in the checkout first")

from pliant.common.ranges import EnvSteps
from pliant.lab.commands.arguments import Gpus, GpusPerRun, HowManySeeds, Jobs, Parser, RunsPerJob, SomeCores, read
from pliant.lab.commands.durations import seconds
from pliant.lab.experiments.on_slurm import Request
from pliant.lab.experiments.pool import Job, Progress, run_all
from pliant.lab.experiments.status import overview, state_of
from pliant.lab.experiments.study import FILE, load_study
from pliant.lab.experiments.sweep import (
    chosen,
    command_line,
    make_root,
    refuse_other_runs,
    script_file,
    slots,
    study_folder,
    submit_to_slurm,
    summarise,
    visible_gpus,
)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="pliant sweep", description=__doc__)
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY", help="a study file, or a study's folder")
    add("--status", action="store_true", help="show the state of all runs, also while they are running")
    add("--dry-run", action="store_true", help="print the commands of the unfinished runs, and run nothing")
    add("--only", action="append", default=[], metavar="ARM", help="only this arm (may be repeated)")
    add("--seeds", type=read(HowManySeeds), default=0, metavar="N", help="only the first N seeds")
    add("--steps", type=read(EnvSteps), default=0, metavar="N", help="runs of N steps, in a separate folder")
    add("--out", type=Path, metavar="DIR", help="folder of the runs (runs/studies/<name>)")
    add("--executor", choices=("local", "ray", "slurm"), default="local", help="executor of the runs (local)")
    add("--budget", metavar="TIME", help="wall clock after which runs save and stop, such as 30m, 90s or 1h30m")
    add("--jobs", type=read(Jobs), default=0, metavar="N", help="runs at a time (default: one per core, or per GPU)")
    add(
        "--gpus-per-run",
        type=read(GpusPerRun),
        default=1.0,
        metavar="X",
        help="on cuda: GPUs per run, or a share of one (1)",
    )
    slurm = parser.add_argument_group("--executor slurm, which writes a script for sbatch")
    slurm.add_argument("--emit", type=Path, metavar="FILE", help="file for the script (default: the terminal)")
    slurm.add_argument("--time", default="24:00:00", help="time limit of a job (24:00:00)")
    slurm.add_argument("--partition", metavar="NAME")
    slurm.add_argument(
        "--cpus", type=read(SomeCores), default=1, metavar="N", help="cores of a job, and runs at a time in it (1)"
    )
    slurm.add_argument("--gpus", type=read(Gpus), default=0, metavar="N", help="GPUs of a job")
    slurm.add_argument("--runs-per-job", type=read(RunsPerJob), default=1, metavar="N")
    arguments = parser.parse_args(argv)
    budget = None if arguments.budget is None else seconds(arguments.budget)
    study = load_study(arguments.study)
    if arguments.steps:
        study = study.scaled(arguments.steps)
    root = study.folder if arguments.out is None else study_folder(arguments.out, "--out")
    request = Request(
        arguments.time,
        arguments.partition or "",
        arguments.cpus,
        arguments.gpus,
        arguments.runs_per_job,
        arguments.jobs,
    )
    emitted = None if arguments.emit is None else script_file(arguments.emit)
    cells = chosen(study, root, arguments.only, arguments.seeds)
    if arguments.status:
        print(overview(study, root, cells))
        return 0
    refuse_other_runs(cells)
    left = [cell for cell in cells if state_of(cell).state != "done"]
    if arguments.dry_run:
        print(f"# {study.name}: {len(left)} of {len(cells)} runs are not done")
        for cell in left:
            print(command_line(cell))
        return 0
    if arguments.executor == "slurm":
        return submit_to_slurm(study, root, left, request, emitted)
    make_root(root)
    with RunLock(root):
        (root / FILE).write_text(study.text, encoding="utf-8")
        progress = Progress(sys.stderr)
        jobs = [Job(cell.config, cell.line) for cell in cells]
        on_gpus = any(cell.config.device == "cuda" for cell in cells)
        if arguments.executor == "ray":
            from pliant.lab.experiments.on_ray import run_on_ray

            outcomes = run_on_ray(
                jobs,
                workers=arguments.jobs,
                gpus=arguments.gpus_per_run if on_gpus else 0.0,
                budget=budget,
                progress=progress,
            )
        else:
            gpus = slots(visible_gpus(), arguments.gpus_per_run) if on_gpus else ()
            workers = arguments.jobs or len(gpus) or os.cpu_count() or 1
            outcomes = run_all(jobs, workers=workers, budget=budget, progress=progress, gpus=gpus)
    return summarise(study, root, cells, outcomes)


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("sweep"))

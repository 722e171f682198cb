"""Run a study: `pliant sweep STUDY.yaml`, or `python scripts/sweep.py STUDY.yaml`.

    pliant sweep studies/first_sweep.yaml --dry-run
    pliant sweep studies/first_sweep.yaml --budget 30m
    pliant sweep studies/first_sweep.yaml --status
    pliant sweep studies/first_sweep.yaml --executor slurm --emit sweep.sh --time 04:00:00

A study names agents, environments, arms and seeds; every combination is a run of `pliant train` in a folder of its own.
The folders are the truth: runs that are done are skipped, those that were interrupted go on, so the same command
finishes what was killed. The study may be a file, or the folder of one that was begun.

Exit codes: 0 all done, 1 some failed, 2 bad input, 75 stopped (signal or budget) and the same command goes on.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

try:
    from pliant.agents.checkpoint import RunLock
except ModuleNotFoundError as missing:
    if missing.name not in ("pliant", "pliant.agents"):
        raise
    sys.exit("error: pliant is not installed. Run `make train`, or `pip install -e .` in the checkout first")

from pliant.agents.ranges import EnvSteps
from pliant.agents.words import control_character, shorten
from pliant.interventions.spec import did_you_mean
from pliant.scripts.arguments import (
    Gpus,
    GpusPerRun,
    HowManySeeds,
    Jobs,
    Parser,
    RunsPerJob,
    SomeCores,
    read,
)
from pliant.scripts.claims import seconds
from pliant.scripts.config import BadInput, differences, load
from pliant.scripts.folder import FREE
from pliant.scripts.pool import STOPPED, Job, Outcome, Progress, run_all
from pliant.scripts.study import FILE, Cell, Study, load_study
from pliant.scripts.sweep_slurm import Request, check_lines, emit
from pliant.scripts.sweep_status import failures, report, state_of


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="pliant sweep", description=__doc__)
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY", help="a study file, or a study's folder")
    add("--status", action="store_true", help="say how all runs stand, also while they run elsewhere")
    add("--dry-run", action="store_true", help="print the commands of what is not done, and run nothing")
    add("--only", action="append", default=[], metavar="ARM", help="this arm alone (may be given again)")
    add("--seeds", type=read(HowManySeeds), default=0, metavar="N", help="the first N seeds alone")
    add("--steps", type=read(EnvSteps), default=0, metavar="N", help="runs of N steps, in a folder of their own")
    add("--out", type=Path, metavar="DIR", help="where the runs stand (runs/studies/<name>)")
    add("--executor", choices=("local", "ray", "slurm"), default="local", help="who runs them (local)")
    add("--budget", metavar="TIME", help="wall clock after which runs save and stop, such as 30m, 90s or 1h30m")
    add(
        "--jobs", type=read(Jobs), default=0, metavar="N",
        help="runs at a time; one for every core, or GPU, if not given",
    )  # fmt: skip
    add(
        "--gpus-per-run", type=read(GpusPerRun), default=1.0, metavar="X",
        help="on cuda: GPUs of a run, or a share of one (1)",
    )  # fmt: skip
    slurm = parser.add_argument_group("--executor slurm, which writes a script for sbatch")
    slurm.add_argument("--emit", type=Path, metavar="FILE", help="where to (the terminal)")
    slurm.add_argument("--time", default="24:00:00", help="time of a job (24:00:00)")
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
    root = study.folder if arguments.out is None else _folder(arguments.out, "--out")
    request = Request(
        arguments.time, arguments.partition or "", arguments.cpus, arguments.gpus, arguments.runs_per_job,
        arguments.jobs,
    )  # fmt: skip
    emitted = None if arguments.emit is None else _script(arguments.emit)
    cells = chosen(study, root, arguments.only, arguments.seeds)
    if arguments.status:
        print(report(study, root, cells))
        return 0
    refuse_other_runs(cells)
    left = [cell for cell in cells if state_of(cell).state != "done"]
    if arguments.dry_run:
        print(f"# {study.name}: {len(left)} of {len(cells)} runs are not done")
        for cell in left:
            print(_line(cell))
        return 0
    if arguments.executor == "slurm":
        return _slurm(study, root, left, request, emitted)
    _make(root)
    with RunLock(root):
        (root / FILE).write_text(study.text, encoding="utf-8")
        progress = Progress(sys.stderr)
        jobs = [Job(cell.config, cell.words) for cell in cells]
        on_gpus = any(cell.config.device == "cuda" for cell in cells)
        if arguments.executor == "ray":
            from pliant.scripts.sweep_ray import run_on_ray

            outcomes = run_on_ray(
                jobs, workers=arguments.jobs, gpus=arguments.gpus_per_run if on_gpus else 0.0, budget=budget,
                progress=progress,
            )  # fmt: skip
        else:
            gpus = slots(visible_gpus(), arguments.gpus_per_run) if on_gpus else ()
            workers = arguments.jobs or len(gpus) or os.cpu_count() or 1
            outcomes = run_all(jobs, workers=workers, budget=budget, progress=progress, gpus=gpus)
    return _account(study, root, cells, outcomes)


def chosen(study: Study, root: Path, only: Sequence[str] = (), seeds: int = 0) -> list[Cell]:
    """The runs that are asked for (BadInput: an arm that is not there, or more seeds than there are)."""
    for arm in only:
        if arm not in study.arms:
            raise BadInput(f"{study.path}: there is no arm {arm!r}.{did_you_mean(arm, study.arms)} "
                           f"arms: {', '.join(study.arms)}")
    if seeds > len(study.seeds):
        raise BadInput(f"{study.path} has {len(study.seeds)} seeds, not {seeds}: give it more in the file")
    wanted = study.seeds[: seeds or None]
    return [cell for cell in study.cells(root) if cell.seed in wanted and (not only or cell.arm in only)]


def refuse_other_runs(cells: Sequence[Cell]) -> None:
    """Refuse a folder in which another run stands, before anything is begun."""
    for cell in cells:
        if (cell.folder / "config.yaml").exists():
            there = load(cell.folder)
            settled = replace(cell.config, device=there.device, threads=there.threads)
            if changed := [name for name in differences(there, settled) if name not in FREE]:
                raise BadInput(f"{cell.folder} holds another run, that differs in {', '.join(changed)}; move it away, "
                               "or choose another --out")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them (BadInput if there are none)."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        import torch

        found = [str(i) for i in range(torch.cuda.device_count())]
    else:
        found = [name.strip() for name in told.split(",") if name.strip() not in ("", "-1")]
    if not found:
        raise BadInput("the study asks for cuda, and there is no GPU here: change its 'device', or go to one")
    return found


def slots(gpus: Sequence[str], per_run: float) -> tuple[str, ...]:
    """`CUDA_VISIBLE_DEVICES` of the runs that fit at a time: all GPUs once, before any is shared.

    Raises:
        BadInput: Fewer GPUs than one run needs, or a share above one that is no whole number.
    """
    if per_run > 1:
        if per_run != int(per_run):
            raise BadInput(f"--gpus-per-run is a share of one GPU or a whole number, not {per_run:g}")
        n = int(per_run)
        if n > len(gpus):
            raise BadInput(f"--gpus-per-run {n}, and there are {len(gpus)} here")
        return tuple(",".join(gpus[i : i + n]) for i in range(0, len(gpus) - n + 1, n))
    return tuple(gpus) * int(1 / per_run + 1e-9)


def _line(cell: Cell) -> str:
    return shlex.join(("pliant", "train", *cell.words))


def _slurm(study: Study, root: Path, left: Sequence[Cell], request: Request, emitted: Path | None) -> int:
    if not left:
        print(f"{study.name}: all runs are done", file=sys.stderr)
        return 0
    check_lines(root, left, emitted)
    _make(root)
    try:
        (root / FILE).write_text(study.text, encoding="utf-8")
        text = emit(study.name, root, left, request, emitted)
    except OSError as error:
        raise BadInput(f"{error.filename or emitted or root} cannot be written: {error.strerror}") from None
    if emitted is None:
        print(text, end="")
    else:
        script = f"./{emitted}" if str(emitted).startswith("-") else str(emitted)
        print(f"{len(left)} runs: sbatch {shlex.quote(script)}", file=sys.stderr)
    return 0


# ------------------------------------------------------------------------------------------------ paths


def _path(path: Path, flag: str) -> Path:
    """A path that was given for something to be written to (BadInput if nothing can stand there)."""
    if (hidden := control_character(str(path))) is not None:
        raise BadInput(f"{flag} {shorten(str(path))} contains {hidden}")
    try:
        path = path.expanduser()
        above = next((folder for folder in path.parents if folder.exists()), Path())
        path.exists()  # an error where a part of the path is too long
    except RuntimeError:
        raise BadInput(f"{flag} {path} begins with ~ and a name, and there is no such user: write ./{path}") from None
    except OSError as error:
        raise BadInput(f"{flag} {shorten(str(path))} cannot be written: {error.strerror}") from None
    if not above.is_dir():
        raise BadInput(f"{flag} {path} cannot be written: {above} is a file, not a folder")
    return path


def _folder(path: Path, flag: str) -> Path:
    path = _path(path, flag)
    if path.exists() and not path.is_dir():
        raise BadInput(f"{flag} {path} is a file: name a folder")
    return path


def _script(path: Path) -> Path:
    path = _path(path, "--emit")
    if path.is_dir():
        raise BadInput(f"--emit {path} is a folder: name the script that is to be written")
    return path


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {root} cannot be written: {error.strerror}") from None


def _account(study: Study, root: Path, cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> int:
    """What came of it, and the exit code."""
    count = {status: sum(o.status == status for o in outcomes) for status in ("done", "failed", "stopped", "waiting")}
    before = sum(o.status == "done" and not o.ran for o in outcomes)
    print(f"{study.name}: {count['done']} of {len(outcomes)} runs done ({before} before)   {root}")
    if count["failed"]:
        where = {str(o.job.folder): o for o in outcomes if o.status == "failed"}
        states = [
            replace(state_of(cell), state="failed", tail=where[str(cell.folder)].tail)
            for cell in cells if str(cell.folder) in where
        ]  # fmt: skip
        print(f"{count['failed']} failed:", *failures(states), sep="\n")
    if unfinished := count["stopped"] + count["waiting"]:
        print(f"{unfinished} runs are not done; the same command goes on with them", file=sys.stderr)
    return 1 if count["failed"] else STOPPED if unfinished else 0


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("sweep"))

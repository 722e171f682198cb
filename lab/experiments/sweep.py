"""Sweeps: the runs of a study, chosen, checked, started, and summarised.

The run folders are the only record of progress: finished runs are skipped and interrupted runs continue, so that
repeating a sweep completes one that was killed.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pliant.common.specs import control_character, shorten
from pliant.interventions.core.spec import did_you_mean
from pliant.lab.errors import BadInput
from pliant.lab.experiments.config import differences, load
from pliant.lab.experiments.folder import FREE, STOPPED
from pliant.lab.experiments.on_slurm import Request, check_lines, emit
from pliant.lab.experiments.pool import Outcome
from pliant.lab.experiments.status import failures, state_of
from pliant.lab.experiments.study import FILE, Cell, Study


def chosen(study: Study, root: Path, only: Sequence[str] = (), seeds: int = 0) -> list[Cell]:
    """The requested runs (BadInput: an unknown arm, or more seeds than the study has)."""
    for arm in only:
        if arm not in study.arms:
            raise BadInput(
                f"{study.path}: there is no arm {arm!r}.{did_you_mean(arm, study.arms)} arms: {', '.join(study.arms)}"
            )
    if seeds > len(study.seeds):
        raise BadInput(f"{study.path} has {len(study.seeds)} seeds, not {seeds}: give it more in the file")
    wanted = study.seeds[: seeds or None]
    return [cell for cell in study.cells(root) if cell.seed in wanted and (not only or cell.arm in only)]


def refuse_other_runs(cells: Sequence[Cell]) -> None:
    """Refuse folders that hold another run, before anything is started."""
    for cell in cells:
        if (cell.folder / "config.yaml").exists():
            there = load(cell.folder)
            settled = replace(cell.config, device=there.device, threads=there.threads)
            if changed := [name for name in differences(there, settled) if name not in FREE]:
                raise BadInput(
                    f"{cell.folder} holds another run, which differs in {', '.join(changed)}; move it away, "
                    "or choose another --out"
                )


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them (BadInput if there are none)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        gpus = [str(i) for i in range(torch.cuda.device_count())]
    else:
        gpus = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if not gpus:
        raise BadInput("the study needs cuda, and this machine has no GPU: change its 'device', or use another machine")
    return gpus


def slots(gpus: Sequence[str], per_run: float) -> tuple[str, ...]:
    """`CUDA_VISIBLE_DEVICES` for the runs that fit at a time: all GPUs once, before any is shared.

    Raises:
        BadInput: Fewer GPUs than one run needs, or a share above one that is not a whole number.
    """
    if per_run > 1:
        if per_run != int(per_run):
            raise BadInput(f"--gpus-per-run must be a share of one GPU or a whole number, not {per_run:g}")
        n = int(per_run)
        if n > len(gpus):
            raise BadInput(f"--gpus-per-run {n}: this machine has {len(gpus)}")
        return tuple(",".join(gpus[i : i + n]) for i in range(0, len(gpus) - n + 1, n))
    return tuple(gpus) * int(1 / per_run + 1e-9)


def command_line(cell: Cell) -> str:
    return shlex.join(("pliant", "train", *cell.line))


def submit_to_slurm(study: Study, root: Path, left: Sequence[Cell], request: Request, emitted: Path | None) -> int:
    if not left:
        print(f"{study.name}: all runs are done", file=sys.stderr)
        return 0
    check_lines(root, left, emitted)
    make_root(root)
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
    """A given output path (BadInput if nothing can be written there)."""
    if (hidden := control_character(str(path))) is not None:
        raise BadInput(f"{flag} {shorten(str(path))} contains {hidden}")
    try:
        path = path.expanduser()
        above = next((folder for folder in path.parents if folder.exists()), Path())
        path.exists()  # an error if a part of the path is too long
    except RuntimeError:
        raise BadInput(f"{flag} {path} begins with ~ and a name, and there is no such user: write ./{path}") from None
    except OSError as error:
        raise BadInput(f"{flag} {shorten(str(path))} cannot be written: {error.strerror}") from None
    if not above.is_dir():
        raise BadInput(f"{flag} {path} cannot be written: {above} is a file, not a folder")
    return path


def study_folder(path: Path, flag: str) -> Path:
    path = _path(path, flag)
    if path.exists() and not path.is_dir():
        raise BadInput(f"{flag} {path} is a file: name a folder")
    return path


def script_file(path: Path) -> Path:
    path = _path(path, "--emit")
    if path.is_dir():
        raise BadInput(f"--emit {path} is a folder: name the script that is to be written")
    return path


def make_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {root} cannot be written: {error.strerror}") from None


def summarise(study: Study, root: Path, cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> int:
    """Print the results. Returns the exit code."""
    count = {status: sum(o.status == status for o in outcomes) for status in ("done", "failed")}
    before = sum(o.status == "done" and not o.ran for o in outcomes)
    print(f"{study.name}: {count['done']} of {len(outcomes)} runs done ({before} before)   {root}")
    if count["failed"]:
        where = {str(o.job.folder): o for o in outcomes if o.status == "failed"}
        states = [
            replace(state_of(cell), state="failed", tail=where[str(cell.folder)].tail)
            for cell in cells
            if str(cell.folder) in where
        ]
        print(f"{count['failed']} failed:", *failures(states), sep="\n")
    return exit_code_of(outcomes)


def exit_code_of(outcomes: Sequence[Outcome]) -> int:
    """1 if some failed, 75 if some are not done (with a message), otherwise 0."""
    if unfinished := sum(outcome.status in ("stopped", "waiting") for outcome in outcomes):
        print(f"{unfinished} runs are not done; the same command goes on with them", file=sys.stderr)
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else STOPPED if unfinished else 0

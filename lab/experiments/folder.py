"""The folder of a run: checks whether it is usable, which run it holds, whether that is done, and which versions ran.

Only `describe` changes the folder.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...agents.checkpoint import has_saved, saved_steps
from ...common.files import read_json, steps_done, write_whole
from ...common.moved import moved
from ..errors import BadInput, bad_input
from .config import RunConfig, differences, dump, load
from .own_modules import described

CONFIG, VERSIONS, FAILURE = "config.yaml", "versions.json", "FAILED"
STOPPED = 75  # exit code of a run that was stopped after saving: try again (EX_TEMPFAIL)
PACKAGES = ("pliant", "torch", "numpy", "gymnasium", "ale-py", "mujoco", "minatar", "tensorboard")

# Settings that may change between two sessions of a run, because they do not change the run itself.
FREE = {"run", "monitors", "resume", "steps", "checkpoint_every", "keep_checkpoints"}

# Errors in making or locking a folder that depend on the place: another folder may work.
ANOTHER_FOLDER_HELPS = {
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
LONGEST_INSIDE = "checkpoints/step_000000000000000.tmp/interventions.pt.tmp"


def check_place(folder: Path) -> None:
    """Refuse a path that cannot be a run folder (BadInput): below a file, or with a name that is too long."""

    def refuse(why: str) -> BadInput:
        name = str(folder) if len(str(folder)) <= 200 else f"{str(folder)[:199]}…"
        return BadInput(f"--run {name!r}: {why}. Choose another --run")

    try:
        os.stat(folder / LONGEST_INSIDE)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise refuse("the name is too long for the disk") from None
    for place in (folder, *folder.parents):
        try:
            there = os.stat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise refuse(f"{place} cannot be used: {error.strerror}") from None
        if not stat.S_ISDIR(there.st_mode):
            raise refuse(f"{place} is a file, not a folder")
        longest = os.pathconf(place, "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > longest for part in folder.parts):
            raise refuse("the name is too long for the disk")
        return


def is_done(folder: Path, config: RunConfig) -> bool:
    """Whether the run is done for the requested steps (FileDamaged)."""
    steps = steps_done(folder)
    return steps is not None and steps >= config.steps


def check_same_run(folder: Path, config: RunConfig) -> None:
    """Refuse to mix two runs in one folder, or to start again in the folder of a run that has lost its checkpoints
    (BadInput)."""
    file = folder / CONFIG
    if not file.exists():
        if saved_steps(folder):
            raise BadInput(f"{folder} holds checkpoints, but no {CONFIG}: restore it, or choose another --run")
        return
    if config.resume == "never":
        raise BadInput(
            f"{folder} already holds a run; continue it with --resume auto, or choose another --run or --seed"
        )
    with bad_input():
        changed = {name: pair for name, pair in differences(load(folder), config).items() if name not in FREE}
    if changed:
        listed = "; ".join(f"--{name.replace('_', '-')} {old} there, {new} now" for name, (old, new) in changed.items())
        raise BadInput(f"{folder} holds another run: {listed}. Choose another --run")


def check_not_lost(folder: Path) -> None:
    """Refuse to start again in the folder of a run that has saved but has lost its checkpoints (BadInput)."""
    if (evidence := has_saved(folder)) is not None:
        raise BadInput(
            f"{folder} has no checkpoint, but its run has saved ({evidence} exists): checkpoints/ was deleted or "
            "emptied. Restore it from a copy; or, to start again, move the folder away or choose another --run"
        )


def sessions(folder: Path) -> list[Any]:
    """The sessions so far, from `versions.json` (FileDamaged)."""
    way_out = "Move it away; the same command then continues and starts a new one"
    return read_json(folder / VERSIONS, list, way_out) or []


def describe(folder: Path, config: RunConfig, before: list[Any]) -> None:
    """Append this session's versions and machine to `versions.json` (WriteFailed)."""
    write_whole(folder / CONFIG, dump(replace(config, run=None)))
    session: dict[str, Any] = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": git(),
        "packages": {name: package(name) for name in PACKAGES},
    }
    if modules := described(config.env):
        session["modules"] = modules
    if not before or before[-1] != session:
        write_whole(folder / VERSIONS, json.dumps([*before, session], indent=1) + "\n")


def package(name: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git() -> str | None:
    """The commit of the running checkout, with a mark if files were changed since."""
    here = Path(__file__).resolve().parent
    call: Callable[..., Any] = lambda *arguments: subprocess.run(  # noqa: E731
        ["git", "-C", str(here), *arguments], capture_output=True, text=True
    )
    try:
        commit = call("rev-parse", "HEAD")
        changed = call("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return None
    if commit.returncode:
        return None
    return str(commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""))


__getattr__ = moved(__name__, {"ELSEWHERE": f"{__name__}.ANOTHER_FOLDER_HELPS"})  # former names

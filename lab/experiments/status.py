"""The state of a study's runs, read from their folders. The runs may have run anywhere. Reading takes no lock and
changes nothing.

A run is done (its folder records it), running (a process holds its lock), failed (its last session recorded an error),
interrupted (started, and able to continue from its checkpoint) or waiting.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.files import steps_done
from ...common.moved import moved
from .folder import FAILURE
from .pool import OUTPUT, tail
from .study import Cell, Study

STATES = ("done", "running", "interrupted", "failed", "waiting")


@dataclass(frozen=True)
class State:
    """The state of a run: one of `STATES`, its environment steps so far, and for a failed run its last output."""

    cell: Cell
    state: str
    steps: int = 0
    tail: tuple[str, ...] = ()


def state_of(cell: Cell) -> State:
    """The state of a run, from its folder alone (FileDamaged: DONE is damaged)."""
    folder = cell.folder
    if (steps := steps_done(folder)) is not None and steps >= cell.config.steps:
        return State(cell, "done", steps)
    if locked(folder / ".lock"):
        return State(cell, "running", max(_saved(folder), _logged(folder)))
    if (folder / FAILURE).exists():
        end = (folder / FAILURE).read_text(errors="replace").strip() or "failed"
        return State(cell, "failed", _saved(folder), tail(folder / OUTPUT, end))
    begun = (folder / "config.yaml").exists()
    return State(cell, "interrupted" if begun else "waiting", _saved(folder))


def _saved(folder: Path) -> int:
    """Steps of the newest checkpoint, from which the run would continue."""
    matches = [re.fullmatch(r"step_(\d+)", path.name) for path in folder.glob("checkpoints/step_*")]
    return max((int(match[1]) for match in matches if match), default=0)


def _logged(folder: Path) -> int:
    """Steps of the last whole line of the metrics."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().split(b"\n")[1:-1]
    except FileNotFoundError:
        return 0
    try:
        return int(json.loads(lines[-1])["steps"]) if lines else 0
    except (ValueError, KeyError, TypeError, RecursionError):  # the damage is reported when the run continues
        return 0


def locked(file: Path) -> bool:
    """Whether a process holds this lock. If possible this is decided without acquiring it, since a run that needs it at
    the same moment would fail."""
    try:
        with file.open("rb") as opened:
            holder = re.match(rb"pid (\d+) on (\S+)", opened.read(1000))
            locks = Path("/proc/locks")
            if locks.exists() and (holder is None or holder[2].decode() == socket.gethostname()):
                inode = os.fstat(opened.fileno()).st_ino
                rows = [line.split() for line in locks.read_text().splitlines()]
                return any(
                    row[1] == "FLOCK"
                    and row[-3].rpartition(":")[2] == str(inode)
                    and (holder is None or int(row[-4]) == int(holder[1]))
                    for row in rows
                    if "->" not in row
                )
            try:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except FileNotFoundError:
        return False


def overview(study: Study, root: Path, cells: Iterable[Cell]) -> str:
    """The whole study: one line, a table by arm, and the runs that failed or are in progress."""
    states = [state_of(cell) for cell in cells]
    counts = {name: sum(s.state == name for s in states) for name in STATES}
    others = ", ".join(f"{n} {name}" for name, n in counts.items() if n and name != "done")
    lines = [f"{study.name}: {counts['done']} of {len(states)} runs done{', ' if others else ''}{others}   {root}", ""]
    lines += table(states)
    if in_progress := [s for s in states if s.state in ("running", "interrupted")]:
        lines += [
            "",
            *(f"{s.state}: {s.cell.name} at step {s.steps:,} of {s.cell.config.steps:,}" for s in in_progress),
        ]
    if counts["failed"]:
        lines += ["", *failures(states)]
    return "\n".join(lines)


def table(states: Sequence[State]) -> list[str]:
    """A row for every arm of every agent in every environment: the number of runs in each state, and the share of their
    steps that is done."""
    groups: dict[tuple[str, str, str], list[State]] = {}
    for state in states:
        groups.setdefault((state.cell.environment, state.cell.agent, state.cell.arm), []).append(state)
    rows = [["environment", "agent", "arm", "seeds", *STATES, "steps"]]
    for names, group in groups.items():
        counts = [sum(s.state == name for s in group) for name in STATES]
        made = sum(min(s.steps, s.cell.config.steps) for s in group) / sum(s.cell.config.steps for s in group)
        rows.append([*names, str(len(group)), *(str(n) if n else "-" for n in counts), f"{100 * made:.0f} %"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def failures(states: Iterable[State]) -> list[str]:
    """The failed runs, their folders, and their last lines."""
    lines = []
    for s in states:
        if s.state == "failed":
            lines.append(f"failed: {s.cell.name} at step {s.steps:,}   {s.cell.folder / OUTPUT}")
            lines += [f"    {line}" for line in s.tail]
    return lines


__getattr__ = moved(__name__, {"report": f"{__name__}.overview"})  # former names

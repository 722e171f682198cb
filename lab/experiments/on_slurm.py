"""A study as an array of SLURM jobs: a script, and a file of commands next to it, one run per line.

A line is the folder of the run, a tab, and its command, quoted for the shell. Neither contains control characters, so
that each line is exactly one run. The folder is never interpreted by the shell.

Writing the script does not need SLURM. When a job must stop (its time ends in two minutes, or it is preempted), it
signals its runs, which save. Then it is queued again and the runs continue. Finished runs exit at once, so the same
script can be submitted again for the failed ones.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.specs import control_character, shorten
from ..errors import BadInput
from .folder import FAILURE, STOPPED
from .pool import OUTPUT
from .study import Cell


@dataclass(frozen=True)
class Request:
    """The resources of a job of the array: `time` in SLURM's format, and `cpus` runs at a time."""

    time: str = "24:00:00"
    partition: str = ""
    cpus: int = 1
    gpus: int = 0
    runs_per_job: int = 1
    at_once: int = 0

    def __post_init__(self) -> None:
        if min(self.cpus, self.runs_per_job) < 1 or min(self.gpus, self.at_once) < 0:
            raise BadInput("--cpus and --runs-per-job are at least 1, and --gpus and --jobs not negative")
        if not TIME.fullmatch(self.time):
            shown = shorten(self.time)
            raise BadInput(f"--time is a time like 04:00:00, 90 (minutes) or 2-12:00:00 (with days), not {shown}")
        if self.partition and not PARTITION.fullmatch(self.partition):
            raise BadInput(
                "--partition is the name of a partition, or several with commas between them, not "
                f"{shorten(self.partition)}"
            )


TIME = re.compile(r"[0-9]{1,6}(:[0-9]{1,2}){0,2}|[0-9]{1,5}-[0-9]{1,2}(:[0-9]{1,2}){0,2}|UNLIMITED|INFINITE", re.I)
PARTITION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(,[A-Za-z0-9_][A-Za-z0-9_.+-]*)*", re.A)


def command(cell: Cell) -> str:
    """A line of the file: folder and command. `exec`, so that a signal reaches the run.

    Raises:
        BadInput: The folder or an argument contains characters that would break the line.
    """
    for text in (str(cell.folder), *cell.line):
        if (hidden := control_character(text)) is not None:
            raise BadInput(f"{shorten(text)} contains {hidden}: not allowed in a SLURM script")
    return f"{cell.folder}\texec {shlex.join(('pliant', 'train', *cell.line))}"


def script(name: str, root: Path, cells: Sequence[Cell], commands: Path, request: Request) -> str:
    """The array script, for `sbatch`."""
    jobs = math.ceil(len(cells) / request.runs_per_job)
    options = [
        f"--job-name=pliant-{name}",
        f"--array=0-{jobs - 1}" + (f"%{request.at_once}" if request.at_once else ""),
        f"--time={request.time}",
        *([f"--partition={request.partition}"] if request.partition else []),
        f"--cpus-per-task={request.cpus}",
        *([f"--gpus={request.gpus}"] if request.gpus else []),
        "--requeue",
        "--open-mode=append",
        "--signal=B:TERM@120",
    ]
    head = "\n".join(f"#SBATCH {option}" for option in options)
    return f"""#!/bin/bash
{head}
# {len(cells)} runs, {request.runs_per_job} in a job, {request.cpus} at a time. The output of a run is in its folder.
cd -- {shlex.quote(os.getcwd())} || exit 1
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
commands={shlex.quote(str(commands))}
first=$((SLURM_ARRAY_TASK_ID * {request.runs_per_job} + 1))
last=$((first + {request.runs_per_job} - 1))
stopped=0
failed=0
trap 'stopped=1; pids=$(jobs -p); [ -z "$pids" ] || kill -TERM $pids 2>/dev/null' TERM INT

# One run, by its folder, command and number; its exit code is left in a file of the job's own, which outlives an
# interrupted `wait`.
codes=$(mktemp -d)
run() {{
    folder=$1
    case $folder in -*) folder=./$folder ;; esac
    trap '[ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
    mkdir -p "$folder"
    bash -c "$2" >> "$folder/{OUTPUT}" 2>&1 &
    child=$!
    wait "$child"; code=$?
    while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
    echo "$code" > "$codes/$3"
    if [ "$code" = 0 ] || [ "$code" = {STOPPED} ]; then rm -f "$folder/{FAILURE}"
    else echo "exit code $code" > "$folder/{FAILURE}"; fi
}}

number=0
while IFS=$'\t' read -r place line; do
    number=$((number + 1))
    {{ [ "$number" -ge "$first" ] && [ "$number" -le "$last" ]; }} || continue
    while [ "$stopped" = 0 ] && [ "$(jobs -rp | wc -l)" -ge {request.cpus} ]; do wait -n; done
    [ "$stopped" = 0 ] || break
    run "$place" "$line" "$number" &
done < "$commands"
while [ -n "$(jobs -rp)" ]; do wait; done

for file in "$codes"/*; do
    [ -e "$file" ] || continue
    case $(cat "$file") in 0) ;; {STOPPED}) stopped=1 ;; *) failed=1 ;; esac
done
rm -rf "$codes"
if [ "$stopped" = 1 ]; then
    # Not all is done: into the queue again. SLURM may have done so itself already.
    command -v scontrol > /dev/null && scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
    exit {STOPPED}
fi
exit "$failed"
"""


def check_lines(root: Path, cells: Sequence[Cell], path: Path | None) -> None:
    """Refuse text that would alter the script (BadInput), before anything is written."""
    for text in (str(_place(root, path)), os.getcwd()):
        if (hidden := control_character(text)) is not None:
            raise BadInput(f"the path {shorten(text)} contains {hidden}: not allowed in a SLURM script")
    for cell in cells:
        command(cell)


def _place(root: Path, path: Path | None) -> Path:
    return (path or root / "sweep.sh").absolute()


def emit(name: str, root: Path, cells: Sequence[Cell], request: Request, path: Path | None) -> str:
    """Write the script to `path` and the commands next to it; without a path, write the
    commands to the study's folder and return the script for printing.

    An array reads its commands when its jobs start, which may be long after the next script was made. So the name of
    their file contains a hash of its content (`path`-<hash>.commands), and it is never overwritten.

    Raises:
        BadInput: A path, a folder or an argument contains control characters. Nothing was written.
    """
    check_lines(root, cells, path)
    lines = "".join(command(cell) + "\n" for cell in cells)
    place = _place(root, path)
    commands = place.with_name(f"{place.stem}-{hashlib.sha256(lines.encode()).hexdigest()[:8]}.commands")
    commands.parent.mkdir(parents=True, exist_ok=True)
    commands.write_text(lines, encoding="utf-8")
    text = script(name, root, cells, commands, request)
    if path is not None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    return text

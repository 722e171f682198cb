"""A study as an array of SLURM jobs: a script, and beside it a file of commands, one run a line.

Nothing of SLURM is needed to write them. A job that is asked to stop (its time is up in two minutes, or it is
preempted) passes that on to its runs, which save; then it is queued again, and they go on. Runs that are done leave at
once, so the same script can be submitted again for what failed.
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import BadInput
from .pool import FAILURE, OUTPUT, STOPPED
from .study import Cell


@dataclass(frozen=True)
class Request:
    """What a job of the array asks for: `time` as SLURM spells it, and `cpus` runs at a time."""

    time: str = "24:00:00"
    partition: str = ""
    cpus: int = 1
    gpus: int = 0
    runs_per_job: int = 1
    at_once: int = 0

    def __post_init__(self) -> None:
        if min(self.cpus, self.runs_per_job) < 1 or min(self.gpus, self.at_once) < 0:
            raise BadInput("--cpus and --runs-per-job are at least 1, and --gpus and --jobs not negative")


def command(cell: Cell) -> str:
    """A line of the file: the run, with what it prints in its folder. `exec`, so that a signal reaches the run."""
    folder = shlex.quote(str(cell.folder))
    return f"mkdir -p {folder} && exec {shlex.join(('pliant', 'train', *cell.words))} >> {folder}/{OUTPUT} 2>&1"


def script(name: str, root: Path, cells: Sequence[Cell], commands: Path, request: Request) -> str:
    """The array script (what `sbatch` is given)."""
    jobs = math.ceil(len(cells) / request.runs_per_job)
    options = [
        f"--job-name=pliant-{name}", f"--array=0-{jobs - 1}" + (f"%{request.at_once}" if request.at_once else ""),
        f"--time={request.time}", *([f"--partition={request.partition}"] if request.partition else []),
        f"--cpus-per-task={request.cpus}", *([f"--gpus={request.gpus}"] if request.gpus else []),
        "--requeue", "--open-mode=append", "--signal=B:TERM@120",
    ]  # fmt: skip
    head = "\n".join(f"#SBATCH {option}" for option in options)
    return f"""#!/bin/bash
{head}
# {len(cells)} runs, {request.runs_per_job} in a job, {request.cpus} at a time. What a run prints stands in its folder.
cd {shlex.quote(os.getcwd())} || exit 1
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
commands={shlex.quote(str(commands))}
first=$((SLURM_ARRAY_TASK_ID * {request.runs_per_job} + 1))
last=$((first + {request.runs_per_job} - 1))
stopped=0
failed=0
trap 'stopped=1; pids=$(jobs -p); [ -z "$pids" ] || kill -TERM $pids 2>/dev/null' TERM INT

# One run; its exit code is left in a file of the job's own, which outlives an interrupted `wait`.
codes=$(mktemp -d)
run() {{
    trap '[ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
    bash -c "$1" &
    child=$!
    wait "$child"; code=$?
    while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
    echo "$code" > "$codes/$2"
    folder=${{1#mkdir -p }}; folder=${{folder%% && exec *}}
    eval "folder=$folder"
    if [ "$code" = 0 ] || [ "$code" = {STOPPED} ]; then rm -f "$folder/{FAILURE}"
    else echo "exit code $code" > "$folder/{FAILURE}"; fi
}}

number=0
while IFS= read -r line; do
    number=$((number + 1))
    {{ [ "$number" -ge "$first" ] && [ "$number" -le "$last" ]; }} || continue
    while [ "$stopped" = 0 ] && [ "$(jobs -rp | wc -l)" -ge {request.cpus} ]; do wait -n; done
    [ "$stopped" = 0 ] || break
    run "$line" "$number" &
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


def emit(name: str, root: Path, cells: Sequence[Cell], request: Request, path: Path | None) -> str:
    """Write the script to `path` and the commands beside it; without a path, the commands to the study's folder, and
    the script is what is returned, to be printed.

    An array reads its commands when its jobs start, which may be long after the next script was made: so their file is
    named by what stands in it (`path`-<hash>.commands), and never written again.
    """
    lines = "".join(command(cell) + "\n" for cell in cells)
    place = (path or root / "sweep.sh").absolute()
    commands = place.with_name(f"{place.stem}-{hashlib.sha256(lines.encode()).hexdigest()[:8]}.commands")
    commands.parent.mkdir(parents=True, exist_ok=True)
    commands.write_text(lines, encoding="utf-8")
    text = script(name, root, cells, commands, request)
    if path is not None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    return text

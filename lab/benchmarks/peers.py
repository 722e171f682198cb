"""Scripts of CleanRL and LeanRL in a folder of the user's: they run as they are, and print their own speed.

Their figures are means from their start (CleanRL) or from their first updates (LeanRL), so a short run of CleanRL shows
a higher speed than a long one: its first steps make no updates.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from pliant.lab.errors import BadInput

SCRIPTS: dict[str, dict[str, str]] = {
    "cleanrl": {
        "pong": "cleanrl/dqn_atari.py",
        "cartpole": "cleanrl/dqn.py",
        "halfcheetah": "cleanrl/sac_continuous_action.py",
    },
    "leanrl": {"cartpole": "leanrl/dqn_torchcompile.py", "halfcheetah": "leanrl/sac_continuous_action_torchcompile.py"},
}
ENVIRONMENTS = {"pong": "PongNoFrameskip-v4", "cartpole": "CartPole-v1", "halfcheetah": "HalfCheetah-v4"}
NAMES = {"cleanrl": "CleanRL", "leanrl": "LeanRL"}
SPEED = re.compile(r"(?:SPS:|speed:)\s*([0-9]+(?:\.[0-9]+)?)")
LIMIT = 600  # seconds of one script


class ScriptFailed(RuntimeError):
    """A script ended with an error, or printed no speed."""


def script_for(library: str, task: str, folder: Path) -> Path | None:
    """The script of a library for a task; None if the library or the folder has none."""
    name = SCRIPTS[library].get(task)
    if name is None:
        return None
    places = (folder / name, folder / Path(name).name)
    return next((place.resolve() for place in places if place.is_file()), None)


def check(library: str, folder: Path, tasks: list[str]) -> None:
    """Refuse a folder that holds no script for any of these tasks (BadInput)."""
    if not folder.is_dir():
        raise BadInput(f"--{library} {folder} is not a folder: name a checkout of {NAMES[library]}")
    if not any(script_for(library, task, folder) for task in tasks):
        wanted = ", ".join(name for task, name in SCRIPTS[library].items() if task in tasks) or "a script for these"
        raise BadInput(f"--{library} {folder} holds none of {wanted}: name a checkout of {NAMES[library]}")


def arguments(library: str, task: str, *, steps: int, learning_starts: int, batch: int, device: str) -> list[str]:
    """The command line of a script after its name."""
    line = [
        *("--env-id", ENVIRONMENTS[task], "--total-timesteps", str(steps)),
        *("--learning-starts", str(learning_starts), "--batch-size", str(batch), "--buffer-size", "10000"),
        "--no-cuda" if device == "cpu" else "--cuda",
    ]
    if library == "leanrl" and device != "cpu":
        line += ["--compile", "--cudagraphs"]
    return line


def steps_per_second(script: Path, line: list[str], threads: int) -> float:
    """The last speed that a script prints.

    Raises:
        ScriptFailed: It ended with an error, took more than ten minutes, or printed no speed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "WANDB_MODE": "disabled", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, str(script), *line],
            cwd=script.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise ScriptFailed(f"{script.name} took more than {LIMIT} seconds") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without output"]
        raise ScriptFailed(f"{script.name} ended with exit code {done.returncode}: {lines[-1]}")
    speeds = SPEED.findall(done.stdout + done.stderr)
    if not speeds:
        raise ScriptFailed(f"{script.name} printed no speed in {' '.join(line)}")
    return float(speeds[-1])

"""Several seeds of a run in one process (`pliant train --seeds K`): configurations, memory, progress and failures.

Each seed is the run that it would be alone, to the last bit, in a folder of its own. The ordinary command continues one
of them alone (`--run FOLDER/seed3 --seed 3`), and the same command continues all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from ...agents import Agent
from ...agents.clock import Clock
from ...agents.progress import Progress
from ...common.memory import in_bytes, refuse_too_many
from ...envs import bytes_needed
from ...envs.config import suite
from ..errors import BadInput, bad_input
from .config import RunConfig, run_folder
from .folder import CONFIG


class SeedsFailed(RuntimeError):
    """The training of some seeds failed; the others went on."""


def seeds_of(config: RunConfig, number: int) -> list[RunConfig]:
    """The configurations of consecutive seeds, each with its folder below that of the configuration.

    Raises:
        BadInput: The folder is that of a single run, or a seed is out of range.
    """
    configs = [replace(config, seed=config.seed + i) for i in range(number)]
    if config.run is None:
        return configs
    folder = run_folder(config)
    if (folder / CONFIG).exists():
        raise BadInput(f"--run {folder} holds a single run: continue it without --seeds, or choose another --run")
    return [replace(each, run=str(folder / name_of(each))) for each in configs]


def name_of(config: RunConfig) -> str:
    """The name of a seed: that of its folder."""
    return f"seed{config.seed}"


def describe_seeds(agent: Agent, config: RunConfig, number: int) -> str:
    """One line about the memory that a number of seeds takes, after a check that it is there.

    Args:
        agent: The agent of one of them.

    Raises:
        BadInput: They do not fit. The message states how many would.
    """
    simulators = bytes_needed(suite(config.env), config.num_envs, config.env_config)
    learners = agent.network_bytes + agent.memory_bytes(config.num_envs)
    on_host = agent.device.type == "cpu"
    with bad_input():
        refuse_too_many(number, "seeds", simulators + learners * on_host, "cpu", "--seeds")
        if not on_host:
            refuse_too_many(number, "seeds", learners, agent.device, "--seeds")
    each = simulators + learners
    return f"{number} seeds take {in_bytes(number * each)}, {in_bytes(each)} each: networks, memory and environments"


def listed(names: Sequence[str]) -> str:
    """The names, or the first and the last if there are more than four."""
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]} … {names[-1]}"


class SeedProgress(Progress):
    """The progress of one of the seeds, which is a part of a shared line."""

    def __init__(self, shared: SharedProgress, name: str) -> None:
        self.shared, self.name = shared, name
        self.clock = Clock()
        self.mean_return: float | None = None

    def update(self, clock: Clock, mean_return: float | None = None) -> None:
        self.clock, self.mean_return = clock, mean_return

    def note(self, text: str) -> None:
        """Write a separate line, which names the seed, above the progress line."""
        self.shared.line.note(f"{self.name}: {text}")

    def close(self) -> None:
        """Does nothing: the shared line ends with the last seed."""


class SharedProgress:
    """One progress line for several seeds: the sum of their steps and the mean of their returns.

    Args:
        total_steps: Environment steps of each seed.
        stream, now: As for `Progress`.
    """

    def __init__(
        self,
        names: Sequence[str],
        total_steps: int,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.line = Progress(total_steps * len(names), stream, now)
        self.seeds = [SeedProgress(self, name) for name in names]

    def show(self) -> None:
        """Write the progress of all seeds, if it is time to."""
        returns = [seed.mean_return for seed in self.seeds if seed.mean_return is not None]
        mean = sum(returns) / len(returns) if returns else None
        self.line.update(Clock(steps=sum(seed.clock.steps for seed in self.seeds)), mean)


def failure_of(failed: dict[str, Exception], number: int) -> Exception:
    """The error that ends a command after some of `number` seeds failed: a bug itself, or a line about all of them."""
    for error in failed.values():
        if type(error).__module__.partition(".")[0] != "pliant":
            return error
    reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
    return SeedsFailed(f"{len(failed)} of {number} seeds failed, the others went on. {reasons}")


def folders_of(folders: Sequence[Path]) -> str:
    """The folders of seeds as one text: the parent folder, and the names within it."""
    return (
        f"{folders[0].parent}/ {listed([folder.name for folder in folders])}" if len(folders) > 1 else str(folders[0])
    )

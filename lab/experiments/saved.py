"""Saved agents named on a command line: a run's folder, a checkpoint's folder, or a file written by `Agent.save`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...agents import Agent
from ...agents.checkpoint import Checkpoint, Checkpoints
from ...agents.saved import BadFile, check_is_agent, read_agent
from ...envs import Envs
from ...interventions import INTERVENTIONS
from ...interventions.core.spec import build
from ..errors import BadInput
from .config import RunConfig, known, load


@dataclass(frozen=True)
class Saved:
    """A saved agent before it is built.

    Attributes:
        path: The given path.
        content: The input of `Agent.from_content`.
        source: The file or checkpoint that holds it.
        checkpoint: The checkpoint; None for an agent file.
        config: The configuration of its run; None for an agent file or a checkpoint without a run.
    """

    path: Path
    content: dict[str, Any]
    source: str
    checkpoint: Checkpoint | None = None
    config: RunConfig | None = None

    def build(self, device: str, interventions: Sequence[str] = ()) -> Agent:
        """The agent on a device. `interventions` are those of an agent without a run.

        Raises:
            ValueError: `BadFile` or another that names the file: the agent is unknown or incomplete, or was
                saved with other interventions.
        """
        try:
            agent_class = known().agent_class(self.content["agent"])
        except BadInput as error:
            raise BadFile(f"{self.source}: {error}") from None
        chosen = self.config.interventions if self.config is not None else interventions
        agent: Agent = agent_class.from_content(
            self.content, self.source, interventions=tuple(build(chosen, INTERVENTIONS)), device=device
        )
        return agent

    @property
    def steps(self) -> int:
        """The environment steps at which it was saved; 0 for an agent file."""
        return 0 if self.checkpoint is None else int(self.checkpoint.load("loop")["clock"]["steps"])


def read_saved(path: Path, *, whole: bool = False, otherwise: str = "") -> Saved:
    """The saved agent at a path. Of a checkpoint, only the agent is verified; with `whole`, also the replay.

    Args:
        path: A run's folder (its newest intact checkpoint is read), a checkpoint's folder, or a file.
        whole: Whether the whole checkpoint is needed.
        otherwise: An alternative for the user if the file holds no agent; the end of the message.

    Raises:
        BadFile: The path does not exist, or does not hold an agent.
        RuntimeError: Checkpoints are damaged, or of a newer version (classes of `agents.checkpoint`).
    """
    if path.is_dir():
        try:
            checkpoint = Checkpoints.open(path, verify=None if whole else ("agent",))
        except FileNotFoundError as error:
            raise BadFile(str(error)) from None
        content = checkpoint.load("agent")
        check_is_agent(content, checkpoint.path)
        run = next((p for p in (path.resolve(), *path.resolve().parents) if (p / "config.yaml").exists()), None)
        return Saved(path, content, str(checkpoint.path), checkpoint, load(run) if run is not None else None)
    if not path.exists():
        raise BadFile(f"{path} does not exist: give a run folder, a checkpoint, or a saved agent")
    try:
        return Saved(path, read_agent(path), str(path))
    except BadFile as error:
        raise BadFile(f"{error}{otherwise}") from error


def check_fits(agent: Agent, envs: Envs) -> None:
    """Refuse environments whose observations or actions do not fit the agent (BadInput)."""
    sees, shown = tuple(agent.observation.shape), tuple(envs.observation.shape)
    if sees != shown or agent.observation.dtype != envs.observation.dtype:
        raise BadInput(
            f"--env {envs.name}: its observations are {_kind(envs)} of shape {shown}, but this "
            f"{agent.name} was trained on {_kind(agent)} of shape {sees}"
        )
    mine, theirs = agent.action, envs.action
    if (mine.discrete, mine.size) != (theirs.discrete, theirs.size):
        does, done = (f"{spec.size} {'actions' if spec.discrete else 'numbers'}" for spec in (mine, theirs))
        raise BadInput(f"--env {envs.name} takes {done}, but this {agent.name} was trained with {does}")


def _kind(of: Agent | Envs) -> str:
    return str(of.observation.dtype).removeprefix("torch.")

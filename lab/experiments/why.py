"""`pliant fork RUN --at STEP --why`: finds the single repair of its networks that lets an agent learn again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

from ...agents.checkpoint import Checkpoint
from ...agents.clock import Clock
from ...agents.hooks import sample_like_training
from ...monitors.attribution import Attribution, attribute, pooled, table
from ..errors import BadInput
from .config import load
from .fork import resolved
from .training import built

SAMPLES = 256  # transitions of the agent on which copies are probed


def explain(checkpoints: Sequence[tuple[Path, Checkpoint]], draws: int = 10) -> int:
    """Print the table of repairs, averaged over runs. Returns 0.

    Args:
        checkpoints: Folders of runs, and a checkpoint of each.
        draws: Repetitions of the probe.

    Raises:
        BadInput: No data has been learnt from yet, or the runs have different agents.
    """
    repairs = [attributed(folder, checkpoint, draws) for folder, checkpoint in checkpoints]
    if len({tuple(each.module for each in one) for one in repairs}) > 1:
        raise BadInput("these runs have different agents: give runs of one agent")
    whose = f"the mean of {len(repairs)} runs" if len(repairs) > 1 else str(checkpoints[0][0])
    print(
        f"Single repairs of {whose} at step {checkpoints[0][1].step:,}, and how fast copies learn after each of them:\n"
    )
    print(table(pooled(repairs)))
    if len(repairs) > 1:
        print("\nBy run:")
        for (folder, _), one in zip(checkpoints, repairs, strict=True):
            print(f"  {folder}: {'; '.join(each.verdict() for each in one)}")
    return 0


def attributed(folder: Path, checkpoint: Checkpoint, draws: int) -> list[Attribution]:
    """The repairs of the agent in a checkpoint (BadInput)."""
    threads = torch.get_num_threads()
    config = load(folder)
    config = resolved(config)
    envs, agent = built(config)
    try:
        agent.load_state_dict(checkpoint.load("agent")["state"])
        memory = agent.memory(config.num_envs)
        memory.load_state_dict(checkpoint.load("replay"))
        checkpoint.restore(memory)
        clock = Clock(**checkpoint.load("loop")["clock"])
        generator = torch.Generator(agent.device).manual_seed(config.seed)
        try:
            batch = sample_like_training(SimpleNamespace(agent=agent, clock=clock, memory=memory), SAMPLES, generator)
        except (RuntimeError, ValueError) as error:
            raise BadInput(
                f"the agent in {folder} had not made an update yet at step {checkpoint.step}: {error}"
            ) from error
        return attribute(agent, batch, draws=draws, seed=config.seed)
    finally:
        envs.close()
        torch.set_num_threads(threads)

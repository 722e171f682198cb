"""The state of a run: what a checkpoint of it holds, how it is restored, and whether it is worth saving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..common.spaces import Diverged
from .checkpoint import Checkpoint, Chunked, saved_steps
from .clock import Clock
from .memory import Memory

if TYPE_CHECKING:
    from .run import Run


def run_state(run: Run) -> dict[str, Any]:
    """Everything in a checkpoint except the chunks of the memory."""
    assert run.obs is not None
    loop = {"clock": asdict(run.clock), "obs": torch.from_numpy(np.ascontiguousarray(run.obs))}
    if run.action is not None:
        loop["action"] = torch.from_numpy(np.ascontiguousarray(run.action))
    if run.unfinished is not None:
        loop["unfinished"] = run.unfinished
    parts = {
        "agent": run.agent.content(),
        "replay": run.memory.state_dict(),
        "envs": run.envs.state_dict(),
        "log": run.log.state_dict(),
        "loop": loop,
    }
    if run.monitors is not None:
        parts["monitors"] = run.monitors.state_dict()
    return parts


def restore_run(run: Run, checkpoint: Checkpoint, adopt: Callable[[dict[str, Any]], None] | None) -> None:
    """Restore the state of a checkpoint; see `Run.restore`."""
    loop = checkpoint.load("loop")
    run.clock = Clock(**loop["clock"])
    run.obs = loop["obs"].numpy()
    run.action = loop["action"].numpy() if "action" in loop else None
    run.unfinished = loop.get("unfinished")
    (run.agent.load_state_dict if adopt is None else adopt)(checkpoint.load("agent")["state"])
    run.memory.load_state_dict(checkpoint.load("replay"))
    checkpoint.restore(run.memory)
    run.envs.load_state_dict(checkpoint.load("envs"))
    run.log.load_state_dict(checkpoint.load("log"))
    if run.monitors is not None and "monitors" in checkpoint.parts:
        run.monitors.load_state_dict(checkpoint.load("monitors"))


def chunks(memory: Memory) -> Chunked | None:
    """The memory, if it is saved in chunks."""
    return memory if isinstance(memory, Chunked) else None


def copied(state: Any) -> Any:
    """A deep copy of a state of dicts, lists, tuples and tensors; the host does not wait for the device."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state


@torch.no_grad()
def check_weights(run: Run) -> None:
    """Check that all weights are finite numbers. The host waits for the device.

    Raises:
        Diverged: A weight is not a finite number.
    """
    for name, component in run.agent.components.items():
        for key, p in component.online.named_parameters():
            if not torch.isfinite(p).all():
                raise diverged(run, f"the weights {key} of the {name} are no longer finite numbers")


def diverged(run: Run, reason: str) -> Diverged:
    """The error for an agent that has diverged. It states until when the run is saved."""
    return Diverged(
        f"the agent has diverged: at environment step {run.clock.steps:,} and update {run.clock.updates:,} "
        f"{reason}. {latest_save(run)}; later steps are lost. A resumed run would diverge again: change the "
        "configuration (a smaller learning rate, clipped gradients or rewards)"
    )


def latest_save(run: Run) -> str:
    """A statement, without its full stop, about the latest checkpoint."""
    if run.checkpoints is None:
        return "The run is not saved anywhere"
    saved = saved_steps(run.checkpoints.folder)
    return f"The run is saved as of environment step {saved[-1]:,}" if saved else "There is no checkpoint"

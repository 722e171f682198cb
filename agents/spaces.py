"""What an agent sees and does: specs of observations and actions, and what one environment step returns.

These are plain host-side records. They live with the agents because replay and agents speak of them, and because a
foreign project that builds an agent has no need of `pliant.envs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class ObservationSpec:
    """Shape and kind of one observation.

    Pixels are uint8, channel first, and scaled to [0, 1] by `high` inside the network, never before. `stack` frames
    stand one after the other along the first axis, the newest last; `padding` says what the older frames of an
    episode's first observation hold: zeros, or copies of the first frame.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    high: float = 1.0
    stack: int = 1
    padding: str = "zero"

    def __post_init__(self) -> None:
        if self.dtype not in (torch.uint8, torch.float32):
            raise ValueError(f"observations are stored as uint8 or float32, not {self.dtype}")
        if self.padding not in ("zero", "repeat"):
            raise ValueError(f"unknown padding {self.padding!r}: 'zero' or 'repeat'")
        if self.stack < 1 or (self.stack > 1 and self.shape[0] % self.stack):
            raise ValueError(f"a stack of {self.stack} frames does not divide the first axis of {self.shape}")

    @property
    def pixels(self) -> bool:
        return self.dtype == torch.uint8 and len(self.shape) == 3

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one element of the stack, the unit in which replay stores observations."""
        return (self.shape[0] // self.stack, *self.shape[1:]) if self.stack > 1 else self.shape


@dataclass(frozen=True)
class ActionSpec:
    """`size` discrete actions, or a box of `size` dimensions with its bounds."""

    size: int
    discrete: bool
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("an agent needs at least one action")
        if not self.discrete and not (len(self.low) == len(self.high) == self.size):
            raise ValueError(f"a box of {self.size} dimensions needs {self.size} lower and upper bounds")
        if not all(np.isfinite(self.low)) or not all(np.isfinite(self.high)):
            raise ValueError(f"unbounded action space: low {self.low}, high {self.high}; rescale it to finite bounds")


class Episode(NamedTuple):
    """A finished episode: its environment, undiscounted and unclipped return, length in agent steps, and seed.

    `task` is the number of the task that a non-stationary problem showed when it began: for the log, never the agent.
    """

    env: int
    ret: float
    length: int
    seed: int
    task: int | None = None


class Step(NamedTuple):
    """What E environments answer to an action (host arrays).

    `terminated` stops bootstrapping, n-step windows stop at `terminated | truncated`, and frame stacks restart where
    `reset`. With life loss as termination, `terminated` can hold while the game goes on (`reset` is False then).
    """

    obs: NDArray[Any]  # [E, *obs], what the agent acts on next: a new episode's first where `reset`
    reward: NDArray[np.float32]  # [E], raw
    terminated: NDArray[np.bool_]  # [E]
    truncated: NDArray[np.bool_]  # [E]
    reset: NDArray[np.bool_]  # [E]
    final_obs: NDArray[Any]  # [E, *obs], the true successor of the action; equals `obs` where not `reset`
    episodes: tuple[Episode, ...] = ()
    quiet: bool = False  # a promise that the three flags are False everywhere, which need then not be looked at
    # [E] int64 or [E, K] float32: what should have been said to the observations acted on, of streams that tell.
    target: NDArray[Any] | None = None


def observation_spec(space: Any) -> ObservationSpec:
    """The spec of a gymnasium `Box`, a shape (float32 vector, or uint8 pixels in [0, 255] if 3-D), or a spec."""
    if isinstance(space, ObservationSpec):
        return space
    if isinstance(space, Sequence) and all(isinstance(n, int) for n in space):
        shape = tuple(space)
        return ObservationSpec(shape, torch.uint8, 255.0) if len(shape) == 3 else ObservationSpec(shape)
    if getattr(space, "shape", None) is not None and hasattr(space, "low"):
        if space.dtype == np.uint8 and len(space.shape) == 3:
            return ObservationSpec(tuple(space.shape), torch.uint8, float(np.max(space.high)))
        if len(space.shape) == 1 and np.issubdtype(space.dtype, np.number):
            return ObservationSpec(tuple(space.shape))
    raise ValueError(
        f"cannot build an agent for the observation space {space!r}: give a 1-D Box, a uint8 Box of shape "
        "(channels, height, width), or a shape"
    )


def action_spec(space: Any) -> ActionSpec:
    """The spec of a gymnasium `Discrete` or 1-D `Box`, a number of discrete actions, or a spec."""
    if isinstance(space, ActionSpec):
        return space
    if isinstance(space, int | np.integer):
        return ActionSpec(int(space), discrete=True)
    if hasattr(space, "n") and np.ndim(space.n) == 0:
        if getattr(space, "start", 0) != 0:
            raise ValueError(f"discrete actions must start at 0: {space!r}")
        return ActionSpec(int(space.n), discrete=True)
    if getattr(space, "shape", None) is not None and hasattr(space, "low") and len(space.shape) == 1:
        low, high = (tuple(float(v) for v in bound) for bound in (space.low, space.high))
        return ActionSpec(len(low), discrete=False, low=low, high=high)
    raise ValueError(f"cannot build an agent for the action space {space!r}: give a Discrete, a 1-D Box, or a number")

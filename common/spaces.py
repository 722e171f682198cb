"""Specs of observations and actions, and the result of one environment step.

These are plain host-side records. They are in `common` because agents and environments both use them, and because
another project can build an agent without `pliant.envs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

LONGEST_EPISODE = 27_000  # maximum environment steps of an evaluation episode: 30 minutes of Atari, 108,000 frames / 4

Layout = Literal["same", "last", "none"]


class NotFinite(RuntimeError):
    """An environment returned a reward or an observation that is not a finite number.

    It is raised before the step is stored: the environment's `state_dict` is still the one before the step.
    """


class Diverged(RuntimeError):
    """The weights, the losses or the actions of an agent are no longer finite numbers."""


@dataclass(frozen=True)
class ObservationSpec:
    """Shape and kind of one observation.

    Pixels are uint8, channel first. Only the network divides them by `high`, to [0, 1]. `stack` frames are concatenated
    along the first axis, the newest last. `padding` defines the older frames of an episode's first
    observation: zeros ("zero"), or copies of the first frame ("repeat").
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
        if not (math.isfinite(self.high) and self.high > 0):
            raise ValueError(f"observations are divided by high, which must be finite and above 0, not {self.high}")

    @property
    def pixels(self) -> bool:
        return self.dtype == torch.uint8 and len(self.shape) == 3

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame of the stack; the replay stores frames."""
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
            raise ValueError(
                f"unbounded action space: low {self.low}, high {self.high}; rescale it to finite bounds "
                "(gymnasium.wrappers.RescaleAction does so, for finite boxes)"
            )
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if low >= high:
                raise ValueError(
                    f"dimension {i} of the action space has low {low:g} and high {high:g}, so it has only "
                    "one value: remove it (gymnasium.wrappers.TransformAction can insert the constant)"
                )


class Episode(NamedTuple):
    """A finished episode: its environment, undiscounted and unclipped return, length in agent steps, and seed.

    `task` is the task number of a non-stationary problem at the episode's start; it goes to the log, never to the
    agent. `cut` is True if an evaluation ended the episode because it was too long.
    """

    env: int
    ret: float
    length: int
    seed: int
    task: int | None = None
    cut: bool = False


class Step(NamedTuple):
    """The result of one step of E environments (host arrays).

    `terminated` stops bootstrapping, n-step windows stop at `terminated | truncated`, and frame stacks restart at
    `reset`. If the loss of a life counts as termination, `terminated` can be True while the game continues (`reset` is
    then False).
    """

    obs: NDArray[Any]  # [E, *obs], the next observation to act on: the first of a new episode where `reset` is True
    reward: NDArray[np.float32]  # [E], raw
    terminated: NDArray[np.bool_]  # [E]
    truncated: NDArray[np.bool_]  # [E]
    reset: NDArray[np.bool_]  # [E]
    final_obs: NDArray[Any]  # [E, *obs], the true next observation; equals `obs` where `reset` is False
    episodes: tuple[Episode, ...] = ()
    quiet: bool = False  # True guarantees that the three flags are False everywhere, so they need not be read
    # [E] int64 or [E, K] float32: targets for the previous observations, from streams that have targets.
    target: NDArray[Any] | None = None


def image_layout(space: Any) -> tuple[tuple[int, int, int], Layout] | None:
    """The shape [channels, height, width] of the images of a gymnasium space or of a shape, and the position of the
    channels in the space; None if the space is not one of images. Only this function decides that.

    Images are 2-D or 3-D boxes of uint8 or bool, and shapes of three numbers. The channel axis of a 3-D image is the
    smaller of its first and last axes; if they are equal, the first.

    Returns:
        The shape, and the layout: "same" (channels, height, width), "last" (height, width, channels) or "none"
        (height, width).
    """
    shape = _shape(space)
    if shape is None:
        shape = getattr(space, "shape", None)
        if shape is None or not hasattr(space, "low") or space.dtype not in (np.uint8, np.bool_):
            return None
    if len(shape) == 2 and not isinstance(space, Sequence):
        return (1, shape[0], shape[1]), "none"
    if len(shape) != 3:
        return None
    first, middle, last = shape
    return ((last, first, middle), "last") if last < first else ((first, middle, last), "same")


def _shape(space: Any) -> tuple[int, ...] | None:
    """`space` as a tuple if it is a shape (a sequence of ints), else None."""
    if isinstance(space, Sequence) and all(isinstance(n, int) for n in space):
        return tuple(space)
    return None


def observation_spec(space: Any) -> ObservationSpec:
    """The observation spec of a gymnasium `Box`, a shape (float32 vector, or uint8 pixels in [0, 255] if 3-D), or a
    spec.

    Raises:
        ValueError: Agents cannot read such observations. Images must have their channels first.
    """
    if isinstance(space, ObservationSpec):
        return space
    shape, image = _shape(space), image_layout(space)
    if image is not None and image[1] != "same":
        (channels, height, width), given = image[0], shape or tuple(space.shape)
        what = "no axis of channels" if image[1] == "none" else "the order height, width, channels"
        raise ValueError(
            f"images of shape {given} have {what}, but agents read channels, height, width: build the agent from "
            f"pliant.envs.make(...).observation or pliant.envs.wrap(...).observation, which transpose images too, or "
            f"transpose them yourself and give ObservationSpec(({channels}, {height}, {width}), torch.uint8, 255.0)"
        )
    if shape is not None:
        return ObservationSpec(shape, torch.uint8, 255.0) if len(shape) == 3 else ObservationSpec(shape)
    if getattr(space, "shape", None) is not None and hasattr(space, "low"):
        if space.dtype == np.uint8 and image is not None:
            return ObservationSpec(image[0], torch.uint8, float(np.max(space.high)))
        if len(space.shape) == 1 and np.issubdtype(space.dtype, np.number):
            return ObservationSpec(tuple(space.shape))
    raise ValueError(
        f"cannot build an agent for the observation space {space!r}: give a 1-D Box, a uint8 Box of shape "
        "(channels, height, width), or a shape"
    )


def action_spec(space: Any) -> ActionSpec:
    """The action spec of a gymnasium `Discrete` or 1-D `Box` of real numbers, a number of discrete actions, or a spec.

    Raises:
        ValueError: Agents cannot act in such a space.
    """
    if isinstance(space, ActionSpec):
        return space
    if isinstance(space, int | np.integer):
        return ActionSpec(int(space), discrete=True)
    if hasattr(space, "nvec") or type(space).__name__ == "MultiBinary":
        raise ValueError(
            f"cannot build an agent for the action space {space}, of several choices at once: number all "
            "combinations (gymnasium.wrappers.TransformAction from a Discrete space, with np.unravel_index)"
        )
    if hasattr(space, "n") and np.ndim(space.n) == 0:
        if getattr(space, "start", 0) != 0:
            raise ValueError(f"discrete actions must start at 0: {space!r}")
        return ActionSpec(int(space.n), discrete=True)
    if getattr(space, "shape", None) is not None and hasattr(space, "low") and len(space.shape) == 1:
        if not np.issubdtype(space.dtype, np.floating):
            raise ValueError(
                f"cannot build an agent for the action space {space!r}, of whole numbers: agents give a Box real "
                "numbers; round them, or number the actions (gymnasium.wrappers.TransformAction)"
            )
        low, high = (tuple(float(v) for v in bound) for bound in (space.low, space.high))
        return ActionSpec(len(low), discrete=False, low=low, high=high)
    raise ValueError(f"cannot build an agent for the action space {space!r}: give a Discrete, a 1-D Box, or a number")

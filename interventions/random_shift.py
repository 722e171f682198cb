"""Random shifts of images: Yarats et al. 2021, 2107.09645 (DrQ-v2)."""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeAlias

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.hooks import Intervention
from ..agents.replay import Batch
from ..common.ranges import at_least

Pixels: TypeAlias = Annotated[int, at_least(1, "pixels", most=1_024, why="no observation is larger")]


class RandomShift(Intervention):
    """Shift every image of a batch by a few pixels at random.

    When: Learning from images. It is one of the strongest known ways to preserve plasticity there (Ma et al. 2024,
        2310.07418).
    Paper: Yarats et al. 2021, "Mastering Visual Continuous Control", 2107.09645, section 3.1: replicate padding of 4,
        one integer shift per image for all its channels, independent for an observation and its successor.
    Differs: The crop is taken by integer index, while the code interpolates at integer positions; the results are equal
        up to the rounding of the code.
    Excludes: another random_shift.

    Args:
        pad: Largest shift in pixels, in either direction.
    """

    name = "random_shift"
    example: ClassVar[str] = "random_shift(pad=2)"
    effect = "batch"
    reserves = ("the shift of images",)

    def __init__(self, pad: Pixels = 4) -> None:
        super().__init__()
        self.pad = pad

    def bind(self, agent: Agent) -> None:
        if not agent.observation.pixels:
            raise ValueError(
                f"random_shift needs images, and this {agent.name} observes vectors of shape {agent.observation.shape}"
            )

    def transform_batch(self, batch: Batch) -> Batch:
        return batch.replace(obs=self.shift(batch.obs), next_obs=self.shift(batch.next_obs))

    def shift(self, images: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape; every image is a random crop of its padded original."""
        offsets = torch.randint(2 * self.pad + 1, (2, len(images)), generator=self.generator, device=images.device)
        return crop(images, offsets[0], offsets[1], self.pad)


def crop(images: Tensor, down: Tensor, right: Tensor, pad: int) -> Tensor:
    """Pad by replicating the border, then crop [H, W] at `down` and `right` [B], both in 0 … 2 * pad."""
    size, channels, height, width = images.shape
    # Clamping the indices at the border equals padding by replication, and needs no padded copy.
    rows = (torch.arange(height, device=images.device) + down[:, None] - pad).clamp_(0, height - 1)
    columns = (torch.arange(width, device=images.device) + right[:, None] - pad).clamp_(0, width - 1)
    positions = (rows[:, :, None] * width + columns[:, None, :]).view(size, 1, -1)
    return images.flatten(2).gather(2, positions.expand(-1, channels, -1)).view(images.shape)

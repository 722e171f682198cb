"""Value heads: how a network's outputs stand for a value, and what it costs to be wrong.

A head knows three things. `value(logits)` reads the value off the outputs. `backup(next_logits, reward, discount)` is
the target that reward and successor imply, in whatever form the loss wants it. `loss(logits, target)` is the error of
each sample. An entropy bonus is a shift of the reward, so the same head serves DQN and the critics of SAC.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

HeadName = Literal["mse", "huber"]


class ValueHead(nn.Module):
    """A scalar regressed on its target; subclasses say with which loss."""

    outputs = 1

    def value(self, logits: Tensor) -> Tensor:
        """[..., outputs] → [...]."""
        return logits.squeeze(-1)

    def backup(self, next_logits: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """[B, outputs], [B], [B] → the target of `loss`; here [B]."""
        return torch.addcmul(reward, discount, self.value(next_logits))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """[..., B, outputs], target → error of each sample [..., B]."""
        raise NotImplementedError

    def error(self, logits: Tensor, target: Tensor) -> Tensor:
        """Absolute temporal-difference error [..., B], the priority of prioritised replay."""
        return (self.value(logits) - target).abs()


class MSE(ValueHead):
    """Half the squared error, so that its gradient is the temporal-difference error."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (self.value(logits) - target).square()


class Huber(ValueHead):
    """Squared up to `delta`, linear beyond (Mnih et al. 2015 clip the error to [-1, 1], which is delta = 1)."""

    def __init__(self, delta: float = 1.0) -> None:
        super().__init__()
        if delta <= 0:
            raise ValueError(f"huber needs a positive delta, not {delta}")
        self.delta = delta

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        value = self.value(logits)
        # The operator itself: the function around it takes longer to check its arguments.
        return torch.ops.aten.huber_loss(value, target.expand_as(value), 0, self.delta)


HEADS: dict[str, type[ValueHead]] = {"mse": MSE, "huber": Huber}


def build_head(name: str) -> ValueHead:
    """The head of that name."""
    if name not in HEADS:
        raise ValueError(f"unknown value loss {name!r}; known: {', '.join(HEADS)}")
    return HEADS[name]()

"""Optimizers. Torch's own, fused: one kernel a step instead of a dozen per tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam (Kingma & Ba 2015), with decoupled weight decay if asked for (Loshchilov & Hutter 2019).

    Attributes:
        lr: Learning rate.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay (AdamW); 0 is plain Adam.
        max_grad_norm: Gradients are scaled to this norm if they exceed it; 0 is off.
    """

    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.eps <= 0 or self.weight_decay < 0 or self.max_grad_norm < 0:
            raise ValueError(f"lr and eps must be positive, weight_decay and max_grad_norm not negative: {self}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(f"beta1 and beta2 lie in [0, 1): {self}")


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam over the parameters."""
    return torch.optim.AdamW(
        list(parameters), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps,
        weight_decay=config.weight_decay, fused=True,
    )  # fmt: skip


def step(loss: Tensor, optimizer: torch.optim.Optimizer, max_grad_norm: float = 0.0) -> None:
    """One gradient update of what the optimizer holds, and of nothing else.

    Gradients are taken for the optimizer's own parameters alone, so a loss may run through frozen networks without
    cost or trace.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if max_grad_norm:
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()

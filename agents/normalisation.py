"""Running statistics that normalise observations and rewards."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNorm(nn.Module):
    """Running mean and variance of all samples (the pairwise formula of Chan et al. 1979)."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        """Add N samples [N, *shape] to the statistics."""
        x = x.double()
        mean, var, number = x.mean(0), x.var(0, unbiased=False), len(x)
        total = self.count + number
        delta = mean - self.mean
        weight = self.var * self.count + var * number + delta.square() * self.count * number / total
        self.mean.add_(delta * number / total)
        self.var.copy_(weight / total)
        self.count.copy_(total)

    def deviation(self) -> Tensor:
        return (self.var + 1e-8).sqrt()

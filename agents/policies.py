"""Parts of stochastic policies: the network of PPO, the temperature and squashing of SAC, and distances of policies."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .heads import precise
from .networks import Dense, LayerBuilder, NetworkConfig, Trace


class PolicyNetwork(nn.Module):
    """Features [B, F] → logits of a categorical [B, actions], or means [B, A] of a Gaussian whose standard deviation
    does not depend on the observation."""

    def __init__(
        self, features: int, outputs: int, config: NetworkConfig, generator: Generator, *, log_std: float | None
    ) -> None:
        super().__init__()
        build = LayerBuilder(config, generator)
        self.body = Dense(features, config.hidden, build)
        self.output = build.output(self.body.features, outputs, gain=0.01)
        self.log_std = None if log_std is None else nn.Parameter(torch.full((outputs,), log_std))
        self.initial_log_std = log_std

    @torch.no_grad()
    def load_fresh_deviation(self) -> None:
        """Reset the policy's standard deviation to its initial value, in place; a categorical policy has none."""
        if self.log_std is not None and self.initial_log_std is not None:
            self.log_std.fill_(self.initial_log_std)

    def forward(self, features: Tensor, trace: Trace | None = None) -> Tensor:
        logits: Tensor = self.output.forward(self.body(features, trace))
        return logits


class Temperature(nn.Module):
    """The weight alpha of the entropy. Its logarithm is trained, so alpha is positive."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(value)))
        self.initial = value

    @torch.no_grad()
    def load_fresh(self) -> None:
        """Reset the temperature to its initial value, in place."""
        self.log_alpha.fill_(math.log(self.initial))

    def forward(self) -> Tensor:
        return self.log_alpha.exp()


def squashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A sample of a squashed Gaussian in [-1, 1] [B, A] and its log-probability [B] (Haarnoja et al. 2018, appendix C:
    the change of variables); `noise` [B, A] is standard normal."""
    u = mean + log_std.exp() * noise
    log_prob = -0.5 * (noise.square() + math.log(2 * math.pi)) - log_std
    # log(1 - tanh(u)^2), in a form that does not overflow.
    squash = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
    return u.tanh(), (log_prob - squash).sum(dim=1)


def gaussian(mean: Tensor, log_std: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of actions [B, A] under diagonal Gaussians [B], and the entropies of these [B]."""
    z = (action - mean) / log_std.exp()
    log_prob = -0.5 * (z.square() + math.log(2 * math.pi)) - log_std
    return log_prob.sum(dim=1), (log_std + 0.5 * (1 + math.log(2 * math.pi))).sum(dim=1)


def gaussian_kl(before: Tensor, after: Tensor) -> Tensor:
    """Mean KL(before ‖ after) of diagonal Gaussians (0-d). Each is means and log standard deviations [2, B, A]."""
    (mean, log_std), (new_mean, new_log_std) = precise(before), precise(after)
    moved = (mean - new_mean) / new_log_std.exp()
    divergence = 0.5 * (beyond_first_order(2 * (log_std - new_log_std)) + moved.square()).sum(dim=1)
    return divergence.clamp(min=0).mean().to(after.dtype)


def categorical_kl(before: Tensor, after: Tensor) -> Tensor:
    """Mean KL(before ‖ after) of categorical distributions (0-d). Each is log-probabilities [B, actions].

    The log-probabilities are normalised again in double precision: rounded ones sum to 1 to seven digits only.
    """
    old, new = precise(before).log_softmax(dim=1), precise(after).log_softmax(dim=1)
    change, p = new - old, old.exp()
    # Where a probability grows a lot no digits cancel, and exp(change) may overflow: there use the direct formula.
    small = p * beyond_first_order(change.clamp(max=1.0))
    divergence = torch.where(change < 1.0, small, new.exp() - p * (1 + change)).sum(dim=1)
    return divergence.clamp(min=0).mean().to(after.dtype)


def beyond_first_order(x: Tensor) -> Tensor:
    """exp(x) - 1 - x, never negative: the KL divergence for a change x of a log-probability.

    After one update it is of the order of 1e-8. In single precision the rounding error of exp(x) would be larger.
    """
    return x.expm1() - x

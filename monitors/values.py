"""Monitors of what is learnt: values, errors, entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..agents.hooks import Unit
from ..common.ranges import Period, Samples
from .base import Monitor, MonitorContext, beat

COPIED = {
    "losses/td_loss": "critic/loss",
    "losses/qf_loss": "critic/loss",
    "losses/actor_loss": "actor/loss",
    "losses/entropy": "actor/entropy",
    "losses/alpha": "actor/temperature",
    "losses/value_loss": "critic/loss",
    "losses/policy_loss": "actor/loss",
    "losses/loss": "critic/loss",
}


class Values(Monitor):
    """What the critics say, how far they are from their targets and from each other, and how random the actor is.

    Healthy: Values within what rewards and discount allow, at most reward / (1 - gamma); a target_gap that is small
        beside q_std. Values that grow without bound, or a target_gap and td_error that grow together, are divergence.
        An ensemble_disagreement that vanishes is an ensemble that has become one critic.
    Paper: Mnih et al. 2015, Nature 518, figure 2 (mean value as a measure of progress); Chen et al. 2021, 2101.05982
        (REDQ; spread of an ensemble).
    Differs: Values are those of the actions that were taken, on transitions drawn from the replay, after the update.
        The error, losses, entropy and temperature are those of this very update on its own batch: the actor's are left
        out where it did not learn. An agent without a target network has no target_gap, one without an ensemble
        no ensemble_disagreement. Of a supervised learner the values are what the network has for what should have been
        said (the logit of the class above the mean of all), and td_error is the loss of a sample.

    Args:
        every: Period.
        of: Clock of the period: updates, steps (environment steps) or episodes.
        samples: Transitions drawn from the replay; each costs a forward pass of the online and of the target network.
    """

    name = "values"
    example: ClassVar[str] = "values(every=2, samples=16)"
    metrics: ClassVar[Mapping[str, str]] = {
        "q_mean": "mean value of the actions taken, over transitions and critics",
        "q_std": "standard deviation over transitions of the critics' mean value",
        "q_abs_max": "largest absolute value that any critic gives",
        "target_gap": "mean absolute difference between the values of the online and of the target network",
        "ensemble_disagreement": "standard deviation over critics, averaged over transitions",
        "td_error": "mean absolute temporal-difference error of the update's batch",
        "loss": "loss of the update, without what interventions add to it",
        "entropy": "entropy of the policy on the update's batch, in nats",
        "temperature": "weight of the entropy",
    }

    def __init__(self, every: Period = 250, of: Unit = "updates", samples: Samples = 32) -> None:
        super().__init__(beat(every, of))
        self.samples = samples

    @torch.no_grad()
    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        if context.update is not None:
            yield "critic/td_error", context.update.td_error.mean()
            for name, key in COPIED.items():
                if name in context.update.metrics:
                    yield key, context.update.metrics[name]
        if context.memory is None:
            return
        batch = context.batch(self.samples)
        values = context.agent.values(batch)
        yield "critic/q_mean", values.mean()
        yield "critic/q_std", values.mean(0).std(correction=0)
        yield "critic/q_abs_max", values.abs().max()
        if len(values) > 1:
            yield "critic/ensemble_disagreement", values.std(0, correction=0).mean()
        if context.agent.components["critic"].target is not None:
            yield "critic/target_gap", (values - context.agent.values(batch, target=True)).abs().mean()

"""Monitors of learned quantities: values, errors, entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..agents.clock import Unit
from ..agents.views import view
from ..common.ranges import Period, Samples
from .base import Monitor, MonitorContext, trigger

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
    """The critics' values, their distance from the targets and from each other, and the randomness of the actor.

    Healthy: Values within the range that rewards and discount allow, at most reward / (1 - gamma); a target_gap that is
        small relative to q_std. If values grow without bound, or target_gap and td_error grow together, training
        diverges. If ensemble_disagreement vanishes, the members of the ensemble have become one critic.
    Paper: Mnih et al. 2015, Nature 518, figure 2 (mean value as a measure of progress); Chen et al. 2021, 2101.05982
        (REDQ; spread of an ensemble).
    Differs: Values are those of the actions taken, on transitions sampled from the replay, after the update. The error,
        losses, entropy and temperature are those of the present update on its own batch; the actor's are omitted if it
        did not learn. An agent without a target network has no target_gap, one without an ensemble no
        ensemble_disagreement. For a supervised learner, the value is the network's output for the label (the logit of
        the class minus the mean of all logits), and td_error is the loss of a sample.

    Args:
        every: Period.
        of: Clock of the period: updates, steps (environment steps) or episodes.
        samples: Transitions sampled from the replay; each costs a forward pass of the online and of the target network.
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
        "loss": "loss of the update, without penalties of interventions",
        "entropy": "entropy of the policy on the update's batch, in nats",
        "temperature": "weight of the entropy",
    }

    def __init__(self, every: Period = 250, of: Unit = "updates", samples: Samples = 32) -> None:
        super().__init__(trigger(every, of))
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
        values = view(context.agent).values(batch)
        yield "critic/q_mean", values.mean()
        yield "critic/q_std", values.mean(0).std(correction=0)
        yield "critic/q_abs_max", values.abs().max()
        if len(values) > 1:
            yield "critic/ensemble_disagreement", values.std(0, correction=0).mean()
        if context.agent.components["critic"].target is not None:
            yield "critic/target_gap", (values - view(context.agent).values(batch, target=True)).abs().mean()

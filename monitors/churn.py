"""Churn: what one update changes where it was not asked to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..agents.hooks import Unit
from ..agents.replay import Batch
from ..common.ranges import Period, Samples
from .base import Monitor, MonitorContext, beat


class Churn(Monitor):
    """How much one update changes values and decisions on transitions that it did not learn from.

    Healthy: Small, and steady or falling as the agent settles.
    When: A relative value churn of more than a few per cent an update, or one that grows: the network generalises from
        a batch to everything, which chases its own targets (lower learning rates, larger batches, regularised churn).
    Paper: Schaul, Barreto, Quan & Ostrovski 2022, "The Phenomenon of Policy Churn", 2206.00730; Tang & Berseth 2024,
        "Improving Deep Reinforcement Learning by Reducing the Chain Effect of Value and Policy Churn", 2409.04792,
        definitions 3.1 and 3.2.
    Differs: Values of the actions taken rather than of all actions. For Gaussian policies the churn of decisions is the
        KL divergence before squashing, where Tang & Berseth take the distance of mean actions. What is measured ends
        before interventions act; the batch is drawn anew from the replay and may share transitions with the update's.

    Args:
        every: Period.
        of: Clock of the period.
        samples: Transitions looked at.
    """

    name = "churn"
    group = "deep"
    example: ClassVar[str] = "churn(every=2, samples=16)"
    every: ClassVar[int] = 1000
    metrics: ClassVar[Mapping[str, str]] = {
        "value_churn": "mean absolute change of Q(s, a) by one update, on a batch of its own",
        "relative_value_churn": "the same over the mean absolute value before",
        "policy_churn": "by one update: share of greedy actions that change, or KL divergence of the Gaussian policies",
    }

    def __init__(self, every: Period = 1000, of: Unit = "updates", samples: Samples = 64) -> None:
        super().__init__(beat(every, of))
        self.samples = samples
        self.before: tuple[Batch, Tensor, Tensor] | None = None  # from before an update until after it, no longer

    @torch.no_grad()
    def before_update(self, context: MonitorContext) -> None:
        batch = context.batch(self.samples, "churn")
        self.before = batch, context.agent.values(batch), context.agent.decisions(batch)

    @torch.no_grad()
    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        assert self.before is not None
        (batch, values, decisions), self.before = self.before, None
        changed, size = (context.agent.values(batch) - values).abs().mean(), values.abs().mean()
        yield "critic/value_churn", changed
        yield "critic/relative_value_churn", torch.where(size > 0, changed / size, 0.0)
        place = "actor" if "actor" in context.agent.components else "critic"
        yield f"{place}/policy_churn", context.agent.policy_churn(decisions, context.agent.decisions(batch))

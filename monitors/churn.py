"""Churn: how much one update changes outputs for states outside its batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..agents.clock import Unit
from ..agents.replay import Batch
from ..agents.views import view
from ..common.ranges import Period, Samples
from .base import Monitor, MonitorContext, trigger


class Churn(Monitor):
    """How much one update changes values and decisions on transitions outside its batch.

    Healthy: Small, and steady or falling as training converges.
    When: The relative value churn exceeds a few per cent per update, or grows: each batch changes the outputs for all
        other states, and values chase their own targets (remedies: lower learning rate, larger batches, churn
        regularisation).
    Paper: Schaul, Barreto, Quan & Ostrovski 2022, "The Phenomenon of Policy Churn", 2206.00730; Tang & Berseth 2024,
        "Improving Deep Reinforcement Learning by Reducing the Chain Effect of Value and Policy Churn", 2409.04792,
        definitions 3.1 and 3.2.
    Differs: Uses the values of the actions taken rather than of all actions. For Gaussian policies, policy churn is the
        KL divergence before squashing; Tang & Berseth use the distance of mean actions. The measurement ends before
        interventions act. The batch is sampled from the replay and may share transitions with the update's batch.

    Args:
        every: Period.
        of: Clock of the period.
        samples: Number of transitions used.
    """

    name = "churn"
    group = "deep"
    example: ClassVar[str] = "churn(every=2, samples=16)"
    every: ClassVar[int] = 1000
    metrics: ClassVar[Mapping[str, str]] = {
        "value_churn": "mean absolute change of Q(s, a) by one update, on a separate batch",
        "relative_value_churn": "the same over the mean absolute value before",
        "policy_churn": "by one update: share of greedy actions that change, or KL divergence of the Gaussian policies",
    }

    def __init__(self, every: Period = 1000, of: Unit = "updates", samples: Samples = 64) -> None:
        super().__init__(trigger(every, of))
        self.samples = samples
        self.before: tuple[Batch, Tensor, Tensor] | None = None  # set only between the start and the end of an update

    @torch.no_grad()
    def before_update(self, context: MonitorContext) -> None:
        batch = context.batch(self.samples, "churn")
        self.before = batch, view(context.agent).values(batch), view(context.agent).decisions(batch)

    @torch.no_grad()
    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        assert self.before is not None
        (batch, values, decisions), self.before = self.before, None
        changed, size = (view(context.agent).values(batch) - values).abs().mean(), values.abs().mean()
        yield "critic/value_churn", changed
        yield "critic/relative_value_churn", torch.where(size > 0, changed / size, 0.0)
        place = "actor" if "actor" in context.agent.components else "critic"
        yield f"{place}/policy_churn", view(context.agent).policy_churn(decisions, view(context.agent).decisions(batch))

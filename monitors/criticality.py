"""Criticality: how much the learned function depends on each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..agents.clock import Unit
from ..agents.stopping import heed
from ..agents.views import view
from ..common.ranges import Period, Samples
from ..interventions.core.parts import ENCODER
from ..interventions.core.surgery import load_layer_
from .base import Monitor, MonitorContext, trigger


class Criticality(Monitor):
    """How a component's loss and decisions change if one layer is set to its initial weights, or reinitialised.

    Healthy: Every layer has a positive criticality, which grows with training; reinitialising a layer costs more than
        setting it to its initial weights.
    When: A layer near zero is unused, or still close to its initial weights: resetting it loses nothing. If the initial
        weights cost nothing but a new draw does, the network uses the layer's random initial weights (lazy learning).
    Paper: Zhang, Bengio & Singer 2019, "Are All Layers Created Equal?", 1902.01996, section 2 (re-initialisation and
        re-randomisation robustness).
    Differs: The temporal-difference loss with frozen targets, and the actor's loss, replace the classification error.
        Batches come from the present replay, not from the data that the layer was trained on.

    Args:
        every: Period.
        of: Clock of the period.
        samples: Transitions on which losses and decisions are compared.
    """

    name = "criticality"
    group = "deep"
    example: ClassVar[str] = "criticality(every=3, samples=8)"
    every: ClassVar[int] = 25_000
    metrics: ClassVar[Mapping[str, str]] = {
        "reset_criticality": "growth of the component's loss if the layer is set to its initial weights",
        "rerandomised_criticality": "growth of the component's loss if the layer is reinitialised by its initialiser",
        "reset_action_agreement": "share of unchanged greedy actions if the layer is set to its initial weights",
        "rerandomised_action_agreement": "share of unchanged greedy actions if the layer is reinitialised",
        "reset_policy_churn": "KL divergence of Gaussian policies if the layer is set to its initial weights",
        "rerandomised_policy_churn": "KL divergence of Gaussian policies if the layer is reinitialised",
    }

    def __init__(self, every: Period = 25_000, of: Unit = "updates", samples: Samples = 64) -> None:
        super().__init__(trigger(every, of))
        self.samples = samples

    @torch.no_grad()
    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        agent, batch = context.copy(), context.batch(self.samples)
        losses = view(agent).loss_functions(batch, context.seed("criticality"))
        before = {name: loss() for name, loss in losses.items()}
        decisions = view(agent).decisions(batch)
        generator = context.generator("criticality")
        for name, layer in context.copy_survey.layers.items():
            heed()
            component = name.partition(".")[0]
            # Only networks that choose actions need their decisions compared.
            decides = component == "actor" or "actor" not in agent.components or name.startswith(ENCODER)
            own = {key: p.clone() for key, p in layer.named_parameters()}
            for how, weights in (("reset", context.initial[name]), ("rerandomised", layer.fresh(generator))):
                load_layer_(layer, weights, None)
                yield f"{name}/{how}_criticality", losses[component]() - before[component]
                if decides:
                    now = view(agent).decisions(batch)
                    if agent.action.discrete:
                        yield f"{name}/{how}_action_agreement", (_greedy(decisions) == _greedy(now)).float().mean()
                    else:
                        yield f"{name}/{how}_policy_churn", view(agent).policy_churn(decisions, now)
            load_layer_(layer, own, None)


def _greedy(decisions: Tensor) -> Tensor:
    """The preferred actions [B] of an agent, from its `decisions`: the actions themselves, or log-probabilities."""
    return decisions.argmax(dim=1) if decisions.ndim > 1 else decisions

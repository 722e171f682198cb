"""Monitors of features: how many directions they use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Clock, Unit
from ..common.ranges import Period, Samples
from ..interventions.core.parts import ENCODER, Survey, survey
from .base import SAMPLES, Finding, Monitor, MonitorContext, trigger
from .metrics import (
    effective_rank,
    eigenvalues,
    feature_moments,
    feature_rank,
    numerical_rank,
    pca_rank,
    read_moments,
    singular_values,
    srank,
    stable_rank,
)


class Ranks(Monitor):
    """How many directions the features of every network span, by the common definitions of rank.

    Features are the inputs of an output layer: the outputs of the last hidden layer of a Q-network, of each of its
    dueling streams, of every critic of an ensemble, and of the actor; and the encoder's output, if there is one (place
    `encoder`). A component's number is the mean over its feature layers. Every rank is that of the matrix [samples,
    features] and cannot exceed either side.

    Healthy: Far from 1, without a long decline. If the rank collapses while the loss looks good, the network
        distinguishes fewer and fewer observations; compare only runs with equal `samples`. A feature_norm that grows
        without bound precedes divergence.
    Paper: effective_rank: Roy & Vetterli 2007. srank_0.01: Kumar et al. 2021, 2010.14498, section 3. pca_rank_0.99:
        Yang et al. 2020, 1909.12255 ("approximate rank"). feature_rank_0.01: Lyle et al. 2022, 2204.09560.
    Differs: Each definition has its own name, since "stable rank" is srank_0.01 in some public code. Features are not
        centred, as in the papers; two of the ranks are also given with the mean feature subtracted, so that a common
        offset does not hide them. Singular values are square roots of a Gram matrix's eigenvalues in float64, exact to
        about 1e-7 of the largest; numerical_rank counts those above the rounding of float32, max(samples, features) *
        2^-23 of the largest. The zero matrix has rank 0.

    Args:
        every: Period.
        of: Clock of the period: updates, steps (environment steps) or episodes.
        samples: Number of transitions used: from the update's batch if that is large enough, else from the replay.
    """

    name = "ranks"
    example: ClassVar[str] = "ranks(every=2, samples=16)"
    metrics: ClassVar[Mapping[str, str]] = {
        "effective_rank": "exp of the entropy of the normalised singular values",
        "stable_rank": "squared Frobenius over squared spectral norm",
        "srank_0.01": "fewest singular values that sum up to 99 % of all",
        "pca_rank_0.99": "fewest squared singular values that sum up to 99 % of all",
        "feature_rank_0.01": "singular values above 0.01, after division by the root of the number of samples",
        "numerical_rank": "singular values above the rounding of float32",
        "feature_norm": "mean L2 norm of a sample's features",
        "effective_rank_centred": "effective_rank of features minus their mean",
        "srank_0.01_centred": "srank_0.01 of features minus their mean",
    }

    def __init__(self, every: Period = 250, of: Unit = "updates", samples: Samples = SAMPLES) -> None:
        super().__init__(trigger(every, of))
        self.samples = samples

    def bind(self, agent: Agent) -> None:
        surveyed = survey(agent)
        self.features = feature_layers(surveyed)
        self.encoder = encoder_outputs(surveyed)
        self.has_encoder = agent.observation.pixels and any(name.startswith(ENCODER) for name in surveyed.layers)

    @torch.no_grad()
    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        outputs = context.outputs(self.samples)
        for component, names in self.features.items():
            yield f"{component}/features", torch.cat([feature_moments(outputs[n][: self.samples]) for n in names])
        if not self.has_encoder:
            return
        if self.encoder:
            seen = torch.cat([outputs[name][: self.samples].flatten(1) for name in self.encoder], dim=1)
        elif context.memory is not None:  # a residual stream, which is not the output of a hidden layer
            seen = context.agent.components["critic"].online.encoder(context.batch(self.samples).obs)
        else:
            return
        yield "encoder/features", feature_moments(seen)

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        place = key.rpartition("/")[0]
        names = self.features.get(place, [place])
        per_layer = []
        for name in names:
            values, array = ranks(array)
            per_layer.append(values)
            yield from ((f"{name}/{metric}", value) for metric, value in values.items())
        if names != [place]:
            for metric in self.metrics:
                yield f"{place}/{metric}", float(np.mean([values[metric] for values in per_layer]))


def ranks(array: NDArray[Any]) -> tuple[dict[str, float], NDArray[Any]]:
    """All metrics of the first result of `feature_moments` in an array, and the rest of the array."""
    n, d, norm, matrix, centred, rest = read_moments(array)
    eigen = eigenvalues(matrix)
    # Both matrices have the same rounding errors, those of sums over the longer side, even if centring leaves little.
    floor = max(n, d) * float(np.finfo(array.dtype).eps) * eigen[0]
    sigma, around = singular_values(eigen, floor), singular_values(eigenvalues(centred), floor)
    return {
        "effective_rank": effective_rank(sigma),
        "stable_rank": stable_rank(sigma),
        "srank_0.01": srank(sigma, 0.01),
        "pca_rank_0.99": pca_rank(sigma, 0.99),
        "feature_rank_0.01": feature_rank(sigma, n, 0.01),
        "numerical_rank": numerical_rank(sigma, n, d),
        "feature_norm": norm,
        "effective_rank_centred": effective_rank(around),
        "srank_0.01_centred": srank(around, 0.01),
    }, rest


def feature_layers(surveyed: Survey) -> dict[str, list[str]]:
    """Component → its hidden layers whose output is the input of an output layer, in the order of the trace."""
    outputs = {layer for name, layer in surveyed.layers.items() if layer.is_output and not name.startswith(ENCODER)}
    read = {
        component: [name for name in names if any(r.layer in outputs for r in surveyed.graph[name].consumers)]
        for component, names in surveyed.traced.items()
    }
    return {component: names for component, names in read.items() if names}


def encoder_outputs(surveyed: Survey) -> list[str]:
    """The encoder's hidden layers that feed a layer outside it; none if a residual stream is the output."""
    outside = {layer for name, layer in surveyed.layers.items() if not name.startswith(ENCODER)}
    hidden = [name for names in surveyed.traced.values() for name in names if name.startswith(ENCODER)]
    return [name for name in hidden if any(r.layer in outside for r in surveyed.graph[name].consumers)]

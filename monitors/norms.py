"""Monitors of weights and gradients: their norms, the distance from the initial weights, and ranks of gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Clock, Unit
from ..common.ranges import Period
from ..interventions.core.parts import survey
from .base import Finding, Monitor, MonitorContext, trigger
from .metrics import effective_rank, eigenvalues, pools, singular_values, stable_rank, unit_gram

PRECISION = 1e-6  # of an eigenvalue of a Gram matrix in float32, relative to the largest one


class Norms(Monitor):
    """How large weights and gradients are, how far training has moved the weights, and how fast it moves them.

    Every metric is given for each layer (output layers included), for each component and for the encoder. A layer
    consists of its weights and biases, and the scale and shift of its normalisation; the frozen copies of an injection
    do not count as layers. For a component or the encoder, norms are those of all layers' parameters as one vector; the
    ranks of the gradient are means over layers, and its spectral norm is the maximum over layers.

    Healthy: update_to_weight about constant, near 1e-3 to 1e-4. If weight_norm grows and update_to_weight falls with
        it, the effective learning rate decays; regularisation towards zero or the initial weights (`shrink_perturb`),
        or normalisation (`layer_norm`), prevents this. A rising gradient_zero_fraction indicates dead units; a falling
        gradient_effective_rank means that the gradients of all samples lie in the same few directions.
    Paper: Lyle et al. 2024, "Normalization and effective learning rates in reinforcement learning", 2407.01800 (weight
        norm and effective learning rate); Kumar et al. 2023, 2308.11958 (distance from the initial weights); Abbas et
        al. 2023, 2303.07507 (size and zeros of the gradient); Roy & Vetterli 2007 (effective rank).
    Differs: Gradients are those before clipping, with the penalties of interventions included. They are the latest of
        their component: if an actor learns less often than its critic, they are some updates old, and update_to_weight,
        which refers to the present update, is omitted. The gradient's spectrum is that of a weight's gradient [units,
        all inputs] alone, from a Gram matrix in float32: singular values below 1e-3 of the largest are below its
        precision and count as zero, which lowers the effective rank by up to about 2 %. The zero matrix has rank 0.

    Args:
        every: Period.
        of: Clock of the period: updates, steps (environment steps) or episodes.
    """

    name = "norms"
    example: ClassVar[str] = "norms(every=2)"
    metrics: ClassVar[Mapping[str, str]] = {
        "weight_norm": "L2 norm of all parameters",
        "distance_from_init": "L2 distance of the parameters from the agent's initial parameters",
        "relative_distance_from_init": "that distance divided by the norm of the initial parameters",
        "gradient_norm": "L2 norm of the latest gradient, before clipping",
        "gradient_norm_l1": "sum of the absolute values of the latest gradient, before clipping",
        "gradient_zero_fraction": "share of parameters whose latest gradient is exactly zero",
        "update_to_weight": "L2 norm of this update's change of the parameters over their norm before it",
        "gradient_spectral_norm": "largest singular value of the weight's gradient as a matrix [units, inputs]",
        "gradient_stable_rank": "squared Frobenius over squared spectral norm of that matrix",
        "gradient_effective_rank": "exp of the entropy of that matrix' normalised singular values",
    }

    def __init__(self, every: Period = 250, of: Unit = "updates") -> None:
        super().__init__(trigger(every, of))
        self.before: dict[str, list[Tensor]] = {}  # set only between before_update and measure of the same update

    def bind(self, agent: Agent) -> None:
        surveyed = survey(agent)
        self.parts: dict[str, list[str]] = {}  # component → its layers
        for name in surveyed.layers:
            self.parts.setdefault(name.partition(".")[0], []).append(name)
        # Layer → its parameters, and the smaller side of its weight as a matrix.
        self.keys = {name: [key for key, _ in layer.named_parameters()] for name, layer in surveyed.layers.items()}
        self.sizes = {name: [p.numel() for _, p in layer.named_parameters()] for name, layer in surveyed.layers.items()}
        self.sides = {name: min(len(w := layer.linear.weight), w[0].numel()) for name, layer in surveyed.layers.items()}
        self.places = {
            component: {name: [name] for name in names} | pools(names) for component, names in self.parts.items()
        }
        self.initial_norms: dict[str, Tensor] = {}

    @torch.no_grad()
    def before_update(self, context: MonitorContext) -> None:
        self.before = {name: [p.clone() for p in self._weights(context, name)] for name in self.parts}

    def _weights(self, context: MonitorContext, component: str) -> list[Tensor]:
        """The parameters of a component's layers, in the order of `keys`."""
        return [p.detach() for name in self.parts[component] for _, p in context.survey.layers[name].named_parameters()]

    @torch.no_grad()
    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        before, self.before = self.before, {}
        for component, names in self.parts.items():
            weights = self._weights(context, component)
            initial = [context.initial[name][key] for name in names for key in self.keys[name]]
            if component not in self.initial_norms:  # the norms of the initial weights never change
                self.initial_norms[component] = norms(initial)
            yield (
                f"{component}/weights",
                torch.stack(
                    [norms(weights), norms(torch._foreach_sub(weights, initial)), self.initial_norms[component]]
                ),
            )
            if before and context.update is not None and component in context.update.activations:
                past = before[component]
                yield f"{component}/update", torch.stack([norms(torch._foreach_sub(weights, past)), norms(past)])
            if all(name in context.gradients for name in names):
                gradients = [context.gradients[name][key] for name in names for key in self.keys[name]]
                zeros = torch.stack([g.numel() - torch.count_nonzero(g) for g in gradients])
                rows = (norms(gradients), norms(gradients, 1), zeros.to(gradients[0].dtype))
                yield f"{component}/gradients", torch.stack(rows)
                spectra = [unit_gram(context.gradients[name]["linear.weight"]) for name in names]
                yield f"{component}/gradient_spectra", torch.cat(spectra)

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        component, _, what = key.rpartition("/")
        if what == "gradient_spectra":
            yield from self._spectra(component, array)
            return
        owners = [name for name in self.parts[component] for _ in self.keys[name]]
        sizes = np.array([n for name in self.parts[component] for n in self.sizes[name]])
        for place, names in self.places[component].items():
            own = [i for i, name in enumerate(owners) if name in names]
            rows = array[:, own]
            if what == "weights":
                weight, distance, initial = (math.hypot(*row) for row in rows)
                yield f"{place}/weight_norm", weight
                yield f"{place}/distance_from_init", distance
                yield f"{place}/relative_distance_from_init", ratio(distance, initial)
            elif what == "update":
                change, past = (math.hypot(*row) for row in rows)
                yield f"{place}/update_to_weight", ratio(change, past)
            else:
                yield f"{place}/gradient_norm", math.hypot(*rows[0])
                yield f"{place}/gradient_norm_l1", float(rows[1].sum())
                yield f"{place}/gradient_zero_fraction", float(rows[2].sum() / sizes[own].sum())

    def _spectra(self, component: str, array: NDArray[Any]) -> Iterator[Finding]:
        spectra: dict[str, tuple[float, float, float]] = {}
        for name in self.parts[component]:
            k = self.sides[name]
            norm, matrix, array = float(array[0]), array[1 : 1 + k * k].reshape(k, k), array[1 + k * k :]
            eigen = eigenvalues(matrix)
            sigma = singular_values(eigen, PRECISION * eigen[0])
            spectra[name] = (norm * float(sigma[0]), stable_rank(sigma), effective_rank(sigma))
        for place, names in self.places[component].items():
            spectral, stable, effective = np.array([spectra[name] for name in names]).T
            yield f"{place}/gradient_spectral_norm", float(spectral.max())
            yield f"{place}/gradient_stable_rank", float(stable.mean())
            yield f"{place}/gradient_effective_rank", float(effective.mean())


def norms(tensors: list[Tensor] | tuple[Tensor, ...], order: int = 2) -> Tensor:
    """The norm of each tensor, as one tensor."""
    return torch.stack(list(torch._foreach_norm(tensors, order)))


def ratio(part: float, whole: float) -> float:
    """part / whole; if the whole is zero: 0 if the part is zero, else infinity."""
    return part / whole if whole else math.inf if part else 0.0

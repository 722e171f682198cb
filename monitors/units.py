"""Monitors of units: dormant, dead, active and linearised units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..agents.agent import Agent
from ..agents.clock import Clock, Unit
from ..agents.networks import Fourier, Layer
from ..common.ranges import Period, Samples
from ..interventions.core.parts import survey
from ..interventions.core.recycling import magnitude, per_unit
from ..interventions.redo import dormancy_score
from .base import SAMPLES, Finding, Monitor, MonitorContext, trigger
from .metrics import GATES, active_share, linearised, overlap, pools, positive_share

EPS = 0.01  # share of samples on which a linearised unit may be nonlinear
SHARES = (
    "dormant_fraction",
    "dormant_fraction_0.025",
    "dead_fraction",
    "active_fraction",
    "linearised_fraction",
    "nonlinearity",
)


class Units(Monitor):
    """How many units of every layer are still useful, and how many are dormant, dead or linearised.

    A unit is an output feature of a dense layer, or a channel of a convolution over all its positions. Every metric is
    given for each hidden layer, for each component and for the encoder; the latter two are pooled over units, so that a
    wide layer has more weight than a narrow one.

    Healthy: A few per cent dormant, and different units at each check (low overlap); about half of the units active on
        a sample. If dormant_fraction rises for long, with an overlap near 1, the network loses capacity: `redo` uses
        the same score, and when='critic/dormant_fraction > 0.2' makes other methods wait for it.
    Paper: dormant_fraction: Sokar et al. 2023, 2302.12902, definitions 3.1 and 3.2 (tau = 0.1, and 0.025 as on Atari);
        dormant_overlap: its section 3. active_fraction: Ma et al. 2024, 2310.07418 (FAU). linearised_fraction and
        nonlinearity: Lyle et al. 2024, "Disentangling the Causes of Plasticity Loss in Neural Networks", 2402.18762, of
        rho, the share of samples on which a unit's input is positive: rho > 0.99, and 4 rho (1 - rho).
    Differs: Layers are pooled over units, not averaged. active_fraction is defined for activations other than ReLU,
        too: |h| < 0.99 for tanh, either copy for CReLU (one of which is always zero). A leaky or CReLU unit counts as
        linearised on either side of zero. Outputs of a Fourier unit lie on a circle: the unit is dormant if they hardly
        move along it. Metrics without a meaning are NaN: active_fraction of the identity and of Fourier units (which
        are never dead either), linearisation of tanh, of the identity and of Fourier units, and the overlap with an
        empty set. The score requires outputs near zero, as in ReDo; a unit stuck at a bound of tanh, or at -1 of ELU,
        is not dormant by this score, but lowers active_fraction. GELU and SiLU are slightly curved for positive inputs,
        so that linearised means close to linear.

    Args:
        every: Period.
        of: Clock of the period: updates, steps (environment steps) or episodes.
        samples: Number of transitions used: from the update's batch if that is large enough, else from the replay. With
            more samples, fewer units are dead.
    """

    dormant: Tensor  # [all units], at the latest check
    name = "units"
    example: ClassVar[str] = "units(every=2, samples=16)"
    metrics: ClassVar[Mapping[str, str]] = {
        "dormant_fraction": "share of units whose mean absolute output is at most 0.1 of their layer's mean",
        "dormant_fraction_0.025": "the same with 0.025 of the layer's mean",
        "dead_fraction": "share of units whose output is exactly zero on all samples and positions",
        "active_fraction": "share of units active on a sample, averaged over samples (FAU)",
        "linearised_fraction": "share of units that act linearly: their input is positive on over 99 % of samples",
        "nonlinearity": "4 rho (1 - rho), averaged over units; rho is the share of samples with a positive input",
        "dormant_overlap": "units dormant (0.1) at this check and at the previous one, as a share of the smaller set",
    }

    def __init__(self, every: Period = 250, of: Unit = "updates", samples: Samples = SAMPLES) -> None:
        super().__init__(trigger(every, of))
        self.samples = samples

    def bind(self, agent: Agent) -> None:
        surveyed = survey(agent)
        self.names = [name for names in surveyed.traced.values() for name in names]
        layers = [surveyed.layers[name] for name in self.names]
        self.units = np.array([layer.units for layer in layers])
        dormant = torch.zeros(int(self.units.sum()), dtype=torch.bool, device=agent.device)
        self.register_buffer("dormant", dormant)
        self.pools = {name: [name] for name in self.names} | pools(self.names)
        # Layers for whose activation the metric is defined; the others are left out of the pool.
        gated = np.array([isinstance(layer.activation, GATES) for layer in layers], bool)
        tanh = np.array([isinstance(layer.activation, nn.Tanh) for layer in layers], bool)
        everywhere = np.ones(len(layers), bool)
        # Sine and cosine are never both zero.
        can_die = np.array([not isinstance(layer.activation, Fourier) for layer in layers], bool)
        self.meant = (everywhere, everywhere, can_die, gated | tanh, gated, gated)

    @torch.no_grad()
    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        outputs = context.outputs(self.samples)
        counts, dormant, begin = [], [], 0
        for name in self.names:
            layer = context.survey.layers[name]
            before = self.dormant[begin : begin + layer.units]
            begin += layer.units
            count, now = counted(layer, outputs[name][: self.samples], before)
            counts.append(count)
            dormant.append(now)
        if counts:
            self.dormant.copy_(torch.cat(dormant))
            yield "units/counts", torch.stack(counts)

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        for place, names in self.pools.items():
            index = np.array([self.names.index(name) for name in names])
            for column, (metric, meant) in enumerate(zip(SHARES, self.meant, strict=True)):
                defined = index[meant[index]]
                share = array[defined, column].sum() / self.units[defined].sum() if len(defined) else math.nan
                yield f"{place}/{metric}", float(share)
            now, before, both = (float(array[index, column].sum()) for column in (0, -2, -1))
            yield f"{place}/dormant_overlap", overlap(both, now, before)


def counted(layer: Layer, h: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the units of one layer, and which of its units are dormant at present [units].

    The sums are in the order of `SHARES` (0 for undefined metrics), then the number of units that were dormant at the
    previous check, and the number that are dormant at both.
    """
    size = magnitude(layer, h)
    score, dead = dormancy_score(size), size == 0
    now = score <= 0.1
    activation, h = layer.activation, per_unit(layer, h)
    active = active_share(h, activation)
    linear = bent = nothing = torch.zeros_like(score)
    if isinstance(activation, GATES):
        # A unit of one copy is active exactly where its input is positive.
        rho = positive_share(h) if active is None or layer.copies > 1 else active
        linear, bent = linearised(rho, activation, EPS), 4 * rho * (1 - rho)
    columns = (now, score <= 0.025, dead, nothing if active is None else active, linear, bent, before, now & before)
    # Comparisons with NaN are false, so a diverged network would look healthy: the last term makes its sums NaN.
    return torch.stack([column.to(score.dtype) for column in columns]).sum(1) + 0 * size.sum(), now

"""Slices through loss landscapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..agents.clock import Clock, Unit
from ..agents.stopping import heed
from ..agents.views import view
from ..common.ranges import Period, Positive, Samples, at_least
from .base import Finding, Monitor, MonitorContext, trigger
from .curvature import Loss
from .pictures import heatmap

Points: TypeAlias = Annotated[int, at_least(3, most=1_001, why="as many losses are computed as their square")]


class Landscape(Monitor):
    """A picture of each component's loss around the present weights, along two random directions.

    In every unit's incoming weights, a direction has the same norm as the weights; biases and normalisation parameters
    do not move. Slices of different networks, and of one network at different times, are therefore comparable.

    Healthy: A smooth bowl with the present weights near its centre.
    When: Flat everywhere: no nearby weights change the loss (dead units, saturation). Steep walls close to the centre:
        the steps of the optimizer are too large.
    Paper: Li, Xu, Taylor, Studer & Goldstein 2018, "Visualizing the Loss Landscape of Neural Nets", 1712.09913, section
        4 (filter normalisation).
    Differs: No known difference in the directions. Targets are frozen and noise is the same at every point, so the loss
        is the one that an update descends; the batch is small and the grid coarse.

    Args:
        every: Period.
        of: Clock of the period.
        points: Grid points per side; odd, so that the present weights are one of them.
        span: Half the side, as a multiple of the norm of the weights.
        samples: Transitions on which losses are computed.
    """

    name = "landscape"
    group = "deep"
    example: ClassVar[str] = "landscape(every=3, points=3, samples=6)"
    every: ClassVar[int] = 50_000
    metrics: ClassVar[Mapping[str, str]] = {
        "landscape_rise": "mean loss on the rim of the slice minus the loss at the present weights",
        "landscape_drop": "loss at the present weights minus the lowest of the slice, never negative",
    }

    def __init__(
        self,
        every: Period = 50_000,
        of: Unit = "updates",
        points: Points = 11,
        span: Positive = 1.0,
        samples: Samples = 32,
    ) -> None:
        super().__init__(trigger(every, of))
        if points % 2 == 0:
            raise ValueError(f"landscape: points must be odd, not {points}")
        self.points, self.span, self.samples = points, span, samples

    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        agent, generator = context.copy(), context.generator("landscape directions")
        for name, loss in view(agent).loss_functions(context.batch(self.samples), context.seed("landscape")).items():
            online = agent.components[name].online
            directions = [filter_normalised(online, generator) for _ in range(2)]
            yield f"{name}/landscape", loss_slice(loss, online, directions, axis(self.points, self.span))

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        place, middle = key.rpartition("/")[0], len(array) // 2
        rim = np.ones(array.shape, bool)
        rim[1:-1, 1:-1] = False
        with np.errstate(invalid="ignore"):  # far from the weights, a loss may overflow
            yield f"{place}/landscape_rise", float(array[rim].mean() - array[middle, middle])
            yield f"{place}/landscape_drop", float(array[middle, middle] - array.min())
        finite = array[np.isfinite(array)]
        yield (
            f"plasticity/landscape/{place}",
            heatmap(
                array,
                title=f"loss around the weights, {place}",
                x_label="first direction",
                y_label="second direction",
                # Without this limit, the large losses at the corners would hide the structure at the centre.
                high=float(np.quantile(finite, 0.9)) if len(finite) else None,
                x_ticks={0.5: f"{-self.span:g}", middle + 0.5: "0", len(array) - 0.5: f"{self.span:g}"},
            ),
        )


def axis(points: int, span: float) -> list[float]:
    """Positions from -span to span; the middle one is exactly zero."""
    middle = points // 2
    return [span * (i - middle) / middle for i in range(points)]


@torch.no_grad()
def filter_normalised(network: nn.Module, generator: Generator) -> dict[str, Tensor]:
    """A random direction, by name of the parameters that move: trainable ones, except biases and normalisation
    parameters.

    It is drawn from a normal distribution; then each unit's part is scaled to the norm of the unit's incoming
    weights.
    """
    direction = {}
    for name, p in network.named_parameters():
        if p.requires_grad and p.ndim > 1 and "norm" not in name.split("."):
            drawn = torch.empty(p.shape, dtype=p.dtype, device=p.device).normal_(generator=generator)
            lengths, own = (x.flatten(1).norm(dim=1) for x in (drawn, p))
            direction[name] = drawn * (own / (lengths + 1e-10)).view(-1, *[1] * (p.ndim - 1))
    return direction


@torch.no_grad()
def loss_slice(
    loss: Loss, network: nn.Module, directions: Sequence[Mapping[str, Tensor]], places: Sequence[float]
) -> Tensor:
    """The loss at weights + x * first + y * second [y, x] for all x and y; the weights are restored exactly."""
    first, second = directions
    parameters: list[Tensor] = [network.get_parameter(name) for name in first]
    own = [p.clone() for p in parameters]
    along, across = list(first.values()), [second[name] for name in first]
    rows = []
    for y in places:
        torch._foreach_copy_(parameters, own)
        torch._foreach_add_(parameters, across, alpha=y)
        base = [p.clone() for p in parameters]
        row = []
        for x in places:
            heed()
            torch._foreach_copy_(parameters, base)
            torch._foreach_add_(parameters, along, alpha=x)
            row.append(loss())
        rows.append(torch.stack(row))
    torch._foreach_copy_(parameters, own)
    return torch.stack(rows)

"""Monitors of units: dormant, dead, active and linearised ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from ..agents.hooks import Unit
from .monitor import SAMPLES, Look, Monitor, beat
from .recycling import magnitude
from .redo import dormancy_score


class Units(Monitor):
    """How many units of each layer still do something.

    Args:
        every: Period.
        of: Clock of the period.
        samples: Transitions looked at.
    """

    name = "units"
    example: ClassVar[str] = "units(every=2, samples=16)"
    metrics: ClassVar[Mapping[str, str]] = {
        "dormant_fraction": "share of units whose mean absolute output is at most 0.1 of their layer's mean",
    }

    def __init__(self, every: int = 250, of: Unit = "updates", samples: int = SAMPLES) -> None:
        super().__init__(beat(every, of))
        self.samples = samples

    def measure(self, look: Look) -> Iterator[tuple[str, Tensor]]:
        for name, h in look.outputs(self.samples).items():
            score = dormancy_score(magnitude(look.survey.layers[name], h))
            yield f"{name}/dormant_fraction", (score <= 0.1).float().mean()

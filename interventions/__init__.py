"""Methods that keep agents learning. The protocol is that of `pliant.agents.hooks`."""

from typing import Any

from ..agents.hooks import At, Clock, Compose, Every, Intervention, Sampling, Update, When, sample_like_training
from .external.attach import Learner, Plasticity, attach, attachable
from .registry import INTERVENTIONS

__all__ = [
    "INTERVENTIONS",
    "At",
    "Clock",
    "Compose",
    "Every",
    "Intervention",
    "Learner",
    "Plasticity",
    "Sampling",
    "Update",
    "When",
    "attach",
    "attachable",
    "sample_like_training",
]


def __getattr__(name: str) -> Any:
    if name in ("MONITORS", "watch"):
        raise AttributeError(f"pliant.interventions.{name} is now pliant.monitors.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Methods that preserve or restore plasticity. `pliant.agents.hooks` defines their protocol."""

from ..agents.clock import At, Clock, Every, Sampling, Update, When
from ..agents.hooks import Compose, Intervention, sample_like_training
from ..common.moved import moved
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

__getattr__ = moved(__name__, {name: f"pliant.monitors.{name}" for name in ("MONITORS", "watch")})

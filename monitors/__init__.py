"""Monitors: they measure an agent while it learns, and never change it."""

from .base import Monitor, Monitors
from .registry import MONITORS, watch

__all__ = ["MONITORS", "Monitor", "Monitors", "watch"]

"""What measures an agent while it learns, and never changes it."""

from .base import Monitor, Monitors
from .registry import MONITORS, watch

__all__ = ["MONITORS", "Monitor", "Monitors", "watch"]

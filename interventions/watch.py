"""Moved to `pliant.monitors.registry`; an import from here gives an error with the new path."""

from ..common.moved import moved

__getattr__ = moved(
    __name__, {"watch": "pliant.monitors.watch", "MONITORS": "pliant.monitors.MONITORS"}, "pliant.monitors.registry"
)

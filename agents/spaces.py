"""Moved to `pliant.common.spaces`; an import from here raises an error with the new name."""

from ..common.moved import moved

__getattr__ = moved(__name__, {}, "pliant.common.spaces")

"""Moved to `pliant.common.spaces`; an import from here gives an error that says so."""

from ..common.moved import moved

__getattr__ = moved(__name__, {}, "pliant.common.spaces")

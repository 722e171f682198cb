"""Moved to `pliant.interventions.external.sb3`; an import from here gives an error with the new path."""

from ..common.moved import moved

__getattr__ = moved(__name__, {}, "pliant.interventions.external.sb3")

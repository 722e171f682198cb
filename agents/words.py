"""Moved to `pliant.common.specs`; an import from here gives an error that says so."""

from ..common.moved import moved

__getattr__ = moved(
    __name__,
    {"Word": "pliant.common.specs.Spec", "SentenceError": "pliant.common.specs.SpecError"},  # former names
    "pliant.common.specs",
)

"""Moved to `pliant.common.specs`; an import from here raises an error with the new name."""

from ..common.moved import moved

__getattr__ = moved(
    __name__,
    {"Word": "pliant.common.specs.Spec", "SentenceError": "pliant.common.specs.SpecError"},  # former names
    "pliant.common.specs",
)

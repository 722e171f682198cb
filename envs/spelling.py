"""Comparison of names of environments."""

from __future__ import annotations

import re


def bare(name: str) -> str:
    """A name without its namespace and version, in lower case."""
    return re.sub(r"^.*[/:]|-v\d+$", "", name).lower().replace("_", "")

"""How names of environments are compared."""

from __future__ import annotations

import re


def bare(name: str) -> str:
    """A name without its namespace and version, in small letters."""
    return re.sub(r"^.*[/:]|-v\d+$", "", name).lower().replace("_", "")

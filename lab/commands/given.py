"""Checks whether a user's argument is text and can name a file, before it is used."""

from __future__ import annotations

import os
from pathlib import Path

from ...common.specs import control_character, shorten

LONGEST_NAME = 255
"""Longest name of a file or folder on the file systems of Linux and macOS, in bytes."""
LONGEST_PATH = 4_095


def unfit(text: str) -> str:
    """The reason why a text cannot be a flag's value, phrased to follow the flag in a message; empty if it can."""
    if not text.strip():
        return "is empty (was a shell variable unset?): give it a value, or leave it out"
    if (hidden := control_character(text)) is not None:
        return f"contains {hidden}: {shorten(text)}"
    return ""


def unfit_name(text: str) -> str:
    """The reason why a text cannot name a file, likewise."""
    names = Path(text).parts
    if (longest := max((len(os.fsencode(name)) for name in names), default=0)) > LONGEST_NAME:
        return f"holds a name of {longest:,} bytes; file systems allow {LONGEST_NAME}: {shorten(text)}"
    if len(os.fsencode(text)) > LONGEST_PATH:
        return f"is a path of {len(os.fsencode(text)):,} bytes; file systems allow {LONGEST_PATH:,}: {shorten(text)}"
    if text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            return f"begins with the name of an unknown user: {shorten(text)}"
    return ""


def ended(text: str) -> str:
    """A text with a final full stop."""
    return text if text.endswith((".", "?", "!")) else f"{text}."

"""Checks of a user's text before it is used: is it text, and can it name a file?"""

from __future__ import annotations

import os
from pathlib import Path

from ...common.specs import control_character, shorten

LONGEST_NAME = 255
"""Longest name of a file or folder on the file systems of Linux and macOS, in bytes."""
LONGEST_PATH = 4_095


def unfit(word: str) -> str:
    """The reason why a text cannot be a flag's value, phrased to follow the flag in a message; empty if it can."""
    if not word.strip():
        return "is empty (was a shell variable unset?): give it a value, or leave it out"
    if (hidden := control_character(word)) is not None:
        return f"contains {hidden}: {shorten(word)}"
    return ""


def unfit_name(word: str) -> str:
    """The reason why a text cannot name a file, likewise."""
    names = Path(word).parts
    if (longest := max((len(os.fsencode(name)) for name in names), default=0)) > LONGEST_NAME:
        return f"holds a name of {longest:,} bytes, and file systems take {LONGEST_NAME}: {shorten(word)}"
    if len(os.fsencode(word)) > LONGEST_PATH:
        return f"is a path of {len(os.fsencode(word)):,} bytes, and file systems take {LONGEST_PATH:,}: {shorten(word)}"
    if word.startswith("~"):
        try:
            Path(word).expanduser()
        except RuntimeError:
            return f"begins with the name of an unknown user: {shorten(word)}"
    return ""


def ended(sentence: str) -> str:
    """A sentence with its final full stop."""
    return sentence if sentence.endswith((".", "?", "!")) else f"{sentence}."

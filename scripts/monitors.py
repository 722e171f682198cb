"""`pliant monitors [NAME ...]`: list the monitors, one line each, or print the cards of the given ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pliant.lab.commands.cards import show
from pliant.monitors import MONITORS


def main(argv: Sequence[str] | None = None) -> int:
    return show(argv, "monitors", MONITORS)


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("monitors"))

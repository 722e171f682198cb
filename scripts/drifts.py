"""`pliant drifts [NAME ...]`: list the drifts, one line each, or print the cards of the given ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pliant.envs.drift import DRIFTS
from pliant.lab.commands.cards import show


def main(argv: Sequence[str] | None = None) -> int:
    return show(argv, "drifts", DRIFTS)


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("drifts"))

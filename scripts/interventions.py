"""`pliant interventions [NAME ...]`: list the interventions, one line each, or print the cards of the given ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pliant.interventions import INTERVENTIONS
from pliant.lab.commands.cards import show


def main(argv: Sequence[str] | None = None) -> int:
    return show(argv, "interventions", INTERVENTIONS)


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("interventions"))

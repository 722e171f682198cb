"""Which cases `make test` runs of those that `make test-all` runs: a choice that rotates with the commit.

The choice is a function of one seed, which the first lines of a test run show. `PLIANT_TEST_SEED` repeats a choice.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
VARIABLE = "PLIANT_TEST_SEED"


def find_seed() -> str:
    """The variable, the commit, or 0 without git; kept in the environment, so that all workers choose alike."""
    if VARIABLE not in os.environ:
        folder = Path(__file__).parent
        try:
            git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
            os.environ[VARIABLE] = git.stdout.strip()[:12]
        except (OSError, subprocess.CalledProcessError):
            os.environ[VARIABLE] = "0"
    return os.environ[VARIABLE]


def generator(*key: str) -> random.Random:
    """A stream of random numbers for one choice."""
    return random.Random("/".join((find_seed(), *key)))


def pick(cases: Sequence[T], number: int, first: int) -> list[T]:
    """So many of the cases, evenly spaced from the first; all of them if they are few."""
    if len(cases) <= number:
        return list(cases)
    return [cases[(first + i * len(cases) // number) % len(cases)] for i in range(number)]

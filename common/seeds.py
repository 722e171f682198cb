"""Seeds that follow from one seed."""

from __future__ import annotations

import numpy as np


def derive_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose, so that streams never share draws."""
    entropy = [seed, *purpose.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

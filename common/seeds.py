"""Derivation of seeds from one seed."""

from __future__ import annotations

import numpy as np


def derive_seed(seed: int, purpose: str) -> int:
    """Derive a separate seed for each purpose, so that random streams never share draws."""
    entropy = [seed, *purpose.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

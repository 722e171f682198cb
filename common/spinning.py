"""How threads of OpenMP wait for each other. Imports nothing heavy: the setting counts only before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

# GNU's runtime (in torch's own packages) reads the first, and sleeps at once. Intel's and LLVM's read the second:
# milliseconds before a thread sleeps.
BOUNDED = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
# A user who sets one of these has decided; ours could contradict it.
DECIDED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def bounded(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to an environment, so that waiting threads sleep; none if the user has decided himself."""
    return {} if any(name in environment for name in DECIDED) else dict(BOUNDED)


def bound_spinning() -> None:
    """Let waiting threads of this process and of its children sleep. Has no effect here once torch is loaded.

    A thread that waits for another one keeps its core busy for some milliseconds by default. Where that other one waits
    for the same core, because further processes run, updates become ten to twenty times slower.
    """
    os.environ.update(bounded(os.environ))

"""The waiting policy of OpenMP threads. Imports no large library: the policy must be set before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

# GNU's runtime (in torch's own packages) reads the first: threads sleep at once. Intel's and LLVM's read the second:
# milliseconds of waiting before a thread sleeps.
BOUNDED = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
# If the user has set one of these, nothing is changed: our settings could contradict it.
DECIDED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def bounded(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to an environment so that waiting threads sleep; none if the user has set a policy."""
    return {} if any(name in environment for name in DECIDED) else dict(BOUNDED)


def bound_spinning() -> None:
    """Make waiting threads of this process and of its children sleep. No effect on this process once torch is loaded.

    By default a thread that waits for another thread keeps its core busy for some milliseconds. If the other thread
    waits for the same core, because other processes are running, updates become ten to twenty times slower.
    """
    os.environ.update(bounded(os.environ))

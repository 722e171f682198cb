"""Matrix functions that methods and monitors share."""

from __future__ import annotations

from torch import Tensor


def gram(x: Tensor) -> Tensor:
    """The smaller of x xᵀ and xᵀ x, for a matrix x [n, d]."""
    return x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x

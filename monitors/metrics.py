"""What monitors compute, as plain functions: of outputs and gradients on the device, of small arrays on the host.

Nothing here waits for the device. Functions of tensors return tensors; decompositions take arrays, after the copy to
the host. Where a matrix holds a NaN or an infinity, what is computed of it is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..agents.heads import precise
from ..agents.networks import CReLU, ReLU
from ..interventions.core.matrices import gram
from ..interventions.core.parts import ENCODER

Array = NDArray[Any]


def pools(layers: Iterable[str]) -> dict[str, list[str]]:
    """Places that stand for several layers → those layers: every component, and `encoder` where there is one."""
    found: dict[str, list[str]] = {}
    for name in layers:
        found.setdefault(name.partition(".")[0], []).append(name)
        if name.startswith(ENCODER):
            found.setdefault("encoder", []).append(name)
    return found


# ------------------------------------------------------------------------------------------------------------- units

GATES = (ReLU, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, CReLU)
"""Activations whose (first) output is positive exactly where their input is, and there is a line or approaches one."""


def positive_share(h: Tensor) -> Tensor:
    """How often every unit's input was positive [units], of outputs [B, copies, units, positions]; for `GATES`."""
    return _share(torch.gt, h[:, 0], 0.0)


def _share(compare: Callable[..., Tensor], h: Tensor, bound: float) -> Tensor:
    """How often a comparison holds of every unit [units], of [B, units, positions]."""
    # Into floats at once: booleans would take longer to be converted than to be found.
    return compare(h, bound, out=torch.empty_like(h)).mean(dim=(0, 2))


def active_share(h: Tensor, activation: nn.Module | None) -> Tensor | None:
    """How often every unit was active [units], of outputs [B, copies, units, positions]; None where it means nothing.

    A rectifying unit is active where its output is positive; one of tanh where it is no further than 0.99 from zero,
    since beyond it is saturated; a CReLU unit where either of its two copies is positive.
    """
    if isinstance(activation, nn.Tanh):
        return _share(torch.lt, h[:, 0].abs(), 0.99)
    if isinstance(activation, CReLU):
        return _share(torch.gt, h.amax(dim=1), 0.0)
    return positive_share(h) if isinstance(activation, GATES) else None


def linearised(positive: Tensor, activation: nn.Module | None, eps: float) -> Tensor:
    """Whether a unit with that share of positive inputs [units] never bends: its input is positive on more than
    1 - eps of the samples; for leaky ReLU and CReLU, which pass negative inputs on, also on less than eps."""
    always = positive > 1 - eps
    return always | (positive < eps) if isinstance(activation, nn.LeakyReLU | CReLU) else always


def overlap(both: float, first: float, second: float) -> float:
    """The overlap coefficient of two sets: what they share, as a share of the smaller one; NaN if one is empty."""
    return both / min(first, second) if min(first, second) > 0 else float("nan")


# -------------------------------------------------------------------------------------------------- matrices and ranks


def unit_gram(gradient: Tensor) -> Tensor:
    """A gradient's norm, and the Gram matrix of the gradient of norm 1 [1 + k * k], k the smaller side of [out, rest].

    In float32; scaled before it is squared, so that the square of a small gradient does not vanish.
    """
    matrix = gradient.detach().reshape(len(gradient), -1)
    norm = torch.linalg.vector_norm(matrix)
    return torch.cat([norm.view(1), gram(matrix / torch.where(norm == 0, 1.0, norm)).reshape(-1)])


def feature_moments(features: Tensor) -> Tensor:
    """What the ranks of features [n, ...] are worked out of: n, d, mean norm, Gram matrix of the smaller side, mean.

    In float64, except on devices that have none.
    """
    x = features.detach().flatten(1)
    norm = torch.linalg.vector_norm(x, dim=1).mean()
    x = precise(x)
    sizes = torch.ones(2, dtype=x.dtype, device=x.device)
    sizes[0].fill_(x.shape[0])
    sizes[1].fill_(x.shape[1])
    return torch.cat([sizes, norm.to(x.dtype).view(1), gram(x).reshape(-1), x.mean(0)])


def read_moments(array: Array) -> tuple[int, int, float, Array, Array, Array]:
    """Of `feature_moments`: n, d, mean norm, Gram matrix, the same of centred features, and the rest of the array."""
    n, d, norm = int(array[0]), int(array[1]), float(array[2])
    k = min(n, d)
    matrix, mean, rest = array[3 : 3 + k * k].reshape(k, k), array[3 + k * k : 3 + k * k + d], array[3 + k * k + d :]
    if not np.isfinite(matrix).all():
        centred = matrix
    elif n <= d:  # of samples: every row and column is centred
        rows = matrix.mean(0)
        centred = matrix - rows[:, None] - rows[None, :] + rows.mean()
    else:
        centred = matrix - n * np.outer(mean, mean)
    return n, d, norm, matrix, centred, rest


def eigenvalues(matrix: Array) -> Array:
    """Those of a symmetric matrix, the largest first."""
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan)
    return np.linalg.eigvalsh(matrix)[::-1]


def singular_values(eigen: Array, floor: float) -> Array:
    """Roots of a Gram matrix's eigenvalues; what is not above `floor` is rounding, and counts as zero."""
    return np.sqrt(np.where(eigen > floor, eigen, 0.0)) if np.isfinite(eigen).all() else eigen


def _of_spectrum(rank: Callable[..., float]) -> Callable[..., float]:
    """A rank is NaN of what is no number, and 0 of the zero matrix."""

    def guarded(sigma: Array, *args: Any) -> float:
        if not np.isfinite(sigma).all():
            return float("nan")
        return float(rank(sigma, *args)) if sigma.size and sigma.max() > 0 else 0.0

    guarded.__doc__ = rank.__doc__
    return guarded


@_of_spectrum
def effective_rank(sigma: Array) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007)."""
    p = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


@_of_spectrum
def stable_rank(sigma: Array) -> float:
    """Squared Frobenius norm over squared spectral norm."""
    return float(np.square(sigma / sigma.max()).sum())


@_of_spectrum
def srank(sigma: Array, delta: float) -> float:
    """The fewest singular values that sum up to a share 1 - delta of all (Kumar et al. 2021, 2010.14498)."""
    return _fewest(sigma, 1 - delta)


@_of_spectrum
def pca_rank(sigma: Array, share: float) -> float:
    """The fewest squared singular values that sum up to that share of all (Yang et al. 2020, 1909.12255)."""
    return _fewest(np.square(sigma / sigma.max()), share)


def _fewest(weights: Array, share: float) -> int:
    """How many of the weights, the largest first, it takes to reach a share of their sum."""
    reached = np.cumsum(np.sort(weights)[::-1]) / weights.sum()
    # A share that is met exactly is met, however the sums were rounded.
    return int(np.searchsorted(reached, share - 1e-12)) + 1


@_of_spectrum
def feature_rank(sigma: Array, n: int, eps: float) -> float:
    """Singular values above eps, after division by the root of the number of samples (Lyle et al. 2022, 2204.09560)."""
    return float((sigma / np.sqrt(n) > eps).sum())


@_of_spectrum
def numerical_rank(sigma: Array, n: int, d: int) -> float:
    """Singular values above the rounding of float32, max(n, d) * 2^-23 of the largest one."""
    return float((sigma > sigma.max() * max(n, d) * 2.0**-23).sum())

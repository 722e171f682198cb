"""Computations of monitors as plain functions: outputs and gradients on the device, small arrays on the host.

No function waits for the device. Functions of tensors return tensors; decompositions take arrays, after the copy to
the host. For a matrix with a NaN or an infinity, results are NaN.
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
    """Places with several layers → these layers: every component, and `encoder` if there is one."""
    layers_of: dict[str, list[str]] = {}
    for name in layers:
        layers_of.setdefault(name.partition(".")[0], []).append(name)
        if name.startswith(ENCODER):
            layers_of.setdefault("encoder", []).append(name)
    return layers_of


# ------------------------------------------------------------------------------------------------------------- units

GATES = (ReLU, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, CReLU)
"""Activations whose (first) output is positive exactly where their input is, and is (nearly) linear there."""


def positive_share(h: Tensor) -> Tensor:
    """Share of samples with a positive input, per unit [units], from outputs [B, copies, units, positions]; for
    `GATES`."""
    return _share(torch.gt, h[:, 0], 0.0)


def _share(compare: Callable[..., Tensor], h: Tensor, bound: float) -> Tensor:
    """Share of samples and positions for which a comparison holds, per unit [units], from [B, units, positions]."""
    # Writes floats directly: converting booleans would take longer than the comparison.
    return compare(h, bound, out=torch.empty_like(h)).mean(dim=(0, 2))


def active_share(h: Tensor, activation: nn.Module | None) -> Tensor | None:
    """Share of samples on which a unit is active [units], from outputs [B, copies, units, positions]; None if
    undefined.

    A rectifying unit is active if its output is positive; a tanh unit if its output is at most 0.99 from zero, since
    it is saturated beyond; a CReLU unit if either of its two copies is positive.
    """
    if isinstance(activation, nn.Tanh):
        return _share(torch.lt, h[:, 0].abs(), 0.99)
    if isinstance(activation, CReLU):
        return _share(torch.gt, h.amax(dim=1), 0.0)
    return positive_share(h) if isinstance(activation, GATES) else None


def linearised(positive: Tensor, activation: nn.Module | None, eps: float) -> Tensor:
    """Whether a unit with this share of positive inputs [units] acts linearly: its input is positive on more than
    1 - eps of the samples; for leaky ReLU and CReLU, which pass negative inputs on, also if on less than eps."""
    always = positive > 1 - eps
    return always | (positive < eps) if isinstance(activation, nn.LeakyReLU | CReLU) else always


def overlap(both: float, first: float, second: float) -> float:
    """The overlap coefficient of two sets: their intersection over the smaller one; NaN if one is empty."""
    return both / min(first, second) if min(first, second) > 0 else float("nan")


# -------------------------------------------------------------------------------------------------- matrices and ranks


def unit_gram(gradient: Tensor) -> Tensor:
    """A gradient's norm, and the Gram matrix of the gradient scaled to norm 1 [1 + k * k]; k is the smaller side of
    [out, rest].

    In float32; scaled before it is squared, so that the square of a small gradient does not vanish.
    """
    matrix = gradient.detach().reshape(len(gradient), -1)
    norm = torch.linalg.vector_norm(matrix)
    return torch.cat([norm.view(1), gram(matrix / torch.where(norm == 0, 1.0, norm)).reshape(-1)])


def feature_moments(features: Tensor) -> Tensor:
    """The inputs of rank computations for features [n, ...]: n, d, mean norm, Gram matrix of the smaller side, mean.

    In float64, except on devices without it.
    """
    x = features.detach().flatten(1)
    norm = torch.linalg.vector_norm(x, dim=1).mean()
    x = precise(x)
    sizes = torch.ones(2, dtype=x.dtype, device=x.device)
    sizes[0].fill_(x.shape[0])
    sizes[1].fill_(x.shape[1])
    return torch.cat([sizes, norm.to(x.dtype).view(1), gram(x).reshape(-1), x.mean(0)])


def read_moments(array: Array) -> tuple[int, int, float, Array, Array, Array]:
    """The result of `feature_moments`: n, d, mean norm, Gram matrix, centred Gram matrix, rest of the array."""
    n, d, norm = int(array[0]), int(array[1]), float(array[2])
    k = min(n, d)
    matrix, mean, rest = array[3 : 3 + k * k].reshape(k, k), array[3 + k * k : 3 + k * k + d], array[3 + k * k + d :]
    if not np.isfinite(matrix).all():
        centred = matrix
    elif n <= d:  # a matrix of samples: every row and column is centred
        rows = matrix.mean(0)
        centred = matrix - rows[:, None] - rows[None, :] + rows.mean()
    else:
        centred = matrix - n * np.outer(mean, mean)
    return n, d, norm, matrix, centred, rest


def eigenvalues(matrix: Array) -> Array:
    """The eigenvalues of a symmetric matrix, the largest first."""
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan)
    return np.linalg.eigvalsh(matrix)[::-1]


def singular_values(eigen: Array, floor: float) -> Array:
    """Square roots of a Gram matrix's eigenvalues; those up to `floor` are rounding errors and count as zero."""
    return np.sqrt(np.where(eigen > floor, eigen, 0.0)) if np.isfinite(eigen).all() else eigen


def _of_spectrum(rank: Callable[..., float]) -> Callable[..., float]:
    """Make a rank NaN if a singular value is not finite, and 0 for the zero matrix."""

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
    """The smallest number of singular values whose sum is a share 1 - delta of all (Kumar et al. 2021, 2010.14498)."""
    return _fewest(sigma, 1 - delta)


@_of_spectrum
def pca_rank(sigma: Array, share: float) -> float:
    """The smallest number of squared singular values whose sum is this share of all (Yang et al. 2020, 1909.12255)."""
    return _fewest(np.square(sigma / sigma.max()), share)


def _fewest(weights: Array, share: float) -> int:
    """The smallest number of weights, the largest first, whose sum reaches a share of the total."""
    reached = np.cumsum(np.sort(weights)[::-1]) / weights.sum()
    # The tolerance accepts a share that is met exactly in spite of rounding.
    return int(np.searchsorted(reached, share - 1e-12)) + 1


@_of_spectrum
def feature_rank(sigma: Array, n: int, eps: float) -> float:
    """Singular values above eps, divided by the square root of the number of samples (Lyle et al. 2022, 2204.09560)."""
    return float((sigma / np.sqrt(n) > eps).sum())


@_of_spectrum
def numerical_rank(sigma: Array, n: int, d: int) -> float:
    """Singular values above the rounding of float32, max(n, d) * 2^-23 of the largest one."""
    return float((sigma > sigma.max() * max(n, d) * 2.0**-23).sum())

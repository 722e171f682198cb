"""Gradients of single transitions: the empirical neural tangent kernel, gradient covariance, interference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Clock, Unit
from ..agents.replay import Batch
from ..agents.stopping import heed
from ..agents.views import view
from ..common.ranges import Period, at_least
from .base import Finding, Monitor, MonitorContext, trigger
from .curvature import Loss, gradient, trained
from .pictures import heatmap

LIMIT = 2**26  # gradient entries in memory at once: 256 MiB in single precision

Compared: TypeAlias = Annotated[int, at_least(2, "transitions", most=10_000, why="each is compared with each")]


class Kernel(Monitor):
    """How similar the gradients of different transitions are: how learning one transition affects another.

    The tangent kernel is that of the critics' values of the actions taken, K_xy = <∇Q(x), ∇Q(y)>, averaged over critics
    (computed as the gradient of the sum of their values over the square root of their number). The covariance uses the
    losses of single transitions, C_xy = <g_x, g_y> / (|g_x| |g_y|), which is zero if a gradient is zero.

    Healthy: A kernel of high rank and a mean cosine slightly above zero: the network distinguishes transitions, and
        learning one helps similar ones. Interference with the successor is above that with random transitions.
    When: A cosine near one (or minus one: all gradients on one line) indicates collapsed features; a growing share of
        transitions without any gradient indicates dead units; a condition number that grows without bound while the
        rank falls means that the network can hardly fit some targets any more.
    Paper: Lyle et al. 2023, "Understanding Plasticity in Neural Networks", 2303.01486, section 3 (gradient covariance);
        Jacot, Gabriel & Hongler 2018, 1806.07572 (kernel); Roy & Vetterli 2007 (effective rank); Lyle et al. 2022,
        "Learning Dynamics and Generalization in Reinforcement Learning", 2206.02126 (interference with the successor).
    Differs: Lyle et al. show matrices; this monitor shows them and reports summaries. Gradients on one line with
        opposite signs cancel in the mean cosine, so the mean absolute cosine is reported too.

    Args:
        every: Period.
        of: Clock of the period.
        samples: Number of transitions; three gradients are computed for each.
    """

    name = "kernel"
    group = "deep"
    example: ClassVar[str] = "kernel(every=3, samples=4)"
    every: ClassVar[int] = 25_000
    metrics: ClassVar[Mapping[str, str]] = {
        "ntk_top_eigenvalue": "largest eigenvalue of the tangent kernel of the values on the sampled transitions",
        "ntk_condition": "largest eigenvalue of the tangent kernel over its smallest one above rounding errors",
        "ntk_effective_rank": "exp of the entropy of the tangent kernel's eigenvalues as shares of their sum",
        "ntk_numerical_rank": "eigenvalues of the tangent kernel above the largest * samples * machine epsilon",
        "gradient_cosine": "mean cosine of the gradients of two transitions' losses",
        "gradient_cosine_abs": "mean absolute cosine of the gradients of two transitions' losses",
        "gradient_zero_fraction_samples": "share of transitions whose loss has no gradient at all",
        "gradient_covariance_rank": "effective rank of the matrix of cosines of the losses' gradients",
        "interference_successor": "mean cosine of the gradients of Q(s, a) and Q(s', a'), s' the successor, a' greedy",
        "interference_random": "the same, with s' and a' of another transition",
    }

    def __init__(self, every: Period = 25_000, of: Unit = "updates", samples: Compared = 32) -> None:
        super().__init__(trigger(every, of))
        self.samples = samples

    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        agent, n = context.agent, self.samples
        batch = context.batch(n, "kernel")
        singles = [slice(i, i + 1) for i in range(n)]

        followed = batch.replace(obs=batch.next_obs, action=agent.act(batch.next_obs))
        of_values = [partial(_joint_value, agent, b.take(i)) for b in (batch, followed) for i in singles]
        products = gram(of_values, trained(agent.components["critic"]))
        yield "critic/ntk", products[:n, :n]
        cosines = _cosines(products)[:n, n:]
        goes_on = (batch.discount > 0).to(cosines.dtype)
        yield "critic/interference_successor", (cosines.diagonal() * goes_on).sum() / goes_on.sum().clamp_(min=1)
        others = cosines * (1 - torch.eye(n, dtype=cosines.dtype, device=cosines.device)) * goes_on
        yield "critic/interference_random", others.sum() / (goes_on.sum() * (n - 1)).clamp_(min=1)

        # Each transition has independent noise, because shared noise would appear as similarity.
        losses = [view(agent).loss_functions(batch.take(i), context.seed(f"kernel {i.start}")) for i in singles]
        for name in losses[0]:
            yield f"{name}/gradients", gram([each[name] for each in losses], trained(agent.components[name]))

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        place, _, kind = key.rpartition("/")
        metrics = kernel_metrics(array) if kind == "ntk" else covariance_metrics(array)
        yield from ((f"{place}/{name}", value) for name, value in metrics.items())
        if kind == "gradients":
            yield (
                f"plasticity/gradient_cosines/{place}",
                heatmap(
                    cosines(array),
                    title=f"cosines of gradients, {place}",
                    x_label="transition",
                    y_label="transition",
                    low=-1.0,
                    high=1.0,
                ),
            )


def gram(functions: Sequence[Loss], parameters: Sequence[Tensor], limit: int = LIMIT) -> Tensor:
    """All inner products of the gradients of n functions by the same parameters [n, n].

    Every function is differentiated separately, so the result is exact for any function. If n gradients have more than
    `limit` entries in total, they are computed in slices, with one backward pass per function and slice.

    Args:
        functions: Each returns a 0-d tensor, or a tensor with a single element.
    """
    starts = [0]
    for p in parameters:
        starts.append(starts[-1] + p.numel())
    width = max(1, min(starts[-1], limit // len(functions)))
    total = parameters[0].new_zeros(len(functions), len(functions))
    for begin in range(0, starts[-1], width):
        end = min(begin + width, starts[-1])
        touched = [i for i, p in enumerate(parameters) if starts[i] < end and starts[i] + p.numel() > begin]
        first = starts[touched[0]]
        rows = parameters[0].new_empty(len(functions), end - begin)
        for row, function in zip(rows, functions, strict=True):
            heed()
            row.copy_(gradient(function(), [parameters[i] for i in touched])[begin - first : end - first])
        total += rows @ rows.T
    return total


def _joint_value(agent: Agent, single: Batch) -> Tensor:
    """A scalar whose gradient covers all critics: if critics share no weights, inner products of these gradients are
    the means of the critics' inner products."""
    values = view(agent).values(single)
    return values.sum() / math.sqrt(len(values))


def _cosines(products: Tensor) -> Tensor:
    """[n, n] inner products → cosines, zero for zero vectors; on the device."""
    lengths = products.diagonal().sqrt()
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    return products * inverse * inverse.unsqueeze(1)


def cosines(products: NDArray[Any]) -> NDArray[Any]:
    """[n, n] inner products → cosines [n, n], zero for zero vectors; on the host."""
    lengths = np.sqrt(np.diagonal(products))
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return products * inverse * inverse[:, None]


def effective_rank(eigenvalues: NDArray[Any]) -> float:
    """exp of the entropy of non-negative numbers as shares of their sum; 0 if all are zero."""
    positive = eigenvalues[eigenvalues > 0]
    if not len(positive):
        return 0.0
    shares = positive / positive.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def kernel_metrics(kernel: NDArray[Any], eps: float = float(np.finfo(np.float32).eps)) -> dict[str, float]:
    """Metrics of a kernel [n, n] that was computed at the precision `eps`."""
    names = ("ntk_top_eigenvalue", "ntk_condition", "ntk_effective_rank", "ntk_numerical_rank")
    if not np.isfinite(kernel).all():
        return dict.fromkeys(names, math.nan)
    values = np.linalg.eigvalsh((kernel + kernel.T) / 2)
    significant = values[values > max(values[-1], 0.0) * len(values) * eps]
    condition = float(significant[-1] / significant[0]) if len(significant) else math.inf
    return dict(
        zip(names, (float(values[-1]), condition, effective_rank(significant), float(len(significant))), strict=True)
    )


def covariance_metrics(products: NDArray[Any]) -> dict[str, float]:
    """Metrics of the inner products [n, n] of the gradients of n losses."""
    if not np.isfinite(products).all():
        names = ("gradient_cosine", "gradient_cosine_abs", "gradient_zero_fraction_samples", "gradient_covariance_rank")
        return dict.fromkeys(names, math.nan)
    matrix = cosines(products)
    others = matrix[~np.eye(len(matrix), dtype=bool)]
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    # Two identical transitions leave an eigenvalue of rounding errors, which does not count.
    significant = values[values > len(values) ** 2 * float(np.finfo(np.float32).eps)]
    return {
        "gradient_cosine": float(others.mean()),
        "gradient_cosine_abs": float(np.abs(others).mean()),
        "gradient_zero_fraction_samples": float((np.diagonal(products) == 0).mean()),
        "gradient_covariance_rank": effective_rank(significant),
    }

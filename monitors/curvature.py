"""Curvature of losses: eigenvalues of the Hessian, its trace and stable rank, and sharpness.

The functions here take a loss as a closure, and the parameters to differentiate by. They do not depend on agents:

    product = hessian_products(loss, parameters)          # vector [P] → Hessian times vector [P]
    alphas, betas, basis = lanczos(product, start, 20)    # on the device
    ritz_values(alphas.numpy(), betas.numpy())            # on the host
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from ..agents.agent import Component
from ..agents.clock import Clock, Unit
from ..agents.stopping import heed
from ..agents.views import view
from ..common.ranges import Period, Positive, Samples, at_least
from .base import Finding, Monitor, MonitorContext, trigger

Loss = Callable[[], Tensor]

Iterations: TypeAlias = Annotated[int, at_least(1, "iterations", most=10_000, why="each is a gradient of a gradient")]


class Curvature(Monitor):
    """How steep and how curved each component's loss is at the present weights.

    Healthy: Moderate and steady. Gradient descent is unstable if the top eigenvalue exceeds two over the learning rate
        (Adam's preconditioning shifts this limit). A trace and a stable rank that fall towards zero mean that the loss
        can be changed in few directions only.
    When: To distinguish a sharp loss (top eigenvalue and sharpness grow: use smaller steps or normalisation) from a
        flat one (trace and stable rank fall: dormant units, saturation).
    Paper: Lanczos 1950, with full re-orthogonalisation. Trace: Hutchinson 1989, with the part that the Lanczos basis
        spans computed exactly (Meyer, Musco, Musco & Woodruff 2021, "Hutch++", 2010.09649, algorithm 1). Sharpness:
        Foret et al. 2021, "Sharpness-Aware Minimization", 2010.01412, eq. 2. Curvature and plasticity: Lewandowski et
        al. 2023, "Directions of Curvature as an Explanation for Loss of Plasticity", 2312.00246.
    Differs: Lewandowski et al. count the eigenvalues of small networks that hold 99 % of their sum; this monitor
        estimates the stable rank, which needs no full Hessian. It gives no condition number: unused directions make the
        smallest eigenvalue zero, and Lanczos finds only the outer eigenvalues. Targets are frozen and noise is the same
        in every call, so this is the Hessian of the loss that updates descend; with ReLUs, that of the present linear
        region.

    Args:
        every: Period.
        of: Clock of the period.
        samples: Transitions on which losses are computed.
        steps: Lanczos steps, one Hessian-vector product each; the same number of vectors of the size of the weights is
            kept in memory.
        probes: Additional products, for the trace and the stable rank of the part that the steps do not span.
        rho: Length of the ascent step of sharpness.
    """

    name = "curvature"
    group = "deep"
    example: ClassVar[str] = "curvature(every=3, samples=6, steps=4, probes=2)"
    every: ClassVar[int] = 50_000
    metrics: ClassVar[Mapping[str, str]] = {
        "top_eigenvalue": "largest eigenvalue of the loss's Hessian (Lanczos; a lower bound)",
        "bottom_eigenvalue": "smallest eigenvalue of the loss's Hessian (Lanczos; an upper bound); below zero: concave",
        "hessian_trace": "sum of the Hessian's eigenvalues (Lanczos and Hutchinson)",
        "hessian_stable_rank": "sum of the Hessian's squared eigenvalues over the largest one's square",
        "sharpness": "how much the loss grows by a step of length rho along its gradient",
    }

    def __init__(
        self,
        every: Period = 50_000,
        of: Unit = "updates",
        samples: Samples = 64,
        steps: Iterations = 20,
        probes: Iterations = 10,
        rho: Positive = 0.05,
    ) -> None:
        super().__init__(trigger(every, of))
        self.samples, self.steps, self.probes, self.rho = samples, steps, probes, rho

    def measure(self, context: MonitorContext) -> Iterator[tuple[str, Tensor]]:
        agent, generator = context.copy(), context.generator("curvature")
        for name, loss in (
            view(agent).loss_functions(context.batch(self.samples), context.seed("curvature loss")).items()
        ):
            parameters = trained(agent.components[name])
            product = hessian_products(loss, parameters)
            size = sum(p.numel() for p in parameters)
            start = rademacher(size, generator, parameters[0].dtype)
            alphas, betas, basis = lanczos(product, start, self.steps)
            vectors = (rademacher(size, generator, start.dtype) for _ in range(self.probes))
            trace, square = traces(product, alphas, betas, basis, vectors)
            yield f"{name}/hessian_trace", trace
            yield f"{name}/hessian", torch.cat([alphas, betas, square.reshape(1)])
            yield f"{name}/sharpness", sharpness(loss, parameters, self.rho)

    def finish(self, key: str, array: NDArray[Any], clock: Clock) -> Iterator[Finding]:
        place, steps = key.rpartition("/")[0], len(array) // 2
        values = ritz_values(array[:steps], array[steps : 2 * steps])
        yield f"{place}/top_eigenvalue", float(values[-1])
        yield f"{place}/bottom_eigenvalue", float(values[0])
        largest = max(values[-1] ** 2, values[0] ** 2)
        yield f"{place}/hessian_stable_rank", float(array[-1] / largest) if largest != 0 else 0.0


def trained(component: Component[Any]) -> list[Tensor]:
    """The trainable parameters of a component."""
    return [p for p in component.online.parameters() if p.requires_grad]


def gradient(loss: Tensor, parameters: Sequence[Tensor], graph: bool = False) -> Tensor:
    """The gradient of a 0-d tensor by all parameters, flat [P]; zeros for parameters that it does not depend on.
    `.grad` is left unchanged.

    Args:
        graph: Keep the graph, so that the result can be differentiated again.
    """
    gradients = torch.autograd.grad(loss, parameters, create_graph=graph, allow_unused=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in gradients])


def hessian_products(loss: Loss, parameters: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """A function that multiplies the loss's Hessian with a vector [P] → [P], by differentiating the gradient along it.

    The loss is evaluated once, now. The tensors that it was computed from must not change until the last product.
    """
    slope = gradient(loss(), parameters, graph=True)

    def product(vector: Tensor) -> Tensor:
        if not slope.requires_grad:  # a loss that is linear in the parameters
            return torch.zeros_like(vector)
        products = torch.autograd.grad(
            slope, parameters, vector, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([g.reshape(-1) for g in products])

    return product


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lanczos's method with full re-orthogonalisation. It runs on the device, without waiting for results.

    If the Krylov space of start and matrix is exhausted, the next off-diagonal entry is exactly zero, and so are all
    later entries; `ritz_values` stops there.

    Args:
        product: Multiplies a symmetric matrix with a vector [P].
        start: [P], not zero; need not have length one.
        steps: Number of products; more than P have no effect.

    Returns:
        The diagonal [steps] of the tridiagonal matrix; its off-diagonal [steps], whose last entry couples to the step
        after the last; and the orthonormal basis [steps, P].
    """
    basis = start.new_zeros(steps, len(start))
    alphas, betas = start.new_zeros(steps), start.new_zeros(steps)
    vector, scale = start / start.norm(), start.new_zeros(())
    for j in range(steps):
        heed()
        basis[j] = vector
        residual = product(vector)
        alphas[j] = vector @ residual
        # Twice: after one pass, the remainder of a residual near zero may be far from orthogonal.
        for _ in range(2):
            residual = residual - basis[: j + 1].T @ (basis[: j + 1] @ residual)
        length = residual.norm()
        scale = torch.maximum(scale, torch.maximum(alphas[j].abs(), length))
        goes_on = length > torch.finfo(start.dtype).eps * scale
        betas[j] = torch.where(goes_on, length, 0.0)
        vector = torch.where(goes_on, residual / length, 0.0)
    return alphas, betas, basis


def ritz_values(alphas: NDArray[Any], betas: NDArray[Any]) -> NDArray[Any]:
    """The eigenvalues of Lanczos's tridiagonal matrix, ascending, on the host; NaN if an entry is not finite."""
    if not (np.isfinite(alphas).all() and np.isfinite(betas).all()):
        return np.full(1, np.nan)
    over = np.flatnonzero(betas == 0)
    size = over[0] + 1 if len(over) else len(alphas)
    beside = np.asarray(betas[: size - 1], np.float64)
    return np.linalg.eigvalsh(np.diag(np.asarray(alphas[:size], np.float64)) + np.diag(beside, 1) + np.diag(beside, -1))


def traces(
    product: Callable[[Tensor], Tensor], alphas: Tensor, betas: Tensor, basis: Tensor, vectors: Iterator[Tensor]
) -> tuple[Tensor, Tensor]:
    """The traces of a symmetric matrix and of its square (0-d): exact on the span of Lanczos's basis, and estimated by
    random vectors [P] (with entries -1 and 1) on its complement."""
    inside = alphas.sum()
    # The squared length of the matrix times each vector of the basis: the columns of the tridiagonal matrix.
    inside_square = alphas.square().sum() + 2 * betas.square().sum() - betas[-1].square()
    outside, outside_square = [], []
    for vector in vectors:
        heed()
        vector = vector - basis.T @ (basis @ vector)
        image = product(vector)
        outside.append(vector @ image)
        outside_square.append(image @ image)
    return inside + torch.stack(outside).mean(), inside_square + torch.stack(outside_square).mean()


def rademacher(size: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """A vector of independent entries, -1 or 1 with equal probability, on the generator's device."""
    return torch.empty(size, dtype=dtype, device=generator.device).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def sharpness(loss: Loss, parameters: Sequence[Tensor], rho: float) -> Tensor:
    """loss(θ + rho g / |g|) - loss(θ), with the gradient g at θ (0-d); the parameters are restored exactly."""
    before = loss()
    slope = torch.autograd.grad(before, parameters, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        length = torch.linalg.vector_norm(torch.stack([g.norm() for g in slope]))
        factor = torch.where(length > 0, rho / length, 0.0)
        own = [p.clone() for p in parameters]
        for parameter, g in zip(parameters, slope, strict=True):
            parameter.add_(g * factor)
        after = loss()
        for parameter, value in zip(parameters, own, strict=True):
            parameter.copy_(value)
        return after - before

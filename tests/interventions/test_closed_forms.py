"""Faster forms of what penalties compute, against the plain formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_regularisers import agent_of_one_layer
from torch import Tensor, nn

from pliant.agents.networks import Layer
from pliant.interventions.core.matrices import BLOCK, gram, gram_in_blocks
from pliant.interventions.core.regularising import Penalty
from pliant.interventions.core.sorting import RADIX, sorted_values
from pliant.interventions.l2 import L2
from pliant.interventions.l2_init import L2Init
from pliant.interventions.parseval import Parseval
from pliant.interventions.wasserstein import Wasserstein

Formula = Callable[[Tensor, Tensor], Tensor]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [RADIX - 1, RADIX + 5])
def test_numbers_are_sorted_like_torch_sorts_them(size: int, dtype: torch.dtype) -> None:
    x = torch.randn(size, generator=generator(), dtype=dtype)
    x[::3] = x[::3].round()  # many equal numbers, and zeros of both signs
    x[:4] = torch.tensor([torch.inf, -torch.inf, 1e-40, -1e-40], dtype=dtype)
    assert (x == 0).sum() > 100 and (x == 0).logical_and(x.signbit()).any()
    values, order = sorted_values(x)
    expected, places = x.sort(stable=True)
    assert torch.equal(values, expected) and torch.equal(order, places)


@pytest.mark.parametrize("shape", [(3, 7), (2 * BLOCK, 600), (2 * BLOCK + 44, 2 * BLOCK + 44), (700, 3 * BLOCK)])
def test_a_product_in_blocks_is_the_product(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(gram_in_blocks(x), gram(x), atol=1e-10, rtol=0)


def excess(w: Tensor, s: float) -> Tensor:
    product = gram(w)
    return (product - s * torch.eye(len(product), dtype=w.dtype)).square().sum()


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (300, 310), (310, 300)])
@pytest.mark.parametrize(
    ("part", "formula"),
    [
        (L2(weight=0.3), lambda w, w0: 0.15 * w.square().sum()),
        (L2Init(weight=0.3), lambda w, w0: 0.3 * (w - w0).square().sum()),
        (L2Init(weight=0.3, form="half"), lambda w, w0: 0.15 * (w - w0).square().sum()),
        (L2Init(weight=0.3, form="mean"), lambda w, w0: 0.3 * (w - w0).square().mean()),
        (
            Wasserstein(weight=0.3),
            lambda w, w0: 0.3 * (w.flatten().sort().values - w0.flatten().sort().values).square().mean(),
        ),
        (Parseval(weight=0.3), lambda w, w0: 0.3 * (64 / len(w)) ** 2 * excess(w, 2.0)),
    ],
    ids=["l2", "l2_init", "half", "mean", "wasserstein", "parseval"],
)
def test_a_closed_gradient_equals_that_of_autograd(part: Penalty, formula: Formula, shape: tuple[int, int]) -> None:
    """Also where the loss is scaled, and where the same graph is differentiated twice."""
    part = type(part)(**{k: v for k, v in vars(part).items() if k in {"weight", "form"}})
    layer = Layer(nn.Linear(shape[1], shape[0], bias=False), generator()).double()
    weight = layer.linear.weight
    before = weight.detach().clone()
    part.seed(0, torch.device("cpu"))
    part.bind(agent_of_one_layer(layer))
    with torch.no_grad():
        weight.add_(torch.randn(shape, generator=generator(), dtype=torch.float64), alpha=0.05)
    own, expected = part.penalty(None, "critic"), formula(weight, before)  # type: ignore[arg-type]
    assert isinstance(own, Tensor)
    torch.testing.assert_close(own, expected, atol=0, rtol=1e-12)
    (gradient,) = torch.autograd.grad(expected, weight)
    for factor in (1.0, -2.5):
        (actual,) = torch.autograd.grad(factor * own, weight, retain_graph=True)
        torch.testing.assert_close(actual, factor * gradient, atol=1e-12, rtol=1e-10)

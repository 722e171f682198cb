"""The optimizer against torch's own, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pliant.agents.optimizers import Adam, OptimizerConfig, clip_, step


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs_fused_adamw(decay: float) -> None:
    with torch.random.fork_rng():
        mine, theirs = network(), network()
    config = OptimizerConfig(lr=1e-2, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=decay)
    ours = Adam(mine.parameters(), config)
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=decay, fused=True
    )
    x = torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(5):
        step(mine(x).square().mean(), ours)
        reference.zero_grad()
        theirs(x).square().mean().backward()
        reference.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(ours.state[a][key], reference.state[b][key]), key


def test_its_memory_is_there_before_the_first_step_and_survives_saving() -> None:
    with torch.random.fork_rng():
        mine = network()
    optimizer = Adam(mine.parameters(), OptimizerConfig())
    assert all(not optimizer.state[p]["exp_avg"].any() for p in mine.parameters())
    step(mine(torch.ones(1, 2, 6, 6)).sum(), optimizer)
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    step(mine(torch.ones(1, 2, 6, 6)).sum(), optimizer)
    assert all(optimizer.state[p]["step"] == 2 for p in mine.parameters())


def test_a_step_trains_what_the_optimizer_holds_and_nothing_else() -> None:
    with torch.random.fork_rng():
        first, second = nn.Linear(3, 3), nn.Linear(3, 1)
    before = [p.clone() for p in second.parameters()]
    step(second(first(torch.ones(2, 3))).sum(), Adam(first.parameters(), OptimizerConfig(lr=0.1)))
    assert all(torch.equal(p, old) for p, old in zip(second.parameters(), before, strict=True))
    assert all(p.grad is None for p in second.parameters())
    assert all(p.grad is not None for p in first.parameters())


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_clipping_is_torchs(scale: float) -> None:
    gradients = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * scale for n in (3, 40)]
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(parameters, 1.5)
    clip_(gradients, 1.5)
    for p, g in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(p.grad, g)

"""The optimizer against torch's own, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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


def test_its_state_exists_before_the_first_step_and_is_saved() -> None:
    with torch.random.fork_rng():
        mine = network()
    optimizer = Adam(mine.parameters(), OptimizerConfig())
    assert all(not optimizer.state[p]["exp_avg"].any() for p in mine.parameters())
    step(mine(torch.ones(1, 2, 6, 6)).sum(), optimizer)
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    step(mine(torch.ones(1, 2, 6, 6)).sum(), optimizer)
    assert all(optimizer.state[p]["step"] == 2 for p in mine.parameters())


def test_a_step_trains_only_the_optimizers_parameters() -> None:
    with torch.random.fork_rng():
        first, second = nn.Linear(3, 3), nn.Linear(3, 1)
    before = [p.clone() for p in second.parameters()]
    step(second(first(torch.ones(2, 3))).sum(), Adam(first.parameters(), OptimizerConfig(lr=0.1)))
    assert all(torch.equal(p, old) for p, old in zip(second.parameters(), before, strict=True))
    assert all(p.grad is None for p in second.parameters())
    assert all(p.grad is not None for p in first.parameters())


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_gradient_clipping_equals_torchs(scale: float) -> None:
    gradients = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * scale for n in (3, 40)]
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(parameters, 1.5)
    clip_(gradients, 1.5)
    for p, g in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(p.grad, g)


# ------------------------------------------------------------------------------------------ step counts per weight

CONFIG = OptimizerConfig(lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8)


def gradients(count: int, shape: tuple[int, ...] = (4, 3)) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=g) for _ in range(count)]


def weight(value: float = 0.5) -> nn.Parameter:
    return nn.Parameter(torch.full((4, 3), value))


def follow(optimizer: torch.optim.Optimizer, parameter: Tensor, grads: list[Tensor]) -> list[Tensor]:
    """The parameter after each step."""
    seen = []
    for gradient in grads:
        parameter.grad = gradient
        optimizer.step()
        seen.append(parameter.detach().clone())
    return seen


def forget_(optimizer: torch.optim.Optimizer, parameter: Tensor, place: tuple[int, int]) -> None:
    for name, value in optimizer.state[parameter].items():
        if name != "step":
            value[place] = 0.0


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.99, 0.99), (0.0, 0.9)])
def test_step_counts_per_weight_that_are_never_reset_change_nothing(betas: tuple[float, float], decay: float) -> None:
    """Hundreds of steps equal those of torch's AdamW, up to the rounding of single precision, with a large eps."""
    config = OptimizerConfig(lr=1e-2, beta1=betas[0], beta2=betas[1], eps=0.05, weight_decay=decay)
    mine, theirs = weight(), weight()
    ours = Adam([mine], config)
    ours.count_per_weight(mine)
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=betas, eps=0.05, weight_decay=decay)
    grads = gradients(600)
    for k, (a, b) in enumerate(zip(follow(ours, mine, grads), follow(reference, theirs, grads), strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=lambda m, k=k: f"step {k}: {m}")
    assert ours.state[mine]["step"] == 600


@pytest.mark.parametrize("after", [1, 7, 400])
def test_a_reinitialised_weight_steps_like_a_new_one_and_its_neighbours_are_unaffected(after: int) -> None:
    grads, place = gradients(after + 200), (1, 2)
    undisturbed, disturbed, fresh = weight(), weight(), weight()
    optimizers = [Adam([p], CONFIG) for p in (undisturbed, disturbed, fresh)]
    for optimizer, p in zip(optimizers, (undisturbed, disturbed, fresh), strict=True):
        optimizer.count_per_weight(p)
    whole = follow(optimizers[0], undisturbed, grads)
    follow(optimizers[1], disturbed, grads[:after])
    with torch.no_grad():
        disturbed[place] = 0.5
    forget_(optimizers[1], disturbed, place)
    rest = follow(optimizers[1], disturbed, grads[after:])
    new = follow(optimizers[2], fresh, grads[after:])
    others = torch.ones(4, 3, dtype=torch.bool)
    others[place] = False
    for here, before, expected in zip(rest, whole[after:], new, strict=True):
        assert torch.equal(here[others], before[others])
        assert torch.equal(here[place], expected[place])
    assert rest[0][place].item() == pytest.approx(0.5 - 0.01 * grads[after][place].sign().item(), abs=1e-6)
    assert optimizers[1].state[disturbed]["step"] == after + 200


@pytest.mark.parametrize(
    ("betas", "factor"), [((0.9, 0.999), 3.162278), ((0.99, 0.99), 0.1)], ids=["default", "0.99, 0.99"]
)
def test_the_first_step_of_a_reset_weight_is_one_learning_rate_with_its_own_count(
    betas: tuple[float, float], factor: float
) -> None:
    """With the shared step count it is (1 - beta1) / sqrt(1 - beta2) learning rates, with its own count exactly one."""
    for aged, expected in ((False, factor), (True, 1.0)):
        p = nn.Parameter(torch.zeros(4, 3))
        optimizer = Adam([p], OptimizerConfig(lr=1.0, beta1=betas[0], beta2=betas[1], eps=1e-12))
        if aged:
            optimizer.count_per_weight(p)
        for name, value in optimizer.state[p].items():
            value.fill_(1e6 if name == "step" else 1.0)
        forget_(optimizer, p, (0, 0))
        p.grad = torch.ones(4, 3)
        optimizer.step()
        assert -p[0, 0].item() == pytest.approx(expected, rel=1e-5)
        assert -p[1, 1].item() == pytest.approx(1.0, rel=1e-5)


def test_the_bias_correction_follows_the_step_count_of_each_weight() -> None:
    """The state holds 1 - beta^count instead of a count, accurate to single precision for any count."""
    p = weight()
    optimizer = Adam([p], CONFIG)
    optimizer.count_per_weight(p)
    follow(optimizer, p, gradients(50))
    forget_(optimizer, p, (0, 0))
    follow(optimizer, p, gradients(3000))
    ages = torch.full((4, 3), 3050.0, dtype=torch.float64)
    ages[0, 0] = 3000.0
    for name, beta in (("filled", 0.9), ("filled_sq", 0.999)):
        torch.testing.assert_close(optimizer.state[p][name].double(), 1 - beta**ages, rtol=2e-5, atol=0)


def test_one_optimizer_holds_parameters_with_and_without_step_counts_per_weight() -> None:
    """Parameters without step counts per weight make bitwise the reference's steps; those with them the same steps."""
    mine, theirs = [weight(), weight()], [weight(), weight()]
    ours, reference = Adam(mine, CONFIG), Adam(theirs, CONFIG)
    for _ in range(2):  # a second call changes nothing
        ours.count_per_weight(mine[1])
    for first, second in zip(gradients(40), reversed(gradients(40)), strict=True):
        for pair, optimizer in ((mine, ours), (theirs, reference)):
            pair[0].grad, pair[1].grad = first, second
            optimizer.step()
        assert torch.equal(mine[0], theirs[0])
        torch.testing.assert_close(mine[1], theirs[1], rtol=1e-4, atol=2e-6)
    assert ["filled" in ours.state[p] for p in mine] == [False, True]
    assert ours.state[mine[0]]["step"] == ours.state[mine[1]]["step"] == 40


def test_step_counts_per_weight_are_saved_and_loaded(tmp_path: Path) -> None:
    grads = gradients(60)
    straight, stopped, resumed = weight(), weight(), weight()
    optimizers = [Adam([p], CONFIG) for p in (straight, stopped, resumed)]
    for optimizer, p in zip(optimizers, (straight, stopped, resumed), strict=True):
        optimizer.count_per_weight(p)
    follow(optimizers[0], straight, grads[:30])
    follow(optimizers[1], stopped, grads[:30])
    for optimizer, p in zip(optimizers[:2], (straight, stopped), strict=True):
        forget_(optimizer, p, (0, 0))
    torch.save(optimizers[1].state_dict(), tmp_path / "optimizer.pt")
    optimizers[2].load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    with torch.no_grad():
        resumed.copy_(stopped)
    rest = [follow(optimizers[k], p, grads[30:]) for k, p in ((0, straight), (2, resumed))]
    assert all(torch.equal(a, b) for a, b in zip(*rest, strict=True))


def test_a_state_without_step_counts_per_weight_continues_with_its_shared_count() -> None:
    """A run without a method that resets units can thus be forked into a run with one."""
    with torch.random.fork_rng():
        first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    config = OptimizerConfig(lr=1e-2)
    plain, aged = Adam(first.parameters(), config), Adam(second.parameters(), config)
    for parameter in second.parameters():
        aged.count_per_weight(parameter)
    for seed in range(7):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        step(first(x).square().mean(), plain)
    second.load_state_dict(first.state_dict())
    aged.load_state_dict(plain.state_dict())
    for seed in range(7, 12):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        step(first(x).square().mean(), plain)
        step(second(x).square().mean(), aged)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)

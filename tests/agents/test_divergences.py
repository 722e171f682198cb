"""KL divergences of policies that differ by one update, compared with decimal arithmetic of fifty digits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from law_agents import BOX, DISCRETE, VECTOR, ppo, sac
from no_wait import no_wait
from test_agents import batch_for
from torch import Tensor

from pliant.agents import Agent
from pliant.agents.policies import categorical_kl, gaussian_kl
from pliant.agents.views import view
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build

CHANGES = (3.0, 0.1, 1e-3, 1e-4, 1e-5, 1e-6)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exactly(x: Tensor) -> list[list[Decimal]]:
    return [[Decimal(float(v)) for v in row] for row in x]


def normalised(logs: Sequence[Decimal]) -> list[Decimal]:
    total = sum((v.exp() for v in logs), Decimal(0)).ln()
    return [v - total for v in logs]


def categorical_in_decimals(before: Tensor, after: Tensor) -> tuple[float, Tensor]:
    """The divergence, and its gradient with respect to the second policy's log-probabilities."""
    with localcontext(prec=50):
        pairs = [(normalised(p), normalised(q)) for p, q in zip(exactly(before), exactly(after), strict=True)]
        mean = sum((a.exp() * (a - b) for p, q in pairs for a, b in zip(p, q, strict=True)), Decimal(0)) / len(pairs)
        slope = [[float((b.exp() - a.exp()) / len(pairs)) for a, b in zip(p, q, strict=True)] for p, q in pairs]
    return float(mean), torch.tensor(slope)


def gaussian_in_decimals(before: Tensor, after: Tensor) -> float:
    with localcontext(prec=50):
        total = Decimal(0)
        (means, logs), (new_means, new_logs) = (tuple(map(exactly, x)) for x in (before, after))
        for rows in zip(means, logs, new_means, new_logs, strict=True):
            for m, s, n, t in zip(*rows, strict=True):
                total += t - s + ((2 * s).exp() + (m - n) ** 2) / (2 * (2 * t).exp()) - Decimal("0.5")
        return float(total / len(means))


@pytest.mark.parametrize("change", CHANGES)
def test_the_divergence_of_categorical_policies_is_exact(change: float) -> None:
    logits = draw(16, 6, seed=0)
    before, after = logits.log_softmax(1), (logits + change * draw(16, 6, seed=1)).log_softmax(1)
    expected, slope = categorical_in_decimals(before, after)
    after.requires_grad_()
    with no_wait():
        divergence = categorical_kl(before, after)
        divergence.backward()
    assert divergence.dtype == torch.float32 and divergence.item() == pytest.approx(expected, rel=1e-5)
    assert after.grad is not None
    torch.testing.assert_close(after.grad, slope, rtol=1e-4, atol=1e-9 * change)


@pytest.mark.parametrize("change", CHANGES)
def test_the_divergence_of_gaussian_policies_is_exact(change: float) -> None:
    before = torch.stack([draw(16, 3, seed=0), 0.3 * draw(16, 3, seed=1) - 1])
    after = before + change * draw(2, 16, 3, seed=2)
    with no_wait():
        divergence = gaussian_kl(before, after)
    assert divergence.dtype == torch.float32 and divergence.item() == pytest.approx(
        gaussian_in_decimals(before, after), rel=1e-5
    )


def test_the_divergence_of_equal_and_of_disjoint_policies() -> None:
    logs = draw(16, 6, seed=0).log_softmax(1)
    assert categorical_kl(logs, logs).item() == 0.0
    gaussian = draw(2, 16, 3, seed=0)
    assert gaussian_kl(gaussian, gaussian).item() == 0.0
    # Probabilities that are zero in double precision, and change to one.
    certain = torch.tensor([[0.0, -3000.0]]), torch.tensor([[-3000.0, 0.0]])
    after = certain[1].clone().requires_grad_()
    divergence = categorical_kl(certain[0], after)
    divergence.backward()
    assert divergence.item() == 3000.0 and after.grad is not None and after.grad.tolist() == [[-1.0, 1.0]]
    assert categorical_kl(certain[0], torch.tensor([[0.0, -1.0]]).log_softmax(1)).item() == pytest.approx(0.3132617)


AGENTS: dict[str, Any] = {"ppo": ppo(VECTOR, DISCRETE), "ppo, continuous": ppo(VECTOR, BOX), "sac": sac(VECTOR)}


def in_double(agent: Agent, policy: Any, obs: Tensor) -> Tensor:
    """The output of a copy of an actor in double precision, in the form of `decisions`."""
    network = copy.deepcopy(policy).double()
    logits = network(obs.double())
    if agent.name == "sac":
        return torch.stack(logits)
    return logits.log_softmax(1) if agent.action.discrete else torch.stack([logits, network.log_std.expand_as(logits)])


@pytest.mark.parametrize("name", AGENTS)
@torch.no_grad()
def test_the_churn_of_one_small_update_is_measured_accurately(name: str) -> None:
    """The churn equals that of the networks in double precision. In single precision it would be lost to rounding."""
    agent, generator = AGENTS[name](), torch.Generator().manual_seed(3)
    batch = batch_for(agent, 64)
    actor = agent.components["actor"].online
    before, old = view(agent).decisions(batch), in_double(agent, actor, batch.obs)
    for p in actor.parameters():
        p.add_(1e-5 * torch.randn(p.shape, generator=generator))
    new = in_double(agent, actor, batch.obs)
    if agent.action.discrete:
        expected = (old.exp() * (old - new)).sum(1).mean().item()
    else:
        spread = (2 * (old[1] - new[1])).exp() + ((old[0] - new[0]) / new[1].exp()).square()
        expected = (new[1] - old[1] + 0.5 * (spread - 1)).sum(1).mean().item()
    assert 1e-12 < expected < 1e-8
    assert view(agent).policy_churn(before, view(agent).decisions(batch)).item() == pytest.approx(expected, rel=2e-2)


def test_the_divergence_that_ppo_logs_is_not_lost_to_rounding() -> None:
    agent: Any = AGENTS["ppo"]()
    batch = batch_for(agent, 64)
    with torch.no_grad():
        log_prob = agent.log_prob(agent.policy(agent.features(batch.obs)), batch.action)[0]
    shifted = log_prob - 1e-4 * draw(64, seed=5)
    logged = agent.loss(batch.replace(log_prob=shifted))[1]["losses/approx_kl"].item()
    log_ratio = log_prob.double() - shifted.double()
    assert logged == pytest.approx((log_ratio.expm1() - log_ratio).mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", AGENTS)
def test_the_divergence_that_chain_penalises_is_never_negative(name: str) -> None:
    agent = AGENTS[name](interventions=tuple(build(["chain(ratio=0.1, start=0, samples=16)"], INTERVENTIONS)))
    part: Any = next(iter(agent.interventions))
    batch = batch_for(agent, 16)
    part.obs.copy_(batch.obs)
    part.action.copy_(batch.action)
    generator = torch.Generator().manual_seed(0)
    agent.unpenalised = {"actor": torch.tensor(1.0)}
    for _ in range(20):
        part.remember_("actor")
        with torch.no_grad():
            for p in agent.components["actor"].online.parameters():
                p.add_(1e-5 * torch.randn(p.shape, generator=generator))
        term = part.penalty(agent, "actor")
        assert term.dtype == torch.float32 and 0 <= term.item() < 1
        churn = part.terms["interventions/chain_actor_churn"].item()
        assert 1e-12 < churn < 1e-8

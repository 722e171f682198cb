"""The deep monitors compared with brute force in double precision, numbers computed by hand, and planted defects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from law_agents import (
    AGENTS,
    BOX,
    VECTOR,
    RandomEnvs,
    build_run,
    current_state,
    differences,
    dqn,
    resume,
    sac,
    saved,
    take_steps,
)
from no_wait import no_wait
from stand import Fixed
from test_agents import batch_for
from torch import Generator, Tensor, nn

from pliant.agents import DQN, SAC, Agent, Batch, Clock, DQNConfig, SACConfig
from pliant.agents.clock import Every
from pliant.agents.networks import NetworkConfig
from pliant.agents.run import Run
from pliant.agents.views import view
from pliant.common.seeds import derive_seed
from pliant.common.spaces import Step
from pliant.envs import make
from pliant.monitors import watch
from pliant.monitors.base import Known, Monitor, MonitorContext, Picture
from pliant.monitors.churn import Churn
from pliant.monitors.criticality import Criticality
from pliant.monitors.curvature import (
    Curvature,
    hessian_products,
    lanczos,
    rademacher,
    ritz_values,
    sharpness,
    traces,
    trained,
)
from pliant.monitors.kernel import Kernel, covariance_metrics, effective_rank, gram, kernel_metrics
from pliant.monitors.landscape import Landscape, axis, filter_normalised, loss_slice
from pliant.monitors.overestimation import Overestimation, compared, discounted, rank_correlation
from pliant.monitors.registry import MONITORS

NAMES = ("curvature", "kernel", "churn", "overestimation", "criticality", "landscape")
TINY: dict[str, Any] = dict(hidden=(4, 3))
SMALL: dict[str, Callable[..., Agent]] = {
    "dqn": dqn(VECTOR, TINY, value_loss="mse"),
    "dqn, dueling": dqn(VECTOR, TINY | {"activation": "tanh"}, dueling=True, double=True),
    "sac": sac(VECTOR, TINY),
    "redq": sac(VECTOR, TINY, critics=3, target_critics=2, actor_value="mean"),
}


def trained_agent(name: str, updates: int = 4, made: Callable[..., Agent] | None = None) -> Agent:
    """A small agent after some updates, so that it differs from its initial state."""
    agent, clock = (made or SMALL[name])(seed=3), Clock(steps=100)
    for i in range(updates):
        clock = clock.stepped(1).updated()
        agent.update(batch_for(agent, seed=50 + i), agent.plan(clock))
    return agent


def context_of(agent: Agent, batch: Batch | None = None, update: int = 7) -> MonitorContext:
    """The context of a monitor for an agent whose memory always gives the same batch."""
    memory = Fixed(batch_for(agent) if batch is None else batch)
    return MonitorContext(agent, Clock(update, update, update, update - 1), memory, Known.of(agent))


def read(monitor: Monitor, context: MonitorContext) -> dict[str, Any]:
    """All readings of a monitor as they are logged: the device's part under guard, the host's in double precision."""
    with no_wait():
        measured = list(monitor.measure(context))
    done: dict[str, Any] = {}
    for key, value in measured:
        assert not value.requires_grad
        finished = monitor.finish(key, value.double().numpy(), context.clock)
        done |= {key: float(value)} if value.ndim == 0 else dict(finished)
    return done


def doubled(agent: Agent, batch: Batch) -> tuple[Agent, Batch]:
    """A copy of an agent in double precision, and the batch in the same precision."""
    copy = agent.fresh_copy()
    copy.copy_from_(agent)
    for _, module in copy.modules():
        module.double()
    for name in ("center", "scale"):
        if hasattr(copy, name):
            setattr(copy, name, getattr(copy, name).double())
    parts = (part.double() if part.is_floating_point() else part for part in batch)
    return copy, Batch(*parts)


def jacobian(function: Callable[[], Tensor], parameters: Sequence[Tensor], step: float = 1e-6) -> Tensor:
    """[outputs, P] by central differences, one weight at a time."""
    columns = []
    with torch.no_grad():
        for p in parameters:
            flat = p.view(-1)
            for i in range(len(flat)):
                own = flat[i].clone()
                flat[i] = own + step
                above = function().flatten().clone()
                flat[i] = own - step
                below = function().flatten().clone()
                flat[i] = own
                columns.append((above - below) / (2 * step))
    return torch.stack(columns, 1)


def gradients_of(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Callable[[], Tensor]:
    def slope() -> Tensor:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(), parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in gradients])

    return slope


def decisions_of(agent: Any, batch: Batch) -> Tensor:
    """The decisions of the policy, in the precision of the batch."""
    with torch.no_grad():
        if agent.action.discrete:
            return agent.head.value(agent.critic.online(batch.obs)).argmax(1)
        return torch.stack(agent.actor.online(batch.obs))


def weights(agent: Agent) -> dict[str, Tensor]:
    return {f"{n}.{k}": p.detach().clone() for n, m in agent.modules() for k, p in m.named_parameters()}


def kill_(agent: Agent, layer: str) -> None:
    """Deactivate all units of a hidden layer."""
    with torch.no_grad():
        agent.components["critic"].online.get_submodule(layer).linear.bias.fill_(-1e3)


# -------------------------------------------------------------------------------------------------------- curvature


def quadratic(matrix: Tensor, at: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    x = at.clone().requires_grad_()
    return lambda: 0.5 * x @ matrix @ x, [x]


class TestCurvature:
    def test_sharpness_equals_a_value_computed_by_hand(self) -> None:
        loss, at = quadratic(torch.diag(torch.tensor([4.0, 1.0]).double()), torch.tensor([1.0, 0.0]).double())
        own = at[0].detach().clone()
        assert sharpness(loss, at, 0.1).item() == pytest.approx(0.42, abs=1e-12)
        assert torch.equal(at[0].detach(), own)
        flat, there = quadratic(torch.eye(2), torch.zeros(2))
        assert sharpness(flat, there, 0.1).item() == 0.0

    def test_the_ascent_step_follows_the_gradient_of_all_tensors(self) -> None:
        """The gradients of several tensors are one vector with one length."""
        x, y = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
        measured = sharpness(lambda: x.sum() + 2 * y.sum(), [x, y], 0.5)
        assert measured.item() == pytest.approx(0.5 * math.sqrt(10), rel=1e-6)

    def test_eigenvalues_of_a_quadratic_are_exact(self) -> None:
        """n iterations give them to 1e-6, and the basis is orthonormal."""
        g = Generator().manual_seed(0)
        a = torch.randn(24, 24, generator=g, dtype=torch.float64)
        matrix = a + a.T
        loss, at = quadratic(matrix, torch.ones(24, dtype=torch.float64))
        product = hessian_products(loss, at)
        alphas, betas, basis = lanczos(product, rademacher(24, g, torch.float64), 24)
        assert np.allclose(ritz_values(alphas.numpy(), betas.numpy()), torch.linalg.eigvalsh(matrix), atol=1e-6)
        assert torch.allclose(basis @ basis.T, torch.eye(24, dtype=torch.float64), atol=1e-12)

    def test_in_single_precision_the_basis_stays_orthogonal(self) -> None:
        """Without re-orthogonalisation a converged eigenvalue would occur again."""
        values = torch.cat([torch.tensor([1e3, 5e2, -2e2]), torch.rand(97, generator=Generator().manual_seed(1))])
        alphas, betas, basis = lanczos(lambda v: values * v, rademacher(100, Generator().manual_seed(2)), 40)
        assert (basis @ basis.T - torch.eye(40)).abs().max() < 1e-5
        ritz = ritz_values(alphas.double().numpy(), betas.double().numpy())
        assert len(ritz) == 40 and ritz[-1] == pytest.approx(1e3, rel=1e-5) and ritz[-2] == pytest.approx(5e2, rel=1e-5)
        assert ritz[0] == pytest.approx(-2e2, rel=1e-5) and -0.1 < ritz[1] < ritz[-3] < 1.1

    @pytest.mark.parametrize("kind", [torch.float32, torch.float64])
    @pytest.mark.parametrize("values", [(3.0,) * 6, (0.0,) * 6, (5.0, 0, 0, 0, 0, 0), (2.0, 2, 2, -1, -1, 7)])
    def test_lanczos_stops_when_the_space_is_exhausted(self, values: tuple[float, ...], kind: torch.dtype) -> None:
        """With fewer eigenvalues than steps the rest are exact zeros."""
        diagonal = torch.tensor(values, dtype=kind)
        start = torch.tensor([1.0, -1, 1, 1, -1, 1], dtype=kind)
        with no_wait():
            alphas, betas, basis = lanczos(lambda v: diagonal * v, start, 9)
        different = sorted(set(values))
        ritz = ritz_values(alphas.numpy(), betas.numpy())
        assert np.allclose(ritz, different, atol=1e-5) and len(ritz) == len(different)
        beyond = len(different)
        assert not alphas[beyond:].any() and not betas[beyond - 1 :].any() and not basis[beyond:].any()

    def test_more_steps_than_weights_are_allowed(self) -> None:
        loss, at = quadratic(torch.diag(torch.tensor([4.0, 1.0])), torch.ones(2))
        alphas, betas, _ = lanczos(hessian_products(loss, at), torch.tensor([1.0, 2.0]), 7)
        assert np.allclose(ritz_values(alphas.numpy(), betas.numpy()), [1, 4], atol=1e-6)

    def test_a_loss_without_curvature_has_eigenvalues_of_zero(self) -> None:
        x = torch.ones(3, requires_grad=True)
        assert not hessian_products(lambda: 2 * x.sum(), [x])(torch.ones(3)).any()

    def test_nan_stays_nan(self) -> None:
        assert np.isnan(ritz_values(np.array([1.0, np.nan]), np.ones(2))).all()

    def test_traces_are_exact_within_the_basis_and_unbiased_outside(self) -> None:
        g = Generator().manual_seed(5)
        a = torch.randn(40, 40, generator=g, dtype=torch.float64)
        matrix = a + a.T + 20 * torch.eye(40)

        def of(steps: int, probes: int) -> tuple[float, float]:
            measured = lanczos(lambda v: matrix @ v, rademacher(40, g, torch.float64), steps)
            vectors = (rademacher(40, g, torch.float64) for _ in range(probes))
            trace, square = traces(lambda v: matrix @ v, *measured, vectors)
            return trace.item(), square.item()

        trace, square = matrix.trace().item(), matrix.square().sum().item()
        assert of(40, 1) == (pytest.approx(trace), pytest.approx(square))
        assert of(5, 3000) == (pytest.approx(trace, rel=0.03), pytest.approx(square, rel=0.03))

    @pytest.mark.parametrize("name", SMALL)
    def test_readings_equal_those_of_the_full_hessian(self, name: str) -> None:
        """The full Hessian is computed from differences of gradients in double precision."""
        agent, batch = trained_agent(name), batch_for(SMALL[name]())
        context = context_of(agent, batch)
        before = weights(agent)
        measured = read(Curvature(steps=160, probes=1, rho=0.2), context)
        copy, wide = doubled(agent, batch)
        for component, loss in view(copy).loss_functions(wide, context.seed("curvature loss")).items():
            parameters = [p for p in copy.components[component].online.parameters() if p.requires_grad]
            slope = gradients_of(loss, parameters)
            hessian = jacobian(slope, parameters)
            values = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
            largest = values.abs().max().item()
            near = dict(rel=2e-3, abs=1e-4 * largest)
            assert measured[f"{component}/top_eigenvalue"] == pytest.approx(values[-1].item(), **near)
            assert measured[f"{component}/bottom_eigenvalue"] == pytest.approx(values[0].item(), **near)
            assert measured[f"{component}/hessian_trace"] == pytest.approx(values.sum().item(), **near)
            stable = (values.square().sum() / largest**2).item()
            assert measured[f"{component}/hessian_stable_rank"] == pytest.approx(stable, rel=5e-3)
            direction = slope() / slope().norm()
            with torch.no_grad():
                flat, start = loss().item(), 0
                for sign in (1, -1):
                    for p in parameters:
                        p += sign * 0.2 * direction[start : start + p.numel()].view(p.shape)
                        start = (start + p.numel()) % len(direction)
                    if sign == 1:
                        rise = loss().item() - flat
            assert measured[f"{component}/sharpness"] == pytest.approx(rise, rel=1e-3, abs=1e-6)
        assert not differences(before, weights(agent))

    def test_the_eigenvalue_of_largest_magnitude_may_be_negative(self) -> None:
        array = np.array([-4.0, 1.0, 1e-9, 0.0, 17.0])  # diagonal, off-diagonal, sum of squares
        measured = dict(Curvature().finish("actor/hessian", array, Clock()))
        assert measured["actor/top_eigenvalue"] == pytest.approx(1)
        assert measured["actor/bottom_eigenvalue"] == pytest.approx(-4)
        assert measured["actor/hessian_stable_rank"] == pytest.approx(17 / 16)
        flat = dict(Curvature().finish("actor/hessian", np.zeros(5), Clock()))
        assert set(flat.values()) == {0.0}

    def test_a_steeper_loss_is_sharper_and_a_dead_network_has_only_its_bias(self) -> None:
        """In a dead network only the bias of the output has curvature."""
        plain = read(Curvature(steps=30, probes=4), context_of(trained_agent("dqn")))
        sharp, dead = trained_agent("dqn"), trained_agent("dqn")
        with torch.no_grad():
            sharp.components["critic"].online.advantage.linear.weight.mul_(5)
        kill_(dead, "head.layers.1")
        sharper, deader = (read(Curvature(steps=30, probes=4), context_of(agent)) for agent in (sharp, dead))
        for metric in ("top_eigenvalue", "hessian_trace", "sharpness"):
            assert sharper[f"critic/{metric}"] > 1.5 * plain[f"critic/{metric}"]
        share = (
            torch.bincount(batch_for(dead).action, minlength=3).double() / 8
        )  # without the factor one half of the MSE
        assert deader["critic/top_eigenvalue"] == pytest.approx(share.max().item(), rel=1e-4)
        assert deader["critic/hessian_trace"] == pytest.approx(1.0, rel=1e-4)
        assert deader["critic/bottom_eigenvalue"] == pytest.approx(0.0, abs=1e-6)
        stable = (share / share.max()).square().sum().item()
        assert deader["critic/hessian_stable_rank"] == pytest.approx(stable, rel=1e-4)
        assert deader["critic/hessian_trace"] < plain["critic/hessian_trace"]


# ----------------------------------------------------------------------------------------------------------- kernel


class TestKernel:
    @pytest.mark.parametrize("room", [2**26, 40, 1])
    def test_the_kernel_of_a_linear_function_equals_its_closed_form(self, room: int) -> None:
        """f = wᵀx: K = X Xᵀ, computed at once or in slices."""
        x = torch.randn(5, 7, generator=Generator().manual_seed(0), dtype=torch.float64)
        w = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (4, 3)]
        functions = [lambda i=i: x[i] @ torch.cat(w) for i in range(5)]
        assert torch.allclose(gram(functions, w, room), x @ x.T, atol=1e-14)

    @pytest.mark.parametrize("name", SMALL)
    def test_readings_equal_those_of_the_full_jacobian(self, name: str) -> None:
        agent, n = trained_agent(name), 5
        batch = batch_for(agent, n)
        assert 0 < (batch.discount == 0).sum() < n
        context = context_of(agent, batch)
        state = agent.generator.get_state()
        measured = read(Kernel(samples=n), context)
        assert torch.equal(state, agent.generator.get_state())

        copy, wide = doubled(agent, batch)
        critic = [p for p in copy.components["critic"].online.parameters() if p.requires_grad]
        if agent.action.discrete:
            each = (wide.replace(obs=wide.next_obs, action=torch.full((n,), a)) for a in range(3))
            action = torch.stack([view(copy).values(b)[0] for b in each]).argmax(0)
        else:
            mean = copy.actor.online(copy.critic.online.encoder(wide.next_obs))[0].tanh()
            action = copy.center + copy.scale * mean
        followed = wide.replace(obs=wide.next_obs, action=action)
        parts = [jacobian(lambda b=b: view(copy).values(b), critic) for b in (wide, followed)]  # each [N * n, P]
        parts = [part.view(-1, n, part.shape[1]) for part in parts]
        kernel = torch.stack([part @ part.T for part in parts[0]]).mean(0)
        values = torch.linalg.eigvalsh(kernel)
        shares = values.clamp(min=1e-300) / values.sum()
        assert measured["critic/ntk_top_eigenvalue"] == pytest.approx(values[-1].item(), rel=1e-4)
        # Zero eigenvalues are nonzero by rounding only, and are not counted.
        rank = int(torch.linalg.matrix_rank(torch.cat(list(parts[0]), 1), rtol=1e-3))
        assert measured["critic/ntk_numerical_rank"] == rank
        assert measured["critic/ntk_condition"] == pytest.approx((values[-1] / values[n - rank]).item(), rel=5e-3)
        entropy = -(shares * shares.log()).sum().item()
        assert measured["critic/ntk_effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-4)

        # The gradients of all critics form one vector; without shared weights this is the gradient of their sum.
        both = [part.sum(0) for part in parts]
        pairs = [[torch.cosine_similarity(a, b, dim=0).item() for b in both[1]] for a in both[0]]
        live = [j for j in range(n) if batch.discount[j] > 0]
        assert measured["critic/interference_successor"] == pytest.approx(
            np.mean([pairs[j][j] for j in live]), abs=1e-5
        )
        others = [pairs[i][j] for j in live for i in range(n) if i != j]
        assert measured["critic/interference_random"] == pytest.approx(np.mean(others), abs=1e-5)

        singles = [view(copy).loss_functions(wide.take(slice(i, i + 1)), context.seed(f"kernel {i}")) for i in range(n)]
        for component in singles[0]:
            parameters = [p for p in copy.components[component].online.parameters() if p.requires_grad]
            rows = torch.cat([jacobian(single[component], parameters) for single in singles])
            cosines = [[torch.cosine_similarity(a, b, dim=0).item() for b in rows] for a in rows]
            off = [cosines[i][j] for i in range(n) for j in range(n) if i != j]
            assert measured[f"{component}/gradient_cosine"] == pytest.approx(np.mean(off), abs=1e-4)
            assert measured[f"{component}/gradient_cosine_abs"] == pytest.approx(np.mean(np.abs(off)), abs=1e-4)
            assert measured[f"{component}/gradient_zero_fraction_samples"] == 0
            # exp of the entropy of eigenvalues; those of the cosines are the squared singular values of the unit rows.
            squares = torch.linalg.svdvals(rows / rows.norm(dim=1, keepdim=True)).square() / n
            rank = math.exp(-sum(s * math.log(s) for s in squares.tolist() if s > 1e-12))
            assert measured[f"{component}/gradient_covariance_rank"] == pytest.approx(rank, rel=1e-3)
            picture = measured[f"plasticity/gradient_cosines/{component}"]
            assert isinstance(picture, Picture) and picture.png.startswith(b"\x89PNG")

    def test_equal_transitions_have_cosine_and_rank_one(self) -> None:
        """With equal transitions every cosine is 1 and every rank is 1."""
        agent = trained_agent("dqn")
        batch = batch_for(agent, 1).take(torch.zeros(4, dtype=torch.int64))
        batch = batch.replace(discount=torch.full((4,), 0.9))
        measured = read(Kernel(samples=4), context_of(agent, batch))
        assert measured["critic/gradient_cosine"] == measured["critic/gradient_cosine_abs"] == pytest.approx(1)
        assert measured["critic/gradient_covariance_rank"] == pytest.approx(1)
        assert measured["critic/ntk_numerical_rank"] == 1 == measured["critic/ntk_condition"]
        assert measured["critic/interference_successor"] == pytest.approx(measured["critic/interference_random"])

    def test_a_transition_to_itself_interferes_fully(self) -> None:
        """A transition that ends in its own state, with the action of the policy there, has an interference of 1."""
        agent = trained_agent("dqn")
        batch = batch_for(agent, 6)
        batch = batch.replace(next_obs=batch.obs, action=agent.act(batch.obs), discount=torch.full((6,), 0.9))
        measured = read(Kernel(samples=6), context_of(agent, batch))
        assert measured["critic/interference_successor"] == pytest.approx(1)
        assert measured["critic/interference_random"] < 0.99

    def test_terminal_transitions_do_not_interfere(self) -> None:
        batch = batch_for(trained_agent("dqn"), 4).replace(discount=torch.zeros(4))
        measured = read(Kernel(samples=4), context_of(trained_agent("dqn"), batch))
        assert measured["critic/interference_successor"] == measured["critic/interference_random"] == 0

    def test_transitions_without_a_gradient_are_counted_separately(self) -> None:
        """A network of zeros learns nothing from a target of zero; the others change the biases of their actions."""
        agent = trained_agent("dqn")
        with torch.no_grad():
            for module in (agent.components["critic"].online, agent.components["critic"].target):
                assert module is not None
                for p in module.parameters():
                    p.zero_()
        batch = batch_for(agent, 6)
        batch = batch.replace(reward=torch.tensor([0.0, 1, -2, 0, 3, 0]), action=torch.tensor([0, 0, 0, 1, 2, 2]))
        measured = read(Kernel(samples=6), context_of(agent, batch))
        assert measured["critic/gradient_zero_fraction_samples"] == 0.5
        assert measured["critic/gradient_cosine"] == pytest.approx(-2 / 30)  # one pair with opposite gradients
        assert measured["critic/gradient_cosine_abs"] == pytest.approx(2 / 30)
        assert measured["critic/gradient_covariance_rank"] == pytest.approx(1 / (2 / 3) ** (2 / 3) / (1 / 3) ** (1 / 3))
        assert measured["critic/ntk_numerical_rank"] == 3

    def test_collapsed_features_align_gradients_and_reduce_ranks(self) -> None:
        """If all units have equal outputs, gradients align and ranks fall."""
        agent, broken = (trained_agent("dqn", made=AGENTS["dqn"]) for _ in range(2))
        with torch.no_grad():
            broken.components["critic"].online.head.layers[0].linear.weight.mul_(1e-4)
        batch = batch_for(agent, 8).replace(action=torch.zeros(8, dtype=torch.int64))
        plain, collapsed = (read(Kernel(samples=8), context_of(a, batch)) for a in (agent, broken))
        assert collapsed["critic/gradient_cosine_abs"] > 1.1 * plain["critic/gradient_cosine_abs"]
        for metric in ("ntk_effective_rank", "gradient_covariance_rank"):
            assert collapsed[f"critic/{metric}"] < 0.7 * plain[f"critic/{metric}"]

    def test_kernel_metrics_equal_values_computed_by_hand(self) -> None:
        assert effective_rank(np.array([4.0, 2, 1, 1])) == pytest.approx(3.363586, abs=1e-6)
        assert effective_rank(np.zeros(3)) == 0
        measured = kernel_metrics(np.diag([4.0, 1e-9, 2.0, 0.0, 1.0, 1.0]))
        assert list(measured.values()) == [4, 4, pytest.approx(3.363586, abs=1e-6), 4]
        assert kernel_metrics(np.zeros((2, 2)))["ntk_numerical_rank"] == 0
        assert all(math.isnan(v) for v in kernel_metrics(np.full((2, 2), np.nan)).values())
        assert all(math.isnan(v) for v in covariance_metrics(np.full((2, 2), np.inf)).values())
        nothing = covariance_metrics(np.zeros((3, 3)))
        assert list(nothing.values()) == [0, 0, 1, 0]


# ------------------------------------------------------------------------------------------------------------ churn


class TestChurn:
    @pytest.mark.parametrize("name", SMALL)
    def test_churn_equals_that_of_a_plain_loop(self, name: str) -> None:
        agent, batch = trained_agent(name), batch_for(SMALL[name]())
        held = batch_for(agent, 8, seed=31)
        monitor, context = Churn(samples=8), context_of(agent, held)
        with no_wait():
            monitor.before_update(context)
        values, policies = [], []
        for _ in range(2):
            with torch.no_grad():
                values.append(
                    np.array([view(agent).values(held.take(slice(i, i + 1)))[:, 0].numpy() for i in range(8)])
                )
                policies.append(self.policy(agent, held))
            agent.update(batch, agent.plan(Clock(1000, 4, 999, 3)))
        # The second update does not count.
        after = trained_agent(name)
        after.update(batch, after.plan(Clock(1000, 4, 999, 3)))
        context.agent = after
        measured = read(monitor, context)
        change = np.abs(values[1].astype(float) - values[0]).mean()
        assert change > 0
        assert measured["critic/value_churn"] == pytest.approx(change, rel=1e-4)
        assert measured["critic/relative_value_churn"] == pytest.approx(change / np.abs(values[0]).mean(), rel=1e-4)
        if agent.action.discrete:
            assert measured["critic/policy_churn"] == np.mean(policies[0] != policies[1])
        else:
            (m, s), (k, t) = ((p.mean, p.stddev) for p in policies)
            kl = ((t / s).log() + (s**2 + (m - k) ** 2) / (2 * t**2) - 0.5).sum(1).mean().item()
            assert measured["actor/policy_churn"] == pytest.approx(kl, rel=2e-2, abs=1e-7)

    @staticmethod
    def policy(agent: Any, held: Batch) -> Any:
        if agent.action.discrete:
            return np.array([agent.act(held.obs[i : i + 1])[0].item() for i in range(8)])
        with torch.no_grad():
            mean, log_std = agent.actor.online(agent.critic.online.encoder(held.obs))
        return torch.distributions.Normal(mean.double(), log_std.double().exp())

    @pytest.mark.parametrize("name", ["dqn", "sac"])
    def test_churn_is_zero_without_learning_and_large_with_a_large_learning_rate(self, name: str) -> None:
        seen = []
        for factor in (0.0, 1.0, 30.0):
            run = build_run(name, monitors=[Churn(every=1, samples=16)])
            for _, optimizer in run.agent.optimizers():
                optimizer.param_groups[0]["lr"] *= factor
            take_steps(run, 12)
            run.monitors.publish(run)
            readings = {key: value for key, (value, _) in run.monitors.readings.items()}
            seen.append(readings)
        for key in seen[0]:
            assert seen[0][key] == 0
        assert seen[2]["critic/value_churn"] > 3 * seen[1]["critic/value_churn"] > 0

    def test_the_policy_churn_is_one_if_all_actions_change(self) -> None:
        agent, monitor = trained_agent("dqn"), Churn(samples=8)
        context = context_of(agent)
        monitor.before_update(context)
        with torch.no_grad():
            agent.components["critic"].online.advantage.linear.weight.neg_()
            agent.components["critic"].online.advantage.linear.bias.neg_()
        measured = read(monitor, context)
        assert measured["critic/policy_churn"] == 1 and measured["critic/relative_value_churn"] == pytest.approx(2)
        assert monitor.before is None

    def test_values_of_zero_have_no_relative_churn(self) -> None:
        agent, monitor = trained_agent("dqn"), Churn(samples=8)
        with torch.no_grad():
            for p in agent.components["critic"].online.advantage.parameters():
                p.zero_()
        context = context_of(agent)
        monitor.before_update(context)
        assert read(monitor, context)["critic/relative_value_churn"] == 0


# --------------------------------------------------------------------------------------------------- overestimation


class Counted:
    """Environments that remember whether they were closed."""

    def __init__(self, envs: Any) -> None:
        self.envs, self.closed = envs, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.envs, name)

    def close(self) -> None:
        self.closed += 1


class ConstantReward:
    """An endless environment with a constant reward."""

    num_envs, frame_skip = 2, 1

    def __init__(self, agent: Agent, reward: float, length: int = 10**9) -> None:
        self.observation, self.action = agent.observation, agent.action
        self.reward, self.length, self.age = reward, length, 0

    def reset(self) -> Any:
        return np.zeros((2, *self.observation.shape), np.float32)

    def step(self, action: Any) -> Step:
        self.age += 1
        over = np.full(2, self.age % self.length == 0)
        no, obs = np.zeros(2, bool), self.reset()
        return Step(obs, np.full(2, self.reward, np.float32), over, no, over, obs)

    def close(self) -> None:
        pass


def a_run(agent: Agent, envs: Callable[[], Any] | None, steps: int = 500) -> Any:
    return SimpleNamespace(agent=agent, clock=Clock(steps), fresh_envs=envs)


def constant_(network: nn.Module, outputs: Sequence[float]) -> None:
    """Set a network to constant outputs."""
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
        last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        last.bias.copy_(torch.tensor(outputs))


class TestOverestimation:
    def test_returns_equal_values_computed_by_hand(self) -> None:
        last, middle = 4 + 0.5 * 8, 2 + 0.5 * (20 + 4 + 0.5 * 8)
        assert discounted([1, 2, 4], [9, 10, 20], 8.0, 0.5).tolist() == [1 + 0.5 * (10 + middle), middle, last]
        # Two steps: a bonus only at every second state.
        measured = discounted([1, 1, 1, 1], [5, 6, 7, 8], 0.0, 0.5, 2)
        assert measured.tolist() == [1.5 + 0.25 * (1.5 + 7), 1.5 + 0.25 * (1 + 8), 1.5, 1]

    @pytest.mark.parametrize("n", [1, 3])
    def test_returns_equal_explicit_sums(self, n: int) -> None:
        """The sum from each step adds every term separately."""
        rng, gamma, steps, beyond = np.random.default_rng(0), 0.9, 11, 2.5
        reward, bonus = rng.normal(size=steps), rng.normal(size=steps)
        measured = discounted(reward, bonus, beyond, gamma, n)
        for t in range(steps):
            terms = [gamma**k * reward[t + k] for k in range(steps - t)]
            terms += [gamma**k * bonus[t + k] for k in range(n, steps - t, n)]
            assert measured[t] == pytest.approx(sum(terms) + gamma ** (steps - t) * beyond)

    def test_readings_of_a_known_policy_in_cartpole_equal_a_plain_loop(self) -> None:
        """The policy always pushes to one side."""
        agent = DQN((4,), 2, DQNConfig(network=NetworkConfig(hidden=(4,))))
        constant_(agent.critic.online, [7.0, 3.0])
        made: list[Counted] = []

        def fresh() -> Counted:
            made.append(Counted(make("CartPole-v1", 1, seed=5)))
            return made[-1]

        measured = dict(Overestimation(episodes=3).between(a_run(agent, fresh)))
        envs, returns = make("CartPole-v1", 1, seed=5), []
        envs.reset()
        for _ in range(3):
            length = 1
            while not (step := envs.step(np.zeros(1, np.int64))).terminated[0]:
                length += 1
            assert step.terminated[0] and 8 <= length <= 11
            returns += [sum(0.99**k for k in range(length - t)) for t in range(length)]
        envs.close()
        assert measured["critic/mc_states"] == len(returns)
        assert measured["critic/mc_return"] == pytest.approx(np.mean(returns))
        assert measured["critic/overestimation"] == pytest.approx(7 - np.mean(returns))
        assert measured["critic/overestimation_normalised"] == pytest.approx((7 - np.mean(returns)) / np.mean(returns))
        assert "critic/value_rank_correlation" not in measured  # all values are equal
        assert [envs.closed for envs in made] == [1]

    def test_a_constant_added_to_values_is_measured(self) -> None:
        """Values that are five too high are measured so, and their order changes only the correlation."""
        agent = trained_agent("dqn")
        seen = []
        for _ in range(2):
            run = a_run(agent, lambda: ConstantReward(agent, 1.0, 5))
            seen.append(dict(Overestimation(episodes=4).between(run)))
            with torch.no_grad():
                agent.critic.online.advantage.linear.bias.add_(5)
        assert seen[1]["critic/overestimation"] == pytest.approx(seen[0]["critic/overestimation"] + 5, abs=1e-4)
        assert (
            seen[1]["critic/mc_return"]
            == seen[0]["critic/mc_return"]
            == pytest.approx(np.mean([sum(0.99**k for k in range(n)) for n in range(1, 6)]))
        )

    def test_states_near_the_cut_of_an_episode_are_left_out(self) -> None:
        """Returns bootstrap from the value at the cut, so states whose return is mostly that value are left out."""
        agent = DQN((4,), 2, replace(DQNConfig(), network=NetworkConfig(hidden=(4,)), gamma=0.5))
        constant_(agent.critic.online, [3.0, 0.0])
        run = a_run(agent, lambda: ConstantReward(agent, 1.0))
        measured = dict(Overestimation(episodes=2, max_steps=6, tail=0.1).between(run))
        # 0.5 to the power of 4, 5 and 6 is at most 0.1; value minus return, (3 - 2) of 1 - 0.5^left each.
        assert measured["critic/mc_states"] == 6
        assert measured["critic/overestimation"] == pytest.approx(np.mean([1 - 0.5**left for left in (4, 5, 6)]))
        short = Overestimation(episodes=2, max_steps=2, tail=0.1)
        assert dict(short.between(run)) == {"critic/mc_states": 0}

    def test_rewards_are_clipped_as_they_are_learnt(self) -> None:
        for changes, expected in (({}, 3), ({"reward_clip": 1.0}, 1), ({"value_loss": "value_mapping"}, 1)):
            config = replace(DQNConfig(), network=NetworkConfig(hidden=(4,)), gamma=0.0, **changes)
            agent = DQN((4,), 2, config)
            run = a_run(agent, lambda a=agent: ConstantReward(a, 3.0))
            measured = dict(Overestimation(episodes=2, max_steps=6).between(run))
            assert measured["critic/mc_return"] == expected

    @pytest.mark.parametrize("n", [1, 3])
    def test_soft_returns_agree_with_soft_values(self, n: int) -> None:
        """Critics with the fixed point of SAC's own targets neither over- nor underestimate the returns."""
        net = NetworkConfig(hidden=(4,))
        config = SACConfig(network=net, actor_network=net, gamma=0.8, n_step=n, temperature=0.5)
        agent = SAC((3,), BOX, config, seed=1)
        constant_(agent.actor.online, [0.3, -0.2, -0.5, 0.1])
        critic = agent.critic
        assert critic.target is not None
        value, lots = 0.0, batch_for(agent, 4000).replace(reward=torch.full((4000,), sum(0.8**k for k in range(n))))
        lots = lots.replace(discount=torch.full((4000,), 0.8**n))
        for _ in range(60):  # iterate to the fixed point of the agent's own targets
            for network in (critic.online, critic.target):
                for member in network.members:
                    constant_(member, [value])
            value = agent.target(lots).mean().item()
        run = a_run(agent, lambda: ConstantReward(agent, 1.0))
        state = agent.generator.get_state()
        measured = dict(Overestimation(episodes=4, max_steps=1000).between(run))
        assert torch.equal(state, agent.generator.get_state())
        assert abs(measured["critic/overestimation"]) < 0.03
        assert measured["critic/mc_return"] == pytest.approx(value, abs=0.03)
        assert abs(value - 1 / (1 - 0.8)) > 0.3  # the bonus is large

    @pytest.mark.parametrize("name", ["sac", "dqn, minatar, dueling"])
    def test_readings_equal_those_of_a_plain_loop(self, name: str) -> None:
        """The readings are a pure function of the agent and of the clock."""
        run = build_run(name)
        take_steps(run, 6)
        agent: Any = run.agent
        monitor = Overestimation(episodes=12, max_steps=4, tail=1.0)
        before = saved(run)
        measured = dict(monitor.between(run))
        assert not differences(before, saved(run)) and measured == dict(monitor.between(run))
        values, returns, seen = [], [], set()
        generator = Generator().manual_seed(derive_seed(agent.seed, f"overestimation at {run.clock.steps} steps"))
        agent.generator, own = generator, agent.generator

        def decide(seen: Any) -> tuple[Tensor, float, float]:
            """Action, bonus, mean value of the critics, one observation at a time."""
            obs = torch.from_numpy(seen)
            with torch.no_grad():
                if agent.action.discrete:
                    return (best := agent.act(obs)), 0.0, agent.critic.online(obs)[0, best.item(), 0].item()
                scaled, log_prob = agent.policy(obs)
                value = agent.critic.online(obs, scaled).mean().item()
                return agent.center + agent.scale * scaled, -(agent.temperature() * log_prob).item(), value

        envs, pieces, steps = RandomEnvs(agent.observation, agent.action, 1, 1000), 0, []
        obs = envs.reset()
        while pieces < 12:
            action, bonus, value = decide(obs)
            step = envs.step(action.numpy())
            steps.append((step.reward[0], bonus, value))
            if step.reset[0] or len(steps) == 4:
                seen.add((bool(step.terminated[0]), bool(step.truncated[0])))
                last = 0.0
                if not step.terminated[0]:
                    _, bonus, value = decide(step.final_obs)
                    last = value + bonus
                for reward, bonus, value in reversed(steps):
                    returns.append(reward + 0.99 * last)
                    values.append(value)
                    last = returns[-1] + bonus
                pieces, steps = pieces + 1, []
            obs = step.obs
        agent.generator = own
        assert seen == {(True, False), (False, True), (False, False)}  # every kind of end occurs
        assert measured["critic/mc_states"] == len(values)
        assert measured["critic/mc_return"] == pytest.approx(np.mean(returns), rel=1e-5)
        bias = np.mean(values) - np.mean(returns)
        assert measured["critic/overestimation"] == pytest.approx(bias, rel=1e-4)
        assert measured["critic/overestimation_normalised"] == pytest.approx(bias / np.mean(np.abs(returns)), rel=1e-4)
        later = a_run(agent, run.fresh_envs, run.clock.steps + 1)
        assert (dict(monitor.between(later)) == measured) is agent.action.discrete

    def test_the_rank_correlation_equals_values_computed_by_hand(self) -> None:
        x, y = np.array([3.0, 1, 1, 8, 5]), np.array([2.0, 2, 7, 9, 9])

        def place(a: Any, i: int) -> float:
            return sum(b < a[i] for b in a) + (sum(b == a[i] for b in a) - 1) / 2

        a, b = ([place(v, i) for i in range(5)] for v in (x, y))
        assert rank_correlation(x, y) == pytest.approx(np.corrcoef(a, b)[0, 1])
        assert rank_correlation(x, np.exp(x)) == pytest.approx(1) and rank_correlation(x, -x) == pytest.approx(-1)
        assert rank_correlation(x, np.ones(5)) is None
        assert dict(compared(x, np.zeros(5))) == {"mc_states": 5, "overestimation": 3.6, "mc_return": 0}

    def test_a_run_without_environments_for_it_is_refused(self) -> None:
        with pytest.raises(ValueError, match="fresh_envs"):
            list(Overestimation().between(a_run(trained_agent("dqn"), None)))

    def test_environments_are_closed_also_after_an_error(self) -> None:
        agent = trained_agent("dqn")
        envs = Counted(RandomEnvs(agent.observation, agent.action))
        envs.step = lambda action: 1 / 0  # type: ignore[attr-defined]
        with pytest.raises(ZeroDivisionError):
            list(Overestimation().between(a_run(agent, lambda: envs)))
        assert envs.closed == 1

    def test_it_measures_on_a_schedule_of_steps(self) -> None:
        agent = AGENTS["dqn"](seed=0)
        asked: list[int] = []
        envs = RandomEnvs(agent.observation, agent.action, 2)
        run = Run(agent, envs, monitors=watch(agent, "overestimation(every=10, episodes=1, max_steps=4, tail=1.0)"))
        run.fresh_envs = lambda: asked.append(run.clock.steps) or RandomEnvs(agent.observation, agent.action)
        run.train(45)
        assert asked == [10, 20, 30, 40]
        assert run.monitors.readings["critic/mc_states"][0] > 0


# ------------------------------------------------------------------------------------------------------ criticality


class TestCriticality:
    @pytest.mark.parametrize("name", SMALL)
    def test_readings_equal_those_of_networks_assembled_by_hand(self, name: str) -> None:
        agent = trained_agent(name, updates=30)
        batch = batch_for(agent)
        context = context_of(agent, batch)
        measured = read(Criticality(samples=8), context)
        initial, drawn = SMALL[name](seed=3), context.generator("criticality")
        seed = context.seed("criticality")
        for key, layer in Known.of(agent).survey.layers.items():
            component, _, path = key.partition(".")
            fresh = layer.fresh(drawn)
            initial_layer = dict(initial.components[component].online.get_submodule(path).named_parameters())
            for how, given in (("reset", initial_layer), ("rerandomised", fresh)):
                copy, wide = doubled(agent, batch)
                losses, decided = view(copy).loss_functions(wide, seed), decisions_of(copy, wide)
                with torch.no_grad():
                    old = losses[component]().item()
                    for part, p in copy.components[component].online.get_submodule(path).named_parameters():
                        p.copy_(given[part])
                    new = losses[component]().item()
                assert measured[f"{key}/{how}_criticality"] == pytest.approx(new - old, rel=1e-3, abs=1e-6)
                if agent.action.discrete:
                    kept = (decisions_of(copy, wide) == decided).double().mean().item()
                    assert measured[f"{key}/{how}_action_agreement"] == pytest.approx(kept)
                elif component == "actor":
                    churn = view(copy).policy_churn(decided, decisions_of(copy, wide)).item()
                    assert measured[f"{key}/{how}_policy_churn"] == pytest.approx(churn, rel=1e-3, abs=1e-6)
                else:
                    assert f"{key}/{how}_policy_churn" not in measured
        assert any(abs(value) > 1e-3 for key, value in measured.items() if key.endswith("reset_criticality"))

    def test_resetting_a_layer_of_an_untrained_agent_changes_nothing(self) -> None:
        measured = read(Criticality(samples=8), context_of(SMALL["dqn, dueling"](seed=3)))
        for key, value in measured.items():
            if "/reset" in key:
                assert value == (1.0 if key.endswith("agreement") else 0.0)
        assert max(value for key, value in measured.items() if key.endswith("rerandomised_criticality")) > 1e-4

    def test_an_unused_layer_is_not_critical(self) -> None:
        """A layer whose output is not used can be replaced by any other."""
        agent = trained_agent("dqn, dueling", updates=30)
        with torch.no_grad():
            agent.components["critic"].online.value.linear.weight.zero_()
        measured = read(Criticality(samples=8), context_of(agent))
        for how in ("reset", "rerandomised"):
            for i in (0, 1):
                assert measured[f"critic.value_head.layers.{i}/{how}_criticality"] == 0
                assert measured[f"critic.value_head.layers.{i}/{how}_action_agreement"] == 1
                assert measured[f"critic.head.layers.{i}/{how}_criticality"] != 0

    def test_the_copy_is_restored(self) -> None:
        agent = trained_agent("sac")
        context = context_of(agent)
        before = weights(agent)
        read(Criticality(samples=8), context)
        assert not differences(before, weights(agent)) and not differences(before, weights(context._copy))

    def test_criticality_grows_with_training(self) -> None:
        agent, learnt = trained_agent("dqn", 1), trained_agent("dqn", 1)
        batch = batch_for(agent).replace(discount=torch.zeros(8), reward=torch.linspace(5, 9, 8))
        for i in range(200):
            learnt.update(batch, learnt.plan(Clock(i + 1, i + 1, i, i)))
        few, many = (read(Criticality(samples=8), context_of(a, batch)) for a in (agent, learnt))
        key = "critic.advantage/reset_criticality"
        assert many[key] > 1 and many[key] > 3 * abs(few[key])


# -------------------------------------------------------------------------------------------------------- landscape


class TestLandscape:
    def test_directions_have_the_norms_of_the_weights(self) -> None:
        agent = AGENTS["dqn, nature"](seed=0)
        network = agent.components["critic"].online
        measured = filter_normalised(network, Generator().manual_seed(0))
        assert set(measured) == {name for name, p in network.named_parameters() if name.endswith("linear.weight")}
        for name, direction in measured.items():
            weight = network.get_parameter(name)
            for mine, its in zip(direction, weight, strict=True):
                assert mine.norm().item() == pytest.approx(its.norm().item(), rel=1e-5)
            assert torch.cosine_similarity(direction.flatten(), weight.flatten(), dim=0).abs() < 0.3

    def test_norms_and_biases_do_not_change(self) -> None:
        """This includes gains per position, which have as many dimensions as a filter."""
        made = dqn(AGENTS["dqn, nature"]().observation, {"norm": "layer_norm", "norm_conv": "ln_chw", "width": 0.25})
        network = made(seed=0).components["critic"].online
        assert any(p.ndim == 3 for _, p in network.named_parameters())
        assert all(name.endswith("linear.weight") for name in filter_normalised(network, Generator().manual_seed(0)))

    @pytest.mark.parametrize("name", SMALL)
    def test_readings_equal_those_of_a_plain_loop(self, name: str) -> None:
        agent, batch = trained_agent(name), batch_for(SMALL[name]())
        context = context_of(agent, batch)
        monitor = Landscape(points=5, span=0.6, samples=8)
        grids: dict[str, Any] = {key: value for key, value in monitor.measure(context) if value.ndim}
        assert not differences(weights(agent), weights(context._copy))
        measured, generator = read(monitor, context), context.generator("landscape directions")
        copy, wide = doubled(agent, batch)
        single = view(agent).loss_functions(batch, context.seed("landscape"))
        for component, loss in view(copy).loss_functions(wide, context.seed("landscape")).items():
            online = agent.components[component].online
            directions = [filter_normalised(online, generator) for _ in range(2)]
            network, grid = copy.components[component].online, np.zeros((5, 5))
            own = {key: p.detach().clone() for key, p in network.named_parameters()}
            for i, y in enumerate((-0.6, -0.3, 0, 0.3, 0.6)):
                for j, x in enumerate((-0.6, -0.3, 0, 0.3, 0.6)):
                    with torch.no_grad():
                        for key in directions[0]:
                            moved = own[key] + x * directions[0][key].double() + y * directions[1][key].double()
                            network.get_parameter(key).copy_(moved)
                        grid[i, j] = loss().item()
            network.load_state_dict(own)
            values = grids[f"{component}/landscape"].numpy()
            assert np.allclose(values, grid, rtol=1e-4, atol=1e-5) and grid.std() > 1e-3
            with torch.no_grad():
                assert values[2, 2] == single[component]().item()
            rim = [grid[i, j] for i in range(5) for j in range(5) if {i, j} & {0, 4}]
            assert len(rim) == 16
            assert measured[f"{component}/landscape_rise"] == pytest.approx(
                np.mean(rim) - grid[2, 2], rel=1e-3, abs=1e-5
            )
            assert measured[f"{component}/landscape_drop"] == pytest.approx(grid[2, 2] - grid.min(), rel=1e-3, abs=1e-5)
            picture = measured[f"plasticity/landscape/{component}"]
            assert isinstance(picture, Picture) and picture.png.startswith(b"\x89PNG") and picture.width > 100

    def test_rescaled_weights_of_the_same_function_have_the_same_landscape(self) -> None:
        """W1 → c W1, W2 → W2 / c is the same function with ReLU units."""
        torch_seed = Generator().manual_seed(0)
        x, y = (torch.randn(16, n, generator=torch_seed) for n in (3, 2))

        def slice_of(c: float) -> Tensor:
            net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            g = Generator().manual_seed(1)
            with torch.no_grad():
                for p in net.parameters():
                    p.normal_(generator=g)
                net[0].weight.mul_(c), net[0].bias.mul_(c), net[2].weight.div_(c)
            directions = [filter_normalised(net, g) for _ in range(2)]
            return loss_slice(lambda: (net(x) - y).square().mean(), net, directions, axis(5, 1.0))

        plain, scaled = slice_of(1.0), slice_of(8.0)
        assert torch.allclose(plain, scaled, rtol=1e-4) and plain.std() > 0.1

    def test_the_grid_is_centred_on_the_weights(self) -> None:
        assert axis(5, 2.0) == [-2, -1, 0, 1, 2] and axis(11, 1.0)[5] == 0

    def test_a_steep_loss_rises_more_than_a_flat_one(self) -> None:
        agent, dead, steep = (trained_agent("dqn") for _ in range(3))
        kill_(dead, "head.layers.1")
        with torch.no_grad():
            steep.components["critic"].online.advantage.linear.weight.mul_(5)
        monitor = Landscape(points=3, samples=8)
        plain, flat, wall = (read(monitor, context_of(a))["critic/landscape_rise"] for a in (agent, dead, steep))
        assert flat == 0 and wall > 3 * plain

    def test_a_loss_that_is_not_finite_gives_nan(self) -> None:
        grid = np.full((3, 3), np.inf)
        measured = dict(Landscape(points=3).finish("critic/landscape", grid, Clock()))
        assert math.isnan(measured["critic/landscape_rise"])

    @pytest.mark.parametrize("given", [{"points": 4}, {"points": 1}, {"span": 0.0}, {"samples": 0}])
    def test_invalid_parameters_are_refused(self, given: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="landscape"):
            Landscape(**given)


# ------------------------------------------------------------------------------------------------- all deep monitors


def examples() -> list[str]:
    return [MONITORS[name].example for name in NAMES]


def steps_with_monitors(run: Run, steps: int) -> Iterator[None]:
    """Steps with everything that `train` does after each."""
    for _ in range(steps):
        before = run.clock.steps
        run.step()
        run.after_step(before)
        yield


@pytest.mark.parametrize("name", AGENTS)
def test_deep_monitors_do_not_change_the_run(name: str) -> None:
    """All readings are finite and of known metrics, no update waits for the device, and the weights are those of a run
    without monitors."""
    watched, alone = build_run(name, monitors=examples()), build_run(name)
    for _ in steps_with_monitors(watched, 5):
        take_steps(alone, 1)
    # More updates without environments: a step of environments may wait, an update may not.
    for _ in range(3):
        for run in (watched, alone):
            sampling = run.agent.sampling(run.clock)
            run.clock = run.clock.stepped(1)
            batch = run.memory.sample(sampling.batch_size, sampling.n_step, sampling.gamma)
            with no_wait():
                run.learn(batch)
    watched.monitors.publish(watched)
    content = [(run.agent.state_dict(), run.memory.state_dict(), run.obs) for run in (watched, alone)]
    assert not differences(*content)
    readings = {key: value for key, (value, _) in watched.monitors.readings.items()}
    assert readings and all(math.isfinite(value) for value in readings.values())
    known = {metric for name in NAMES for metric in MONITORS[name].metrics}
    measured = {key.rpartition("/")[2] for key in readings}
    assert measured <= known
    others = "_policy_churn" if watched.agent.action.discrete else "agreement"  # metrics for the other kind of actions
    if not view(watched.agent).values_are_returns:
        known -= set(MONITORS["overestimation"].metrics)
    assert all(others in metric for metric in known - measured)


@pytest.mark.parametrize("name", ["dqn, minatar, dueling", "droq"])
def test_deep_monitors_resume_where_they_stopped(name: str) -> None:
    straight, stopped, resumed = (build_run(name, monitors=examples()) for _ in range(3))
    list(steps_with_monitors(straight, 16))
    list(steps_with_monitors(stopped, 9))
    resume(resumed, saved(stopped))
    list(steps_with_monitors(resumed, 7))
    assert not differences(current_state(straight), current_state(resumed))
    assert len(straight.monitors.readings) > 20


@pytest.mark.parametrize("name", NAMES)
def test_a_monitor_spec_sets_every_parameter(name: str) -> None:
    kind = MONITORS[name]
    assert kind.group == "deep" and kind.name == name
    assert isinstance(kind().when, Every) and kind().when.period == kind.every
    with pytest.raises(ValueError, match=name):
        kind(**{"episodes" if name == "overestimation" else "samples": 0})


def test_random_draws_depend_on_the_update() -> None:
    """They are equal at the same update of the same agent, and differ at another update."""
    agent = trained_agent("sac")
    for monitor in (Curvature(steps=3, probes=1), Criticality(), Landscape(points=3)):
        first, same, later = (read(monitor, context_of(agent, update=u)) for u in (5, 5, 6))
        numbers = [key for key, value in first.items() if isinstance(value, float)]
        assert all(first[key] == same[key] for key in numbers)
        assert any(first[key] != later[key] for key in numbers)
    assert len(trained(agent.components["critic"])) == 12

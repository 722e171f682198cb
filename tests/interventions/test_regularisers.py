"""Penalties: values and gradients against numbers computed by hand, and the tensors that must not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import law_agents
import pytest
import torch
from law_agents import build_run, current_state, differences, resume, saved, take_steps
from stand import Stand, only
from test_agents import AGENTS, BOX, DQN_SMALL, SAC_SMALL, SMALL_PIXELS, batch_for
from torch import Tensor, nn

from pliant.agents import DQN, SAC, Agent, Batch, Clock, Supervised, SupervisedConfig
from pliant.agents.networks import Layer, NetworkConfig, all_layers
from pliant.agents.optimizers import OptimizerConfig, step
from pliant.agents.views import view
from pliant.interventions import INTERVENTIONS, attach
from pliant.interventions.chain import Chain
from pliant.interventions.core.parts import Survey
from pliant.interventions.core.regularising import Penalty
from pliant.interventions.core.spec import build
from pliant.interventions.l2 import L2
from pliant.interventions.l2_init import L2Init
from pliant.interventions.parseval import Parseval
from pliant.interventions.spectral import Spectral
from pliant.interventions.wasserstein import Wasserstein

PENALTIES = sorted(name for name, kind in INTERVENTIONS.items() if issubclass(kind, Penalty))
ALL_AGENTS = AGENTS | {name: make for name, make in law_agents.AGENTS.items() if "ppo" in name}


def intervention(spec: str) -> Any:
    (part,) = build([spec], INTERVENTIONS)
    return part


def made(spec: str, agent: str = "dqn", **options: Any) -> tuple[Agent, Any]:
    part = intervention(spec)
    return ALL_AGENTS[agent](interventions=(part,), **options), part


def on_layer(part: Any, weight: Any, bias: Any, *, norm: bool = False) -> Layer:
    """Apply a penalty to one layer of given weights, in double precision."""
    rows = torch.tensor(weight, dtype=torch.float64)
    layer = Layer(
        nn.Linear(rows.shape[1], len(rows)),
        torch.Generator().manual_seed(0),
        init="orthogonal",
        norm="layer_norm" if norm else "none",
    ).double()
    with torch.no_grad():
        layer.linear.weight.copy_(rows)
        layer.linear.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    part.seed(0, torch.device("cpu"))
    part.bind(agent_of_one_layer(layer))
    return layer


def agent_of_one_layer(layer: Layer) -> Any:
    """An agent of one layer, with the attributes that a penalty needs."""
    survey = Survey("one layer", {"critic.one": layer}, {}, {}, {"critic": ["critic.one"]})
    return SimpleNamespace(survey=survey, name="one layer", device=torch.device("cpu"), interventions=())


def value_and_gradients(part: Any, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    value = part.penalty(None, "critic")
    weight, bias = torch.autograd.grad(
        value, [layer.linear.weight, layer.linear.bias], allow_unused=True, materialize_grads=True
    )
    return value.detach(), weight, bias


def close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# ------------------------------------------------------------------------------------------------------------ l2


class TestL2:
    def test_value_and_gradient_equal_the_closed_form(self) -> None:
        part = L2(weight=0.1)
        layer = on_layer(part, [[3.0, -1.0], [0.5, 2.0]], [1.0, -2.0])
        value, weight, bias = value_and_gradients(part, layer)
        close(value, 0.05 * (9 + 1 + 0.25 + 4 + 1 + 4))
        close(weight, 0.1 * layer.linear.weight.detach())
        close(bias, [0.1, -0.2])

    @pytest.mark.parametrize("norms", [False, True])
    def test_norms_are_included_on_request(self, norms: bool) -> None:
        part = L2(weight=2.0, norms=norms)
        layer = on_layer(part, [[0.0]], [0.0], norm=True)
        layer.norm.weight.data.fill_(3.0)  # type: ignore[union-attr, operator]
        close(part.penalty(None, "critic"), 9.0 if norms else 0.0)  # type: ignore[arg-type]

    def test_the_penalty_equals_torchs_coupled_weight_decay(self) -> None:
        """The first step of Adam with coupled decay, and of our Adam with the penalty only, is lr * sign(theta)."""
        agent, _ = made("l2(weight=0.01)")
        critic = agent.components["critic"]
        before = {n: p.detach().clone() for n, p in critic.online.named_parameters()}
        zero = torch.stack([p.sum() for p in critic.online.parameters()]).sum() * 0.0
        step(agent.penalised(zero, "critic"), critic.optimizer)
        lr = agent.config.optimizer.lr  # type: ignore[attr-defined]
        for name, p in critic.online.named_parameters():
            large = before[name].abs() > 1e-3
            torch.testing.assert_close((before[name] - p)[large], lr * before[name].sign()[large], atol=0, rtol=1e-3)
        reference = [nn.Parameter(v.clone()) for v in before.values()]
        adam = torch.optim.Adam(reference, lr=lr, weight_decay=0.01)
        for r in reference:
            r.grad = torch.zeros_like(r)
        adam.step()
        for r, p in zip(reference, critic.online.parameters(), strict=True):
            torch.testing.assert_close(r.detach(), p.detach(), atol=1e-7, rtol=0)

    def test_decoupled_decay_is_exact(self) -> None:
        """Without a gradient one step gives theta (1 - lr * weight)."""
        agent, _ = made("l2(weight=0.5, form=decoupled)")
        critic = agent.components["critic"]
        before = [p.detach().clone() for p in critic.online.parameters()]
        zero = torch.stack([p.sum() for p in critic.online.parameters()]).sum() * 0.0
        step(agent.penalised(zero, "critic"), critic.optimizer)
        lr = agent.config.optimizer.lr  # type: ignore[attr-defined]
        for old, p in zip(before, critic.online.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), old * (1 - lr * 0.5), atol=0, rtol=1e-6)

    def test_decoupled_decay_reaches_the_named_optimizers(self) -> None:
        for on, expected in (("all", (0.3, 0.3)), ("critic", (0.3, 0.0)), ("actor", (0.0, 0.3))):
            c: Any = made(f"l2(weight=0.3, form=decoupled, on={on})", "sac")[0].config
            assert (c.optimizer.weight_decay, c.actor_optimizer.weight_decay) == expected

    def test_unsupported_forms_of_decoupled_decay_are_refused(self) -> None:
        decayed = replace(DQN_SMALL, optimizer=OptimizerConfig(weight_decay=0.1))
        normed = replace(DQN_SMALL, network=NetworkConfig(norm="layer_norm"))
        cases: list[tuple[Callable[[], Any], str]] = [
            (lambda: DQN((5,), 3, decayed, interventions=(intervention("l2(form=decoupled)"),)), "0.1 already"),
            (lambda: DQN((5,), 3, normed, interventions=(intervention("l2(form=decoupled)"),)), "norms=True"),
            (lambda: made("l2(form=decoupled, on=critic)", "ppo"), "write on=all"),
            (lambda: made("l2(form=decoupled)", "ppo, continuous"), "norms=True"),
            (lambda: made("l2(form=decoupled, on=actor)", "dqn"), "has no actor"),
            (lambda: intervention("l2(form=decoupled, on=head)"), "all, critic or actor"),
        ]
        for make, message in cases:
            with pytest.raises(ValueError, match=message):
                make()
        DQN((5,), 3, normed, interventions=(intervention("l2(form=decoupled, norms=True)"),))


# ------------------------------------------------------------------------------------------ distance to the start


class TestL2Init:
    @pytest.mark.parametrize(
        ("form", "factor", "bias_factor"), [("sum", 1, 1), ("half", 0.5, 0.5), ("mean", 1 / 4, 0.5)]
    )
    def test_value_and_gradient_equal_the_closed_form(self, form: Any, factor: float, bias_factor: float) -> None:
        part = L2Init(weight=0.1, form=form)
        layer = on_layer(part, [[1.0, 2.0], [3.0, 4.0]], [1.0, 1.0])
        assert value_and_gradients(part, layer)[0] == 0
        moved = torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64)
        with torch.no_grad():
            layer.linear.weight.add_(moved)
            layer.linear.bias.add_(2.0)
        value, weight, bias = value_and_gradients(part, layer)
        close(value, 0.1 * (14 * factor + 8 * bias_factor))
        close(weight, 0.2 * factor * moved)
        close(bias, [0.4 * bias_factor] * 2)

    def test_sgd_contracts_weights_towards_their_initial_values(self) -> None:
        """With no other loss: theta - theta_0 is multiplied by 1 - 2 lr weight."""
        part = L2Init(weight=0.3)
        layer = on_layer(part, [[1.0, 2.0]], [0.5])
        initial = layer.linear.weight.detach().clone()
        with torch.no_grad():
            layer.linear.weight.add_(1.0)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        part.penalty(None, "critic").backward()  # type: ignore[union-attr, arg-type]
        optimizer.step()
        close(layer.linear.weight.detach() - initial, [[1 - 2 * 0.1 * 0.3] * 2])

    def test_a_new_network_has_no_penalty_and_reset_weights_are_pulled_back(self) -> None:
        agent, _ = made("l2_init(weight=0.1)", "sac")
        assert agent.interventions.penalty(agent, "critic") == 0 == agent.interventions.penalty(agent, "actor")
        make_updates(agent)
        assert agent.interventions.penalty(agent, "critic") > 0 < agent.interventions.penalty(agent, "actor")  # type: ignore[operator]

    @pytest.mark.parametrize("rebase", [False, True])
    def test_with_rebase_edited_weights_become_the_new_reference(self, rebase: bool) -> None:
        """Only the references of edited weights change, and only with rebase."""
        agent = AGENTS["dqn"](
            interventions=(
                intervention(f"l2_init(rebase={rebase})"),
                intervention("reset(layers=last, every=2, of=updates, target=none)"),
            )
        )
        part = next(iter(agent.interventions))
        stand = Stand(agent)
        references = {k: v.clone() for k, v in part.named_buffers() if k.endswith("born")}  # a key of checkpoints
        stand.learn()
        stand.learn()  # the reset
        last = all_layers(agent.components["critic"].online)["advantage"]
        edited = {k: p.detach().clone() for k, p in last.named_parameters()}
        stand.learn()
        for key, reference in part.named_buffers():
            if key.endswith(":born"):  # a key of checkpoints
                reset = rebase and "/advantage/" in key
                name = "linear.weight" if "weight" in key else "linear.bias"
                assert torch.equal(reference, edited[name] if reset else references[key]), key

    def test_rebase_must_be_written_before_methods_that_edit(self) -> None:
        with pytest.raises(ValueError, match="write it before reset"):
            AGENTS["dqn"](interventions=(intervention("reset"), intervention("l2_init(rebase=True)")))


class TestWasserstein:
    def test_values_and_gradients_equal_numbers_computed_by_hand(self) -> None:
        """(3, 1, 2) and (2, 1, 5): 4/3 with gradient (-4/3, 0, 0); the mean of l2_init is 10/3."""
        part, other = Wasserstein(weight=1.0), L2Init(weight=1.0, form="mean")
        for p, value, gradient in ((part, 4 / 3, [[-4 / 3, 0.0, 0.0]]), (other, 10 / 3, [[2 / 3, 0.0, -2.0]])):
            layer = on_layer(p, [[2.0, 1.0, 5.0]], [0.0])
            with torch.no_grad():
                layer.linear.weight.copy_(torch.tensor([[3.0, 1.0, 2.0]]))
            actual, weight, _ = value_and_gradients(p, layer)
            close(actual, value)
            close(weight, gradient)

    def test_a_permutation_costs_nothing_only_within_one_tensor(self) -> None:
        part = Wasserstein(weight=1.0)
        layer = on_layer(part, [[1.0, 2.0], [3.0, 4.0]], [7.0, 8.0])
        with torch.no_grad():
            layer.linear.weight.copy_(torch.tensor([[4.0, 1.0], [2.0, 3.0]]))
            layer.linear.bias.copy_(torch.tensor([8.0, 7.0]))
        assert value_and_gradients(part, layer)[0] == 0
        with torch.no_grad():  # the same numbers, exchanged between the tensors
            layer.linear.bias.copy_(torch.tensor([1.0, 2.0]))
            layer.linear.weight.copy_(torch.tensor([[7.0, 8.0], [3.0, 4.0]]))
        close(value_and_gradients(part, layer)[0], (4 + 4 + 16 + 16) / 4 + (36 + 36) / 2)


# ------------------------------------------------------------------------------------------------- spectra


class TestSpectral:
    def test_values_and_gradients_equal_numbers_computed_by_hand(self) -> None:
        """diag(3, 1), k = 2: 64 with gradient diag(96, 0); a bias of length 1 adds 1; orthogonal and no bias: 0."""
        part = Spectral(weight=1.0)
        layer = on_layer(part, [[3.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
        value, weight, bias = value_and_gradients(part, layer)
        close(value, 64.0)
        close(weight, [[96.0, 0.0], [0.0, 0.0]])
        close(bias, [0.0, 0.0])
        part = Spectral(weight=0.5)
        layer = on_layer(part, [[0.0, 1.0], [-1.0, 0.0]], [1.0, 0.0])
        value, weight, bias = value_and_gradients(part, layer)
        close(value, 0.5)
        close(weight, torch.zeros(2, 2))
        close(bias, [0.5 * 4.0, 0.0])

    def test_gains_and_shifts_of_norms_are_penalised(self) -> None:
        part = Spectral(weight=1.0)
        layer = on_layer(part, [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0], norm=True)
        assert value_and_gradients(part, layer)[0] == 0
        norm: Any = layer.norm
        norm.weight.data.copy_(torch.tensor([2.0, -1.0]))
        norm.bias.data.copy_(torch.tensor([0.0, 2.0]))
        close(value_and_gradients(part, layer)[0], (4 - 1) ** 2 + 0 + 4**2)

    def test_k_is_the_exponent_of_the_norms(self) -> None:
        part = Spectral(weight=1.0, k=1)
        layer = on_layer(part, [[3.0, 0.0], [0.0, 1.0]], [0.0, 2.0])
        close(value_and_gradients(part, layer)[0], 4 + 4)

    @pytest.mark.parametrize("shape", [(3, 7), (7, 3), (64, 64)])
    def test_sigma_equals_the_largest_singular_value(self, shape: tuple[int, int]) -> None:
        """It does after some updates, while weights move as in training, and some updates after a reset."""
        g, part = torch.Generator().manual_seed(3), Spectral()
        layer = on_layer(part, torch.randn(shape, generator=g).tolist(), [0.0] * shape[0])
        for _ in range(200):
            part.sigma("critic.one", layer)
        weight = layer.linear.weight
        for _ in range(50):
            with torch.no_grad():
                weight.add_(0.001 * torch.randn(shape, generator=g))
            sigma = part.sigma("critic.one", layer)
            assert abs(sigma / torch.linalg.svdvals(weight)[0] - 1) < 1e-3
        u, _, v = torch.linalg.svd(weight.detach())
        (gradient,) = torch.autograd.grad(part.sigma("critic.one", layer), weight)
        torch.testing.assert_close(gradient, torch.outer(u[:, 0], v[0]), atol=0.1, rtol=0)
        layer.linear.weight.data.copy_(torch.randn(shape, generator=g))
        for _ in range(200):
            sigma = part.sigma("critic.one", layer)
        assert abs(sigma / torch.linalg.svdvals(weight)[0] - 1) < 1e-2

    def test_each_update_makes_one_power_iteration_on_a_saved_vector(self) -> None:
        part = Spectral()
        layer = on_layer(part, [[3.0, 1.0], [0.5, 1.0]], [0.0, 0.0])
        u = torch.tensor([0.0, 1.0], dtype=torch.float64)
        part.get_buffer("critic/one:u").copy_(u)
        v = layer.linear.weight.detach().T @ u
        expected = layer.linear.weight.detach() @ (v / v.norm())
        close(part.sigma("critic.one", layer), expected.norm())
        close(part.get_buffer("critic/one:u"), expected / expected.norm())
        assert "critic/one:u" in part.state_dict()

    @pytest.mark.parametrize(("lr", "least", "most"), [(1e-3, 0.001, 0.02), (1e-2, 0.02, 0.12)])
    def test_sigma_lags_behind_fast_weights_as_the_card_reports(self, lr: float, least: float, most: float) -> None:
        """The lag is measured on random labels; sigma is never too large."""
        part, g = Spectral(weight=1e-3), torch.Generator().manual_seed(0)
        config = SupervisedConfig(network=NetworkConfig(hidden=(128, 128)), optimizer=OptimizerConfig(lr=lr))
        agent, obs = Supervised((64,), 10, config, interventions=(part,)), torch.randn(640, 64, generator=g)
        labels = torch.randint(10, (640,), generator=g)
        sigma, lags = part.sigma, []

        def recorded_sigma(name: str, layer: Layer) -> Tensor:
            value = sigma(name, layer)
            if updates % 4 == 0:
                lags.append(1 - value.item() / torch.linalg.svdvals(layer.linear.weight.detach())[0].item())
            return value

        part.sigma = recorded_sigma  # type: ignore[method-assign]
        for updates in range(400):
            if updates % 100 == 0:
                labels = torch.randint(10, (640,), generator=g)
            index = torch.randint(640, (64,), generator=g)
            zeros = torch.zeros(64)
            batch = Batch(obs[index], labels[index], zeros, zeros, obs[index], zeros + 1, index)
            agent.update(batch, agent.plan(Clock(updates, updates + 1)))
        assert min(lags) > -1e-5 and least < torch.tensor(lags).median() < most

    def test_a_zero_layer_recovers_its_singular_vector(self) -> None:
        part = Spectral()
        layer = on_layer(part, [[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
        assert value_and_gradients(part, layer)[0] == pytest.approx(1e-3)
        layer.linear.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        for _ in range(40):
            sigma = part.sigma("critic.one", layer)
        close(sigma, 3.0, 1e-6)

    def test_output_layers_can_be_excluded(self) -> None:
        for output, expected in ((True, 3), (False, 2)):
            _, part = made(f"spectral(output={output})")
            assert len(part.layers["critic"]) == expected


class TestParseval:
    def test_values_and_gradients_equal_numbers_computed_by_hand(self) -> None:
        """diag(2, 1), s = 2: 5 with gradient diag(16, -4), times (64 / width)^2."""
        part = Parseval(weight=1.0)
        layer = on_layer(part, [[2.0, 0.0], [0.0, 1.0]], [5.0, 5.0])
        value, weight, bias = value_and_gradients(part, layer)
        close(value, 5.0 * 32**2)
        close(weight, torch.tensor([[16.0, 0.0], [0.0, -4.0]]) * 32**2, 1e-9)
        close(bias, [0.0, 0.0])

    @pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
    def test_gradients_equal_those_of_the_paper(self, shape: tuple[int, int]) -> None:
        """They are 4 (W W^T - s I) W, also for tall matrices, whose value is smaller by a constant."""
        g = torch.Generator().manual_seed(0)
        w = torch.randn(shape, generator=g, dtype=torch.float64)
        part = Parseval(weight=0.1, s=1.5)
        layer = on_layer(part, w.tolist(), [0.0] * shape[0])
        value, weight, _ = value_and_gradients(part, layer)
        away = w @ w.T - 1.5 * torch.eye(shape[0], dtype=torch.float64)
        scale = 0.1 * (64 / shape[0]) ** 2
        close(weight, scale * 4 * away @ w, 1e-9)
        close(value, scale * (away.square().sum() - 1.5**2 * max(0, shape[0] - shape[1])), 1e-9)

    @pytest.mark.parametrize("agent", ["dqn", "sac, pixels", "ppo, pixels"])
    def test_orthogonal_initialisation_has_no_penalty(self, agent: str) -> None:
        net = NetworkConfig(hidden=(16, 16), init="orthogonal")
        made_ = {
            "dqn": lambda **k: DQN((5,), 3, replace(DQN_SMALL, network=net), **k),
            "sac, pixels": lambda **k: SAC(
                SMALL_PIXELS, BOX, replace(SAC_SMALL, network=replace(net, width=0.25), actor_network=net), **k
            ),
            "ppo, pixels": law_agents.AGENTS["ppo, pixels"],
        }[agent](interventions=(part := intervention("parseval"),))
        for component in part.layers:
            # The largest value is that of a layer of 16 units: 64^2 / 16^2 times the rounding of its Gram matrix.
            assert 0 <= made_.interventions.penalty(made_, component) < 1e-9
        assert not any("advantage" in n or n.endswith("output") for layers in part.layers.values() for n in layers)


# ------------------------------------------------------------------------------------------------- every penalty


def make_updates(agent: Agent, updates: int = 3) -> None:
    stand = Stand(agent)
    for _ in range(updates):
        stand.learn()


class TestEveryPenalty:
    @pytest.mark.parametrize("name", PENALTIES)
    @pytest.mark.parametrize("agent", ["sac", "ppo", "dqn, impala"])
    def test_it_changes_only_the_gradients_of_its_component(self, name: str, agent: str) -> None:
        """The penalty of each component has gradients only for the weights of that component."""
        made_, part = made(f"{name}(weight=1.0)", agent)
        make_updates(made_)
        for component in ("critic", "actor"):
            if component not in made_.components:
                assert part.penalty(made_, component) == 0.0
                continue
            value = part.penalty(made_, component)
            for other, c in made_.components.items():
                grads = torch.autograd.grad(value, list(c.online.parameters()), allow_unused=True, retain_graph=True)
                touched = any(g is not None and bool(g.abs().sum() > 0) for g in grads)
                assert touched == (other == component), (component, other)
        assert part.penalty(made_, "temperature") == 0.0

    @pytest.mark.parametrize("name", PENALTIES)
    def test_on_restricts_it_to_components(self, name: str) -> None:
        made_, part = made(f"{name}(on=actor)", "sac")
        assert part.penalty(made_, "critic") == 0.0 and isinstance(part.penalty(made_, "actor"), Tensor)
        made_, part = made(f"{name}(on=encoder)", "sac, pixels")
        assert all(n.startswith("critic.encoder.") for n in part.layers["critic"]) and "actor" not in part.layers
        with pytest.raises(ValueError, match=f"{name}: this dqn has no 'actor'"):
            made(f"{name}(on=actor)", "dqn")

    @pytest.mark.parametrize("name", PENALTIES)
    def test_frozen_copies_and_targets_are_not_penalised(self, name: str) -> None:
        agent = AGENTS["dqn"](
            interventions=(intervention(f"{name}(weight=1.0)"), intervention("plasticity_injection(at=2, of=updates)"))
        )
        make_updates(agent, 4)
        part = next(iter(agent.interventions))
        value = part.penalty(agent, "critic")
        learnt = [p for p in agent.components["critic"].online.parameters() if p.requires_grad]
        assert torch.autograd.grad(value, learnt, allow_unused=True)[0] is not None
        held = {id(p) for layers in part.layers.values() for layer in layers.values() for p in layer.parameters()}
        assert held == {id(p) for n, p in agent.components["critic"].online.named_parameters() if p.requires_grad} or (
            name == "parseval"
        )

    @pytest.mark.parametrize("name", [*PENALTIES, "chain"])
    def test_it_is_added_once_per_update_and_logged(self, name: str) -> None:
        """It is added once per component and update; the log shows it under its own name, not within the loss."""
        for agent in ("dqn", "sac", "ppo"):
            made_, part = made(INTERVENTIONS[name].example, agent)
            calls: list[str] = []
            inner = part.penalty

            def counted(a: Any, component: str, inner: Any = inner, calls: list[str] = calls) -> Any:
                calls.append(component)
                return inner(a, component)

            part.penalty = counted
            loss: dict[str, Tensor] = {}
            stand = Stand(made_)
            for _ in range(3):
                calls.clear()
                stand.tick()
                update = made_.update(stand.memory.batch, made_.plan(stand.clock))
                loss = dict(part.measurements())
                made_.interventions.after_update(stand, update.activations)  # type: ignore[arg-type]
            assert sorted(calls) == sorted(c for c in made_.components if c != "temperature")
            assert {f"interventions/{name}_{c}" for c in calls} <= loss.keys()
            assert all(v.ndim == 0 and not v.requires_grad for v in loss.values())
            assert not part.measurements()
            assert all(k.startswith("losses/") for k in update.metrics)

    @pytest.mark.parametrize("name", PENALTIES)
    def test_the_optimizer_uses_its_gradient_unchanged(self, name: str) -> None:
        """Weights of convolutions have another memory layout; even so Adam makes the same step as torch's Adam with the
        same gradient."""
        agent, part = made(f"{name}(weight=1.0)", "dqn, minatar")
        make_updates(agent)
        critic = agent.components["critic"]
        learnt = critic.optimizer.param_groups[0]["params"]
        references = [nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in learnt]
        adam = torch.optim.Adam(references, lr=agent.config.optimizer.lr, foreach=False)  # type: ignore[attr-defined]
        value = part.penalty(agent, "critic") + 0.0 * torch.stack([p.sum() for p in learnt]).sum()
        for p, reference, g in zip(
            learnt, references, torch.autograd.grad(value, learnt, retain_graph=True), strict=True
        ):
            adam.state[reference] = {
                k: v.clone(memory_format=torch.contiguous_format) for k, v in critic.optimizer.state[p].items()
            }
            reference.grad = g.clone(memory_format=torch.contiguous_format)
        step(value, critic.optimizer)
        adam.step()
        for p, reference in zip(learnt, references, strict=True):
            torch.testing.assert_close(p.detach(), reference.detach(), atol=1e-6, rtol=1e-5)
            assert p.grad.stride() == p.stride()

    @pytest.mark.parametrize("name", PENALTIES)
    def test_with_weight_zero_it_changes_nothing(self, name: str) -> None:
        plain, treated = AGENTS["sac"](), made(f"{name}(weight=0.0)", "sac")[0]
        for agent in (plain, treated):
            make_updates(agent)
        for c in ("critic", "actor"):
            for mine, theirs in zip(
                treated.components[c].online.parameters(), plain.components[c].online.parameters(), strict=True
            ):
                assert torch.equal(mine, theirs)

    @pytest.mark.parametrize("name", [*PENALTIES, "chain"])
    def test_the_same_penalty_twice_on_one_component_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="exclude each other"):
            build([f"{name}(on=critic)", f"{name}(on=all)"], INTERVENTIONS)
        AGENTS["sac"](interventions=tuple(build([f"{name}(on=critic)", f"{name}(on=actor)"], INTERVENTIONS)))

    @pytest.mark.parametrize("name", PENALTIES)
    def test_a_negative_weight_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="weight must be at least 0, not -1"):
            intervention(f"{name}(weight=-1)")

    def test_a_reinitialised_agent_restarts_its_references(self) -> None:
        """The references of a reinitialised agent are its new initial weights, and its earlier outputs do not count."""
        agent, part = made("l2_init", "dqn")
        make_updates(agent)
        assert part.penalty(agent, "critic") > 0
        part.reinitialised(Stand(agent))
        assert part.penalty(agent, "critic") == 0
        agent, part = made("chain(weight=1.0, start=0, samples=8)", "dqn")
        make_updates(agent)
        part.reinitialised(Stand(agent))
        assert part.penalty(agent, "critic") == 0 and part.get_buffer("critic:updates") == 1


class TestExternal:
    @pytest.mark.parametrize("name", PENALTIES)
    def test_it_works_in_an_external_loop(self, name: str) -> None:
        """The value is that of an agent with the same weights, and a training step with it succeeds."""
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2, bias=False))
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        plasticity = attach(network, optimizer, torch.zeros(1, 4), f"{name}(weight=1.0)")
        for _ in range(2):
            plasticity.before_update()
            loss = network(torch.ones(3, 4)).sum()
            before = plasticity.penalty()
            optimizer.zero_grad()
            (loss + before).backward()
            optimizer.step()
            plasticity.after_update()
        if name == "l2":
            expected = sum(0.5 * p.square().sum() for n, p in network.named_parameters() if not n.startswith("1."))
            plasticity.before_update()
            close(plasticity.penalty(), expected.double(), 1e-5)  # type: ignore[union-attr, arg-type]
        assert before > 0

    def test_forms_that_need_an_agent_are_refused(self) -> None:
        network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        refusals = {
            "chain": "chain needs an agent's predictions",
            "l2(form=decoupled)": "AdamW",
            "crelu": "crelu shapes",
            "fourier": "torch.cat",
            "linear": "remove the activations",
        }
        for spec, message in refusals.items():
            with pytest.raises(ValueError, match=message):
                attach(network, optimizer, torch.zeros(1, 4), spec)


# ------------------------------------------------------------------------------------------------- chain


def moved_by(agent: Agent, amount: float) -> None:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for c in agent.components.values():
            for p in c.online.parameters():
                p.add_(amount * torch.randn(p.shape, generator=g))


class TestChain:
    @pytest.mark.parametrize("agent", ["dqn", "droq", "sac, pixels", "ppo", "ppo, continuous", "ppo, pixels"])
    def test_without_a_change_there_is_no_churn(self, agent: str) -> None:
        """The penalty is zero with a zero gradient if the weights have not changed, and positive if they have."""
        made_, part = made("chain(weight=1.0, start=0, samples=8)", agent)
        part.after_update(Stand(made_), {})
        made_.unpenalised = {c: torch.ones(()) for c in made_.components}
        for component in part.online:
            value = part.penalty(made_, component)
            # The KL divergence of a distribution from itself is zero up to rounding.
            assert abs(value) < 1e-6, component
            learnt = list(made_.components[component].online.parameters())
            for g in torch.autograd.grad(value, learnt, allow_unused=True, materialize_grads=True):
                assert g.abs().max() < 1e-6
        moved_by(made_, 0.05)
        for component in part.online:
            value = part.penalty(made_, component)
            assert value > 1e-6
            grads = torch.autograd.grad(value, list(made_.components[component].online.parameters()), allow_unused=True)
            assert any(g is not None and bool(g.abs().sum() > 0) for g in grads)
            # Afterwards these outputs are the new reference.
            assert abs(part.penalty(made_, component)) < 1e-6

    def test_the_penalty_of_a_linear_value_equals_its_closed_form(self) -> None:
        """R = mean over states and actions of (dW phi + db)^2, where d is the change of one update."""
        config = replace(DQN_SMALL, network=NetworkConfig(hidden=()))
        agent = DQN((5,), 3, config, interventions=(part := Chain(weight=2.0, start=0, samples=8),))
        stand = Stand(agent)
        layer = agent.components["critic"].online.advantage
        seen = []
        for _ in range(3):
            seen.append((layer.linear.weight.detach().clone(), layer.linear.bias.detach().clone()))
            phi = part.obs.clone()
            stand.learn()
            (term,) = (v for k, v in part.measurements().items() if k.endswith("critic"))
            if len(seen) > 1:
                (w, b), (w1, b1) = seen[-2:]
                close(term.double(), 2.0 * (phi @ (w1 - w).T + b1 - b).square().mean().double(), 1e-7)
                assert term > 0

    def test_the_strength_is_the_ratio_of_mean_loss_and_mean_churn(self) -> None:
        """It is ratio * mean |loss| / mean churn over a window, and zero before `start`."""
        _, part = made("chain(ratio=0.1, window=2, start=2)")
        losses, churns = [2.0, -4.0, 1.0, 8.0], [0.5, 0.25, 1.0, 2.0]
        loss = churn = 0.0
        for i, (x, y) in enumerate(zip(losses, churns, strict=True)):
            share = 1 / min(i + 1, 2)
            loss, churn = loss + (abs(x) - loss) * share, churn + (y - churn) * share
            strength = part.strength("critic", torch.tensor(x).abs(), torch.tensor(y))
            assert strength == pytest.approx(0.0 if i < 2 else 0.1 * loss / (churn + 1e-8), rel=1e-5)

    def test_the_means_of_loss_and_churn_are_tracked_for_every_component(self) -> None:
        for agent in ("dqn", "sac", "ppo"):
            run = build_run(agent, (intervention("chain(ratio=0.1, start=0, window=1000)"),))
            take_steps(run, 12)
            assert run.agent.unpenalised.keys() == {c for c in run.agent.components if c != "temperature"}
            part = only(run.agent)
            for component in part.online:
                mean = part.get_buffer(f"{component}:loss")
                churn = part.get_buffer(f"{component}:churn")
                assert mean > 0 and churn > 0
        parts = made("chain(samples=8)", "ppo")[0]
        stand = Stand(parts)
        stand.learn()
        update = parts.update(stand.memory.batch, parts.plan(stand.tick().clock))
        own = parts.unpenalised["critic"], parts.unpenalised["actor"]
        assert own[0] == parts.config.value_weight * update.metrics["losses/value_loss"]  # type: ignore[attr-defined]
        assert own[1] == update.metrics["losses/policy_loss"]

    def test_outputs_are_compared_with_those_before_the_last_update_of_the_component(self) -> None:
        """An actor that learns every fourth update is compared with itself four updates ago."""
        agent, part = made("chain(weight=1.0, start=0, samples=8)", "redq")
        stand, snapshots = Stand(agent), []
        for _ in range(9):
            before = [p.detach().clone() for p in agent.components["actor"].online.parameters()]
            stand.learn()
            if any(
                not torch.equal(a, b)
                for a, b in zip(before, agent.components["actor"].online.parameters(), strict=True)
            ):
                snapshots.append(before)
        assert len(snapshots) == 2
        for kept, was in zip(part.before["actor"]["actor"].parameters(), snapshots[-1], strict=True):
            assert torch.equal(kept, was)

    @pytest.mark.parametrize(("agent", "churns"), [("ppo, pixels", True), ("sac, pixels", False)])
    def test_the_encoder_belongs_to_the_component_that_trains_it(self, agent: str, churns: bool) -> None:
        """A policy that trains the encoder has churn through it; a policy that only uses it is compared on the
        present features."""
        made_, part = made("chain(weight=1.0, start=0, samples=8)", agent)
        part.after_update(Stand(made_), {})
        made_.unpenalised = {c: torch.ones(()) for c in made_.components}
        with torch.no_grad():
            for p in made_.components["critic"].online.encoder.parameters():
                p.mul_(3.0)
        assert (part.penalty(made_, "actor") > 1e-6) == churns

    def test_before_its_start_it_changes_nothing(self) -> None:
        """Before its penalty begins it only observes: replay, weights and random streams equal those without it."""
        for agent in ("dqn", "sac", "ppo"):
            plain, observed = build_run(agent), build_run(agent, (intervention("chain(start=1000000)"),))
            for run in (plain, observed):
                take_steps(run, 9)
            a, b = (saved(run)[0] for run in (plain, observed))
            for content in (a, b):
                content["agent"]["modules"].pop("interventions")
            assert not differences(a, b), agent

    def test_resume_is_exact(self) -> None:
        straight, stopped = (build_run("sac", (intervention(Chain.example),)) for _ in range(2))
        take_steps(straight, 12)
        take_steps(stopped, 7)
        resumed = build_run("sac", (intervention(Chain.example),), seed=9)
        resume(resumed, saved(stopped))
        take_steps(resumed, 5)
        assert not differences(current_state(straight), current_state(resumed))

    def test_an_injection_causes_no_churn(self) -> None:
        """The copy opens its injection together with the network."""
        specs = ("plasticity_injection(at=2, of=updates)", "chain(weight=1.0, samples=8)")
        agent = AGENTS["dqn"](interventions=tuple(map(intervention, specs)))
        make_updates(agent, 4)
        part = list(agent.interventions)[1]
        assert part.before["critic"]["critic"].injection.opened == 1  # type: ignore[union-attr, index]

    def test_invalid_specs_are_refused(self) -> None:
        with pytest.raises(ValueError, match="chain: this dqn has no actor; it has critic"):
            made("chain(on=actor)", "dqn")
        with pytest.raises(ValueError, match="must be at least"):
            intervention("chain(ratio=-1)")

    def test_dropout_neither_uses_the_generator_nor_causes_churn(self) -> None:
        agent, part = made("chain(weight=1.0, start=0, samples=8)", "droq")
        part.after_update(Stand(agent), {})
        agent.unpenalised = {"critic": torch.ones(())}
        state = agent.generator.get_state()
        assert part.penalty(agent, "critic") == 0
        assert torch.equal(state, agent.generator.get_state())


def test_predictions_match_the_agents_outputs() -> None:
    """This holds for the agent's own networks, and for copies in their place."""
    for name in ("dqn", "sac", "ppo", "ppo, continuous", "ppo, pixels"):
        agent, other = ALL_AGENTS[name](), ALL_AGENTS[name](seed=1)
        batch = batch_for(agent)
        networks = {c: other.components[c].online for c in other.components}
        for component in (c for c in agent.components if c != "temperature"):
            mine = view(agent).predictions(component, batch.obs, batch.action)
            theirs = view(agent).predictions(component, batch.obs, batch.action, networks)
            assert torch.equal(theirs, view(other).predictions(component, batch.obs, batch.action))
            assert not torch.equal(mine, theirs) and mine.requires_grad
            if component == "actor":
                assert torch.equal(mine, view(agent).decisions(batch))
    agent = ALL_AGENTS["dqn"]()
    taken = view(agent).predictions("critic", batch_for(agent).obs, batch_for(agent).action)
    values = view(agent).values(batch_for(agent))[0]
    assert torch.equal(taken.gather(1, batch_for(agent).action[:, None]).squeeze(1), values)

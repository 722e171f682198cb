"""Plasticity measured directly: the laws of the experiment, and the same experiment implemented independently."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from law_agents import AGENTS, DISCRETE, NET, VECTOR, build_run, differences, resume, saved, take_steps
from no_wait import no_wait
from stand import remember_
from test_agents import batch_for
from torch import Tensor, nn

from pliant.agents import DQN, Agent, Batch, DQNConfig
from pliant.agents.clock import Clock
from pliant.agents.networks import Injection, NetworkConfig, all_layers
from pliant.agents.views import view
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build
from pliant.monitors import MONITORS
from pliant.monitors.probe import KINDS, MEANINGS, ProbeMonitor
from pliant.monitors.probing import (
    ARMS,
    Bench,
    Budget,
    Probe,
    Streams,
    Subject,
    experiment,
    layers_of,
    pooled,
    probe,
    reinitialise_,
    standardised,
    subjects,
    temporal_difference_targets,
)

TINY: dict[str, Any] = dict(draws=2, steps=3, batch_size=8)


def states(agent: Agent, n: int = 24, seed: int = 0) -> Batch:
    """Transitions that differ from each other."""
    g = torch.Generator().manual_seed(seed)
    shape = (n, *agent.observation.shape)

    def observed() -> Tensor:
        if agent.observation.pixels:
            return torch.randint(int(agent.observation.high) + 1, shape, generator=g).to(torch.uint8)
        return torch.randn(shape, generator=g)

    action: Tensor
    if agent.action.discrete:
        action = torch.randint(agent.action.size, (n,), generator=g)
    else:
        low, high = torch.tensor(agent.action.low), torch.tensor(agent.action.high)
        action = low + (high - low) * torch.rand(n, agent.action.size, generator=g)
    obs, following = observed(), observed()
    reward, over = torch.randn(n, generator=g), torch.rand(n, generator=g) < 0.2
    return Batch.of(obs, action, reward, following, over)


def learned(name: str, updates: int = 20) -> Agent:
    """An agent after some updates, so that its optimizers have state."""
    agent, clock = AGENTS[name](seed=3), Clock()
    batch = batch_for(agent)
    for _ in range(updates):
        clock = clock.stepped(1).updated()
        agent.update(batch, agent.plan(clock))
    return agent


# ------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("name", AGENTS)
def test_an_untrained_agent_equals_its_initial_control_in_every_arm(name: str) -> None:
    agent = AGENTS[name](seed=5)
    probes = probe(agent, states(agent), control="initial", targets=("random", "noise", "replay"), **TINY)
    assert {p.module for p in probes} == set(view(agent).probed(states(agent)))
    for p in probes:
        for arm in ("present", "fresh", "rescaled"):
            assert np.array_equal(p.losses[ARMS.index(arm)], p.losses[0]), (p.module, p.target, arm)
        assert np.isfinite(p.losses).all() and (p.variance > 0).all()


def test_all_ratios_of_an_untrained_agent_are_exactly_one() -> None:
    agent = AGENTS["sac"](seed=5)
    for p in probe(agent, states(agent), control="initial", draws=2, steps=10, batch_size=16):
        assert (p.ratio, p.interval, p.ratio_rescaled, p.ratio_present, p.loss_ratio) == (1, (1, 1), 1, 1, 1)


@pytest.mark.parametrize(
    ("name", "module"), [("dqn", "critic"), ("sac", "critic 1"), ("dqn, minatar, dueling", "encoder")]
)
def test_an_agent_with_the_weights_of_the_control_equals_the_control(name: str, module: str) -> None:
    agent = AGENTS[name](seed=5)
    net = view(agent).probed(states(agent))[module][0]
    reinitialise_(all_layers(net).values(), Streams(7, module, 0, agent.device)("control"))
    budget: dict[str, Any] = dict(modules=[module], steps=6, batch_size=8, seed=7, targets=("random", "noise"))
    for p in probe(agent, states(agent), draws=1, **budget):
        assert np.array_equal(p.losses[ARMS.index("fresh")], p.losses[0])
    for p in probe(agent, states(agent), draws=2, **budget):
        same = p.losses[ARMS.index("fresh")] == p.losses[0]
        assert list(same) == [True, False]


def kill_(net: nn.Module) -> None:
    with torch.no_grad():
        for layer in all_layers(net).values():
            if not layer.is_output:
                layer.linear.bias.fill_(-1e6)


@pytest.mark.parametrize("relative", [True, False])
def test_a_dead_network_learns_at_most_the_mean(relative: bool) -> None:
    agent = AGENTS["sac"](seed=1)
    kill_(agent.components["critic"].online)
    probes = probe(
        agent,
        states(agent, 64),
        modules=["critic 0"],
        targets=("random", "noise", "replay"),
        draws=1,
        steps=60,
        batch_size=32,
        relative=relative,
        lr=3e-3,
    )
    for p in probes:
        loss, variance = p.losses[0], p.variance
        # Only the bias of the output changes, and at best it learns the mean.
        assert (loss >= variance * (1 - 1e-5)).all() and (loss < variance * 1.15).all()
        assert p.ratio == 0 and p.loss_ratio > 1.1


def test_a_dead_encoder_learns_exactly_nothing() -> None:
    agent = AGENTS["dqn, minatar, dueling"](seed=1)
    kill_(agent.components["critic"].online.encoder)
    for p in probe(agent, states(agent), modules=["encoder"], targets=("random", "noise", "replay"), **TINY):
        np.testing.assert_allclose(p.losses[0], p.variance, rtol=1e-6)
        assert p.ratio == 0 or math.isnan(p.ratio)


@pytest.mark.parametrize("name", ["dqn", "droq", "dqn, impala", "dqn, crelu, orthogonal"])
def test_the_rescaled_control_has_the_norms_of_the_agent(name: str) -> None:
    agent = learned(name)
    with torch.no_grad():
        for i, p in enumerate(agent.components["critic"].online.parameters()):
            p.mul_(1 + i)
    for subject in subjects(agent, states(agent), "replay").values():
        bench = Bench(subject, Budget())
        own = bench.start()
        bench.load_control_(torch.Generator().manual_seed(0))
        fresh = [p.detach().clone() for p in bench.weights]
        bench.rescale_(own)
        theirs = [p for p in subject.module.parameters() if p.requires_grad]
        for mine, its, drawn in zip(bench.weights, theirs, fresh, strict=True):
            if drawn.norm() > 0:  # biases that are initialised with zeros stay zero
                torch.testing.assert_close(mine.norm(), its.norm(), rtol=1e-5, atol=0)
                torch.testing.assert_close(mine * drawn.norm(), drawn * its.norm(), rtol=1e-4, atol=1e-6)
            else:
                assert not mine.any()


@pytest.mark.parametrize("name", AGENTS)
def test_the_probe_does_not_change_the_agent(name: str) -> None:
    agent = learned(name, 3)
    batch = states(agent)
    parameters = [p for _, module in agent.modules() for p in module.parameters()]
    grads = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    before, rng = copy.deepcopy(agent.state_dict()), torch.get_rng_state()
    modes = [(m, m.training) for _, module in agent.modules() for m in module.modules()]
    with no_wait():
        for subject in subjects(agent, batch, "replay").values():
            experiment(subject, ("random", "noise", "replay"), Budget(steps=2, batch_size=4, draws=1), seed=0)
    assert differences(before, agent.state_dict()) == []
    assert torch.equal(rng, torch.get_rng_state())
    assert all(m.training is mode for m, mode in modes)
    assert all(p.grad is grad and (was is None or torch.equal(grad, was)) for p, grad, was in grads)


def test_the_same_seed_gives_the_same_result() -> None:
    agent = learned("sac")
    first, again, other = (probe(agent, states(agent), seed=seed, **TINY).json() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def memorise_(agent: Agent, batch: Batch, tasks: int) -> None:
    """Memorise large random labels, one set after the other, with a fast optimizer."""
    net = agent.components["critic"].online
    adam = torch.optim.Adam(net.parameters(), lr=0.1)
    g = torch.Generator().manual_seed(0)
    for _ in range(tasks):
        labels = 5 * torch.randn(len(batch.obs), generator=g).sign()
        for _ in range(60):
            adam.zero_grad()
            (net(batch.obs)[:, 0, 0] - labels).square().mean().backward()
            adam.step()


def test_memorisation_reduces_plasticity_and_a_new_network_restores_it() -> None:
    config = DQNConfig(network=NetworkConfig(hidden=(32, 32)))
    agent = DQN(VECTOR, DISCRETE, config, seed=1)
    batch = states(agent, 128)
    settings: dict[str, Any] = dict(targets=("random",), draws=6, steps=40, batch_size=32, lr=3e-3)
    new = probe(agent, batch, **settings)["critic", "random"]
    memorise_(agent, batch, 12)
    old = probe(agent, batch, **settings)["critic", "random"]
    assert new.interval[0] <= 1 <= new.interval[1] and 0.9 < new.ratio < 1.1
    assert old.ratio < 0.5 and old.interval[1] < 0.7 and old.loss_ratio > 2


def test_large_outputs_do_not_by_themselves_reduce_plasticity() -> None:
    agent = AGENTS["dqn"](seed=1)
    output = agent.components["critic"].online.advantage
    with torch.no_grad():
        output.linear.bias.fill_(1000.0)
    settings: dict[str, Any] = dict(draws=2, steps=40, batch_size=16, targets=("random",))
    relative, absolute = (
        probe(agent, states(agent), relative=r, **settings)["critic", "random"] for r in (True, False)
    )
    assert 0.7 < relative.ratio < 1.4
    assert absolute.ratio == 0 and absolute.loss_ratio > 1e4


# ------------------------------------------------------------------- an independent implementation of the experiment


def twice(layers: list[Any]) -> nn.Sequential:
    """Linear layers with ReLU between them, in double precision, as plain torch."""
    parts: list[nn.Module] = []
    for layer in layers:
        linear = nn.Linear(layer.linear.in_features, layer.linear.out_features).double()
        linear.load_state_dict(layer.linear.state_dict())
        parts += [linear] if layer.is_output else [linear, nn.ReLU()]
    return nn.Sequential(*parts)


def drawn(net: nn.Module, streams: Streams, purpose: str) -> nn.Sequential:
    other = copy.deepcopy(net)
    reinitialise_(all_layers(other).values(), streams(purpose))
    return twice(list(all_layers(other).values()))


def rescaled(fresh: nn.Sequential, own: nn.Sequential) -> nn.Sequential:
    result = copy.deepcopy(fresh)
    with torch.no_grad():
        for p, q in zip(result.parameters(), own.parameters(), strict=True):
            p.copy_(p / p.norm() * q.norm())
    return result


def reimplemented(
    agent: Agent, batch: Batch, name: str, kind: str, draw: int, steps: int, size: int, seed: int, relative: bool
) -> list[float]:
    """Losses of the arms and the variance of the target, in double precision with torch's own Adam."""
    net, inputs = view(agent).probed(batch)[name]
    x = torch.cat([i.double() for i in inputs], dim=1)
    streams = Streams(seed, name, draw, agent.device)
    order = torch.randint(len(x), (steps, size), generator=streams("order"))
    own, fresh = twice(list(all_layers(net).values())), drawn(net, streams, "control")
    width = own(x).shape[1]
    per_action = agent.action.discrete
    readout = torch.randn(width, 1, generator=streams("readout")).double() / width**0.5

    def read(out: Tensor, index: Tensor) -> Tensor:
        if kind in ("random", "noise"):
            return out
        if per_action:
            return out.gather(1, batch.action[index, None])
        return out if width == 1 else out @ readout

    every = torch.arange(len(x))
    if kind == "random":
        y = drawn(net, streams, "target")(x).detach()
    elif kind == "noise":
        y = torch.randn(len(x), width, generator=streams("noise")).double()
    else:
        y = temporal_difference_targets(agent, batch).double()[:, None]
    y = (y - y.mean(0)) / y.std(0, correction=0)
    result = []
    for arm, start in zip(ARMS, (own, own, fresh, rescaled(fresh, own)), strict=True):
        learner = copy.deepcopy(start)
        expected = y + read(start(x), every).detach() if relative else y
        adam = torch.optim.Adam(learner.parameters(), lr=1e-3)
        if arm == "present":
            held = {p: s for _, o in agent.optimizers() for p, s in o.state.items()}
            for mine, its in zip(learner.parameters(), [p for p in net.parameters() if p.requires_grad], strict=True):
                adam.state[mine] = {
                    key: held[its][key].double().clone() if key != "step" else held[its][key].clone()
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        for index in order:
            adam.zero_grad()
            (read(learner(x[index]), index) - expected[index]).square().mean().backward()
            adam.step()
        result.append((read(learner(x), every) - expected).square().mean().item())
    return [*result, y.square().mean().item()]


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("name", "module"), [("dqn", "critic"), ("sac", "critic 1"), ("sac", "actor")])
def test_it_equals_the_independent_implementation(name: str, module: str, relative: bool) -> None:
    agent = learned(name)
    batch = states(agent)
    kinds = ("random", "noise", "replay")
    probes = probe(
        agent, batch, modules=[module], targets=kinds, draws=2, steps=7, batch_size=5, seed=11, relative=relative
    )
    for kind in kinds:
        p = probes[module, kind]
        for draw in range(2):
            mine = [*p.losses[:, draw], p.variance[draw]]
            np.testing.assert_allclose(
                mine, reimplemented(agent, batch, module, kind, draw, 7, 5, 11, relative), rtol=2e-4
            )


def test_step_counts_per_weight_are_copied() -> None:
    agent = AGENTS["dqn"](interventions=tuple(build(["redo(every=1000)"], INTERVENTIONS)), seed=3)
    plain, batch = AGENTS["dqn"](seed=3), states(AGENTS["dqn"](seed=3))
    for one in (agent, plain):
        clock = Clock()
        for _ in range(10):
            clock = clock.stepped(1).updated()
            one.update(batch, one.plan(clock))
    # Equal weights and moments, once with step counts per weight: equal arms up to rounding.
    pair = [probe(one, batch, targets=("random",), **TINY)["critic", "random"] for one in (agent, plain)]
    np.testing.assert_allclose(pair[0].losses, pair[1].losses, rtol=1e-4)
    with torch.no_grad():
        for state in agent.components["critic"].optimizer.state.values():
            if "filled" in state:
                state["filled"].mul_(0.1)
    young = probe(agent, batch, targets=("random",), **TINY)["critic", "random"]
    assert not np.allclose(young.losses[1], pair[0].losses[1], rtol=1e-3)
    assert np.array_equal(young.losses[0], pair[0].losses[0])


def test_the_present_arm_depends_on_the_optimizer_state() -> None:
    agent = learned("sac")
    plain = probe(agent, states(agent), targets=("random",), **TINY)["critic 0", "random"]
    remember_(agent)
    stuck = probe(agent, states(agent), targets=("random",), **TINY)["critic 0", "random"]
    assert np.array_equal(plain.losses[[0, 2, 3]], stuck.losses[[0, 2, 3]])
    assert not np.array_equal(plain.losses[1], stuck.losses[1])


# -------------------------------------------------------------------------------------------------- targets


def test_temporal_difference_targets_are_those_of_the_agent() -> None:
    agent = AGENTS["dqn, double dueling prioritised 3-step"](seed=2)
    batch = states(agent)
    with torch.no_grad():
        for p in agent.components["critic"].target.parameters():
            p.add_(0.01)
    assert torch.equal(temporal_difference_targets(agent, batch), agent.target(batch))  # type: ignore[attr-defined]
    agent = AGENTS["redq"](seed=2)
    batch = states(agent)
    net, actor = agent.components["critic"], agent.components["actor"].online
    with torch.no_grad():
        following = net.target(batch.next_obs, actor(batch.next_obs)[0].tanh()).squeeze(-1).min(dim=0).values
    torch.testing.assert_close(temporal_difference_targets(agent, batch), batch.reward + batch.discount * following)


def test_targets_of_the_next_task_use_its_batch() -> None:
    agent = learned("dqn")
    here, there = states(agent), states(agent, seed=9)
    budget: dict[str, Any] = dict(draws=2, steps=3, batch_size=8)
    probes = probe(agent, here, targets=("random", "next"), next_batch=there, **budget)
    alone = probe(agent, there, targets=("replay",), **budget)
    assert [p.target for p in probes] == ["random", "next"]
    assert np.array_equal(probes["critic", "next"].losses, alone["critic", "replay"].losses)
    assert np.array_equal(probes["critic", "random"].losses, probe(agent, here, **budget)["critic", "random"].losses)


def test_targets_are_standardised() -> None:
    x = torch.tensor([[1.0, 5.0, 1e3], [3.0, 5.0, 1e3 + 1e-4], [8.0, 5.0, 1e3]])
    y = standardised(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3))
    torch.testing.assert_close(y.square().mean(0), torch.tensor([1.0, 0.0, 0.0]))
    assert torch.isfinite(y).all() and y[0, 0] < y[1, 0] < y[2, 0]


def test_a_constant_target_gives_no_ratio() -> None:
    agent = AGENTS["dqn"](seed=1)
    batch = states(agent)
    batch = batch.replace(reward=torch.zeros_like(batch.reward), discount=torch.zeros_like(batch.discount))
    p = probe(agent, batch, targets=("replay",), **TINY)["critic", "replay"]
    assert math.isnan(p.ratio) and all(map(math.isnan, p.interval)) and p.json()["ratio"] is None


def test_all_arms_share_the_readout_of_an_encoder_to_a_few_outputs() -> None:
    agent = AGENTS["dqn, minatar, dueling"](seed=1)
    subject = subjects(agent, states(agent), "replay")["encoder"]
    bench = Bench(subject, Budget(outputs=3))
    bench.draw_readouts(torch.Generator().manual_seed(0))
    out = bench.outputs()
    assert bench.full is not None and bench.single is not None
    torch.testing.assert_close(bench.read("random", out), out @ bench.full)
    assert bench.read("noise", out).shape == (24, 3) and bench.read("replay", out).shape == (24, 1)
    assert bench.goal("noise", Streams(0, "encoder", 0, agent.device)).shape == (24, 3)
    assert 0.7 < bench.full.square().sum(0).mean() < 1.3


def test_a_head_with_several_outputs_is_projected_for_the_action_taken() -> None:
    config = DQNConfig(network=NET, value_loss="c51")
    agent = DQN(VECTOR, DISCRETE, config, seed=0)
    batch = states(agent)
    bench = Bench(subjects(agent, batch, "replay")["critic"], Budget())
    bench.draw_readouts(torch.Generator().manual_seed(0))
    out = bench.outputs()
    assert bench.single is not None and bench.single.shape == (51, 1)
    expected = torch.stack([out[i, a] @ bench.single for i, a in enumerate(batch.action.tolist())])
    torch.testing.assert_close(bench.read("replay", out), expected)
    index = torch.tensor([3, 1])
    torch.testing.assert_close(bench.read("replay", out[index], index), expected[index])


def test_a_fresh_module_has_no_open_injection() -> None:
    agent = AGENTS["dqn"](interventions=tuple(build(["plasticity_injection(at=100000)"], INTERVENTIONS)), seed=3)
    net = agent.components["critic"].online
    room = next(m for m in net.modules() if isinstance(m, Injection))
    room.opened = 1
    with torch.no_grad():
        for p in room.old[0].parameters():
            p.fill_(1.0)
    subject = subjects(agent, states(agent), "replay")["critic"]
    bench = Bench(subject, Budget())
    own = bench.start()
    assert torch.equal(own.outputs, net(states(agent).obs))
    bench.load_control_(torch.Generator().manual_seed(0))
    fresh = bench.start()
    assert own.opened == [1] and fresh.opened == [0]
    bench.load_(own)
    assert torch.equal(bench.outputs(), own.outputs)
    bench.load_(fresh)
    assert torch.equal(bench.outputs(), fresh.outputs) and room.opened == 1


def test_dropout_is_disabled() -> None:
    agent = AGENTS["droq"](seed=1)
    subject = subjects(agent, states(agent), "replay")["critic 0"]
    bench = Bench(subject, Budget())
    assert torch.equal(bench.outputs(), bench.outputs())


def test_an_external_module_can_be_probed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(40, 4)
    net(x)  # running statistics
    before = copy.deepcopy(net.state_dict())
    subject = Subject("net", net, (x,))
    budget = Budget(steps=30, batch_size=16, draws=4)
    rows = experiment(subject, ["random", "noise"], budget, seed=0)
    p = Probe.of("net", "random", rows["random"].numpy())
    assert 0.6 < p.ratio < 1.6 and math.isnan(p.ratio_present)
    assert differences(before, net.state_dict()) == [] and net.training
    with torch.no_grad():
        net[0].weight.zero_()
        net[1].bias.fill_(-1e6)
    dead = Probe.of("net", "random", experiment(subject, ["random"], budget, seed=0)["random"].numpy())
    assert dead.ratio == 0
    bench = Bench(subject, budget)
    reinitialise_(layers_of(bench.net, bench.inputs).values(), torch.Generator().manual_seed(1))
    assert torch.equal(bench.net[1].running_var, torch.ones(16)) and bench.net[1].bias.eq(0).all()  # type: ignore[index]


# ------------------------------------------------------------------------------------------------ statistics


def example_probe() -> Probe:
    rng = np.random.default_rng(0)
    variance = rng.uniform(0.9, 1.0, 10)
    share = np.stack([0.5 + 0.05 * rng.random(10), 0.9 - 0.1 * rng.random(10), 0.2 * rng.random(10), np.full(10, 0.5)])
    return Probe.of("critic", "random", np.concatenate([share * variance, variance[None]]), seed=4)


def test_ratio_and_interval_equal_those_of_plain_loops() -> None:
    p = example_probe()
    fits = {arm: [1 - p.losses[i][k] / p.variance[k] for k in range(10)] for i, arm in enumerate(ARMS)}
    mean = {arm: sum(values) / 10 for arm, values in fits.items()}
    assert p.ratio == pytest.approx(mean["agent"] / mean["fresh"])
    assert p.ratio_present == pytest.approx(mean["present"] / mean["fresh"])
    assert p.ratio_rescaled == pytest.approx(mean["agent"] / mean["rescaled"])
    assert p.loss_ratio == pytest.approx(sum(p.losses[0]) / sum(p.losses[2]))
    ratios = []
    for chosen in np.random.default_rng(4).integers(10, size=(2000, 10)):
        ratios.append(sum(fits["agent"][k] for k in chosen) / sum(fits["fresh"][k] for k in chosen))
    ratios.sort()
    low, high = p.interval
    assert low == pytest.approx(ratios[49]) and high == pytest.approx(ratios[1949])
    assert low < p.ratio < high


def test_the_interval_resamples_pairs_together() -> None:
    fresh = np.linspace(0.1, 0.9, 10)
    p = Probe("m", "random", np.stack([1 - 0.5 * fresh, 1 - fresh, 1 - fresh, 1 - fresh]), np.ones(10))
    assert p.ratio == pytest.approx(0.5) and p.interval == pytest.approx((0.5, 0.5))


def test_arms_that_learn_nothing_give_zero_or_no_ratio() -> None:
    one = np.ones(5)
    nothing = Probe("m", "random", np.stack([3 * one, one, 0.5 * one, one]), one)
    assert (nothing.ratio, nothing.interval) == (0, (0, 0)) and math.isnan(nothing.ratio_rescaled)
    vain = Probe("m", "random", np.stack([0.5 * one, one, 2 * one, one]), one)
    assert math.isnan(vain.ratio) and all(map(math.isnan, vain.interval))
    wild = Probe("m", "random", np.stack([0.5 * one, one, np.array([0.1, 2, 2, 0.1, 0.1]), one]), one)
    assert wild.interval[1] == math.inf
    lost = Probe("m", "random", np.stack([math.nan * one, one, 0.5 * one, one]), one)
    assert math.isnan(lost.ratio) and lost.json()["fits"]["agent"] == [None] * 5


def test_pooling_averages_the_fits() -> None:
    a, b = (
        example_probe(),
        Probe.of("critic", "random", 3 * np.random.default_rng(1).uniform(0.1, 0.5, (5, 10)), seed=4),
    )
    both = pooled("critic", [a, b])
    for arm in ARMS:
        np.testing.assert_allclose(both.fits[arm], (a.fits[arm] + b.fits[arm]) / 2)
    assert both.module == "critic" and both.target == "random"


def test_a_table_and_json_hold_the_results() -> None:
    agent = learned("sac")
    probes = probe(agent, states(agent), draws=2, steps=20, batch_size=16)
    lines = probes.table().splitlines()
    assert len(lines) == 1 + 3 * 2 and lines[0].split()[:3] == ["module", "target", "ratio"]
    p = probes["critic 0", "random"]
    row = next(line for line in lines if line.startswith("critic 0  random"))
    assert f"{p.ratio:.3f}" in row and f"{p.interval[0]:.3f} … {p.interval[1]:.3f}" in row
    content = probes.json()
    assert content["budget"]["steps"] == 20 and len(content["probes"]) == 6
    assert content["probes"][0]["ratio"] == p.ratio and content["probes"][0]["fits"]["agent"] == list(p.fits["agent"])


# --------------------------------------------------------------------------------------------------- refusals


def bad(**changes: Any) -> Callable[[], Any]:
    def run() -> Any:
        agent = AGENTS["dqn"]()
        return probe(agent, states(agent), **({**TINY, **changes}))

    return run


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (bad(targets=("randon",)), "unknown target 'randon'. Did you mean 'random'"),
        (bad(targets=("next",)), "need both"),
        (bad(modules=["critc"]), "no module 'critc' to be probed. Did you mean 'critic'"),
        (bad(control="old"), "'drawn' or 'initial'"),
        (bad(control="born"), "called control='initial' now"),  # a former name
        (bad(draws=0), "draws must be at least 1"),
        (bad(lr=0.0), "lr must be above 0, not 0"),
        (lambda: ProbeMonitor(targets=("next",)), "a run has no next task"),
        (lambda: ProbeMonitor(targets=()), "targets must be among"),
        (lambda: ProbeMonitor(steps=0), "steps must be at least 1"),
        (lambda: ProbeMonitor(samples=0), "samples must be at least 1"),
        (lambda: ProbeMonitor(draws=0), "draws must be at least 1"),
        (lambda: build_run("sac", monitors=["probe(modules=critic.7)"]), "critic.7|cannot be a value"),
        (lambda: build_run("sac", monitors=["probe(modules='critic.7')"]), "no module 'critic.7'"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------- monitor


def measured(name: str, *specs: str, steps: int = 8) -> Any:
    run = build_run(name, monitors=specs or [ProbeMonitor.example])
    take_steps(run, steps)
    return run


@pytest.mark.parametrize("name", AGENTS)
def test_its_readings_are_plausible_and_the_run_is_unchanged(name: str) -> None:
    run, alone = measured(name, steps=6), build_run(name)
    take_steps(alone, 6)
    assert differences(run.agent.state_dict(), alone.agent.state_dict()) == []
    run.monitors.arrive()
    readings = run.monitors.readings
    places = {key.partition("/")[0] for key in readings}
    critics = getattr(run.agent.config, "critics", 1)
    expected = {"critic", *({f"critic.{i}" for i in range(critics)} if critics > 1 else ())}
    expected |= {"actor"} if "actor" in run.agent.components else set()
    expected |= {"encoder"} if run.agent.observation.pixels else set()
    assert places == expected
    metrics = {key.partition("/")[2] for key in readings}
    assert metrics == {m.format(kind) for kind in ("random", "replay") for m in MEANINGS} <= set(ProbeMonitor.metrics)
    assert all(np.isfinite(value) for key, (value, _) in readings.items() if "fit" in key or "loss" in key)


@pytest.mark.parametrize("name", ["dqn, minatar, dueling", "droq"])
def test_a_resumed_run_measures_the_same(name: str) -> None:
    straight = measured(name, steps=6)
    state = saved(straight)
    take_steps(straight, 3)
    resumed = build_run(name, monitors=[ProbeMonitor.example])
    resume(resumed, state)
    take_steps(resumed, 3)
    assert differences(saved(straight)[0], saved(resumed)[0]) == []


def test_the_monitor_measures_the_same_as_the_function() -> None:
    run = build_run("sac", monitors=["probe(every=4, steps=6, batch_size=8, samples=16, draws=3, lr=0.003)"])
    part = run.monitors.parts["probe"]  # type: ignore[union-attr]
    expected: list[Any] = []
    original = part.measure

    def both(context: Any) -> Iterator[Any]:
        batch = context.batch(16, "probe")
        expected.append(
            probe(context.agent, batch, draws=3, steps=6, batch_size=8, lr=0.003, seed=context.seed("probe"))
        )
        with no_wait():
            yield from list(original(context))

    part.measure = both
    while not expected:
        take_steps(run, 1)
    take_steps(run, 1)
    readings = run.monitors.readings  # type: ignore[union-attr]
    for name, place in (("critic 0", "critic.0"), ("critic 1", "critic.1"), ("actor", "actor")):
        for kind in ("random", "replay"):
            p = expected[0][name, kind]
            ratio = f"{place}/plasticity_ratio_{kind}"
            assert readings[ratio][0] == pytest.approx(p.ratio, nan_ok=True)
            assert readings[f"{ratio}_rescaled"][0] == pytest.approx(p.ratio_rescaled, nan_ok=True)
            assert readings[f"{ratio}_present_optimizer"][0] == pytest.approx(p.ratio_present, nan_ok=True)
            assert readings[f"{place}/probe_loss_ratio_{kind}"][0] == pytest.approx(p.loss_ratio)
            assert readings[f"{place}/probe_fit_{kind}"][0] == pytest.approx(p.fits["agent"].mean())
            assert readings[f"{place}/probe_fit_{kind}_fresh"][0] == pytest.approx(p.fits["fresh"].mean())
    both_critics = pooled("critic", [expected[0][f"critic {i}", "random"] for i in range(2)])
    assert readings["critic/plasticity_ratio_random"][0] == pytest.approx(both_critics.ratio)
    low, high = (readings[f"critic/plasticity_ratio_random_{end}"][0] for end in ("low", "high"))
    assert low <= both_critics.ratio <= high


def test_one_member_of_an_ensemble_can_be_probed_alone() -> None:
    spec = "probe(every=3, steps=1, batch_size=4, samples=8, draws=2, modules='critic.2', targets=noise)"
    run = measured("redq", spec)
    run.monitors.arrive()
    assert {key.partition("/")[0] for key in run.monitors.readings} == {"critic.2"}


def test_a_trigger_may_wait_for_a_probe() -> None:
    spec = "redo(when='critic/plasticity_ratio_random < 10')"
    run = build_run("sac", tuple(build([spec], INTERVENTIONS)), monitors=[ProbeMonitor.example])
    take_steps(run, 2)
    assert MONITORS["probe"] is ProbeMonitor
    assert len(ProbeMonitor.metrics) == len(KINDS) * len(MEANINGS)


def test_its_default_budget_depends_on_the_kind_of_observation() -> None:
    for name, budget, samples in (("sac", (100, 64), 512), ("dqn, nature", (60, 16), 256)):
        part = build_run(name, monitors=["probe"]).monitors.parts["probe"]  # type: ignore[union-attr]
        assert (part.budget.steps, part.budget.batch_size, part.states) == (*budget, samples)
        assert part.budget == replace(Budget(), steps=budget[0], batch_size=budget[1]) and part.when.period == 250_000

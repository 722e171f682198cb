"""The unit graph on every architecture, and surgery compared with numbers computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from no_wait import no_wait
from stand import ks
from test_networks import ATARI, CONFIG, NETWORKS, SMALL, VECTOR, generator, observe
from torch import Tensor, nn

from pliant.agents import DQN, DQNConfig
from pliant.agents.networks import Actor, Critic, Layer, NetworkConfig, QNetwork
from pliant.agents.optimizers import Adam, OptimizerConfig
from pliant.common.spaces import ObservationSpec
from pliant.interventions.core.recycling import at_inputs
from pliant.interventions.core.surgery import (
    Chosen,
    Optimizers,
    blend_layer_,
    copy_layer_,
    fold_into_bias_,
    forget_,
    load_layer_,
    reinit_units_,
)
from pliant.interventions.core.units import UnitGraph, Units, agent_graph, unit_graph

Case = tuple[nn.Module, Callable[[], Tensor], UnitGraph]


def q_network(name: str) -> Case:
    spec, make = NETWORKS[name]
    network, obs = make(), observe(spec, 2)
    return network, lambda: network(obs), unit_graph(network, lambda: network(torch.zeros_like(obs[:1])))


def critic(pixels: bool, activation: str) -> Case:
    spec = ATARI if pixels else VECTOR
    config = replace(CONFIG, activation=activation, width=0.5)
    network = Critic(spec, 3, 1, config, generator(), size=3, projection=8)
    obs, action = observe(spec, 2), torch.rand(2, 3, generator=generator(1))
    blank = torch.zeros_like(obs[:1])
    return network, lambda: network(obs, action), unit_graph(network, lambda: network(blank, torch.zeros(1, 3)))


class Shared(nn.Module):
    """An encoder with two kinds of consumers: critics, and an actor."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = Critic(SMALL, 2, 1, CONFIG, generator(), size=2, projection=8)
        self.actor = Actor(self.critic.encoder.features, 2, CONFIG, generator(3), projection=8)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        mean, log_std = self.actor(self.critic.encoder(obs))
        return (
            torch.cat([self.critic(obs, action).flatten(1), mean.view(1, -1), log_std.view(1, -1)], dim=1)
            if len(obs) == 1
            else torch.cat([self.critic(obs, action).flatten(), mean.flatten(), log_std.flatten()])
        )


def shared() -> Case:
    network = Shared()
    obs, action = observe(SMALL, 2), torch.zeros(2, 2)

    def blank() -> None:
        encoded = network.critic.encoder(torch.zeros(1, *SMALL.shape, dtype=torch.uint8))
        network.critic.values(encoded, torch.zeros(1, 2))
        network.actor(encoded)

    return network, lambda: network(obs, action), unit_graph(network, blank)


CASES: dict[str, Callable[[], Case]] = {name: lambda name=name: q_network(name) for name in NETWORKS} | {
    "three critics": lambda: critic(False, "relu"),
    "three critics, crelu": lambda: critic(False, "crelu"),
    "three critics from pixels": lambda: critic(True, "relu"),
    "an encoder that critics and actor read": shared,
}


class Silence(nn.Module):
    """Holds one unit (all its copies) at zero."""

    def __init__(self, layer: Layer, unit: int) -> None:
        super().__init__()
        self.inner, self.places = layer.activation, [unit + k * layer.units for k in range(layer.copies)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).clone()
        x[:, self.places] = 0.0
        return x


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_zeroing_owned_inputs_equals_holding_the_unit_at_zero(name: str) -> None:
    """The law of units."""
    _, forward, graph = CASES[name]()
    plain = forward()
    assert graph and all(units.resettable for units in graph.values())
    moved = 0
    for units in graph.values():
        for unit in sorted({0, 1, units.count // 2, units.count - 1}):
            activation = units.layer.activation
            units.layer.activation = Silence(units.layer, unit)
            held = forward()
            units.layer.activation = activation
            kept = [(r.layer.linear.weight, r.layer.linear.weight.clone()) for r in units.consumers]
            for consumer in units.consumers:
                consumer.layer.linear.weight[:, consumer.owner == unit] = 0.0
            cut = forward()
            for weight, old in kept:
                weight.copy_(old)
            torch.testing.assert_close(cut, held, atol=1e-6, rtol=1e-5)
            moved += not torch.allclose(held, plain, atol=1e-7)
    assert moved > 0, "no unit had an effect: the test checked nothing"
    assert torch.equal(forward(), plain)


def test_the_graph_equals_one_derived_by_hand() -> None:
    network = QNetwork(SMALL, 3, 1, NetworkConfig(hidden=(5,), activation="crelu"), generator())
    graph = unit_graph(network, lambda: network(torch.zeros(1, *SMALL.shape, dtype=torch.uint8)))
    conv, dense = graph.values()
    # 16 channels of 8 x 8 positions, flattened channel by channel; the second half is the negative copy.
    expected = torch.arange(16).repeat(2).repeat_interleave(64)
    assert [r.layer for r in conv.consumers] == [dense.layer]
    assert torch.equal(conv.consumers[0].owner, expected)
    assert torch.equal(dense.consumers[0].owner, torch.arange(5).repeat(2))


def test_all_consumers_of_a_dueling_encoder_are_in_the_graph() -> None:
    network = QNetwork(SMALL, 3, 1, CONFIG, generator(), dueling=True)
    graph = unit_graph(network, lambda: network(torch.zeros(1, *SMALL.shape, dtype=torch.uint8)))
    consumers = [r.layer for r in next(iter(graph.values())).consumers]
    assert consumers == [network.head.layers[0], network.value_head.layers[0]]


def test_actions_and_observations_are_not_units() -> None:
    network, _, graph = critic(False, "relu")
    first = network.members[0].body.layers[0]  # type: ignore[union-attr]
    assert not any(r.layer is first for units in graph.values() for r in units.consumers)


# ------------------------------------------------------------------------------------------------------ surgery


Trained = tuple[QNetwork, UnitGraph, torch.optim.Optimizer]


def trained() -> Trained:
    """A network whose optimizer has state for every weight."""
    network = QNetwork(VECTOR, 3, 1, NetworkConfig(hidden=(6, 5), norm="layer_norm"), generator())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for seed in range(3):
        optimizer.zero_grad()
        network(observe(VECTOR, 16, seed)).square().mean().backward()
        optimizer.step()
    for state in optimizer.state.values():
        state["exp_avg"].fill_(1.0)
        state["exp_avg_sq"].fill_(2.0)
    graph = unit_graph(network, lambda: network(torch.zeros(1, 7)))
    for units in graph.values():
        for consumer in units.consumers:  # sorted and compared once, on the host
            assert len(consumer.columns) == units.count and consumer.in_order in (True, False)
    return network, graph, optimizer


def chosen(units: int, *which: int) -> Chosen:
    return Chosen.where(torch.from_numpy(np.array([i in which for i in range(units)])))


def test_the_optimizer_of_a_parameter_is_looked_up_by_identity() -> None:
    p, q, free = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    first, second = torch.optim.Adam([p], amsgrad=True), torch.optim.SGD([q], lr=0.1, momentum=0.9)
    optimizers = Optimizers([first, second])
    assert optimizers.memory(p) == {} and not first.state, "a query must not create a state"
    for parameter, optimizer in ((p, first), (q, second)):
        parameter.grad = torch.ones(2)
        optimizer.step()
    assert set(optimizers.memory(p)) == {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert set(optimizers.memory(q)) == {"momentum_buffer"}
    assert optimizers.step(p) is first.state[p]["step"] and optimizers.step(q) is None
    assert optimizers.memory(free) == {} and optimizers.step(free) is None
    for parameter in (p, free):  # torch's own optimizers have no step counts per weight, and none trains `free`
        optimizers.count_per_weight(parameter)
    assert "filled" not in first.state[p]
    mine = Adam([free], OptimizerConfig())
    Optimizers([mine]).count_per_weight(free)
    assert set(Optimizers([mine]).memory(free)) == {"exp_avg", "exp_avg_sq", "filled", "filled_sq"}


def test_resetting_the_state_of_a_parameter_restarts_its_optimizer() -> None:
    network, _, optimizer = trained()
    parameter, other = network.advantage.linear.weight, network.advantage.linear.bias
    step = optimizer.state[parameter]["step"]
    with no_wait():
        forget_(Optimizers([optimizer]), parameter)
    assert optimizer.state[parameter]["step"] is step, "the counter may be on the device, so it must not be replaced"
    assert not any(value.any() for value in optimizer.state[parameter].values())
    assert optimizer.state[other]["step"].item() == 3.0 and (optimizer.state[other]["exp_avg"] == 1.0).all()
    parameter.grad = torch.ones_like(parameter)
    before = parameter.detach().clone()
    optimizer.step()
    torch.testing.assert_close(before - parameter, torch.full_like(parameter, 1e-3))


def test_recycled_units_are_new_and_their_neighbours_are_unaffected() -> None:
    network, graph, optimizer = trained()
    first, second = graph.values()
    before = {n: p.clone() for n, p in network.named_parameters()}
    with no_wait():
        reinit_units_(
            graph, {first.name: chosen(6, 0), second.name: chosen(5, 1)}, Optimizers([optimizer]), generator(9)
        )
    expected = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in network.named_parameters()}
    for units, row in ((first, 0), (second, 1)):
        for key in ("linear.weight", "linear.bias", "norm.weight", "norm.bias"):
            expected[f"{units.name}.{key}"][row] = True
    expected[f"{second.name}.linear.weight"][:, 0] = True
    expected["advantage.linear.weight"][:, 1] = True
    for name, parameter in network.named_parameters():
        touched = expected[name]
        assert torch.equal(parameter[~touched], before[name][~touched]), name
        state = optimizer.state[parameter]
        for moment, value in (("exp_avg", 1.0), ("exp_avg_sq", 2.0)):
            assert torch.equal(state[moment], torch.where(touched, 0.0, value)), (name, moment)
        assert state["step"].item() == 3.0
    weight = second.layer.linear.weight
    assert (weight[:, 0] == 0).all(), "outgoing weights are zeroed after incoming ones are drawn"
    assert (weight[1, 1:] != before[f"{second.name}.linear.weight"][1, 1:]).all()
    assert (network.advantage.linear.weight[:, 1] == 0).all()
    assert first.layer.linear.weight[0].abs().max() <= 1 / math.sqrt(7)
    assert (first.layer.norm.weight[0], first.layer.norm.bias[0]) == (1.0, 0.0)  # type: ignore[union-attr, index]


def test_outgoing_weights_can_stay_unchanged() -> None:
    _, graph, optimizer = trained()
    first, second = graph.values()
    before = second.layer.linear.weight.detach().clone()
    reinit_units_(graph, {first.name: chosen(6, 0)}, Optimizers([optimizer]), generator(9), outgoing=False)
    assert torch.equal(second.layer.linear.weight, before)
    assert (optimizer.state[second.layer.linear.weight]["exp_avg"] == 1.0).all()
    assert not optimizer.state[first.layer.linear.weight]["exp_avg"][0].any()


def test_recycling_a_dead_unit_changes_no_prediction() -> None:
    network = QNetwork(VECTOR, 3, 1, NetworkConfig(hidden=(6, 5)), generator())
    optimizers = Optimizers([torch.optim.Adam(network.parameters())])
    graph = unit_graph(network, lambda: network(torch.zeros(1, 7)))
    first = next(iter(graph.values()))
    with torch.no_grad():
        first.layer.linear.bias[2] = -1e6
    obs = observe(VECTOR, 32)
    before = network(obs)
    reinit_units_(graph, {first.name: chosen(6, 2)}, optimizers, generator(1))
    assert torch.equal(network(obs), before)
    assert first.layer.linear.bias[2] > -1


def test_the_draw_depends_only_on_the_number_of_candidates() -> None:
    streams, drawn = [], []
    for mask in (torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool), torch.arange(6) == 3):
        _, graph, optimizer = trained()
        g = generator(4)
        reinit_units_(graph, {next(iter(graph)): Chosen.where(mask)}, Optimizers([optimizer]), g)
        streams.append(g.get_state())
        drawn.append(next(iter(graph.values())).layer.linear.weight)
    assert torch.equal(streams[0], streams[1]) and torch.equal(streams[0], streams[2])
    assert torch.equal(drawn[1][3], drawn[2][3])


def test_only_valid_units_chosen_by_index_are_changed() -> None:
    network, graph, optimizer = trained()
    first, second = graph.values()
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    pick = Chosen(torch.tensor([4, 1, 5]), torch.tensor([True, False, True]))
    with no_wait():
        reinit_units_(graph, {first.name: pick}, Optimizers([optimizer]), generator(3))
    changed = (first.layer.linear.weight != before[f"{first.name}.linear.weight"]).any(1)
    assert changed.tolist() == [False, False, False, False, True, True]
    forgotten = (optimizer.state[first.layer.linear.bias]["exp_avg"] == 0.0).tolist()
    assert forgotten == [False, False, False, False, True, True]
    silent = (second.layer.linear.weight == 0.0).all(0)
    assert silent.tolist() == [False, False, False, False, True, True]


@pytest.mark.parametrize("init", ["torch", "orthogonal"])
@pytest.mark.parametrize("count", [3, 40])
def test_units_are_drawn_from_the_initialiser_of_their_layer(init: str, count: int) -> None:
    """For a few rows and for all rows: their distribution is that of initial rows (Kolmogorov-Smirnov)."""
    layer = Layer(nn.utils.skip_init(nn.Linear, 30, 40), generator(), init=init, norm="layer_norm")
    g, repeats = generator(1), 40 if count > 3 else 400
    drawn = [layer.fresh_units(count, g) for _ in range(repeats)]
    assert all(d["linear.weight"].shape == (count, 30) and d["linear.bias"].shape == (count,) for d in drawn)
    assert all((d["norm.weight"] == 1).all() and (d["norm.bias"] == 0).all() for d in drawn)
    new = torch.cat([d["linear.weight"].flatten() for d in drawn])
    initial = torch.cat([layer.fresh(g)["linear.weight"].flatten() for _ in range(40)])
    assert ks(new, initial) < 1.95
    norms = torch.cat([d["linear.weight"].square().sum(1) for d in drawn])
    assert norms.mean().item() == pytest.approx(30 * initial.square().mean().item(), rel=0.03)
    biases = torch.cat([d["linear.bias"] for d in drawn])
    bound = 1 / math.sqrt(30)
    if init == "orthogonal":
        assert not biases.any()
    else:
        assert ks(biases, torch.linspace(-bound, bound, 20_000)) < 1.95
        assert new.abs().max() <= bound and new.abs().max() > 0.999 * bound


def test_the_initialiser_differs_from_that_of_public_reimplementations() -> None:
    """With 512 inputs initial weights are within 0.0441942; kaiming with gain sqrt 2 would be sqrt 6 times as large."""
    layer = Layer(nn.utils.skip_init(nn.Linear, 512, 64), generator())
    largest = layer.fresh_units(8, generator(1))["linear.weight"].abs().max().item()
    assert 0.0441 < largest <= 0.0441942
    assert math.sqrt(6 / 512) == pytest.approx(0.1082532, abs=1e-7)


def silence(units: Units, unit: int) -> None:
    for consumer in units.consumers:
        with torch.no_grad():
            consumer.weight[:, consumer.columns[unit]] = 0.0


@pytest.mark.parametrize("name", ["mlp", "crelu", "conv to linear", "conv to conv", "dueling"])
def test_the_folded_bias_is_the_mean_contribution_of_a_unit(name: str) -> None:
    """If every copy of a unit is at its mean, zeroing it after folding changes nothing."""
    body = dict(body="drq", width=0.1) if name == "conv to conv" else {}
    config = NetworkConfig(hidden=(6,), activation="crelu" if name == "crelu" else "relu", **body)  # type: ignore[arg-type]
    spec = {"conv to linear": SMALL, "conv to conv": ObservationSpec((2, 21, 21), torch.uint8, 255.0)}.get(name, VECTOR)
    network = QNetwork(spec, 3, 1, config, generator(), dueling=name == "dueling")
    graph = unit_graph(network, lambda: network(torch.zeros(1, *spec.shape, dtype=spec.dtype)))
    units, obs = next(iter(graph.values())), observe(spec, 5)
    means = torch.linspace(0.5, 1.5, units.count * units.layer.copies)
    plain, held = network(obs), HoldAt(units.layer, 1, means)
    units.layer.activation = held
    before = network(obs)
    assert not torch.allclose(plain, before, atol=1e-4), "the unit had no effect: the test checked nothing"
    for consumer in units.consumers:
        at = at_inputs(consumer, units, means[:, None].expand(-1, consumer.columns.numel() // len(means)))
        fold_into_bias_(consumer, Chosen(torch.tensor([1, 0]), torch.tensor([True, False])), at)
    silence(units, 1)
    torch.testing.assert_close(network(obs), before, atol=1e-5, rtol=1e-4)


class HoldAt(nn.Module):
    """Holds every copy of one unit at its mean, at all positions."""

    def __init__(self, layer: Layer, unit: int, means: Tensor) -> None:
        super().__init__()
        self.inner, self.means = layer.activation, means
        self.places = [unit + k * layer.units for k in range(layer.copies)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).clone()
        for place in self.places:
            x[:, place] = self.means[place]
        return x


def test_folding_without_a_bias_does_nothing() -> None:
    network = QNetwork(VECTOR, 3, 1, NetworkConfig(hidden=(6,)), generator())
    graph = unit_graph(network, lambda: network(torch.zeros(1, 7)))
    consumer = next(iter(graph.values())).consumers[0]
    consumer.layer.linear.bias = None  # type: ignore[assignment]
    fold_into_bias_(consumer, chosen(6, 0), torch.ones(6))


def test_a_layer_is_reinitialised_with_its_optimizer_state() -> None:
    network, graph, optimizer = trained()
    layer = next(iter(graph.values())).layer
    fresh = layer.fresh(generator(2))
    load_layer_(layer, fresh, Optimizers([optimizer]))
    for key, parameter in layer.named_parameters():
        assert torch.equal(parameter, fresh[key])
        state = optimizer.state[parameter]
        assert state["step"].item() == 0.0 and not state["exp_avg"].any() and not state["exp_avg_sq"].any()
    other = network.advantage.linear.weight
    assert optimizer.state[other]["step"].item() == 3.0 and (optimizer.state[other]["exp_avg"] == 1.0).all()


def test_a_layer_can_keep_its_norm_and_its_optimizer_state() -> None:
    _, graph, optimizer = trained()
    layer = next(iter(graph.values())).layer
    old = {k: p.detach().clone() for k, p in layer.named_parameters()}
    fresh = layer.fresh(generator(2))
    load_layer_(layer, fresh, None, norms=False)
    for key, parameter in layer.named_parameters():
        assert torch.equal(parameter, old[key] if key.startswith("norm") else fresh[key])
        assert (optimizer.state[parameter]["exp_avg"] == 1.0).all()


@pytest.mark.parametrize(("t", "factor"), [(1, 0.316228), (10, 0.153189), (100, 0.308566), (1000, 0.795176)])
def test_zeroing_the_shared_step_count_slows_the_neighbours_down(t: int, factor: float) -> None:
    """This is the reason for step counts per weight; the numbers are those of torch's Adam."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=1.0, eps=0.0)
    p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state[p]
    state["exp_avg"].fill_(1.0), state["exp_avg_sq"].fill_(1.0)
    state["step"].zero_()
    for _ in range(t):
        before = p.detach().clone()
        optimizer.step()
    assert (before - p).detach()[0].item() == pytest.approx(factor, abs=1e-5)


def test_a_blend_equals_numbers_computed_by_hand() -> None:
    layer = next(iter(trained()[1].values())).layer
    old = {k: p.clone() for k, p in layer.named_parameters()}
    drawn = layer.fresh(generator(7))
    blend_layer_(layer, drawn, 0.5, 0.25)
    for key, parameter in layer.named_parameters():
        expected = 0.5 * old[key] + 0.25 * drawn[key] if key.startswith("linear") else old[key]
        torch.testing.assert_close(parameter, expected)


def test_a_copied_layer_holds_the_same_numbers_in_its_own_tensors() -> None:
    first, second = (Layer(nn.utils.skip_init(nn.Conv2d, 2, 3, 3), generator(s), norm="layer_norm") for s in (1, 2))
    assert not torch.equal(first.linear.weight, second.linear.weight)
    before = [(id(p), p.data_ptr()) for p in first.parameters()]
    copy_layer_(first, second)
    assert before == [(id(p), p.data_ptr()) for p in first.parameters()]
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with torch.no_grad():
        second.linear.weight.add_(1.0)
    assert not torch.equal(first.linear.weight, second.linear.weight)


def test_copies_of_a_head_are_consumers_of_the_encoder_before_they_are_opened() -> None:
    """Recycling a channel must also zero its weights in heads that an injection freezes later."""
    config = DQNConfig(network=NetworkConfig(hidden=(5,), injections=1))
    agent = DQN(SMALL, 3, config)
    channel = agent_graph(agent)["critic.encoder.blocks.0"]
    injection = agent.critic.online.injection
    frozen = [copies[0]["head"].layers[0] for copies in (injection.old, injection.initial)]  # type: ignore[union-attr]
    assert [r.layer for r in channel.consumers] == [agent.critic.online.head.layers[0], *frozen[::-1]]
    assert injection.opened == 0  # type: ignore[union-attr]

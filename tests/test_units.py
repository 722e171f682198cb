"""The unit graph, on every architecture; surgery by its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from no_wait import no_wait
from test_networks import ATARI, CONFIG, NETWORKS, SMALL, VECTOR, generator, observe
from torch import Tensor, nn

from pliant.agents.networks import Actor, Critic, Layer, NetworkConfig, QNetwork
from pliant.interventions.surgery import reinit_layer_, reinit_units_, reset_optimizer_state_, shrink_perturb_
from pliant.interventions.units import UnitGraph, unit_graph

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
    """An encoder with two kinds of readers: critics, and an actor."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = Critic(SMALL, 2, 1, CONFIG, generator(), size=2, projection=8)
        self.actor = Actor(self.critic.encoder.features, 2, CONFIG, generator(3), projection=8)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        mean, log_std = self.actor(self.critic.encoder(obs))
        return torch.cat([self.critic(obs, action).flatten(1), mean.view(1, -1), log_std.view(1, -1)], dim=1) \
            if len(obs) == 1 else torch.cat([self.critic(obs, action).flatten(), mean.flatten(), log_std.flatten()])


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
}  # fmt: skip


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
def test_unit_law(name: str) -> None:
    """Zeroing the inputs that a unit owns is exactly holding the unit at zero."""
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
            kept = [(r.layer.linear.weight, r.layer.linear.weight.clone()) for r in units.readers]
            for reader in units.readers:
                reader.layer.linear.weight[:, reader.owner == unit] = 0.0
            cut = forward()
            for weight, old in kept:
                weight.copy_(old)
            torch.testing.assert_close(cut, held, atol=1e-6, rtol=1e-5)
            moved += not torch.allclose(held, plain, atol=1e-7)
    assert moved > 0, "no unit mattered: the test saw nothing"
    assert torch.equal(forward(), plain)


def test_the_graph_by_hand() -> None:
    network = QNetwork(SMALL, 3, 1, NetworkConfig(hidden=(5,), activation="crelu"), generator())
    graph = unit_graph(network, lambda: network(torch.zeros(1, *SMALL.shape, dtype=torch.uint8)))
    conv, dense = graph.values()
    # 16 channels of 8 x 8 positions, flattened channel by channel; the second half is the negative copy.
    expected = torch.arange(16).repeat(2).repeat_interleave(64)
    assert [r.layer for r in conv.readers] == [dense.layer]
    assert torch.equal(conv.readers[0].owner, expected)
    assert torch.equal(dense.readers[0].owner, torch.arange(5).repeat(2))


def test_every_reader_of_a_dueling_encoder_is_found() -> None:
    network = QNetwork(SMALL, 3, 1, CONFIG, generator(), dueling=True)
    graph = unit_graph(network, lambda: network(torch.zeros(1, *SMALL.shape, dtype=torch.uint8)))
    readers = [r.layer for r in next(iter(graph.values())).readers]
    assert readers == [network.head.layers[0], network.value_head.layers[0]]


def test_actions_and_observations_are_nobodys_units() -> None:
    network, _, graph = critic(False, "relu")
    first = network.members[0].body.layers[0]  # type: ignore[union-attr]
    assert not any(r.layer is first for units in graph.values() for r in units.readers)


# ------------------------------------------------------------------------------------------------------ surgery


def trained() -> tuple[QNetwork, UnitGraph, torch.optim.Optimizer]:
    """A network whose optimizer remembers something of every weight."""
    network = QNetwork(VECTOR, 3, 1, NetworkConfig(hidden=(6, 5), norm="layer_norm"), generator())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for seed in range(3):
        optimizer.zero_grad()
        network(observe(VECTOR, 16, seed)).square().mean().backward()
        optimizer.step()
    for state in optimizer.state.values():
        state["exp_avg"].fill_(1.0)
        state["exp_avg_sq"].fill_(2.0)
    return network, unit_graph(network, lambda: network(torch.zeros(1, 7))), optimizer


def test_recycled_units_are_new_and_their_neighbours_do_not_notice() -> None:
    network, graph, optimizer = trained()
    first, second = graph.values()
    before = {n: p.clone() for n, p in network.named_parameters()}
    masks = {first.name: torch.tensor([True] + [False] * 5), second.name: torch.tensor([False, True] + [False] * 3)}
    with no_wait():
        reinit_units_(graph, masks, optimizer, generator(9))
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
    assert (network.advantage.linear.weight[:, 1] == 0).all()
    assert first.layer.linear.weight[0].abs().max() <= 1 / math.sqrt(7)
    assert (first.layer.norm.weight[0], first.layer.norm.bias[0]) == (1.0, 0.0)  # type: ignore[union-attr, index]


def test_a_dead_unit_can_be_recycled_without_a_trace_in_the_predictions() -> None:
    network = QNetwork(VECTOR, 3, 1, NetworkConfig(hidden=(6, 5)), generator())
    optimizer = torch.optim.Adam(network.parameters())
    graph = unit_graph(network, lambda: network(torch.zeros(1, 7)))
    first = next(iter(graph.values()))
    with torch.no_grad():
        first.layer.linear.bias[2] = -1e6
    obs = observe(VECTOR, 32)
    before = network(obs)
    reinit_units_(graph, {first.name: torch.arange(6) == 2}, optimizer, generator(1))
    assert torch.equal(network(obs), before)
    assert first.layer.linear.bias[2] > -1


def test_the_draw_does_not_depend_on_the_masks() -> None:
    streams = []
    for mask in (torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)):
        _, graph, optimizer = trained()
        g = generator(4)
        reinit_units_(graph, {next(iter(graph)): mask}, optimizer, g)
        streams.append(g.get_state())
    assert torch.equal(*streams)


def test_a_layer_begins_from_scratch() -> None:
    network, graph, optimizer = trained()
    layer = next(iter(graph.values())).layer
    reinit_layer_(layer, optimizer, generator(2))
    fresh = layer.fresh(generator(2))
    for key, parameter in layer.named_parameters():
        assert torch.equal(parameter, fresh[key])
        state = optimizer.state[parameter]
        assert state["step"].item() == 0.0 and not state["exp_avg"].any() and not state["exp_avg_sq"].any()
    other = network.advantage.linear.weight
    assert optimizer.state[other]["step"].item() == 3.0 and (optimizer.state[other]["exp_avg"] == 1.0).all()


@pytest.mark.parametrize(("t", "factor"), [(1, 0.316228), (10, 0.153189), (100, 0.308566), (1000, 0.795176)])
def test_zeroing_the_shared_step_would_slow_the_neighbours_down(t: int, factor: float) -> None:
    """Why it is refused for single units: golden numbers of the artefact, on torch's Adam."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=1.0, eps=0.0)
    p.grad = torch.ones_like(p)
    for _ in range(20_000 if t == 1000 else 10_000):
        optimizer.step()
    state = optimizer.state[p]
    state["exp_avg"].fill_(1.0), state["exp_avg_sq"].fill_(1.0)
    state["step"].zero_()
    for _ in range(t):
        before = p.detach().clone()
        optimizer.step()
    assert (before - p).detach()[0].item() == pytest.approx(factor, abs=1e-5)
    with pytest.raises(ValueError, match="belongs to the whole tensor"):
        reset_optimizer_state_(optimizer, p, torch.tensor([True, False]), step=True)


def test_shrink_and_perturb_by_its_numbers() -> None:
    layer = next(iter(trained()[1].values())).layer
    old = {k: p.clone() for k, p in layer.named_parameters()}
    drawn = layer.fresh(generator(7))
    shrink_perturb_(layer, 0.5, 0.25, generator(7))
    for key, parameter in layer.named_parameters():
        expected = 0.5 * old[key] + 0.25 * drawn[key] if key.startswith("linear") else old[key]
        torch.testing.assert_close(parameter, expected)

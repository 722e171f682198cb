"""Layers and network bodies: shapes, initialisers, traces."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

from pliant.agents.networks import Actor, Critic, Layer, NetworkConfig, QNetwork, hidden_layers
from pliant.common.spaces import ObservationSpec

VECTOR = ObservationSpec((7,))
ATARI = ObservationSpec((4, 84, 84), torch.uint8, 255.0, stack=4)
SMALL = ObservationSpec((4, 10, 10), torch.uint8, 1.0)
CONFIG = NetworkConfig(hidden=(32, 16))


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def observe(spec: ObservationSpec, n: int = 3, seed: int = 0) -> torch.Tensor:
    if spec.pixels:
        return torch.randint(int(spec.high) + 1, (n, *spec.shape), dtype=torch.uint8, generator=generator(seed))
    return torch.randn(n, *spec.shape, generator=generator(seed))


NETWORKS: dict[str, tuple[ObservationSpec, Callable[[], nn.Module]]] = {
    "mlp": (VECTOR, lambda: QNetwork(VECTOR, 5, 1, CONFIG, generator())),
    "mlp, crelu, layer norm": (
        VECTOR,
        lambda: QNetwork(VECTOR, 5, 1, replace(CONFIG, activation="crelu", norm="layer_norm"), generator()),
    ),
    "mlp, dueling": (VECTOR, lambda: QNetwork(VECTOR, 5, 3, CONFIG, generator(), dueling=True)),
    "nature": (ATARI, lambda: QNetwork(ATARI, 5, 1, CONFIG, generator())),
    "nature, crelu, dueling": (
        ATARI,
        lambda: QNetwork(ATARI, 5, 2, replace(CONFIG, activation="crelu"), generator(), dueling=True),
    ),
    "impala": (ATARI, lambda: QNetwork(ATARI, 5, 1, replace(CONFIG, body="impala", width=0.5), generator())),
    "impala, crelu, layer norm": (
        ATARI,
        lambda: QNetwork(
            ATARI, 5, 1, replace(CONFIG, body="impala", width=0.25, activation="crelu", norm="layer_norm"), generator()
        ),
    ),
    "minatar": (SMALL, lambda: QNetwork(SMALL, 5, 1, CONFIG, generator())),
    "drq": (ATARI, lambda: QNetwork(ATARI, 5, 1, replace(CONFIG, body="drq"), generator())),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_have_their_shape_and_the_trace_follows_the_hidden_layers(name: str) -> None:
    spec, make = NETWORKS[name]
    network, trace = make(), []
    logits = network(observe(spec), trace)
    assert logits.shape == (3, network.actions, network.outputs)
    layers = hidden_layers(network)
    assert [h.shape[1] for h in trace] == [layer.features for layer in layers.values()]
    assert torch.equal(network(observe(spec)), logits)


def test_the_trace_names_the_layer_that_filled_it() -> None:
    for spec, make in NETWORKS.values():
        network = make()
        for place, layer in enumerate(hidden_layers(network).values()):
            old = layer.activation
            layer.activation = nn.Sequential(old, Constant())
            trace: list[torch.Tensor] = []
            network(observe(spec), trace)
            assert (trace[place] == 3.5).all()
            layer.activation = old


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 3.5)


def test_pixels_are_scaled_by_their_own_range() -> None:
    spec = ObservationSpec((4, 84, 84), torch.uint8, 255.0)
    network = QNetwork(spec, 5, 1, CONFIG, generator())
    layer, seen = next(iter(hidden_layers(network).values())), []
    layer.linear.forward = lambda x: seen.append(x) or torch.zeros(1, 32, 20, 20)  # type: ignore[method-assign]
    network(torch.full((1, 4, 84, 84), 255, dtype=torch.uint8))
    assert seen[0].max() == 1.0


def test_a_convolutional_body_for_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reads images.*--agent\.network\.body mlp"):
        QNetwork(VECTOR, 5, 1, replace(CONFIG, body="nature"), generator())


def test_an_image_too_small_for_its_body_is_refused() -> None:
    with pytest.raises(ValueError, match=r"too small for the body NatureCNN"):
        QNetwork(SMALL, 5, 1, replace(CONFIG, body="nature"), generator())


def test_dueling_is_invariant_to_a_shift_of_all_advantages() -> None:
    network = QNetwork(VECTOR, 5, 1, CONFIG, generator(), dueling=True)
    before = network(observe(VECTOR))
    with torch.no_grad():
        network.advantage.linear.bias.add_(7.0)
    torch.testing.assert_close(network(observe(VECTOR)), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", ["torch", "orthogonal"])
def test_a_layer_is_reinitialised_from_its_initialiser(init: str) -> None:
    linear = nn.utils.skip_init(nn.Linear, 64, 128)
    layer = Layer(linear, generator(1), init=init, norm="layer_norm")
    initial = {name: p.clone() for name, p in layer.named_parameters()}
    fresh = layer.fresh(generator(1))
    assert fresh.keys() == initial.keys()
    for name, value in fresh.items():
        assert torch.equal(value, initial[name]), name
    for name, p in layer.named_parameters():
        assert torch.equal(p, initial[name]), f"drawing changed {name}"
    layer.load_fresh(generator(2))
    assert not torch.equal(layer.linear.weight, initial["linear.weight"])
    if init == "torch":
        bound = 1 / math.sqrt(64)
        assert layer.linear.weight.abs().max() <= bound
        assert abs(layer.linear.weight.std().item() - bound / math.sqrt(3)) < 0.02 * bound
    else:
        gram = layer.linear.weight.T @ layer.linear.weight
        torch.testing.assert_close(gram, 2.0 * torch.eye(64), atol=1e-4, rtol=0)


def test_an_orthogonal_output_layer_has_small_initial_weights() -> None:
    network = QNetwork(VECTOR, 5, 1, replace(CONFIG, init="orthogonal"), generator())
    gram = network.advantage.linear.weight @ network.advantage.linear.weight.T
    torch.testing.assert_close(gram, torch.eye(5), atol=1e-5, rtol=0)


def test_networks_are_drawn_from_their_own_generator_only() -> None:
    state = torch.get_rng_state()
    for spec, make in NETWORKS.values():
        first, second = make(), make()
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        assert spec
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("spec", [VECTOR, ATARI], ids=["vector", "pixels"])
def test_critics_differ_from_each_other_and_actors_bound_their_deviation(spec: ObservationSpec) -> None:
    critic = Critic(spec, 3, 1, CONFIG, generator(), size=4, projection=8)
    trace: list[torch.Tensor] = []
    values = critic(observe(spec), torch.zeros(3, 3), trace)
    assert values.shape == (4, 3, 1)
    assert len({v.sum().item() for v in values}) == 4
    assert [h.shape[1] for h in trace] == [layer.features for layer in hidden_layers(critic).values()]
    actor = Actor(critic.encoder.features, 3, CONFIG, generator(), projection=8 if spec.pixels else 0)
    with torch.no_grad():
        actor.output.linear.bias.fill_(1e3)
    mean, log_std = actor(critic.encoder(observe(spec)))
    assert mean.shape == log_std.shape == (3, 3)
    assert (log_std == 2.0).all()

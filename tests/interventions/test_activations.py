"""CReLU, Fourier features, other activations and the linear network as interventions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import law_agents
import pytest
import torch
from law_agents import AGENTS, MINATAR, VECTOR
from test_agents import DQN_SMALL, batch_for
from torch import Generator, Tensor, nn

from pliant.agents import DQN, Agent
from pliant.agents.networks import ACTIVATIONS, COPIES, CReLU, Fourier, Layer, NetworkConfig, QNetwork, hidden_layers
from pliant.agents.views import view
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.recycling import magnitude
from pliant.interventions.core.spec import build
from pliant.interventions.core.units import unit_graph
from pliant.interventions.redo import dormancy_score
from pliant.monitors.metrics import active_share

SPECS = ("crelu", "fourier", "activation(name=tanh)", "linear", "linear(form=deep)")


def made(*specs: str, agent: str = "dqn") -> Agent:
    return AGENTS[agent](interventions=tuple(build(specs, INTERVENTIONS)))


def wide(*specs: str, hidden: tuple[int, ...] = (64, 64), **network: Any) -> Agent:
    config = replace(DQN_SMALL, network=NetworkConfig(hidden=hidden, **network))
    return DQN((5,), 3, config, interventions=tuple(build(specs, INTERVENTIONS)))


def weights_between_hidden_layers(agent: Agent) -> int:
    """The number of weights between the first two hidden layers."""
    layers = list(hidden_layers(agent.components["critic"].online).values())
    return layers[1].linear.weight.numel()


# ------------------------------------------------------------------------------------------------------ functions


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 3, 3)])
def test_pairs_of_crelu_and_fourier_features_have_their_identities(shape: tuple[int, ...]) -> None:
    """Exactly one of a CReLU pair is not zero, and x is their difference; a Fourier pair is on the unit circle."""
    x = torch.randn(shape, generator=Generator().manual_seed(0), dtype=torch.float64)
    a, b = CReLU()(x).chunk(2, dim=1)
    assert ((a > 0) ^ (b > 0)).all() and torch.equal(x, a - b) and a.shape == x.shape
    h = Fourier()(x)
    s, c = h.chunk(2, dim=1)
    torch.testing.assert_close(s, x.sin())
    torch.testing.assert_close(c, x.cos())
    # |features|^2 is half their number for any input.
    torch.testing.assert_close(h.square().sum(1), torch.full_like(x[:, 0], h.shape[1] / 2))


def test_one_feature_of_a_fourier_pair_always_has_a_large_slope() -> None:
    """Where one of the pair is flat, the other has slope 1: the two are never both curved at the same point."""
    x = torch.linspace(-10, 10, 1001, dtype=torch.float64).unsqueeze(1).requires_grad_(True)
    slopes = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0].abs() for part in Fourier()(x).chunk(2, 1)]
    assert torch.stack(slopes).amax(0).min() >= math.sqrt(0.5) - 1e-9


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_copies_match_the_outputs_of_an_activation(name: str) -> None:
    layer = Layer(nn.Linear(3, 4), Generator().manual_seed(0), activation=name)
    assert layer(torch.zeros(2, 3)).shape[1] == layer.features == 4 * COPIES.get(name, 1)


# ------------------------------------------------------------------------------------------------------ widths


@pytest.mark.parametrize("spec", ["crelu", "fourier"])
@pytest.mark.parametrize(("keep", "units"), [("features", 32), ("parameters", 45), ("units", 64)])
def test_widths_keep_the_chosen_number(spec: str, keep: str, units: int) -> None:
    agent, plain = wide(f"{spec}(keep={keep})"), wide()
    layers = list(hidden_layers(agent.components["critic"].online).values())
    assert [layer.units for layer in layers] == [units] * 2 and [layer.features for layer in layers] == [2 * units] * 2
    expected = {"features": 0.5, "parameters": 1.0, "units": 2.0}[keep]
    assert weights_between_hidden_layers(agent) / weights_between_hidden_layers(plain) == pytest.approx(
        expected, rel=0.02
    )


def test_by_default_consumers_keep_their_number_of_inputs() -> None:
    for spec in ("crelu", "fourier"):
        agent, plain = made(spec, agent="dqn, nature"), made(agent="dqn, nature")
        for mine, theirs in zip(
            *(hidden_layers(a.components["critic"].online).values() for a in (agent, plain)), strict=True
        ):
            assert mine.features == theirs.features and mine.units == theirs.units // 2
        # Widths that were chosen for two copies do not change.
        assert wide(spec, activation="crelu").config.network.hidden == (64, 64)  # type: ignore[attr-defined]
        assert wide(spec, hidden=(1,)).config.network.hidden == (1,)  # type: ignore[attr-defined]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("on", ["all", "critic", "actor"])
def test_an_activation_changes_only_the_named_component(spec: str, on: str) -> None:
    spec_with_on = spec[:-1] + f", on={on})" if "(" in spec else f"{spec}(on={on})"
    plain, config = AGENTS["sac"]().config, made(spec_with_on, agent="sac").config  # type: ignore[attr-defined]
    assert (config.network != plain.network) == (on != "actor")
    assert (config.actor_network != plain.actor_network) == (on != "critic")
    if on == "actor":
        with pytest.raises(ValueError, match="has no actor; it has critic"):
            made(spec_with_on)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_changes_only_the_activation(name: str) -> None:
    agent, plain = wide(f"activation({name})"), wide()
    assert agent.config.network == replace(plain.config.network, activation=name)  # type: ignore[attr-defined]
    layers = hidden_layers(agent.components["critic"].online).values()
    assert all(type(layer.activation) is ACTIVATIONS[name] for layer in layers)


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="'relu'"):
        build(["activation(relo)"], INTERVENTIONS)


@pytest.mark.parametrize("first", ["crelu", "fourier", "activation(name=elu)", "linear"])
@pytest.mark.parametrize("second", ["crelu", "fourier", "activation(name=gelu)", "linear(form=deep)"])
def test_two_activations_exclude_each_other(first: str, second: str) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        build([first, second], INTERVENTIONS)


# ------------------------------------------------------------------------------------------------------ linear


def is_affine(agent: Agent, component: str) -> bool:
    """Whether f((x + y) / 2) = (f(x) + f(y)) / 2 holds for the outputs of a component."""
    batch = batch_for(agent, 16)
    x, y = batch.obs[:8].double(), batch.obs[8:].double()
    if agent.observation.pixels:
        g = Generator().manual_seed(0)
        x, y = (2 * torch.randint(127, p.shape, generator=g).double() for p in (x, y))
    network = agent.components[component].online

    def outputs(obs: Tensor) -> Tensor:
        obs = obs.to(agent.observation.dtype)
        predicted = view(agent).predictions(component, obs, batch.action[:8])
        return (predicted[0] if component == "actor" and predicted.ndim == 3 else predicted).double()

    middle, ends = outputs((x + y) / 2), (outputs(x) + outputs(y)) / 2
    assert network is not None
    return torch.allclose(middle, ends, atol=1e-5)


@pytest.mark.parametrize("form", ["shallow", "deep"])
@pytest.mark.parametrize("agent", ["dqn", "dqn, minatar, dueling", "dqn, nature", "sac"])
def test_the_linear_network_is_affine(agent: str, form: str) -> None:
    linear = made(f"linear(form={form})", agent=agent)
    assert is_affine(linear, "critic") and not is_affine(made(agent=agent), "critic")
    if "sac" in agent:
        assert is_affine(linear, "actor") and not is_affine(made(agent=agent), "actor")
    dense = [n for n in hidden_layers(linear.components["critic"].online) if not n.startswith("encoder")]
    assert bool(dense) == (form == "deep")


def test_linear_removes_norms_and_excludes_methods_that_add_them() -> None:
    for form in ("shallow", "deep"):
        assert is_affine(made(f"linear(form={form})", agent="droq"), "critic")
    for specs in (("linear", "layer_norm"), ("layer_norm", "linear")):
        with pytest.raises(ValueError, match="exclude each other"):
            made(*specs)
    for agent, module in (("sac, pixels", "a projection"), ("dqn, impala", "max-pooling")):
        with pytest.raises(ValueError, match=f"linear: the critic of this {agent[:3]} contains {module}"):
            made("linear", agent=agent)


# -------------------------------------------------------------------------------------------- measures of units


def network(body: str, activation: str = "fourier") -> tuple[Any, Any]:
    spec = {"mlp": VECTOR, "minatar": MINATAR}.get(body, law_agents.IMAGE)
    config = NetworkConfig(body=body, hidden=(6, 4), width=0.25, activation=activation)  # type: ignore[arg-type]
    made_ = QNetwork(spec, 3, 1, config, Generator().manual_seed(0), dueling=body == "minatar")
    return made_, torch.zeros(1, *spec.shape, dtype=spec.dtype)


@pytest.mark.parametrize("body", ["mlp", "minatar", "drq", "impala"])
def test_fourier_has_the_same_unit_graph_as_crelu(body: str) -> None:
    """cos(0) = 1, also for a separate activation module: it must not create a unit number."""
    graphs = []
    for activation in ("crelu", "fourier"):
        net, blank = network(body, activation)
        graphs.append(unit_graph(net, lambda net=net, blank=blank: net(blank)))  # type: ignore[misc]
        assert not any("forward" in vars(module) for module in net.modules()), "the network must not be changed"
    assert graphs[0].keys() == graphs[1].keys()
    for one, other in zip(*(g.values() for g in graphs), strict=True):
        assert one.count == other.count and len(one.consumers) == len(other.consumers)
        assert all(torch.equal(a.owner, b.owner) for a, b in zip(one.consumers, other.consumers, strict=True))


@torch.no_grad()
def test_fourier_obeys_the_unit_law() -> None:
    """Zeroing the inputs that a unit owns equals holding both its copies at zero."""
    for body in ("mlp", "minatar", "impala"):
        net, blank = network(body)
        graph = unit_graph(net, lambda net=net, blank=blank: net(blank))  # type: ignore[misc]
        g = Generator().manual_seed(1)
        shape = (4, *blank.shape[1:])
        x = torch.randint(2, shape, generator=g).to(blank.dtype) if body != "mlp" else torch.randn(shape, generator=g)
        for units in graph.values():
            layer, unit = units.layer, units.count - 1
            inner = layer.activation

            class Held(nn.Module):
                def forward(self, z: Tensor, inner: Any = inner, layer: Any = layer, unit: int = unit) -> Tensor:
                    h = inner(z).clone()
                    h[:, [unit, unit + layer.units]] = 0
                    return h

            layer.activation = Held()
            held = net(x)
            layer.activation = inner
            kept = [(r.weight, r.weight.clone()) for r in units.consumers]
            for consumer in units.consumers:
                consumer.weight[:, consumer.owner == unit] = 0
            torch.testing.assert_close(net(x), held, atol=1e-6, rtol=1e-5)
            for weight, old in kept:
                weight.copy_(old)
            assert not torch.allclose(net(x), held, atol=1e-6)


def test_a_fourier_unit_with_constant_output_is_dormant() -> None:
    """Its outputs are never small, so dormancy is measured by their deviation."""
    layer = Layer(nn.Linear(3, 4), Generator().manual_seed(0), activation="fourier")
    z = torch.randn(64, 4, generator=Generator().manual_seed(0))
    z[:, 1] = 0.7
    h = layer.activation(z)  # type: ignore[operator]
    score = dormancy_score(magnitude(layer, h))
    assert score[1] < 1e-5 and (score[[0, 2, 3]] > 0.5).all()
    pair = torch.stack([z.sin(), z.cos()]).double()
    expected = (pair - pair.mean(1, keepdim=True)).abs().mean((0, 1))
    torch.testing.assert_close(magnitude(layer, h).double(), expected, atol=1e-6, rtol=0)
    assert active_share(h.view(64, 2, 4, 1), layer.activation) is None
    conv = Layer(nn.Conv2d(1, 3, 2), Generator().manual_seed(0), activation="fourier")
    still = conv.activation(torch.full((5, 3, 4, 4), 0.3))  # type: ignore[operator]
    still[:, 0] += torch.linspace(0, 1, 16).view(4, 4)  # differs by position, so the unit is not dormant
    size = magnitude(conv, still)
    assert size[0] > 0.1 and size[1:].max() < 1e-6

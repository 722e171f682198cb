"""Interventions on external networks, in external training loops."""

from __future__ import annotations

import copy
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from no_wait import no_wait
from torch import Tensor, nn

from pliant.agents.optimizers import Adam, OptimizerConfig
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.surgery import MEMORY
from pliant.interventions.external.attach import Learner, Plasticity, attach, attachable

SPECS = {
    "redo": "redo(tau=0.9, every=2, on=all)",
    "continual_backprop": "continual_backprop(rho=0.05, maturity=2)",
    "self_normalized_reset": "self_normalized_reset(percentile=0.5, renew=2, longest=2, eps=1.5)",
    "regrama": "regrama(tau=0.7, every=2)",
    "regrama, weights": "regrama(tau=0.7, every=2, mode=weight_grad)",
    "reset": "reset(every=3, of=updates)",
    "shrink_perturb": "shrink_perturb(every=3, of=updates, target=same)",
    "shrink_perturb, to initial": "shrink_perturb(every=1, of=updates, noise=initial, moments=keep)",
    "hare_tortoise": "hare_tortoise(every=3)",
}
UNITS = ("redo", "continual_backprop", "self_normalized_reset", "regrama", "regrama, weights")


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Networks. A module named `unit_*` outputs the units of one layer, so the laws can find them without the graph.


class Named(nn.Module):
    """Modules that output units, by the name of their layer."""

    units: ClassVar[Mapping[str, str]]

    def tap(self, name: str) -> nn.Module:
        return self.get_submodule(self.units[name])


class Plain(Named):
    units: ClassVar = {"critic.body.0": "body.1", "critic.body.2": "body.3"}

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 7), nn.LeakyReLU(), nn.Linear(7, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Image(Named):
    """Every norm, pooling, dropout, and convolution to linear."""

    units: ClassVar = {"critic.encoder.0": "encoder.3", "critic.encoder.4": "encoder.6", "critic.head.0": "head.2"}

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 4, 2),
            nn.LayerNorm([4, 3, 3]),
            nn.ELU(),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Mish(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x * 2.0))


class Heads(Named):
    """A functional activation and two heads; one head uses another function of the same number of positions."""

    units: ClassVar = {"critic.trunk": "unit_trunk", "critic.first": "unit_first"}

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first = nn.Linear(6, 9), nn.Linear(9, 5)
        self.policy, self.value = nn.Linear(5, 3), nn.Linear(10, 1)
        self.unit_trunk, self.unit_first = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.unit_trunk(F.relu(self.trunk(x)))
        policy = self.policy(self.unit_first(torch.tanh(self.first(h))))
        return F.softmax(policy, dim=-1), self.value(torch.cat([x[:, :1], h], dim=1)) * 0.5


class TwinCritic(Named):
    """(obs, action), an encoder with two consumers, CReLU, RMSNorm behind an activation."""

    units: ClassVar = {"critic.encoder.0": "encoder.2", "critic.first.0": "first.2", "critic.second": "unit_second"}

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(2, 5, 2), nn.GELU(), nn.AvgPool1d(2))
        self.first = nn.Sequential(nn.Linear(12, 7), nn.SiLU(), nn.RMSNorm(7), nn.Linear(7, 1))
        self.second, self.value = nn.Linear(12, 4), nn.Linear(8, 1)
        self.unit_second = nn.Identity()

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.encoder(obs).flatten(1), action], dim=1)
        h = self.second(x)
        both = torch.cat([F.relu(h), F.relu(-h)], dim=1)
        return self.first(x), self.value(self.unit_second(both))


class Layouts(Named):
    """A convolution with a convolution and a flattened map as consumers, channels last, and a mean over tokens."""

    units: ClassVar = {"critic.conv": "unit_conv", "critic.inner": "unit_inner", "critic.token": "unit_token"}

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 1)
        self.flat, self.last = nn.Linear(16, 2), nn.Linear(12, 2)
        self.token, self.out = nn.Linear(2, 5), nn.Linear(5, 2)
        self.unit_conv, self.unit_inner, self.unit_token = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.unit_conv(F.relu(self.conv(x)))
        last = self.last(self.unit_inner(F.softplus(self.inner(h))).permute(0, 2, 3, 1).flatten(1))
        tokens = self.token(x.flatten(2).transpose(1, 2)).relu()
        return self.flat(h.flatten(1)), last, self.out(self.unit_token(tokens.mean(1)))


CASES: dict[str, tuple[Callable[[], Any], tuple[tuple[int, ...], ...]]] = {
    "mlp": (Plain, ((6,),)),
    "image": (Image, ((2, 8, 8),)),
    "two heads": (Heads, ((6,),)),
    "twin critic": (TwinCritic, ((2, 5), (2,))),
    "layouts": (Layouts, ((2, 4, 4),)),
}
each_case = pytest.mark.parametrize("case", CASES)


def inputs_of(case: str, batch: int = 16, seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(draw(batch, *shape, seed=seed + i) for i, shape in enumerate(CASES[case][1]))


def total(outputs: Any) -> Tensor:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.cat([y.flatten(1) for y in outputs], dim=1)


class Loop:
    """An external training loop."""

    def __init__(self, case: str, *specs: str, seed: int = 0, optimizer: Any = torch.optim.Adam) -> None:
        self.case = case
        self.network = seeded(CASES[case][0], seed)
        self.target = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = optimizer(self.network.parameters(), lr=1e-2)
        self.time = 0
        self.plasticity: Any = None
        if specs:
            self.plasticity = attach(
                self.network, self.optimizer, inputs_of(case, 1), *specs, target=self.target, seed=seed
            )

    def learn(self, updates: int, guard: Any = nullcontext) -> None:
        for _ in range(updates):
            self.time += 1
            inputs = inputs_of(self.case, seed=self.time)
            if self.plasticity is not None:
                self.plasticity.before_update()
            with torch.random.fork_rng():  # dropout uses the generator of the loop
                torch.manual_seed(self.time)
                y = total(self.network(*inputs))
            with torch.no_grad():
                wanted = total(self.target(*inputs)) + draw(*y.shape, seed=self.time)
            loss = F.mse_loss(y, wanted)
            if self.plasticity is not None:
                loss = loss + self.plasticity.penalty()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.plasticity is not None:
                with guard():
                    self.plasticity.after_update(steps=2)
            with torch.no_grad():
                for slow, fast in zip(self.target.parameters(), self.network.parameters(), strict=True):
                    slow.lerp_(fast, 0.1)

    def saved(self) -> Any:
        state = {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "time": self.time,
            "optimizer": self.optimizer.state_dict(),
            "plasticity": self.plasticity.state_dict(),
        }
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def resume(self, state: Any) -> None:
        for name in ("network", "target", "optimizer", "plasticity"):
            getattr(self, name).load_state_dict(state[name])
        self.time = state["time"]


def leaves(state: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(state, Mapping):
        return {k: v for key, value in state.items() for k, v in leaves(value, f"{prefix}/{key}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, value in enumerate(state) for k, v in leaves(value, f"{prefix}/{i}").items()}
    return {prefix: state}


def differences(first: Any, second: Any) -> list[str]:
    a, b = leaves(first), leaves(second)
    return sorted(a.keys() ^ b.keys()) + [
        k for k in a.keys() & b.keys() if not (torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k])
    ]


# ----------------------------------------------------------------------------------------------------- measurements


def silencer(units: int, unit: int) -> Callable[..., Tensor]:
    """A forward hook that holds a unit of a module's output at zero, for any modules between it and its consumers."""

    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, unit::units] = 0.0
        return out

    return hook


@each_case
@torch.no_grad()
def test_zeroing_owned_inputs_equals_holding_the_unit_at_zero(case: str) -> None:
    """The law of units, for external networks."""
    network = seeded(CASES[case][0]).eval()
    plasticity = attach(network, torch.optim.Adam(network.parameters()), inputs_of(case, 1))
    graph = plasticity.agent.survey.graph
    assert set(graph) == set(network.units) and not plasticity.left_alone
    inputs = inputs_of(case)
    plain = total(network(*inputs))
    for name, units in graph.items():
        for unit in range(units.count):
            handle = network.tap(name).register_forward_hook(silencer(units.count, unit))
            silenced = total(network(*inputs))
            handle.remove()
            before = [consumer.weight.clone() for consumer in units.consumers]
            for consumer in units.consumers:
                consumer.weight[:, consumer.owner == unit] = 0.0
            assert torch.equal(total(network(*inputs)), silenced), (name, unit)
            for consumer, weight in zip(units.consumers, before, strict=True):
                consumer.weight.copy_(weight)
            assert not torch.equal(silenced, plain), (name, unit)


@each_case
def test_methods_observe_the_outputs_of_units(case: str) -> None:
    loop = Loop(case, "regrama(tau=0.5, every=1000)")
    network, agent = loop.network.eval(), loop.plasticity.agent
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            out.retain_grad()
            seen[name] = out

        return hook

    handles = [network.tap(name).register_forward_hook(keep(name)) for name in network.units]
    loop.plasticity.before_update()
    total(network(*inputs_of(case))).square().mean().backward()
    assert seen.keys() == network.units.keys()
    outputs = agent.survey.outputs(agent.observed())
    gradients = agent.unit_gradients()
    for name, h in seen.items():
        layer = agent.survey.graph[name].layer
        for observed, true in ((outputs[name], h), (gradients[name], h.grad)):
            assert true is not None and len(observed) == len(true)
            true = true.detach().reshape(len(true), *(2,) * (name == "critic.second"), layer.units, -1)
            for size in (Tensor.clone, Tensor.abs, Tensor.square):
                mine = size(observed.reshape(len(observed), layer.copies, layer.units, -1)).mean((1, 3))
                theirs = size(true).mean(3).mean(1) if name == "critic.second" else size(true).mean(2)
                torch.testing.assert_close(mine, theirs)
    for handle in handles:
        handle.remove()


def test_a_residual_stream_is_not_reset_and_the_reason_is_reported() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.outer, self.out = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.out(torch.relu(x + self.outer(torch.relu(self.inner(x)))))

    network = seeded(Residual)
    plasticity = attach(network, torch.optim.Adam(network.parameters()), torch.zeros(1, 4), "redo(every=1)")
    assert list(plasticity.agent.survey.graph) == ["critic.inner"]
    assert set(plasticity.left_alone) == {"critic.stem", "critic.outer"}
    assert all("added" in why and "'out'" in why for why in plasticity.left_alone.values())
    assert [n for n, layer in plasticity.agent.survey.layers.items() if layer.is_output] == ["critic.out"]


def test_norms_belong_to_the_units_that_they_normalise() -> None:
    network = seeded(
        lambda: nn.Sequential(
            nn.LayerNorm(4),
            nn.Linear(4, 3),
            nn.ReLU(),
            nn.LayerNorm(3),
            nn.Linear(3, 2),
            nn.LayerNorm(2),
            nn.Unflatten(1, (1, 2)),
            nn.Flatten(),
            nn.Linear(2, 1),
        )
    )
    network.append(nn.Identity())
    layers = attach(network, torch.optim.Adam(network.parameters()), torch.zeros(1, 4)).agent.survey.layers
    assert layers["critic.1"].norm is network[3] and list(layers["critic.1"].beside) == [network[0]]
    assert layers["critic.4"].norm is network[5] and layers["critic.8"].norm is None
    fresh = layers["critic.1"].fresh(torch.Generator())
    assert {*fresh} == {
        "linear.weight",
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "norm.beside0.weight",
        "norm.beside0.bias",
    }
    assert {*layers["critic.1"].fresh_units(2, torch.Generator())} == {
        "linear.weight",
        "linear.bias",
        "norm.weight",
        "norm.bias",
    }


# ---------------------------------------------------------------------------------------------------------- laws


@each_case
@pytest.mark.parametrize("method", SPECS)
class TestLaws:
    def test_it_acts_without_replacing_a_tensor(self, case: str, method: str) -> None:
        plain, loop = Loop(case), Loop(case, SPECS[method])
        held = {
            name: (id(t), t.data_ptr())
            for m in (loop.network, loop.target)
            for name, t in (*m.named_parameters(), *m.named_buffers())
        }
        for one in (plain, loop):
            one.learn(9)
        assert differences(plain.network.state_dict(), loop.network.state_dict()), "the method did nothing"
        assert held == {
            name: (id(t), t.data_ptr())
            for m in (loop.network, loop.target)
            for name, t in (*m.named_parameters(), *m.named_buffers())
        }
        assert all(torch.isfinite(p).all() for p in loop.network.parameters())

    def test_it_resumes_to_the_last_bit(self, case: str, method: str) -> None:
        straight, stopped, resumed = (Loop(case, SPECS[method], seed=s) for s in (0, 0, 5))
        straight.learn(9)
        stopped.learn(4)
        resumed.resume(stopped.saved())
        resumed.learn(5)
        assert not differences(straight.saved(), resumed.saved())

    def test_the_host_does_not_wait_and_the_global_generator_is_unused(self, case: str, method: str) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
        loop = Loop(case, SPECS[method])
        loop.learn(2)
        loop.learn(7, guard=no_wait)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


@pytest.mark.parametrize("case", ["mlp", "image", "two heads", "layouts"])
@pytest.mark.parametrize("method", UNITS)
def test_optimizer_state_is_reset_exactly_where_weights_are_edited(case: str, method: str) -> None:
    loop = Loop(case, SPECS[method])
    loop.learn(3)
    acted = 0
    for _ in range(4):
        inner, before, edited = loop.plasticity.interventions.after_update, {}, {}

        def watched(run: Any, activations: Any, inner: Any = inner, before: Any = before, loop: Loop = loop) -> None:
            for p in loop.network.parameters():
                before[p] = (p.detach().clone(), {k: v.clone() for k, v in loop.optimizer.state[p].items()})
            inner(run, activations)

        loop.plasticity.interventions.after_update = watched  # type: ignore[method-assign]
        loop.learn(1)
        del loop.plasticity.interventions.after_update
        for p, (old, state) in before.items():
            edited[p] = changed = p.detach() != old
            for key, was in state.items():
                now = loop.optimizer.state[p][key]
                if key not in MEMORY:
                    assert torch.equal(now, was), "the step counter belongs to the whole tensor"
                    continue
                folded = (
                    method == "continual_backprop" and p.ndim == 1
                )  # a bias keeps its optimizer state if a mean is folded into it
                assert folded or not now[changed].any()
                assert torch.equal(now[now != 0], was[now != 0])
                if not changed.any() and p.ndim > 1:
                    assert torch.equal(now, was)
        acted += sum(bool(c.any()) for c in edited.values())
    assert acted


@pytest.mark.parametrize("case", ["mlp", "image", "two heads", "layouts"])  # the cases with rectified units
@pytest.mark.parametrize("spec", ["redo(tau=0, every=1)", "self_normalized_reset(longest=1)"])
def test_recycling_dead_units_changes_no_prediction(case: str, spec: str) -> None:
    """The consumers' inputs from the unit are exactly zero, so predictions stay equal to the last bit."""
    loop = Loop(case, spec)
    network, target = loop.network.eval(), [p.clone() for p in loop.target.parameters()]
    dead: list[Tensor] = []
    graph = loop.plasticity.agent.survey.graph
    with torch.no_grad():
        for name, units in graph.items():
            if name not in ("critic.body.0", "critic.encoder.0", "critic.trunk", "critic.conv"):
                continue
            units.layer.linear.weight[1] = 0.0
            units.layer.linear.bias[1] = -1.0
            dead.append(units.layer.linear.weight)
        if case == "image":
            network.encoder[1].running_mean[1], network.encoder[1].running_var[1] = 5.0, 7.0
    before = total(network(*inputs_of(case)))
    loop.plasticity.before_update()
    total(network(*inputs_of(case))).mean().backward()
    with no_wait():
        loop.plasticity.after_update()
    assert torch.equal(total(network(*inputs_of(case))), before)
    assert dead and all((weight[1] != 0).all() for weight in dead)
    assert all(torch.equal(a, b) for a, b in zip(target, loop.target.parameters(), strict=True))
    if case == "image":
        norm = network.encoder[1]
        assert (norm.running_mean[1], norm.running_var[1]) == (0.0, 1.0)
        assert norm.weight[1] == 1.0 and norm.bias[1] == 0.0


@each_case
def test_the_mean_of_a_replaced_unit_is_folded_into_the_bias(case: str) -> None:
    """With one repeated input every unit outputs its mean, so continual backpropagation changes no output."""
    loop = Loop(case, "continual_backprop(rho=0.3, maturity=1)")
    network = loop.network.eval()
    loop.optimizer.param_groups[0]["lr"] = 0.0
    inputs = tuple(x[:1].expand(4, *x.shape[1:]) for x in inputs_of(case))
    before, weights = total(network(*inputs)), [p.clone() for p in network.parameters()]
    seen = sum(len(loop.plasticity.agent.survey.graph[n].consumers) for n in network.units)
    assert seen
    for _ in range(3):
        loop.plasticity.before_update()
        total(network(*inputs)).mean().backward()
        loop.plasticity.after_update()
        if any(not torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True)):
            break
    else:
        pytest.fail("nothing was replaced")
    # A replaced unit of a later layer is silenced too, whatever it now reads. A norm sees its unit's neighbours change,
    # and a convolution that reads a map as a whole gets its mean, not the map.
    if case in ("mlp", "two heads"):
        torch.testing.assert_close(total(network(*inputs)), before, atol=1e-5, rtol=1e-5)


def test_the_mean_of_a_flattened_map_is_compensated_position_by_position() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)))
    plasticity = attach(
        network,
        torch.optim.SGD(network.parameters(), lr=0.0),
        torch.zeros(1, 2, 4, 4),
        "continual_backprop(rho=1, maturity=0)",
    )
    with torch.no_grad():
        network[0].weight.zero_()
    inputs = draw(4, 2, 4, 4)
    before = network(inputs)
    plasticity.before_update()
    network(inputs).mean().backward()
    plasticity.after_update()
    torch.testing.assert_close(network(inputs), before)
    assert not network[3].weight.any()


@pytest.mark.parametrize(("kind", "first"), [("torch", 3.162), ("pliant", 1.0)])
def test_the_first_step_of_a_new_weight_depends_on_the_step_counts(kind: str, first: float) -> None:
    """It shows the effect of a shared step count, and of step counts per weight."""

    def make(parameters: Any, lr: float) -> torch.optim.Optimizer:
        if kind == "torch":
            return torch.optim.Adam(parameters, lr=lr)
        return Adam(parameters, OptimizerConfig(lr=lr))

    loop = Loop("mlp", "redo(tau=0, every=1)", optimizer=make)
    weight, bias = loop.network.body[0].weight, loop.network.body[0].bias

    def step(value: float) -> None:
        loop.plasticity.before_update()
        loop.network(inputs_of("mlp")[0])
        for p in loop.network.parameters():
            p.grad = torch.full_like(p, value)
        loop.optimizer.step()

    for _ in range(200):
        step(1e-9)
        loop.plasticity.after_update()
    with torch.no_grad():
        weight[2], bias[2] = 0.0, -50.0
    step(1e-9)
    with torch.no_grad():
        weight[2], bias[2] = 0.0, -50.0
    loop.plasticity.before_update()
    loop.network(inputs_of("mlp")[0]).sum().backward()
    loop.plasticity.after_update()
    assert bias[2] > -1, "the dead unit was not recycled"
    before = weight.detach().clone()
    for p in loop.network.parameters():
        p.grad = torch.full_like(p, 1.0)
        loop.optimizer.state[p]["step"].fill_(1e6)  # as after long training
    loop.optimizer.step()
    assert ((before - weight)[2] / 1e-2).mean().item() == pytest.approx(first, rel=0.02)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW, torch.optim.RAdam])
def test_other_optimizers_are_supported(kind: Any) -> None:
    def make(parameters: Any, lr: float) -> Any:
        more = {"momentum": 0.9} if kind in (torch.optim.SGD, torch.optim.RMSprop) else {}
        return kind(parameters, lr=lr, **more)

    loop = Loop("image", SPECS["redo"], SPECS["reset"], optimizer=make)
    loop.learn(6)
    assert all(torch.isfinite(p).all() for p in loop.network.parameters())
    straight = Loop("image", SPECS["redo"], SPECS["reset"], optimizer=make, seed=3)
    straight.resume(loop.saved())
    for one in (loop, straight):
        one.learn(4)
    assert not differences(loop.saved(), straight.saved())


def test_a_reset_reinitialises_everything_and_the_target() -> None:
    loop = Loop("image", "reset(every=4, of=updates)")
    loop.learn(3)
    slow = [p.clone() for p in loop.target.parameters()]
    with torch.no_grad():
        for m in (loop.network, loop.target):
            for t in (*m.parameters(), *m.buffers()):
                t.fill_(9)
    loop.plasticity.before_update()
    loop.network(*inputs_of("image"))
    loop.plasticity.after_update()
    assert slow and not differences(loop.network.state_dict(), loop.target.state_dict())
    norm = loop.network.encoder[1]
    assert norm.num_batches_tracked == 0 and not norm.running_mean.any() and (norm.running_var == 1).all()
    for name, p in loop.network.named_parameters():
        assert p.abs().max() <= 1.0, name
        assert not any(v.any() for v in loop.optimizer.state[p].values()), name


def test_parts_and_a_named_encoder_are_recognised() -> None:
    network = seeded(Image)
    specs = ("reset(every=1, of=updates, layers=head)", "shrink_perturb(every=1, of=updates, layers=encoder)")
    plasticity = attach(network, torch.optim.Adam(network.parameters()), inputs_of("image", 1), *specs)
    assert [len(part.names) for part in plasticity.interventions] == [2, 2]
    renamed = nn.Sequential()
    renamed.add_module("cnn", seeded(Image).encoder)
    renamed.add_module("q", nn.Linear(36, 2))
    attached = attach(renamed, torch.optim.Adam(renamed.parameters()), inputs_of("image", 1), encoder="cnn")
    assert list(attached.agent.survey.layers) == ["critic.encoder.0", "critic.encoder.4", "critic.q"]


def test_heads_that_take_no_part_in_an_update_do_not_age() -> None:
    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)) for _ in range(2))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [head(x) for head in self.heads]

    network = seeded(Tasks)
    plasticity = attach(
        network, torch.optim.Adam(network.parameters()), torch.zeros(1, 4), "continual_backprop(maturity=9)"
    )
    for _ in range(3):
        plasticity.before_update()
        network.heads[1](draw(8, 4)).mean().backward()  # type: ignore[operator]
        plasticity.after_update()
    memory = dict(plasticity.interventions.named_buffers())
    ages = {name: value.max().item() for name, value in memory.items() if name.endswith(":age")}
    assert sorted(ages.values()) == [0.0, 3.0]


def test_several_networks_can_be_attached_together() -> None:
    critic, actor = seeded(TwinCritic), seeded(Plain)
    optimizers = [torch.optim.Adam(m.parameters()) for m in (critic, actor)]
    learners = {
        "critic": Learner(critic, optimizers[0], inputs_of("twin critic", 1), copy.deepcopy(critic)),
        "actor": Learner(actor, optimizers[1], inputs_of("mlp", 1)),
    }
    plasticity = Plasticity(learners, ["redo(every=1, tau=2, on=actor)", "reset(every=2, of=updates, layers=actor)"])
    before = {k: v.clone() for k, v in critic.state_dict().items()}
    plasticity.before_update()
    actor(*inputs_of("mlp")).mean().backward()
    plasticity.after_update()
    assert not differences(before, critic.state_dict())
    assert [n for n, o in plasticity.agent.optimizers()] == ["critic", "actor"]
    with pytest.raises(ValueError, match=r"attach: body.0.weight belongs to critic and to actor"):
        Plasticity({"critic": learners["actor"], "actor": learners["actor"]}, [])


# ----------------------------------------------------------------------------------------------------- side effects


def test_copies_have_no_active_hooks_and_detaching_removes_all_hooks() -> None:
    network = seeded(Image)
    network.encoder.eval()
    modes = [m.training for m in network.modules()]
    state = copy.deepcopy(network.state_dict())
    known = [vars(m).keys() for m in network.modules()]
    plasticity = attach(network, torch.optim.Adam(network.parameters()), inputs_of("image"), "regrama", "redo")
    assert modes == [m.training for m in network.modules()] and not differences(state, network.state_dict())
    assert known == [vars(m).keys() for m in network.modules()]
    hooks = [m for m in network.modules() if m._forward_pre_hooks]
    assert hooks == [network.encoder[4], network.head[0], network.head[4]]
    # Copies have no active hooks, and can be pickled whole.
    duplicate = copy.deepcopy(network)
    plasticity.before_update()
    duplicate(*inputs_of("image"))
    with pytest.raises(RuntimeError, match="there was no forward pass with gradients"):
        plasticity.after_update()
    file = io.BytesIO()
    torch.save(network, file)
    plasticity.detach()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
    for call in (plasticity.before_update, plasticity.after_update):
        with pytest.raises(RuntimeError, match="detached"):
            call()


def test_attaching_without_acting_changes_no_bit() -> None:
    plain, observed = Loop("image"), Loop("image", "regrama(tau=0, every=1000)", "redo(every=1000)")
    for loop in (plain, observed):
        loop.learn(5)
    assert not differences(plain.network.state_dict(), observed.network.state_dict())


def test_only_the_first_forward_pass_with_gradients_is_used() -> None:
    loop = Loop("mlp", "redo")
    x = inputs_of("mlp")[0]
    loop.plasticity.before_update()
    with torch.no_grad():
        loop.network(x * 0)
    first = loop.network(x)
    loop.network(x * 3)
    seen = loop.plasticity.agent.survey.outputs(loop.plasticity.agent.observed())
    assert torch.equal(seen["critic.body.0"], loop.network.body[:2](x)) and first.requires_grad


def test_updates_and_steps_are_counted() -> None:
    loop = Loop("mlp", "reset(every=10)")
    loop.plasticity.before_update()
    loop.network(*inputs_of("mlp"))
    with pytest.raises(RuntimeError, match=r"reset counts steps: call after_update\(steps=...\), or write of=updates"):
        loop.plasticity.after_update()
    loop.learn(4)
    assert loop.plasticity.clock.steps == 8 and not loop.plasticity.measurements()
    loop.learn(1)
    assert loop.plasticity.measurements()["interventions/reset_layers"] == 3


# ------------------------------------------------------------------------------------------------------ refusals


class Gated(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.kind = nn.Linear(4, 6), nn.Linear(3 if kind == "glu" else 6, 2), kind
        self.gate = nn.Linear(4, 6) if kind == "gate" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.kind == "glu":
            return self.second(F.glu(h))
        if self.kind == "softmax":
            return self.second(h.softmax(-1))
        if self.kind == "gate":
            return self.second(h * torch.sigmoid(self.gate(x)))
        return self.second(h @ h.T @ h)


class TwoFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(torch.relu(h)) + self.third(torch.tanh(h))


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.first(x))
        return self.second(h), h


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x))


class Masked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2, self.bias)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.log_std = nn.Linear(4, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * self.log_std.exp()


def tied() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    return network


def xavier() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    nn.init.xavier_uniform_(network[0].weight, 2.0)
    return network


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "recurrence": (lambda: nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), r"1 \(LSTM\).*only linear maps"),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 1, 8), r"self_attn \(MultiheadAttention\)"),
    "grouped": (
        lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 2, 1, groups=2)),
        r"2 \(Conv1d\).*2 groups",
    ),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))), r"0 \(.*weight n"),
    "spectral norm": (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 2))), r"0 \(Linear\).*spectral norm"),
    "embedding": (lambda: nn.Sequential(nn.Embedding(4, 2)), r"0 \(Embedding\).*keep other weights outside"),
    "prelu": (lambda: nn.Sequential(nn.Linear(4, 2), nn.PReLU()), r"1 \(PReLU\)"),
    "own weights": (Own, r"the network \(Own\).*it has weights, and only linear maps"),
    "overridden": (lambda: nn.Sequential(Masked(4, 2)), r"0 \(Masked\).*overrides the forward"),
    "tied": (tied, r"1 \(Linear\).*shares its weight with '0'"),
    "used twice": (Twice, r"inner \(Linear\).*used twice"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), r"0 \(LazyLinear\).*run the network once"),
    "double": (lambda: nn.Sequential(nn.Linear(4, 2)).double(), r"0 \(Linear\).*float32"),
    "glu": (lambda: Gated("glu"), r"'second' \(Linear\) reads the units of 'first' mixed.*\(by glu\)"),
    "softmax": (lambda: Gated("softmax"), r"'second'.*'first' mixed.*\(by softmax\)"),
    "gate": (lambda: Gated("gate"), r"'second'.*'first' mixed"),
    "matmul": (lambda: Gated("matmul"), r"'second'.*'first' mixed"),
    "softmax module": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)), r"'2'.*'0'.*by softmax"),
    "two functions": (TwoFunctions, r"'second' and 'third' read different functions of the units of critic.first"),
    "features leave": (Features, r"first \(Linear\).*outputs of the network; give attach forward="),
    "no layer": (lambda: nn.ReLU(), r"no layer"),
    "another law": (xavier, r"critic.0 reach .* pass init='orthogonal'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_networks_are_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    network = seeded(make)
    before = [vars(m).keys() for m in network.modules()]
    optimizer = torch.optim.Adam([*network.parameters()] or [nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=message) as refusal:
        attach(network, optimizer, torch.zeros(2, 4), "redo")
    assert "\n" not in str(refusal.value)
    assert before == [vars(m).keys() for m in network.modules()]


def test_modules_that_no_pass_reaches_are_named() -> None:
    network = seeded(lambda: nn.Sequential(nn.Linear(4, 2)))
    network.extra = nn.Linear(4, 2)  # type: ignore[assignment]
    optimizer = torch.optim.Adam(network.parameters())
    with pytest.raises(ValueError, match=r"extra \(Linear\).*does not reach it; give attach forward="):
        attach(network, optimizer, torch.zeros(1, 4), forward=lambda x: network[0](x))
    attach(network, optimizer, torch.zeros(1, 4), forward=lambda x: (network[0](x), network.extra(x)))


def test_arguments_that_do_not_fit_the_network_are_refused_by_name() -> None:
    network = seeded(Plain)
    optimizer = torch.optim.Adam(network.parameters())
    x = torch.zeros(1, 6)
    for arguments, options, message in (
        ((torch.optim.Adam(network.body[0].parameters()), x), {}, "body.2.weight is in 0 optimizers"),
        (([optimizer, torch.optim.SGD(network.parameters())], x), {}, "body.0.weight is in 2 optimizers"),
        ((torch.optim.Adagrad(network.parameters()), x), {}, "state of Adagrad is not supported; use Adam"),
        ((optimizer, x), {"target": seeded(Heads)}, "target must be another network of the same shape"),
        ((optimizer, x), {"target": network}, "target must be another network"),
        ((optimizer, x), {"encoder": "cnn"}, "no submodule 'cnn'"),
    ):
        with pytest.raises(ValueError, match=message):
            attach(network, *arguments, "redo", **options)
    network.body[2].requires_grad_(False)
    with pytest.raises(ValueError, match=r"body.2.weight does not learn"):
        attach(network, optimizer, x)
    network.body[2].requires_grad_(True)
    with pytest.raises(ValueError, match=r"attach: this network is wrapped by torch.compile"):
        attach(torch.compile(network, backend="eager"), optimizer, x)  # type: ignore[arg-type]
    aged = Adam(network.parameters(), OptimizerConfig())
    network(x).sum().backward()
    aged.step()
    with pytest.raises(ValueError, match="before its first step; attach first"):
        attach(network, aged, x, "redo")


def test_refusals_of_specs_that_need_an_agent_name_an_alternative() -> None:
    network = seeded(Plain)
    optimizer = torch.optim.Adam(network.parameters())
    assert {"redo", "reset", "shrink_perturb", "continual_backprop", "hare_tortoise"} <= set(attachable())
    for name in set(INTERVENTIONS) - set(attachable()):
        with pytest.raises(ValueError, match=f"^{name} .*cannot be attached") as refusal:
            attach(network, optimizer, torch.zeros(1, 6), INTERVENTIONS[name].example)
        assert "\n" not in str(refusal.value)
    assert not {"layer_norm", "replay_ratio", "random_shift", "bbf", "plasticity_injection"} & set(attachable())
    with pytest.raises(ValueError, match=r"layer_norm.*put nn.LayerNorm"):
        attach(network, optimizer, torch.zeros(1, 6), "layer_norm")
    with pytest.raises(ValueError, match="hare_tortoise needs a target network"):
        attach(network, optimizer, torch.zeros(1, 6), "hare_tortoise")
    with pytest.raises(ValueError, match="this Plain has no 'encoder'"):
        attach(network, optimizer, torch.zeros(1, 6), "redo(on=encoder)")
    with pytest.raises(ValueError, match="Did you mean 'redo'"):
        attach(network, optimizer, torch.zeros(1, 6), "redu")
    pooled = seeded(Layouts)
    with pytest.raises(ValueError, match="the state was saved with the interventions"):
        state = attach(network, optimizer, torch.zeros(1, 6), "redo").state_dict()
        attach(pooled, torch.optim.Adam(pooled.parameters()), inputs_of("layouts", 1)).load_state_dict(state)


def test_orthogonal_initialisation_is_used_for_new_weights() -> None:
    def make() -> nn.Module:
        network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
        for module in (network[0], network[2]):
            nn.init.orthogonal_(module.weight, 2**0.5)
            nn.init.zeros_(module.bias)
        return network

    network = seeded(make)
    optimizer = torch.optim.Adam(network.parameters())
    with pytest.raises(ValueError, match="init='orthogonal'"):
        attach(network, optimizer, torch.zeros(1, 8))
    plasticity = attach(network, optimizer, torch.zeros(1, 8), "reset(every=1, of=updates)", init="orthogonal")
    plasticity.before_update()
    network(torch.zeros(1, 8))
    plasticity.after_update()
    weight = network[0].weight
    torch.testing.assert_close(weight.T @ weight, 2 * torch.eye(8))
    assert not network[0].bias.any()


# ----------------------------------------------------------------------------------------------------------- SB3


def sb3() -> Any:
    pytest.importorskip("stable_baselines3")
    return pytest.importorskip("pliant.interventions.external.sb3")


def dqn(**options: Any) -> Any:
    from stable_baselines3 import DQN

    options = {
        "policy": "MlpPolicy",
        "env": "CartPole-v1",
        "learning_starts": 40,
        "train_freq": 2,
        "seed": 0,
        "target_update_interval": 10_000,
        "buffer_size": 500,
        "device": "cpu",
    } | options
    return DQN(**options)


def sac(**options: Any) -> Any:
    from stable_baselines3 import SAC

    options = {
        "policy": "MlpPolicy",
        "env": "Pendulum-v1",
        "learning_starts": 40,
        "seed": 0,
        "buffer_size": 500,
        "policy_kwargs": {"net_arch": [16, 16]},
        "tau": 0.0,
        "device": "cpu",
    } | options
    return SAC(**options)


@torch.no_grad()
def kill(*layers: nn.Linear) -> None:
    for layer in layers:
        layer.weight[1], layer.bias[1] = 0.0, -1.0


def test_methods_work_in_dqn_of_sb3(tmp_path: Path) -> None:
    module = sb3()
    model = dqn()
    kill(model.q_net.q_net[0], model.q_net.q_net[2])
    target = copy.deepcopy(model.q_net_target.state_dict())
    callback = module.PlasticityCallback("redo(tau=0, every=20)", "continual_backprop(rho=0.001, maturity=5)", seed=1)
    model.learn(240, callback=callback)
    for layer in (model.q_net.q_net[0], model.q_net.q_net[2]):
        assert layer.weight[1].abs().max() > 0.01 and layer.bias[1] > -0.9, "the dead unit was not recycled"
    assert not differences(target, model.q_net_target.state_dict())
    assert callback.plasticity.clock.updates == model._n_updates == 100
    assert callback.plasticity.clock.steps == 240 and callback.plasticity.clock.episodes > 3
    assert not any(m._forward_pre_hooks for m in model.q_net.modules())
    assert not model.policy.optimizer._optimizer_step_post_hooks
    model.save(tmp_path / "model")
    from stable_baselines3 import DQN

    again = DQN.load(tmp_path / "model", env=model.get_env(), device="cpu")
    obs = draw(5, 4).numpy()
    assert np.array_equal(model.predict(obs, deterministic=True)[0], again.predict(obs, deterministic=True)[0])
    assert not differences(model.q_net.state_dict(), again.q_net.state_dict())
    # A restored run continues with the state of the interventions.
    other = module.PlasticityCallback("redo(tau=0, every=20)", "continual_backprop(rho=0.001, maturity=5)", seed=2)
    other.load_state_dict(callback.state_dict())
    again.learn(60, callback=other, reset_num_timesteps=False)
    assert other.plasticity.clock.updates == again._n_updates > 100 and other.plasticity.clock.steps == 300


def test_methods_work_in_sac_of_sb3() -> None:
    module = sb3()
    model = sac()
    kill(model.critic.qf0[0], model.critic.qf1[2], model.actor.latent_pi[0])
    target = copy.deepcopy(model.critic_target.state_dict())
    callback = module.PlasticityCallback(
        "redo(tau=0, every=50, on=(critic))", "redo(tau=0, every=50, on=actor)", "regrama(every=70, on=all)"
    )
    model.learn(240, callback=callback)
    for layer in (model.critic.qf0[0], model.critic.qf1[2], model.actor.latent_pi[0]):
        assert layer.weight[1].abs().max() > 0.01 and layer.bias[1] > -0.9, "the dead unit was not recycled"
    assert not differences(target, model.critic_target.state_dict())
    survey = callback.plasticity.agent.survey
    assert list(survey.traced) == ["critic", "actor"] and len(survey.traced["critic"]) == 4
    assert [n for n, layer in survey.layers.items() if layer.is_output] == [
        "critic.qf0.4",
        "critic.qf1.4",
        "actor.mu",
        "actor.log_std",
    ]
    assert all(name.startswith("critic.") for name in survey.copies) and len(survey.copies) == 6


def test_a_callback_that_does_not_act_changes_no_bit() -> None:
    module = sb3()
    for make, network in ((dqn, "q_net"), (sac, "critic")):
        plain = make().learn(100)
        watched = make().learn(100, callback=module.PlasticityCallback("redo(every=9999)", "regrama(every=9999)"))
        assert not differences(getattr(plain, network).state_dict(), getattr(watched, network).state_dict())


class Pictures(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros((36, 36, 1), np.uint8), {}

    def step(self, action: Any) -> Any:
        frame = self.np_random.integers(0, 255, (36, 36, 1), np.uint8)
        return frame, 1.0, bool(self.np_random.random() < 0.1), False, {}


def test_methods_work_in_sb3_with_pixels() -> None:
    module = sb3()
    model = dqn(policy="CnnPolicy", env=Pictures(), learning_starts=8, batch_size=8)
    callback = module.PlasticityCallback(
        "shrink_perturb(layers=encoder, every=3, of=updates)", "redo(on=encoder, every=2, tau=0.5)"
    )
    model.learn(20, callback=callback)
    assert list(callback.plasticity.agent.survey.traced["critic"]) == [
        "critic.encoder.cnn.0",
        "critic.encoder.cnn.2",
        "critic.encoder.cnn.4",
        "critic.encoder.linear.0",
    ]


def test_unsupported_uses_in_sb3_are_refused() -> None:
    module = sb3()
    from stable_baselines3 import PPO

    with pytest.raises(ValueError, match="supports the DQN and SAC of Stable-Baselines3, not PPO"):
        PPO("MlpPolicy", "CartPole-v1", device="cpu").learn(10, callback=module.PlasticityCallback("redo"))
    with pytest.raises(ValueError, match=r"layer_norm .*cannot be attached"):
        dqn().learn(10, callback=module.PlasticityCallback("layer_norm"))
    with pytest.raises(RuntimeError, match="before learning has begun"):
        module.PlasticityCallback("redo").state_dict()
    code = (
        "import sys; sys.modules['stable_baselines3'] = None\nimport pliant.interventions.external.attach\n"
        "try: import pliant.interventions.external.sb3\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'pliant[peers]'" in done.stdout, done.stderr


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_page_run(number: int) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "elsewhere.md"
    code = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[number]
    if number:
        sb3()
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr

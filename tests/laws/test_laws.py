"""The laws: what must hold of every intervention with every agent, and of every ordered pair of interventions.

A new method is tested by being listed in `INTERVENTIONS`: its `example` makes it act within a few updates.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from law_agents import (
    AGENTS,
    MINATAR,
    PAIRED,
    VECTOR,
    begin_run,
    build_run,
    current_state,
    differences,
    dqn,
    identities,
    learn_from,
    refuse_waiting,
    resume,
    saved,
    take_steps,
    take_steps_with_monitors,
)
from rotation import generator, pick
from torch import Tensor, nn

from pliant.agents import PPO, Agent, Every, Supervised
from pliant.agents.hooks import EFFECTS, Effect
from pliant.agents.networks import Layer
from pliant.agents.run import Run
from pliant.agents.views import view
from pliant.interventions import INTERVENTIONS, attach
from pliant.interventions.core.parts import survey
from pliant.interventions.core.recycling import Recycler
from pliant.interventions.core.resetting import LayerMethod
from pliant.interventions.core.spec import build
from pliant.interventions.core.surgery import MEMORY
from pliant.monitors import MONITORS

METHODS = sorted(INTERVENTIONS)
STEPS = 7  # of two environments: six updates, so a method that acts at every third update acts twice

# Agents with vector observations have no images to shift and no encoder to shrink; rewards in channels are one-step.
FLAT = ("dqn", "sac", "redq", "droq", "ppo", "ppo, continuous", "supervised")
VECTORS = {n for n in AGENTS if n in FLAT or "3-step" in n}
# On-policy: no replay ratio to raise, no target network, values regressed on returns.
OFF_POLICY = (
    "replay_ratio",
    "adaptive_replay_ratio",
    "bbf",
    "hare_tortoise",
    "plasticity_injection",
    "c51",
    "quantile",
    "heavy_priming",
    "reset_target",
)
REFUSED = {(name, method) for name in VECTORS for method in ("bbf", "random_shift")} | {
    (name, "value_mapping") for name in AGENTS if "3-step" in name
}
REFUSED |= {(name, method) for name in AGENTS if "ppo" in name for method in (*OFF_POLICY, "value_mapping")}
# Supervised: each minibatch only once, no target network; classes are learnt by cross-entropy only.
SUPERVISED = {name for name in AGENTS if "supervised" in name}
REFUSED |= {
    (name, method)
    for name in SUPERVISED
    for method in (*OFF_POLICY, "value_mapping")
    if method != "plasticity_injection"
}
REFUSED |= {("supervised", method) for method in ("mse", "huber", "symlog", "two_hot", "hl_gauss")}
# The projection of image features is bounded by tanh, and max pooling is not linear.
REFUSED |= {("sac, pixels", "linear"), ("dqn, impala", "linear")}

# Penalties are sums, and activations and value losses are choices of a configuration: they edit no weight, and their
# order cannot matter. What each computes has its own tests (test_regularisers, test_activations, test_heads), so a few
# agents show that they obey the laws, and one or two of each kind represent the others in pairs.
QUIET = {
    "l2",
    "l2_init",
    "wasserstein",
    "spectral",
    "parseval",
    "crelu",
    "fourier",
    "activation",
    "linear",
    "mse",
    "huber",
    "symlog",
    "two_hot",
    "quantile",
}
BESIDE_OTHERS = {"l2_init", "spectral", "fourier", "linear"}
FEW = ("dqn, minatar, dueling", "droq", "sac, pixels", "ppo, continuous")
PAIRED_METHODS = [method for method in METHODS if method not in QUIET or method in BESIDE_OTHERS]
SQUARE = [
    (agent, a, b)
    for agent in PAIRED
    for a in PAIRED_METHODS
    for b in PAIRED_METHODS
    if not {(agent, a), (agent, b)} & REFUSED and (a <= b or not {a, b} & QUIET)
]
# Two methods stand for every effect that has two; all ordered pairs of effects run at every commit.
REPRESENTATIVES: dict[Effect, tuple[str, str]] = {
    "configuration": ("layer_norm", "c51"),
    "penalty": ("l2_init", "spectral"),
    "batch": ("random_shift", "random_shift"),
    "schedule": ("adaptive_replay_ratio", "heavy_priming"),
    "optimizer": ("reset_optimizer", "reset_optimizer"),
    "unit_surgery": ("redo", "continual_backprop"),
    "layer_surgery": ("reset", "shrink_perturb"),
    "memory": ("fresh_agent", "fresh_agent"),
}
EFFECT_PAIRS = [
    (REPRESENTATIVES[a][0], REPRESENTATIVES[b][int(a == b)]) for a in REPRESENTATIVES for b in REPRESENTATIVES
]


def rotating_pairs() -> Iterator[tuple[str, str]]:
    """Every method once before and once after a partner that rotates with the commit."""
    for method in METHODS:
        choice = generator("partners", method)
        yield method, choice.choice(METHODS)
        yield choice.choice(METHODS), method


def quick_pairs() -> list[tuple[str, str, str]]:
    """The pairs that every `make test` runs, each with one agent that rotates with the commit."""
    chosen = []
    for a, b in dict.fromkeys((*EFFECT_PAIRS, *rotating_pairs())):
        agents = [agent for agent in PAIRED if not {(agent, a), (agent, b)} & REFUSED]
        chosen.append((generator("agent", a, b).choice(agents), a, b))
    return chosen


QUICK_PAIRS = quick_pairs()
PAIRS = [
    *QUICK_PAIRS,
    *(pytest.param(*pair, marks=pytest.mark.square) for pair in SQUARE if pair not in set(QUICK_PAIRS)),
]
AGENTS_OF_A_METHOD = 3  # in the quick run, chosen by rotation


def cells() -> Iterator[tuple[str, str, bool]]:
    """Every agent with every method, and whether the quick run takes this case. Each method starts one agent later, so
    that no agent is left out."""
    start = generator("agents").randrange(len(AGENTS))
    for number, method in enumerate(METHODS):
        agents = [agent for agent in (FEW if method in QUIET else AGENTS) if (agent, method) not in REFUSED]
        taken = pick(agents, AGENTS_OF_A_METHOD, start + number)
        for agent in agents:
            yield agent, method, agent in taken


def examples(*methods: str) -> tuple[Any, ...]:
    return tuple(build([INTERVENTIONS[m].example for m in methods], INTERVENTIONS))


def run_of(agent: str, method: str, **options: Any) -> Run:
    return build_run(agent, examples(method), **options)


each = pytest.mark.parametrize(
    ("agent", "method"),
    [pytest.param(agent, method, marks=() if quick else pytest.mark.full) for agent, method, quick in cells()],
)


@each
class TestLaws:
    def test_a_seed_determines_the_run_and_a_resumed_run_continues_it_exactly(self, agent: str, method: str) -> None:
        """Two runs of one seed are equal to the last bit; 2N steps equal N steps, save, load into another run, N steps.

        No parameter, buffer or optimizer changes identity, each trainable parameter has exactly one optimizer, nothing
        draws from global generators, and neither an update nor a method makes the host wait for the device.
        """
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
        straight, stopped, resumed = run_of(agent, method), run_of(agent, method), run_of(agent, method, seed=99)
        assert differences(current_state(straight), current_state(resumed))
        before = identities(straight.agent)
        for run in (straight, stopped):
            take_steps(run, STEPS)
        assert not differences(current_state(straight), current_state(stopped))
        resume(resumed, saved(stopped))
        make_remaining_updates = refuse_waiting(straight, updates=5)
        take_steps(straight, 4)
        take_steps(resumed, 4 + make_remaining_updates())
        assert not differences(current_state(straight), current_state(resumed))
        assert before == identities(straight.agent)
        check_optimizers(straight.agent)
        assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
        assert np.array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]

    def test_edited_weights_make_a_fresh_start(self, agent: str, method: str) -> None:
        """Reinitialised weights follow the layer's initialiser and start with fresh optimizer state; other weights are
        unaffected. The optimizer's first step of an edited weight is that of a new weight."""
        run = run_of(agent, method)
        take_steps(run, 4)
        acted = False
        for _ in range(4):
            acted |= watch_edits(run, method)
        if acts_on_weights(method):
            assert acted, "the method edited nothing: the law checked nothing"


@pytest.mark.parametrize(("agent", "method"), sorted(REFUSED))
def test_a_method_that_does_not_fit_the_agent_is_refused_by_name(agent: str, method: str) -> None:
    with pytest.raises(ValueError) as refusal:
        run_of(agent, method)
    assert method in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(("agent", "first", "second"), PAIRS)
def test_every_ordered_pair_obeys_the_laws_or_is_refused(agent: str, first: str, second: str) -> None:
    """The refusal is one line that names both methods."""
    try:
        straight = build_run(agent, examples(first, second))
    except ValueError as refusal:
        message = str(refusal)
        assert first in message and second in message and "exclude each other" in message and "\n" not in message
        with pytest.raises(ValueError, match="exclude each other"):
            build_run(agent, examples(second, first))
        return
    before = identities(straight.agent)
    # Four updates and then four: a method that acts at every third update acts before and after the stop.
    take_steps(straight, 6)
    stopped = deepcopy(current_state(straight))  # the laws of single methods save to a file
    # The guarded update is the sixth: a method that acts at every second or third update acts in it.
    make_remaining_updates = refuse_waiting(straight, updates=1, after=1)
    take_steps(straight, 2)
    further = make_remaining_updates()
    assert before == identities(straight.agent)
    check_optimizers(straight.agent)
    resumed = build_run(agent, examples(first, second), seed=99)
    resume(resumed, stopped)
    take_steps(resumed, 2 + further)
    assert not differences(current_state(straight), current_state(resumed))


# ------------------------------------------------------------------------------------------------ other laws


def draws_of(run: Run, steps: int) -> list[tuple[int, float]]:
    """n-step and discount of every batch that is drawn beside training's; each must be what the agent learns with."""
    sample, drawn = run.memory.sample, []

    def recorded_sample(batch_size: int, n_step: int = 1, gamma: float = 0.99, generator: Any = None) -> Any:
        if generator is not None:
            sampling = run.agent.sampling(run.clock)
            drawn.append((n_step, gamma))
            assert drawn[-1] == (sampling.n_step, sampling.gamma)
        return sample(batch_size, n_step, gamma, generator)

    run.memory.sample = recorded_sample
    take_steps_with_monitors(run, steps)
    return drawn


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("value_mapping", "random_shift", "bbf")])
def test_methods_draw_batches_as_the_agent_learns_from_them(method: str) -> None:
    """The batches have the agent's n-step and discount, not the defaults of the replay memory."""
    drawn = draws_of(begin_run(dqn(VECTOR, n_step=3, gamma=0.9)(interventions=examples(method))), STEPS)
    assert set(drawn) == ({(3, 0.9)} if method in ("chain", "redo", "regrama") else set())


def test_monitors_draw_batches_as_the_agent_learns_from_them() -> None:
    """This holds while n-step and discount are annealed, and when a method fires."""
    parts = build(["bbf(every=1000, anneal=12, n_start=4, n_end=2)", "redo(tau=0.9, every=2)"], INTERVENTIONS)
    agent = dqn(MINATAR, gamma=0.9)(interventions=parts)
    assert len(set(draws_of(begin_run(agent, monitors=[kind.example for kind in MONITORS.values()]), 12))) > 3


@pytest.mark.parametrize("method", METHODS)
def test_every_method_does_something(method: str) -> None:
    """A run with the method differs from a run without it, so the laws above check something."""
    plain, treated = build_run("dqn, minatar, dueling"), build_run("dqn, minatar, dueling", examples(method))
    for run in (plain, treated):
        take_steps(run, STEPS)
    mine, theirs = (dict(run.agent.components["critic"].online.named_parameters()) for run in (treated, plain))
    same = mine.keys() == theirs.keys() and all(
        mine[k].shape == theirs[k].shape and torch.equal(mine[k], theirs[k]) for k in mine
    )
    assert same == (method == "huber"), "the default of DQN is Huber, and nothing else is"


@pytest.mark.parametrize("method", [m for m in METHODS if isinstance(examples(m)[0].when, Every)])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_a_method_with_a_period_fires_once_per_period(method: str, num_envs: int, ratio: float) -> None:
    """This holds at any number of environments and at any replay ratio."""
    part = examples(method)[0]
    run = build_run("dqn, minatar, dueling", (part,), num_envs=num_envs)
    fired: list[bool] = []
    inner = part.measurements
    part.measurements = lambda: fired.append(bool(values := inner())) or values  # type: ignore[func-returns-value, method-assign]
    expected = []
    if method != "adaptive_replay_ratio":
        set_replay_ratio(run, ratio)
    learn = run.learn

    def counted(batch: Any) -> None:
        learn(batch)
        last, now = run.clock.read(part.when.of)
        expected.append(now // part.when.period > last // part.when.period)

    run.learn = counted  # type: ignore[method-assign]
    take_steps(run, 32 // num_envs)
    assert sum(expected) > 1
    if isinstance(part, Recycler | LayerMethod):
        assert fired == expected


def set_replay_ratio(run: Run, ratio: float) -> None:
    sampling = run.agent.sampling
    run.agent.sampling = (
        lambda clock: (
            sampling(clock)._replace(replay_ratio=ratio)
            if hasattr(  # type: ignore[method-assign]
                sampling(clock), "_replace"
            )
            else type(sampling(clock))(*[*vars(sampling(clock)).values()][:3], ratio)
        )
    )


@pytest.mark.parametrize("agent", [name for name in AGENTS if (name, "plasticity_injection") not in REFUSED])
def test_injection_preserves_every_prediction(agent: str) -> None:
    run = build_run(agent, build(["plasticity_injection(at=(3, 6), of=updates)"], INTERVENTIONS))
    take_steps(run, 4)
    for _ in range(6):
        batch = run.memory.sample(8)
        before: list[Tensor] = []
        inner = run.agent.interventions.after_update

        def spy(
            r: Any, activations: Any, inner: Any = inner, outputs: list[Tensor] = before, batch: Any = batch
        ) -> None:
            outputs += predictions(run.agent, batch)
            inner(r, activations)

        run.agent.interventions.after_update = spy  # type: ignore[method-assign]
        run.clock = run.clock.stepped(1)
        learn_from(run, batch)
        run.agent.interventions.after_update = inner  # type: ignore[method-assign]
        for old, new in zip(before, predictions(run.agent, batch), strict=True):
            torch.testing.assert_close(old, new, atol=1e-6, rtol=0)


@pytest.mark.parametrize("agent", [name for name in AGENTS if name != "droq"])
@pytest.mark.parametrize(
    "spec", ["redo(tau=0, every=1, on=all, samples=0)", "self_normalized_reset(longest=1, on=all)"]
)
def test_recycling_dead_units_changes_no_prediction(agent: str, spec: str) -> None:
    """Units that are exactly dead are recycled, and no prediction changes.

    A normalised layer is an exception: a new unit's pre-activation enters the statistics of all other units.
    """
    run = build_run(agent, build([spec], INTERVENTIONS))
    take_steps(run, 3)
    dead = kill_units(run.agent)
    if "crelu" in agent:
        assert not dead, "one of the two copies of a unit is always active"
        return
    batch = run.memory.sample(8)
    before = predictions(run.agent, batch)
    run.clock = run.clock.stepped(1).updated()
    run.agent.interventions.after_update(run, view(run.agent).activations(batch))
    for old, new in zip(before, predictions(run.agent, batch), strict=True):
        torch.testing.assert_close(old, new, atol=2e-7, rtol=2e-6)
    assert all(layer.linear.weight[unit].abs().max() > 0 for layer, unit in dead), "a dead unit was not recycled"


@pytest.mark.parametrize("agent", AGENTS)
def test_redrawing_only_incoming_weights_leaves_consumers_unchanged(agent: str) -> None:
    """The law of the fresh start, for the variant that redraws only incoming weights."""
    run = build_run(agent, build(["regrama(tau=0.7, every=2, samples=16, outgoing=False)"], INTERVENTIONS))
    take_steps(run, 4)
    assert sum(watch_edits(run, "regrama") for _ in range(4)) > 0


@pytest.mark.parametrize("agent", AGENTS)
def test_consumers_of_a_replaced_unit_keep_their_mean_output(agent: str) -> None:
    """Continual backprop folds the mean of a replaced unit into the biases of its consumers: where the unit was at
    its mean, their outputs stay the same for any values of the other inputs."""
    (part,) = examples("continual_backprop")
    run = build_run(agent, (part,))
    take_steps(run, 5)
    seen, inner, g = spy_on_recycling(part), part.compensate, torch.Generator().manual_seed(0)
    probes: list[tuple[str, Layer, Tensor, Tensor]] = []
    names = {layer: name for name, layer in survey(run.agent).layers.items()}

    def compensate(name: str, chosen: Any) -> None:
        units, picked = part.units[name], chosen.index[chosen.valid].tolist()
        age, mean = (getattr(part, part._key(name, key)) for key in ("age", "mean"))
        means = mean / (1 - part.decay**age)
        for consumer in units.consumers if picked else ():
            x = torch.randn(1, *consumer.weight.shape[1:], generator=g)
            for unit in picked:
                # The places of a unit: those of its first copy, then those of its second.
                for copy, places in enumerate((consumer.owner == unit).nonzero().flatten().chunk(units.layer.copies)):
                    x[0, places] = means[copy, unit]
            probes.append((names[consumer.layer], consumer.layer, x, at_one_place(consumer.layer, x)))
        inner(name, chosen)

    part.compensate = compensate  # type: ignore[method-assign]
    for _ in range(3):
        seen.clear()
        probes.clear()
        run.clock = run.clock.stepped(1)
        learn_from(run, run.memory.sample(8))
        for name, layer, x, before in probes:
            kept = [row for row in range(len(before)) if row not in seen.get(name, [])]
            torch.testing.assert_close(at_one_place(layer, x)[kept], before[kept], atol=1e-5, rtol=1e-5)
        if probes:
            return
    raise AssertionError("nothing was replaced: the law checked nothing")


def at_one_place(layer: Layer, x: Tensor) -> Tensor:
    """The linear map of a layer at one position [units]."""
    weight, bias = layer.linear.weight, layer.linear.bias
    with torch.no_grad():
        return weight.flatten(1) @ x.flatten() + bias


def test_consumers_without_a_bias_are_silenced_without_compensation() -> None:
    """Consumers without a bias, which external networks can have, are silenced like all others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    plasticity = attach(network, optimizer, torch.zeros(1, 5), "continual_backprop(rho=0.5, maturity=0)")
    plasticity.before_update()
    network(torch.ones(4, 5)).sum().backward()
    optimizer.step()
    plasticity.after_update()
    assert (network[2].weight == 0).all(0).sum() == 4


# ------------------------------------------------------------------------------------------------------ helpers


def check_optimizers(agent: Agent) -> None:
    held = [id(p) for _, o in agent.optimizers() for g in o.param_groups for p in g["params"]]
    trainable = {id(p) for _, m in agent.modules() for p in m.parameters() if p.requires_grad}
    assert len(held) == len(set(held)) and set(held) == trainable


def acts_on_weights(method: str) -> bool:
    return bool(examples(method)[0].edits)


def online(agent: Agent) -> Iterator[tuple[str, Tensor, dict[str, Tensor], Tensor, Layer | None, str]]:
    """Every trained weight with its optimizer state: name, weight, moments, shared step, layer, key."""
    layers = {id(p): (layer, key) for layer in survey(agent).layers.values() for key, p in layer.named_parameters()}
    names = {id(p): f"{c}.{n}" for c, part in agent.components.items() for n, p in part.online.named_parameters()}
    for _, optimizer in agent.optimizers():
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = optimizer.state[p]
                memory = {k: v for k, v in state.items() if k in MEMORY}
                yield names[id(p)], p, memory, state["step"], *layers.get(id(p), (None, ""))


def watch_edits(run: Run, method: str) -> bool:
    """One update that compares weights and optimizer state before and after the method acts. Did it edit anything?"""
    agent, part = run.agent, next(iter(run.agent.interventions))
    inner, seen = part.after_update, spy_on_recycling(part)
    touched: dict[str, Tensor] = {}

    def watched(r: Any, activations: Any) -> None:
        before = {n: (p.clone(), {k: v.clone() for k, v in m.items()}, s.clone()) for n, p, m, s, _, _ in online(agent)}
        inner(r, activations)
        fired = any(not torch.equal(p, before[n][0]) for n, p, *_ in online(agent)) or bool(seen)
        fired |= part.name == "reset_optimizer" and part.when(r.clock)
        touched.update(expected_edits(part, agent, seen) if fired else {})
        for name, p, memory, step, _, key in online(agent):
            old, remembered, counted = before[name]
            mask = touched.get(name, torch.zeros_like(p, dtype=torch.bool))
            if part.name == "continual_backprop" and key == "linear.bias":
                pass  # the mean contribution of silenced units is folded into the biases of their consumers
            else:
                assert torch.equal(p[~mask], old[~mask]), f"{name} was edited where nothing was chosen"
            forgotten = torch.ones_like(mask) if fired and forgets_component(part) else mask
            if keeps_memory(part):
                forgotten = torch.zeros_like(mask)
            for k, value in memory.items():
                assert torch.equal(value, torch.where(forgotten, 0.0, remembered[k])), f"{name}: {k}"
            assert step == (0 if forgotten.all() and not isinstance(part, Recycler) else counted), f"{name}: step"

    part.after_update = watched  # type: ignore[method-assign]
    run.clock = run.clock.stepped(1)
    learn_from(run, run.memory.sample(8))
    part.after_update = inner  # type: ignore[method-assign]
    if isinstance(part, Recycler):
        check_initialisation(agent, seen, silences(part))
    if touched and not keeps_memory(part):
        check_first_step(run, touched)
    return bool(touched)


def spy_on_recycling(part: Any) -> dict[str, list[int]]:
    """The units that the method chooses, by layer; filled when it acts."""
    seen: dict[str, list[int]] = {}
    if isinstance(part, Recycler):
        inner = type(part).recycle

        def recycle(chosen: Any, **options: Any) -> None:
            for name, (index, valid) in chosen.items():
                if units := sorted(index[valid].tolist()):
                    seen[name] = units
            inner(part, chosen, **options)

        part.recycle = recycle  # type: ignore[method-assign]
    return seen


def expected_edits(part: Any, agent: Agent, seen: dict[str, list[int]]) -> dict[str, Tensor]:
    """The weights that a method may edit, derived from the units that it chose: a mask by name."""
    masks: dict[int, Tensor] = {}
    parts = survey(agent)

    def mask(p: Tensor) -> Tensor:
        return masks.setdefault(id(p), torch.zeros_like(p, dtype=torch.bool))

    if isinstance(part, Recycler):
        for name, units in seen.items():
            for p in parts.graph[name].layer.parameters():
                mask(p)[units] = True
            for consumer in parts.graph[name].consumers if silences(part) else ():
                mask(consumer.weight)[:, torch.isin(consumer.owner, torch.tensor(units))] = True
    else:
        for name, layer in parts.layers.items():
            if touches_layer(part, name):
                for key, p in layer.named_parameters():
                    if not (key.startswith("norm.") and part.name == "shrink_perturb"):
                        mask(p)[...] = True
        for component in agent.components.values() if part.name in REDRAW_ALL else ():
            for key, p in component.online.named_parameters():
                if key in ("log_alpha", "log_std"):
                    mask(p)[...] = True
    return {name: masks[id(p)] for name, p, *_ in online(agent) if id(p) in masks}


def touches_layer(part: Any, name: str) -> bool:
    """Does the example of a method that redraws whole layers act on this layer?"""
    if part.name == "plasticity_injection":
        return name.startswith(
            ("critic.head", "critic.advantage", "critic.value", "critic.members", "critic.body", "critic.output")
        )
    return part.name in (*REDRAW_ALL, "shrink_perturb") or (part.name == "hare_tortoise" and name.startswith("critic."))


def keeps_memory(part: Any) -> bool:
    """The hare keeps its momentum, as its documentation promises."""
    return part.name == "hare_tortoise"


def forgets_component(part: Any) -> bool:
    return part.name in (*REDRAW_ALL, "reset_optimizer")


# Methods whose examples redraw all layers, temperature and deviation; the placebo (matched_random) acts as a reset.
REDRAW_ALL = ("reset", "bbf", "replay_ratio", "fresh_agent", "matched_random")


def silences(part: Any) -> bool:
    """Does a method zero the outgoing weights of the units that it recycles?"""
    return bool(getattr(part, "outgoing", True))


def check_initialisation(agent: Agent, seen: dict[str, list[int]], silenced: bool) -> None:
    """Recycled units follow their layer's initialiser, and their consumers receive nothing from them."""
    graph = survey(agent).graph
    silent: dict[int, Tensor] = {}
    for name, units in seen.items():
        for consumer in graph[name].consumers if silenced else ():
            columns = torch.isin(consumer.owner, torch.tensor(units))
            assert not consumer.weight[:, columns].any(), f"consumers still use outputs of {name}"
            silent[id(consumer.weight)] = silent.get(id(consumer.weight), torch.zeros_like(columns)) | columns
    for name, units in seen.items():
        layer = graph[name].layer
        weight = layer.linear.weight
        connected = ~silent.get(id(weight), torch.zeros(weight.shape[1], dtype=torch.bool))
        rows = weight[units][:, connected]
        bound = layer.gain + 1e-5 if layer.init == "orthogonal" else weight[0].numel() ** -0.5
        assert rows.numel() == 0 or 0 < rows.abs().max() <= bound
        assert layer.linear.bias[units].abs().max() <= (0 if layer.init == "orthogonal" else bound)
        if layer.norm is not None:
            assert (layer.norm.weight[units] == 1).all() and (layer.norm.bias[units] == 0).all()  # type: ignore[index, union-attr]


def check_first_step(run: Run, edited: dict[str, Tensor]) -> None:
    """The optimizer's next step moves an edited weight by the learning rate, as it does with a new one."""
    agent = run.agent
    before = {n: p.detach().clone() for n, p, *_ in online(agent)}
    moved: dict[str, Tensor] = {}
    inner = agent.interventions.after_update

    def record_steps(r: Any, activations: Any) -> None:
        moved.update({n: (p.detach() - before[n]).abs() for n, p, *_ in online(agent)})

    agent.interventions.after_update = record_steps  # type: ignore[method-assign]
    run.clock = run.clock.stepped(1)
    learn_from(run, run.memory.sample(8))
    agent.interventions.after_update = inner  # type: ignore[method-assign]
    for name, p, memory, *_ in online(agent):
        if name not in edited or name.startswith("temperature"):
            continue
        lr = next(g["lr"] for _, o in agent.optimizers() for g in o.param_groups if any(q is p for q in g["params"]))
        gradient = p.grad
        if gradient is None:  # an actor that did not learn in this update
            continue
        large = edited[name] & (gradient.abs() > 1e-4) & (memory["exp_avg"] != 0)
        steps = moved[name][large]
        assert (steps - lr).abs().max() <= 0.02 * lr if steps.numel() else True, f"{name}: the first step is not new"


def kill_units(agent: Agent) -> list[tuple[Layer, int]]:
    """Make the first unit of every rectified layer exactly dead."""
    dead = []
    parts = survey(agent)
    with torch.no_grad():
        for units in parts.graph.values():
            layer = units.layer
            if type(layer.activation).__name__ != "ReLU" or not units.resettable:
                continue
            layer.linear.weight[0] = 0.0
            layer.linear.bias[0] = -1.0
            dead.append((layer, 0))
    return dead


def predictions(agent: Agent, batch: Any) -> list[Tensor]:
    """The outputs of every network of the agent for a batch, without dropout."""
    outputs: list[Tensor] = []
    with torch.no_grad(), agent.without_dropout():
        if isinstance(agent, PPO):
            values, features = agent.read(batch.obs)
            return [values, *agent.policy(features)]
        critic = agent.components["critic"]
        if isinstance(agent, Supervised):
            return [critic.online(batch.obs)]
        for network in (critic.online, critic.target):
            if agent.action.discrete:
                outputs.append(network(batch.obs))  # type: ignore[misc]
            else:
                action = (batch.action - agent.center) / agent.scale  # type: ignore[attr-defined]
                outputs.append(network(batch.obs, action))  # type: ignore[misc]
        if "actor" in agent.components:
            outputs += agent.components["actor"].online(critic.online.encoder(batch.obs))
    return outputs


def test_the_laws_cover_every_method() -> None:
    assert set(METHODS) == set(INTERVENTIONS)
    for method in METHODS:
        accepted = [a for a in AGENTS if (a, method) not in REFUSED]
        assert accepted, f"{method} is refused everywhere"
        assert INTERVENTIONS[method].example.startswith(method)


def test_the_quick_run_takes_every_method_agent_and_pair_of_effects() -> None:
    quick = [(agent, method) for agent, method, taken in cells() if taken]
    assert {method for _, method in quick} == set(METHODS)
    assert {agent for agent, _ in quick} == set(AGENTS)
    assert set(REPRESENTATIVES) == set(EFFECTS)
    for effect, methods in REPRESENTATIVES.items():
        assert {INTERVENTIONS[method].effect for method in methods} == {effect}
    effects = {(INTERVENTIONS[a].effect, INTERVENTIONS[b].effect) for _, a, b in QUICK_PAIRS}
    assert effects == {(a, b) for a in EFFECTS for b in EFFECTS}
    for method in METHODS:
        assert any(method == a for _, a, _ in QUICK_PAIRS) and any(method == b for _, _, b in QUICK_PAIRS)

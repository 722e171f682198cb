"""Methods that reset single units, compared with numbers computed by hand: ReDo, ReGraMa, continual backprop, SNR."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from law_agents import RandomEnvs
from no_wait import no_wait
from stand import Stand, ks, memories, only, parameters, put_, remember_, state_of
from test_agents import BOX, DQN_SMALL, SAC_SMALL, SMALL_PIXELS, batch_for
from torch import Tensor, nn

from pliant.agents import DQN, SAC, Agent, Clock, DQNConfig, Intervention
from pliant.agents.networks import Layer, NetworkConfig
from pliant.agents.optimizers import OptimizerConfig
from pliant.agents.views import view
from pliant.common.spaces import ObservationSpec
from pliant.interventions.bbf import BBF
from pliant.interventions.continual_backprop import ContinualBackprop
from pliant.interventions.core.recycling import Recycler, lowest, magnitude
from pliant.interventions.redo import ReDo, dormancy_score
from pliant.interventions.regrama import ReGraMa
from pliant.interventions.self_normalized_reset import EXACT, SelfNormalizedReset, bin_lengths, bin_of

MINATAR = ObservationSpec((4, 10, 10), torch.uint8, 1.0)


def dqn(*parts: Intervention, inputs: int = 2, hidden: tuple[int, ...] = (3,), actions: int = 2, **changes: Any) -> DQN:
    config = DQNConfig(
        network=NetworkConfig(hidden=hidden), optimizer=OptimizerConfig(lr=1e-3), value_loss="mse", target_period=1000
    )
    return DQN((inputs,), actions, replace(config, **changes), interventions=parts)


def on_pixels(*parts: Intervention, **network: Any) -> DQN:
    config = replace(DQN_SMALL, network=NetworkConfig(**{"hidden": (12, 10)} | network))
    return DQN(MINATAR, 3, config, interventions=parts)


def stand_with(agent: DQN, obs: Sequence[Any]) -> Stand:
    """A stand whose memory holds these observations."""
    batch = batch_for(agent, len(obs))
    return Stand(agent, batch.replace(obs=torch.tensor(obs, dtype=torch.float32)))


def layer_of(agent: Agent, name: str) -> Layer:
    return only(agent).survey.layers[name]


FIRST, OUT = "critic.head.layers.0", "critic.advantage"


def reference(**options: Any) -> tuple[DQN, Stand]:
    """The network of the reference: mean outputs (2, 1, 0) on two observations."""
    agent = dqn(ReDo(**{"tau": 0.0, "every": 1, "samples": 2} | options))
    put_(agent.critic.online.head.layers[0], [[1, 0], [0, 1], [-1, -1]])  # type: ignore[union-attr, arg-type]
    put_(agent.critic.online.advantage, [[1, 2, 3], [4, 5, 6]], [0.5, -0.5])  # type: ignore[arg-type]
    return agent, stand_with(agent, [[1, 1], [3, 1]])


# ----------------------------------------------------------------------------------------------------------- ReDo


def test_redo_scores_the_reference_network_correctly() -> None:
    agent, stand = reference()
    h = view(agent).activations(stand.memory.batch)["critic"][0]
    a = magnitude(layer_of(agent, FIRST), h)
    assert a.tolist() == [2.0, 1.0, 0.0]
    torch.testing.assert_close(dormancy_score(a), torch.tensor([2.0, 1.0, 0.0]))


def test_redo_recycles_only_the_dead_unit_of_the_reference_network() -> None:
    agent, stand = reference()
    remember_(agent)
    online, obs = agent.critic.online, stand.memory.batch.obs
    before, target = parameters(online), parameters(agent.critic.target)  # type: ignore[arg-type]
    outputs = online(obs)
    stand.tick().act()
    assert torch.equal(online(obs), outputs), "predictions changed"
    touched = {
        "head.layers.0.linear.weight": (slice(2, 3),),
        "head.layers.0.linear.bias": (slice(2, 3),),
        "advantage.linear.weight": (slice(None), slice(2, 3)),
        "advantage.linear.bias": (slice(0, 0),),
    }
    for name, parameter in online.named_parameters():
        mask = torch.zeros_like(parameter, dtype=torch.bool)
        mask[touched[name]] = True
        assert torch.equal(parameter[~mask], before[name][~mask]), name
        for moment in memories(agent, parameter).values():
            assert torch.equal(moment, torch.where(mask, 0.0, 1.0)), name
        assert state_of(agent, parameter)["step"] == 1e6
    row, bias = layer_of(agent, FIRST).linear.weight[2], layer_of(agent, FIRST).linear.bias[2]
    assert (row != -1).all() and row.abs().max() <= 2**-0.5 and 0 < abs(bias) <= 2**-0.5
    assert not layer_of(agent, OUT).linear.weight[:, 2].any()
    assert all(torch.equal(p, target[n]) for n, p in agent.critic.target.named_parameters())  # type: ignore[union-attr]
    assert only(agent).measurements() == {"interventions/redo_units": 1.0}
    assert only(agent).measurements() == {}


@pytest.mark.parametrize(("tau", "recycled"), [(0.0, 1), (0.999, 1), (1.0, 2), (1.999, 2), (2.0, 3)])
def test_redo_counts_units_up_to_tau(tau: float, recycled: int) -> None:
    agent, stand = reference(tau=tau)
    stand.tick().act()
    assert only(agent).measurements() == {"interventions/redo_units": float(recycled)}


def kill(layer: Layer, unit: int) -> None:
    """Make this unit output zero for every input."""
    with torch.no_grad():
        layer.linear.weight[unit] = 0.0
        layer.linear.bias[unit] = 0.0 if layer.copies == 2 else -1.0  # type: ignore[index]


DEAD: dict[str, Callable[[Intervention], Agent]] = {
    "mlp": lambda part: dqn(part, inputs=5, hidden=(12, 10)),
    "conv to linear": lambda part: on_pixels(part),
    "conv to conv": lambda part: DQN(
        SMALL_PIXELS,
        3,
        replace(DQN_SMALL, network=NetworkConfig(body="drq", width=0.2, hidden=(12,))),
        interventions=[part],
    ),
    "impala": lambda part: DQN(
        SMALL_PIXELS,
        3,
        replace(DQN_SMALL, network=NetworkConfig(body="impala", width=0.5, hidden=(12,))),
        interventions=[part],
    ),
    "crelu": lambda part: dqn(part, inputs=5, network=NetworkConfig(hidden=(12, 10), activation="crelu")),
    "crelu, conv to linear": lambda part: on_pixels(part, activation="crelu"),
    "dueling": lambda part: dqn(part, inputs=5, hidden=(12, 10), dueling=True),
    "dueling, conv to linear": lambda part: DQN(MINATAR, 3, replace(DQN_SMALL, dueling=True), interventions=[part]),
    "twin critics": lambda part: SAC((5,), BOX, SAC_SMALL, interventions=[part]),
    "twin critics on pixels": lambda part: SAC(
        SMALL_PIXELS,
        BOX,
        replace(SAC_SMALL, network=NetworkConfig(body="drq", hidden=(12, 10), width=0.25)),
        interventions=[part],
    ),
}


def predictions(agent: Agent, obs: Tensor, action: Tensor) -> list[Tensor]:
    """The outputs of all networks; the critic gets the given actions."""
    critic = agent.components["critic"].online
    if not isinstance(agent, SAC):
        return [critic(obs)]
    return [critic(obs, (action - agent.center) / agent.scale), *agent.components["actor"].online(critic.encoder(obs))]


@pytest.mark.parametrize("name", DEAD)
@torch.no_grad()
def test_recycling_dead_units_changes_no_prediction(name: str) -> None:
    """They are equal to the last bit, for every consumer: the next layer, both streams, every critic, the actor."""
    agent = DEAD[name](ReDo(tau=0.0, every=1, on="all"))
    part, stand = only(agent), Stand(agent)
    rectified = {n: u for n, u in part.units.items() if type(u.layer.activation).__name__ in ("ReLU", "CReLU")}
    for units in rectified.values():
        kill(units.layer, 1)
    remember_(agent)
    batch = stand.memory.batch
    before = predictions(agent, batch.obs, batch.action)
    with no_wait():
        part.after_update(stand.tick(), {})
    for old, new in zip(before, predictions(agent, batch.obs, batch.action), strict=True):
        assert torch.equal(old, new)
    for units in rectified.values():
        assert units.layer.linear.weight[1].any(), "the dead unit was not recycled"
        for consumer in units.consumers:
            columns = consumer.columns[1]
            assert len(columns) % units.layer.copies == 0
            assert not consumer.weight[:, columns].any()
            for key, moment in memories(agent, consumer.weight).items():
                assert not moment[:, columns].any(), (units.name, key)


def test_a_recycled_channel_is_also_cut_from_the_actor() -> None:
    agent = DEAD["twin critics on pixels"](ReDo(tau=0.0, every=1, on="encoder"))
    part, stand = only(agent), Stand(agent)
    last = part.units["critic.encoder.blocks.3"]
    consumers = [consumer.layer for consumer in last.consumers]
    actor = agent.components["actor"].online.projection.layer
    assert consumers == [agent.components["critic"].online.projection.layer, actor]
    kill(last.layer, 2)
    remember_(agent)
    before = actor.linear.weight.detach().clone()
    stand.tick().act()
    places = actor.linear.weight.shape[1] // last.count
    owned = torch.zeros_like(before, dtype=torch.bool)
    owned[:, 2 * places : 3 * places] = True
    assert not actor.linear.weight[owned].any() and torch.equal(actor.linear.weight[~owned], before[~owned])
    for moment in memories(agent, actor.linear.weight).values():
        assert torch.equal(moment, torch.where(owned, 0.0, 1.0))


def test_the_weight_between_two_recycled_units_ends_at_zero() -> None:
    agent = dqn(ReDo(tau=0.0, every=1), inputs=5, hidden=(6, 6))
    first, second = (layer_of(agent, f"critic.head.layers.{i}") for i in (0, 1))
    kill(first, 1), kill(first, 4), kill(second, 2)
    Stand(agent).tick().act()
    assert second.linear.weight[2, [1, 4]].tolist() == [0.0, 0.0]
    others = [i for i in range(6) if first.linear.weight[i].any() and i not in (1, 4)]
    assert (second.linear.weight[2, others] != 0).all(), "the other weights of the recycled row must be redrawn"
    assert not second.linear.weight[:, [1, 4]].any()


@pytest.mark.parametrize("factor", [0.125, 10.0, 1e4])
def test_redo_does_not_depend_on_the_scale_of_a_layer(factor: float) -> None:
    counts = []
    for scale in (1.0, factor):
        agent = dqn(ReDo(tau=0.5, every=1), inputs=5, hidden=(64,))
        with torch.no_grad():
            for p in layer_of(agent, FIRST).parameters():
                p.mul_(scale)
        initial = layer_of(agent, FIRST).linear.weight.detach().clone()
        Stand(agent, batch_for(agent, 32)).tick().act()
        counts.append((layer_of(agent, FIRST).linear.weight != initial).any(1))
    assert torch.equal(*counts) and 0 < counts[0].sum() < 64


@given(st.lists(st.floats(0, 100, width=32), min_size=2, max_size=20), st.floats(0.01, 100))
def test_scores_have_a_mean_of_one_and_do_not_depend_on_the_scale(sizes: list[float], factor: float) -> None:
    a = torch.tensor(sizes)
    score = dormancy_score(a)
    if a.mean() > 1e-3:
        assert score.mean().item() == pytest.approx(1.0, rel=1e-4)
        torch.testing.assert_close(dormancy_score(a * factor), score, rtol=1e-3, atol=1e-4)
    assert dormancy_score(torch.zeros(4)).tolist() == [0.0] * 4


def test_activity_is_the_mean_magnitude_over_positions_and_copies() -> None:
    """A unit that oscillates about zero is as active as a constant one; every position of a channel counts."""
    agent = dqn(ReDo())
    layer = copy.copy(layer_of(agent, FIRST))
    assert magnitude(layer, torch.tensor([[2.0, -1.0, 0.0], [-2.0, -1.0, 4.0]])).tolist() == [2.0, 1.0, 2.0]
    image = torch.zeros(2, 3, 2, 2)
    image[0, 1, 0, 1], image[:, 2] = -8.0, 1.0
    assert magnitude(layer, image).tolist() == [0.0, 1.0, 1.0]
    layer.copies = 2
    twice = torch.tensor([[1.0, 0.0, 0.0, 0.0, 3.0, 0.0]])
    assert magnitude(layer, twice).tolist() == [0.5, 1.5, 0.0]


@pytest.mark.parametrize("init", ["torch", "orthogonal"])
def test_recycled_rows_follow_the_initialiser_of_their_layer(init: str) -> None:
    agent = DQN(
        (40,),
        3,
        replace(DQN_SMALL, network=NetworkConfig(hidden=(600,), init=init)),  # type: ignore[arg-type]
        interventions=[ReDo(tau=0.3, every=1)],
    )
    layer = layer_of(agent, FIRST)
    old = layer.linear.weight.detach().clone()
    initial = layer.fresh(torch.Generator().manual_seed(77))["linear.weight"]
    recycled = []
    stand = Stand(agent, batch_for(agent, 4))
    for _ in range(6):
        stand.tick().act()
        new = (layer.linear.weight != old).any(1)
        recycled.append(layer.linear.weight.detach()[new])
        old = layer.linear.weight.detach().clone()
    rows = torch.cat(recycled)
    assert len(rows) > 100
    assert ks(rows, initial) < 1.95
    assert rows.square().sum(1).mean().item() == pytest.approx(initial.square().sum(1).mean().item(), rel=0.05)
    if init == "torch":
        assert 0.999 * 40**-0.5 < rows.abs().max() <= 40**-0.5


def test_at_most_the_given_fraction_of_the_most_dormant_units_is_recycled() -> None:
    score = torch.tensor([0.5, 0.1, 0.9, 0.1, 0.3, 2.0])
    reached = score <= 0.5
    assert lowest(score, reached, 1.0).tolist() == reached.tolist()
    assert lowest(score, reached, 0.5).nonzero().flatten().tolist() == [1, 3, 4]
    assert lowest(score, reached, 0.34).nonzero().flatten().tolist() == [1, 3]
    assert lowest(score, reached, 0.9).tolist() == reached.tolist(), (
        "no other unit may be recycled to reach the fraction"
    )
    assert lowest(torch.arange(100.0), torch.ones(100, dtype=torch.bool), 0.29).sum() == 29
    agent, stand = reference(tau=1.0, max_fraction=0.34)
    stand.tick().act()
    assert only(agent).measurements() == {"interventions/redo_units": 1.0}


@pytest.mark.parametrize(
    ("step_counts", "recycled", "neighbour"),
    [("per_weight", 1.0, 1.0), ("per_tensor", 3.162278, 1.0), ("zeroed", 1.0, 0.316228)],
)
def test_the_first_step_after_recycling_depends_on_the_step_counts(
    step_counts: Any, recycled: float, neighbour: float
) -> None:
    """In learning rates, along a constant gradient: the effect of each policy on a recycled weight and its
    neighbours."""
    agent, stand = reference(step_counts=step_counts)
    remember_(agent)
    stand.tick().act()
    weight, outgoing = layer_of(agent, FIRST).linear.weight, layer_of(agent, OUT).linear.weight
    before = weight.detach().clone(), outgoing.detach().clone()
    for p in agent.critic.online.parameters():
        p.grad = torch.ones_like(p)
    agent.critic.optimizer.step()
    lr = agent.config.optimizer.lr
    moved = (before[0] - weight.detach()) / lr
    torch.testing.assert_close(moved[2], torch.full((2,), recycled), rtol=2e-3, atol=0)
    torch.testing.assert_close(moved[:2], torch.full((2, 2), neighbour), rtol=2e-3, atol=0)
    moved = (before[1] - outgoing.detach()) / lr
    torch.testing.assert_close(moved[:, 2], torch.full((2,), recycled), rtol=2e-3, atol=0)
    torch.testing.assert_close(moved[:, :2], torch.full((2, 2), neighbour), rtol=2e-3, atol=0)


def test_redo_samples_the_replay_only_on_its_schedule() -> None:
    agent, stand = reference(every=3, samples=7, start=5, stop=9)
    fired = []
    for _ in range(12):
        stand.tick().act()
        fired.append(bool(only(agent).measurements()))
    assert [i + 1 for i, f in enumerate(fired) if f] == [6, 9]
    assert stand.memory.requests == 2


def test_redo_can_measure_the_updates_own_batch() -> None:
    agent, stand = reference(samples=0)
    initial = layer_of(agent, FIRST).linear.weight.detach().clone()
    stand.tick().act({"critic": [torch.tensor([[0.0, 1.0, 1.0]])]})
    changed = (layer_of(agent, FIRST).linear.weight != initial).any(1)
    assert changed.tolist() == [True, False, False] and stand.memory.requests == 0


@pytest.mark.parametrize("kind", [ReDo, ReGraMa, ContinualBackprop, SelfNormalizedReset])
def test_parts_without_units_are_refused(kind: type[Recycler]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.name}: last of this dqn has no unit that can be reset"):
        dqn(kind(on="last"))  # type: ignore[call-arg, arg-type]
    with pytest.raises(ValueError, match=rf"{kind.name}: this dqn has no 'actor'"):
        dqn(kind(on="actor"))  # type: ignore[call-arg, arg-type]
    with pytest.raises(ValueError, match="no unit that can be reset"):
        dqn(kind(), hidden=())  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize(
    "part",
    [
        lambda: ReDo(tau=2.0, every=1),
        lambda: ReGraMa(tau=2.0, every=1),
        lambda: ContinualBackprop(1.0, maturity=0),
        lambda: SelfNormalizedReset(longest=1, eps=1e3),
        lambda: SelfNormalizedReset(renew=1, longest=5),
    ],
)
@pytest.mark.parametrize("name", ["conv to linear", "twin critics on pixels"])
def test_the_first_event_does_not_wait_for_the_device(part: Callable[[], Recycler], name: str) -> None:
    agent = DEAD[name](part())
    stand = Stand(agent)
    activations = view(agent).activations(stand.memory.batch)
    with no_wait():
        only(agent).after_update(stand.tick(), activations)
    assert only(agent).measurements()


# -------------------------------------------------------------------------------------------------------- ReGraMa


def two_units(mode: Any, weight: Sequence[Any], bias: Sequence[float], outgoing: Sequence[Any]) -> tuple[DQN, Stand]:
    """One input, two units, two actions; rewards are ten, so that every error has a gradient."""
    agent = dqn(ReGraMa(tau=0.0, every=1, mode=mode), inputs=1, hidden=(2,))
    put_(layer_of(agent, FIRST), weight, bias)
    put_(layer_of(agent, OUT), outgoing)
    batch = batch_for(agent, 2).replace(
        obs=torch.tensor([[1.0], [1.0]]),
        action=torch.tensor([0, 0]),
        reward=torch.tensor([10.0, 10.0]),
        discount=torch.zeros(2),
    )
    return agent, Stand(agent, batch)


def changed_rows(agent: DQN, act: Callable[[], None]) -> list[bool]:
    before = layer_of(agent, FIRST).linear.weight.detach().clone()
    act()
    return (layer_of(agent, FIRST).linear.weight != before).any(1).tolist()


@pytest.mark.parametrize("mode", ["unit", "weight_grad"])
def test_a_unit_without_outgoing_weights_is_active_for_redo_and_inactive_for_regrama(mode: str) -> None:
    agent, stand = two_units(mode, [[1.0], [1.0]], [0.0, 0.0], [[1.0, 0.0], [1.0, 0.0]])
    h = view(agent).activations(stand.memory.batch)["critic"][0]
    assert dormancy_score(magnitude(layer_of(agent, FIRST), h)).tolist() == pytest.approx([1.0, 1.0])
    agent.update(stand.memory.batch, agent.plan(stand.tick().clock))
    put_(layer_of(agent, OUT), [[1.0, 0.0], [1.0, 0.0]])  # the update itself has changed these outgoing weights
    assert changed_rows(agent, stand.act) == [False, True]


@pytest.mark.parametrize(("mode", "recycled"), [("unit", [False, False]), ("weight_grad", [False, True])])
def test_a_dead_unit_has_a_gradient_but_its_weights_have_none(mode: str, recycled: list[bool]) -> None:
    """The loss has a gradient with respect to a dead unit's output, but its weights get none: the two modes differ."""
    agent, stand = two_units(mode, [[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]])
    agent.update(stand.memory.batch, agent.plan(stand.tick().clock))
    assert changed_rows(agent, stand.act) == recycled


@pytest.mark.parametrize(("mode", "recycled"), [("unit", [False, False]), ("weight_grad", [False, True])])
def test_an_active_unit_is_inactive_by_its_weights_if_samples_cancel(mode: str, recycled: list[bool]) -> None:
    """Unit 1 is pulled up by one sample and down by the other; unit 0 is active only for the first sample."""
    agent, stand = two_units(mode, [[1.0], [0.0]], [0.0, 1.0], [[1.0, 1.0], [1.0, 1.0]])
    # Inputs 1 and -1 give h = (1, 1) and (0, 1), q = 2 and 1: errors of -8 and -8 pull unit 1's weight by -8 and +8.
    obs, reward = torch.tensor([[1.0], [-1.0]]), torch.tensor([10.0, 9.0])
    stand.memory.batch = stand.memory.batch.replace(obs=obs, reward=reward)
    agent.update(stand.memory.batch, agent.plan(stand.tick().clock))
    gradient = layer_of(agent, FIRST).linear.weight.grad
    assert gradient is not None and gradient.flatten().tolist() == [-4.0, 0.0]
    assert changed_rows(agent, stand.act) == recycled


def test_the_gradient_of_a_unit_equals_values_computed_by_hand() -> None:
    """It is the mean over samples of |error * outgoing weight| / B."""
    agent, stand = two_units("unit", [[1.0], [2.0]], [0.0, 0.0], [[1.0, 3.0], [-1.0, 0.5]])
    stand.memory.batch = stand.memory.batch.replace(action=torch.tensor([0, 1]), reward=torch.tensor([10.0, 4.0]))
    # q(a=0) = 1 + 6 = 7, error -3; q(a=1) = -1 + 1 = 0, error -4.
    sizes = only(agent).unit_gradients(stand)
    expected = [(3 * 1 + 4 * 1) / 2 / 2, (3 * 3 + 4 * 0.5) / 2 / 2]
    assert list(sizes) == [FIRST] and sizes[FIRST].tolist() == pytest.approx(expected)


def annealed(updates: int) -> tuple[int, float]:
    """n-step and discount of BBF, a number of 10,000 updates after a reset: exponential in n and in 1 - gamma."""
    left = 1 - updates / 10_000
    return round(10 * 0.3 ** (1 - left)), 1 - 0.03**left * 0.003 ** (1 - left)


@pytest.mark.parametrize(
    ("updates", "n_step", "gamma"), [(None, 3, 0.9), *((u, *annealed(u)) for u in (1000, 5000, 9000))]
)
def test_the_gradient_of_a_unit_uses_the_agents_own_targets(updates: int | None, n_step: int, gamma: float) -> None:
    """It is compared with a sum in double precision over the recorded steps: with n-step returns, and while BBF anneals
    n-step and discount."""
    part = ReGraMa(every=1, samples=32)
    made = dict(target_period=1000, value_loss="mse", buffer_size=256, learning_starts=1)
    if updates is None:
        agent = dqn(part, inputs=5, hidden=(12, 10), n_step=n_step, gamma=gamma, **made)
    else:
        network = NetworkConfig(hidden=(12, 10))
        agent = DQN(MINATAR, 3, replace(DQN_SMALL, network=network, **made), interventions=(BBF(), part))
    envs, memory = RandomEnvs(agent.observation, agent.action), agent.memory()
    obs, recorded = envs.reset(), []
    memory.start(obs)
    g = torch.Generator().manual_seed(0)
    for _ in range(150):
        action = torch.randint(agent.action.size, (1,), generator=g).numpy()
        step = envs.step(action)
        memory.add(action, step)
        recorded.append((obs[0], int(action[0]), float(step.reward[0]), step))
        obs = step.obs
    drawn: list[int] = []
    sample = memory.sample

    def recorded_sample(*args: Any, **kwargs: Any) -> Any:
        batch = sample(*args, **kwargs)
        drawn.extend(batch.index.tolist())
        return batch

    memory.sample = recorded_sample  # type: ignore[method-assign]
    clock = Clock(steps=500, updates=updates or 7)
    sizes = part.unit_gradients(SimpleNamespace(agent=agent, clock=clock, memory=memory))

    def outputs(network: Any, x: Any) -> list[float]:
        with torch.no_grad():
            values: list[float] = network(torch.from_numpy(x[None])).flatten().tolist()
        return values

    total = torch.zeros(10, dtype=torch.float64)
    for i in drawn:
        ret, factor = 0.0, 1.0
        for _, _, reward, step in recorded[i : i + n_step]:
            ret, factor = ret + factor * reward, factor * gamma
            if step.terminated[0] or step.truncated[0]:
                break
        ret += 0.0 if step.terminated[0] else factor * max(outputs(agent.critic.target, step.final_obs[0]))
        at, action, *_ = recorded[i]
        error = outputs(agent.critic.online, at)[action] - ret
        total += abs(error) * agent.critic.online.advantage.linear.weight[action].detach().double().abs()
    assert len(drawn) == 32
    torch.testing.assert_close(sizes["critic.head.layers.1"].double(), total / 32 / 32, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["conv to linear", "crelu, conv to linear", "dueling, conv to linear"])
def test_the_gradient_of_a_unit_equals_finite_differences_of_the_loss(name: str) -> None:
    """A constant is added to one unit's output, for one sample, at one position and copy."""
    agent, layer = DEAD[name](ReGraMa(on="encoder", every=1)), "critic.encoder.blocks.0"
    assert isinstance(agent, DQN)
    part, stand = only(agent), Stand(agent, batch_for(agent, 2))
    size, unit, h = part.unit_gradients(stand)[layer], part.units[layer], 0.02
    g, estimates = torch.Generator().manual_seed(0), []
    for _ in range(40):
        at = [int(torch.randint(n, (), generator=g)) for n in (2, unit.layer.copies, 8, 8)]
        losses = []
        for move in (h, -h):
            held = AddToOutput(unit.layer, 5, at, move)
            unit.layer.activation = held
            losses.append(agent.loss(stand.memory.batch)[0].item())
            unit.layer.activation = held.inner
        estimates.append(abs(losses[0] - losses[1]) / (2 * h))
    places = torch.tensor(estimates)
    assert places.mean().item() == pytest.approx(size[5].item(), abs=4 * places.std().item() / 40**0.5)
    assert places.std() < 3 * places.mean() and size[5] > 0


class AddToOutput(nn.Module):
    """Adds a number to the output of one unit of one sample, at one copy and place."""

    def __init__(self, layer: Layer, unit: int, at: Sequence[int], move: float) -> None:
        super().__init__()
        self.inner, self.at, self.move = layer.activation, at, move
        self.place = at[1] * layer.units + unit

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).clone()
        if x.requires_grad:  # only in the online network
            x[self.at[0], self.place, self.at[2], self.at[3]] += self.move
        return x


def test_measuring_gradients_changes_no_state() -> None:
    """Gradients, weights and the generators of training, including dropout's, do not change."""
    network = NetworkConfig(hidden=(12, 10), norm="layer_norm")
    config = replace(SAC_SMALL, network=network, dropout=0.2, critics=3, target_critics=2)
    agent = SAC((5,), BOX, config, interventions=[ReGraMa(tau=0.0, every=1, on="all")])
    stand = Stand(agent)
    agent.update(stand.memory.batch, agent.plan(stand.tick().clock))
    before = {n: m.state_dict() for n, m in agent.modules()}
    before = copy.deepcopy({n: s for n, s in before.items() if n != "interventions"})
    gradients = [
        (p, p.grad, p.grad.clone())
        for m in dict(agent.modules()).values()
        for p in m.parameters()
        if p.grad is not None
    ]
    stream = agent.generator.get_state()
    sizes = only(agent).unit_gradients(stand)
    assert torch.equal(agent.generator.get_state(), stream)
    assert all(p.grad is g and torch.equal(g, old) for p, g, old in gradients) and gradients
    for name, module in agent.modules():
        for key, value in module.state_dict().items() if name != "interventions" else ():
            assert torch.equal(value, before[name][key])
    assert set(sizes) == set(only(agent).units)
    for name, size in sizes.items():
        assert size.shape == (only(agent).units[name].count,) and (size >= 0).all() and size.sum() > 0


def test_regrama_can_leave_outgoing_weights_as_they_are() -> None:
    for outgoing in (True, False):
        agent = dqn(ReGraMa(tau=100.0, every=1, outgoing=outgoing), inputs=4, hidden=(6,))
        before = layer_of(agent, OUT).linear.weight.detach().clone()
        stand = Stand(agent)
        assert all(changed_rows(agent, stand.tick().act))
        assert torch.equal(layer_of(agent, OUT).linear.weight, before if not outgoing else torch.zeros_like(before))


def test_regrama_limits_the_fraction_of_recycled_units() -> None:
    agent = dqn(ReGraMa(tau=100.0, every=1, max_fraction=0.5), inputs=4, hidden=(6,))
    assert sum(changed_rows(agent, Stand(agent).tick().act)) == 3


# ---------------------------------------------------------------------------------------------- continual backprop


H = torch.tensor([[1.0, 0.0, 4.0], [3.0, 2.0, 4.0]])


def reference_cbp(utility: Any, **options: Any) -> tuple[DQN, Stand, ContinualBackprop]:
    agent = dqn(ContinualBackprop(**{"rho": 0.0, "maturity": 0, "decay": 0.9, "utility": utility} | options))
    put_(layer_of(agent, FIRST), [[1, -1], [-2, 2], [0.5, -0.5]])
    put_(layer_of(agent, OUT), [[1, -2, 3], [1, 0, 1]])
    return agent, Stand(agent), only(agent)


def memory(part: ContinualBackprop | SelfNormalizedReset, key: str, layer: str = FIRST) -> Tensor:
    value = getattr(part, part._key(layer, key))
    assert isinstance(value, Tensor)
    return value


@pytest.mark.parametrize(
    ("utility", "expected"),
    [("contribution", [4.0, 2.0, 16.0]), ("zero_mean", [2.0, 2.0, 0.0]), ("adaptable", [1.0, 0.5, 0.0])],
)
def test_utilities_of_the_reference_layer_are_correct(utility: str, expected: list[float]) -> None:
    """They are sums over weights; a constant unit contributes most and has no adaptability."""
    _, stand, part = reference_cbp(utility)
    stand.tick().act({"critic": [H]})
    corrected = 1 - 0.9
    torch.testing.assert_close(memory(part, "mean")[0] / corrected, torch.tensor([2.0, 1.0, 4.0]))
    torch.testing.assert_close(memory(part, "utility") / corrected, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert memory(part, "age").tolist() == [1.0, 1.0, 1.0]


def test_averages_are_exponential_with_a_bias_correction() -> None:
    _, stand, part = reference_cbp("zero_mean", decay=0.8)
    f, u = torch.zeros(3), torch.zeros(3)
    g = torch.Generator().manual_seed(3)
    for age in range(1, 6):
        h = torch.rand(7, 3, generator=g)
        stand.tick().act({"critic": [h]})
        f = 0.8 * f + 0.2 * h.mean(0)
        y = (h - f / (1 - 0.8**age)).abs().mean(0) * torch.tensor([2.0, 2.0, 4.0])
        u = 0.8 * u + 0.2 * y
        torch.testing.assert_close(memory(part, "mean")[0], f)
        torch.testing.assert_close(memory(part, "utility"), u)


def test_without_decay_averages_are_instantaneous() -> None:
    _, stand, part = reference_cbp("contribution", decay=0.0)
    for h in (torch.rand(4, 3), H):
        stand.tick().act({"critic": [h]})
    assert memory(part, "utility").tolist() == [4.0, 2.0, 16.0]


def test_the_utility_of_a_channel_adds_up_its_positions() -> None:
    """From convolution to linear: |h| of each position times its outgoing weights there."""
    agent = on_pixels(ContinualBackprop(0.0, maturity=0, decay=0.0, on="encoder"), hidden=(5,))
    part, stand = only(agent), Stand(agent)
    name = "critic.encoder.blocks.0"
    h = view(agent).activations(stand.memory.batch)["critic"][0]
    stand.tick().act()
    weight = agent.critic.online.head.layers[0].linear.weight.detach()  # type: ignore[union-attr]
    outgoing = weight.abs().sum(0).view(16, 64)
    torch.testing.assert_close(memory(part, "utility", name), (h.abs().mean(0).view(16, 64) * outgoing).sum(1))


def test_the_utility_of_a_unit_with_two_copies_is_their_sum() -> None:
    network = NetworkConfig(hidden=(3,), activation="crelu")
    agent = dqn(ContinualBackprop(0.0, maturity=0, decay=0.0), network=network)
    stand, out = Stand(agent), layer_of(agent, OUT).linear.weight.detach()
    h = view(agent).activations(stand.memory.batch)["critic"][0]
    stand.tick().act()
    per_copy = h.mean(0) * out.abs().sum(0)
    torch.testing.assert_close(memory(only(agent), "utility"), per_copy[:3] + per_copy[3:])


def test_the_utility_of_a_unit_includes_all_its_consumers() -> None:
    agent = DQN(
        MINATAR,
        3,
        replace(DQN_SMALL, dueling=True),
        interventions=[ContinualBackprop(0.0, maturity=0, decay=0.0, on="encoder")],
    )
    stand, online = Stand(agent), agent.critic.online
    h = view(agent).activations(stand.memory.batch)["critic"][0].mean(0).view(16, 64)
    stand.tick().act()
    outgoing = sum(
        m.layers[0].linear.weight.detach().abs().sum(0).view(16, 64)  # type: ignore[union-attr, operator]
        for m in (online.head, online.value_head)
    )
    torch.testing.assert_close(memory(only(agent), "utility", "critic.encoder.blocks.0"), (h * outgoing).sum(1))


def watch(part: ContinualBackprop, stand: Stand, h: Tensor) -> int:
    """The number of units that one update replaces."""
    stand.tick().act({"critic": [h]})
    return int(part.measurements()[f"interventions/{part.name}_units"])


def test_fractions_of_replacements_accumulate() -> None:
    """With rho = 0.3 and one eligible unit replacements occur at calls 4, 7 and 10."""
    agent = dqn(ContinualBackprop(0.3, maturity=0), hidden=(1,))
    replaced = [watch(only(agent), Stand(agent), torch.ones(4, 1)) for _ in range(20)]
    assert [i + 1 for i, n in enumerate(replaced) if n] == [4, 7, 10, 14, 17, 20]


@settings(max_examples=25, deadline=None)
@given(rho=st.integers(1, 100), units=st.integers(1, 9), calls=st.integers(1, 40))
def test_exactly_the_due_number_of_units_is_replaced(rho: int, units: int, calls: int) -> None:
    agent = dqn(ContinualBackprop(rho / 100, maturity=0), hidden=(units,))
    part, stand = only(agent), Stand(agent)
    total = 0
    for call in range(1, calls + 1):
        total += watch(part, stand, torch.rand(3, units))
        assert total == Fraction(rho, 100) * units * call // 1


def test_the_accumulated_replacements_are_exact_after_a_thousand_calls() -> None:
    """0.7 per call is 700 in a thousand calls, so increments and their sum must not be in single precision."""
    agent = dqn(ContinualBackprop(0.7, maturity=0), hidden=(1,))
    part, stand = only(agent), Stand(agent)
    total = 0
    for call in range(1, 1001):
        total += watch(part, stand, torch.ones(1, 1))
        assert total == 7 * call // 10, call


def test_immature_units_are_never_replaced_and_maturity_restarts() -> None:
    agent = dqn(ContinualBackprop(1.0, maturity=4), hidden=(5,))
    part, stand = only(agent), Stand(agent)
    replaced = [watch(part, stand, torch.rand(3, 5)) for _ in range(16)]
    assert [i + 1 for i, n in enumerate(replaced) if n] == [5, 10, 15] and sum(replaced) == 15
    assert memory(part, "age").tolist() == [1.0] * 5


def test_no_immature_unit_is_replaced_instead_of_a_mature_one() -> None:
    agent = dqn(ContinualBackprop(0.4, maturity=3), hidden=(5,))
    part, stand = only(agent), Stand(agent)
    memory(part, "age").copy_(torch.tensor([9.0, 0.0, 9.0, 0.0, 0.0]))
    out = layer_of(agent, OUT).linear.weight
    put_(layer_of(agent, OUT), [[5, 0, 4, 0, 0], [5, 0, 4, 0, 0]])
    counts = [watch(part, stand, torch.ones(2, 5)) for _ in range(2)]
    # 0.8 and then 1.6 are due: the weaker mature unit is replaced, not the immature units without outgoing weights.
    assert counts == [0, 1] and out[0].tolist() == [5, 0, 0, 0, 0]
    assert memory(part, "age").tolist() == [11.0, 2.0, 0.0, 2.0, 2.0]


def test_the_least_useful_unit_is_reinitialised_and_its_neighbours_are_unaffected() -> None:
    agent, stand, part = reference_cbp("contribution", rho=0.34)
    remember_(agent)
    online = agent.critic.online
    before = parameters(online)
    stand.tick().act({"critic": [H]})
    assert part.measurements() == {"interventions/continual_backprop_units": 1.0}
    for key in ("age", "utility"):
        value = memory(part, key)
        assert value[1] == 0 and (value[[0, 2]] > 0).all()
    assert memory(part, "mean")[0, 1] == 0 and (memory(part, "mean")[0, [0, 2]] > 0).all()
    first, out = layer_of(agent, FIRST), layer_of(agent, OUT)
    assert (first.linear.weight != before["head.layers.0.linear.weight"]).any(1).tolist() == [False, True, False]
    assert first.linear.weight[1].abs().max() <= 2**-0.5
    assert out.linear.weight.tolist() == [[1, 0, 3], [1, 0, 1]]
    # The mean of the replaced unit was 1, and its outgoing weights were -2 and 0.
    torch.testing.assert_close(out.linear.bias, before["advantage.linear.bias"] + torch.tensor([-2.0, 0.0]))
    row, column = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 1.0])
    for moment in memories(agent, first.linear.weight).values():
        assert torch.equal(moment, row[:, None].expand(3, 2))
    for moment in memories(agent, first.linear.bias).values():
        assert torch.equal(moment, row)
    for moment in memories(agent, out.linear.weight).values():
        assert torch.equal(moment, column.expand(2, 3))
    for moment in memories(agent, out.linear.bias).values():
        assert (moment == 1.0).all(), "a bias with a folded mean keeps its optimizer state"


class Held(nn.Module):
    """Holds all copies of one unit at given numbers, at every position."""

    def __init__(self, layer: Layer, unit: int, values: Sequence[float]) -> None:
        super().__init__()
        self.inner = layer.activation
        self.places = [(unit + k * layer.units, values[k]) for k in range(layer.copies)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).clone()
        for place, value in self.places:
            x[:, place] = value
        return x


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "conv to linear",
        "conv to conv",
        "crelu",
        "crelu, conv to linear",
        "dueling",
        "dueling, conv to linear",
        "twin critics",
        "twin critics on pixels",
    ],
)
@pytest.mark.parametrize("updates", [1, 5])
@torch.no_grad()
def test_replacing_a_unit_that_is_at_its_mean_changes_no_value(name: str, updates: int) -> None:
    """A constant unit is the least adaptable: it is replaced, and its mean contribution stays up to rounding."""
    layer = {"twin critics": "critic.members.1.body.layers.0", "twin critics on pixels": "critic.encoder.blocks.3"}.get(
        name, "critic.encoder.blocks.0" if "conv" in name else FIRST
    )
    probe = ContinualBackprop(1e-9, maturity=updates - 1, utility="zero_mean", on=layer)
    agent = DEAD[name](probe)
    units = probe.units[layer]
    probe.rho = 1.0 / units.count + 1e-6
    units.layer.linear.bias += 1.0  # so that no other unit is dead, and thus constant
    units.layer.activation = Held(units.layer, 1, (0.7, 0.2))
    batch = batch_for(agent, 64)
    stand = Stand(agent, batch)
    before = predictions(agent, batch.obs, batch.action)
    for _ in range(updates):
        stand.tick().act()
    assert only(agent).measurements() == {"interventions/continual_backprop_units": 1.0}
    assert memory(probe, "age", layer)[1] == 0, "another unit than the constant one was replaced"
    assert not any(consumer.weight[:, consumer.columns[1]].any() for consumer in units.consumers)
    for old, new in zip(before, predictions(agent, batch.obs, batch.action), strict=True):
        torch.testing.assert_close(old, new, atol=2e-6, rtol=2e-5)


def test_a_replaced_unit_gets_no_compensation_itself() -> None:
    """The initialiser draws a new unit's bias, whatever the earlier unit contributed."""
    agent = dqn(ContinualBackprop(1.0, maturity=0), inputs=4, hidden=(3, 3))
    stand = Stand(agent)
    stand.tick().act({"critic": [torch.full((4, 3), 100.0), torch.ones(4, 3)]})
    assert layer_of(agent, "critic.head.layers.1").linear.bias.abs().max() <= 3**-0.5
    assert not layer_of(agent, "critic.head.layers.1").linear.weight.any()


def test_both_critics_are_evaluated_separately() -> None:
    agent = SAC((5,), BOX, SAC_SMALL, interventions=[ContinualBackprop(0.07, maturity=0)])
    part, stand = only(agent), Stand(agent)
    layers = [f"critic.members.{k}.body.layers.0" for k in (0, 1)]
    with torch.no_grad():
        for k, name in enumerate(layers):
            for consumer in part.units[name].consumers:
                consumer.weight[:, k + 3] *= 1e-6
    stand.tick().act()
    assert [(memory(part, "age", name) == 0).nonzero().flatten().tolist() for name in layers] == [[3], [4]]


def test_a_unit_without_incoming_weights_has_a_finite_utility() -> None:
    """0 / 0 would be a NaN, which is never smaller or larger than any other utility."""
    _, stand, part = reference_cbp("adaptable")
    with torch.no_grad():
        part.units[FIRST].layer.linear.weight[2] = 0.0
    stand.tick().act({"critic": [H]})
    assert memory(part, "utility").isfinite().all()


# ------------------------------------------------------------------------------------------ self-normalized resets


def snr(units: int = 2, **options: Any) -> tuple[DQN, Stand, SelfNormalizedReset]:
    agent = dqn(SelfNormalizedReset(**{"longest": 50, "renew": 10**6} | options), hidden=(units,))
    return agent, Stand(agent), only(agent)


def fire(stand: Stand, *pattern: Sequence[int]) -> list[int]:
    """Let units fire or not in consecutive updates; the number of resets in each."""
    counts = []
    for now in pattern:
        stand.tick().act({"critic": [torch.tensor([now, [0] * len(now)], dtype=torch.float32)]})
        counts.append(int(only(stand.agent).measurements()["interventions/self_normalized_reset_units"]))
    return counts


def test_a_unit_that_fires_every_third_time_has_inactive_periods_of_two() -> None:
    agent, stand, part = snr()
    memory(part, "threshold").fill_(3.0)
    initial = parameters(agent.critic.online)
    counts = fire(stand, *([0, 1], [0, 1], [1, 1]) * 20)
    assert not any(counts) and all(torch.equal(p, initial[n]) for n, p in agent.critic.online.named_parameters())
    record = memory(part, "record")
    assert record[0].nonzero().flatten().tolist() == [2] and record[0, 2] == 20
    assert not record[1].any(), "a unit that always fires has no inactive periods"


def test_an_inactive_unit_is_reset_when_its_inactive_period_reaches_the_threshold() -> None:
    agent, stand, part = snr()
    memory(part, "threshold").fill_(5.0)
    counts = fire(stand, [1, 1], [1, 1], *([0, 1],) * 4)
    assert counts == [0] * 6 and memory(part, "age").tolist() == [4.0, 0.0]
    remember_(agent)
    before = parameters(agent.critic.online)
    assert fire(stand, [0, 1]) == [1]
    first, out = layer_of(agent, FIRST), layer_of(agent, OUT)
    assert (first.linear.weight != before["head.layers.0.linear.weight"]).any(1).tolist() == [True, False]
    assert not out.linear.weight[:, 0].any()
    assert torch.equal(out.linear.weight[:, 1], before["advantage.linear.weight"][:, 1])
    assert torch.equal(out.linear.bias, before["advantage.linear.bias"])
    for moment in memories(agent, first.linear.weight).values():
        assert torch.equal(moment, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert memory(part, "age").tolist() == [0.0, 0.0]
    assert memory(part, "record")[0].nonzero().flatten().tolist() == [5], "the reset ends an inactive period of five"
    # From here on it has the same time again.
    assert fire(stand, *([0, 1],) * 5) == [0, 0, 0, 0, 1]


def test_any_sample_and_any_position_makes_a_unit_fire() -> None:
    """Four samples together count as one observation, and one by one as four."""
    agent = on_pixels(SelfNormalizedReset(longest=50, on="encoder"), activation="crelu")
    part, stand, name = only(agent), Stand(agent), "critic.encoder.blocks.0"
    h = torch.zeros(4, 32, 8, 8)
    h[2, 3, 5, 1], h[0, 16 + 7, 0, 0] = 1e-6, 1e-6
    for _ in range(3):
        stand.tick().act({"critic": [h, torch.ones(4, 24), torch.ones(4, 20)]})
    silent = memory(part, "age", name)
    assert (silent == 0).nonzero().flatten().tolist() == [3, 7] and (silent[silent > 0] == 3).all()
    _, stand_single, one = snr(1)
    _, stand_batch, four = snr(1)
    samples = torch.tensor([0.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]).view(3, 4)
    for row in samples:
        stand_batch.tick().act({"critic": [row[:, None]]})
        for x in row:
            stand_single.tick().act({"critic": [x.view(1, 1)]})
    assert memory(four, "age").item() == 1 and memory(one, "age").item() == 6


def test_a_unit_fires_if_an_output_exceeds_eps() -> None:
    """The magnitude counts, so the rule also holds for units that are not rectified."""
    _, stand, part = snr(4, eps=0.5)
    stand.tick().act({"critic": [torch.tensor([[0.5, 0.51, -0.51, 0.0]])]})
    assert memory(part, "age").tolist() == [1.0, 0.0, 0.0, 1.0]


def test_thresholds_are_the_percentile_of_each_units_record() -> None:
    _, _, part = snr(5, percentile=0.9, expansion=2.0)
    record = torch.zeros(5, len(bin_lengths()), dtype=torch.int32)
    record[0, 2], record[0, 7] = 9, 1  # 90 % are at most 2
    record[1, 2], record[1, 7] = 8, 2  # 90 % are reached at 7
    record[2, 30] = 4  # this would not lower the threshold, so it grows
    record[3, 49] = 1  # … up to the longest period
    threshold = torch.tensor([20.0, 20.0, 20.0, 40.0, 13.0])
    part.renew(threshold, record)
    assert threshold.tolist() == [2.0, 7.0, 40.0, 50.0, 13.0], "an empty record keeps its threshold"
    assert not record.any()


def test_the_percentile_can_be_one() -> None:
    _, _, part = snr(1, percentile=1.0)
    record = torch.zeros(1, len(bin_lengths()), dtype=torch.int32)
    record[0, 2], record[0, 9] = 999, 1
    threshold = torch.tensor([20.0])
    part.renew(threshold, record)
    assert threshold.item() == 9.0


def test_thresholds_are_renewed_on_their_schedule() -> None:
    _, stand, part = snr(2, percentile=0.5, renew=6)
    assert memory(part, "threshold").tolist() == [50.0, 50.0], "the first threshold is the longest period"
    fire(stand, *([0, 1], [0, 1], [1, 1]) * 2)
    assert memory(part, "threshold").tolist() == [2.0, 50.0]
    assert fire(stand, [0, 1], [0, 1]) == [0, 1]


def test_short_periods_have_their_own_bins_and_long_ones_a_sixteenth_of_an_octave() -> None:
    lengths, ages = bin_lengths(), torch.arange(1, 20_001).float()
    bins = bin_of(ages, lengths)
    assert bins[: EXACT - 1].tolist() == list(range(1, EXACT))
    assert (bins.diff() >= 0).all()
    assert (lengths[bins] <= ages).all() and (ages < lengths[bins + 1]).all()
    assert (ages / lengths[bins]).max() < 2 ** (1 / 16) + 1e-3
    for power in (64, 128, 256, 4096):
        assert lengths[bin_of(torch.tensor([float(power)]), lengths)].item() == power
    assert bin_of(torch.tensor([1e9]), lengths).item() == len(lengths) - 1


def authors_threshold(threshold: float, silences: Sequence[int], percentile: float, expansion: float) -> float:
    """The authors' rule in double precision, with a count for every length: the first length that the percentile of
    inactive periods does not exceed, or the old threshold expanded if that would not be lower."""
    if not silences:
        return threshold
    reached = next(k for k in sorted(silences) if sum(s <= k for s in silences) / len(silences) >= percentile)
    return reached if reached < threshold else threshold * expansion


def test_the_threshold_of_a_unit_that_never_fires_doubles_each_time() -> None:
    """Each inactive period ends in a reset at the threshold itself, so no period is shorter than the threshold."""
    _, stand, part = snr(renew=100, longest=20_000, expansion=2.0)
    threshold = memory(part, "threshold").fill_(100.0)
    seen = []
    for _ in range(3):
        fire(stand, *([0, 1],) * 100)
        seen.append(threshold[0].item())
    assert seen == [200.0, 200.0, 400.0], "the unit is reset at updates 100 and 300"
    threshold, seen = torch.tensor([100.0]), []
    for _ in range(9):
        record = torch.zeros(1, len(bin_lengths()), dtype=torch.int32)
        part.note(record, threshold, torch.tensor([True]), threshold)
        part.renew(threshold, record)
        seen.append(threshold.item())
    assert seen == [200.0, 400.0, 800.0, 1600.0, 3200.0, 6400.0, 12_800.0, 20_000.0, 20_000.0]


@settings(max_examples=300, deadline=None)
@given(
    threshold=st.one_of(st.integers(1, 300), st.integers(1, 15_000), st.sampled_from([4.5, 66.5, 99.0, 103.0, 4871.0])),
    silences=st.lists(st.tuples(st.floats(0.3, 1.2), st.integers(1, 9)), max_size=6),
    exactly=st.integers(0, 9),
    percentile=st.sampled_from([0.5, 0.9, 0.95, 1.0]),
    expansion=st.sampled_from([1.0, 1.5, 2.0]),
)
def test_thresholds_follow_the_authors_rule(
    threshold: float, silences: list[tuple[float, int]], exactly: int, percentile: float, expansion: float
) -> None:
    """Inactive periods are shorter and longer than the threshold, and also within its bin."""
    part = SelfNormalizedReset(percentile=percentile, expansion=expansion, longest=10**6)
    part.lengths = bin_lengths()
    periods = [max(1, round(share * threshold)) for share, times in silences for _ in range(times)]
    periods += [math.ceil(threshold)] * exactly
    record, held = torch.zeros(1, len(part.lengths), dtype=torch.int32), torch.tensor([float(threshold)])
    for silence in periods:
        part.note(record, torch.tensor([float(silence)]), torch.tensor([True]), held)
    part.renew(held, record)
    expected = authors_threshold(threshold, periods, percentile, expansion)
    if expected >= threshold or expected < EXACT:
        assert held.item() == expected
    else:
        assert 2 ** (-2 / 16) * expected < held.item() <= expected, (
            "the threshold is the shortest period of its bin, or of the bin below"
        )


def test_the_most_overdue_units_are_reset_first_up_to_the_limit() -> None:
    _, stand, part = snr(4, most=2)
    memory(part, "age").copy_(torch.tensor([9.0, 9.0, 9.0, 9.0]))
    memory(part, "threshold").copy_(torch.tensor([9.0, 5.0, 50.0, 3.0]))
    assert fire(stand, [0, 0, 0, 0]) == [2]
    assert memory(part, "age").tolist() == [10.0, 0.0, 10.0, 0.0]
    assert fire(stand, [0, 0, 0, 0]) == [1]
    assert memory(part, "age").tolist() == [0.0, 1.0, 11.0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReDo(tau=-1), "tau must be at least 0, not -1"),
        (lambda: ReDo(max_fraction=0.0), "max_fraction must be above 0 and at most 1, not 0"),
        (lambda: ReGraMa(samples=0, mode="unit"), "at least 1|samples"),
        (lambda: ContinualBackprop(rho=1.5), "rho must be between 0 and 1, not 1.5"),
        (lambda: ContinualBackprop(decay=1.0), "decay must be at least 0 and below 1, not 1"),
        (lambda: SelfNormalizedReset(percentile=0.0), "percentile must be above 0 and at most 1, not 0"),
        (lambda: SelfNormalizedReset(expansion=0.5), "at least 1"),
    ],
)
def test_invalid_parameters_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

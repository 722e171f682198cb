"""DQN and SAC: golden updates, options, state, and the laws that hold for every agent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from no_wait import no_wait

from pliant.agents import DQN, PPO, SAC, Agent, Batch, Clock, DQNConfig, SACConfig
from pliant.agents.networks import NetworkConfig
from pliant.agents.optimizers import OptimizerConfig
from pliant.agents.rollout import RolloutBatch
from pliant.common.spaces import ActionSpec, ObservationSpec

PIXELS = ObservationSpec((4, 84, 84), torch.uint8, 255.0, stack=4)
SMALL_PIXELS = ObservationSpec((3, 21, 21), torch.uint8, 255.0)
BOX = ActionSpec(2, discrete=False, low=(-2.0, 0.0), high=(2.0, 1.0))
NET = NetworkConfig(hidden=(16, 16))
DQN_SMALL = DQNConfig(network=NET, learning_starts=10, target_period=3)
SAC_SMALL = SACConfig(network=NET, actor_network=NET, learning_starts=10, projection=8)

AGENTS: dict[str, Callable[..., Agent]] = {
    "dqn": lambda **k: DQN((5,), 3, DQN_SMALL, **k),
    "dqn, double dueling prioritised 3-step": lambda **k: DQN(
        (5,), 3, replace(DQN_SMALL, double=True, dueling=True, prioritised=True, n_step=3, target_tau=0.1), **k
    ),
    "dqn, mse, soft targets": lambda **k: DQN(
        (5,), 3, replace(DQN_SMALL, value_loss="mse", target_period=1, target_tau=0.01), **k
    ),
    "dqn, pixels": lambda **k: DQN(PIXELS, 3, DQN_SMALL, **k),
    "dqn, impala": lambda **k: DQN(PIXELS, 3, replace(DQN_SMALL, network=replace(NET, body="impala", width=0.25)), **k),
    "dqn, minatar": lambda **k: DQN(ObservationSpec((4, 10, 10), torch.uint8, 1.0), 3, DQN_SMALL, **k),
    "sac": lambda **k: SAC((5,), BOX, SAC_SMALL, **k),
    "sac, fixed temperature, 3-step": lambda **k: SAC((5,), BOX, replace(SAC_SMALL, temperature=0.2, n_step=3), **k),
    "redq": lambda **k: SAC(
        (5,), BOX, replace(SAC_SMALL, critics=5, target_critics=2, actor_value="mean", actor_period=4), **k
    ),
    "droq": lambda **k: SAC(
        (5,),
        BOX,
        replace(SAC_SMALL, dropout=0.1, network=replace(NET, norm="layer_norm"), actor_value="mean", actor_period=4),
        **k,
    ),
    "sac, pixels": lambda **k: SAC(SMALL_PIXELS, BOX, SAC_SMALL, **k),
}


def observations(agent: Agent, n: int, seed: int) -> torch.Tensor:
    spec, g = agent.observation, torch.Generator().manual_seed(seed)
    if spec.pixels:
        return torch.randint(int(spec.high) + 1, (n, *spec.shape), dtype=torch.uint8, generator=g)
    return torch.randn(n, *spec.shape, generator=g)


def batch_for(agent: Agent, n: int = 8, seed: int = 0) -> Any:
    """A batch of random transitions in the form that the agent learns from."""
    rng = np.random.default_rng(seed)
    if agent.action.discrete:
        action = torch.from_numpy(rng.integers(agent.action.size, size=n))
    else:
        action = torch.from_numpy(rng.uniform(agent.action.low, agent.action.high, (n, agent.action.size))).float()
    batch = Batch(
        obs=observations(agent, n, seed),
        action=action,
        reward=torch.from_numpy(rng.normal(size=n)).float(),
        discount=torch.from_numpy(0.99 * (rng.random(n) > 0.2)).float(),
        next_obs=observations(agent, n, seed + 1),
        weight=torch.ones(n),
        index=torch.arange(n),
    )
    if not isinstance(agent, PPO):
        return batch
    log_prob, value, advantage, ret = torch.from_numpy(rng.normal(size=(4, n))).float()
    return RolloutBatch(*batch, log_prob - 2, value, advantage, ret)


def train(agent: Agent, clock: Clock, updates: int) -> Clock:
    for _ in range(updates):
        clock = clock.stepped(1)
        agent.act(observations(agent, 2, clock.steps), clock)
        clock = clock.updated()
        agent.update(batch_for(agent, seed=clock.updates), agent.plan(clock))
    return clock


def weights(agent: Agent) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, module in agent.modules()
        for key, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", AGENTS)
class TestEveryAgent:
    def test_actions_are_in_the_action_space(self, name: str) -> None:
        agent = AGENTS[name]()
        obs = observations(agent, 6, 1)
        for clock in (None, Clock(steps=0), Clock(steps=10_000, updates=10_000)):
            action = agent.act(obs, clock)
            if agent.action.discrete:
                assert action.shape == (6,) and action.dtype == torch.int64
                assert action.min() >= 0 and action.max() < agent.action.size
            else:
                assert action.shape == (6, 2) and action.dtype == torch.float32
                assert (action >= torch.tensor(BOX.low)).all() and (action <= torch.tensor(BOX.high)).all()

    def test_greedy_actions_use_no_random_numbers(self, name: str) -> None:
        agent = AGENTS[name]()
        before, obs = agent.state_dict(), observations(agent, 6, 1)
        assert torch.equal(agent.act(obs), agent.act(obs))
        after = agent.state_dict()
        assert torch.equal(before["generator"], after["generator"]) and before["host_rng"] == after["host_rng"]

    def test_global_generators_are_unused_and_a_seed_determines_everything(self, name: str) -> None:
        state = torch.get_rng_state()
        first, second, other = AGENTS[name](seed=1), AGENTS[name](seed=1), AGENTS[name](seed=2)
        for agent in (first, second, other):
            train(agent, Clock(steps=20), 5)
        assert torch.equal(torch.get_rng_state(), state)
        assert same(weights(first), weights(second))
        assert not same(weights(first), weights(other))

    def test_no_tensor_or_optimizer_changes_identity(self, name: str) -> None:
        """No parameter, buffer or optimizer changes identity, and each trainable one has exactly one optimizer."""
        agent = AGENTS[name]()
        before = [(n, id(p)) for n, m in agent.modules() for p in (*m.parameters(), *m.buffers())]
        optimizers = [id(o) for _, o in agent.optimizers()]
        train(agent, Clock(), 5)
        agent.load_state_dict(agent.state_dict())
        assert before == [(n, id(p)) for n, m in agent.modules() for p in (*m.parameters(), *m.buffers())]
        assert optimizers == [id(o) for _, o in agent.optimizers()]
        held = [id(p) for _, o in agent.optimizers() for g in o.param_groups for p in g["params"]]
        trainable = {id(p) for _, m in agent.modules() for p in m.parameters() if p.requires_grad}
        assert len(held) == len(set(held))
        assert set(held) == trainable

    def test_every_trainable_weight_learns(self, name: str) -> None:
        agent = AGENTS[name]()
        start = weights(agent)
        train(agent, Clock(), 8)
        now = weights(agent)
        still = [k for k in now if ".target" not in k and torch.equal(now[k], start[k]) and "log_alpha" not in k]
        # A unit that is dead on every batch keeps its weights; a whole tensor of dead units would be a bug.
        assert not still, still

    def test_a_resumed_agent_continues_bitwise(self, name: str, tmp_path: Path) -> None:
        straight, stopped = AGENTS[name](), AGENTS[name]()
        train(straight, train(straight, Clock(), 7), 6)
        clock = train(stopped, Clock(), 7)
        torch.save(stopped.state_dict(), tmp_path / "state.pt")
        resumed = AGENTS[name](seed=99)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        train(resumed, clock, 6)
        assert same(weights(straight), weights(resumed))

    def test_an_agent_is_saved_to_and_loaded_from_one_file(self, name: str, tmp_path: Path) -> None:
        agent = AGENTS[name]()
        clock = train(agent, Clock(), 5)
        agent.save(tmp_path / "agent.pt")
        loaded = type(agent).load(tmp_path / "agent.pt")
        assert loaded.config == agent.config
        assert loaded.observation == agent.observation and loaded.action == agent.action
        train(agent, clock, 3)
        train(loaded, clock, 3)
        assert same(weights(agent), weights(loaded))

    def test_acting_and_updating_never_wait_for_the_device(self, name: str) -> None:
        """Neither acting nor updating runs an operator that makes the host wait for the device."""
        agent = AGENTS[name]()
        clock = train(agent, Clock(), 4)
        batch, obs = batch_for(agent), observations(agent, 2, 0)
        with no_wait():
            for _ in range(4):
                clock = clock.stepped(20).updated()
                agent.act(obs, clock)
                agent.act(obs)
                agent.update(batch, agent.plan(clock))

    def test_update_returns_device_scalars_errors_and_activations(self, name: str) -> None:
        agent = AGENTS[name]()
        update = agent.update(batch_for(agent), agent.plan(Clock(updates=4)))
        assert all(v.ndim == 0 and not v.requires_grad for v in update.metrics.values())
        assert update.td_error.shape == (8,) and (update.td_error >= 0).all()
        assert all(len(h) == 8 and not h.requires_grad for hs in update.activations.values() for h in hs)

    def test_observations_of_a_wrong_shape_are_refused(self, name: str) -> None:
        agent = AGENTS[name]()
        with pytest.raises(ValueError, match=r"must have the shape \(batch, "):
            agent.act(torch.zeros(3, 2), None)


# ------------------------------------------------------------------------------------------------------- golden


def linear_dqn(**changes: Any) -> DQN:
    """Q(s) = W s + b without hidden layers, so that targets and gradients can be computed by hand."""
    config = DQNConfig(network=NetworkConfig(hidden=()), value_loss="mse", target_period=1000)
    agent = DQN((2,), 2, replace(config, **changes))
    online, target = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [2.0, 0.0]]
    for module, values in ((agent.critic.online, online), (agent.critic.target, target)):
        with torch.no_grad():
            module.advantage.linear.weight.copy_(torch.tensor(values))  # type: ignore[union-attr]
            module.advantage.linear.bias.zero_()  # type: ignore[union-attr]
    return agent


def transition(obs: list[float], action: int, reward: float, next_obs: list[float], discount: float) -> Batch:
    return Batch(
        torch.tensor([obs]),
        torch.tensor([action]),
        torch.tensor([reward]),
        torch.tensor([discount]),
        torch.tensor([next_obs]),
        torch.ones(1),
        torch.zeros(1, dtype=torch.int64),
    )


def test_dqn_targets_equal_values_computed_by_hand() -> None:
    batch = transition([1.0, 2.0], 0, 0.5, [1.0, 2.0], 0.9)
    # Target network at s' = (1, 2): Q⁻ = (6, 2). Plain: the maximum, 6. Double: online Q = (1, 2) picks action 1, so 2.
    assert linear_dqn().target(batch).tolist() == pytest.approx([0.5 + 0.9 * 6])
    assert linear_dqn(double=True).target(batch).tolist() == pytest.approx([0.5 + 0.9 * 2])
    assert linear_dqn().target(transition([1.0, 2.0], 0, 0.5, [1.0, 2.0], 0.0)).tolist() == [0.5]


def test_dqn_loss_and_error_equal_values_computed_by_hand() -> None:
    batch = transition([1.0, 2.0], 0, 0.5, [1.0, 2.0], 0.9)  # Q(s, 0) = 1, target 5.9
    loss, error, value, _ = linear_dqn().loss(batch)
    assert loss.item() == pytest.approx(0.5 * 4.9**2) and error.item() == pytest.approx(4.9) and value.item() == 1.0
    assert linear_dqn(value_loss="huber").loss(batch)[0].item() == pytest.approx(4.9 - 0.5)


def test_importance_weights_scale_the_loss() -> None:
    batch = transition([1.0, 2.0], 0, 0.5, [1.0, 2.0], 0.9)
    loss = linear_dqn().loss(batch.replace(weight=torch.tensor([0.25])))[0]
    assert loss.item() == pytest.approx(0.25 * 0.5 * 4.9**2)


def test_the_target_network_changes_only_at_its_period() -> None:
    agent = linear_dqn(target_period=3)
    batch, clock = transition([1.0, 2.0], 0, 0.5, [1.0, 2.0], 0.9), Clock()
    equal = []
    for _ in range(6):
        clock = clock.stepped(1).updated()
        agent.update(batch, agent.plan(clock))
        online, target = (m.advantage.linear.weight for m in (agent.critic.online, agent.critic.target))
        equal.append(torch.equal(online, target))
    assert equal == [False, False, True, False, False, True]


def test_soft_targets_move_by_tau() -> None:
    agent = linear_dqn(target_period=1, target_tau=0.25)
    old = agent.critic.target.advantage.linear.weight.clone()  # type: ignore[union-attr]
    agent.update(transition([1.0, 2.0], 0, 0.5, [1.0, 2.0], 0.9), agent.plan(Clock(updates=1)))
    new, online = agent.critic.target.advantage.linear.weight, agent.critic.online.advantage.linear.weight  # type: ignore[union-attr]
    torch.testing.assert_close(new, 0.75 * old + 0.25 * online)


def test_epsilon_follows_its_schedule() -> None:
    agent = DQN((2,), 2, DQNConfig(learning_starts=100, epsilon_steps=1000, epsilon_start=0.8, epsilon_end=0.1))
    at = [agent.epsilon(Clock(steps=s)) for s in (0, 99, 100, 600, 1100, 99_999)]
    assert at == pytest.approx([1.0, 1.0, 0.8, 0.45, 0.1, 0.1])


def test_the_fraction_of_random_actions_is_epsilon() -> None:
    agent = DQN((2,), 10, DQNConfig(learning_starts=0, epsilon_start=0.5, epsilon_end=0.5))
    obs = torch.ones(20_000, 2)
    differ = (agent.act(obs, Clock(steps=1)) != agent.act(obs)).double().mean().item()
    assert differ == pytest.approx(0.5 * 0.9, abs=0.02)


def test_gradients_are_clipped_to_the_norm() -> None:
    agent = linear_dqn(optimizer=OptimizerConfig(lr=1e-3, max_grad_norm=0.5))
    agent.update(transition([1.0, 2.0], 0, 0.5, [1.0, 2.0], 0.9), agent.plan(Clock(updates=1)))
    grads = [p.grad for p in agent.critic.online.parameters() if p.grad is not None]
    assert torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads])).item() == pytest.approx(0.5, rel=1e-4)


def test_samples_of_the_squashed_gaussian_follow_its_density() -> None:
    """Samples weighted by 1 / density fill every interval of actions in proportion to its length."""
    agent = SAC((2,), ActionSpec(1, False, (-1.0,), (1.0,)), SAC_SMALL)
    with torch.no_grad():
        action, log_prob = agent.policy(torch.tensor([[0.3, -0.7]]).expand(400_000, 2))
    weights = np.exp(-log_prob.double().numpy()) / len(action)
    lengths, _ = np.histogram(action.numpy()[:, 0], bins=16, range=(-0.8, 0.8), weights=weights)
    np.testing.assert_allclose(lengths, 0.1, rtol=0.03)


def test_log_probabilities_stay_finite_at_the_action_bounds() -> None:
    agent = SAC((2,), BOX, SAC_SMALL)
    with torch.no_grad():
        agent.actor.online.output.linear.bias.copy_(torch.tensor([1e3, -1e3, 0.0, 0.0]))  # type: ignore[union-attr]
    action, log_prob = agent.policy(torch.zeros(4, 2))
    assert action.abs().max() <= 1 and log_prob.isfinite().all()


def test_the_sac_target_is_the_smallest_value_minus_the_entropy_term() -> None:
    agent = SAC((5,), BOX, replace(SAC_SMALL, temperature=0.3))
    batch = batch_for(agent)
    state = agent.generator.get_state()
    target = agent.target(batch)
    agent.generator.set_state(state)
    with torch.no_grad():
        action, log_prob = agent.policy(batch.next_obs)
        values = agent.critic.target(batch.next_obs, action).squeeze(-1)  # type: ignore[misc]
    expected = batch.reward + batch.discount * (values.min(dim=0).values - 0.3 * log_prob)
    torch.testing.assert_close(target, expected)


def test_redq_draws_its_subset_uniformly() -> None:
    agent = SAC((5,), BOX, replace(SAC_SMALL, critics=4, target_critics=1, temperature=1e-8))
    for k, member in enumerate(agent.critic.target.members):  # type: ignore[union-attr]
        with torch.no_grad():
            member.output.linear.weight.zero_()
            member.output.linear.bias.fill_(float(k))
    batch = batch_for(agent).replace(reward=torch.zeros(8), discount=torch.ones(8))
    picks = [round(agent.target(batch)[0].item()) for _ in range(400)]
    counts = np.bincount(picks, minlength=4)
    assert counts.sum() == 400 and counts.min() > 60


def test_the_temperature_moves_towards_its_target_entropy() -> None:
    for target, rises in ((10.0, True), (-10.0, False)):
        agent = SAC((5,), BOX, replace(SAC_SMALL, target_entropy=target, temperature_lr=1e-2))
        train(agent, Clock(), 5)
        assert (agent.temperature().item() > 1.0) == rises


def test_the_temperature_loss_is_linear_in_alpha() -> None:
    """Eq. 18: its gradient with respect to log alpha is alpha times that of Stable-Baselines3's loss in log alpha."""
    agent = SAC((5,), BOX, replace(SAC_SMALL, initial_temperature=0.3, target_entropy=2.0))
    entropy = agent.update(batch_for(agent), agent.plan(Clock(1, 1))).metrics["losses/entropy"]
    gradient = agent.temperature.log_alpha.grad
    assert gradient is not None and agent.target_entropy == 2.0 * agent.action.size
    torch.testing.assert_close(gradient, 0.3 * (entropy - agent.target_entropy))


def test_the_actor_maximises_the_critics_value() -> None:
    """If the critic values only the first action dimension, the actor moves to the upper bound."""
    agent = SAC((5,), BOX, replace(SAC_SMALL, temperature=1e-4, actor_optimizer=OptimizerConfig(lr=1e-2)))
    for member in agent.critic.online.members:  # type: ignore[union-attr]
        member.forward = lambda features, action, trace=None: 5.0 * action[:, :1]
    obs = observations(agent, 64, 0)
    for _ in range(60):
        loss = agent.actor_loss(batch_for(agent, 64).replace(obs=obs))[0]
        agent.actor.optimizer.zero_grad()
        loss.backward()
        agent.actor.optimizer.step()
    assert (agent.act(obs)[:, 0] > 1.8).all()


def test_the_actor_step_changes_neither_critics_nor_encoder() -> None:
    agent = SAC(SMALL_PIXELS, BOX, replace(SAC_SMALL, optimizer=OptimizerConfig(lr=1e-30)))
    before = {n: p.clone() for n, p in agent.critic.online.named_parameters()}
    train(agent, Clock(), 3)
    for n, p in agent.critic.online.named_parameters():
        torch.testing.assert_close(p, before[n], atol=1e-12, rtol=0)


def test_actions_are_normalised_for_the_critic() -> None:
    agent = SAC((5,), BOX, SAC_SMALL)
    seen: list[torch.Tensor] = []
    agent.critic.online.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[1]))
    batch = batch_for(agent).replace(action=torch.tensor([BOX.low, BOX.high] * 4))
    agent.critic_loss(batch)
    assert seen[0].tolist() == [[-1.0, -1.0], [1.0, 1.0]] * 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DQN((5,), BOX), "dqn needs discrete actions; for continuous ones use sac"),
        (lambda: SAC((5,), 3), "sac needs continuous actions; for discrete ones use dqn"),
        (lambda: SACConfig(critics=2, target_critics=3), "target_critics must be at most critics = 2, not 3"),
        (lambda: OptimizerConfig(lr=-1.0), "lr must be above 0, not -1"),
        (lambda: DQNConfig(batch_size=0), "batch_size must be at least 1 transition, not 0"),
        (lambda: DQNConfig(gamma=1.5), "gamma must be between 0 and 1, not 1.5"),
        (lambda: DQNConfig(epsilon_end=2.0), "epsilon_end must be between 0 and 1, not 2"),
        (lambda: SACConfig(replay_ratio=-1.0), "replay_ratio must be at least 0 gradient updates per env"),
        (lambda: SACConfig(actor_period=0), "actor_period must be at least 1 gradient update, not 0"),
        (lambda: ActionSpec(1, False, (-math.inf,), (1.0,)), "unbounded action space"),
    ],
)
def test_invalid_spaces_and_configurations_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_file_of_another_agent_is_refused_by_name(tmp_path: Path) -> None:
    AGENTS["sac"]().save(tmp_path / "agent.pt")
    with pytest.raises(ValueError, match="holds sac, not dqn"):
        DQN.load(tmp_path / "agent.pt")


def test_a_state_of_another_shape_is_refused() -> None:
    small = DQN((5,), 3, replace(DQN_SMALL, network=NetworkConfig(hidden=(4,))))
    with pytest.raises(ValueError, match="the saved state does not fit this dqn"):
        small.load_state_dict(AGENTS["dqn"]().state_dict())

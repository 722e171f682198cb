"""PPO: its arithmetic compared with plain loops and torch's distributions, its rollout, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from law_agents import BOX, DISCRETE, MINATAR, VECTOR, RandomEnvs, build_run, ppo, take_steps
from numpy.typing import NDArray
from processes import outcome_of
from torch.distributions import Categorical, Normal

from pliant.agents import PPO, Clock, PPOConfig
from pliant.agents.log import read_metrics
from pliant.agents.networks import NetworkConfig
from pliant.agents.normalisation import RunningNorm
from pliant.agents.optimizers import OptimizerConfig
from pliant.agents.rollout import Rollout
from pliant.agents.run import Run
from pliant.agents.views import view
from pliant.common.spaces import ActionSpec, Episode, ObservationSpec, Step
from pliant.scripts.main import main as pliant


def filled(agent: Any, num_envs: int = 3, length: int = 12, seed: int = 0) -> tuple[Rollout, list[Step], list[Any]]:
    """A complete rollout of noise, with its steps and actions."""
    agent.config = replace(agent.config, rollout=length)
    memory: Rollout = agent.memory(num_envs)
    envs = RandomEnvs(agent.observation, agent.action, num_envs, seed)
    obs = envs.reset()
    memory.start(obs)
    steps, actions = [], []
    for _ in range(length):
        action = agent.act(obs, Clock()).numpy()
        step = envs.step(action)
        memory.add(action, step)
        steps.append(step)
        actions.append(action)
        obs = step.obs
    return memory, steps, actions


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_advantages_equal_those_of_a_plain_loop(lam: float) -> None:
    """Episodes end in both ways: truncation bootstraps, termination does not, and neither continues into the next
    episode."""
    agent = ppo(VECTOR, DISCRETE, gae_lambda=lam, gamma=0.9)(seed=1)
    memory, steps, _ = filled(agent, length=40)
    assert any(s.terminated.any() for s in steps) and any(s.truncated.any() for s in steps)
    whole = memory.complete(0.9)
    values = view(agent).values(whole)[0].double().view(40, 3)
    values = values.detach()
    with torch.no_grad():
        final = torch.stack([agent.head.value(agent.critic.online(torch.from_numpy(s.final_obs))) for s in steps])
    for env in range(3):
        for t in range(40):
            total, weight = 0.0, 1.0
            for k in range(t, 40):
                goes_on = not (steps[k].terminated | steps[k].truncated)[env]
                ahead = 0.0 if steps[k].terminated[env] else final[k, env]
                total += weight * float(steps[k].reward[env] + 0.9 * ahead - values[k, env])
                weight *= 0.9 * lam
                if not goes_on:
                    break
            assert whole.advantage.view(40, 3)[t, env] == pytest.approx(total, abs=1e-5)
    torch.testing.assert_close(whole.ret, whole.advantage + whole.value)


def test_a_truncated_episode_bootstraps_from_its_final_observation() -> None:
    agent: PPO = ppo(VECTOR, DISCRETE, gae_lambda=0.0)()  # type: ignore[assignment]
    memory = agent.memory(2)
    obs, final = np.zeros((2, 5), np.float32), np.ones((2, 5), np.float32)
    memory.start(obs)
    over, not_over = np.array([True, True]), np.array([False, False])
    for t in range(agent.config.rollout):
        ended = t == 1
        truncated, terminated = np.array([ended, False]), np.array([False, ended])
        memory.add(
            np.zeros(2, np.int64),
            Step(
                obs, np.ones(2, np.float32), terminated, truncated, over if ended else not_over, final if ended else obs
            ),
        )
    whole = memory.complete(0.5)
    with torch.no_grad():
        here, there = (agent.head.value(agent.critic.online(torch.from_numpy(x)))[0] for x in (obs, final))
    rows = whole.ret.view(-1, 2)
    assert rows[1, 0] == pytest.approx(float(1 + 0.5 * there), abs=1e-6)
    assert rows[1, 1] == pytest.approx(1.0, abs=1e-6)
    assert rows[0, 0] == pytest.approx(float(1 + 0.5 * here), abs=1e-6)


@pytest.mark.parametrize("action", [DISCRETE, BOX])
def test_probabilities_and_entropies_equal_those_of_torchs_distributions(action: ActionSpec) -> None:
    agent: Any = ppo(VECTOR, action, initial_log_std=-0.3)(seed=2)
    memory, _, actions = filled(agent)
    whole = memory.complete(0.9)
    policy = agent.policy(agent.read(whole.obs)[1])
    log_prob, entropy = agent.log_prob(policy, whole.action)
    distribution: Any
    if action.discrete:
        distribution = Categorical(logits=policy[0])
        expected, spread = distribution.log_prob(whole.action), distribution.entropy()
    else:
        distribution = Normal(policy[0], policy[1].exp())
        expected = distribution.log_prob((whole.action - agent.center) / agent.scale).sum(1)
        spread = distribution.entropy().sum(1)
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(entropy, spread)
    torch.testing.assert_close(
        whole.log_prob, expected, msg="the rollout must hold the probabilities of the actions taken"
    )
    assert np.array_equal(whole.action.view(len(actions), 3, *whole.action.shape[1:]).numpy(), np.stack(actions))


def test_actions_are_drawn_from_the_policy() -> None:
    agent: Any = ppo(VECTOR, DISCRETE)(seed=3)
    with torch.no_grad():
        agent.actor.online.output.linear.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    obs = torch.zeros(20_000, 5)
    share = torch.bincount(agent.act(obs, Clock()), minlength=3) / len(obs)
    expected = agent.policy(agent.read(obs[:1])[1])[0].exp()[0]
    assert (share - expected).abs().max() < 4 * 0.5 / len(obs) ** 0.5
    assert (agent.act(obs) == 1).all(), "without a clock the agent takes the likeliest action"
    agent = ppo(VECTOR, BOX, initial_log_std=0.5)(seed=3)
    z = (agent.act(obs, Clock()) - agent.act(obs)) / agent.scale
    assert z.mean(0).abs().max() < 0.05 and (z.std(0) - np.exp(0.5)).abs().max() < 0.05
    assert z.abs().max() > 3, "actions are not clipped"


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"),
    [(1.0, 1.5, -1.2), (1.0, 0.5, -0.5), (-1.0, 1.5, 1.5), (-1.0, 0.5, 0.8), (2.0, 1.1, -2.2)],
)
def test_the_clipped_objective_equals_values_computed_by_hand(advantage: float, ratio: float, expected: float) -> None:
    """It is -min(A r, A clip(r, 0.8, 1.2))."""
    agent: Any = ppo(VECTOR, DISCRETE, normalise_advantage=False, clip=0.2)()
    memory, _, _ = filled(agent)
    batch = memory.complete(0.9)
    log_prob = batch.log_prob - np.log(ratio)
    batch = batch.replace(advantage=torch.full_like(batch.advantage, advantage), log_prob=log_prob)
    loss, _, _ = agent.policy_loss(batch, agent.read(batch.obs)[1])
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_the_loss_is_the_weighted_sum_of_policy_clipped_value_and_entropy() -> None:
    agent: Any = ppo(VECTOR, DISCRETE, entropy=0.3, value_weight=0.7, clip_value=0.1, normalise_advantage=True)()
    memory, _, _ = filled(agent)
    batch = memory.complete(0.9)
    batch = batch.replace(value=batch.value + 0.5)
    loss, parts, error, _ = agent.loss(batch)
    value = view(agent).values(batch)[0].detach()
    near = batch.value + (value - batch.value).clamp(-0.1, 0.1)
    worse = torch.maximum(0.5 * (value - batch.ret) ** 2, 0.5 * (near - batch.ret) ** 2).mean()
    assert parts["losses/value_loss"].item() == pytest.approx(worse.item(), rel=1e-5)
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    entropy = Categorical(logits=agent.policy(agent.read(batch.obs)[1])[0]).entropy().mean()
    assert loss.item() == pytest.approx((-advantage.mean() + 0.7 * worse - 0.3 * entropy).item(), abs=1e-5)
    torch.testing.assert_close(error, (value - batch.ret).abs())
    assert parts["losses/approx_kl"].item() == pytest.approx(0.0, abs=1e-6)


def test_a_rollout_is_used_in_complete_passes_and_then_dropped() -> None:
    agent: Any = ppo(VECTOR, DISCRETE)()
    memory, _, _ = filled(agent, num_envs=3, length=7)
    memory.filled = 6
    assert not list(memory.batches(agent.sampling(Clock()))), "there are no batches before the rollout is full"
    memory.filled = 7
    seen = [batch.index for batch in memory.batches(agent.sampling(Clock()))]
    assert [len(b) for b in seen] == [4, 4, 4, 4, 4] * 2, "a last minibatch of a single step is left out"
    for places in (torch.cat(seen[:5]), torch.cat(seen[5:])):
        assert len(places.unique()) == 20
    assert not torch.equal(torch.cat(seen[:5]), torch.cat(seen[5:])) and len(memory) == 0
    with pytest.raises(RuntimeError, match="no rollout is complete"):
        agent.memory(2).sample(4)
    state = agent.memory(2).state_dict()
    with pytest.raises(ValueError, match="is of 7 steps of 2 environments"):
        agent.memory(3).load_state_dict(state)


def test_the_last_complete_rollout_stays_while_the_next_is_filled() -> None:
    """New steps overwrite the last rollout's memory; observers can still sample the last rollout."""
    agent: Any = ppo(VECTOR, BOX)()
    memory, steps, actions = filled(agent)
    list(memory.batches(agent.sampling(Clock())))
    kept = [part.clone() for part in memory.held]
    for action, step in zip(reversed(actions), reversed(steps), strict=True):
        memory.add(action, step)
    assert all(torch.equal(part, old) for part, old in zip(memory.held, kept, strict=True))
    again = memory.complete(0.9)
    assert np.array_equal(again.next_obs.view(12, 3, 5).numpy(), np.stack([s.final_obs for s in reversed(steps)]))
    ends = np.stack([s.terminated for s in reversed(steps)])
    assert np.array_equal(again.discount.view(12, 3).numpy(), np.float32(0.9) * ~ends)


@pytest.mark.parametrize("observation", [VECTOR, MINATAR])
def test_acting_and_training_use_the_same_features(observation: ObservationSpec) -> None:
    agent: Any = ppo(observation, DISCRETE)()
    memory, _, _ = filled(agent)
    obs = memory.complete(0.9).obs
    assert torch.equal(agent.features(obs), agent.read(obs)[1])


def test_running_statistics_equal_those_of_all_data() -> None:
    norm, rng = RunningNorm((3,)), np.random.default_rng(0)
    seen = [rng.normal(5, 2, size=(n, 3)) for n in (7, 1, 300)]
    for x in seen:
        norm.see(torch.from_numpy(x).float())
    whole = np.concatenate(seen)
    np.testing.assert_allclose(norm.mean.numpy(), whole.mean(0), rtol=1e-6)
    np.testing.assert_allclose(norm.var.numpy(), whole.var(0), rtol=1e-5)


def test_observations_are_normalised_by_statistics_of_earlier_rollouts() -> None:
    agent: Any = ppo(VECTOR, BOX, normalise_observations=True)()
    memory, _, _ = filled(agent)
    list(memory.batches(agent.sampling(Clock())))
    x = torch.randn(64, 5) * 100
    expected = ((x - agent.seen.mean) / (agent.seen.var + 1e-8).sqrt()).clamp(-10, 10).float()
    assert agent.seen.count == 36
    torch.testing.assert_close(agent.normal(x), expected)


def test_rewards_are_divided_by_the_deviation_of_discounted_returns() -> None:
    agent: Any = ppo(VECTOR, DISCRETE, scale_rewards=True, gamma=0.9)()
    memory, steps, _ = filled(agent, num_envs=2, length=30)
    sums: list[list[float]] = [[], []]
    for env in range(2):
        total = 0.0
        for step in steps:
            total = 0.9 * total + step.reward[env]
            sums[env].append(total)
            total = 0.0 if (step.terminated | step.truncated)[env] else total
    whole = memory.complete(0.9)
    deviation = np.sqrt(np.var(np.concatenate(sums)) + 1e-8)
    expected = np.clip(np.stack([s.reward for s in steps]) / deviation, -10, 10)
    np.testing.assert_allclose(whole.reward.view(30, 2).numpy(), expected, rtol=1e-4)


def test_the_learning_rate_falls_to_zero() -> None:
    agent: Any = ppo(VECTOR, DISCRETE, anneal_steps=100, optimizer=OptimizerConfig(lr=0.01))()
    memory, _, _ = filled(agent)
    batch = memory.complete(0.9)
    for steps, expected in ((0, 0.01), (50, 0.005), (100, 0.0), (150, 0.0)):
        before = agent.critic.online.output.linear.weight.detach().clone()
        agent.update(batch, agent.plan(Clock(steps=steps, updates=1)))
        assert agent.critic.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        assert torch.equal(before, agent.critic.online.output.linear.weight) == (expected == 0.0)


def test_with_images_the_actor_uses_and_trains_the_critics_features() -> None:
    agent: Any = ppo(MINATAR, DISCRETE, value_weight=0.0)()
    memory, _, _ = filled(agent)
    batch = memory.complete(0.9)
    before = agent.critic.online.encoder.blocks[0].linear.weight.detach().clone()
    agent.update(batch, agent.plan(Clock(updates=1)))
    assert not torch.equal(before, agent.critic.online.encoder.blocks[0].linear.weight)
    fresh: Any = ppo(MINATAR, DISCRETE)()
    weight = fresh.actor.online.output.linear.weight.detach()
    assert weight.shape == (3, 10) and torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(0.01, rel=1e-4)


def test_invalid_settings_are_refused() -> None:
    for changes, message in (
        ({"value_loss": "c51"}, "c51 on distributions of them; use mse"),
        ({"clip": 0.0}, "clip must be above 0, not 0"),
        ({"value_loss": "huber", "clip_value": 0.2}, "with value_loss huber it must be 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"gae_lambda": 1.5}, "gae_lambda must be between 0 and 1, not 1.5"),
        ({"entropy": -1.0}, "entropy must be at least 0, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            PPOConfig(**changes)  # type: ignore[arg-type]


class Bandit:
    """Episodes of one step with two inputs and three actions; the right action depends on the input."""

    frame_skip, num_envs = 1, 8

    def __init__(self) -> None:
        self.observation, self.action = ObservationSpec((2,)), ActionSpec(3, discrete=True)
        self.rng = np.random.default_rng(0)

    def reset(self) -> NDArray[Any]:
        self.kind = self.rng.integers(2, size=8)
        return np.eye(2, dtype=np.float32)[self.kind]

    def step(self, action: NDArray[Any]) -> Step:
        reward = (action == 2 * self.kind).astype(np.float32)
        over, never = np.ones(8, bool), np.zeros(8, bool)
        ended = tuple(Episode(i, float(reward[i]), 1, 0) for i in range(8))
        obs = self.reset()
        return Step(obs, reward, over, never, over, obs, ended)

    def close(self) -> None:
        pass


def test_it_learns_a_contextual_bandit() -> None:
    small = NetworkConfig(hidden=(16,), activation="tanh", init="orthogonal")
    config = PPOConfig(
        network=small, actor_network=small, rollout=16, epochs=4, batch_size=32, optimizer=OptimizerConfig(lr=1e-2)
    )
    agent = PPO((2,), 3, config)
    run = Run(agent, Bandit())  # type: ignore[arg-type]
    run.train(4_000)
    assert run.log.mean_return is not None and run.log.mean_return > 0.9
    assert agent.act(torch.eye(2)).tolist() == [0, 2]


def test_an_action_beyond_the_bounds_is_clipped_in_the_environment() -> None:
    from pliant.envs import make

    first, second = make("Pendulum-v1", seed=0), make("Pendulum-v1", seed=0)
    first.reset()
    second.reset()
    assert np.array_equal(first.step(np.full((1, 1), 50.0)).obs, second.step(np.full((1, 1), 2.0)).obs)


def test_a_stopped_run_resumes_with_the_same_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(folder: Path, steps: int) -> None:
        line = ["train", "--agent", "ppo", "--env", "Pendulum-v1"]
        line += ["--steps", str(steps), "--run", str(folder), "--threads", "1", "--log-every", "100"]
        line += ["--agent.rollout", "64", "--evaluate-episodes", "1", "--agent.scale-rewards"]
        line += ["--agent.normalise-observations", "--monitors", "units(every=20)"]
        code, output = outcome_of(*line)
        assert code == 0, output

    train(tmp_path / "straight", 700)
    train(tmp_path / "stopped", 350)
    train(tmp_path / "stopped", 700)
    ours, theirs = (
        [row for row in read_metrics(tmp_path / name) if "eval/episodic_return" not in row]
        for name in ("straight", "stopped")
    )
    assert ours == theirs and any("plasticity/dormant_fraction/actor" in row for row in ours)
    assert pliant(["inspect", str(tmp_path / "stopped"), "--monitors", "norms"]) == 0
    assert "weight_norm" in capsys.readouterr().out


def test_the_action_agreement_of_a_layer_is_a_fraction() -> None:
    """PPO's decisions are probabilities and their churn is a divergence, but the agreement is a fraction of actions."""
    run = build_run("ppo", monitors=["criticality(every=3, samples=64)"])
    take_steps(run, 12)
    run.monitors.publish(run)  # type: ignore[union-attr]
    agreements = {key: v for key, v in run.log.latest.items() if "action_agreement" in key}
    assert len(agreements) >= 4 and all(0 <= v <= 1 for v in agreements.values())
    assert all(64 * v == pytest.approx(round(64 * v), abs=1e-3) for v in agreements.values())


@pytest.mark.parametrize("action", [DISCRETE, BOX])
def test_values_are_compared_with_returns_of_the_policy_that_they_evaluate(action: ActionSpec) -> None:
    """This is the policy of training, not the greedy policy, with the caller's generator and the unit of the values."""
    agent: Any = ppo(VECTOR, action, scale_rewards=True)(seed=4)
    obs, before = torch.zeros(2_000, 5), agent.generator.get_state()
    drawn, bonus = view(agent).policy(obs, torch.Generator().manual_seed(1))
    again, _ = view(agent).policy(obs, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again) and not drawn.eq(agent.act(obs)).all() and not bonus.any()
    assert torch.equal(agent.generator.get_state(), before)
    agent.returns.see(torch.tensor([0.0, 8.0]))
    assert view(agent).scaled_rewards(np.array([2.0, -400.0])) == pytest.approx([0.5, -10.0])


def test_the_atari_preset_is_the_papers_and_the_minatar_preset_is_not() -> None:
    """Table 5 of Schulman et al. 2017: its value weight of 1 is for the squared error; our loss has half of it."""
    atari, minatar = (PPOConfig.for_suite(suite) for suite in ("atari", "minatar"))
    held = (atari.rollout, atari.optimizer.lr, atari.epochs, atari.batch_size, atari.gamma, atari.gae_lambda)
    assert held == (128, 2.5e-4, 3, 32 * 8, 0.99, 0.95)
    assert (atari.clip, atari.entropy, atari.reward_clip, atari.anneal_steps) == (0.1, 0.01, 1.0, 0)
    agent: Any = ppo(VECTOR, DISCRETE)()
    memory, _, _ = filled(agent)
    batch = memory.complete(0.9)
    squared = (view(agent).values(batch)[0] - batch.ret).square().mean().item()
    for preset, weight in ((atari, 1.0), (minatar, 0.25)):
        agent.config = replace(agent.config, value_weight=preset.value_weight)
        assert view(agent).loss_functions(batch, 0)["critic"]().item() == pytest.approx(weight * squared, rel=1e-5)
    assert (minatar.epochs, minatar.reward_clip, minatar.network.hidden) == (4, 0.0, (128,))

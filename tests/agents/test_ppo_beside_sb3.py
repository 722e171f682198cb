"""PPO compared with Stable-Baselines3's, with equal weights on the same rollout: the training data, the loss, its
gradient, and the weights after complete passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from law_agents import VECTOR
from numpy.typing import NDArray

from pliant.agents import PPO, Clock, PPOConfig
from pliant.agents.networks import NetworkConfig
from pliant.agents.optimizers import OptimizerConfig
from pliant.agents.rollout import RolloutBatch
from pliant.common.spaces import Step

sb3 = pytest.importorskip("stable_baselines3")
# These tests use a smaller last minibatch on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size:UserWarning")

ENVS, LENGTH, BATCH, EPOCHS = 3, 21, 20, 3  # 63 steps: three minibatches of 20 and one of 3
GAMMA, LAM, CLIP, ENTROPY, VALUE, LR, CLIPPED = 0.97, 0.9, 0.1, 0.02, 0.5, 0.01, 0.5
HIDDEN = (12, 10)


class Noise(gym.Env[Any, Any]):
    """Episodes of noise, some with a single step, that end in both ways; the reward depends on the action."""

    def __init__(self, seed: int, discrete: bool) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, VECTOR.shape, np.float32)
        self.action_space = gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.rng = np.random.default_rng(seed)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[Any], dict[str, Any]]:
        return self.rng.normal(size=VECTOR.shape).astype(np.float32), {}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        over, cut = self.rng.random(2) < 0.15
        reward = float(self.rng.normal() + np.sum(action))
        return self.reset()[0], reward, bool(over), bool(cut and not over), {}


@dataclass
class Pair:
    """Their agent and ours with equal weights, and a rollout of their agent."""

    theirs: Any
    ours: PPO
    whole: RolloutBatch
    ended: tuple[int, int]  # steps at which an episode terminated, was truncated

    def layers(self) -> list[tuple[torch.nn.Linear, torch.nn.Linear]]:
        """Pairs of their linear maps and ours, first the critic's, then the actor's."""
        policy = self.theirs.policy
        bodies = policy.mlp_extractor.value_net, policy.mlp_extractor.policy_net
        outputs = policy.value_net, policy.action_net
        pairs = []
        for body, output, mine in zip(bodies, outputs, (self.ours.critic, self.ours.actor), strict=True):
            maps = [m for m in (*body, output) if isinstance(m, torch.nn.Linear)]
            own = [*(layer.linear for layer in mine.online.body.layers), mine.online.output.linear]
            pairs += list(zip(maps, own, strict=True))
        return pairs

    def parameters(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of their parameters and ours."""
        pairs = [pair for a, b in self.layers() for pair in ((a.weight, b.weight), (a.bias, b.bias))]
        if self.ours.actor.online.log_std is not None:
            pairs.append((self.theirs.policy.log_std, self.ours.actor.online.log_std))
        assert len(pairs) == len(list(self.theirs.policy.parameters())), "every parameter must have a partner"
        return pairs


def make(discrete: bool, *, batch: int = BATCH, epochs: int = EPOCHS, seed: int = 0) -> Pair:
    venv = sb3.common.vec_env.DummyVecEnv([lambda s=s: Noise(s, discrete) for s in range(ENVS)])
    theirs = sb3.PPO(
        "MlpPolicy",
        venv,
        learning_rate=LR,
        n_steps=LENGTH,
        batch_size=batch,
        n_epochs=epochs,
        gamma=GAMMA,
        gae_lambda=LAM,
        clip_range=CLIP,
        ent_coef=ENTROPY,
        vf_coef=VALUE,
        max_grad_norm=CLIPPED,
        seed=seed,
        policy_kwargs={"net_arch": list(HIDDEN), "log_std_init": -0.3},
        device="cpu",
    )
    network = NetworkConfig(hidden=HIDDEN, activation="tanh", init="orthogonal")
    config = PPOConfig(
        network=network,
        actor_network=network,
        rollout=LENGTH,
        epochs=epochs,
        batch_size=batch,
        gamma=GAMMA,
        gae_lambda=LAM,
        clip=CLIP,
        entropy=ENTROPY,
        initial_log_std=-0.3,
        value_weight=2 * VALUE,  # our squared error is halved, as in OpenAI's PPO2; theirs is not
        optimizer=OptimizerConfig(lr=LR, eps=1e-5, max_grad_norm=CLIPPED),
    )
    pair = Pair(theirs, PPO(venv.observation_space, venv.action_space, config, seed=seed), None, (0, 0))  # type: ignore[arg-type]
    with torch.no_grad():
        for their, our in pair.parameters():
            # Not the initial weights, which make all policies nearly uniform.
            our.add_(torch.randn(our.shape, generator=torch.Generator().manual_seed(our.numel())), alpha=0.2)
            their.copy_(our)
    memory, steps = pair.ours.memory(ENVS), []
    step_wait = venv.step_wait

    def recorded() -> Any:
        obs, reward, over, infos = step_wait()
        cut = np.array([info["TimeLimit.truncated"] for info in infos])
        final = np.stack([info.get("terminal_observation", o) for info, o in zip(infos, obs, strict=True)])
        steps.append(Step(obs.copy(), reward.copy(), over & ~cut, over & cut, over.copy(), final))
        return obs, reward, over, infos

    venv.step_wait = recorded
    _, callback = theirs._setup_learn(LENGTH * ENVS)
    memory.start(theirs._last_obs)
    theirs.collect_rollouts(theirs.env, callback, theirs.rollout_buffer, LENGTH)
    for action, step in zip(theirs.rollout_buffer.actions, steps, strict=True):
        memory.add(action[:, 0].astype(np.int64) if discrete else action, step)
    pair.whole = memory.complete(GAMMA)
    pair.ended = sum(int(s.terminated.sum()) for s in steps), sum(int(s.truncated.sum()) for s in steps)
    return pair


KINDS = pytest.mark.parametrize("discrete", [True, False], ids=["discrete", "continuous"])


@KINDS
def test_the_training_data_are_equal(discrete: bool) -> None:
    pair = make(discrete)
    assert min(pair.ended) > 3, "episodes end in both ways"
    buffer = pair.theirs.rollout_buffer
    for name, ours in (
        ("values", pair.whole.value),
        ("log_probs", pair.whole.log_prob),
        ("advantages", pair.whole.advantage),
        ("returns", pair.whole.ret),
    ):
        expected = torch.from_numpy(getattr(buffer, name)).flatten()
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")
    assert torch.equal(pair.whole.obs, torch.from_numpy(buffer.observations).flatten(0, 1))


@KINDS
def test_losses_and_clipped_gradients_are_equal(discrete: bool) -> None:
    """The gradients are compared after clipping, which was necessary."""
    pair = make(discrete, batch=LENGTH * ENVS, epochs=1)
    pair.theirs.train()
    update = pair.ours.update(pair.whole, pair.ours.plan(Clock(steps=LENGTH * ENVS, updates=1)))
    logged = pair.theirs.logger.name_to_value
    for ours, theirs, weight in (
        ("policy_loss", "policy_gradient_loss", 1.0),
        ("value_loss", "value_loss", 0.5),
        ("entropy", "entropy_loss", -1.0),
        ("approx_kl", "approx_kl", 1.0),
        ("clip_fraction", "clip_fraction", 1.0),
    ):
        expected = weight * logged[f"train/{theirs}"]
        assert update.metrics[f"losses/{ours}"].item() == pytest.approx(expected, rel=1e-5, abs=1e-6), ours
    for their, our in pair.parameters():
        assert their.grad is not None and our.grad is not None and their.grad.abs().max() > 1e-4
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-4, atol=1e-6)
    assert pair.ours.critic.optimizer.clipped < 0.9  # type: ignore[attr-defined]


@KINDS
def test_the_weights_are_equal_after_three_passes_in_the_same_order(discrete: bool) -> None:
    """The policy changes enough for the ratio to be clipped; the last minibatch is smaller."""
    pair = make(discrete)
    size = LENGTH * ENVS
    np.random.seed(7)
    orders = [np.random.permutation(size) for _ in range(EPOCHS)]
    np.random.seed(7)
    pair.theirs.train()
    before = [our.detach().clone() for _, our in pair.parameters()]
    clock = Clock(steps=size)
    fractions, divergences, sizes = [], [], []
    for order in orders:
        # Their data are ordered by environment, ours by step.
        places = torch.from_numpy(order % LENGTH * ENVS + order // LENGTH)
        for begin in range(0, size, BATCH):
            clock = clock.updated()
            batch = pair.whole.take(places[begin : begin + BATCH])
            update = pair.ours.update(batch, pair.ours.plan(clock))
            fractions.append(update.metrics["losses/clip_fraction"].item())
            divergences.append(update.metrics["losses/approx_kl"].item())
            sizes.append(len(batch.reward))
    assert sizes == [20, 20, 20, 3] * EPOCHS
    logged = pair.theirs.logger.name_to_value
    assert np.mean(fractions) == pytest.approx(logged["train/clip_fraction"], abs=1e-6)
    assert np.mean(fractions) > 0.1
    assert np.mean(divergences[-4:]) == pytest.approx(logged["train/approx_kl"], rel=1e-3)  # theirs is of the last pass
    for (their, our), old in zip(pair.parameters(), before, strict=True):
        assert (our - old).abs().max() > 0.01
        torch.testing.assert_close(our, their, rtol=1e-4, atol=2e-5)


@KINDS
def test_a_rollout_gives_minibatches_of_the_same_sizes(discrete: bool) -> None:
    """Every pass of ours has all steps, in minibatches of their sizes."""
    pair = make(discrete)
    theirs = [len(b.observations) for b in pair.theirs.rollout_buffer.get(BATCH)]
    memory = pair.ours.memory(ENVS)
    memory.start(np.zeros((ENVS, *VECTOR.shape), np.float32))
    never, zeros = np.zeros(ENVS, bool), np.zeros((ENVS, *VECTOR.shape), np.float32)
    action = np.zeros(ENVS, np.int64) if discrete else np.zeros((ENVS, 2), np.float32)
    for _ in range(LENGTH):
        memory.add(action, Step(zeros, np.zeros(ENVS, np.float32), never, never, never, zeros))
    assert [len(b.reward) for b in memory.batches(pair.ours.sampling(Clock()))] == theirs * EPOCHS


@KINDS
def test_the_likeliest_actions_are_equal(discrete: bool) -> None:
    pair = make(discrete)
    obs = np.random.default_rng(3).normal(size=(50, *VECTOR.shape)).astype(np.float32)
    theirs = pair.theirs.predict(obs, deterministic=True)[0]
    ours = pair.ours.act(obs).numpy()
    np.testing.assert_allclose(ours if discrete else ours.clip(-1, 1), theirs, rtol=1e-5, atol=1e-6)


@KINDS
def test_initial_weights_have_the_same_distribution(discrete: bool) -> None:
    """All singular values of a matrix are its gain; biases are zero."""
    pair = make(discrete)
    untrained = sb3.PPO("MlpPolicy", pair.theirs.env, policy_kwargs={"net_arch": list(HIDDEN)}, device="cpu")
    fresh = Pair(untrained, PPO(pair.ours.observation, pair.ours.action, pair.ours.config), pair.whole, (0, 0))
    for their, our in fresh.layers():
        gains = [torch.linalg.svdvals(layer.weight.detach()) for layer in (their, our)]
        torch.testing.assert_close(gains[0], gains[1], rtol=1e-4, atol=1e-5)
        assert not their.bias.any() and not our.bias.any()
    default = PPO(pair.ours.observation, pair.ours.action)
    for group, own in zip(untrained.policy.optimizer.param_groups, default.critic.optimizer.param_groups, strict=True):
        for name in ("lr", "eps", "betas", "weight_decay"):
            assert group[name] == own[name], name
    if not discrete:
        assert torch.equal(untrained.policy.log_std, default.actor.online.log_std)


def test_the_learning_rate_decreases_equally() -> None:
    """Both count the steps of the current rollout, so the learning rate of the last updates is zero."""
    theirs = sb3.PPO("MlpPolicy", Noise(0, True), learning_rate=lambda left: left * LR, n_steps=20, batch_size=20)
    config = PPOConfig(anneal_steps=100, rollout=20, batch_size=20, optimizer=OptimizerConfig(lr=LR))
    ours: Any = PPO(VECTOR, 3, config)
    memory = ours.memory(1)
    memory.start(np.zeros((1, 5), np.float32))
    theirs._setup_learn(100)
    for steps in (20, 60, 100):
        theirs._update_current_progress_remaining(steps, 100)
        theirs._update_learning_rate(theirs.policy.optimizer)
        memory.filled = 20
        ours.update(memory.complete(0.9), ours.plan(Clock(steps=steps, updates=1)))
        expected = theirs.policy.optimizer.param_groups[0]["lr"]
        assert ours.critic.optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-12)

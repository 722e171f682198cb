"""PPO (Schulman et al. 2017, 1707.06347), with the details that make it work (Huang et al. 2022, "The 37 Implementation
Details of Proximal Policy Optimization").

Orthogonal initial weights, policy head scaled by 0.01; generalised advantage estimation, bootstrapped at truncation;
advantages normalised in every minibatch; gradients clipped; Adam with eps 1e-5; learning rate annealed. For vectors,
actor and critic are separate networks. For images they share the encoder, which belongs to the critic and is trained by
both losses.

Differs from the authors' code: running statistics that normalise observations and rewards (if switched on) change
between rollouts and not within one, so the agent trains on the same inputs on which it acted. Log-probabilities are
computed in one pass over the complete rollout, by the policy that acted. There is no early stopping on the KL
divergence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..common.ranges import EnvSteps, NotNegative, Positive, Samples, Share, SomeEnvSteps, at_least, between
from ..common.seeds import derive_seed
from .agent import Agent, Component
from .clock import Clock, Linear, Plan, Sampling, Update
from .config import AgentConfig
from .heads import HeadConfig, HeadName, build_head, precise
from .networks import NetworkConfig, Trace, ValueNetwork
from .normalisation import RunningNorm
from .optimizers import OptimizerConfig, build_optimizer, set_learning_rate, step
from .policies import PolicyNetwork, beyond_first_order, gaussian
from .rollout import Evaluation, Rollout, RolloutBatch

# Heads whose target is a number; the others need the distribution of the return.
SCALAR_TARGETS = ("mse", "huber", "symlog", "two_hot", "hl_gauss")


@dataclass(frozen=True)
class PPOConfig(AgentConfig):
    """PPO.

    Attributes:
        network: Shape of the critic, and for images of the encoder that it shares with the actor.
        actor_network: Shape of the actor.
        optimizer: Optimizer of actor and critic.
        anneal_steps: Environment steps over which the learning rate falls linearly to zero; 0 keeps it constant.
        rollout: Steps of every environment in a rollout, between two rounds of updates.
        epochs: Passes over a rollout.
        batch_size: Steps in a minibatch.
        gamma: Discount factor.
        gae_lambda: Lambda of generalised advantage estimation.
        clip: Largest distance of the probability ratio from 1 (the clip range).
        clip_value: Largest change of a value (value clipping); 0 is off (only with value_loss mse).
        entropy: Weight of the entropy bonus.
        value_weight: Weight of the value loss, which for mse is half the squared error (Stable-Baselines3 does not
            halve: its 0.5 is 1 here).
        value_loss: Value head and loss.
        head: Parameters of the value loss.
        normalise_advantage: Normalise the advantages of every minibatch to mean 0 and standard deviation 1.
        normalise_observations: Standardise vectors by their running mean and standard deviation, and clip them to
            [-10, 10].
        scale_rewards: Divide rewards by the running standard deviation of the discounted return, and clip them to
            [-10, 10].
        reward_clip: Clip the rewards that the agent trains on to [-reward_clip, reward_clip]; 0 is off.
        initial_log_std: Initial logarithm of the policy's standard deviation (continuous actions).
    """

    parts: ClassVar[dict[str, tuple[str, str]]] = {
        "critic": ("network", "optimizer"),
        "actor": ("actor_network", "optimizer"),
    }
    presets: ClassVar[str] = "ppo"
    # The loop asks for batches after every step; the rollout yields them only when it is complete.
    update_every: ClassVar[int] = 1

    network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(hidden=(64, 64), activation="tanh", init="orthogonal")
    )
    actor_network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(hidden=(64, 64), activation="tanh", init="orthogonal")
    )
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-4, eps=1e-5, max_grad_norm=0.5))
    anneal_steps: EnvSteps = 0
    rollout: SomeEnvSteps = 2048
    epochs: Annotated[int, at_least(1, most=1_000, why="a round of learning would take hours")] = 10
    batch_size: Samples = 64
    gamma: Share = 0.99
    gae_lambda: Share = 0.95
    clip: Positive = 0.2
    clip_value: NotNegative = 0.0
    entropy: NotNegative = 0.0
    value_weight: NotNegative = 0.5
    value_loss: HeadName = "mse"
    head: HeadConfig = field(default_factory=HeadConfig)
    normalise_advantage: bool = True
    normalise_observations: bool = False
    scale_rewards: bool = False
    reward_clip: NotNegative = 0.0
    initial_log_std: Annotated[float, between(-20, 20)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_loss not in SCALAR_TARGETS:
            raise ValueError(
                f"ppo regresses on returns, and {self.value_loss} on distributions of them; use "
                f"{', '.join(SCALAR_TARGETS)}"
            )
        if self.clip_value and self.value_loss != "mse":
            raise ValueError(f"clip_value bounds how a number moves: with value_loss {self.value_loss} it must be 0")


class PPO(Agent):
    """Proximal policy optimisation, on discrete or continuous actions."""

    name = "ppo"
    config_class = PPOConfig
    config: PPOConfig

    def build(self, generator: Generator) -> None:
        c = self.config
        self.head = build_head(c.value_loss, c.head, gamma=c.gamma).to(self.device)
        self.shared = self.observation.pixels
        critic, actor = (network.to(self.device) for network in self.built(generator).values())
        optimizer = build_optimizer([*critic.parameters(), *actor.parameters()], c.optimizer)
        self.critic, self.actor = Component(critic, optimizer), Component(actor, optimizer)
        self.components = {"critic": self.critic, "actor": self.actor}
        self.seen = RunningNorm(self.observation.shape).to(self.device)
        self.returns = RunningNorm(()).to(self.device)
        self.annealing = Linear(1.0, 0.0, c.anneal_steps)

    def networks(self, generator: Generator) -> dict[str, nn.Module]:
        c = self.config
        critic = ValueNetwork(self.observation, self.head.outputs, c.network, generator)
        features = critic.body.features if self.shared else critic.encoder.features
        log_std = None if self.action.discrete else c.initial_log_std
        actor = PolicyNetwork(features, self.action.size, c.actor_network, generator, log_std=log_std)
        return {"critic": critic, "actor": actor}

    def batch(self) -> int:
        return 0  # a minibatch is at most as large as the rollout, whose memory is checked

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().modules()
        yield "seen", self.seen
        yield "returns", self.returns

    def read(self, obs: Tensor, trace: Trace | None = None) -> tuple[Tensor, Tensor]:
        """Observations [B, *obs] → value logits [B, outputs], and the actor's input features [B, F]."""
        x = self.normal(obs)
        logits, features = self.critic.online.read(x, trace)
        return logits, features if self.shared else self.critic.online.encoder(x)

    def features(self, obs: Tensor) -> Tensor:
        """Observations [B, *obs] → the actor's input features [B, F] only."""
        x, critic = self.normal(obs), self.critic.online
        encoded: Tensor = critic.encoder(x)
        return critic.body(encoded) if self.shared else encoded

    def normal(self, obs: Tensor) -> Tensor:
        """Observations as the networks read them: standardised if `normalise_observations` is set."""
        if not self.config.normalise_observations or self.shared:
            return obs
        return ((obs - self.seen.mean) / self.seen.deviation()).clamp(-10, 10).float()

    def policy(
        self, features: Tensor, trace: Trace | None = None, network: PolicyNetwork | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all actions [B, actions] and a zero, or means and log standard deviations [B, A].

        Uses `network`, a copy of the actor, or the actor itself if None.
        """
        network = self.actor.online if network is None else network
        logits: Tensor = network(features, trace)
        if self.action.discrete:
            return F.log_softmax(logits, dim=1), logits.new_zeros(())
        log_std = network.log_std
        assert log_std is not None
        return logits, log_std.expand_as(logits)

    def log_prob(self, policy: tuple[Tensor, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of actions [B] and entropies [B]; densities are over actions scaled to [-1, 1]."""
        if self.action.discrete:
            logs = policy[0]
            return logs.gather(1, action.view(-1, 1)).squeeze(1), -(logs.exp() * logs).sum(dim=1)
        return gaussian(*policy, self.unscaled(action))

    @torch.no_grad()
    def act(self, obs: NDArray[Any] | Tensor, clock: Clock | None = None) -> Tensor:
        policy = self.policy(self.features(self.tensor(obs)))
        if self.action.discrete:
            if clock is None:
                return policy[0].argmax(dim=1)
            # The Gumbel-max trick samples from logits without a transfer to the host.
            noise = torch.empty_like(policy[0]).exponential_(generator=self.generator).log()
            return (policy[0] - noise).argmax(dim=1)
        mean, log_std = policy
        if clock is not None:
            mean = mean + log_std.exp() * torch.randn(mean.shape, generator=self.generator, device=self.device)
        # Not clipped: the agent trains on the sampled action, and the environment clips it to its bounds.
        return torch.addcmul(self.center, self.scale, mean)

    def sampling(self, clock: Clock) -> Sampling:
        c = self.config
        return self.interventions.schedule(Sampling(c.batch_size, 1, c.gamma, c.epochs / c.batch_size), clock)

    def memory(self, num_envs: int = 1, seed: int | None = None) -> Rollout:
        """The rollout that the configuration describes, on the agent's device."""
        c = self.config
        return Rollout(
            self.observation,
            self.action,
            length=c.rollout,
            num_envs=num_envs,
            batch_size=c.batch_size,
            epochs=c.epochs,
            lam=c.gae_lambda,
            device=self.device,
            seed=derive_seed(self.seed if seed is None else seed, "rollout"),
            evaluate=self.evaluate,
            scale=self.scaled,
            finish=self.finish,
        )

    def describe_memory(self, num_envs: int = 1) -> str:
        size = 2 * self.config.rollout * num_envs * math.prod(self.observation.shape)
        size *= self.observation.dtype.itemsize
        return f"rollout: {self.config.rollout:,} steps of {num_envs} take {size / 1e9:.3g} GB on {self.device}"

    def memory_bytes(self, num_envs: int = 1) -> int:
        return Rollout.size_of(self.observation, self.action, self.config.rollout, num_envs)

    @torch.no_grad()
    def evaluate(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Evaluation:
        """Log-probabilities and values of T steps of E environments [T, E, ...], by the networks that acted in them."""
        shape = obs.shape[:2]
        obs, action, next_obs = (part.flatten(0, 1) for part in (obs, action, next_obs))
        log_probs, values, next_values = [], [], []
        for now, done, then in zip(obs.split(1024), action.split(1024), next_obs.split(1024), strict=True):
            logits, features = self.read(now)
            values.append(self.head.value(logits))
            log_probs.append(self.log_prob(self.policy(features), done)[0])
            next_values.append(self.head.value(self.critic.online(self.normal(then))))
        return Evaluation(*(torch.cat(pieces).view(shape) for pieces in (log_probs, values, next_values)))

    @torch.no_grad()
    def scaled(self, reward: Tensor, over: Tensor, carry: Tensor) -> Tensor:
        """Rewards [T, E], scaled and clipped for training. Updates `carry` [E], the discounted returns so far."""
        c = self.config
        if c.scale_rewards:
            sums = []
            for now, ended in zip(reward, over, strict=True):
                carry.mul_(c.gamma).add_(now)
                sums.append(carry.clone())
                carry.mul_(~ended)
            self.returns.see(torch.cat(sums))
            reward = (reward / self.returns.deviation()).clamp(-10, 10).float()
        return reward.clamp(-c.reward_clip, c.reward_clip) if c.reward_clip else reward

    def finish(self, obs: Tensor) -> None:
        """Update the observation statistics after the updates of a rollout, for use from the next rollout on."""
        if self.config.normalise_observations and not self.shared:
            self.seen.see(obs)

    def learning_rate(self, clock: Clock) -> float:
        """The optimizer's learning rate, annealed linearly if `anneal_steps` is set."""
        return self.config.optimizer.lr * (self.annealing(self.age(clock)) if self.config.anneal_steps else 1.0)

    def charts(self, clock: Clock) -> dict[str, float]:
        return {"charts/learning_rate": self.learning_rate(clock)}

    def plan(self, clock: Clock) -> Plan:
        if self.config.anneal_steps:
            set_learning_rate(self.critic.optimizer, self.learning_rate(clock))
        return Plan()

    def value_loss(self, batch: RolloutBatch, logits: Tensor) -> Tensor:
        """Mean value loss; with `clip_value`, of the larger of the losses of the value and the clipped value."""
        c = self.config
        error = self.head.loss(logits, batch.ret)
        if c.clip_value:
            moved = self.head.value(logits)
            clipped = batch.value + (moved - batch.value).clamp(-c.clip_value, c.clip_value)
            error = torch.maximum(error, 0.5 * (clipped - batch.ret).square())
        return error.mean()

    def policy_loss(self, batch: RolloutBatch, features: Tensor, trace: Trace | None = None) -> tuple[Tensor, ...]:
        """Policy loss (the negated clipped objective, eq. 7), mean entropy, log-ratios [B]."""
        c = self.config
        log_prob, entropy = self.log_prob(self.policy(features, trace), batch.action)
        log_ratio = log_prob - batch.log_prob
        ratio = log_ratio.exp()
        advantage = batch.advantage
        if c.normalise_advantage and len(advantage) > 1:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gain = torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - c.clip, 1 + c.clip))
        return -gain.mean(), entropy.mean(), log_ratio

    def loss(self, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor], Tensor, dict[str, Trace]]:
        """Joint loss (eq. 9), metrics, absolute errors of values [B], activations."""
        c = self.config
        traces: dict[str, Trace] = {"critic": Trace(), "actor": Trace()}
        logits, features = self.read(batch.obs, traces["critic"])
        value_loss = self.value_loss(batch, logits)
        policy_loss, entropy, log_ratio = self.policy_loss(batch, features, traces["actor"])
        loss = policy_loss + c.value_weight * value_loss
        if c.entropy:  # a weight of zero would still cost a backward pass
            loss = loss - c.entropy * entropy
        log_ratio = log_ratio.detach()
        value, gain = self.head.value(logits.detach()), log_ratio.expm1()
        error, divergence = batch.ret - value, beyond_first_order(precise(log_ratio)).mean()
        parts = {
            "losses/policy_loss": policy_loss.detach(),
            "losses/value_loss": value_loss.detach(),
            "losses/entropy": entropy.detach(),
            "losses/approx_kl": divergence.to(log_ratio.dtype),
            "losses/clip_fraction": (gain.abs() > c.clip).float().mean(),
            "losses/values": value.mean(),
            "losses/explained_variance": 1 - error.var() / (batch.ret.var() + 1e-8),
        }
        return loss, parts, error.abs(), traces

    def update(self, batch: Any, plan: Plan) -> Update:
        batch = self.interventions.transform_batch(batch)
        loss, parts, error, traces = self.loss(batch)
        c = self.config
        loss = self.penalised(loss, "critic", c.value_weight * parts["losses/value_loss"])
        loss = self.penalised(loss, "actor", parts["losses/policy_loss"])
        step(loss, self.critic.optimizer, c.optimizer.max_grad_norm)
        return Update(parts, {name: [h.detach() for h in trace] for name, trace in traces.items()}, error)

    def blank_pass(self) -> None:
        # Skips the normalisation, which would change the zeros.
        critic, blank = self.critic.online, self.blank()
        features = critic.read(blank)[1]
        self.actor.online(features if self.shared else critic.encoder(blank))

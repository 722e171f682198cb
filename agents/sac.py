"""Soft actor-critic (Haarnoja et al. 2018, 1812.05905), with an ensemble of critics.

The default agent has two critics and bootstraps from the smaller value. REDQ (Chen et al. 2021, 2101.05982) is
`critics=10, target_critics=2, actor_value="mean", actor_period=20, replay_ratio=20`; DroQ (Hiraoka et al. 2022,
2110.02034) is `dropout=0.01, network.norm="layer_norm", actor_value="mean", actor_period=20, replay_ratio=20`.
For images, actor and critics share one convolutional encoder, which only the critics train (Yarats et al. 2021,
2107.09645); the target critics have a target copy of it.
The temperature loss is eq. 18, which is linear in alpha; Stable-Baselines3's loss is linear in log alpha. The gradients
differ by the factor alpha; Adam's steps do not depend on this factor while alpha changes slowly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..common.ranges import NotNegative, Number, Positive, ShareBelow, SomeUpdates, at_least
from .agent import Agent, Component, sync_target_
from .clock import Clock, Every, Plan, Update
from .config import OffPolicyConfig
from .heads import build_head
from .networks import Actor, Critic, NetworkConfig, Trace, Units
from .optimizers import OptimizerConfig, build_optimizer, step
from .policies import Temperature, squashed
from .replay import Batch

Critics: TypeAlias = Annotated[int, at_least(1, most=100, why="each is a network")]


@dataclass(frozen=True)
class SACConfig(OffPolicyConfig):
    """Soft actor-critic. With `n_step` above 1, only the bootstrap value includes the entropy bonus.

    Attributes:
        network: Shape of each critic (and of the encoder, for images).
        actor_network: Shape of the actor.
        optimizer: Optimizer of the critics.
        actor_optimizer: Optimizer of the actor.
        temperature_lr: Learning rate of the temperature.
        temperature: Fixed temperature; 0 tunes it so that the policy's entropy meets its target.
        initial_temperature: Temperature before it is tuned.
        target_entropy: Entropy that the temperature is tuned to, per action dimension.
        critics: Number of critics in the ensemble.
        target_critics: Number of critics sampled for each update; the target is their smallest value.
        actor_value: Value that the actor maximises: the smallest value of all critics (min), or their mean (mean).
        actor_period: Critic updates per update of actor and temperature.
        dropout: Probability of dropping a hidden unit of a critic, before its norm (DroQ); 0 is off.
        projection: For images: width to which actor and critics project the encoder's output.
    """

    parts: ClassVar[dict[str, tuple[str, str]]] = {
        "critic": ("network", "optimizer"),
        "actor": ("actor_network", "actor_optimizer"),
    }
    presets: ClassVar[str] = "sac"

    network: NetworkConfig = field(default_factory=NetworkConfig)
    actor_network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    actor_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    temperature_lr: Positive = 3e-4
    temperature: NotNegative = 0.0
    initial_temperature: Positive = 1.0
    target_entropy: Number = -1.0
    critics: Critics = 2
    target_critics: Critics = 2
    actor_value: Literal["min", "mean"] = "min"
    actor_period: SomeUpdates = 1
    dropout: ShareBelow = 0.0
    projection: Units = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_critics > self.critics:
            raise ValueError(f"target_critics must be at most critics = {self.critics}, not {self.target_critics}")


class SAC(Agent):
    """Soft actor-critic on continuous actions."""

    name = "sac"
    config_class = SACConfig
    slow = ("critic",)
    config: SACConfig

    def build(self, generator: Generator) -> None:
        c = self.config
        if self.action.discrete:
            raise ValueError("sac needs continuous actions; for discrete ones use dqn")
        self.head = build_head(c.value_loss, c.head, gamma=c.gamma, n_step=c.n_step).to(self.device)
        online, actor = (network.to(self.device) for network in self.built(generator).values())
        self.temperature = Temperature(c.temperature or c.initial_temperature).to(self.device)
        self.target_entropy = c.target_entropy * self.action.size
        self.critic = Component(online, build_optimizer(online.parameters(), c.optimizer), self.slow_copy(online))
        self.actor = Component(actor, build_optimizer(actor.parameters(), c.actor_optimizer))
        temperature_optimizer = build_optimizer(self.temperature.parameters(), OptimizerConfig(lr=c.temperature_lr))
        self.tuner = Component(self.temperature, temperature_optimizer)
        self.components = {"critic": self.critic, "actor": self.actor, "temperature": self.tuner}
        self.target_due, self.actor_due = Every(c.target_period), Every(c.actor_period)

    def networks(self, generator: Generator) -> dict[str, nn.Module]:
        c = self.config
        shape = (self.observation, self.action.size, self.head.outputs, c.network, generator)
        critic = Critic(*shape, size=c.critics, projection=c.projection, dropout=c.dropout)
        width = c.projection if self.observation.pixels else 0
        actor = Actor(critic.encoder.features, self.action.size, c.actor_network, generator, projection=width)
        return {"critic": critic, "actor": actor}

    def policy(self, encoded: Tensor, trace: Trace | None = None) -> tuple[Tensor, Tensor]:
        """A sampled action in [-1, 1] [B, A] and its log-probability [B]."""
        mean, log_std = self.actor.online.forward(encoded, trace)
        return squashed(mean, log_std, self.noise(mean))

    def noise(self, mean: Tensor) -> Tensor:
        """Standard normal numbers in the shape of `mean`."""
        return torch.randn(mean.shape, generator=self.generator, device=self.device)

    @torch.no_grad()
    def act(self, obs: NDArray[Any] | Tensor, clock: Clock | None = None) -> Tensor:
        if clock is not None and self.age(clock) < self.config.learning_starts:
            shape = (len(obs), self.action.size)
            action = torch.rand(shape, generator=self.generator, device=self.device) * 2 - 1
        else:
            encoded = self.critic.online.encoder(self.tensor(obs))
            mean, log_std = self.actor.online.forward(encoded)
            action = mean.tanh() if clock is None else torch.tanh(mean + log_std.exp() * self.noise(mean))
        return torch.addcmul(self.center, self.scale, action)

    def plan(self, clock: Clock) -> Plan:
        return Plan(actor=self.actor_due(clock), target=self.target_due(clock))

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """r + gamma^n (min Q⁻(s', a') - alpha log pi(a'|s')), with a' sampled from the present policy (eq. 2 and 3)."""
        c = self.config
        assert self.critic.target is not None
        action, log_prob = self.policy(self.critic.online.encoder(batch.next_obs))
        logits = self.critic.target(batch.next_obs, action)
        if c.target_critics < c.critics:
            logits = logits[torch.randperm(c.critics, generator=self.generator, device=self.device)[: c.target_critics]]
        # For each sample, take the logits of the critic with the smallest value; this also works for distributional
        # heads. The entropy bonus is a shift of the reward.
        smallest = self.head.value(logits).argmin(dim=0)
        chosen = logits.gather(0, smallest.view(1, -1, 1).expand(1, -1, logits.shape[2])).squeeze(0)
        reward = batch.reward - batch.discount * self.temperature() * log_prob
        return self.head.backup(chosen, reward, batch.discount)

    def critic_loss(self, batch: Batch, target: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Trace]:
        """Loss summed over critics (eq. 5), absolute errors averaged over critics [B], values [N, B], activations."""
        target, trace = self.target(batch) if target is None else target, Trace()
        logits = self.critic.online(batch.obs, self.unscaled(batch.action), trace)
        loss = (batch.weight * self.head.loss(logits, target)).mean(dim=1).sum()
        logits = logits.detach()
        return loss, self.head.error(logits, target).mean(dim=0), self.head.value(logits), trace

    def actor_loss(self, batch: Batch) -> tuple[Tensor, Tensor, Trace]:
        """alpha log pi - Q (eq. 7), log-probabilities [B], activations."""
        trace = Trace()
        with torch.no_grad():
            encoded = self.critic.online.encoder(batch.obs)
        action, log_prob = self.policy(encoded, trace)
        values = self.head.value(self.critic.online.values(encoded, action))
        value = values.amin(dim=0) if self.config.actor_value == "min" else values.mean(dim=0)
        return (self.temperature().detach() * log_prob - value).mean(), log_prob.detach(), trace

    def update(self, batch: Batch, plan: Plan) -> Update:
        c = self.config
        batch = self.interventions.transform_batch(batch)
        loss, error, values, trace = self.critic_loss(batch)
        step(self.penalised(loss, "critic"), self.critic.optimizer, c.optimizer.max_grad_norm)
        metrics = {
            "losses/qf_loss": loss.detach(),
            "losses/td_error": error.mean(),
            "losses/q_values": values.mean(),
            "losses/q_magnitude": values.abs().mean(),
        }
        activations = {"critic": [h.detach() for h in trace]}
        if plan.actor:
            actor_loss, log_prob, trace = self.actor_loss(batch)
            step(self.penalised(actor_loss, "actor"), self.actor.optimizer, c.actor_optimizer.max_grad_norm)
            if not c.temperature:
                # Eq. 18.
                step(-(self.temperature() * (log_prob + self.target_entropy)).mean(), self.tuner.optimizer)
            metrics |= {
                "losses/actor_loss": actor_loss.detach(),
                "losses/entropy": -log_prob.mean(),
                "losses/alpha": self.temperature().detach(),
            }
            activations["actor"] = [h.detach() for h in trace]
        if plan.target:
            sync_target_(self.critic, c.target_tau)
        return Update(metrics, activations, error)

    def blank_pass(self) -> None:
        encoded = self.critic.online.encoder(self.blank())
        self.critic.online.values(encoded, torch.zeros(1, self.action.size, device=self.device))
        self.actor.online(encoded)

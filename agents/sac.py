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

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..common.ranges import (
    EnvSteps,
    NotNegative,
    NStep,
    Number,
    Positive,
    Ratio,
    Samples,
    Share,
    ShareBelow,
    SomeEnvSteps,
    SomeTransitions,
    SomeUpdates,
    at_least,
)
from .agent import Agent, Component, check_off_policy, gaussian_kl, sync_target_
from .clock import Clock, Every, Update
from .heads import HeadConfig, HeadName, build_head
from .networks import Actor, Critic, NetworkConfig, Trace, Units
from .optimizers import OptimizerConfig, build_optimizer, step
from .replay import Batch

Critics: TypeAlias = Annotated[int, at_least(1, most=100, why="each is a network")]


@dataclass(frozen=True)
class SACConfig:
    """Soft actor-critic.

    Attributes:
        network: Shape of each critic (and of the encoder, for images).
        actor_network: Shape of the actor.
        optimizer: Optimizer of the critics.
        actor_optimizer: Optimizer of the actor.
        temperature_lr: Learning rate of the temperature.
        temperature: Fixed temperature; 0 tunes it so that the policy's entropy meets its target.
        initial_temperature: Temperature before it is tuned.
        target_entropy: Entropy that the temperature is tuned to, per action dimension.
        batch_size: Transitions in a batch.
        buffer_size: Transitions that the replay holds.
        learning_starts: Environment steps of random actions before the first update.
        replay_ratio: Gradient updates per environment step.
        update_every: Environment steps between two rounds of updates; a round makes all pending updates.
        gamma: Discount factor.
        n_step: Rewards summed before bootstrapping; only the bootstrap value includes the entropy bonus.
        critics: Number of critics in the ensemble.
        target_critics: Number of critics sampled for each update; the target is their smallest value.
        actor_value: Value that the actor maximises: the smallest value of all critics (min), or their mean (mean).
        actor_period: Critic updates per update of actor and temperature.
        dropout: Probability of dropping a hidden unit of a critic, before its norm (DroQ); 0 is off.
        value_loss: Value head and loss.
        head: Parameters of the value loss.
        reward_clip: Clip rewards to [-reward_clip, reward_clip] in the targets, never in the score; 0 is off.
        target_period: Gradient updates between two updates of the target critics.
        target_tau: Weight of the online critics in an update of the target critics; 1 is a hard copy.
        projection: For images: width to which actor and critics project the encoder's output.
    """

    # Component → names of the fields that shape its network and its optimizer.
    parts: ClassVar[dict[str, tuple[str, str]]] = {
        "critic": ("network", "optimizer"),
        "actor": ("actor_network", "actor_optimizer"),
    }

    network: NetworkConfig = field(default_factory=NetworkConfig)
    actor_network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    actor_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    temperature_lr: Positive = 3e-4
    temperature: NotNegative = 0.0
    initial_temperature: Positive = 1.0
    target_entropy: Number = -1.0
    batch_size: Samples = 256
    buffer_size: SomeTransitions = 1_000_000
    learning_starts: EnvSteps = 5_000
    replay_ratio: Ratio = 1.0
    update_every: SomeEnvSteps = 1
    gamma: Share = 0.99
    n_step: NStep = 1
    critics: Critics = 2
    target_critics: Critics = 2
    actor_value: Literal["min", "mean"] = "min"
    actor_period: SomeUpdates = 1
    dropout: ShareBelow = 0.0
    value_loss: HeadName = "mse"
    head: HeadConfig = field(default_factory=HeadConfig)
    reward_clip: NotNegative = 0.0
    target_period: SomeUpdates = 1
    target_tau: Share = 0.005
    projection: Units = 50

    def __post_init__(self) -> None:
        check_off_policy(self)
        if self.target_critics > self.critics:
            raise ValueError(f"target_critics must be at most critics = {self.critics}, not {self.target_critics}")

    @classmethod
    def for_suite(cls, suite: str) -> SACConfig:
        """Presets with known results: those of Haarnoja et al. for `control`; for `atari` a smaller replay and a lower
        replay ratio."""
        if suite == "atari":
            return cls(buffer_size=100_000, replay_ratio=0.25, reward_clip=1.0)
        return cls()


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
        low, high = torch.tensor(self.action.low), torch.tensor(self.action.high)
        self.center, self.scale = ((high + low) / 2).to(self.device), ((high - low) / 2).to(self.device)
        self.head = build_head(c.value_loss, c.head, gamma=c.gamma, n_step=c.n_step).to(self.device)
        online, actor = (network.to(self.device) for network in self.built(generator).values())
        self.temperature = Temperature(c.temperature or c.initial_temperature).to(self.device)
        self.target_entropy = c.target_entropy * self.action.size
        self.critic = Component(online, build_optimizer(online.parameters(), c.optimizer), self.slow_copy(online))
        self.actor = Component(actor, build_optimizer(actor.parameters(), c.actor_optimizer))
        temperature_optimizer = build_optimizer(self.temperature.parameters(), OptimizerConfig(lr=c.temperature_lr))
        self.tuner = Component(self.temperature, temperature_optimizer)
        self.components = {"critic": self.critic, "actor": self.actor, "temperature": self.tuner}
        self.target_beat, self.actor_beat = Every(c.target_period), Every(c.actor_period)

    def networks(self, generator: Generator) -> dict[str, nn.Module]:
        c = self.config
        critic = Critic(
            self.observation,
            self.action.size,
            self.head.outputs,
            c.network,
            generator,
            size=c.critics,
            projection=c.projection,
            dropout=c.dropout,
        )
        actor = Actor(
            critic.encoder.features,
            self.action.size,
            c.actor_network,
            generator,
            projection=c.projection if self.observation.pixels else 0,
        )
        return {"critic": critic, "actor": actor}

    def policy(self, encoded: Tensor, trace: Trace | None = None) -> tuple[Tensor, Tensor]:
        """A sampled action in [-1, 1] [B, A] and its log-probability [B] (appendix C: the change of variables)."""
        mean, log_std = self.actor.online(encoded, trace)
        noise = torch.randn(mean.shape, generator=self.generator, device=self.device)
        u = mean + log_std.exp() * noise
        log_prob = -0.5 * (noise.square() + math.log(2 * math.pi)) - log_std
        # log(1 - tanh(u)^2), in a form that does not overflow.
        squash = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
        return u.tanh(), (log_prob - squash).sum(dim=1)

    @torch.no_grad()
    def act(self, obs: NDArray[Any] | Tensor, clock: Clock | None = None) -> Tensor:
        if clock is not None and self.age(clock) < self.config.learning_starts:
            shape = (len(obs), self.action.size)
            action = torch.rand(shape, generator=self.generator, device=self.device) * 2 - 1
        else:
            encoded = self.critic.online.encoder(self.tensor(obs))
            action = self.actor.online(encoded)[0].tanh() if clock is None else self.policy(encoded)[0]
        return torch.addcmul(self.center, self.scale, action)

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
        action = (batch.action - self.center) / self.scale
        logits = self.critic.online(batch.obs, action, trace)
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

    def blank_pass(self) -> None:
        encoded = self.critic.online.encoder(self.blank())
        self.critic.online.values(encoded, torch.zeros(1, self.action.size, device=self.device))
        self.actor.online(encoded)

    @torch.no_grad()
    def activations(self, batch: Batch) -> dict[str, Trace]:
        critic, actor = Trace(), Trace()
        with self.without_dropout():
            self.critic.online(batch.obs, (batch.action - self.center) / self.scale, critic)
            self.actor.online(self.critic.online.encoder(batch.obs), actor)
        return {"critic": critic, "actor": actor}

    def live_traces(self, batch: Batch) -> Iterator[tuple[str, Tensor, Trace]]:
        loss, _, _, trace = self.critic_loss(batch)
        yield "critic", loss, trace
        loss, _, trace = self.actor_loss(batch)
        yield "actor", loss, trace

    def values(self, batch: Batch, *, target: bool = False) -> Tensor:
        network = self.critic.target if target else self.critic.online
        assert network is not None
        with self.without_dropout():
            return self.head.value(network(batch.obs, (batch.action - self.center) / self.scale))

    def predictions(
        self, component: str, obs: Tensor, action: Tensor, networks: Mapping[str, nn.Module] | None = None
    ) -> Tensor:
        """Values [N, B], or the actor's means and log standard deviations before squashing [2, B, A].

        Gradients of the actor's outputs do not reach the encoder, which the actor does not train.
        """
        critic = self.asked("critic", networks)
        if component == "actor":
            with torch.no_grad():
                encoded = critic.encoder(obs)
            return torch.stack(self.asked("actor", networks)(encoded))
        with self.without_dropout():
            return self.head.value(critic(obs, (action - self.center) / self.scale))

    @torch.no_grad()
    def valued_policy(self, obs: NDArray[Any] | Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Actions in the environment's range, and -alpha log pi."""
        with self.drawing_from(generator):
            action, log_prob = self.policy(self.critic.online.encoder(self.tensor(obs)))
        return torch.addcmul(self.center, self.scale, action), -self.temperature() * log_prob

    def losses(self, batch: Batch, seed: int) -> dict[str, Callable[[], Tensor]]:
        def frozen(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
            def repeated() -> Tensor:
                with self.drawing_from(Generator(self.device).manual_seed(seed)), self.without_dropout():
                    return loss()

            return repeated

        target = frozen(lambda: self.target(batch))()
        return {
            "critic": frozen(lambda: self.critic_loss(batch, target)[0]),
            "actor": frozen(lambda: self.actor_loss(batch)[0]),
        }

    @torch.no_grad()
    def decisions(self, batch: Batch) -> Tensor:
        """Means and log standard deviations before squashing [2, B, A]."""
        return self.predictions("actor", batch.obs, batch.action)

    def policy_churn(self, before: Tensor, after: Tensor) -> Tensor:
        """Mean KL(policy before ‖ policy after) of the Gaussians before squashing."""
        return gaussian_kl(before, after)

    @torch.no_grad()
    def probed(self, batch: Batch) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        critic = self.critic.online
        encoded = critic.encoder(batch.obs)
        features = encoded if critic.projection is None else critic.projection(encoded)
        action = (batch.action - self.center) / self.scale
        modules: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
            f"critic {i}": (member, (features, action)) for i, member in enumerate(critic.members)
        }
        modules["actor"] = (self.actor.online, (encoded,))
        if self.observation.pixels:
            modules["encoder"] = (critic.encoder, (batch.obs,))
        return modules

    def update(self, batch: Batch, clock: Clock) -> Update:
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
        if self.actor_beat(clock):
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
        if self.target_beat(clock):
            sync_target_(self.critic, c.target_tau)
        return Update(metrics, activations, error)


class Temperature(nn.Module):
    """The weight alpha of the entropy. Its logarithm is trained, so alpha is positive."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(value)))
        self.initial = value

    @torch.no_grad()
    def load_fresh(self) -> None:
        """Reset the temperature to its initial value, in place."""
        self.log_alpha.fill_(math.log(self.initial))

    def forward(self) -> Tensor:
        return self.log_alpha.exp()

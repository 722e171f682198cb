"""DQN (Mnih et al. 2015, Nature 518), with the parts of Rainbow (Hessel et al. 2018, 1710.02298) as options.

Double Q-learning is van Hasselt et al. 2016 (1509.06461), dueling networks are Wang et al. 2016 (1511.06581),
prioritised replay is Schaul et al. 2016 (1511.05952). The optimizer differs from Mnih et al.: Adam, as in Dopamine's
and CleanRL's DQN, where the paper uses centred RMSProp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..common.ranges import (
    EnvSteps,
    NotNegative,
    NStep,
    Ratio,
    Samples,
    Share,
    SomeEnvSteps,
    SomeTransitions,
    SomeUpdates,
)
from .agent import Agent, Component, check_off_policy, sync_target_
from .clock import Clock, Every, Update
from .heads import HeadConfig, HeadName, build_head
from .networks import NetworkConfig, QNetwork, Trace
from .optimizers import OptimizerConfig, build_optimizer, step
from .replay import Batch, PrioritisedConfig


@dataclass(frozen=True)
class DQNConfig:
    """DQN.

    Attributes:
        network: Shape of the Q-network.
        optimizer: Optimizer of the Q-network.
        batch_size: Transitions in a batch.
        buffer_size: Transitions that the replay holds.
        learning_starts: Environment steps of random actions before the first update.
        replay_ratio: Gradient updates per environment step.
        update_every: Environment steps between two rounds of updates; a round makes all pending updates.
        gamma: Discount factor.
        n_step: Rewards summed before bootstrapping.
        double: Double Q-learning: the online network selects the next action, and the target network evaluates it.
        dueling: Use separate streams for value and advantage.
        value_loss: Value head and loss.
        head: Parameters of the value loss.
        reward_clip: Clip rewards to [-reward_clip, reward_clip] in the targets, never in the score; 0 is off.
        target_period: Gradient updates between two updates of the target network.
        target_tau: Weight of the online network in an update of the target network; 1 is a hard copy.
        epsilon_start: Initial probability of a random action.
        epsilon_end: Final probability of a random action.
        epsilon_steps: Environment steps over which the probability changes linearly from the first to the second.
        act_with_target: Select actions with the target network, in training and in evaluation (Schwarzer et al. 2023).
        prioritised: Sample transitions by their temporal-difference error.
        priorities: Parameters of prioritised replay.
    """

    # Component → names of the fields that shape its network and its optimizer.
    parts: ClassVar[dict[str, tuple[str, str]]] = {"critic": ("network", "optimizer")}

    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2.3e-3, max_grad_norm=10.0))
    batch_size: Samples = 64
    buffer_size: SomeTransitions = 100_000
    learning_starts: EnvSteps = 1_000
    replay_ratio: Ratio = 0.5
    update_every: SomeEnvSteps = 256
    gamma: Share = 0.99
    n_step: NStep = 1
    double: bool = False
    dueling: bool = False
    value_loss: HeadName = "huber"
    head: HeadConfig = field(default_factory=HeadConfig)
    reward_clip: NotNegative = 0.0
    target_period: SomeUpdates = 128
    target_tau: Share = 1.0
    epsilon_start: Share = 1.0
    epsilon_end: Share = 0.04
    epsilon_steps: EnvSteps = 7_000
    act_with_target: bool = False
    prioritised: bool = False
    priorities: PrioritisedConfig = field(default_factory=PrioritisedConfig)

    def __post_init__(self) -> None:
        check_off_policy(self)

    @classmethod
    def for_suite(cls, suite: str) -> DQNConfig:
        """Presets with known results: `control` (RL Zoo's for CartPole, the default), `minatar` (Young & Tian 2019) and
        `atari` (Dopamine's DQN with Adam).
        """
        if suite == "minatar":
            return cls(
                network=NetworkConfig(hidden=(128,)),
                optimizer=OptimizerConfig(lr=2.5e-4),
                batch_size=32,
                buffer_size=100_000,
                learning_starts=5_000,
                replay_ratio=1.0,
                update_every=1,
                target_period=1_000,
                epsilon_steps=100_000,
                epsilon_end=0.1,
            )
        if suite == "atari":
            return cls(
                network=NetworkConfig(hidden=(512,)),
                optimizer=OptimizerConfig(lr=6.25e-5, eps=1.5e-4),
                batch_size=32,
                buffer_size=1_000_000,
                learning_starts=20_000,
                replay_ratio=0.25,
                update_every=4,
                reward_clip=1.0,
                target_period=2_000,
                epsilon_steps=250_000,
                epsilon_end=0.01,
            )
        return cls()


class DQN(Agent):
    """Deep Q-network on discrete actions."""

    name = "dqn"
    config_class = DQNConfig
    slow = ("critic",)
    config: DQNConfig

    def build(self, generator: Generator) -> None:
        c = self.config
        if not self.action.discrete:
            raise ValueError("dqn needs discrete actions; for continuous ones use sac")
        self.head = build_head(c.value_loss, c.head, gamma=c.gamma, n_step=c.n_step).to(self.device)
        online = self.built(generator)["critic"].to(self.device)
        slow = self.slow_copy(online)
        self.critic = Component(online, build_optimizer(online.parameters(), c.optimizer), slow)
        self.components = {"critic": self.critic}
        self.actor = slow if c.act_with_target else online
        self.target_beat = Every(c.target_period)

    def networks(self, generator: Generator) -> dict[str, nn.Module]:
        c = self.config
        return {
            "critic": QNetwork(
                self.observation, self.action.size, self.head.outputs, c.network, generator, dueling=c.dueling
            )
        }

    def epsilon(self, clock: Clock) -> float:
        """Probability of a random action: 1 before learning starts, then linear in environment steps."""
        c, age = self.config, self.age(clock)
        if age < c.learning_starts:
            return 1.0
        share = min(1.0, (age - c.learning_starts) / max(1, c.epsilon_steps))
        return c.epsilon_start + share * (c.epsilon_end - c.epsilon_start)

    def charts(self, clock: Clock) -> dict[str, float]:
        return {"charts/epsilon": self.epsilon(clock)}

    @torch.no_grad()
    def act(self, obs: NDArray[Any] | Tensor, clock: Clock | None = None) -> Tensor:
        # The exploration draw is made on the host: usually all actions are greedy or all are random, and then one of
        # the two need not be computed.
        explore = None if clock is None else self.host_rng.random(len(obs)) < self.epsilon(clock)
        if explore is None or not explore.any():
            return self.greedy(obs)
        random = self.upload(self.host_rng.integers(self.action.size, size=len(obs)))
        if explore.all():
            return random
        return torch.where(self.upload(explore), random, self.greedy(obs))

    def greedy(self, obs: NDArray[Any] | Tensor) -> Tensor:
        """The actions of highest value [E], by the acting network."""
        return self.head.value(self.actor.forward(self.tensor(obs))).argmax(dim=1)

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """r + gamma^n Q⁻(s', a*), with a* greedy by the target network, or by the online network if `double`."""
        assert self.critic.target is not None
        logits = self.critic.target(batch.next_obs)
        chooser = self.critic.online(batch.next_obs) if self.config.double else logits
        best = self.head.value(chooser).argmax(dim=1)
        return self.head.backup(pick(logits, best), batch.reward, batch.discount)

    def loss(self, batch: Batch, target: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Trace]:
        """Mean weighted loss, absolute errors [B], values of the batch's actions [B], activations."""
        target, trace = self.target(batch) if target is None else target, Trace()
        logits = pick(self.critic.online(batch.obs, trace), batch.action)
        loss = (batch.weight * self.head.loss(logits, target)).mean()
        logits = logits.detach()
        return loss, self.head.error(logits, target), self.head.value(logits), trace

    def blank_pass(self) -> None:
        self.critic.online(self.blank())

    @torch.no_grad()
    def activations(self, batch: Batch) -> dict[str, Trace]:
        trace = Trace()
        self.critic.online(batch.obs, trace)
        return {"critic": trace}

    def live_traces(self, batch: Batch) -> Iterator[tuple[str, Tensor, Trace]]:
        loss, _, _, trace = self.loss(batch)
        yield "critic", loss, trace

    def values(self, batch: Batch, *, target: bool = False) -> Tensor:
        network = self.critic.target if target else self.critic.online
        assert network is not None
        return self.head.value(pick(network(batch.obs), batch.action)).unsqueeze(0)

    def predictions(
        self, component: str, obs: Tensor, action: Tensor, networks: Mapping[str, nn.Module] | None = None
    ) -> Tensor:
        """Values of all actions [B, actions]."""
        return self.head.value(self.asked(component, networks)(obs))

    def losses(self, batch: Batch, seed: int) -> dict[str, Callable[[], Tensor]]:
        target = self.target(batch)
        return {"critic": lambda: self.loss(batch, target)[0]}

    @torch.no_grad()
    def decisions(self, batch: Batch) -> Tensor:
        """Greedy actions [B]."""
        return self.greedy(batch.obs)

    def policy_churn(self, before: Tensor, after: Tensor) -> Tensor:
        """Share of observations whose greedy action differs."""
        return (before != after).float().mean()

    def probed(self, batch: Batch) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
        modules: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {"critic": (self.critic.online, (batch.obs,))}
        if self.observation.pixels:
            modules["encoder"] = (self.critic.online.encoder, (batch.obs,))
        return modules

    def update(self, batch: Batch, clock: Clock) -> Update:
        batch = self.interventions.transform_batch(batch)
        loss, error, value, trace = self.loss(batch)
        step(self.penalised(loss, "critic"), self.critic.optimizer, self.config.optimizer.max_grad_norm)
        if self.target_beat(clock):
            sync_target_(self.critic, self.config.target_tau)
        metrics = {"losses/td_loss": loss.detach(), "losses/q_values": value.mean(), "losses/td_error": error.mean()}
        return Update(metrics, {"critic": [h.detach() for h in trace]}, error)


def pick(logits: Tensor, action: Tensor) -> Tensor:
    """Logits [B, actions, outputs] and actions [B] → the logits of these actions [B, outputs]."""
    return logits.gather(1, action.view(-1, 1, 1).expand(-1, 1, logits.shape[2])).squeeze(1)

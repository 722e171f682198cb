"""DQN (Mnih et al. 2015, Nature 518), with the parts of Rainbow (Hessel et al. 2018, 1710.02298) as options.

Double Q-learning is van Hasselt et al. 2016 (1509.06461), dueling networks are Wang et al. 2016 (1511.06581),
prioritised replay is Schaul et al. 2016 (1511.05952). The optimizer differs from Mnih et al.: Adam, as in Dopamine's
and CleanRL's DQN, where the paper uses centred RMSProp.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from ..common.ranges import EnvSteps, Ratio, Samples, Share, SomeEnvSteps, SomeTransitions, SomeUpdates
from .agent import Agent, Component, sync_target_
from .clock import Clock, Every, Linear, Plan, Update
from .config import OffPolicyConfig
from .heads import HeadName, build_head
from .networks import NetworkConfig, QNetwork, Trace
from .optimizers import OptimizerConfig, build_optimizer, step
from .replay import Batch, PrioritisedConfig


@dataclass(frozen=True)
class DQNConfig(OffPolicyConfig):
    """DQN.

    Attributes:
        network: Shape of the Q-network.
        optimizer: Optimizer of the Q-network.
        double: Double Q-learning: the online network selects the next action, and the target network evaluates it.
        dueling: Use separate streams for value and advantage.
        epsilon_start: Initial probability of a random action.
        epsilon_end: Final probability of a random action.
        epsilon_steps: Environment steps over which the probability changes linearly from the first to the second.
        act_with_target: Select actions with the target network, in training and in evaluation (Schwarzer et al. 2023).
        prioritised: Sample transitions by their temporal-difference error.
        priorities: Parameters of prioritised replay.
    """

    parts: ClassVar[dict[str, tuple[str, str]]] = {"critic": ("network", "optimizer")}
    presets: ClassVar[str] = "dqn"

    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=2.3e-3, max_grad_norm=10.0))
    batch_size: Samples = 64
    buffer_size: SomeTransitions = 100_000
    learning_starts: EnvSteps = 1_000
    replay_ratio: Ratio = 0.5
    update_every: SomeEnvSteps = 256
    value_loss: HeadName = "huber"
    target_period: SomeUpdates = 128
    target_tau: Share = 1.0
    double: bool = False
    dueling: bool = False
    epsilon_start: Share = 1.0
    epsilon_end: Share = 0.04
    epsilon_steps: EnvSteps = 7_000
    act_with_target: bool = False
    prioritised: bool = False
    priorities: PrioritisedConfig = field(default_factory=PrioritisedConfig)


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
        self.exploration = Linear(c.epsilon_start, c.epsilon_end, c.epsilon_steps, begin=c.learning_starts)
        self.target_due = Every(c.target_period)

    def networks(self, generator: Generator) -> dict[str, nn.Module]:
        c, actions = self.config, self.action.size
        q = QNetwork(self.observation, actions, self.head.outputs, c.network, generator, dueling=c.dueling)
        return {"critic": q}

    def epsilon(self, clock: Clock) -> float:
        """Probability of a random action: 1 before learning starts, then linear in environment steps."""
        age = self.age(clock)
        return 1.0 if age < self.config.learning_starts else self.exploration(age)

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
        return random if explore.all() else torch.where(self.upload(explore), random, self.greedy(obs))

    def greedy(self, obs: NDArray[Any] | Tensor) -> Tensor:
        """The actions of highest value [E], by the acting network."""
        return self.head.value(self.actor.forward(self.tensor(obs))).argmax(dim=1)

    def plan(self, clock: Clock) -> Plan:
        return Plan(target=self.target_due(clock))

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

    def update(self, batch: Batch, plan: Plan) -> Update:
        batch = self.interventions.transform_batch(batch)
        loss, error, value, trace = self.loss(batch)
        step(self.penalised(loss, "critic"), self.critic.optimizer, self.config.optimizer.max_grad_norm)
        if plan.target:
            sync_target_(self.critic, self.config.target_tau)
        metrics = {"losses/td_loss": loss.detach(), "losses/q_values": value.mean(), "losses/td_error": error.mean()}
        return Update(metrics, {"critic": [h.detach() for h in trace]}, error)

    def blank_pass(self) -> None:
        self.critic.online(self.blank())


def pick(logits: Tensor, action: Tensor) -> Tensor:
    """Logits [B, actions, outputs] and actions [B] → the logits of these actions [B, outputs]."""
    return logits.gather(1, action.view(-1, 1, 1).expand(-1, 1, logits.shape[2])).squeeze(1)

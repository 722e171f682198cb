"""Views: what observers (monitors, probes, a few interventions) ask of an agent.

Training needs no view. `view(agent)` returns that of the agent's class; an agent of your own gets one by a subclass of
`AgentView` in its `view_class`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from .agent import Agent
from .clock import Clock
from .dqn import DQN, pick
from .networks import Trace
from .policies import categorical_kl, gaussian_kl
from .ppo import PPO
from .replay import Batch
from .sac import SAC
from .supervised import Supervised

A = TypeVar("A", bound=Agent)
Modules = dict[str, tuple[nn.Module, tuple[Tensor, ...]]]


class NoView(ValueError):
    """An observer needs the view of an agent whose class has none."""


class AgentView(ABC, Generic[A]):
    """The answers of one agent to observers. Nothing here changes the agent.

    Attributes:
        values_are_returns: True if values can be compared with observed returns.
    """

    values_are_returns: ClassVar[bool] = True

    def __init__(self, agent: A) -> None:
        self.agent = agent

    def network(self, component: str, networks: Mapping[str, nn.Module] | None = None) -> Any:
        """The network of a component: that in `networks`, or the agent's own if it is not there."""
        if networks is not None and component in networks:
            return networks[component]
        return self.agent.components[component].online

    @abstractmethod
    def activations(self, batch: Batch) -> dict[str, Trace]:
        """The outputs of every hidden layer on a batch, by component, as `update` returns them; makes no random
        draw."""

    @abstractmethod
    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor, Trace]]:
        """Yield component, loss, and hidden outputs with their graph, so that gradients of units can be computed."""

    @abstractmethod
    def loss_functions(self, batch: Batch, seed: int) -> dict[str, Callable[[], Tensor]]:
        """Component → its loss on a batch as a function of its current weights only, without penalties.

        Targets are computed once, now; noise (from `seed`) is the same at every call; dropout is off.
        """

    @abstractmethod
    def values(self, batch: Batch, *, target: bool = False) -> Tensor:
        """Each critic's values of the batch's actions [N, B], by the online network or (`target`) by the target network
        of agents that have one. Differentiable; makes no random draw."""

    @abstractmethod
    def predictions(
        self, component: str, obs: Tensor, action: Tensor, networks: Mapping[str, nn.Module] | None = None
    ) -> Tensor:
        """The outputs of a component on B observations and actions: values [B, actions] or [N, B], or a policy in the
        form of `decisions`. Differentiable; makes no random draw.

        Args:
            networks: Copies of networks, by component, that are used instead of the agent's own; all or some of them.
        """

    @abstractmethod
    def decisions(self, batch: Batch) -> Tensor:
        """The policy's output on a batch, without noise, in the form that `policy_churn` compares."""

    @abstractmethod
    def policy_churn(self, before: Tensor, after: Tensor) -> Tensor:
        """The distance of two sets of `decisions` on the same observations (0-d)."""

    @abstractmethod
    def probed(self, batch: Batch) -> Modules:
        """The modules whose plasticity is probed separately, by name, each with its inputs on a batch."""

    @torch.no_grad()
    def policy(self, obs: NDArray[Any] | Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """The policy that `values` evaluates: actions for observations [E, *obs], and the bonus [E] (for SAC the
        entropy bonus) that the agent adds to the reward. Random draws use `generator`. Here the greedy policy, without
        a bonus."""
        action = self.agent.act(obs)
        return action, torch.zeros(len(obs), device=action.device)

    def scaled_rewards(self, reward: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards in the units of `values`, before clipping."""
        return reward


class DQNView(AgentView[DQN]):
    """Values of actions, and the greedy policy."""

    @torch.no_grad()
    def activations(self, batch: Batch) -> dict[str, Trace]:
        trace = Trace()
        self.agent.critic.online(batch.obs, trace)
        return {"critic": trace}

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor, Trace]]:
        loss, _, _, trace = self.agent.loss(batch)
        yield "critic", loss, trace

    def values(self, batch: Batch, *, target: bool = False) -> Tensor:
        network = self.agent.critic.target if target else self.agent.critic.online
        assert network is not None
        return self.agent.head.value(pick(network(batch.obs), batch.action)).unsqueeze(0)

    def predictions(
        self, component: str, obs: Tensor, action: Tensor, networks: Mapping[str, nn.Module] | None = None
    ) -> Tensor:
        """Values of all actions [B, actions]."""
        return self.agent.head.value(self.network(component, networks)(obs))

    def loss_functions(self, batch: Batch, seed: int) -> dict[str, Callable[[], Tensor]]:
        target = self.agent.target(batch)
        return {"critic": lambda: self.agent.loss(batch, target)[0]}

    @torch.no_grad()
    def decisions(self, batch: Batch) -> Tensor:
        """Greedy actions [B]."""
        return self.agent.greedy(batch.obs)

    def policy_churn(self, before: Tensor, after: Tensor) -> Tensor:
        """Share of observations whose greedy action differs."""
        return (before != after).float().mean()

    def probed(self, batch: Batch) -> Modules:
        modules: Modules = {"critic": (self.agent.critic.online, (batch.obs,))}
        if self.agent.observation.pixels:
            modules["encoder"] = (self.agent.critic.online.encoder, (batch.obs,))
        return modules


class SACView(AgentView[SAC]):
    """Values of the critics, and the squashed Gaussian policy."""

    @torch.no_grad()
    def activations(self, batch: Batch) -> dict[str, Trace]:
        critic, actor = Trace(), Trace()
        with self.agent.without_dropout():
            self.agent.critic.online(batch.obs, self.agent.unscaled(batch.action), critic)
            self.agent.actor.online(self.agent.critic.online.encoder(batch.obs), actor)
        return {"critic": critic, "actor": actor}

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor, Trace]]:
        loss, _, _, trace = self.agent.critic_loss(batch)
        yield "critic", loss, trace
        loss, _, trace = self.agent.actor_loss(batch)
        yield "actor", loss, trace

    def values(self, batch: Batch, *, target: bool = False) -> Tensor:
        network = self.agent.critic.target if target else self.agent.critic.online
        assert network is not None
        with self.agent.without_dropout():
            return self.agent.head.value(network(batch.obs, self.agent.unscaled(batch.action)))

    def predictions(
        self, component: str, obs: Tensor, action: Tensor, networks: Mapping[str, nn.Module] | None = None
    ) -> Tensor:
        """Values [N, B], or the actor's means and log standard deviations before squashing [2, B, A].

        Gradients of the actor's outputs do not reach the encoder, which the actor does not train.
        """
        critic = self.network("critic", networks)
        if component == "actor":
            with torch.no_grad():
                encoded = critic.encoder(obs)
            return torch.stack(self.network("actor", networks)(encoded))
        with self.agent.without_dropout():
            return self.agent.head.value(critic(obs, self.agent.unscaled(action)))

    @torch.no_grad()
    def policy(self, obs: NDArray[Any] | Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Actions in the environment's range, and -alpha log pi."""
        with self.agent.drawing_from(generator):
            action, log_prob = self.agent.policy(self.agent.critic.online.encoder(self.agent.tensor(obs)))
        return torch.addcmul(self.agent.center, self.agent.scale, action), -self.agent.temperature() * log_prob

    def loss_functions(self, batch: Batch, seed: int) -> dict[str, Callable[[], Tensor]]:
        def frozen(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
            def repeated() -> Tensor:
                with (
                    self.agent.drawing_from(Generator(self.agent.device).manual_seed(seed)),
                    self.agent.without_dropout(),
                ):
                    return loss()

            return repeated

        target = frozen(lambda: self.agent.target(batch))()
        return {
            "critic": frozen(lambda: self.agent.critic_loss(batch, target)[0]),
            "actor": frozen(lambda: self.agent.actor_loss(batch)[0]),
        }

    @torch.no_grad()
    def decisions(self, batch: Batch) -> Tensor:
        """Means and log standard deviations before squashing [2, B, A]."""
        return self.predictions("actor", batch.obs, batch.action)

    def policy_churn(self, before: Tensor, after: Tensor) -> Tensor:
        """Mean KL(policy before ‖ policy after) of the Gaussians before squashing."""
        return gaussian_kl(before, after)

    @torch.no_grad()
    def probed(self, batch: Batch) -> Modules:
        critic = self.agent.critic.online
        encoded = critic.encoder(batch.obs)
        features = encoded if critic.projection is None else critic.projection(encoded)
        action = self.agent.unscaled(batch.action)
        modules: Modules = {f"critic {i}": (member, (features, action)) for i, member in enumerate(critic.members)}
        modules["actor"] = (self.agent.actor.online, (encoded,))
        if self.agent.observation.pixels:
            modules["encoder"] = (critic.encoder, (batch.obs,))
        return modules


class PPOView(AgentView[PPO]):
    """Values of states, and the stochastic policy."""

    @torch.no_grad()
    def activations(self, batch: Batch) -> dict[str, Trace]:
        traces: dict[str, Trace] = {"critic": Trace(), "actor": Trace()}
        _, features = self.agent.read(batch.obs, traces["critic"])
        self.agent.actor.online(features, traces["actor"])
        return traces

    def losses(self, batch: Any) -> Iterator[tuple[str, Tensor, Trace]]:
        for name in self.agent.components:
            loss, _, _, traces = self.agent.loss(batch)
            yield name, loss, traces[name]

    def values(self, batch: Batch, *, target: bool = False) -> Tensor:
        """Values of the observations [1, B]: PPO's critic does not read actions, and has no target network."""
        return self.agent.head.value(self.agent.read(batch.obs)[0]).unsqueeze(0)

    def policy(self, obs: NDArray[Any] | Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """The stochastic policy of training, which the critic evaluates; there is no bonus."""
        with self.agent.drawing_from(generator):
            action = self.agent.act(obs, Clock())
        return action, torch.zeros(len(action), device=action.device)

    def scaled_rewards(self, reward: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.agent.config.scale_rewards:
            return reward
        return (reward / float(self.agent.returns.deviation())).clip(-10, 10)

    def loss_functions(self, batch: Any, seed: int) -> dict[str, Callable[[], Tensor]]:
        c = self.agent.config

        def policy() -> Tensor:
            loss, entropy, _ = self.agent.policy_loss(batch, self.agent.read(batch.obs)[1])
            return loss - c.entropy * entropy

        return {
            "critic": lambda: c.value_weight * self.agent.value_loss(batch, self.agent.read(batch.obs)[0]),
            "actor": policy,
        }

    def predictions(
        self, component: str, obs: Tensor, action: Tensor, networks: Mapping[str, nn.Module] | None = None
    ) -> Tensor:
        """Values [B], or the policy in the form that `decisions` returns."""
        critic, x = self.network("critic", networks), self.agent.normal(obs)
        if component == "critic":
            return self.agent.head.value(critic(x))
        features = critic.read(x)[1] if self.agent.shared else critic.encoder(x)
        policy = self.agent.policy(features, network=self.network("actor", networks))
        return policy[0] if self.agent.action.discrete else torch.stack(policy)

    @torch.no_grad()
    def decisions(self, batch: Batch) -> Tensor:
        """Log-probabilities [B, actions], or means and log standard deviations [2, B, A]."""
        return self.predictions("actor", batch.obs, batch.action)

    def policy_churn(self, before: Tensor, after: Tensor) -> Tensor:
        """Mean KL(policy before ‖ policy after)."""
        if self.agent.action.discrete:
            return categorical_kl(before, after)
        return gaussian_kl(before, after)

    @torch.no_grad()
    def probed(self, batch: Batch) -> Modules:
        x = self.agent.normal(batch.obs)
        modules: Modules = {
            "critic": (self.agent.critic.online, (x,)),
            "actor": (self.agent.actor.online, (self.agent.read(batch.obs)[1],)),
        }
        if self.agent.shared:
            modules["encoder"] = (self.agent.critic.online.encoder, (x,))
        return modules


class SupervisedView(AgentView[Supervised]):
    """Predictions of targets; the agent estimates no returns."""

    values_are_returns: ClassVar[bool] = False

    @torch.no_grad()
    def activations(self, batch: Batch) -> dict[str, Trace]:
        trace = Trace()
        self.agent.critic.online(batch.obs, trace)
        return {"critic": trace}

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor, Trace]]:
        trace = Trace()
        yield "critic", self.agent.loss(batch, trace), trace

    def values(self, batch: Batch, *, target: bool = False) -> Tensor:
        """The network's output for the target [1, B]: the logit of the target's class minus the mean logit (a softmax
        determines logits only up to a constant), or the mean of the predicted numbers. There is no target network."""
        logits = self.agent.critic.online(batch.obs)
        if self.agent.head is None:
            own = logits.gather(1, batch.action.view(-1, 1)).squeeze(1)
            return (own - logits.mean(dim=1)).unsqueeze(0)
        return self.agent.predicted(logits).mean(dim=1).unsqueeze(0)

    def predictions(
        self, component: str, obs: Tensor, action: Tensor, networks: Mapping[str, nn.Module] | None = None
    ) -> Tensor:
        """Logits of all classes [B, classes], or numbers [B, K]."""
        logits: Tensor = self.network(component, networks)(obs)
        return logits if self.agent.head is None else self.agent.predicted(logits)

    def loss_functions(self, batch: Batch, seed: int) -> dict[str, Callable[[], Tensor]]:
        return {"critic": lambda: self.agent.loss(batch)}

    def decisions(self, batch: Batch) -> Tensor:
        """Classes [B], or numbers [B, K]."""
        return self.agent.act(batch.obs)

    def policy_churn(self, before: Tensor, after: Tensor) -> Tensor:
        """Fraction of samples whose predicted class differs, or for numbers the KL divergence of Gaussians of variance
        1 around them, which is half their squared distance."""
        if self.agent.head is None:
            return (before != after).float().mean()
        return 0.5 * (before - after).square().sum(dim=1).mean()

    def probed(self, batch: Batch) -> Modules:
        modules: Modules = {"critic": (self.agent.critic.online, (batch.obs,))}
        if self.agent.observation.pixels:
            modules["encoder"] = (self.agent.critic.online.encoder, (batch.obs,))
        return modules


VIEWS: dict[type[Agent], type[AgentView[Any]]] = {DQN: DQNView, SAC: SACView, PPO: PPOView, Supervised: SupervisedView}


@cache
def view_class(agent_class: type[Agent]) -> type[AgentView[Any]] | None:
    """The view of a class of agents: its own `view_class`, or that of the nearest base class that has one."""
    if agent_class.view_class is not None:
        return agent_class.view_class
    return next((VIEWS[base] for base in agent_class.__mro__ if base in VIEWS), None)


def view(agent: Agent, observer: str = "an observer") -> AgentView[Any]:
    """The view of an agent, for the named observer.

    Raises:
        NoView: The agent's class has none.
    """
    cls = view_class(type(agent))
    if cls is None:
        raise NoView(
            f"{observer} needs a view of the agent, and {agent.name} has none: set {type(agent).__name__}.view_class "
            "to a subclass of pliant.agents.views.AgentView"
        )
    return cls(agent)

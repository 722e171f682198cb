"""An agent of four methods, without a view: it trains, is reset and resumes; observers refuse it by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from law_agents import DISCRETE, VECTOR, begin_run, current_state, differences, resume, saved, take_steps
from torch import Tensor

from pliant.agents import DQN, Agent, Batch, Clock, Component, Update
from pliant.agents.clock import Plan
from pliant.agents.config import OffPolicyConfig
from pliant.agents.networks import NetworkConfig, QNetwork, Trace
from pliant.agents.optimizers import OptimizerConfig, build_optimizer, step
from pliant.agents.views import DQNView, NoView, view
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build
from pliant.monitors import watch


@dataclass(frozen=True)
class MinimalConfig(OffPolicyConfig):
    """Q-learning with a network of its own."""

    parts: ClassVar[dict[str, tuple[str, str]]] = {"critic": ("network", "optimizer")}
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(hidden=(12, 10)))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 8
    buffer_size: int = 96
    learning_starts: int = 8


class Minimal(Agent):
    """The smallest agent: Q-learning without a target network."""

    name = "minimal"
    config_class = MinimalConfig

    def build(self, generator: torch.Generator) -> None:
        online = QNetwork(self.observation, self.action.size, 1, self.config.network, generator)
        self.critic = Component(online, build_optimizer(online.parameters(), self.config.optimizer))
        self.components = {"critic": self.critic}

    @torch.no_grad()
    def act(self, obs: Any, clock: Clock | None = None) -> Tensor:
        return self.critic.online(self.tensor(obs)).squeeze(2).argmax(dim=1)

    def update(self, batch: Batch, plan: Plan) -> Update:
        batch, trace = self.interventions.transform_batch(batch), Trace()
        with torch.no_grad():
            target = batch.reward + batch.discount * self.critic.online(batch.next_obs).squeeze(2).amax(dim=1)
        values = self.critic.online(batch.obs, trace).squeeze(2).gather(1, batch.action.view(-1, 1)).squeeze(1)
        loss = (values - target).square().mean()
        step(self.penalised(loss, "critic"), self.critic.optimizer)
        return Update({"losses/td_loss": loss.detach()}, {"critic": [h.detach() for h in trace]}, values.detach())

    def blank_pass(self) -> None:
        self.critic.online(self.blank())


def minimal(*specs: str, seed: int = 0) -> Minimal:
    return Minimal(VECTOR, DISCRETE, interventions=build(specs, INTERVENTIONS), seed=seed)


METHODS = ("reset(layers=head, every=3)", "redo(tau=0.7, every=2, samples=0)", "l2_init", "continual_backprop")


def test_an_agent_of_four_methods_has_no_other_abstract_method() -> None:
    assert Agent.__abstractmethods__ == {"build", "act", "update", "blank_pass"}


def test_an_agent_without_a_view_trains_is_reset_and_resumes_exactly() -> None:
    straight, stopped, resumed = (begin_run(minimal(*METHODS[:3], seed=s)) for s in (0, 0, 9))
    initial = straight.agent.fresh_copy().components["critic"].online.state_dict()
    for run in (straight, stopped):
        take_steps(run, 10)
    resume(resumed, saved(stopped))
    take_steps(straight, 6)
    take_steps(resumed, 6)
    assert not differences(current_state(straight), current_state(resumed))
    learnt = straight.agent.components["critic"].online.state_dict()
    assert all(not torch.equal(learnt[name], initial[name]) for name in learnt)


@pytest.mark.parametrize("spec", METHODS)
def test_methods_that_need_no_view_accept_it(spec: str) -> None:
    run = begin_run(minimal(spec))
    take_steps(run, 8)
    assert run.clock.updates > 0


@pytest.mark.parametrize("spec", ["chain", "redo(samples=16)", "regrama"])
def test_methods_that_need_a_view_refuse_by_name(spec: str) -> None:
    name = spec.partition("(")[0]
    with pytest.raises(NoView, match=f"^{name} needs a view of the agent, and minimal has none: set Minimal"):
        minimal(spec)


def test_monitors_refuse_an_agent_without_a_view() -> None:
    with pytest.raises(NoView, match=r"^monitor activity needs a view of the agent, and minimal has none"):
        watch(minimal(), "activity")
    watch(minimal(), "none")


def test_the_view_of_a_subclass_is_that_of_its_base_or_its_own() -> None:
    class Own(DQNView):
        pass

    class Child(DQN):
        pass

    class Grown(DQN):
        view_class = Own

    agents = [kind(VECTOR, DISCRETE) for kind in (Child, Grown)]
    assert [type(view(agent)) for agent in agents] == [DQNView, Own]


def test_a_clock_in_place_of_a_plan_is_refused_with_the_way_out() -> None:
    agent = DQN(VECTOR, DISCRETE)
    run = begin_run(agent)
    take_steps(run, 2)
    batch = run.memory.sample(4)
    with pytest.raises(AttributeError, match=r"agent.update\(batch, agent.plan\(clock\)\)"):
        agent.update(batch, Clock(8, 1))  # type: ignore[arg-type]

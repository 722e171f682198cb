"""Tandem: a second network learns passively from the data of the first one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from ..agents.agent import Agent
from ..agents.playing import play
from ..common.ranges import Episodes, SomeEnvSteps
from ..common.seeds import derive_seed
from .base import Finding, Monitor, trigger


class Tandem(Monitor):
    """A freshly initialised agent that learns from every batch that the agent learns from, and never acts.

    Its networks are initialised when the monitor begins: with the run, or in a fork that adds the monitor
    (`pliant fork --tandem`). From then on, both agents learn from the same data in the same order. If the passive agent
    ends above the active one, the active network has lost plasticity, and its data would have sufficed. If the passive
    agent stays below, data that an agent did not collect itself do not suffice, as is common.

    Healthy: The gap (passive minus active return) is below zero: learning from another agent's data is usually worse.
    When: It rises above zero in a fork: reset the networks, and keep the replay.
    Paper: Ostrovski, Castro & Dabney 2021, "The Difficulty of Passive Learning in Deep Reinforcement Learning",
        2110.14020 (tandem DQN, forked tandem); Nikishin et al. 2022, 2205.07802, for the reset that it predicts.
    Differs: The passive agent is plain: interventions that change the configuration apply to it, too; those that act
        during training do not. It costs about as much as the agent's own updates.

    Args:
        every: Period of the comparison, in environment steps.
        episodes: Episodes that each agent plays, greedily, with the same seeds.
    """

    name = "tandem"
    group = "alone"
    example: ClassVar[str] = "tandem(every=8, episodes=1)"
    every: ClassVar[int] = 10_000
    metrics: ClassVar[Mapping[str, str]] = {
        "tandem_return": "mean return of the passive agent's greedy policy",
        "tandem_active_return": "mean return of the active agent's greedy policy, in episodes with the same seeds",
        "tandem_gap": "return of the passive agent minus that of the active agent",
    }

    def __init__(self, every: SomeEnvSteps = 10_000, episodes: Episodes = 5) -> None:
        super().__init__(trigger(every, "steps"))
        self.episodes = episodes

    def bind(self, agent: Agent) -> None:
        if not hasattr(agent.config, "replay_ratio"):
            raise ValueError(f"tandem: a passive agent learns from a replay, and {agent.name} has none")
        self.passive = type(agent)(
            agent.observation, agent.action, agent.config, seed=derive_seed(agent.seed, "tandem"), device=agent.device
        )

    def follow(self, run: Any) -> None:
        """Learn from the batch that the agent has just learnt from."""
        self.passive.update(run.batch, self.passive.plan(run.clock))

    def between(self, run: Any) -> Iterator[Finding]:
        if run.fresh_envs is None:
            raise ValueError(
                "tandem plays separate episodes: give the run fresh_envs=lambda: make(...), or remove the monitor"
            )
        means = []
        for agent in (self.passive, run.agent):
            envs = run.fresh_envs()
            try:
                means.append(float(np.mean([episode.ret for episode in play(agent, envs, self.episodes)])))
            finally:
                envs.close()
        yield "critic/tandem_return", means[0]
        yield "critic/tandem_active_return", means[1]
        yield "critic/tandem_gap", means[0] - means[1]

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"passive": self.passive.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.passive.load_state_dict(state["passive"])

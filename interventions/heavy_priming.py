"""Heavy priming: Nikishin et al. 2022, 2205.07802."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from ..agents.clock import Clock, Sampling
from ..agents.hooks import Intervention
from ..common.ranges import SomeTransitions, SomeUpdates
from .core.config_edits import agent_name, edit


class HeavyPriming(Intervention):
    """Overfit the first transitions: make very many updates on them before the run continues as usual.

    When: To show the primacy bias within minutes. A primed and an unprimed agent then get the same amount of data, and
        only the primed one may fail to learn from it. Hopper shows lasting damage, Pendulum a delay.
    Paper: Nikishin et al. 2022, "The Primacy Bias in Deep Reinforcement Learning", 2205.07802, section 4: 100
        transitions and 100,000 updates, SAC on quadruped-run.
    Differs: The number of transitions is rounded up to whole steps of all environments, and to a whole n-step window.
        Learning starts after them, so a comparison run without priming needs the same `--agent.learning-starts`; DQN's
        epsilon starts to fall there too. Other schedules count the updates of the priming like all others. The run can
        be stopped and saved during the priming.
    Excludes: Agents without a replay.

    Args:
        updates: Gradient updates on the first transitions, before any further environment step.
        transitions: Number of first transitions.
    """

    name = "heavy_priming"
    example: ClassVar[str] = "heavy_priming(updates=3, transitions=8)"
    effect = "schedule"
    reserves = ("the use of the first transitions",)
    only_from_start = "it makes updates on the first transitions of a run, which are in the past"

    def __init__(self, updates: SomeUpdates = 100_000, transitions: SomeTransitions = 100) -> None:
        super().__init__()
        self.updates, self.transitions = updates, transitions

    def configure(self, config: Any) -> Any:
        if not hasattr(config, "replay_ratio"):
            raise ValueError(f"heavy_priming needs a replay, and {agent_name(config)} has none")
        if self.transitions > config.buffer_size:
            raise ValueError(
                f"heavy_priming: {self.transitions} transitions do not fit into the replay, which holds "
                f"{config.buffer_size}; raise agent.buffer_size"
            )
        return edit(config, self.name, learning_starts=self.transitions)

    def schedule(self, sampling: Sampling, clock: Clock) -> Sampling:
        if clock.steps < self.transitions:
            return sampling
        return replace(sampling, extra_updates=sampling.extra_updates + self.updates)

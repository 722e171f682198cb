"""Hare and tortoise: Lee et al. 2024, 2406.02596."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Unit
from ..agents.hooks import Run
from ..common.ranges import Period, ShareBelow
from .core.config_edits import edit
from .core.resetting import LayerMethod, trigger
from .core.surgery import copy_layer_


class HareTortoise(LayerMethod):
    """Set a fast network, on a schedule, to the slow average of its weights that serves as its target.

    When: There are many updates, and the averaged network generalises better than the fast one.
    Paper: Lee et al. 2024, "Slow and Steady Wins the Race: Maintaining Plasticity with Hare and Tortoise Networks",
        2406.02596, section 4: tortoise <- mu * tortoise + (1 - mu) * hare at every update, hare <- tortoise on a
        schedule.
    Differs: In reinforcement learning the target network is the tortoise, so there is no third copy. A parameter
        chooses which of the two acts. In the authors' supervised trainer hare and tortoise share one tensor from a
        reset until the next average, so the tortoise makes the hare's next step in full; here the values are copied.
    Excludes: every other intervention that sets how fast the target network moves; plasticity_injection.

    Args:
        mu: Weight of the tortoise in its own average at every update.
        every: Period of setting the hare to the tortoise.
        of: Clock of the period: steps (environment steps), updates or episodes.
        act: Network that selects the actions of a DQN: tortoise or hare. SAC acts with its actor.
        moments: The optimizer state when the hare is set to the tortoise: keep or reset.
    """

    name = "hare_tortoise"
    example: ClassVar[str] = "hare_tortoise(mu=0.9, every=3)"
    reserves = ("the pace of the target network",)

    def __init__(
        self,
        mu: ShareBelow = 0.999,
        every: Period = 20_000,
        of: Unit = "updates",
        act: Literal["tortoise", "hare"] = "tortoise",
        moments: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__("critic", trigger(every, of, (), 0, None), "none", moments)
        self.mu, self.act = mu, act

    def configure(self, config: Any) -> Any:
        config = edit(config, self.name, target_tau=1 - self.mu, target_period=1)
        if self.act == "tortoise" and hasattr(config, "act_with_target"):
            config = edit(config, self.name, act_with_target=True)
        return config

    def bind(self, agent: Agent) -> None:
        super().bind(agent)
        if not self.survey.copies:
            raise ValueError(f"hare_tortoise needs a target network, and this {agent.name} has none")

    def fire(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        for name in self.names:
            copy_layer_(self.survey.layers[name], self.survey.copies[name])
        self.finish(run.agent, self.names)

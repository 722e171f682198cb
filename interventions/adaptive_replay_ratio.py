"""Adaptive replay ratio: Ma et al. 2024, 2310.07418."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.clock import Clock, Every, Sampling, Unit
from ..agents.hooks import Intervention, Run
from ..common.ranges import NotNegative, Period, SomeRatio, Updates
from .core.config_edits import edit
from .core.parts import Survey, chosen_layers, survey


class AdaptiveReplayRatio(Intervention):
    """Start with a low replay ratio, and raise it once the critic's fraction of active units has settled.

    When: A high replay ratio helps late in training but harms early, as in control from pixels.
    Paper: Ma et al. 2024, "Revisiting Plasticity in Visual Reinforcement Learning: Data, Modules and Training Stages",
        2310.07418, section 6, and the authors' code: ratio 0.5, then 2. The code checks every 50 episodes, uses the
        mean over the last of them, and has a threshold of 0.001. Atari (100,000 steps) also has 0.5, then 2; its period
        is not published, so use a period in steps there: `adaptive_replay_ratio(every=5000, of=steps)`.
    Differs: The host reads the ratio one step after the device has decided, so that the host does not wait for the
        device. If two episodes end between two updates (many environments), the mean covers the updates since the
        latest check.
    Excludes: replay_ratio.

    Args:
        low: Gradient updates per environment step at the start.
        high: Gradient updates per environment step after the switch. The switch is never undone.
        every: Period of the check.
        of: Clock of the period. episodes: the mean covers the last episode before the check, as in the code. steps or
            updates: the mean covers the whole period.
        delta: The switch happens if the fraction of active units differs by at most this from the fraction at the
            previous check.
        at_least: Number of first checks that only record the fraction and never switch. With 0 the first check may
            switch, as in the code.
    """

    name = "adaptive_replay_ratio"
    example: ClassVar[str] = "adaptive_replay_ratio(low=1, high=2, every=3, of=updates, delta=0.5)"
    effect = "schedule"
    reserves = ("the replay ratio",)
    # Buffers: sum and number of the fractions since the last clear, the fraction at the last check, the number of
    # checks, and 1 after the switch.
    total: Tensor
    count: Tensor
    last: Tensor
    checks: Tensor
    level: Tensor

    def __init__(
        self,
        low: SomeRatio = 0.5,
        high: SomeRatio = 2.0,
        every: Period = 50,
        of: Unit = "episodes",
        delta: NotNegative = 0.001,
        at_least: Updates = 0,
    ) -> None:
        super().__init__()
        self.ratios, self.every, self.of, self.delta, self.at_least = (low, high), every, of, delta, at_least
        self.when = Every(every, of)

    def configure(self, config: Any) -> Any:
        return edit(config, self.name, replay_ratio=self.ratios[0])

    def bind(self, agent: Agent) -> None:
        self.survey: Survey = survey(agent)
        # Only the hidden layers of the value functions, without the encoder and the projection from pixels.
        names = chosen_layers(self.survey, "critic", self.name)
        self.layers = {
            n for n in names if n in self.survey.graph and not n.startswith(("critic.encoder.", "critic.projection."))
        }
        if not self.layers:
            raise ValueError(f"adaptive_replay_ratio: the critic of this {agent.name} has no hidden layer to measure")
        zero = torch.zeros((), device=agent.device)
        for name in ("total", "count", "last", "checks", "level"):
            self.register_buffer(name, zero.clone())
        # The host reads the level here, after the device has written it.
        self.mirror = torch.zeros(1, pin_memory=agent.device.type == "cuda")
        self.view = self.mirror.numpy()

    def load_host_state(self, state: dict[str, Any]) -> None:
        self.mirror.copy_(self.level)

    def reinitialised(self, run: Run) -> None:
        for buffer in (self.total, self.count, self.last, self.checks, self.level):
            buffer.zero_()
        self.mirror.copy_(self.level, non_blocking=True)

    def schedule(self, sampling: Sampling, clock: Clock) -> Sampling:
        ratio = self.ratios[int(self.view[0])]
        return replace(sampling, replay_ratio=ratio)

    @torch.no_grad()
    def added_late(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        self.last.copy_(self.share(activations))

    def share(self, activations: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """The fraction of active outputs over all units and samples (0-d)."""
        outputs = [h for name, h in self.survey.outputs(activations).items() if name in self.layers]
        active = torch.stack([(h > 0).sum(dtype=torch.float32) for h in outputs]).sum()
        return active / sum(h.numel() for h in outputs)

    @torch.no_grad()
    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        active = self.share(activations)
        if run.clock.updates == 1:
            self.last.copy_(active)
        if self.when(run.clock):
            self.check()
        elif self.of == "episodes" and self._last_episode_begins(run.clock):
            self._clear()
        self.total.add_(active)
        self.count.add_(1)

    def check(self) -> None:
        """Compare with the previous check. This is the authors' rule; the result stays on the device."""
        mean = self.total / self.count.clamp(min=1)
        self.checks.add_((self.count > 0).to(self.checks.dtype))
        settled = ((mean - self.last).abs() <= self.delta) & (self.count > 0) & (self.checks > self.at_least)
        self.level.copy_(torch.maximum(self.level, settled.to(self.level.dtype)))
        self.last.copy_(torch.where(self.count > 0, mean, self.last))
        self._clear()
        self.mirror.copy_(self.level, non_blocking=True)

    def _clear(self) -> None:
        self.total.zero_()
        self.count.zero_()

    def _last_episode_begins(self, clock: Clock) -> bool:
        last, now = clock.read("episodes")
        return (now + 1) // self.every > (last + 1) // self.every

    def measurements(self) -> dict[str, Tensor]:
        return {"interventions/replay_ratio": self.ratios[0] + self.level * (self.ratios[1] - self.ratios[0])}

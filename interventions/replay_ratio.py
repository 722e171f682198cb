"""The replay ratio, alone or with the resets that high ratios need: D'Oro et al. 2023 (OpC-9aBBVJe)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..agents.agent import Agent
from ..agents.hooks import Intervention, Run
from ..common.ranges import Share, SomeRatio, Updates
from .bbf import SoftReset
from .core.config_edits import edit
from .core.parts import HEADS
from .reset import Reset


class ReplayRatio(Intervention):
    """Set the number of gradient updates per environment step, optionally with the resets that high ratios need.

    When: Environment steps are expensive; or as the standard stress test of plasticity.
    Paper: D'Oro et al. 2023, "Sample-Efficient Reinforcement Learning by Breaking the Replay Ratio Barrier" (ICLR 2023,
        OpC-9aBBVJe). SR-SAC is `replay_ratio(128, reset_every=2560000)`, SR-SPR `replay_ratio(16, reset_every=40000,
        encoder_shrink=0.8)`. The period of resets is in updates, so a higher ratio means fewer environment steps
        between resets.
    Differs: No known difference. Target network, actor and other methods keep the clocks of their own periods.
    Excludes: adaptive_replay_ratio; with resets also plasticity_injection.

    Args:
        ratio: Gradient updates per environment step. Fractions of an update are carried over to later steps.
        reset_every: Updates between two full resets; 0 is never.
        encoder_shrink: If given, the encoder is not reset. It keeps this fraction of its weights; the rest is a fresh
            draw.
    """

    name = "replay_ratio"
    example: ClassVar[str] = "replay_ratio(2, reset_every=3)"
    effect = "layer_surgery"
    reserves = ("the replay ratio",)

    def __init__(self, ratio: SomeRatio, reset_every: Updates = 0, encoder_shrink: Share | None = None) -> None:
        super().__init__()
        if encoder_shrink is not None and not reset_every:
            raise ValueError("encoder_shrink needs reset_every")
        self.ratio = ratio
        self.resets: Reset | None = None
        if reset_every:
            self.edits = (HEADS,)
            self.resets = (
                Reset(reset_every, "updates")
                if encoder_shrink is None
                else SoftReset(reset_every, "updates", encoder_shrink, "same")
            )

    def configure(self, config: Any) -> Any:
        return edit(config, self.name, replay_ratio=self.ratio)

    def seed(self, seed: int, device: torch.device) -> None:
        super().seed(seed, device)
        if self.resets is not None:
            self.resets.seed(seed, device)

    def bind(self, agent: Agent) -> None:
        if self.resets is not None:
            self.resets.bind(agent)
        if isinstance(self.resets, SoftReset):
            self.resets.need_encoder(self.name, agent)

    def after_update(self, run: Run, activations: Mapping[str, Sequence[Tensor]]) -> None:
        if self.resets is not None:
            self.resets.after_update(run, activations)

    def measurements(self) -> dict[str, Tensor]:
        return {} if self.resets is None else self.resets.measurements()

"""Orchestrated value mapping: Fatemi & Tavakoli 2022, 2203.07171."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from ..agents.heads import ChannelName, Levels, MappingName
from ..common.ranges import NotNegative, Number, Positive, SomeShare
from .value_losses import ValueLoss


class ValueMapping(ValueLoss):
    """Split rewards into non-negative channels and learn the value of each on a logarithmic scale.

    When: Returns of very different size matter equally, as with sparse rewards and a low discount.
    Paper: Fatemi & Tavakoli 2022, "Orchestrated Value Mapping for Reinforcement Learning", 2203.07171, section 5, with
        the polar channels of eq. 13. The logarithm and the averaging before it are those of van Seijen, Fatemi &
        Tavakoli 2019, "Using a Logarithmic Mapping to Enable Lower Discount Factors in Reinforcement Learning",
        1906.00572.
    Differs: The optimizer's learning rate is the authors' beta_f and is not changed. Their rate is ten times that of
        DQN (2.5e-3, centred RMSProp, gamma 0.96), and beta = 0.1 compensates for it. Heads have no hidden layer of
        their own, and gradients are not rescaled by the number of channels (options of the code). With
        channels=cumulative the code gives every channel above the first -1/9 for a reward at or below the channel's
        lower bound; here it is 0, because the paper's channels are not negative. On MPS it uses single precision.
    Excludes: every other value loss, bbf and n-step returns, because rewards are split one by one. It sets reward_clip
        to 0, because the channels clip rewards. In SAC the entropy bonus is split, and clipped, with the reward.

    Args:
        mapping: log, or loglin: log up to exp(-shift / c) and its tangent above.
        channels: polar: reward and punishment. bands: also split by magnitude; a reward belongs to the channel of its
            decade (configuration 1). cumulative: the same split, but a reward fills all channels up to its own
            (configuration 2).
        levels: Decades of bands and cumulative; 4 cover rewards up to 1000.
        c: Factor of the logarithm.
        shift: Added to the logarithm. Initial outputs of channels are near exp(-shift / c), and cancel in the value.
        epsilon: Smallest return of a channel that is distinguished from zero; the default is that of the authors, about
            gamma^100.
        beta: Fraction of the step to the target that is taken before the mapping; the optimizer's learning rate applies
            as well.
        delta: Error at which the loss changes from quadratic to linear.
        clip: Largest reward of a polar channel; 0 is off.
        limit: Largest return of a channel; 0 computes it from gamma and the largest reward.
    """

    name = "value_mapping"
    example: ClassVar[str] = "value_mapping"
    reserves = ("value_loss", "n-step and discount")

    def __init__(
        self,
        mapping: MappingName = "loglin",
        channels: ChannelName = "polar",
        levels: Levels = 4,
        c: Positive = 0.5,
        shift: Number = 0.0,
        epsilon: Positive = 0.01687,
        beta: SomeShare = 0.1,
        delta: Positive = 1.0,
        clip: NotNegative = 1.0,
        limit: NotNegative = 0.0,
    ) -> None:
        super().__init__(
            mapping=mapping,
            channels=channels,
            levels=levels,
            c=c,
            shift=shift,
            epsilon=epsilon,
            beta=beta,
            delta=delta,
            clip=clip,
            limit=limit,
        )

    def configure(self, config: Any) -> Any:
        config = super().configure(config)
        if config.n_step != 1:
            raise ValueError(f"value_mapping splits rewards one by one: n_step must be 1, not {config.n_step}")
        return replace(config, reward_clip=0.0)

"""Value heads: the representation of a value by a network's outputs, and the value loss.

A head has three functions. `value(logits)` computes the value from the outputs. `backup(next_logits, reward, discount)`
computes the target from reward and next state, in the form that the loss needs. `loss(logits, target)` is the loss of
each sample. SAC adds its entropy bonus to the reward, so DQN and the critics of SAC use the same heads.

Heads differ in the form of the target: a number (`mse`, `huber`, `symlog`; also `two_hot` and `hl_gauss`, whose losses
spread it over bins), a distribution (`c51`), quantiles (`quantile`), or one number for each channel of the reward
(`value_mapping`). They also differ in the size of the gradient: it grows in proportion to the error under `mse`; under
the others it is bounded or grows only logarithmically.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.ranges import NotNegative, Number, Positive, SomeShare, at_least, check_numbers

HeadName = Literal["mse", "huber", "c51", "two_hot", "hl_gauss", "quantile", "symlog", "value_mapping"]
MappingName = Literal["log", "loglin"]
ChannelName = Literal["polar", "bands", "cumulative"]
WIDE = "a network has this many outputs per action"
Bins: TypeAlias = Annotated[int, at_least(2, most=100_000, why=WIDE)]
Quantiles: TypeAlias = Annotated[int, at_least(1, most=10_000, why="the loss compares every pair")]
Levels: TypeAlias = Annotated[
    int, at_least(1, most=30, why="each covers a factor of ten, and single precision 38 of them")
]

# Natural logarithm of a return beyond any that occurs. Exponents are clamped to ± this, so that no value is infinite.
BEYOND = 60.0


@dataclass(frozen=True)
class HeadConfig:
    """Parameters of the value losses; each loss uses only its own.

    Attributes:
        delta: huber, value_mapping: error at which the loss changes from quadratic to linear. quantile: the same (kappa
            in the paper).
        bins: c51, two_hot, hl_gauss: number of bins.
        low: c51, two_hot: lowest atom. hl_gauss: lower edge of the lowest bin. In units of discounted, clipped return.
        high: c51, two_hot: highest atom. hl_gauss: upper edge of the highest bin. In the same units.
        sigma: hl_gauss: standard deviation of the target's Gaussian, in bin widths.
        symlog: two_hot: space the bins evenly in symlog; low and high are then in symlog units (DreamerV3).
        quantiles: quantile: number of quantiles; cost and memory of the loss grow with its square.
        mapping: value_mapping: log; or loglin, which is logarithmic up to exp(-shift / c) and linear above.
        c: value_mapping: factor of the logarithm.
        shift: value_mapping: added to the logarithm. A freshly initialised channel has a return near exp(-shift / c).
        epsilon: value_mapping: smallest return of a channel; smaller ones are clamped to it before the logarithm.
        beta: value_mapping: step size towards the target in the space of returns, before the mapping; the optimizer's
            learning rate applies as well.
        channels: value_mapping: polar: one channel for positive and one for negative rewards. bands: several for each
            sign, by magnitude; a reward belongs to the channel of its decade. cumulative: likewise, but a reward also
            fills the channels of the smaller decades.
        levels: value_mapping: number of decades of bands and cumulative; 4 cover rewards up to 1000.
        clip: value_mapping: largest reward of a polar channel; 0 disables clipping.
        limit: value_mapping: largest return of a channel; if 0, it is computed from gamma and the largest reward.
    """

    delta: Positive = 1.0
    bins: Bins = 51
    low: Number = -10.0
    high: Number = 10.0
    sigma: Positive = 0.75
    symlog: bool = False
    quantiles: Quantiles = 200
    mapping: MappingName = "loglin"
    c: Positive = 0.5
    shift: Number = 0.0
    epsilon: Positive = 0.01687
    beta: SomeShare = 0.1
    channels: ChannelName = "polar"
    levels: Levels = 4
    clip: NotNegative = 1.0
    limit: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.low < self.high:
            raise ValueError(f"low must lie below high, not {self.low} and {self.high}")
        if self.symlog and max(-self.low, self.high) > BEYOND:
            raise ValueError(f"low and high are exponents with symlog; {self.low} and {self.high} are too large")
        if abs(self.shift / self.c) > BEYOND:
            raise ValueError(f"shift must be at most {BEYOND:g} times c in absolute value, not {self.shift}")
        if self.mapping not in ("log", "loglin"):
            raise ValueError(f"unknown mapping {self.mapping!r}: choose log or loglin")
        if self.channels not in ("polar", "bands", "cumulative"):
            raise ValueError(f"unknown channels {self.channels!r}: choose polar, bands or cumulative")


DEFAULT = HeadConfig()


class ValueHead(nn.Module):
    """Base of value heads: one scalar output that is regressed on its target; subclasses define the loss."""

    outputs = 1

    def __init__(self, config: HeadConfig = DEFAULT, gamma: float = 0.99) -> None:
        super().__init__()

    @property
    def scratch(self) -> int:
        """Numbers that the loss of one sample holds in memory at once."""
        return self.outputs

    def constant(self, name: str, values: Tensor) -> None:
        """Register a buffer that moves with the head and is not saved, since it follows from the configuration."""
        self.register_buffer(name, values, persistent=False)

    def value(self, logits: Tensor) -> Tensor:
        """Logits [..., outputs] → values [...]."""
        return logits.squeeze(-1)

    def backup(self, next_logits: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """Next logits [B, outputs], reward [B], discount [B] → the target of `loss`; here [B]."""
        return torch.addcmul(reward, discount, self.value(next_logits))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits [..., B, outputs] and target → the loss of each sample [..., B]."""
        raise NotImplementedError

    def error(self, logits: Tensor, target: Tensor) -> Tensor:
        """Absolute temporal-difference error [..., B], the priority of prioritised replay."""
        return (self.value(logits) - target).abs()


class MSE(ValueHead):
    """Half the squared error; its gradient is the temporal-difference error."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (self.value(logits) - target).square()


class Huber(ValueHead):
    """Quadratic up to `delta`, linear beyond (Mnih et al. 2015 clip the error to [-1, 1], which is delta = 1)."""

    def __init__(self, config: HeadConfig = DEFAULT, gamma: float = 0.99) -> None:
        super().__init__(config, gamma)
        self.delta = config.delta

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return huber(self.value(logits), target, self.delta)


class Symlog(ValueHead):
    """Half the squared error in symlog space (Hafner et al. 2023, 2301.04104, "Robust predictions")."""

    def value(self, logits: Tensor) -> Tensor:
        return symexp(logits.squeeze(-1).clamp(-BEYOND, BEYOND))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (logits.squeeze(-1) - symlog(target)).square()


class Categorical(ValueHead):
    """Base of heads whose value is the mean of a distribution over a fixed support, trained with cross-entropy."""

    support: Tensor  # [outputs]

    def __init__(self, config: HeadConfig = DEFAULT, gamma: float = 0.99) -> None:
        super().__init__(config, gamma)
        self.outputs = config.bins

    def value(self, logits: Tensor) -> Tensor:
        # Not a matrix product, which would round the values in half precision or TF32.
        return (logits.softmax(-1, dtype=torch.float32) * self.support).sum(-1)

    def distribution(self, target: Tensor) -> Tensor:
        """The target as probabilities [B, outputs]."""
        raise NotImplementedError

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        # The logarithm of a clamped softmax would have no gradient where a probability is zero and must grow.
        return -(self.distribution(target) * F.log_softmax(logits, -1, dtype=torch.float32)).sum(-1)


class C51(Categorical):
    """The distribution of returns on atoms from `low` to `high` (Bellemare et al. 2017, 1707.06887, algorithm 1)."""

    def __init__(self, config: HeadConfig = DEFAULT, gamma: float = 0.99) -> None:
        super().__init__(config, gamma)
        self.low, self.spacing = config.low, (config.high - config.low) / (config.bins - 1)
        self.constant("support", torch.linspace(config.low, config.high, config.bins))

    def backup(self, next_logits: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """The next state's distribution, shifted by the reward and scaled by the discount, projected onto the atoms
        [B, outputs]."""
        mass = next_logits.softmax(-1, dtype=torch.float32)
        place = torch.addcmul(reward.unsqueeze(1), discount.unsqueeze(1), self.support)
        # Atoms outside the support are clipped to its end. The lower neighbour is never the last atom, so both
        # neighbours exist, and no mass is lost where a shifted atom coincides with an atom of the support.
        place = place.sub_(self.low).div_(self.spacing).clamp_(0, self.outputs - 1)
        below = place.floor().clamp_(max=self.outputs - 2)
        upper = mass * (place - below)
        index = below.long()
        return torch.zeros_like(mass).scatter_add_(1, index, mass - upper).scatter_add_(1, index + 1, upper)

    def distribution(self, target: Tensor) -> Tensor:
        return target

    def error(self, logits: Tensor, target: Tensor) -> Tensor:
        return (self.value(logits) - (target * self.support).sum(-1)).abs()


class TwoHot(Categorical):
    """Two-hot targets: the mass lies on the two neighbouring centres, so that the mean is the target.

    With `symlog` the centres are evenly spaced in symlog space, so dense near zero (Hafner et al. 2023, 2301.04104).
    The weights of the two neighbours are still computed from plain values.
    """

    above: Tensor  # [outputs], 1 / distance to the next centre
    below: Tensor  # [outputs], 1 / distance to the previous centre

    def __init__(self, config: HeadConfig = DEFAULT, gamma: float = 0.99) -> None:
        super().__init__(config, gamma)
        centres = torch.linspace(config.low, config.high, config.bins, dtype=torch.float64)
        centres = symexp(centres) if config.symlog else centres
        self.low, self.high, self.symlog = float(centres[0]), float(centres[-1]), config.symlog
        inverse = 1 / centres.diff()
        self.constant("support", centres.float())
        # The outer centres lack one neighbour; targets are clipped, so these entries never matter.
        self.constant("above", torch.cat([inverse, inverse[-1:]]).float())
        self.constant("below", torch.cat([inverse[:1], inverse]).float())

    def value(self, logits: Tensor) -> Tensor:
        if not self.symlog:
            return super().value(logits)
        # Add centres of opposite sign first, so that large ones cancel before small ones are added (as in DreamerV3's
        # code).
        parts = logits.softmax(-1, dtype=torch.float32) * self.support
        return 0.5 * (parts + parts.flip(-1)).sum(-1)

    def distribution(self, target: Tensor) -> Tensor:
        beyond = target.clamp(self.low, self.high).unsqueeze(-1) - self.support
        # A triangular weight around each centre, zero at its neighbours.
        return (1 - torch.maximum(beyond * self.above, -beyond * self.below)).relu_()


class HLGauss(Categorical):
    """Targets are histograms of a Gaussian around the target value (Imani & White 2018, 1806.04613; Farebrother et al.
    2024, 2403.03950, section 3.1).

    `low` and `high` are the outer *edges*: the value lies between the centres of the outer bins, half a bin inside.
    """

    edges: Tensor  # [outputs + 1], in units of sqrt(2) sigma

    def __init__(self, config: HeadConfig = DEFAULT, gamma: float = 0.99) -> None:
        super().__init__(config, gamma)
        self.low, self.high = config.low, config.high
        edges = torch.linspace(config.low, config.high, config.bins + 1, dtype=torch.float64)
        width = (config.high - config.low) / config.bins
        self.scale = 1 / (math.sqrt(2) * config.sigma * width)
        self.constant("support", ((edges[1:] + edges[:-1]) / 2).float())
        self.constant("edges", (edges * self.scale).float())

    def distribution(self, target: Tensor) -> Tensor:
        # Clipped: far outside the support the mass of every bin would underflow, and so would their sum.
        middle = target.clamp(self.low, self.high).mul_(self.scale).unsqueeze(-1)
        below = torch.erf(self.edges - middle)
        return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


class Quantile(ValueHead):
    """Quantiles of the return, by quantile Huber regression (Dabney et al. 2018, 1710.10044, eq. 10)."""

    levels: Tensor  # [N, 1]

    @property
    def scratch(self) -> int:
        return self.outputs**2

    def __init__(self, config: HeadConfig = DEFAULT, gamma: float = 0.99) -> None:
        super().__init__(config, gamma)
        self.outputs, self.delta = config.quantiles, config.delta
        self.constant("levels", ((torch.arange(config.quantiles) + 0.5) / config.quantiles).unsqueeze(1))

    def value(self, logits: Tensor) -> Tensor:
        return logits.mean(-1)

    def backup(self, next_logits: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """The quantiles of the target [B, outputs]."""
        return torch.addcmul(reward.unsqueeze(1), discount.unsqueeze(1), next_logits)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        mine, theirs = logits.unsqueeze(-1).expand(*logits.shape, target.shape[-1]), target.unsqueeze(-2)
        over = (mine.detach() > theirs).to(logits.dtype)
        # The loss of every pair of quantiles, averaged over the target's quantiles, then summed over the online ones.
        pairs = (self.levels - over).abs_() * huber(mine, theirs, self.delta)
        return pairs.mean(-1).sum(-1) / self.delta

    def error(self, logits: Tensor, target: Tensor) -> Tensor:
        return (self.value(logits) - target.mean(-1)).abs()


class ValueMapping(ValueHead):
    """Rewards are split into non-negative channels, each with a value on a logarithmic scale (Fatemi & Tavakoli 2022,
    2203.07171, section 5; van Seijen et al. 2019, 1906.00572).

    The outputs are f(Q_j) and the value is the sum of weight_j * Q_j, with f(x) = c ln x + shift. Under `loglin`, f is
    the logarithm up to exp(-shift / c) and its tangent beyond. Outputs near zero, as those of a freshly initialised
    network, put the return of every channel at exp(-shift / c), 1 by default, as in the authors' code: positive and
    negative channels cancel, and the value is near zero. Splitting is not linear: the channels of an n-step return are
    not the sums of the channels of its rewards. So each reward must be split separately, and n_step must be 1.
    """

    high: Tensor  # [L], for each level: its largest reward
    low: Tensor  # [L], the reward above which the level begins to fill
    end: Tensor  # [L], the reward from which on the level is empty again (`bands`: a reward fills one level)
    unit: Tensor  # [L], the amount of reward that counts as 1 in the level
    weights: Tensor  # [outputs], first the positive levels, then the negative

    def __init__(self, config: HeadConfig = DEFAULT, gamma: float = 0.99) -> None:
        super().__init__(config, gamma)
        self.c, self.shift, self.epsilon, self.beta = config.c, config.shift, config.epsilon, config.beta
        self.delta, self.bands = config.delta, config.channels == "bands"
        polar = config.channels == "polar"
        largest = (config.clip or math.inf) if polar else 1.0
        self.limit = config.limit or (largest / (1 - gamma) if gamma < 1 else math.inf)
        # Both mappings are a logarithm up to a knee and its tangent beyond; under `log` no return reaches the knee.
        self.knee = math.exp(-config.shift / config.c if config.mapping == "loglin" else BEYOND)
        self.bend = config.c * math.log(self.knee) + config.shift
        high = torch.tensor([largest]) if polar else 10.0 ** torch.arange(config.levels)
        low = torch.cat([torch.zeros(1), high[:-1]])
        unit = torch.ones(1) if polar else high if self.bands else high - low
        self.outputs = 2 * len(high)
        self.constant("high", high)
        self.constant("low", low)
        self.constant("unit", unit)
        self.constant("weights", torch.cat([unit, -unit]))
        # The uppermost band also takes all larger rewards.
        self.constant("end", torch.cat([high[:-1], torch.tensor([math.inf])]))

    def split(self, reward: Tensor) -> Tensor:
        """Rewards [B] → non-negative rewards of the channels [B, outputs]."""
        size = torch.stack([reward, -reward], -1).clamp_(min=0).unsqueeze(-1)
        if self.bands:
            parts = torch.where((size > self.low) & (size <= self.end), size.minimum(self.high), 0.0)
        else:
            parts = (size - self.low).clamp_(min=0).minimum(self.high - self.low)
        return (parts / self.unit).flatten(-2)

    def mapped(self, returns: Tensor) -> Tensor:
        """The mapping f: positive returns of the channels → outputs."""
        slope = self.c / self.knee
        return self.c * returns.clamp(max=self.knee).log() + self.shift + slope * (returns - self.knee).relu()

    def returns(self, logits: Tensor) -> Tensor:
        """The inverse of f: outputs → returns of the channels."""
        x, slope = precise(logits), self.knee / self.c
        # At the bend itself only one of the two terms has a gradient.
        return ((x.clamp(max=self.bend) - self.shift) / self.c).exp() + slope * (x - self.bend).relu()

    def value(self, logits: Tensor) -> Tensor:
        return self.total(self.returns(logits)).to(logits.dtype)

    def total(self, returns: Tensor) -> Tensor:
        return (returns * self.weights).sum(-1)

    def backup(self, next_logits: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
        """The target returns of the channels [B, outputs]."""
        following = self.returns(next_logits).clamp_(0, self.limit)
        return torch.addcmul(precise(self.split(reward)), precise(discount).unsqueeze(1), following)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        # Interpolate before mapping: the logarithm of a mean is not the mean of logarithms.
        held = self.returns(logits.detach()).clamp_(0, self.limit)
        moved = held.lerp_(target, self.beta).clamp_(min=self.epsilon)
        return huber(logits, self.mapped(moved).to(logits.dtype), self.delta).sum(-1)

    def error(self, logits: Tensor, target: Tensor) -> Tensor:
        return (self.value(logits) - self.total(target).to(logits.dtype)).abs()


HEADS: dict[str, type[ValueHead]] = {
    "mse": MSE,
    "huber": Huber,
    "c51": C51,
    "two_hot": TwoHot,
    "hl_gauss": HLGauss,
    "quantile": Quantile,
    "symlog": Symlog,
    "value_mapping": ValueMapping,
}


def build_head(name: str, config: HeadConfig = DEFAULT, *, gamma: float = 0.99, n_step: int = 1) -> ValueHead:
    """Build the value head with the given name.

    Raises:
        ValueError: The name is unknown, or the head cannot learn from returns of `n_step` rewards.
    """
    if name not in HEADS:
        raise ValueError(f"unknown value loss {name!r}; known: {', '.join(HEADS)}")
    if name == "value_mapping" and n_step != 1:
        raise ValueError(f"value_mapping splits rewards one by one: n_step must be 1, not {n_step}")
    return HEADS[name](config, gamma)


def huber(x: Tensor, target: Tensor, delta: float) -> Tensor:
    """Huber loss of every element of `x`; the target is broadcast to the shape of `x`."""
    # Calls the operator itself: F.huber_loss spends longer on checks of its arguments.
    return torch.ops.aten.huber_loss(x, target.expand_as(x), 0, delta)


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of symlog: sign(x) (exp(|x|) - 1)."""
    # Exactly one of the two terms has a gradient at zero, and it is 1; the form with sign(x) would have gradient 0.
    return x.relu().expm1() - (-x.clamp(max=0)).expm1()


def precise(x: Tensor) -> Tensor:
    """`x` in double precision, or unchanged on devices without it (mps)."""
    return x if x.device.type == "mps" else x.double()

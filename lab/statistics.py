"""What a few seeds can say: means, differences, equivalence, and the share of a gap that was closed.

Values are one number a seed. Numpy alone; Student's distribution is computed here, so that a verdict does not wait for
scipy. From fewer than three seeds there is no interval: its ends are NaN, and `Interval.known` says so.

(The module is not called statistics: a script run as `python scripts/train.py` would find it in the place of Python's.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]

BINS = 20  # parts into which a run without tasks is divided
FEWEST = 3
"""Seeds below which there is no interval."""
CONFIDENCE = 0.95
REPLICATES = 10_000


class Interval(NamedTuple):
    """An estimate and its interval; `low` and `high` are NaN where there were too few seeds for one."""

    estimate: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))

    def overlaps(self, other: Interval) -> bool:
        """Do the two share a point? (True where one of them is not known: nobody can say that they do not.)"""
        return not (self.known and other.known) or (self.low <= other.high and other.low <= self.high)


# ------------------------------------------------------------------------------------------------ Student's t


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function, by its continued fraction (Lentz's method; DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny, c, d = 1e-300, 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1) or 1e-300)
    total = d
    for m in range(1, 1000):
        before = total
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / (1.0 + numerator * d or tiny)
            c = 1.0 + numerator / c or tiny
            total *= c * d
        if abs(total - before) <= 1e-15 * abs(total):
            break
    return front * total / a


def t_cdf(t: float, df: float) -> float:
    """Student's distribution function with `df` (not necessarily whole) degrees of freedom."""
    if math.isinf(t):
        return 0.0 if t < 0 else 1.0
    tail = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return tail if t < 0 else 1.0 - tail


@cache
def t_quantile(p: float, df: float) -> float:
    """The number that Student's t stays below with probability `p`."""
    if not 0 < p < 1 or df <= 0:
        raise ValueError(f"a quantile of Student's t has 0 < p < 1 and df > 0, not {p} and {df}")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    high = 1.0
    while t_cdf(high, df) < p:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


# ------------------------------------------------------------------------------------------------ one arm


def _values(values: ArrayLike) -> Array:
    found = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(found):
        raise ValueError("there is nothing to say of no seeds")
    return found


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean over seeds, and Student's t interval."""
    found = _values(values)
    mean = float(found.mean())
    if len(found) < FEWEST:
        return Interval(mean, math.nan, math.nan)
    half = t_quantile((1 + confidence) / 2, len(found) - 1) * float(found.std(ddof=1)) / math.sqrt(len(found))
    return Interval(mean, mean - half, mean + half)


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: the mean of what is left when a quarter of the values is cut off at either end (as
    `scipy.stats.trim_mean(values, 0.25)`; Agarwal et al. 2021, 2108.13264)."""
    found = np.sort(_values(values))
    cut = int(0.25 * len(found))
    return float(found[cut : len(found) - cut].mean())


def bootstrap(
    strata: Sequence[ArrayLike],
    statistic: Callable[[Array], float] = iqm,
    *,
    confidence: float = CONFIDENCE,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic of all values; seeds are drawn again within each stratum (a task, say), so
    that every replicate holds every task as often as the data do (Agarwal et al. 2021).

    With five seeds such an interval is too narrow by a third or so; Student's is the one for a single mean.
    """
    rows = [_values(stratum) for stratum in strata]
    estimate = float(statistic(np.concatenate(rows)))
    if min(map(len, rows)) < FEWEST:
        return Interval(estimate, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([row[rng.integers(len(row), size=(replicates, len(row)))] for row in rows], axis=1)
    found = np.array([statistic(replicate) for replicate in drawn])
    return Interval(estimate, *_percentiles(found, confidence))


def _percentiles(found: Array, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# ------------------------------------------------------------------------------------------------ two arms


@dataclass(frozen=True)
class Difference:
    """A mean difference, its standard error and degrees of freedom (NaN where there were too few seeds)."""

    estimate: float
    error: float
    df: float
    seeds: int

    @property
    def known(self) -> bool:
        return not math.isnan(self.error)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        if not self.known:
            return Interval(self.estimate, math.nan, math.nan)
        if self.error == 0:
            return Interval(self.estimate, self.estimate, self.estimate)
        half = t_quantile((1 + confidence) / 2, self.df) * self.error
        return Interval(self.estimate, self.estimate - half, self.estimate + half)

    @property
    def p(self) -> float:
        """Two-sided p of no difference."""
        if not self.known:
            return math.nan
        if self.error == 0:
            return 1.0 if self.estimate == 0 else 0.0
        return 2 * t_cdf(-abs(self.estimate) / self.error, self.df)

    def equivalence_p(self, margin: float) -> float:
        """p of the two one-sided tests (Schuirmann 1987): that the difference is at least `margin` one way or the
        other. Below 0.05 the 90 % interval lies within the margins."""
        if margin <= 0:
            raise ValueError(f"the margin of an equivalence test is positive, not {margin}")
        if not self.known:
            return math.nan
        nearest = margin - abs(self.estimate)
        if self.error == 0:
            return 0.0 if nearest > 0 else 1.0
        return t_cdf(-nearest / self.error, self.df)

    def detectable(self, power: float = 0.8, confidence: float = CONFIDENCE) -> float:
        """The smallest true difference that these seeds would have shown with this probability: the sum of two
        quantiles of t times the standard error (a good approximation of the noncentral t)."""
        if not self.known:
            return math.nan
        if self.error == 0:
            return 0.0
        return (t_quantile((1 + confidence) / 2, self.df) + t_quantile(power, self.df)) * self.error


def paired(a: ArrayLike, b: ArrayLike) -> Difference:
    """Mean of a - b over seeds that both arms share, in the same order."""
    first, second = _values(a), _values(b)
    if len(first) != len(second):
        raise ValueError(f"paired seeds come in pairs, not {len(first)} and {len(second)}")
    gap = first - second
    if len(gap) < FEWEST:
        return Difference(float(gap.mean()), math.nan, math.nan, len(gap))
    return Difference(float(gap.mean()), float(gap.std(ddof=1)) / math.sqrt(len(gap)), len(gap) - 1, len(gap))


def paired_by_parent(
    mine: Mapping[tuple[Any, int], float], control: Mapping[tuple[Any, int], float]
) -> Difference | None:
    """Mean difference of forks, by parent and replicate; None if no pair has two numbers.

    Replicates of one parent share its whole past. So of three parents or more each counts once, as the mean over its
    replicates; of fewer, replicates are all there is, and they speak of these parents alone.
    """
    gaps: dict[Any, list[float]] = {}
    for pair in sorted(mine.keys() & control.keys()):
        if math.isfinite(gap := mine[pair] - control[pair]):
            gaps.setdefault(pair[0], []).append(gap)
    if not gaps:
        return None
    several = len(gaps) >= FEWEST
    units = [float(np.mean(row)) for row in gaps.values()] if several else [g for row in gaps.values() for g in row]
    return paired(units, np.zeros(len(units)))


def welch(a: ArrayLike, b: ArrayLike) -> Difference:
    """Mean of a less mean of b, whose variances may differ (Welch 1947; Satterthwaite's degrees of freedom)."""
    first, second = _values(a), _values(b)
    estimate, seeds = float(first.mean() - second.mean()), min(len(first), len(second))
    if seeds < FEWEST:
        return Difference(estimate, math.nan, math.nan, seeds)
    parts = [float(x.var(ddof=1)) / len(x) for x in (first, second)]
    total = sum(parts)
    if total == 0:
        return Difference(estimate, 0.0, len(first) + len(second) - 2.0, seeds)
    df = total**2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (first, second), strict=True))
    return Difference(estimate, math.sqrt(total), df, seeds)


def against(values: ArrayLike, constant: float) -> Difference:
    """Mean of one arm less a number that has no error of its own."""
    found = _values(values)
    return paired(found, np.full(len(found), float(constant)))


def probability_of_improvement(
    a: ArrayLike, b: ArrayLike, *, confidence: float = CONFIDENCE, replicates: int = REPLICATES, seed: int = 0
) -> Interval:
    """Probability that a run of `a` is better (larger) than one of `b`, ties counting half (Agarwal et al. 2021, the
    Mann-Whitney U divided by the number of pairs), with its bootstrap interval over the seeds of both."""
    first, second = _values(a), _values(b)

    def wins(x: Array, y: Array) -> Any:
        gaps = x[..., :, None] - y[..., None, :]
        return ((gaps > 0) + 0.5 * (gaps == 0)).mean(axis=(-2, -1))

    estimate = float(wins(first, second))
    if min(len(first), len(second)) < FEWEST:
        return Interval(estimate, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = [x[rng.integers(len(x), size=(replicates, len(x)))] for x in (first, second)]
    return Interval(estimate, *_percentiles(wins(drawn[0], drawn[1]), confidence))


@dataclass(frozen=True)
class Gap:
    """What share of the way from the plain agent to the oracle an arm has gone.

    `fraction` is None where the plain agent is not below the oracle to begin with. `above` says that the arm is better
    than the oracle, by an interval that excludes zero: better optimisation, then, and not plasticity kept.
    """

    fraction: Interval | None
    above: bool
    seeds: int


def gap_closed(
    arm: ArrayLike,
    plain: ArrayLike,
    oracle: ArrayLike,
    *,
    higher_is_better: bool = True,
    confidence: float = CONFIDENCE,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Gap:
    """(arm - plain) / (oracle - plain) of the means over seeds that all three share, in the same order; bootstrap over
    these seeds, drawn together."""
    sign = 1.0 if higher_is_better else -1.0
    rows = [sign * _values(x) for x in (arm, plain, oracle)]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"the three arms share their seeds, not {[len(row) for row in rows]}")
    first, low, high = rows
    count = len(first)
    beyond = paired(first, high).interval(confidence)
    above = beyond.known and beyond.low > 0
    room = paired(high, low).interval(confidence)
    if not room.known or room.low <= 0:
        return Gap(None, above, count)
    rng = np.random.default_rng(seed)
    places = rng.integers(count, size=(replicates, count))
    means = [row[places].mean(axis=1) for row in rows]
    width = means[2] - means[1]
    usable = width > 0  # a replicate without a gap has no share of it
    shares = (means[0][usable] - means[1][usable]) / width[usable]
    estimate = float((first.mean() - low.mean()) / (high.mean() - low.mean()))
    return Gap(Interval(estimate, *_percentiles(shares, confidence)), above, count)

"""Statistics over seeds: t-tests, bootstraps, aggregates over tasks, and the share of a gap that an arm closed.

Values are one number per seed. Student's t, the bootstrap and ranks are scipy's. Aggregates over tasks, the probability
of improvement and performance profiles are those of Agarwal et al. 2021 (2108.13264) and agree with their library,
rliable: a stratified bootstrap draws seeds with replacement within each task, and intervals are percentile intervals.
Fewer than three seeds give no interval: its ends are NaN, and `Interval.known` is False.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import scipy  # loads scipy.stats at its first use: a training run does not wait for it
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]

BINS = 20  # parts into which a run without tasks is divided
FEWEST = 3
"""Seeds below which there is no interval."""
CONFIDENCE = 0.95
REPLICATES = 10_000
TAUS = 101  # points of a performance profile


class Interval(NamedTuple):
    """An estimate and its interval; `low` and `high` are NaN if there are too few seeds for one."""

    estimate: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))


def _values(values: ArrayLike) -> Array:
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(flat):
        raise ValueError("statistics over no seeds: give at least one value")
    return flat


# ------------------------------------------------------------------------------------------------ t-tests


@dataclass(frozen=True)
class Difference:
    """A mean difference, its standard error and degrees of freedom (NaN with too few seeds)."""

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
        half = float(scipy.stats.t.ppf((1 + confidence) / 2, self.df)) * self.error
        return Interval(self.estimate, self.estimate - half, self.estimate + half)

    @property
    def p(self) -> float:
        """Two-sided p of no difference."""
        if not self.known:
            return math.nan
        if self.error == 0:
            return 1.0 if self.estimate == 0 else 0.0
        return 2 * float(scipy.stats.t.cdf(-abs(self.estimate) / self.error, self.df))

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
        return float(scipy.stats.t.cdf(-nearest / self.error, self.df))

    def detectable(self, power: float = 0.8, confidence: float = CONFIDENCE) -> float:
        """The smallest true difference that these seeds would have shown with this probability: the sum of two
        quantiles of t times the standard error (a good approximation of the noncentral t)."""
        if not self.known:
            return math.nan
        if self.error == 0:
            return 0.0
        return float(scipy.stats.t.ppf([(1 + confidence) / 2, power], self.df).sum()) * self.error


def against(values: ArrayLike, constant: float) -> Difference:
    """Mean of one arm minus a number without an error."""
    gap = _values(values) - constant
    if len(gap) < FEWEST:
        return Difference(float(gap.mean()), math.nan, math.nan, len(gap))
    return Difference(float(gap.mean()), float(scipy.stats.sem(gap)), len(gap) - 1, len(gap))


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Mean over seeds, and Student's t interval."""
    return against(values, 0.0).interval(confidence)


def paired(a: ArrayLike, b: ArrayLike) -> Difference:
    """Mean of a - b over seeds that both arms share, in the same order."""
    first, second = _values(a), _values(b)
    if len(first) != len(second):
        raise ValueError(f"paired seeds come in pairs, not {len(first)} and {len(second)}")
    return against(first - second, 0.0)


def paired_by_parent(
    mine: Mapping[tuple[Any, int], float], control: Mapping[tuple[Any, int], float]
) -> Difference | None:
    """Mean difference of forks, by parent and replicate; None if no pair has two numbers.

    Replicates of one parent share its past, so they are not independent. With three or more parents, each parent counts
    once, as the mean over its replicates. With fewer, each replicate counts, and the result holds for these parents
    only.
    """
    gaps: dict[Any, list[float]] = {}
    for pair in sorted(mine.keys() & control.keys()):
        if math.isfinite(gap := mine[pair] - control[pair]):
            gaps.setdefault(pair[0], []).append(gap)
    if not gaps:
        return None
    several = len(gaps) >= FEWEST
    units = [float(np.mean(row)) for row in gaps.values()] if several else [g for row in gaps.values() for g in row]
    return against(units, 0.0)


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


# ------------------------------------------------------------------------------------------------ bootstraps


def bootstrap(
    samples: Sequence[ArrayLike],
    statistic: Callable[[Sequence[Array]], Array],
    *,
    paired: bool = False,
    confidence: float = CONFIDENCE,
    replicates: int = REPLICATES,
    seed: int = 0,
    batch: int | None = None,
) -> tuple[Array, Array, Array]:
    """A statistic of several samples, and the ends of its percentile interval: three arrays of one shape [...].

    Values are drawn with replacement within each sample. So, if each sample is a task, every replicate holds every task
    as often as the data do (Agarwal et al. 2021). The interval of the mean of five seeds is too narrow by about a
    third; for a single mean use `mean_interval`.

    Args:
        samples: One row of values for each task or arm, [n_i].
        statistic: Samples [n_i] → [...], and replicates of them [R, n_i] → [..., R]. Replicates for which it is NaN do
            not count.
        paired: Draw the same places from every sample.
        batch: Replicates made at once; all, if None.
    """
    rows = [_values(sample) for sample in samples]
    estimate = np.asarray(statistic(rows), dtype=np.float64)
    if min(map(len, rows)) < FEWEST:
        unknown = np.full_like(estimate, math.nan)
        return estimate, unknown, unknown
    with np.errstate(over="ignore", invalid="ignore"):  # scipy's standard error, which nothing reads
        spread = scipy.stats.bootstrap(
            rows,
            lambda *drawn, axis: statistic(drawn),
            n_resamples=replicates,
            batch=batch,
            vectorized=True,
            paired=paired,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    low, high = np.nanquantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2], axis=-1)
    return estimate, low, high


def _interval(ends: Sequence[Array]) -> Interval:
    return Interval(*map(float, ends))


def bootstrap_mean(values: ArrayLike) -> Interval:
    """Mean and its 95 % bootstrap interval."""
    return _interval(bootstrap([values], task_mean))


def iqm(tasks: Sequence[Array]) -> Array:
    """Interquartile mean of all runs: the mean without the lowest and the highest quarter, [..., n_i] → [...]."""
    pooled: Array = scipy.stats.trim_mean(np.concatenate(tasks, axis=-1), 0.25, axis=-1)
    return pooled


def task_mean(tasks: Sequence[Array]) -> Array:
    """Mean over tasks of each task's mean."""
    means: Array = np.mean([row.mean(axis=-1) for row in tasks], axis=0)
    return means


def task_median(tasks: Sequence[Array]) -> Array:
    """Median over tasks of each task's mean; of a single task, the median of its seeds."""
    medians: Array = np.median(tasks[0] if len(tasks) == 1 else np.stack([row.mean(axis=-1) for row in tasks], -1), -1)
    return medians


def optimality_gap(tasks: Sequence[Array]) -> Array:
    """Mean distance of runs below 1; a score above 1 counts as 1."""
    gap: Array = 1.0 - np.minimum(np.concatenate(tasks, axis=-1), 1.0).mean(axis=-1)
    return gap


STATISTICS: dict[str, Callable[[Sequence[Array]], Array]] = {
    "IQM": iqm,
    "mean": task_mean,
    "median": task_median,
    "optimality gap": optimality_gap,
}


def aggregate(tasks: Sequence[ArrayLike], **options: Any) -> dict[str, Interval]:
    """Each of `STATISTICS` of scores, one row of seeds for every task (`options`: those of `bootstrap`).

    As in rliable, mean and median are those of the tasks' means, and the interquartile mean is that of all runs. The
    optimality gap assumes that a score of 1 is good enough.
    """
    if not len(tasks) or not all(np.size(row) for row in tasks):
        raise ValueError("aggregate: give at least one task, and at least one run for each")
    every = bootstrap(tasks, lambda rows: np.stack([statistic(rows) for statistic in STATISTICS.values()]), **options)
    return {name: _interval(ends) for name, ends in zip(STATISTICS, zip(*every, strict=True), strict=True)}


def improvement(a: Sequence[ArrayLike], b: Sequence[ArrayLike], **options: Any) -> Interval:
    """Probability that a run of `a` has a larger score than one of `b` in the same task, mean over tasks; ties count
    half (the Mann-Whitney U divided by the number of pairs; `options`: those of `bootstrap`)."""

    def wins(rows: Sequence[Array]) -> Array:
        gaps = [x[..., :, None] - y[..., None, :] for x, y in zip(rows[: len(a)], rows[len(a) :], strict=True)]
        share: Array = np.mean([((gap > 0) + 0.5 * (gap == 0)).mean(axis=(-2, -1)) for gap in gaps], axis=0)
        return share

    return _interval(bootstrap([*a, *b], wins, **options))


@dataclass(frozen=True)
class Profile:
    """Share of runs that score above each threshold: [T] thresholds, shares and the ends of their 95 % interval (NaN
    from too few seeds), pointwise."""

    thresholds: Array
    share: Array
    low: Array
    high: Array


def profile(tasks: Sequence[ArrayLike], thresholds: Array, *, replicates: int = 2_000, **options: Any) -> Profile:
    """Performance profile of runs (the score distribution of Agarwal et al. 2021; `options`: those of `bootstrap`)."""

    def above(rows: Sequence[Array]) -> Array:
        pooled = np.concatenate(rows, axis=-1)
        return np.stack([(pooled > tau).mean(axis=-1) for tau in thresholds])

    return Profile(thresholds, *bootstrap(tasks, above, replicates=replicates, **options))


@dataclass(frozen=True)
class Gap:
    """The share of the gap between the plain agent and the oracle that an arm closes.

    `fraction` is None if the plain agent is not below the oracle. `above` is True if the arm is better than the oracle,
    by an interval that excludes zero: then it optimises better, beyond keeping plasticity.
    """

    fraction: Interval | None
    above: bool
    seeds: int


def gap_closed(
    arm: ArrayLike, plain: ArrayLike, oracle: ArrayLike, *, higher_is_better: bool = True, **options: Any
) -> Gap:
    """(arm - plain) / (oracle - plain) of the means over seeds that all three share, in the same order; the bootstrap
    draws the same seeds from all three (`options`: those of `bootstrap`)."""
    sign = 1.0 if higher_is_better else -1.0
    rows = [sign * _values(x) for x in (arm, plain, oracle)]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"the three arms share their seeds, not {[len(row) for row in rows]}")
    first, low, high = rows
    confidence = options.get("confidence", CONFIDENCE)
    beyond = paired(first, high).interval(confidence)
    above = beyond.known and beyond.low > 0
    room = paired(high, low).interval(confidence)
    if not room.known or room.low <= 0:
        return Gap(None, above, len(first))

    def share(drawn: Sequence[Array]) -> Array:
        mine, base, top = (row.mean(axis=-1) for row in drawn)
        with np.errstate(divide="ignore", invalid="ignore"):  # a replicate without a gap has no share of it
            closed: Array = np.where(top > base, (mine - base) / (top - base), math.nan)
        return closed

    return Gap(_interval(bootstrap(rows, share, paired=True, **options)), above, len(first))


def gap_by_seed(
    arm: Mapping[int, float], plain: Mapping[int, float], oracle: Mapping[int, float], *, higher_is_better: bool = True
) -> Gap | None:
    """`gap_closed` of values by seed; None if too few seeds are shared, or a value is not finite."""
    shared = sorted(arm.keys() & plain.keys() & oracle.keys())
    rows = [[values[seed] for seed in shared] for values in (arm, plain, oracle)]
    if len(shared) < FEWEST or not np.isfinite(rows).all():
        return None
    return gap_closed(*rows, higher_is_better=higher_is_better)


# ------------------------------------------------------------------------------------------------ many tests, ranks


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) of p-values that belong together; NaN stays, and does not count."""
    known = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    corrected, worst = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * ps[i]))
        corrected[i] = worst
    return corrected


def spearman(x: ArrayLike, y: ArrayLike) -> Array:
    """Spearman's rank correlation along the last axis; NaN where one of the two does not vary. Both may be NaN in the
    same places, which do not count."""
    a, b = (scipy.stats.rankdata(values, axis=-1, nan_policy="omit") for values in (x, y))
    a, b = (ranks - np.nanmean(ranks, axis=-1, keepdims=True) for ranks in (a, b))
    size = np.sqrt(np.nansum(a * a, axis=-1) * np.nansum(b * b, axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: Array = np.where(size > 0, np.nansum(a * b, axis=-1) / size, math.nan)
    return rho


def correlation(points: Mapping[int, Sequence[tuple[float, float]]], *, replicates: int = 2_000) -> Interval:
    """Spearman's rank correlation of pairs over runs, with its bootstrap interval: seeds are drawn, each with all of
    its runs."""
    rows = [np.asarray(pairs, dtype=np.float64).reshape(-1, 2) for pairs in points.values() if len(pairs)]
    if not rows:
        return Interval(math.nan, math.nan, math.nan)
    table = np.full((len(rows), max(map(len, rows)), 2), math.nan)  # seeds of fewer runs are filled up with NaN
    for place, pairs in enumerate(rows):
        table[place, : len(pairs)] = pairs

    def of_seeds(drawn: Sequence[Array]) -> Array:
        pooled = table[drawn[0].astype(int)].reshape(*drawn[0].shape[:-1], -1, 2)
        return spearman(pooled[..., 0], pooled[..., 1])

    seeds = np.arange(len(rows), dtype=np.float64)
    estimate = float(of_seeds([seeds]))
    if math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan)
    batch = max(1, 4_000_000 // table.size)  # a bound on memory
    return _interval(bootstrap([seeds], of_seeds, replicates=replicates, batch=batch))

"""Statistics over seeds, compared with scipy and with numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as theirs

from pliant.lab.statistics import (
    Difference,
    Interval,
    against,
    bootstrap,
    bootstrap_mean,
    gap_closed,
    improvement,
    iqm,
    mean_interval,
    paired,
    task_mean,
    welch,
)

A, B = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0]
rng = np.random.default_rng(0)
LONG = [rng.normal(0.3, 1.0, 9), rng.normal(0.0, 3.0, 6)]


@pytest.mark.parametrize(
    ("df", "t"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (9, 2.2622), (30, 2.0423), (1e6, 1.9600)]
)
def test_intervals_and_p_values_equal_those_of_a_printed_table(df: float, t: float) -> None:
    assert Difference(0.0, 1.0, df, 3).interval()[1:] == pytest.approx((-t, t), abs=5e-5)
    assert Difference(t, 1.0, df, 3).p == pytest.approx(0.05, abs=5e-6)


def test_the_interval_of_a_mean_is_that_of_students_t() -> None:
    # By hand: mean 3, deviation sqrt(2.5), t = 2.776445 with 4 degrees of freedom.
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert mean_interval(A) == pytest.approx((3.0, 3.0 - half, 3.0 + half), rel=1e-6)
    low, high = theirs.t.interval(0.9, 8, loc=LONG[0].mean(), scale=theirs.sem(LONG[0]))
    assert mean_interval(LONG[0], 0.9)[1:] == pytest.approx((low, high))


@pytest.mark.parametrize("seeds", [1, 2])
def test_no_interval_from_fewer_than_three_seeds(seeds: int) -> None:
    few = A[:seeds]
    for interval in (
        mean_interval(few),
        bootstrap_mean(few),
        Interval(*map(float, bootstrap([A, few], iqm))),
        paired(few, few).interval(),
        welch(A, few).interval(),
        against(few, 1.0).interval(),
        improvement([A], [few]),
    ):
        assert not interval.known and not math.isnan(interval.estimate)
    difference = welch(few, A)
    assert all(math.isnan(x) for x in (difference.p, difference.equivalence_p(1.0), difference.detectable()))
    assert gap_closed(few, few, B[:seeds]).fraction is None and not gap_closed(few, few, B[:seeds]).above
    assert mean_interval(A[:3]).known


def test_an_interval_without_seeds_is_refused() -> None:
    with pytest.raises(ValueError, match="no seeds"):
        mean_interval([])


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9, 20])
def test_the_interquartile_mean_is_a_trimmed_mean(count: int) -> None:
    values = rng.normal(size=count)
    kept = np.sort(values)[count // 4 : count - count // 4]
    assert iqm([values]) == pytest.approx(kept.mean())


def test_the_interquartile_mean_of_a_known_sample() -> None:
    assert iqm([np.array([100.0, 1.0, 2.0, 3.0, 4.0, -50.0, 5.0, 6.0])]) == 3.5  # the mean of 2, 3, 4, 5


def test_the_bootstrap_draws_within_strata() -> None:
    # Two tasks, each without spread: the mean is the same in every sample, unless seeds are drawn across tasks.
    assert bootstrap([[0.0] * 4, [10.0] * 4], task_mean) == (5.0, 5.0, 5.0)
    mine = bootstrap([LONG[0]], task_mean, replicates=4000)
    interval = theirs.bootstrap((LONG[0],), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert mine[1:] == pytest.approx((interval.low, interval.high), abs=0.05)
    assert bootstrap([LONG[0]], iqm, replicates=100) == bootstrap([LONG[0]], iqm, replicates=100)
    assert bootstrap([LONG[0]], iqm, replicates=100) != bootstrap([LONG[0]], iqm, replicates=100, seed=1)


def test_the_bootstrap_draws_in_a_fixed_order() -> None:
    """Stored results depend on it: seeds of one task after the other, or the same seeds for every arm."""

    def ends(means: np.ndarray) -> list[float]:
        return [float(np.quantile(means, q)) for q in (0.025, 0.975)]

    def draw(count: int) -> np.ndarray:
        return generator.integers(count, size=(500, count))

    generator = np.random.default_rng(7)
    means = [row[draw(len(row))].mean(axis=1) for row in LONG]
    assert bootstrap(LONG, task_mean, replicates=500, seed=7)[1:] == pytest.approx(ends((means[0] + means[1]) / 2))
    generator = np.random.default_rng(7)
    places, pair = draw(6), [LONG[0][:6], LONG[1]]
    means = [row[places].mean(axis=1) for row in pair]
    expected = ends((means[0] + means[1]) / 2)
    assert bootstrap(pair, task_mean, paired=True, replicates=500, seed=7)[1:] == pytest.approx(expected)


def test_a_paired_difference_equals_that_of_scipy() -> None:
    difference, expected = paired(A, B), theirs.ttest_rel(A, B)
    assert (difference.estimate, difference.df, difference.seeds) == (-3.0, 4, 5)
    assert difference.p == pytest.approx(expected.pvalue)
    assert difference.interval()[1:] == pytest.approx(tuple(expected.confidence_interval()))
    with pytest.raises(ValueError, match="pairs"):
        paired(A, B[:4])


def test_welchs_difference_equals_that_of_scipy() -> None:
    difference, expected = welch(*LONG), theirs.ttest_ind(*LONG, equal_var=False)
    assert difference.p == pytest.approx(expected.pvalue)
    assert difference.df == pytest.approx(expected.df)
    assert difference.interval(0.9)[1:] == pytest.approx(tuple(expected.confidence_interval(0.9)))
    # By hand: variances 2.5 and 10, standard error sqrt(2.5), 5.88 degrees of freedom.
    assert (welch(A, B).error, welch(A, B).df) == pytest.approx((math.sqrt(2.5), 6.25 / (0.25 / 4 + 4 / 4)))


def test_a_difference_from_a_number_equals_that_of_scipy() -> None:
    difference, expected = against(A, 2.0), theirs.ttest_1samp(A, 2.0)
    assert (difference.estimate, difference.p) == (1.0, pytest.approx(expected.pvalue))


def test_the_interval_of_values_without_spread_is_a_point() -> None:
    for difference in (paired([2.0] * 4, [1.0] * 4), welch([2.0] * 4, [1.0] * 4)):
        assert difference.interval() == Interval(1.0, 1.0, 1.0)
        assert (difference.p, difference.detectable()) == (0.0, 0.0)
        assert (difference.equivalence_p(2.0), difference.equivalence_p(0.5)) == (0.0, 1.0)
    assert paired(A, A).p == 1.0


@pytest.mark.parametrize("margin", [0.5, 2.0, 3.5, 6.0])
def test_equivalence_is_two_one_sided_tests(margin: float) -> None:
    gap = np.array(A) - np.array(B)
    expected = max(
        theirs.ttest_1samp(gap, -margin, alternative="greater").pvalue,
        theirs.ttest_1samp(gap, margin, alternative="less").pvalue,
    )
    assert paired(A, B).equivalence_p(margin) == pytest.approx(expected)
    # It agrees with the 90 % interval.
    inside = -margin < paired(A, B).interval(0.9).low and paired(A, B).interval(0.9).high < margin
    assert (expected < 0.05) == inside


def test_a_margin_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="margin"):
        paired(A, B).equivalence_p(0.0)


@pytest.mark.parametrize("count", [5, 10, 30])
def test_the_detectable_difference_has_the_given_power(count: int) -> None:
    gap = np.random.default_rng(count).normal(size=count)
    difference = paired(gap, np.zeros(count))
    shift, critical = difference.detectable(0.8) / difference.error, theirs.t.ppf(0.975, count - 1)
    power = theirs.nct.sf(critical, count - 1, shift) + theirs.nct.cdf(-critical, count - 1, shift)
    assert power == pytest.approx(0.8, abs=0.03)
    assert difference.detectable(0.9) > difference.detectable(0.8)


def test_the_probability_of_improvement_is_that_of_mann_and_whitney() -> None:
    probability = improvement(LONG[:1], LONG[1:])
    expected = theirs.mannwhitneyu(*LONG).statistic / (len(LONG[0]) * len(LONG[1]))
    assert probability.estimate == pytest.approx(expected) and probability.low < expected < probability.high
    assert improvement([A], [A]).estimate == 0.5  # ties count half
    assert improvement([[6.0] * 5], [A]) == Interval(1.0, 1.0, 1.0)


def test_the_closed_share_of_the_gap_and_its_interval() -> None:
    plain, oracle = np.array([0.2, 0.3, 0.25, 0.22]), np.array([0.8, 0.9, 0.86, 0.83])
    half = (plain + oracle) / 2
    closed = gap_closed(half, plain, oracle)
    assert closed.fraction == pytest.approx(Interval(0.5, 0.5, 0.5)) and not closed.above and closed.seeds == 4
    # Seeds are drawn together: an arm at plain plus a fifth of each seed's own gap has no spread.
    assert gap_closed(plain + 0.2 * (oracle - plain), plain, oracle).fraction == pytest.approx((0.2, 0.2, 0.2))
    above = gap_closed(np.add(oracle, [0.1, 0.2, 0.1, 0.15]), plain, oracle)
    assert above.above and above.fraction is not None and above.fraction.low > 1
    # A difference within the noise is not above.
    assert not gap_closed(np.add(oracle, [0.3, -0.2, 0.1, 0.0]), plain, oracle).above
    # For errors, lower is better.
    assert gap_closed(-half, -plain, -oracle, higher_is_better=False).fraction == closed.fraction
    assert gap_closed(-half, -plain, -oracle, higher_is_better=True).fraction is None
    # Without a gap there is no share.
    assert gap_closed(half, plain, np.add(plain, [0.1, -0.1, 0.05, -0.06])).fraction is None
    with pytest.raises(ValueError, match="share"):
        gap_closed(half, plain, oracle[:3])

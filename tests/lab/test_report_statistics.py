"""The statistics of a report, against numbers that rliable computed and against definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as theirs

from pliant.lab.analysis.comparisons import binned, curve
from pliant.lab.statistics import aggregate, correlation, holm, improvement, profile, spearman

# Golden values of rliable 1.2 (archived; not with pandas 3), in an environment of its own:
#     python -m venv rliable && rliable/bin/pip install rliable "pandas<3"
#     from rliable import library, metrics
#     f = lambda x: np.array([metrics.aggregate_iqm(x), metrics.aggregate_mean(x), metrics.aggregate_median(x),
#                             metrics.aggregate_optimality_gap(x)])
#     library.get_interval_estimates({"A": A, "B": B}, f, reps=50000)
#     library.get_interval_estimates({"AB": (A, B)}, metrics.probability_of_improvement, reps=20000)
#     library.create_performance_profile({"A": A, "B": B}, TAUS, reps=20000)
# Runs × tasks. Estimates are exact; the ends of intervals are as precise as a bootstrap of that length.
A = np.array(
    [
        [0.667, 0.535, 0.458, 0.698],
        [0.443, 0.953, 0.723, 0.652],
        [0.186, 0.096, 0.203, 0.751],
        [0.642, 0.148, 0.745, 0.33],
        [0.331, 1.236, 0.611, 0.7],
    ]
)
B = np.array(
    [
        [0.443, 0.18, 0.913, 2.906],
        [0.274, 1.264, 1.356, 1.343],
        [0.469, 0.569, 0.278, 0.713],
        [1.813, 0.418, 0.095, 0.772],
        [1.362, 0.617, 2.254, 0.652],
    ]
)
NAMES = ("IQM", "mean", "median", "optimality gap")
POINTS = {
    "A": (0.5737000000000001, 0.5554000000000001, 0.5708, 0.45640000000000003),
    "B": (0.7755000000000001, 0.9345500000000001, 0.9257000000000001, 0.33035000000000003),
}
ENDS = {
    "A": ((0.4214, 0.4372, 0.4268, 0.351), (0.6783, 0.6732, 0.6678, 0.5655)),
    "B": ((0.5162, 0.6528, 0.5894, 0.2042), (1.1231, 1.246, 1.2671, 0.4584)),
}
TAUS = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
SHARES = {"A": (1.0, 0.8, 0.6, 0.15, 0.05, 0.0, 0.0), "B": (1.0, 0.9, 0.65, 0.45, 0.35, 0.15, 0.1)}
LOW = {"A": (1.0, 0.65, 0.4, 0.05, 0.0, 0.0, 0.0), "B": (1.0, 0.75, 0.45, 0.25, 0.15, 0.0, 0.0)}
HIGH = {"A": (1.0, 0.95, 0.8, 0.3, 0.15, 0.0, 0.0), "B": (1.0, 1.0, 0.85, 0.65, 0.55, 0.3, 0.25)}
TABLES = {"A": A, "B": B}


@pytest.mark.parametrize("name", ["A", "B"])
def test_aggregates_equal_those_of_rliable(name: str) -> None:
    intervals = aggregate(list(TABLES[name].T))
    assert [intervals[n].estimate for n in NAMES] == pytest.approx(POINTS[name], rel=1e-14)
    for end, expected in zip(("low", "high"), ENDS[name], strict=True):
        assert [getattr(intervals[n], end) for n in NAMES] == pytest.approx(expected, abs=0.012)


def test_the_probability_of_improvement_equals_that_of_rliable() -> None:
    probability = improvement(list(A.T), list(B.T))
    assert probability.estimate == pytest.approx(0.32, rel=1e-14)
    assert probability[1:] == pytest.approx((0.15, 0.51), abs=0.015)
    assert improvement(list(B.T), list(A.T)).estimate == pytest.approx(0.68)
    assert improvement([[1.0, 2.0]], [[2.0, 3.0]]).estimate == 0.125  # the tie counts half, of four pairs


@pytest.mark.parametrize("name", ["A", "B"])
def test_performance_profiles_equal_those_of_rliable(name: str) -> None:
    profiles = profile(list(TABLES[name].T), TAUS)
    assert profiles.share == pytest.approx(SHARES[name], abs=1e-14)
    assert profiles.low == pytest.approx(LOW[name], abs=0.051) and profiles.high == pytest.approx(HIGH[name], abs=0.051)


def test_a_profile_counts_scores_strictly_above_the_threshold() -> None:
    assert list(profile([[1.0, 2.0, 3.0]], np.array([1.0, 3.0])).share) == pytest.approx([2 / 3, 0.0])


def test_the_bootstrap_draws_seeds_within_tasks() -> None:
    """Two tasks, each without spread, have no spread together."""
    intervals = aggregate([[0.0] * 4, [1.0] * 4])
    assert all(x.low == x.estimate == x.high for x in intervals.values())


def test_two_seeds_give_no_interval() -> None:
    few, nothing = [[1.0, 2.0]], (math.nan, math.nan)
    assert not any(x.known for x in aggregate([*few, [1.0, 2.0, 3.0]]).values())
    assert not improvement(few, [[1.0, 2.0, 3.0]]).known
    assert np.isnan(profile(few, TAUS).low).all()
    assert correlation({0: [(1.0, 1.0), (2.0, 3.0)], 1: [(3.0, 2.0)]})[1:] == pytest.approx(nothing, nan_ok=True)
    mean_curve = curve([np.array([1.0, 2.0]), np.array([2.0, 3.0])], np.arange(2.0))
    assert list(mean_curve.mean) == [1.5, 2.5] and np.isnan(mean_curve.low).all()


def test_the_median_of_one_task_is_the_median_of_its_seeds() -> None:
    assert aggregate([[1.0, 2.0, 9.0]])["median"].estimate == 2.0
    assert aggregate([[1.0, 2.0, 9.0], [0.0, 0.0, 0.0]])["median"].estimate == 2.0  # of the means 4 and 0


def test_holms_correction_multiplies_sorted_p_values_by_the_number_of_remaining_tests() -> None:
    # By hand: 3 x 0.01, 2 x 0.02, 1 x 0.04; each is at least the one before it and at most 1.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([0.01, math.nan]) == pytest.approx([0.01, math.nan], nan_ok=True)


def test_the_rank_correlation_equals_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, 20).astype(float), rng.normal(size=20)
    assert float(spearman(x, y)) == pytest.approx(theirs.spearmanr(x, y).statistic)
    assert math.isnan(float(spearman(np.ones(4), np.arange(4.0))))


def test_the_bootstrap_of_a_correlation_draws_whole_seeds() -> None:
    """Every seed has the same points on a line, so the ranks agree in every sample."""
    same = correlation({seed: [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)] for seed in range(4)})
    assert same == pytest.approx((1.0, 1.0, 1.0))
    mixed = correlation({seed: [(0.0, 0.0), (1.0, 1.0 if seed % 2 else -1.0)] for seed in range(6)})
    assert mixed.known and mixed.low < mixed.estimate < mixed.high
    # Seeds of equal size are drawn at once, others one by one: a seed with fewer points changes nothing else.
    points = {seed: [(1.0 * seed, 2.0 * (seed % 3)), (seed + 0.5, 1.0)] for seed in range(6)}
    whole, ragged = correlation(points), correlation(points | {9: [(2.0, 2.0)]})
    assert whole.low == pytest.approx(ragged.low, abs=0.15) and whole.high == pytest.approx(ragged.high, abs=0.15)


def test_a_bin_includes_its_right_edge() -> None:
    means = binned(np.array([1.0, 10.0, 11.0, 25.0]), np.array([2.0, 4.0, math.nan, 8.0]), np.array([0.0, 10, 20, 30]))
    assert means == pytest.approx([3.0, math.nan, 8.0], nan_ok=True)


def test_a_curve_ends_with_its_shortest_run() -> None:
    rows = [np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0]), np.array([2.0, math.nan, 9.0])]
    mean_curve = curve(rows, np.arange(3.0))
    assert list(mean_curve.x) == [0.0, 1.0] and list(mean_curve.mean) == [2.0, 3.0]
    assert math.isfinite(mean_curve.low[0]) and math.isnan(mean_curve.low[1])  # no band where fewer seeds have values

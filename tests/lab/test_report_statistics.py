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
# Runs × tasks. Estimates are exact; the ends of intervals are to the digits that a bootstrap of that length promises.
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
def test_aggregates_are_rliables(name: str) -> None:
    found = aggregate(list(TABLES[name].T))
    assert [found[n].estimate for n in NAMES] == pytest.approx(POINTS[name], rel=1e-14)
    for end, expected in zip(("low", "high"), ENDS[name], strict=True):
        assert [getattr(found[n], end) for n in NAMES] == pytest.approx(expected, abs=0.012)


def test_the_probability_of_improvement_is_rliables() -> None:
    found = improvement(list(A.T), list(B.T))
    assert found.estimate == pytest.approx(0.32, rel=1e-14)
    assert found[1:] == pytest.approx((0.15, 0.51), abs=0.015)
    assert improvement(list(B.T), list(A.T)).estimate == pytest.approx(0.68)
    assert improvement([[1.0, 2.0]], [[2.0, 3.0]]).estimate == 0.125  # the tie counts half, of four pairs


@pytest.mark.parametrize("name", ["A", "B"])
def test_performance_profiles_are_rliables(name: str) -> None:
    found = profile(list(TABLES[name].T), TAUS)
    assert found.share == pytest.approx(SHARES[name], abs=1e-14)
    assert found.low == pytest.approx(LOW[name], abs=0.051) and found.high == pytest.approx(HIGH[name], abs=0.051)


def test_above_a_threshold_is_not_at_it() -> None:
    assert list(profile([[1.0, 2.0, 3.0]], np.array([1.0, 3.0])).share) == pytest.approx([2 / 3, 0.0])


def test_seeds_are_drawn_within_tasks() -> None:
    """Two tasks without any spread within them have none together."""
    found = aggregate([[0.0] * 4, [1.0] * 4])
    assert all(x.low == x.estimate == x.high for x in found.values())


def test_two_seeds_give_no_interval() -> None:
    few, nothing = [[1.0, 2.0]], (math.nan, math.nan)
    assert not any(x.known for x in aggregate([*few, [1.0, 2.0, 3.0]]).values())
    assert not improvement(few, [[1.0, 2.0, 3.0]]).known
    assert np.isnan(profile(few, TAUS).low).all()
    assert correlation({0: [(1.0, 1.0), (2.0, 3.0)], 1: [(3.0, 2.0)]})[1:] == pytest.approx(nothing, nan_ok=True)
    found = curve([np.array([1.0, 2.0]), np.array([2.0, 3.0])], np.arange(2.0))
    assert list(found.mean) == [1.5, 2.5] and np.isnan(found.low).all()


def test_the_median_of_one_task_is_that_of_its_seeds() -> None:
    assert aggregate([[1.0, 2.0, 9.0]])["median"].estimate == 2.0
    assert aggregate([[1.0, 2.0, 9.0], [0.0, 0.0, 0.0]])["median"].estimate == 2.0  # of the means 4 and 0


def test_holms_correction() -> None:
    # By hand: 3 x 0.01, 2 x 0.02, 1 x 0.04; never below the one before it, never above 1.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([0.01, math.nan]) == pytest.approx([0.01, math.nan], nan_ok=True)


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, 20).astype(float), rng.normal(size=20)
    assert float(spearman(x, y)) == pytest.approx(theirs.spearmanr(x, y).statistic)
    assert math.isnan(float(spearman(np.ones(4), np.arange(4.0))))


def test_the_correlations_bootstrap_draws_whole_seeds() -> None:
    """Within every seed the same line: whatever is drawn, the ranks agree."""
    same = correlation({seed: [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)] for seed in range(4)})
    assert same == pytest.approx((1.0, 1.0, 1.0))
    mixed = correlation({seed: [(0.0, 0.0), (1.0, 1.0 if seed % 2 else -1.0)] for seed in range(6)})
    assert mixed.known and mixed.low < mixed.estimate < mixed.high
    # Seeds of as many runs are drawn all at once, others one by one: a run without its measure changes nothing else.
    points = {seed: [(1.0 * seed, 2.0 * (seed % 3)), (seed + 0.5, 1.0)] for seed in range(6)}
    whole, ragged = correlation(points), correlation(points | {9: [(2.0, 2.0)]})
    assert whole.low == pytest.approx(ragged.low, abs=0.15) and whole.high == pytest.approx(ragged.high, abs=0.15)


def test_bins_hold_their_right_edge() -> None:
    found = binned(np.array([1.0, 10.0, 11.0, 25.0]), np.array([2.0, 4.0, math.nan, 8.0]), np.array([0.0, 10, 20, 30]))
    assert found == pytest.approx([3.0, math.nan, 8.0], nan_ok=True)


def test_a_curve_ends_with_its_shortest_run() -> None:
    rows = [np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0]), np.array([2.0, math.nan, 9.0])]
    found = curve(rows, np.arange(3.0))
    assert list(found.x) == [0.0, 1.0] and list(found.mean) == [2.0, 3.0]
    assert math.isfinite(found.low[0]) and math.isnan(found.low[1])  # a band of other seeds than beside it is none

"""Schedules of non-stationary problems, compared with their definition."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.envs.schedule import Moment, Schedule

ORDERS = st.lists(st.integers(0, 5), max_size=4).map(tuple)
SHARES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))
RISING = st.lists(st.integers(1, 400), min_size=1, max_size=5, unique=True).map(lambda steps: tuple(sorted(steps)))
TIMES = st.one_of(st.integers(1, 50).map(lambda n: {"every": n}), RISING.map(lambda at: {"at": at}))


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    return Schedule(**draw(TIMES), order=draw(ORDERS), abruptness=draw(SHARES))


@given(schedule=schedules(), steps=st.integers(0, 500))
def test_a_moment_is_within_its_task(schedule: Schedule, steps: int) -> None:
    moment = schedule.moment(steps)
    assert moment.task == schedule.task(steps) == sum(1 for t in range(1, 501) if edge(schedule, t) <= steps)
    assert schedule.begin(moment.task) <= steps
    assert moment.level == schedule.level(moment.task)
    assert 0 <= moment.blend < 1


def edge(schedule: Schedule, task: int) -> float:
    """When a task begins, computed in another way."""
    if schedule.every:
        return schedule.every * task
    return schedule.at[task - 1] if task <= len(schedule.at) else float("inf")


@given(schedule=schedules(), task=st.integers(0, 5))
def test_levels_come_in_order(schedule: Schedule, task: int) -> None:
    assert schedule.level(task) == (schedule.order[task % len(schedule.order)] if schedule.order else task)


@given(every=st.integers(1, 60), order=ORDERS, abruptness=SHARES, steps=st.integers(0, 300))
def test_a_period_equals_a_list_of_equal_intervals(
    every: int, order: tuple[int, ...], abruptness: float, steps: int
) -> None:
    at = tuple(every * task for task in range(1, 400 // every + 3))
    regular = Schedule(every, order=order, abruptness=abruptness)
    assert regular.moment(steps) == Schedule(at=at, order=order, abruptness=abruptness).moment(steps)


@given(schedule=schedules(), steps=st.integers(0, 500))
def test_the_blend_is_zero_for_a_fraction_of_the_task_and_then_grows_linearly(schedule: Schedule, steps: int) -> None:
    """It never decreases within a task, and is continuous at the boundary of two tasks."""
    moment = schedule.moment(steps)
    if schedule.abruptness == 1 or (schedule.at and moment.task == len(schedule.at)):
        assert moment == Moment(moment.task, moment.level, moment.level, 0.0)
        return
    begin, end = schedule.begin(moment.task), schedule.begin(moment.task + 1)
    assert moment.next_level == schedule.level(moment.task + 1)
    rest = begin + schedule.abruptness * (end - begin)
    if steps <= rest:
        assert moment.blend == pytest.approx(0, abs=1e-9)
    else:
        assert moment.blend == pytest.approx((steps - rest) / (end - rest))
    following = schedule.moment(steps + 1)
    if following.task == moment.task:
        assert following.blend >= moment.blend
    else:
        assert following.blend == 0 and following.level == moment.next_level


@given(abruptness=st.sampled_from([0.0, 0.5, 0.9]), every=st.integers(10, 100))
def test_a_problem_keeps_its_level_for_the_fraction_abruptness_of_a_task(abruptness: float, every: int) -> None:
    resting = sum(Schedule(every, abruptness=abruptness).moment(s).blend == 0 for s in range(every))
    assert resting == pytest.approx(abruptness * every, abs=1.01)


def test_moments_equal_values_computed_by_hand() -> None:
    schedule = Schedule(10, order=(0, 1), abruptness=0.5)
    assert [schedule.moment(s) for s in (0, 5, 6, 9, 10, 25)] == [
        (0, 0, 1, 0.0),
        (0, 0, 1, 0.0),
        (0, 0, 1, pytest.approx(0.2)),
        (0, 0, 1, pytest.approx(0.8)),
        (1, 1, 0, 0.0),
        (2, 0, 1, 0.0),
    ]
    last = Schedule(at=(4, 6), abruptness=0)
    assert [last.moment(s) for s in (3, 5, 6, 10**12)] == [(0, 0, 1, 0.75), (1, 1, 2, 0.5), (2, 2, 2, 0), (2, 2, 2, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give exactly one of every"),
        ({"every": 5, "at": (5,)}, "give exactly one of every"),
        ({"every": -5}, "every must be at least 0"),
        ({"at": (5, 5)}, "overlap"),
        ({"at": (7, 5)}, "overlap"),
        ({"at": (0, 5)}, "at must be at least 1"),
        ({"every": 5, "order": (0, -1)}, "order"),
        ({"every": 5, "abruptness": 1.5}, "abruptness"),
        ({"every": 5, "abruptness": -0.1}, "abruptness"),
        ({"every": 5, "abruptness": float("nan")}, "abruptness"),
    ],
)
def test_invalid_schedules_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Schedule(**arguments)
    assert "\n" not in str(refused.value)

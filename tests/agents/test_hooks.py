"""Clocks, triggers and the composition of interventions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.agents.clock import At, Clock, Every, Sampling
from pliant.agents.hooks import FORMER_NAMES, Compose, Intervention


def walk(strides: list[int], ratio: float) -> list[Clock]:
    """The clock after each update of a run that steps by `strides` and updates by the replay ratio."""
    clock, credit, seen = Clock(), 0.0, []
    for stride in strides:
        clock = clock.stepped(stride)
        credit += ratio * stride
        while credit >= 1 - 1e-9:
            clock, credit = clock.updated(), credit - 1
            seen.append(clock)
    return seen


@given(
    strides=st.lists(st.integers(1, 20), min_size=1, max_size=60),
    ratio=st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0, 8.0]),
    period=st.integers(1, 50),
)
def test_a_trigger_on_updates_fires_exactly_on_the_multiples_of_its_period(
    strides: list[int], ratio: float, period: int
) -> None:
    clocks = walk(strides, ratio)
    fired = [clock.updates for clock in clocks if Every(period)(clock)]
    assert fired == [n for n in range(1, len(clocks) + 1) if n % period == 0]


@given(
    strides=st.lists(st.integers(1, 20), min_size=1, max_size=60),
    ratio=st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0, 8.0]),
    period=st.integers(1, 50),
)
def test_a_trigger_on_steps_fires_once_for_all_periods_between_two_updates(
    strides: list[int], ratio: float, period: int
) -> None:
    previous = 0
    for clock in walk(strides, ratio):
        crossed = clock.steps // period > previous // period
        assert Every(period, of="steps")(clock) == crossed
        previous = clock.steps


@given(
    ends=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60),
    period=st.integers(1, 7),
)
def test_episodes_have_their_own_clock(ends: list[tuple[int, int, int]], period: int) -> None:
    """A trigger on episodes fires at the first update after its period, and once for all ends between two updates."""
    clock, episodes, seen = Clock(), 0, 0
    for stride, ended, updates in ends:
        clock, episodes = clock.stepped(stride, ended), episodes + ended
        assert clock.episodes == episodes and clock.last_episodes == seen
        for _ in range(updates):
            clock = clock.updated()
            assert Every(period, of="episodes")(clock) == (episodes // period > seen // period)
            assert At((period,), of="episodes")(clock) == (seen < period <= episodes)
            assert clock.read("episodes") == (seen, episodes)
            seen = episodes


def test_a_trigger_on_episodes_fires_as_computed_by_hand() -> None:
    clock = Clock().stepped(4, episodes=2)
    assert (clock.steps, clock.episodes, clock.last_episodes) == (4, 2, 0)
    clock = clock.updated()
    assert clock.read("episodes") == (0, 2) and Every(2, of="episodes")(clock)
    # The second update of the same step must not see the same end again.
    clock = clock.updated()
    assert clock.read("episodes") == (2, 2) and not Every(2, of="episodes")(clock)
    assert clock.stepped(4).stepped(4, episodes=1).updated().read("episodes") == (2, 3)


def test_start_and_stop_bound_the_firings() -> None:
    clocks = walk([1] * 100, 1.0)
    assert [c.updates for c in clocks if Every(10, start=25, stop=60)(c)] == [30, 40, 50, 60]
    assert [c.updates for c in clocks if Every(10, stop=55)(c)] == [10, 20, 30, 40, 50]


def test_nothing_fires_at_zero() -> None:
    for of in ("updates", "steps", "episodes"):
        assert not Every(1, of=of)(Clock())  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 200), max_size=5), st.integers(1, 7))
def test_each_moment_fires_once(moments: list[int], stride: int) -> None:
    trigger = At(tuple(moments), of="steps")
    clocks = walk([stride] * 40, 1 / stride)
    fired = [c.steps for c in clocks if trigger(c)]
    assert fired == sorted({-(-m // stride) * stride for m in moments if m <= clocks[-1].steps})


@pytest.mark.parametrize(
    "make", [lambda: Every(0), lambda: Every(5, of="frames"), lambda: At((0,)), lambda: At((1,), of="tasks")]
)
def test_invalid_triggers_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"at least 1|unknown clock"):
        make()


@dataclass(frozen=True)
class Inner:
    x: int = 0
    y: int = 0


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    z: int = 0


class Setter(Intervention):
    def __init__(self, name: str, reserves: tuple[str, ...] = (), edits: tuple[str, ...] = (), **fields: int) -> None:
        super().__init__()
        self.name, self.reserves, self.edits, self.fields = name, reserves, edits, fields  # type: ignore[misc]

    def configure(self, config: Outer) -> Outer:
        inner = {k: v for k, v in self.fields.items() if k != "z"}
        config = replace(config, inner=replace(config.inner, **inner))
        return replace(config, z=self.fields["z"]) if "z" in self.fields else config


def test_changes_of_different_fields_are_combined() -> None:
    config = Compose([Setter("a", x=1), Setter("b", y=2), Setter("c", z=3)]).configure(Outer())
    assert config == Outer(Inner(1, 2), 3)


def test_two_interventions_that_set_one_field_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"b and a exclude each other: both set agent\.inner\.x"):
        Compose([Setter("a", x=1), Setter("b", x=2)]).configure(Outer())


def test_two_interventions_that_reserve_one_resource_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="b and a exclude each other: both reserve head"):
        Compose([Setter("a", ("head",)), Setter("b", ("encoder", "head"))])


def test_an_edit_of_a_reserved_resource_is_refused_by_name_in_either_order() -> None:
    reserving, editor = Setter("a", reserves=("head",)), Setter("b", edits=("encoder", "head"))
    with pytest.raises(ValueError, match="b and a exclude each other: a reserves, and b edits, head"):
        Compose([reserving, editor])
    with pytest.raises(ValueError, match="a and b exclude each other: a reserves, and b edits, head"):
        Compose([editor, reserving])


@pytest.mark.parametrize(("former", "new"), FORMER_NAMES.items())
def test_a_former_name_of_a_hook_is_refused_with_the_new_one(former: str, new: str) -> None:
    message = rf"Mine\.{former}: .* is now called {new}"
    with pytest.raises(TypeError, match=message):
        type("Mine", (Setter,), {former: ("head",)})
    assert hasattr(Intervention, new) and not hasattr(Intervention, former)
    mine = type("Mine", (Setter,), {})("a")
    setattr(mine, former, ("head",))
    with pytest.raises(TypeError, match=message):
        Compose([mine])


def test_edits_exclude_neither_each_other_nor_the_same_interventions_reservation() -> None:
    assert len(Compose([Setter("a", edits=("head",)), Setter("b", edits=("head",))])) == 2
    assert len(Compose([Setter("a", reserves=("head",), edits=("head",)), Setter("b", edits=("encoder",))])) == 2


def test_the_empty_composition_is_the_identity() -> None:
    none, sampling = Compose(), Sampling(32, 1, 0.99, 1.0)
    assert none.configure(Outer()) == Outer()
    assert none.schedule(sampling, Clock()) is sampling
    assert none.penalty(None, "critic") == 0.0  # type: ignore[arg-type]
    assert not none.state_dict()


def test_a_composition_is_an_intervention_and_nests() -> None:
    inner = Compose([Setter("a", x=1)])
    inner.name = "pair"
    assert Compose([inner, Setter("b", y=2)]).configure(Outer()) == Outer(Inner(1, 2))

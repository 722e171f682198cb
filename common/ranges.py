"""The legal range of every number of every configuration, declared beside the number and checked in one place.

    batch_size: Annotated[int, at_least(1, "transitions", most=1_000_000, why="a batch is in memory at once")] = 64
    gamma: Annotated[float, between(0, 1)] = 0.99

A range is metadata of a type annotation. Three consumers use it: `check_numbers` for the fields of a configuration,
`checked` for the parameters of a constructor (interventions, monitors, drifts), and `specs.convert` for the values of
specs. Command lines of `argparse` use it by `lab/commands/arguments.py`. A float that is not finite is always refused,
even where no range is declared.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral, Real
from typing import Annotated, Any, TypeAlias, TypeVar

COUNTED = 2**62
"""The largest count: clocks and indices are whole numbers of 64 bits."""
LARGEST = 1e30
"""The largest size of a float: products of larger numbers overflow single precision (3.4e38)."""

F = TypeVar("F", bound=Callable[..., Any])


class OutOfRange(ValueError):
    """A number that is not finite or not in its range. The message is one line: name, bound, unit and value.

    Attributes:
        name: The number's dotted name (`optimizer.lr`).
        complaint: The rest of the message (`must be above 0, not nan`).
    """

    def __init__(self, name: str, complaint: str) -> None:
        super().__init__(name, complaint)
        self.name, self.complaint = name, complaint

    def __str__(self) -> str:
        return f"{self.name} {self.complaint}".lstrip()

    def named(self, name: str) -> OutOfRange:
        """The same complaint of a number with another name."""
        return OutOfRange(name, self.complaint)


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`.

    Attributes:
        low, high: The bounds, which are legal themselves unless `above` (for low) or `below` (for high) is set.
        unit: What is counted, in the plural ("environment steps"); empty for a number without a unit.
        open_end: Is `high` a bound of reason rather than of meaning? Then messages name the lower bound alone, as long
            as the upper bound holds.
        why: Reason of the upper bound; part of the message where a number exceeds it.
        hint: What to use instead; part of every other message about a finite number.
    """

    low: float
    high: float
    unit: str = ""
    above: bool = False
    below: bool = False
    open_end: bool = False
    why: str = ""
    hint: str = ""

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        """In words: `at least 1 transition`, `between 0 and 1`."""
        if self.open_end:
            if self.low == -self.high:
                return f"between {spelled(self.low)} and {spelled(self.high)}{self._unit(2)}"
            return f"{'above' if self.above else 'at least'} {spelled(self.low)}{self._unit(self.low)}"
        if self.above or self.below:
            lower = f"{'above' if self.above else 'at least'} {spelled(self.low)}"
            return f"{lower} and {'below' if self.below else 'at most'} {spelled(self.high)}{self._unit(self.high)}"
        return f"between {spelled(self.low)} and {spelled(self.high)}{self._unit(self.high)}"

    def check(self, value: Any, name: str = "") -> None:
        """Refuse a number that is not in the range (OutOfRange)."""
        if not finite(value):
            finite_too = "a finite number, " if self.open_end else ""
            raise OutOfRange(name, f"must be {finite_too}{self}, not {spelled(value)}")
        if value in self:
            return
        if self.open_end and value > self.low:
            reason = f": {self.why}" if self.why else ""
            raise OutOfRange(
                name, f"must be at most {spelled(self.high)}{self._unit(self.high)}, not {spelled(value)}{reason}"
            )
        raise OutOfRange(name, f"must be {self}, not {spelled(value)}{'; ' if self.hint else ''}{self.hint}")

    def _unit(self, number: float) -> str:
        return f" {self.unit.removesuffix('s') if number == 1 else self.unit}" if self.unit else ""


def at_least(low: float, unit: str = "", *, most: float | None = None, why: str = "") -> Range:
    """From `low` on, up to a bound of reason (`most`, by default the largest count)."""
    if most is None:
        most, why = (COUNTED, "clocks and indices have 64 bits") if isinstance(low, int) else (LARGEST, OVERFLOWS)
    return Range(low, most, unit, open_end=True, why=why)


def above(low: float, unit: str = "", *, most: float = LARGEST, why: str = "", hint: str = "") -> Range:
    """More than `low`, up to a bound of reason."""
    return Range(low, most, unit, above=True, open_end=True, why=why or OVERFLOWS, hint=hint)


def between(
    low: float, high: float, unit: str = "", *, above: bool = False, below: bool = False, hint: str = ""
) -> Range:
    """From `low` to `high`; `above` and `below` exclude the bounds themselves."""
    return Range(low, high, unit, above, below, hint=hint)


OVERFLOWS = "larger numbers overflow single precision"
AT_ONCE = "all of it is in memory at once"

# The numbers that occur again and again.
Share: TypeAlias = Annotated[float, between(0, 1)]
"""A probability, a discount or another share of a whole."""
ShareBelow: TypeAlias = Annotated[float, between(0, 1, below=True)]
SomeShare: TypeAlias = Annotated[float, between(0, 1, above=True)]
Positive: TypeAlias = Annotated[float, above(0)]
NotNegative: TypeAlias = Annotated[float, at_least(0.0)]
Number: TypeAlias = Annotated[float, Range(-LARGEST, LARGEST, open_end=True, why=OVERFLOWS)]
"""Any finite number."""
Moment: TypeAlias = Annotated[int, at_least(1)]
"""A moment of a clock that a component's `of` names, from 1 on."""
Period: TypeAlias = Annotated[int, at_least(1)]
"""A period of the clock that a component's `of` names."""
Start: TypeAlias = Annotated[int, at_least(0)]
"""A moment of a clock from which on, or up to which, something acts."""
EnvSteps: TypeAlias = Annotated[int, at_least(0, "environment steps")]
SomeEnvSteps: TypeAlias = Annotated[int, at_least(1, "environment steps")]
Updates: TypeAlias = Annotated[int, at_least(0, "gradient updates")]
SomeUpdates: TypeAlias = Annotated[int, at_least(1, "gradient updates")]
Seed: TypeAlias = Annotated[int, at_least(0, most=2**63 - 1, why="torch and numpy take 63 bits")]
Samples: TypeAlias = Annotated[int, at_least(1, "transitions", most=1_000_000, why=AT_ONCE)]
"""Transitions that are in memory at once: a batch."""
NStep: TypeAlias = Annotated[int, at_least(1, "rewards", most=10_000, why="a window is put together at every sample")]
SomeRatio: TypeAlias = Annotated[
    float, above(0, "gradient updates per environment step", most=10_000, why="a step would take minutes")
]
Ratio: TypeAlias = Annotated[
    float, at_least(0.0, "gradient updates per environment step", most=10_000, why="a step would take minutes")
]
"""A replay ratio, of which 0 never learns."""
SomeTransitions: TypeAlias = Annotated[int, at_least(1, "transitions")]
"""Transitions of a replay, whose memory is checked when it is built."""
NumEnvs: TypeAlias = Annotated[int, at_least(1, "environments", most=65_536, why="each is simulated")]
Episodes: TypeAlias = Annotated[int, at_least(1, "episodes", most=1_000_000, why="each is played to its end")]
Threads: TypeAlias = Annotated[int, at_least(0, "threads", most=1_024, why="no machine gains by more")]


# Checking


def check_numbers(config: Any, prefix: str = "") -> None:
    """Check every number of a configuration, those of nested configurations included.

    Args:
        config: A dataclass instance.
        prefix: Stands before the name of each field in messages: `agent.` makes `agent.gamma must be …`.

    Raises:
        OutOfRange: A float is not finite, or a number is not in the range that its field declares.
    """
    hints = field_hints(type(config))
    for field in fields(config):
        check_value(getattr(config, field.name), hints[field.name], prefix + field.name)


def check_value(value: Any, annotation: Any, name: str = "") -> None:
    """Check the numbers of one value, whatever its annotation: a number, or a tuple or a dataclass that holds some.

    Raises:
        OutOfRange: As of `check_numbers`.
    """
    if is_dataclass(value) and not isinstance(value, type):
        check_numbers(value, f"{name}.")
        return
    plain, ranges = unwrapped(annotation)
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, tuple | list):
        for item, of_item in zip(value, _of_items(plain, len(value)), strict=False):
            check_value(item, of_item, name)
    elif isinstance(value, Real):
        if not ranges and not finite(value):
            raise OutOfRange(name, f"must be a finite number, not {spelled(value)}")
        for each in ranges:
            each.check(value, name)
        if plain is int and not isinstance(value, Integral) and not float(value).is_integer():
            raise OutOfRange(name, f"must be a whole number, not {spelled(value)}")


def checked(function: F) -> F:
    """A constructor whose arguments are checked before it runs, by the ranges that its annotations declare.

    Messages begin with the `name` of the class (`redo: tau must be …`).

    Raises:
        OutOfRange: By the constructor; as of `check_numbers`.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        hints = parameter_hints(function)
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:
            given = {}  # the function itself says what is wrong with the call
        who = getattr(type(self), "name", "")
        for key, value in given.items():
            check_value(value, hints.get(key, Any), f"{who}: {key}" if who else key)
        function(self, *args, **kwargs)

    return typing.cast(F, construct)


def finite(value: Any) -> bool:
    """Is a number neither infinite nor nan? A whole number of any size is finite."""
    return isinstance(value, Integral) or math.isfinite(value)


def spelled(value: Any) -> str:
    """A number as a message shows it: 1,000,000 and 0.5, and a very large one by its size."""
    if isinstance(value, Integral):
        number = int(value)
        if abs(number) < 10**18:
            return f"{number:,}"
        for power, rest in ((number, ""), (number + 1, " - 1")):
            if power > 0 and power.bit_count() == 1:
                return f"2**{power.bit_length() - 1}{rest}"
        return f"a whole number of {number.bit_length()} bits"
    real = float(value)
    return f"{int(real):,}" if real.is_integer() and abs(real) < 1e15 else f"{real:g}"


# Annotations


def unwrapped(annotation: Any) -> tuple[Any, tuple[Range, ...]]:
    """An annotation without metadata and without `| None`, and the ranges that it declares for a number itself."""
    if typing.get_origin(annotation) is Annotated:
        inner, *metadata = typing.get_args(annotation)
        plain, ranges = unwrapped(inner)
        return plain, (*ranges, *(each for each in metadata if isinstance(each, Range)))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        ranges = tuple(each for member in members for each in unwrapped(member)[1])
        return unwrapped(members[0])[0] if len(members) == 1 else annotation, ranges
    return annotation, ()


def _of_items(annotation: Any, length: int) -> list[Any]:
    """The annotation of each item of a tuple with that many."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        sequences = [m for m in typing.get_args(annotation) if typing.get_origin(unwrapped(m)[0]) in (tuple, list)]
        annotation = unwrapped(sequences[0])[0] if sequences else Any
    inner = typing.get_args(annotation)
    if not inner:
        return [Any] * length
    return [inner[0]] * length if Ellipsis in inner or typing.get_origin(annotation) is not tuple else list(inner)


def field_hints(cls: type[Any]) -> dict[str, Any]:
    """The annotation of each field of a dataclass, with its metadata; `Any` where it names what is not imported."""
    return _field_hints(cls)  # type: ignore[arg-type]


@functools.cache
def _field_hints(cls: type[Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError:
        hints = {}
    return {field.name: hints.get(field.name, Any) for field in fields(cls)}


def parameters_of(named: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that can be given by name, without `*args` and `**kwargs`."""
    parameters = inspect.signature(named).parameters
    return {key: p for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


@functools.cache
def parameter_hints(named: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each parameter of a class or a function, with its metadata; `Any` where there is none, or
    where it names what is not imported."""
    function = inspect.unwrap(getattr(named, "__init__", named) if isinstance(named, type) else named)
    namespace = getattr(function, "__globals__", {})
    hints = {}
    for key, parameter in parameters_of(named).items():
        holder = types.SimpleNamespace(__annotations__={key: parameter.annotation})
        try:
            hints[key] = typing.get_type_hints(holder, globalns=namespace, include_extras=True).get(key, Any)
        except NameError:
            hints[key] = Any
        if parameter.annotation is parameter.empty:
            hints[key] = Any
    return hints


def numeric_leaves(annotation: Any, path: str = "") -> Iterator[tuple[str, type[Any], tuple[Range, ...]]]:
    """Every place of an annotation that holds a number: where it is, int or float, and its ranges."""
    plain, ranges = unwrapped(annotation)
    origin = typing.get_origin(plain)
    if plain in (int, float):
        yield path, plain, ranges
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(plain):
            yield from numeric_leaves(member, path)
    elif origin in (tuple, list):
        for i, item in enumerate(item for item in typing.get_args(plain) if item is not Ellipsis):
            yield from numeric_leaves(item, f"{path}[{i}]")

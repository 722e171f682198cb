"""The valid range of every number in a configuration: declared at the number, checked in one place.

    batch_size: Annotated[int, at_least(1, "transitions", most=1_000_000, why="a batch is in memory at once")] = 64
    gamma: Annotated[float, between(0, 1)] = 0.99

A range is metadata of a type annotation. Three functions use it: `check_numbers` for the fields of a configuration,
`checked` for the parameters of a constructor (interventions, monitors, drifts), and `specs.convert` for the values of
specs. Command lines of `argparse` use it through `lab/commands/arguments.py`. A float that is not finite is always
refused, even if no range is declared.
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
"""The largest count: clocks and indices are 64-bit integers."""
LARGEST = 1e30
"""The largest magnitude of a float: products of larger numbers overflow single precision (3.4e38)."""

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
        """The same error for a number with another name."""
        return OutOfRange(name, self.complaint)


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`.

    Attributes:
        low, high: The bounds. They are valid themselves, unless `above` (for low) or `below` (for high) is set.
        unit: The unit in the plural ("environment steps"); empty for a number without a unit.
        open_end: True if `high` is only a practical limit. Then messages name only the lower bound, unless the number
            exceeds `high`.
        why: Reason for the upper bound; part of the message for a number that exceeds it.
        hint: What to use instead; part of all other messages about finite numbers.
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
        """The range in words: `at least 1 transition`, `between 0 and 1`."""
        if self.open_end:
            if self.low == -self.high:
                return f"between {spelled(self.low)} and {spelled(self.high)}{self._unit(2)}"
            return f"{'above' if self.above else 'at least'} {spelled(self.low)}{self._unit(self.low)}"
        if self.above or self.below:
            lower = f"{'above' if self.above else 'at least'} {spelled(self.low)}"
            return f"{lower} and {'below' if self.below else 'at most'} {spelled(self.high)}{self._unit(self.high)}"
        return f"between {spelled(self.low)} and {spelled(self.high)}{self._unit(self.high)}"

    def check(self, value: Any, name: str = "") -> None:
        """Check a number.

        Raises:
            OutOfRange: The number is not finite or not in the range.
        """
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
    """At least `low`, up to a practical limit `most` (default: the largest count, or the largest float)."""
    if most is None:
        most, why = (COUNTED, "clocks and indices have 64 bits") if isinstance(low, int) else (LARGEST, OVERFLOWS)
    return Range(low, most, unit, open_end=True, why=why)


def above(low: float, unit: str = "", *, most: float = LARGEST, why: str = "", hint: str = "") -> Range:
    """More than `low`, up to a practical limit `most`."""
    return Range(low, most, unit, above=True, open_end=True, why=why or OVERFLOWS, hint=hint)


def between(
    low: float, high: float, unit: str = "", *, above: bool = False, below: bool = False, hint: str = ""
) -> Range:
    """From `low` to `high`; `above` and `below` exclude the bounds themselves."""
    return Range(low, high, unit, above, below, hint=hint)


OVERFLOWS = "larger numbers overflow single precision"
AT_ONCE = "all of it is in memory at once"

# Ranges that many configurations use.
Share: TypeAlias = Annotated[float, between(0, 1)]
"""A probability, a discount or another fraction."""
ShareBelow: TypeAlias = Annotated[float, between(0, 1, below=True)]
SomeShare: TypeAlias = Annotated[float, between(0, 1, above=True)]
Positive: TypeAlias = Annotated[float, above(0)]
NotNegative: TypeAlias = Annotated[float, at_least(0.0)]
Number: TypeAlias = Annotated[float, Range(-LARGEST, LARGEST, open_end=True, why=OVERFLOWS)]
"""Any finite number."""
Moment: TypeAlias = Annotated[int, at_least(1)]
"""A moment, at least 1, of the clock that a component's `of` names."""
Period: TypeAlias = Annotated[int, at_least(1)]
"""A period of the clock that a component's `of` names."""
Start: TypeAlias = Annotated[int, at_least(0)]
"""The first or last moment of a clock at which a schedule acts."""
EnvSteps: TypeAlias = Annotated[int, at_least(0, "environment steps")]
SomeEnvSteps: TypeAlias = Annotated[int, at_least(1, "environment steps")]
Updates: TypeAlias = Annotated[int, at_least(0, "gradient updates")]
SomeUpdates: TypeAlias = Annotated[int, at_least(1, "gradient updates")]
Seed: TypeAlias = Annotated[int, at_least(0, most=2**63 - 1, why="torch and numpy take 63 bits")]
Samples: TypeAlias = Annotated[int, at_least(1, "transitions", most=1_000_000, why=AT_ONCE)]
"""Transitions in a batch, which are in memory at once."""
NStep: TypeAlias = Annotated[int, at_least(1, "rewards", most=10_000, why="a window is put together at every sample")]
SomeRatio: TypeAlias = Annotated[
    float, above(0, "gradient updates per environment step", most=10_000, why="a step would take minutes")
]
Ratio: TypeAlias = Annotated[
    float, at_least(0.0, "gradient updates per environment step", most=10_000, why="a step would take minutes")
]
"""A replay ratio; 0 makes no updates."""
SomeTransitions: TypeAlias = Annotated[int, at_least(1, "transitions")]
"""Transitions in a replay; whether they fit into memory is checked when the replay is built."""
NumEnvs: TypeAlias = Annotated[int, at_least(1, "environments", most=65_536, why="each is simulated")]
Episodes: TypeAlias = Annotated[int, at_least(1, "episodes", most=1_000_000, why="each is played to its end")]
Threads: TypeAlias = Annotated[int, at_least(0, "threads", most=1_024, why="no machine gains by more")]


# Checking


def check_numbers(config: Any, prefix: str = "") -> None:
    """Check every number of a configuration, those of nested configurations included.

    Args:
        config: A dataclass instance.
        prefix: Prefix of each field's name in messages: `agent.` gives `agent.gamma must be …`.

    Raises:
        OutOfRange: A float is not finite, or a number is not in the range that its field declares.
    """
    hints = field_hints(type(config))
    for field in fields(config):
        check_value(getattr(config, field.name), hints[field.name], prefix + field.name)


def check_value(value: Any, annotation: Any, name: str = "") -> None:
    """Check the numbers in one value of any annotation: a number, or a tuple or a dataclass that contains numbers.

    Raises:
        OutOfRange: As `check_numbers`.
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
    """Decorate a constructor so that its arguments are checked first, against the ranges that its annotations declare.

    Messages begin with the `name` of the class (`redo: tau must be …`).

    Raises:
        OutOfRange: As `check_numbers`; raised by the decorated constructor.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        hints = parameter_hints(function)
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:
            for former, (new, _) in getattr(type(self), "former_parameters", {}).items():
                if former in kwargs:
                    raise TypeError(f"{type(self).__name__}: the parameter {former!r} is called {new!r} now") from None
            given = {}  # the call below raises the error
        owner = getattr(type(self), "name", "")
        for key, value in given.items():
            check_value(value, hints.get(key, Any), f"{owner}: {key}" if owner else key)
        function(self, *args, **kwargs)

    return typing.cast(F, construct)


def finite(value: Any) -> bool:
    """True if a number is neither infinite nor NaN. An integer of any size is finite."""
    return isinstance(value, Integral) or math.isfinite(value)


def spelled(value: Any) -> str:
    """A number as text for a message: 1,000,000 or 0.5; for a very large integer a power of two or its bit length."""
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
    """An annotation without metadata and without `| None`, and the ranges that it declares for the number itself."""
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
    """The annotation of each item of a tuple with `length` items."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        sequences = [m for m in typing.get_args(annotation) if typing.get_origin(unwrapped(m)[0]) in (tuple, list)]
        annotation = unwrapped(sequences[0])[0] if sequences else Any
    inner = typing.get_args(annotation)
    if not inner:
        return [Any] * length
    return [inner[0]] * length if Ellipsis in inner or typing.get_origin(annotation) is not tuple else list(inner)


def field_hints(cls: type[Any]) -> dict[str, Any]:
    """The annotation of each field of a dataclass, with metadata; `Any` for all if a name in them is not imported."""
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
    """The annotation of each parameter of a class or a function, with metadata; `Any` for a parameter without one, or
    if a name in it is not imported."""
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
    """Every number in an annotation: its path, its type (int or float), and its ranges."""
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

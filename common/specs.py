"""Specs: a name with arguments, such as `redo(tau=0.1, every=1000)` or `friction(every=2e6)`.

    spec   = name | name "(" [value] [key "=" value, ...] ")"
    value  = number | string | identifier | True | False | None | "(" value, ... ")" | "[" value, ... "]"

A spec is a name, or a call of that name with literals. Specs are parsed with `ast` and never evaluated, so that they
can come from a command line, a file or an untrusted source. A bare identifier is a string (`layers=head`), and a list
is a tuple. The first value may be given without its key if the named object has a first parameter (`replay_ratio(8)`).
Every error in a spec is a `SpecError` with a message of one line that gives a valid form.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import keyword
import math
import reprlib
import types
import typing
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypeAlias

from .ranges import OutOfRange, Range, parameter_hints, parameters_of

Value: TypeAlias = "bool | int | float | str | tuple[Value, ...] | None"

EXAMPLE = "redo(tau=0.1, every=1000)"
LONGEST = 1000  # maximum characters of a spec; keeps the parser's recursion far from its limits
LONGEST_SHOWN = 100  # maximum characters of a value that a message quotes


class SpecError(ValueError):
    """An invalid spec. The message is one line."""


@dataclass(frozen=True)
class Spec:
    """A parsed spec: its name, the arguments given by key, and at most one argument given by position."""

    name: str
    arguments: dict[str, Value] = field(default_factory=dict)
    positional: tuple[Value, ...] = ()

    def __str__(self) -> str:
        """The canonical text: keys in alphabetical order, no empty parentheses, no quotes where none are needed."""
        given = [spell(value) for value in self.positional]
        given += [f"{key}={spell(value)}" for key, value in sorted(self.arguments.items())]
        return f"{self.name}({', '.join(given)})" if given else self.name


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with a leading space, or an empty string if no known name is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def parse(text: str, what: str = "intervention", example: str = EXAMPLE) -> Spec:
    """Parse one spec, without a lookup of its name.

    Args:
        text: The text of the spec.
        what: The kind of named object, for messages.
        example: A valid spec, for messages.

    Raises:
        SpecError: The text is not a spec.
    """
    shown = shorten(text)
    if len(text) > LONGEST:
        raise SpecError(f"{shown}: a spec cannot be longer than {LONGEST} characters")
    article = "an" if what[0] in "aeiou" else "a"
    if not text.strip():
        raise SpecError(f"an empty spec is not {article} {what}; write one like {example}")
    if (hidden := control_character(text.strip())) is not None:
        raise SpecError(f"cannot read {shown}: it contains {hidden}, and a spec is written on one line")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for example, about '\d' in a string
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise SpecError(f"cannot read {shown}: {_likely_mistake(text, example)}") from None
    if isinstance(tree, ast.Name):
        return Spec(tree.id)
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)):
        raise SpecError(f"{shown} is not {article} {what}: write a name, or a call like {example}")
    name = tree.func.id
    if len(tree.args) > 1:
        raise SpecError(f"{shown}: at most one value may be given without its name; write {name}(key=value, ...)")
    arguments: dict[str, Value] = {}
    for argument in tree.keywords:
        if argument.arg is None:
            raise SpecError(f"{shown}: ** is not allowed in a spec; write {name}(key=value, ...)")
        if argument.arg in arguments:
            raise SpecError(f"{shown}: {argument.arg!r} is given twice")
        arguments[argument.arg] = _value(argument.value, f"{name}({argument.arg}=...)")
    return Spec(name, arguments, tuple(_value(value, f"{name}(...)") for value in tree.args))


def resolve(
    spec: Spec, registry: Mapping[str, Callable[..., Any]], what: str = "intervention", skip: Iterable[str] = ()
) -> dict[str, Any]:
    """Check and convert the arguments of a spec; return them by key.

    Args:
        spec: The parsed spec.
        registry: The named classes or functions.
        what: The kind of named object, for messages.
        skip: Names of arguments that are checked by the caller.

    Raises:
        SpecError: The name or a parameter is unknown, or a value does not fit.
    """
    if spec.name not in registry:
        known = f"known {what}s: {', '.join(sorted(registry))}" if registry else "none are installed"
        raise SpecError(f"unknown {what} {spec.name!r}.{did_you_mean(spec.name, registry)} {known}")
    named = registry[spec.name]
    parameters, usage = parameters_of(named), signature(spec.name, named)
    skipped = set(skip)
    given = {key: value for key, value in spec.arguments.items() if key not in skipped}
    if spec.positional:
        first = next(iter(parameters), None)
        if first is None or parameters[first].kind is inspect.Parameter.KEYWORD_ONLY:
            raise SpecError(f"{spec}: a value needs its parameter's name: {usage}")
        if first in given:
            raise SpecError(f"{spec}: {first!r} is given twice: {usage}")
        given = {first: spec.positional[0], **given}
    hints = parameter_hints(named)
    converted = {}
    for key, value in given.items():
        if key not in parameters:
            if key in (former := former_parameters(named)):
                new, values = former[key]
                current = Spec(spec.name, {new: values.get(value, value)})
                raise SpecError(f"{spec.name}: the parameter {key!r} is called {new!r} now; write {current}")
            raise SpecError(f"{spec.name} has no parameter {key!r}.{did_you_mean(key, parameters)} Usage: {usage}")
        try:
            converted[key] = convert(value, hints[key])
        except OutOfRange as error:
            raise SpecError(f"{spec.name}: {key} {error.complaint}. Usage: {usage}") from None
        except ValueError as error:
            raise SpecError(f"{spec.name}({key}=...) {error}. Usage: {usage}") from None
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in converted:
            raise SpecError(f"{spec.name} needs a value for {key!r}. Usage: {usage}")
    return converted


def former_parameters(named: Callable[..., Any]) -> Mapping[str, tuple[str, Mapping[Value, Value]]]:
    """The renamed parameters of a named object: former name → new name, and new value by former value."""
    return getattr(named, "former_parameters", {})


def signature(name: str, named: Callable[..., Any]) -> str:
    """The usage of a spec, with types and defaults: `redo(tau: float = 0.1, every: int = 1000)`."""
    hints = parameter_hints(named)
    parts = []
    for key, parameter in parameters_of(named).items():
        kind = "" if hints[key] is Any else f": {describe(hints[key])}"
        default = "" if parameter.default is parameter.empty else f" = {spell(parameter.default)}"
        parts.append(f"{key}{kind}{default}" if kind or not default else f"{key}={default[3:]}")
    return f"{name}({', '.join(parts)})"


def spell(value: Any) -> str:
    """A value as text in a spec; strings without quotes where none are needed."""
    if isinstance(value, tuple | list):
        items = ", ".join(spell(item) for item in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, str) and value.isascii() and value.isidentifier() and not keyword.iskeyword(value):
        return value
    return repr(value)


def convert(value: Any, annotation: Any, *, text: bool = False) -> Any:
    """Convert `value` to the type of `annotation`.

    Only lossless conversions are made: 1 to a float, 1e3 to an int, a list to a tuple, one item to a tuple of any
    length. With `text`, also numbers in strings, since PyYAML reads `1e-4` as a string.

    Raises:
        OutOfRange: A number is not in a range that the annotation declares (a ValueError).
        ValueError: The value does not fit; the message gives the expected type.
    """
    if typing.get_origin(annotation) is typing.Annotated:
        converted = convert(value, _bare(annotation), text=text)
        for each in typing.get_args(annotation)[1:]:
            if isinstance(each, Range) and converted is not None:
                each.check(converted)
        return converted
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or isinstance(annotation, typing.TypeVar):
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, annotation, inner, text)
    if annotation is None or annotation is type(None):
        fits, converted = value is None, None
    elif origin is Literal:
        # True == 1, so the types must be equal too.
        fits, converted = any(type(value) is type(choice) and value == choice for choice in inner), value
    elif annotation is bool:
        fits, converted = isinstance(value, bool), value
    elif annotation in (int, float):
        return _convert_number(value, annotation, text)
    elif annotation is str:
        fits, converted = isinstance(value, str), value
    elif annotation in (tuple, list) or origin in (tuple, list, Sequence, Iterable):
        return _convert_items(value, annotation, text)
    elif annotation in (dict, Mapping) or origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _unfit(value, annotation)
        of_key, of_item = inner or (Any, Any)
        return {convert(k, of_key, text=text): convert(v, of_item, text=text) for k, v in value.items()}
    else:
        fits, converted = isinstance(annotation, type) and type(value) is annotation, value
    if not fits:
        raise _unfit(value, annotation)
    return converted


def describe(annotation: Any) -> str:
    """An annotation as text for a user of the command line: `int | None`, `'a' | 'b'`."""
    annotation = _bare(annotation)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return "None"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(describe(member) for member in inner)
    if origin is Literal:
        return " | ".join(repr(choice) for choice in inner)
    if origin in (tuple, list, Sequence, Iterable) and inner:
        items = [describe(item) for item in inner if item is not Ellipsis]
        return f"({', '.join(items)}{', ...' if origin is not tuple or Ellipsis in inner else ''})"
    return str(getattr(annotation, "__name__", annotation))


# Reading


class _Short(reprlib.Repr):
    """A `repr` that shows only the first items, so that it is fast for very large values."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict, self.maxset = 3, 8, 8, 8, 8
        self.maxother = LONGEST_SHOWN

    def repr_str(self, x: str, level: int) -> str:
        text = repr(x[: LONGEST_SHOWN + 1])
        return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 10]}...'"

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 256 else f"a whole number of {x.bit_length():,} bits"


def shorten(value: Any) -> str:
    """`repr` of a value for a message: at most about 100 characters, for values of any size or depth."""
    text = _Short().repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 10]}..."


def control_character(text: str) -> str | None:
    """A description, for a message, of the first character that is not allowed in a name, a path or a spec; else None.

    Not allowed are control characters, line separators, surrogates (which a path that is not UTF-8 contains), and marks
    that change the direction of displayed text.
    """
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS:
            return "a line break" if character in "\r\n" else f"the control character U+{ord(character):04X}"
    return None


_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _likely_mistake(text: str, example: str) -> str:
    if text.count("(") != text.count(")"):
        return f"its parentheses do not match; quote the whole spec for the shell, like '{example}'"
    if len(text.split()) > 1 and all(part.isidentifier() for part in text.split()):
        return f"quote each spec separately: {' '.join(text.split())}"
    return f"write a name, or a call like {example}, and quote each spec separately"


def _value(node: ast.expr, where: str) -> Value:
    """The value of a literal's syntax node.

    Raises:
        SpecError: The node is not an allowed literal.
    """
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(item, where) for item in node.elts)
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign, node = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
        if not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            _refuse("a sign before something that is not a number", where)
    if not isinstance(node, ast.Constant):
        _refuse(_kind(node), where)
    value = node.value
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if abs(value) >= 2**63:
            raise SpecError(f"{where}: this whole number is too large")
        return sign * value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(f"{where}: this number is too large")
        return sign * value
    _refuse(f"{type(value).__name__} {shorten(str(value))}", where)


def _kind(node: ast.expr) -> str:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return f"the nested call {node.func.id}(...)"
    if isinstance(node, ast.Compare):
        return "a comparison outside quotes"
    if isinstance(node, ast.Attribute | ast.BinOp):
        return "a dotted name or arithmetic outside quotes"
    return f"{type(node).__name__.lower()}"


def _refuse(what: str, where: str) -> NoReturn:
    raise SpecError(
        f"{where}: {what} cannot be a value; write a number, a name, True, False, None, a tuple of these, "
        "or a string in quotes"
    )


# Converting


def _bare(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _unfit(value: Any, annotation: Any) -> ValueError:
    return ValueError(f"expects {describe(annotation)}, not {shorten(value)}")


def _convert_union(value: Any, annotation: Any, members: tuple[Any, ...], text: bool) -> Any:
    candidates, too_far = [], None
    for member in members:
        try:
            candidates.append(convert(value, member, text=text))
        except OutOfRange as error:
            too_far = error
        except ValueError:
            continue
    if not candidates:
        raise too_far or _unfit(value, annotation)
    # Prefer a member that leaves the value unchanged to one that converts it.
    return next((c for c in candidates if type(c) is type(value) and c == value), candidates[0])


def _convert_number(value: Any, annotation: type, text: bool) -> int | float:
    number = value
    if text and isinstance(value, str):
        try:
            number = int(value)
        except ValueError:
            try:
                number = float(value)
            except ValueError:
                raise _unfit(value, annotation) from None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _unfit(value, annotation)
    if annotation is float:
        return float(number)
    if number != number or number in (math.inf, -math.inf) or int(number) != number:
        raise _unfit(value, annotation)
    return int(number)


def _convert_items(value: Any, annotation: Any, text: bool) -> Any:
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    wrap = list if origin is list else tuple
    open_ended = origin is not tuple or not inner or Ellipsis in inner
    if not isinstance(value, tuple | list):
        if not open_ended or value is None or isinstance(value, Mapping):
            raise _unfit(value, annotation)
        value = (value,)
    kinds = ([inner[0]] if inner else [Any]) * len(value) if open_ended else list(inner)
    if len(kinds) != len(value):
        raise _unfit(value, annotation)
    try:
        return wrap(convert(item, kind, text=text) for item, kind in zip(value, kinds, strict=True))
    except OutOfRange:
        raise
    except ValueError:
        raise _unfit(value, annotation) from None

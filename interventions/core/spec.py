"""Interventions as words: `layer_norm "redo(tau=0.1, every=1000)" "reset(layers=head)"`.

The grammar is that of `common/specs.py`; the same words name the run. Whatever is wrong with a word is a
`SpecError` of one line that says what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from ...agents.hooks import Compose, Intervention, Patience, When
from ...common.ranges import OutOfRange, Updates, parameters_of
from ...common.specs import (
    EXAMPLE,
    LONGEST,
    Spec,
    SpecError,
    Value,
    convert,
    describe,
    did_you_mean,
    one_line,
    parse,
    resolve,
    signature,
    spell,
)

__all__ = [
    "EXAMPLE",
    "LONGEST",
    "Registry",
    "Spec",
    "SpecError",
    "Value",
    "build",
    "build_parts",
    "check",
    "convert",
    "describe",
    "did_you_mean",
    "normalise",
    "parse",
    "signature",
    "spell",
]

Registry: TypeAlias = Mapping[str, Callable[..., Intervention]]

# What any word may say that names something that fires now and then, in the place of a beat.
LOOP: dict[str, Any] = {"when": str, "patience": Patience, "cooldown": Updates}
BEAT = ("every", "of", "at", "start", "stop")


def normalise(words: Iterable[str], registry: Registry | None = None) -> str:
    """The canonical text of a sentence, which names a run: equal for words that say the same.

    Without a registry only the spelling is made canonical. With one, every word is also looked up and checked as in
    `check`. The order of the words is kept, for it is the order of application.
    """
    if registry is None:
        return " ".join(str(parse(word)) for word in words)
    return " ".join(check(words, registry))


def check(words: Iterable[str], registry: Registry) -> tuple[str, ...]:
    """The words in canonical spelling, every name, parameter and type checked (SpecError); builds nothing.

    A value given by position gets its parameter's name, and numbers take the parameter's type (`every=1e3` is 1000).
    """
    resolved = (_resolve(word, registry) for word in words)
    return tuple(str(Spec(name, arguments)) for name, arguments in resolved)


def build(words: Iterable[str], registry: Registry) -> Compose:
    """The interventions that the words name, in order, as one (SpecError)."""
    parts = build_parts(words, registry)
    try:
        return Compose(parts)
    except ValueError as error:
        raise SpecError(one_line(error)) from error


def build_parts(words: Iterable[str], registry: Registry) -> list[Intervention]:
    """The interventions that the words name, each for itself (SpecError)."""
    parts = []
    for word in words:
        name, arguments = _resolve(word, registry)
        loop = {key: arguments[key] for key in LOOP if key in arguments}
        try:
            part = registry[name](**{key: value for key, value in arguments.items() if key not in loop})
            if loop:
                part.fire_when(_when(loop))
        except ValueError as error:
            raise SpecError(f"{Spec(name, arguments)}: {one_line(error)}") from error
        parts.append(part)
    return parts


def _resolve(text: str, registry: Registry) -> tuple[str, dict[str, Any]]:
    """The name and the checked, converted arguments of a word, each by its key."""
    word = parse(text)
    loop: dict[str, Any] = {}
    if word.name in registry:
        loop = _closed_loop(word, parameters_of(registry[word.name]))
    return word.name, resolve(word, registry, skip=loop) | loop


def _closed_loop(word: Spec, parameters: Mapping[str, Any]) -> dict[str, Value]:
    """What the word says of a measurement that it waits for, checked; nothing if it keeps a beat."""
    given = {key: value for key, value in word.arguments.items() if key in LOOP and key not in parameters}
    if not given:
        return {}
    if "when" not in given:
        raise SpecError(f"{word.name}: {next(iter(given))!r} needs when='place/metric > number' beside it")
    if both := [key for key in BEAT if key in word.arguments]:
        raise SpecError(
            f"{word.name}: {both[0]!r} and 'when' exclude each other; it fires on a beat or on what is measured"
        )
    found: dict[str, Value] = {}
    for key, value in given.items():
        try:
            found[key] = convert(value, LOOP[key])
        except OutOfRange as error:
            raise SpecError(f"{word.name}: {key} {error.complaint}") from None
        except ValueError as error:
            raise SpecError(f"{word.name}({key}=...) {error}") from None
    try:
        _when(found)
    except ValueError as error:
        raise SpecError(f"{word.name}: {one_line(error)}") from None
    return found


def _when(loop: Mapping[str, Any]) -> When:
    return When.parse(loop["when"], loop.get("patience", 1), loop.get("cooldown", 0))

"""Intervention specs: `layer_norm "redo(tau=0.1, every=1000)" "reset(layers=head)"`.

`common/specs.py` defines the grammar. The same specs name the run. An invalid spec raises a `SpecError` of one line
with the correction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from ...agents.clock import Patience, When
from ...agents.hooks import Compose, Intervention
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
    former_parameters,
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
    "with_current_names",
]

Registry: TypeAlias = Mapping[str, Callable[..., Intervention]]

# Parameters that every intervention with a schedule accepts instead of the schedule.
LOOP: dict[str, Any] = {"when": str, "patience": Patience, "cooldown": Updates}
SCHEDULE = ("every", "of", "at", "start", "stop")


def normalise(specs: Iterable[str], registry: Registry | None = None) -> str:
    """The canonical text of specs, which names a run: equivalent specs have the same text.

    Without a registry only the spelling is made canonical. With a registry, every spec is also looked up and checked as
    in `check`. The order of specs is kept, because it is the order of application.
    """
    if registry is None:
        return " ".join(str(parse(text)) for text in specs)
    return " ".join(check(specs, registry))


def check(specs: Iterable[str], registry: Registry) -> tuple[str, ...]:
    """The specs in canonical spelling, with every name, parameter and type checked (SpecError). It builds nothing.

    A positional value gets its parameter's name, and numbers take the parameter's type (`every=1e3` is 1000).
    """
    resolved = (_resolve(text, registry) for text in specs)
    return tuple(str(Spec(name, arguments)) for name, arguments in resolved)


def with_current_names(specs: Iterable[str], registry: Registry) -> tuple[str, ...]:
    """The specs with renamed parameters under their new names and values, as the files of earlier runs need it.

    Specs within a spec (`matched_random("redo(...)")`) are renamed too. A text that is not a spec stays unchanged.
    """
    return tuple(_with_current_names(text, registry) for text in specs)


def _with_current_names(text: str, registry: Registry) -> str:
    try:
        spec = parse(text)
    except SpecError:
        return text
    if spec.name not in registry:
        return text
    former = former_parameters(registry[spec.name])
    renamed = {}
    for key, value in spec.arguments.items():
        new, values = former.get(key, (key, {}))
        value = _with_current_names(value, registry) if isinstance(value, str) else value
        renamed[new] = values.get(value, value)
    positional = tuple(_with_current_names(v, registry) if isinstance(v, str) else v for v in spec.positional)
    current = Spec(spec.name, renamed, positional)
    return text if current == spec else str(current)


def build(specs: Iterable[str], registry: Registry) -> Compose:
    """The interventions that the specs name, in order, as one composed intervention (SpecError)."""
    parts = build_parts(specs, registry)
    try:
        return Compose(parts)
    except ValueError as error:
        raise SpecError(one_line(error)) from error


def build_parts(specs: Iterable[str], registry: Registry) -> list[Intervention]:
    """The interventions that the specs name, as a list (SpecError)."""
    parts = []
    for text in specs:
        name, arguments = _resolve(text, registry)
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
    """The name and the checked, converted arguments of a spec, by parameter name."""
    spec = parse(text)
    loop: dict[str, Any] = {}
    if spec.name in registry:
        loop = _closed_loop(spec, parameters_of(registry[spec.name]))
    return spec.name, resolve(spec, registry, skip=loop) | loop


def _closed_loop(spec: Spec, parameters: Mapping[str, Any]) -> dict[str, Value]:
    """The checked arguments of a spec that waits for a measurement (`when`); empty for a spec on a schedule."""
    given = {key: value for key, value in spec.arguments.items() if key in LOOP and key not in parameters}
    if not given:
        return {}
    if "when" not in given:
        raise SpecError(f"{spec.name}: {next(iter(given))!r} needs when='place/metric > number' as well")
    if both := [key for key in SCHEDULE if key in spec.arguments]:
        raise SpecError(f"{spec.name}: {both[0]!r} and 'when' exclude each other; use a schedule or a measurement")
    converted: dict[str, Value] = {}
    for key, value in given.items():
        try:
            converted[key] = convert(value, LOOP[key])
        except OutOfRange as error:
            raise SpecError(f"{spec.name}: {key} {error.complaint}") from None
        except ValueError as error:
            raise SpecError(f"{spec.name}({key}=...) {error}") from None
    try:
        _when(converted)
    except ValueError as error:
        raise SpecError(f"{spec.name}: {one_line(error)}") from None
    return converted


def _when(loop: Mapping[str, Any]) -> When:
    return When.parse(loop["when"], loop.get("patience", 1), loop.get("cooldown", 0))

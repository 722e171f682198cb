"""Files written by users: YAML sections become checked dataclasses, and named flags become command lines.

Every key and every type is checked. Each error is one line that names the key.
"""

from __future__ import annotations

import itertools
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from ...common.specs import LONGEST, control_character, one_line, shorten
from ...interventions import INTERVENTIONS
from ...interventions.core.spec import build, convert, did_you_mean
from ..errors import BadInput
from .config import RunConfig, flat_fields, parse
from .yaml_file import read_yaml_file


class Wrong(ValueError):
    """An error in a file. The code that reads the file puts the file's name in front of the message."""


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a file (BadInput; `what` names the expected kind of file in the message)."""
    try:
        data = read_yaml_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"there is no {what} {path}") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path} cannot be read: {one_line(error)}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} must hold keys and values, not {type(data).__name__}")
    return data


# ------------------------------------------------------------------------------------------------ command lines


FLAGS = [f.name.removesuffix("_config") for f in fields(RunConfig) if f.name not in ("agent_config", "env_config")]
NOT_FOR_FILES = {"seed", "run", "resume", "threads"}
TEXTS = ("agent", "env", "device")
MAY_BE_EMPTY = ("monitors", "env.drift")  # flags that may be an empty list of specs
LONGEST_LABEL = 200
MOST_COMBINATIONS = 10_000
MOST_RUNS = 100_000
"""Limits for one study. Every combination is parsed like a command line; every run's folder is checked."""


def command_line(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """Flags given by name, as the arguments of a command line: true gives a switch, false the switch that turns it off,
    and a list several arguments."""
    line: list[str] = []
    for name, value in flags.items():
        flag = _as_flag(str(name))
        if isinstance(value, bool):
            head, dot, last = flag.rpartition(".")
            line.append(flag if value else f"{head}.no-{last}" if dot else f"--no-{flag[2:]}")
        elif isinstance(value, list | tuple):
            line += [flag, *map(str, value)] if value else []
        elif str(value).startswith("-"):  # a negative number, which must not be read as a flag
            line.append(f"{flag}={value}")
        else:
            line += [flag, str(value)]
    return tuple(line)


@cache
def read_command(line: tuple[str, ...]) -> RunConfig:
    """The configuration of a command line, on one CPU thread unless the line sets a device (BadInput).

    Unless the line sets them, there are four checkpoints per run and one is kept.
    """
    for item in line:
        name = item[2:].partition("=")[0].replace("-", "_")
        if item.startswith("--") and "." not in name and name not in FLAGS:
            raise BadInput(f"unknown flag {item}.{did_you_mean(item, [_as_flag(n) for n in FLAGS])}")
    config = parse(line, prog="pliant train").config
    settings = dict(flat_fields(config))
    for item, after in itertools.pairwise((*line, "--")):
        name = re.sub(r"^(agent|env)\.", r"\1_config.", item[2:].replace("-", "_"))
        # A flag with several values would silently take none of them from `true`.
        if item.startswith("--") and after.startswith("--") and not isinstance(settings.get(name, False), bool):
            raise BadInput(f"{item} needs a value, not true")
    build(config.interventions, INTERVENTIONS)  # refuses values out of range, and interventions that exclude each other
    device = "cpu" if config.device == "auto" else config.device
    every = config.checkpoint_every if "--checkpoint-every" in line else max(config.steps // 4, 1)
    keep = config.keep_checkpoints if "--keep-checkpoints" in line else 1
    return replace(config, device=device, threads=1, checkpoint_every=every, keep_checkpoints=keep)


def _as_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def checked_flags(content: Any, where: str, refused: Mapping[str, str]) -> dict[str, Any]:
    """Flags of `pliant train` by name, with underscores. Their values are checked later, in the command line.

    `refused` maps flags that are not allowed here to error messages. A value is null, a boolean, a number, a text, or a
    list of these. It may not look like a flag: otherwise a file could set flags that it may not set.
    """
    flags = {}
    for given, value in section(content, where).items():
        name = str(given).replace("-", "_")
        if name in flags:
            raise Wrong(f"{where}: {shorten(name)} appears twice")
        flags[name] = value
    for name, value in flags.items():
        if name in refused:
            raise Wrong(f"{where}: {refused[name]}")
        head, dot, _ = name.partition(".")
        if head not in (("agent", "env") if dot else FLAGS) or not re.fullmatch(r"[A-Za-z0-9_.]+", name):
            raise Wrong(f"{where}: unknown flag {shorten(name)}.{did_you_mean(name, FLAGS)}")
        if isinstance(value, Mapping):
            raise Wrong(f"{where}: write {name}.OPTION: VALUE in one line for each option of {name!r}")
        if name in TEXTS and value is not None:
            plain_text(value, f"{where}: {name}")
        empty = isinstance(value, list | tuple) and not value and name not in MAY_BE_EMPTY
        if empty or (isinstance(value, bool) and not dot):
            raise Wrong(f"{where}: {name} needs a value, not {shorten(value)}")
        for item in value if isinstance(value, list | tuple) else [value]:
            _check_flag_value(item, f"{where}: {name}", in_list=item is not value)
    return flags


def _check_flag_value(value: Any, where: str, in_list: bool) -> None:
    if not isinstance(value, str):
        if not isinstance(value, bool | int | float) and (in_list or value is not None):
            raise Wrong(f"{where}: the value is a number, a text, true, false or a list of these, not {shorten(value)}")
        return
    plain_text(value, where, LONGEST)
    if not value.strip():
        raise Wrong(f"{where}: the value is empty")
    if value.startswith("-") and not _is_number(value):
        raise Wrong(f"{where}: a value does not begin with a dash: {shorten(value)}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ plain values


def section(content: Any, where: str) -> dict[str, Any]:
    """A section of keys and values."""
    if not isinstance(content, Mapping):
        raise Wrong(f"'{where}' is a section of keys and values, not {shorten(content)}")
    return dict(content)


def plain_text(value: Any, where: str, longest: int | None = None) -> str:
    """A text without control characters, at most `longest` characters long."""
    if not isinstance(value, str):
        raise Wrong(f"{where}: expects a text, not {shorten(value)}: put it in quotes")
    if (hidden := control_character(value)) is not None:
        raise Wrong(f"{where}: {shorten(value)} contains {hidden}")
    if longest is not None and len(value) > longest:
        raise Wrong(f"{where}: {shorten(value)} has more than {longest} characters")
    return value


def prose(value: Any, where: str) -> str:
    """A text, possibly written over several lines, as one line; null is the empty text."""
    if value is not None and not isinstance(value, str):
        raise Wrong(f"{where}: expects a text, not {shorten(value)}: put it in quotes")
    return plain_text(" ".join((value or "").split()), where)


def required_prose(value: Any, where: str) -> str:
    """Like `prose`, but not empty."""
    if not isinstance(value, str) or not value.strip():
        raise Wrong(f"{where}: expects a text that is not empty, not {shorten(value)}")
    return prose(value, where)


Prose = Annotated[str, prose]
RequiredProse = Annotated[str, required_prose]


def label(value: Any, where: str) -> str:
    """The label of an arm, an agent, an environment or a measure in a file."""
    if not isinstance(value, str) or not value.strip():
        raise Wrong(f"{where}: a label is a text, not {shorten(value)}: put it in quotes")
    return plain_text(value, where, LONGEST_LABEL)


def labelled(content: Any, where: str) -> dict[str, Any]:
    """A section that is not empty and whose keys are labels. A list of labels is read as keys without content."""
    if isinstance(content, list):
        seen: dict[str, None] = {}
        for item in content:
            if label(item, where) in seen:
                raise Wrong(f"{where}: {shorten(item)} appears twice")
            seen[item] = None
        content = seen
    labels = {label(name, where): value for name, value in section(content, where).items()}
    if not labels:
        raise Wrong(f"'{where}' is empty")
    return labels


def check_number_of_runs(combinations: int, seeds: int) -> None:
    """Refuse a file with impossibly many runs (a typing error), before they are listed."""
    what = "combination" if combinations == 1 else "combinations"
    if combinations > MOST_COMBINATIONS:
        raise Wrong(f"{combinations:,} {what} are more than {MOST_COMBINATIONS:,}: divide the file")
    if combinations * seeds > MOST_RUNS:
        raise Wrong(
            f"'seeds': {combinations:,} {what} times {seeds:,} seeds are more than {MOST_RUNS:,} runs: "
            "name fewer seeds, or divide the file"
        )


def known_keys(data: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Refuse other keys."""
    for name in data:
        if name not in names:
            hint = did_you_mean(str(name), names) or f" known keys: {', '.join(names)}"
            raise Wrong(f"{where + ': ' if where else ''}unknown key {shorten(name)}.{hint}")


def needs(data: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuse a section that lacks a key."""
    for name in names:
        if data.get(name) is None:
            raise Wrong(f"{where + ': ' if where else ''}{name!r} is missing")


def converted(value: Any, annotation: Any, where: str) -> Any:
    """A value converted to a type; its numbers must be finite, and its texts free of control characters."""
    if get_origin(annotation) is Annotated:
        check: Callable[[Any, str], Any] = get_args(annotation)[1]
        return check(value, where)
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    if choices and value not in choices:
        hint = did_you_mean(str(value), choices)
        raise Wrong(f"{where} is one of {', '.join(choices)}, not {shorten(value)}.{hint}")
    try:
        result = convert(value, annotation, text=True)
    except (ValueError, OverflowError) as error:
        raise Wrong(f"{where}: {error}") from None
    for item in result if isinstance(result, list | tuple) else [result]:
        if isinstance(item, float) and not math.isfinite(item):
            raise Wrong(f"{where}: expects a finite number, not {shorten(value)}")
        if isinstance(item, str):
            plain_text(item.strip(), where)
    return result


def make(kind: type[Any], content: Any, where: str, *, without: Iterable[str] = (), **given: Any) -> Any:
    """A dataclass from a section, with every key and type checked.

    A field's key is its name, or `key` in its metadata. A field `Annotated[type, check]` gets its value from
    `check(value, where)`.

    Args:
        where: The section's name in messages; empty for the whole file.
        without: Fields that the file may not set and that keep their defaults.
        given: Values of fields that the file does not set.
    """
    data = section(content, where)
    own = {_key(f): f for f in fields(kind) if f.name not in {*given, *without}}
    known_keys(data, list(own), where)
    needs(data, [key for key, f in own.items() if f.default is f.default_factory], where)  # both are MISSING
    hints = typing.get_type_hints(kind, include_extras=True)
    at = f"{where}: " if where else ""
    values = {own[key].name: converted(value, hints[own[key].name], f"{at}{key!r}") for key, value in data.items()}
    return kind(**given, **values)


def _key(field: Field[Any]) -> str:
    return str(field.metadata.get("key", field.name))

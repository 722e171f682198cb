"""Files written by users: YAML sections become checked dataclasses, and named flags become command lines.

Claim cards and study files both use these functions. Every key and every type is checked. Each error is one line that
names the key.
"""

from __future__ import annotations

import itertools
import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from ...common.specs import LONGEST, control_character, one_line, shorten
from ...interventions import INTERVENTIONS
from ...interventions.core.spec import build, convert, did_you_mean
from ..errors import BadInput
from .config import RunConfig, _flags, parse
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
SENTENCES = ("monitors", "env.drift")  # flags that may be an empty list of specs
LONGEST_LABEL = 200
MOST_COMBINATIONS = 10_000
MOST_RUNS = 100_000
"""Limits for one study or card. Every combination is parsed like a command line; every run's folder is checked."""


def command_line(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """Flags given by name, as the arguments of a command line: true gives a switch, false the switch that turns it off,
    and a list several arguments."""
    words: list[str] = []
    for name, value in flags.items():
        flag = _as_flag(str(name))
        if isinstance(value, bool):
            head, dot, last = flag.rpartition(".")
            words.append(flag if value else f"{head}.no-{last}" if dot else f"--no-{flag[2:]}")
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)] if value else []
        elif str(value).startswith("-"):  # a negative number, which must not be read as a flag
            words.append(f"{flag}={value}")
        else:
            words += [flag, str(value)]
    return tuple(words)


@cache
def read_command(words: tuple[str, ...]) -> RunConfig:
    """The configuration of a command line, on one CPU thread unless the line sets a device (BadInput).

    Unless the line sets them, there are four checkpoints per run and one is kept.
    """
    for word in words:
        name = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--") and "." not in name and name not in FLAGS:
            raise BadInput(f"unknown flag {word}.{did_you_mean(word, [_as_flag(n) for n in FLAGS])}")
    config = parse(words, prog="pliant train").config
    for word, after in itertools.pairwise((*words, "--")):
        name = word[2:].replace("-", "_")
        # A flag with several values would silently take none of them from `true`.
        if word.startswith("--") and after.startswith("--") and not isinstance(_flags(config).get(name, False), bool):
            raise BadInput(f"{word} needs a value, not true")
    build(config.interventions, INTERVENTIONS)  # refuses values out of range, and interventions that exclude each other
    device = "cpu" if config.device == "auto" else config.device
    every = config.checkpoint_every if "--checkpoint-every" in words else max(config.steps // 4, 1)
    keep = config.keep_checkpoints if "--keep-checkpoints" in words else 1
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
        empty = isinstance(value, list | tuple) and not value and name not in SENTENCES
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


def paragraph(value: Any, where: str) -> str:
    """A text, possibly written over several lines, as one line; null is the empty text."""
    if value is not None and not isinstance(value, str):
        raise Wrong(f"{where}: expects a text, not {shorten(value)}: put it in quotes")
    return plain_text(" ".join((value or "").split()), where)


def sentence(value: Any, where: str) -> str:
    """Like `paragraph`, but not empty."""
    if not isinstance(value, str) or not value.strip():
        raise Wrong(f"{where} must be a sentence")
    return paragraph(value, where)


def label(value: Any, where: str) -> str:
    """The label of an arm, an agent, an environment or a measure in a file."""
    if not isinstance(value, str) or not value.strip():
        raise Wrong(f"{where}: a label is a text, not {shorten(value)}: put it in quotes")
    return plain_text(value, where, LONGEST_LABEL)


def labelled(content: Any, where: str) -> dict[str, Any]:
    """A section whose keys are labels."""
    return {label(name, where): value for name, value in section(content, where).items()}


def check_number_of_runs(combinations: int, seeds: int, what: str) -> None:
    """Refuse a file with impossibly many runs (a typing error), before they are listed."""
    if combinations > MOST_COMBINATIONS:
        raise Wrong(f"{combinations:,} {what} are more than {MOST_COMBINATIONS:,}: divide the file")
    if combinations * seeds > MOST_RUNS:
        raise Wrong(
            f"'seeds': {combinations:,} {what} times {seeds:,} seeds are more than {MOST_RUNS:,} runs: "
            "name fewer seeds, or divide the file"
        )


def known_keys(data: Mapping[str, Any], kind: type[Any], where: str, besides: Iterable[str] = ()) -> None:
    """Refuse keys that are neither fields of `kind` nor in `besides`."""
    names = [f.name for f in fields(kind) if f.name not in set(besides)]
    for name in data:
        if name not in names:
            hint = did_you_mean(str(name), names) or f" known keys: {', '.join(names)}"
            raise Wrong(f"{where + ': ' if where else ''}unknown key {shorten(name)}.{hint}")


def needs(data: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Refuse a section that lacks a key."""
    for name in names:
        if data.get(name) is None:
            raise Wrong(f"{where + ': ' if where else ''}{name!r} is missing")


def converted(value: Any, annotation: Any, where: str) -> Any:
    """A value converted to a type; its numbers must be finite, and its texts free of control characters."""
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


def make(kind: type[Any], content: Any, where: str, **given: Any) -> Any:
    """A dataclass from a section, with every key and type checked."""
    data = section(content, where)
    known_keys(data, kind, where, besides=given)
    hints = typing.get_type_hints(kind)
    needed = [
        f.name
        for f in fields(kind)
        if f.name not in given and f.default is f.default_factory  # both are MISSING
    ]
    needs(data, needed, where)
    values = {}
    for name, value in data.items():
        choices = get_args(hints[name]) if typing.get_origin(hints[name]) is Literal else ()
        if choices and value not in choices:
            raise Wrong(
                f"{where}: '{name}' is one of {', '.join(choices)}, not {shorten(value)}."
                f"{did_you_mean(str(value), choices)}"
            )
        values[name] = converted(value, hints[name], f"{where}: '{name}'")
    return kind(**given, **values)

"""Files that users write: YAML sections read into checked dataclasses, and flags by name turned into command lines.

Claim cards and study files are both made of these: every key and every type is checked, and whatever is wrong is one
line that names it.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ..interventions import INTERVENTIONS
from ..interventions.spec import build, convert, did_you_mean
from .config import BadInput, RunConfig, _Loader, parse


class Wrong(ValueError):
    """Something in a file that is not right; whoever reads the file puts its name before it."""


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a file (BadInput; `what` says what kind of file was expected)."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise BadInput(f"there is no {what} {path}") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} must hold keys and values, not {type(data).__name__}")
    return data


# ------------------------------------------------------------------------------------------------ command lines


FLAGS = [f.name.removesuffix("_config") for f in fields(RunConfig) if f.name not in ("agent_config", "env_config")]
NOT_FOR_FILES = {"seed", "run", "resume", "threads"}


def command_line(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """Flags by name as the words of a command line: true is a switch, false the switch that turns it off, a list
    several words."""
    words: list[str] = []
    for name, value in flags.items():
        flag = _as_flag(str(name))
        if isinstance(value, bool):
            head, dot, last = flag.rpartition(".")
            words.append(flag if value else f"{head}.no-{last}" if dot else f"--no-{flag[2:]}")
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)] if value else []
        else:
            words += [flag, str(value)]
    return tuple(words)


@cache
def read_command(words: tuple[str, ...]) -> RunConfig:
    """The configuration of a command line, on one thread of the processor unless it names a device (BadInput).

    Where the line does not say it otherwise, a quarter of the run lies between two checkpoints and one is kept.
    """
    for word in words:
        name = word[2:].replace("-", "_")
        if word.startswith("--") and "." not in name and name not in FLAGS:
            raise BadInput(f"unknown flag {word}.{did_you_mean(word, [_as_flag(n) for n in FLAGS])}")
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            config = parse(words, prog="pliant train").config
    except SystemExit:
        text = re.sub(r"[─-╿]+", " ", told.getvalue())
        raise BadInput(" ".join(text.split())[:300]) from None
    build(config.interventions, INTERVENTIONS)  # values out of range, and words that exclude each other
    device = "cpu" if config.device == "auto" else config.device
    every = config.checkpoint_every if "--checkpoint-every" in words else max(config.steps // 4, 1)
    keep = config.keep_checkpoints if "--keep-checkpoints" in words else 1
    return replace(config, device=device, threads=1, checkpoint_every=every, keep_checkpoints=keep)


def _as_flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def checked_flags(content: Any, where: str, refused: Mapping[str, str]) -> dict[str, Any]:
    """Flags of `pliant train` by name, with underscores; values are checked where they become a command line.

    `refused` holds flags that may not stand here, and what to say of them.
    """
    flags = {str(name).replace("-", "_"): value for name, value in section(content, where).items()}
    for name, value in flags.items():
        if name in refused:
            raise Wrong(f"{where}: {refused[name]}")
        head, dot, _ = name.partition(".")
        if head not in (("agent", "env") if dot else FLAGS):
            raise Wrong(f"{where}: unknown flag {name!r}.{did_you_mean(name, FLAGS)}")
        if isinstance(value, Mapping):
            raise Wrong(f"{where}: write {name}.OPTION: VALUE in one line for each option of {name!r}")
    return flags


# ------------------------------------------------------------------------------------------------ plain values


def section(content: Any, where: str) -> dict[str, Any]:
    """A section of keys and values."""
    if not isinstance(content, Mapping):
        raise Wrong(f"'{where}' is a section of keys and values, not {content!r}")
    return dict(content)


def known_keys(data: Mapping[str, Any], kind: type[Any], where: str, besides: Iterable[str] = ()) -> None:
    """Refuse keys that are no field of `kind`, or one of `besides`."""
    names = [f.name for f in fields(kind) if f.name not in set(besides)]
    for name in data:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" known keys: {', '.join(names)}"
            raise Wrong(f"{where + ': ' if where else ''}unknown key {name!r}.{hint}")


def needs(data: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Refuse a section that lacks a key."""
    for name in names:
        if data.get(name) is None:
            raise Wrong(f"{where + ': ' if where else ''}{name!r} is missing")


def converted(value: Any, annotation: Any, where: str) -> Any:
    """A value as the type that is wanted."""
    try:
        return convert(value, annotation, text=True)
    except ValueError as error:
        raise Wrong(f"{where}: {error}") from None


def make(kind: type[Any], content: Any, where: str, **given: Any) -> Any:
    """A dataclass from a section, every key and type checked."""
    data = section(content, where)
    known_keys(data, kind, where, besides=given)
    hints = typing.get_type_hints(kind)
    needed = [
        f.name for f in fields(kind)
        if f.name not in given and f.default is f.default_factory  # both are MISSING
    ]  # fmt: skip
    needs(data, needed, where)
    values = {}
    for name, value in data.items():
        choices = get_args(hints[name]) if typing.get_origin(hints[name]) is Literal else ()
        if choices and value not in choices:
            raise Wrong(f"{where}: '{name}' is one of {', '.join(choices)}, not {value!r}."
                        f"{did_you_mean(str(value), choices)}")
        values[name] = converted(value, hints[name], f"{where}: '{name}'")
    return kind(**given, **values)

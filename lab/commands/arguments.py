"""Command lines by `argparse`, with ranges for numbers and errors of one line.

parser = Parser(prog="pliant evaluate", description=__doc__)
parser.add_argument("--episodes", type=read(Episodes), default=20)
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeAlias

from ...common.ranges import OutOfRange, above, at_least, check_value, unwrapped
from ...common.specs import convert, did_you_mean, shorten
from .given import ended, unfit, unfit_name

CORES = "no machine has more cores"
Jobs: TypeAlias = Annotated[int, at_least(0, "processes", most=4_096, why=CORES)]
SomeCores: TypeAlias = Annotated[int, at_least(1, "cores", most=4_096, why=CORES)]
SomeThreads: TypeAlias = Annotated[int, at_least(1, "threads", most=1_024, why="no machine gains by more")]
Gpus: TypeAlias = Annotated[int, at_least(0, "GPUs", most=1_024, why="no machine has more")]
GpusPerRun: TypeAlias = Annotated[float, above(0, "GPUs", most=1_024, why="no machine has more")]
HowManySeeds: TypeAlias = Annotated[int, at_least(0, "seeds", most=100_000, why="each is a run of every arm")]
Replicates: TypeAlias = Annotated[int, at_least(1, "replicates", most=100_000, why="each is a run of every arm")]
RunsPerJob: TypeAlias = Annotated[int, at_least(1, "runs", most=1_000_000, why="a job has an end")]
ReplaySizes: TypeAlias = Annotated[int, at_least(1, "transitions", most=100_000_000, why="all are played and written")]
Rounds: TypeAlias = Annotated[int, at_least(1, "rounds", most=1_000, why="a round takes minutes")]
Minutes: TypeAlias = Annotated[float, above(0, "minutes", most=10_000, why="that is a week")]


class BadArgument(ValueError):
    """A command line that cannot be read. The message is one line for the user; the exit code is 2."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that keeps the description's layout and raises `BadArgument` for an error.

    An argument without a type is a text that is not empty; one of type `Path` is a possible file name. An empty text on
    a command line usually comes from an unset shell variable. If an empty text has a meaning, the type is `str`.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)
        self.register("type", None, text)
        self.register("type", Path, path)

    def add_subparsers(self, **settings: Any) -> Any:
        action = super().add_subparsers(**settings)
        action.type = str  # the command's own parser checks the following arguments
        return action

    def error(self, message: str) -> NoReturn:
        line = _reworded(" ".join(message.split()), list(self._flags()))
        raise BadArgument(f"{ended(line)} `{self.prog} --help` lists the options")

    def _flags(self) -> Iterator[str]:
        """The flags of this parser and of its commands."""
        yield from self._option_string_actions
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._flags()


def _reworded(message: str, flags: Sequence[str]) -> str:
    """argparse's message, beginning with the flag, and with a suggestion."""
    if begun := re.match(r"argument ([^:]+): ", message):
        flag, rest = begun[1], message[begun.end() :]
        if chosen := re.fullmatch(r"invalid choice: (.*) \(choose from (.*)\)", rest):
            choices = [name.strip("'") for name in chosen[2].split(", ")]
            given = chosen[1].strip("'")
            return f"{flag} {shorten(given)} is not one of {', '.join(choices)}.{did_you_mean(given, choices)}"
        if re.match("expected (one|at least one) argument", rest):
            return f"{flag} needs {'a' if 'least' not in rest else 'at least one'} value"
        if explicit := re.match("ignored explicit argument (.*)", rest):
            return f"{flag} takes no value, and was given {explicit[1]}"
        return f"{flag}{' ' if re.match('(must|is|contains|holds|begins) ', rest) else ': '}{rest}"
    if unknown := re.fullmatch("unrecognized arguments: (.*)", message):
        arguments = unknown[1].split()
        flag = next((argument.partition("=")[0] for argument in arguments if argument.startswith("-")), None)
        if flag is None:
            return f"{shorten(arguments[0]) if arguments else 'an empty argument'} does not belong to any option"
        if flag in flags:
            return f"{flag} is an option of another command"
        return f"unknown option {shorten(flag)}.{did_you_mean(flag, flags)}"
    if missing := re.fullmatch("the following arguments are required: (.*)", message):
        return f"{missing[1]} is missing" if "," not in missing[1] else f"{missing[1]} are missing"
    return message


def text(argument: str) -> str:
    """A text of a command line (ArgumentTypeError: it is empty, or contains control characters)."""
    if complaint := unfit(argument):
        raise argparse.ArgumentTypeError(complaint)
    return argument


def path(argument: str) -> Path:
    """A path of a command line (ArgumentTypeError: no file can have this name)."""
    if complaint := unfit(argument) or unfit_name(argument):
        raise argparse.ArgumentTypeError(complaint)
    return Path(argument)


class Numeric:
    """A type for `add_argument`: reads an int or a float, as 1000000, 1_000_000 or 1e6, and checks its range.

    Attributes:
        annotation: int or float, `Annotated` with its ranges.
        kind, ranges: The parts of the annotation.
    """

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
        self.kind, self.ranges = unwrapped(annotation)
        self.__name__ = "whole number" if self.kind is int else "number"

    def __call__(self, text: str) -> int | float:
        try:
            value = convert(text, self.kind, text=True)
            check_value(value, self.annotation)
        except OutOfRange as error:
            raise argparse.ArgumentTypeError(error.complaint) from None
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a {self.__name__}, not {text[:50]!r}") from None
        return value


def read(annotation: Any) -> Callable[[str], int | float]:
    """The `type` of an argument that is a number: `read(Annotated[int, at_least(1, "episodes")])`."""
    return Numeric(annotation)

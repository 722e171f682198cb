"""Command lines by `argparse`, whose numbers have ranges and whose errors are one line.

    parser = Parser(prog="pliant evaluate", description=__doc__)
    parser.add_argument("--episodes", type=read(Episodes), default=20)
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, TypeAlias

from ..agents.ranges import OutOfRange, above, at_least, check_value, unwrapped
from ..agents.words import convert

CORES = "no machine has more cores"
Jobs: TypeAlias = Annotated[int, at_least(0, "processes", most=4_096, why=CORES)]
SomeCores: TypeAlias = Annotated[int, at_least(1, "cores", most=4_096, why=CORES)]
SomeThreads: TypeAlias = Annotated[int, at_least(1, "threads", most=1_024, why="no machine gains by more")]
Gpus: TypeAlias = Annotated[int, at_least(0, "GPUs", most=1_024, why="no machine has more")]
GpusPerRun: TypeAlias = Annotated[float, above(0, "GPUs", most=1_024, why="no machine has more")]
HowManySeeds: TypeAlias = Annotated[int, at_least(0, "seeds", most=100_000, why="each is a run of every arm")]
Replicates: TypeAlias = Annotated[int, at_least(1, "replicates", most=100_000, why="each is a run of every arm")]
RunsPerJob: TypeAlias = Annotated[int, at_least(1, "runs", most=1_000_000, why="a job has an end")]
Rounds: TypeAlias = Annotated[int, at_least(1, "rounds", most=1_000, why="a round takes minutes")]


class BadArgument(ValueError):
    """A command line that cannot be read. The message is one line for the user; the exit code is 2."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that keeps the description as it is written, and raises `BadArgument` at an error."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        line = re.sub(r"^argument ([^:]+):(?= must)", r"\1", " ".join(message.split())).removeprefix("argument ")
        raise BadArgument(f"{line} (see {self.prog} --help)")


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

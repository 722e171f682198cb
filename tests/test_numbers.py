"""Every number of every configuration, word and command line is finite and in a range that is declared beside it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module

import pytest

from pliant.scripts import main
from pliant.scripts.arguments import Numeric, Parser

ABSURD = 10**40
COMMANDS = ("bench", "claims", "evaluate", "fork", "inspect", "report", "sweep")


# ------------------------------------------------------------------------------------------------ argparse


class Captured(Exception):
    """What `parse_args` was called on."""


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser of a command, which is taken at the moment when it would read the line."""

    def capture(self: argparse.ArgumentParser, *_: object) -> None:
        raise Captured(self)

    module, _, function = main.COMMANDS[command][0].partition(":")
    with monkeypatch.context() as patched, pytest.raises(Captured) as caught:
        patched.setattr(argparse.ArgumentParser, "parse_args", capture)
        getattr(import_module(module), function)([])
    parser: argparse.ArgumentParser = caught.value.args[0]
    return parser


def actions(parser: argparse.ArgumentParser) -> Iterator[tuple[list[str], argparse.Action]]:
    """Every argument of a parser and of its subcommands, and the words that lead to the latter."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from (([name, *path], inner) for path, inner in actions(sub))
        else:
            yield [], action


def test_commands_that_use_argparse_are_all_listed_here() -> None:
    # The others have no numbers of their own (lists of names), or are read by tyro (train).
    assert set(main.COMMANDS) - set(COMMANDS) == {"train", "interventions", "monitors", "drifts"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_a_command_line_is_refused_out_of_range_in_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(command, monkeypatch)
    assert isinstance(parser, Parser)
    numeric = [(path, action) for path, action in actions(parser) if isinstance(action.type, Numeric)]
    assert numeric
    for path, action in numeric:
        assert isinstance(action.type, Numeric)
        for value in ("nan", "inf", "-inf", "-1", str(ABSURD), "1e300", "x"):
            flag = action.option_strings[0]
            assert main.main([command, *path, f"{flag}={value}"]) == 2
            told = capsys.readouterr().err
            assert told.startswith(f"error: {flag} must be ") and told.count("\n") == 1, told


@pytest.mark.parametrize("command", COMMANDS)
def test_no_number_of_a_command_line_is_without_a_range(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [a.option_strings for _, a in actions(parser_of(command, monkeypatch)) if a.type in (int, float)]
    assert not plain, "give it type=read(Annotated[int, at_least(...)])"
    numeric = [a.type for _, a in actions(parser_of(command, monkeypatch)) if isinstance(a.type, Numeric)]
    assert all(each.ranges for each in numeric)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("bench --rounds -1", "--rounds must be at least 1 round, not -1"),
        ("bench --threads 0", "--threads must be at least 1 thread, not 0"),
        ("bench --threads 100000", "--threads must be at most 1,024 threads, not 100,000: no machine gains by more"),
        ("inspect x --samples 1000000000000", "--samples must be at most 1,000,000 states, not 1,000,000,000,000: "
                                              "all of it is in memory at once"),
        ("evaluate x --num-envs 1000000000", "--num-envs must be at most 65,536 environments, not 1,000,000,000"),
        ("evaluate x --epsilon 1.5", "--epsilon must be between 0 and 1, not 1.5"),
        ("evaluate x --episodes 2.5", "--episodes must be a whole number, not '2.5'"),
        ("sweep x --executor slurm --cpus 0", "--cpus must be at least 1 core, not 0"),
    ],
)  # fmt: skip
def test_messages_name_flag_bound_unit_and_value(
    line: str, told: str, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    assert main.main(line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {told}") and said.count("\n") == 1


def test_numbers_may_be_written_as_on_the_command_line_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of("evaluate", monkeypatch)
    for text, value in (("1e3", 1000), ("1_000", 1000), ("7", 7)):
        assert parser.parse_args(["x", "--episodes", text]).episodes == value



"""A command whose output is piped into one that stops reading ends like other Unix tools: without a message."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pliant.interventions import INTERVENTIONS


@pytest.mark.parametrize(
    ("arguments", "consumer", "first"),
    [
        # More than a pipe holds.
        ("interventions " + " ".join(sorted(INTERVENTIONS) * 3), "head -1", sorted(INTERVENTIONS)[0]),
        ("monitors", "true", ""),
        ("fork --help", "true", ""),  # leaves by SystemExit
        ("--help", "true", ""),
        ("--version", "true", ""),
    ],
)
def test_a_closed_pipe_ends_a_command_without_a_message(arguments: str, consumer: str, first: str) -> None:
    pipeline = f"{sys.executable} -m pliant.scripts {arguments} | {consumer}; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, timeout=60)
    assert done.stderr == "141\n"
    assert done.stdout.startswith(first)


def test_a_command_whose_output_is_read_to_its_end_ends_with_its_own_code() -> None:
    pipeline = f"{sys.executable} -m pliant.scripts --help | cat; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, timeout=60)
    assert done.stderr == "0\n"
    assert "usage: pliant COMMAND" in done.stdout


def test_another_broken_pipe_keeps_its_traceback() -> None:
    from pliant.lab.commands.exits import exit_code

    def fail() -> int:
        raise BrokenPipeError("a worker's pipe")

    with pytest.raises(BrokenPipeError):
        exit_code(fail)

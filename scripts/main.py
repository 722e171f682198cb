"""The `pliant` command and its subcommands.

A subcommand is a function `main(argv) -> int` in a module that is imported only when the subcommand is used. Exit
codes: 0 done, 2 bad input, 75 stopped by a signal after saving, 130 or 143 ended by SIGINT or SIGTERM with nothing to
save, 141 the output's pipe was closed, 1 any other error.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path

from pliant.common.spinning import bound_spinning
from pliant.lab.commands.exits import BAD_INPUT, exit_code

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("pliant.scripts.train:main", "Train an agent in an environment, or continue a stopped run."),
    "evaluate": ("pliant.scripts.evaluate:main", "Play episodes with a trained agent and report its score."),
    "inspect": ("pliant.scripts.inspection:main", "Measure a saved agent, and how plastic it still is."),
    "fork": ("pliant.scripts.fork:main", "Branch a run at one step into arms, and diagnose its loss of plasticity."),
    "bench": ("pliant.scripts.bench:main", "Measure speed and memory."),
    "sweep": ("pliant.scripts.sweep:main", "Run a study: agents, environments, arms and seeds, here or on a cluster."),
    "report": ("pliant.scripts.report:main", "Report on runs: results, uncertainty, and open questions."),
    "claims": ("pliant.scripts.claims:main", "Run published claims, or your own, and evaluate them."),
    "interventions": ("pliant.scripts.interventions:main", "List the interventions, or explain one of them."),
    "drifts": ("pliant.scripts.drifts:main", "List the drifts of environments, or explain one of them."),
    "monitors": ("pliant.scripts.monitors:main", "List the monitors of an agent, or explain one of them."),
}
"""Name of each command, its function, and one line for `pliant --help`."""


def main(argv: Sequence[str] | None = None) -> int:
    """The console command. Returns the exit code."""
    return exit_code(lambda: _dispatch(list(sys.argv[1:] if argv is None else argv)))


def _dispatch(line: list[str]) -> int:
    if not line:
        print(_help(), file=sys.stderr)
        return BAD_INPUT
    name, *rest = line
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name in ("-V", "--version"):
        print(f"pliant {metadata.version('pliant')}")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        print(f"error: unknown command {name[:60]!r}.{hint} known commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return BAD_INPUT
    bound_spinning()
    module, _, function = COMMANDS[name][0].partition(":")
    code: int = getattr(import_module(module), function)(rest)
    return code


def script(*line: str) -> int:
    """Run `pliant` for a file of this folder: `python scripts/NAME.py …` is `pliant NAME …`.

    Python puts the folder first on the import path. It is removed again, because its `report` or `monitors` would hide
    other modules of these names. The command itself is imported again, as part of its package.
    """
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]
    return main([*line, *sys.argv[1:]])


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: pliant COMMAND ...",
            "",
            "Deep-RL agents that keep learning: train them, and study and treat loss of plasticity.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help      show this message",
            "  -V, --version   show the version",
            "",
            "`pliant COMMAND --help` explains a command.",
        ]
    )


if __name__ == "__main__":
    from pliant.scripts.main import script as as_package

    sys.exit(as_package())

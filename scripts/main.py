"""The `pliant` command: train, evaluate, measure, and look up interventions.

A subcommand is a function `main(argv) -> int` in a module that is imported when it is asked for. Exit codes: 0 done,
2 bad input, 75 stopped by a signal after saving, 130 or 143 ended by SIGINT or SIGTERM with nothing to save, 1 anything
else.
"""

from __future__ import annotations

import difflib
import inspect
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from types import FrameType
from typing import Any

from pliant.scripts.spinning import bound_spinning

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("pliant.scripts.train:main", "Train an agent in an environment, or go on with a run that was stopped."),
    "evaluate": ("pliant.scripts.evaluate:main", "Play episodes with a trained agent and report its score."),
    "inspect": ("pliant.scripts.inspection:main", "Measure a saved agent, and how plastic it still is."),
    "fork": ("pliant.scripts.fork:main", "Branch a run at one moment into what-ifs, and find out what it lacks."),
    "bench": ("pliant.scripts.bench:main", "Measure speed and memory."),
    "sweep": ("pliant.scripts.sweep:main", "Run a study: agents, environments, arms and seeds, here or on a cluster."),
    "report": ("pliant.scripts.report:main", "Report on runs: what they show, what they do not, and how sure that is."),
    "claims": ("pliant.scripts.claims:main", "Run the field's claims, or your own, and see what holds."),
    "interventions": ("pliant.scripts.main:interventions", "List the interventions, or explain one of them."),
    "drifts": ("pliant.scripts.main:drifts", "List what can change in an environment, or explain one such change."),
    "monitors": ("pliant.scripts.main:monitors", "List what can be measured of an agent, or explain one monitor."),
}
"""Name, where its function lives, and one line for `pliant --help`."""

FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
LONGEST_LINE = 2_000  # characters of an error's line
COSTS = Path(__file__).resolve().parent / "costs.json"


def main(argv: Sequence[str] | None = None) -> int:
    """The console command. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print(_help(), file=sys.stderr)
        return BAD_INPUT
    name, *rest = words
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
    return exit_code(lambda: getattr(import_module(module), function)(rest))


def script(*words: str) -> int:
    """`pliant`, for a file of this folder that Python was told to run: `python scripts/NAME.py …` is `pliant NAME …`.

    Python has put the folder in front of all that can be imported. It is taken away again: its `config`, `report` or
    `monitors` would stand before the modules of others. The command itself is imported anew, as part of its package.
    """
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]
    return main([*words, *sys.argv[1:]])


def exit_code(command: Callable[[], int]) -> int:
    """Run a command; what the user has to mend is told in one line, and a bug of ours keeps its traceback.

    The user's are exactly the ValueErrors and ImportErrors that pliant itself defines (`BadInput`, `SentenceError`,
    unknown environments, a replay that does not fit into memory). A plain ValueError may come from anywhere and is
    taken for a bug, unless it was raised within `pliant.scripts.config.bad_input`. Other errors that pliant defines (a
    full disk, a folder in use, no good checkpoint) are one line too, but no fault of the command line: exit code 1.
    """
    try:
        with _terminable():
            return command()
    except (ValueError, ImportError) as error:
        return _told(error, BAD_INPUT)
    except (RuntimeError, OSError) as error:
        return _told(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated:
        return TERMINATED


class Terminated(BaseException):
    """SIGTERM was received, by a command that has nothing to save."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that what is half done is undone. `pliant train` deals with it
    otherwise while it trains; and who ignores it, goes on ignoring it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _told(error: Exception, code: int) -> int:
    """One line for an error of pliant's own making; anything else goes on as it came."""
    if type(error).__module__.partition(".")[0] != "pliant":
        raise error
    print(f"error: {_as_line(str(error))}", file=sys.stderr)
    return code


def _as_line(text: str) -> str:
    """A text as one line of bounded length that any terminal can show: what is not printable is escaped."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 300]} ... {line[-250:]}"


def interventions(argv: Sequence[str] | None = None) -> int:
    """`pliant interventions [NAME ...]`: one line each, or the card of each one named."""
    from .config import known_interventions

    return _cards(argv, "interventions", known_interventions())


def monitors(argv: Sequence[str] | None = None) -> int:
    """`pliant monitors [NAME ...]`: one line each, or the card of each one named."""
    from ..interventions import MONITORS

    return _cards(argv, "monitors", MONITORS)


def drifts(argv: Sequence[str] | None = None) -> int:
    """`pliant drifts [NAME ...]`: one line each, or the card of each one named."""
    from ..envs.drift import DRIFTS

    return _cards(argv, "drifts", DRIFTS)


def _cards(argv: Sequence[str] | None, what: str, registry: Mapping[str, Any]) -> int:
    from ..interventions import spec
    from .config import BadInput

    names = list(sys.argv[1:] if argv is None else argv)
    if any(name in ("-h", "--help") for name in names):
        print(f"usage: pliant {what} [NAME ...]\n\nList the {what}, or explain those named.")
        return 0
    if not names:
        if not registry:
            print(f"no {what} are installed")
            return 0
        width = max(map(len, registry))
        for name, kind in sorted(registry.items()):
            print(f"{name:<{width}}  {(inspect.getdoc(kind) or '').partition(chr(10))[0]}".rstrip())
        return 0
    for name in names:
        if name not in registry:
            hint = spec.did_you_mean(name, registry)
            raise BadInput(f"unknown {what.removesuffix('s')} {name!r}.{hint} `pliant {what}` lists them all")
    print("\n\n\n".join(_card(name, registry[name]) for name in names))
    return 0


def _card(name: str, kind: Any) -> str:
    """How the word is written, its docstring, what it measures, and what it costs."""
    from ..interventions import Intervention, spec

    card = f"{spec.signature(name, kind)}\n\n{inspect.getdoc(kind) or ''}".rstrip()
    if metrics := getattr(kind, "metrics", {}):
        width = max(map(len, metrics))
        card += "\n\nMeasures:"
        card += "".join(f"\n    {metric:<{width}}  {meaning}" for metric, meaning in metrics.items())
    if getattr(kind, "fire", None) not in (None, Intervention.fire):
        card += (
            "\n\nWaits for a measurement, too: when='critic/dormant_fraction > 0.2' in the place of a beat, with\n"
            "patience (measurements in a row) and cooldown (updates). `pliant monitors` lists what is measured."
        )
    return card + _cost(name)


def _cost(name: str) -> str:
    """What `pliant bench --save` measured of an intervention or a monitor, as the end of its card."""
    costs = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    if name in costs.get("methods", {}):
        lines = [f"\n\nCost ({costs['machine']}; `pliant bench --only interventions`):"]
        for title, cost in costs["methods"][name].items():
            event = f", and {cost['event_ms']:.3g} ms whenever it fires" if cost.get("event_ms") else ""
            lines.append(f"    {title}: {cost['relative']:.2f} of the plain agent's updates a second{event}")
        return "\n".join(lines)
    if name in costs.get("monitors", {}):
        lines = [f"\n\nCost at the default cadence ({costs['monitors_machine']}; `pliant bench --only monitors`):"]
        for title, cost in costs["monitors"][name].items():
            lines.append(f"    {title}: {100 * cost['share']:.2g} % of the time, {cost['event_ms']:,.3g} ms each time")
        return "\n".join(lines)
    return ""


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

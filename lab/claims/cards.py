"""Claim files (cards): a published claim, with the runs and comparisons that test it.

    title: Random labels wear Adam out
    paper: {title: "Understanding Plasticity in Neural Networks", arxiv: "2303.01486"}
    claim: A network trained by Adam on labels drawn anew again and again ends up learning them less well than at first.
    testbed: random_labels               # beds/random_labels.yaml beside the card, or the same keys written here
    arms:
      plain:                             # no content: taken from the testbed
      layer_norm: {words: [layer_norm]}  # interventions, and flags of `pliant train` that differ from the testbed's
    measures:
      accuracy in the last tasks: {read: losses/accuracy, last: 5}
    comparisons:
      - {a: layer_norm, b: plain, expect: higher, margin: 0.05}
    seeds: 5

The keys are the fields of the classes below. The parser of `pliant train` checks a card without running anything. Each
error is one line.

A card of `kind: check` needs no seeds: it names a function of `checks.py` instead of a testbed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ...common.specs import LONGEST_SHOWN, shorten
from ...interventions import INTERVENTIONS
from ...interventions.core.spec import check, did_you_mean
from ..errors import BadInput
from ..experiments.config import RunConfig, default_run_folder, flat_fields
from ..experiments.sections import (
    NOT_FOR_FILES,
    Wrong,
    check_number_of_runs,
    checked_flags,
    command_line,
    converted,
    known_keys,
    labelled,
    make,
    needs,
    paragraph,
    plain_text,
    read_command,
    read_yaml,
    section,
    sentence,
)
from .checks import CHECKS

Kind = Literal["control", "treatment", "oracle", "fixed_task", "linear", "optimizer", "random"]
Expect = Literal["higher", "lower", "equal"]

BUILT_IN = Path(__file__).resolve().parents[2] / "claims"
"""The folder of the cards that come with pliant, in a checkout and in an installed package."""


@dataclass(frozen=True)
class Paper:
    """The source of the claim."""

    title: str
    arxiv: str = ""
    where: str = ""


@dataclass(frozen=True)
class Arm:
    """One way to run the testbed.

    Attributes:
        kind: control (no treatment), treatment, oracle (a fresh agent for every task), fixed_task (the task does not
            change), linear, optimizer (only its memory is reset), random (edits of the same size at random).
        words: Intervention specs.
        flags: Flags that differ from the testbed's; null removes a flag.
    """

    name: str
    kind: Kind = "treatment"
    words: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Testbed:
    """The settings shared by all arms.

    Attributes:
        about: A description of the task, for the page.
        flags: Flags of `pliant train` by name: `agent: supervised`, `agent.network.hidden: [128, 128]`.
        segment: Environment steps per task. A run is divided into segments of this length; 0 gives twenty segments.
        record: Tags of metrics.jsonl that the results keep, besides returns and evaluations.
        arms: Arms that cards may use by name.
    """

    name: str
    about: str
    flags: Mapping[str, Any]
    segment: int = 0
    record: tuple[str, ...] = ()
    arms: Mapping[str, Arm] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """The single number that is read from a run.

    Attributes:
        read: return (mean return of the episodes of a segment), reward (the same per step, which on streams is the
            accuracy), end_return and end_reward (of the segment's last quarter), length, eval (evaluations, the final
            one last), or a tag that the testbed records.
        of: For a tag, its mean within a segment or the last value there.
        first, last: Number of segments (evaluations) used, from the beginning or the end; 0 is all.
        reduce: How they are combined: their mean, largest or smallest value.
        relative: ratio or difference to the run's own first `base` segments.
        better: Which direction is better.
        unit: The number's name on an axis.
    """

    name: str
    read: str
    of: Literal["mean", "last"] = "mean"
    first: int = 0
    last: int = 0
    reduce: Literal["mean", "max", "min"] = "mean"
    relative: Literal["none", "ratio", "difference"] = "none"
    base: int = 1
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""


@dataclass(frozen=True)
class Comparison:
    """A comparison that a claim makes between two arms, or an arm and a number.

    Attributes:
        a, b: Names of arms; `b` may be a number.
        expect: a is higher than b, lower, or equal.
        margin: The smallest difference that matters, in the measure's unit.
        measure: The measure's name (default: the first one of the card).
        paired: Compare arms seed by seed (same task, same initial weights); otherwise use Welch's test.
    """

    a: str
    b: str | float
    expect: Expect
    margin: float
    measure: str = ""
    paired: bool = True

    @property
    def text(self) -> str:
        """`layer_norm > plain`."""
        sign = {"higher": ">", "lower": "<", "equal": "="}[self.expect]
        return f"{self.a} {sign} {self.b if isinstance(self.b, str) else format(self.b, 'g')}"


@dataclass(frozen=True)
class Card:
    """A claim, complete and checked.

    Attributes:
        name: The file's name without its suffix.
        seeds: Number of seeds; they are 0, 1, 2 …
        minutes: Expected processor minutes, used until they have been measured.
        tried: What was tried to obtain the effect, with the outcome.
        figure: The reading that the curve shows: `read` of a measure; empty for that of the first measure.
    """

    name: str
    path: Path
    title: str
    paper: Paper
    claim: str
    kind: Literal["runs", "check"] = "runs"
    testbed: Testbed | None = None
    arms: Mapping[str, Arm] = field(default_factory=dict)
    measures: Mapping[str, Measure] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    seeds: int = 5
    minutes: float = 0.0
    tried: str = ""
    check: str = ""

    @property
    def first_measure(self) -> Measure:
        return next(iter(self.measures.values()))

    def of_kind(self, kind: Kind) -> Arm | None:
        """The first arm of a kind."""
        return next((arm for arm in self.arms.values() if arm.kind == kind), None)

    def command(self, arm: Arm) -> tuple[str, ...]:
        """The arguments of `pliant train` for an arm, without seed and folder."""
        assert self.testbed is not None
        flags = {**self.testbed.flags, **arm.flags}
        if arm.words:
            flags["interventions"] = arm.words
        return command_line({name: value for name, value in flags.items() if value is not None})

    def config(self, arm: Arm, seed: int, runs: Path) -> RunConfig:
        """The run of an arm with a seed. Its configuration names its folder under `runs`, so that cards share runs."""
        command = self.command(arm)
        return replace(read_command(command), seed=seed, run=str(runs / key(command) / f"seed{seed}"))

    def key(self, arm: Arm) -> str:
        """The name of an arm's runs, see `key`."""
        return key(self.command(arm))


# ------------------------------------------------------------------------------------------------ which run it is


@cache
def key(words: tuple[str, ...]) -> str:
    """`<env>/<agent and interventions>-<hash>` of a command line. Command lines of the same run have the same key,
    independent of the seed.

    The hash is over the settings that differ from the defaults of `pliant train`, so a new option with a neutral
    default keeps the keys of the stored results. A change of a default requires that the claims are run again.
    """
    config = replace(
        read_command(words), seed=0, run=None, resume="auto", threads=0, checkpoint_every=0, keep_checkpoints=1
    )
    defaults = RunConfig(agent_config=type(config.agent_config)(), env_config=type(config.env_config)())
    usual = dict(flat_fields(defaults))
    changed = sorted((name, value) for name, value in flat_fields(config) if value != usual[name])
    digest = hashlib.blake2b(repr(changed).encode(), digest_size=4).hexdigest()
    env, experiment = default_run_folder(config).parts[1:3]
    return f"{env[:60]}/{experiment[:60]}-{digest}"


# ------------------------------------------------------------------------------------------------ reading


def find(names: Iterable[str] = ()) -> list[Card]:
    """Cards by name, or by the path of a file; without names, all that come with pliant (BadInput)."""
    known = {path.stem: path for path in sorted(BUILT_IN.glob("*.yaml"))}
    paths: list[Path] = []
    for name in names:
        if name in known:
            paths.append(known[name])
        elif name.endswith((".yaml", ".yml")) or "/" in name:
            paths.append(Path(name).expanduser())
        else:
            hint = did_you_mean(name, known)
            raise BadInput(f"unknown claim {name!r}.{hint} `pliant claims` lists them; a file is given by its path")
    return [load_card(path) for path in dict.fromkeys(paths or known.values())]


def load_card(path: Path) -> Card:
    """The card in a file (BadInput, one line that begins with the file; nothing is run or built)."""
    try:
        return _card(path, read_yaml(path, "card"))
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"{path}: {' '.join(str(error).split())}") from error


def _card(path: Path, data: dict[str, Any]) -> Card:
    known_keys(data, Card, "", besides={"name", "path"})
    needs(data, ("title", "paper", "claim"), "")
    common: dict[str, Any] = {
        "name": plain_text(path.stem, "the name of the card"),
        "path": path,
        "title": sentence(data["title"], "'title'"),
        "claim": sentence(data["claim"], "'claim'"),
        "paper": _paper(data["paper"]),
        "tried": paragraph(data.get("tried"), "'tried'"),
    }
    for name, kind in (("seeds", int), ("minutes", float), ("kind", Literal["runs", "check"])):
        if name in data:
            common[name] = converted(data[name], kind, name)
    if common.get("seeds", 1) < 1 or common.get("minutes", 0.0) < 0:
        raise Wrong("'seeds' must be at least 1, and 'minutes' not negative")
    check_number_of_runs(1, common.get("seeds", 1), "arm")
    if common.get("kind") == "check":
        return _checked_by_function(data, common)
    needs(data, ("testbed", "arms", "measures", "comparisons"), "")
    bed = _testbed(path, data["testbed"])
    arms = {name: _arm(name, content, bed) for name, content in labelled(data["arms"], "arms").items()}
    measures = {name: _measure(name, content, bed) for name, content in labelled(data["measures"], "measures").items()}
    for name, content in (("arms", arms), ("measures", measures)):
        if not content:
            raise Wrong(f"'{name}' is empty")
    check_number_of_runs(len(arms), common.get("seeds", 1), "arms")
    if not isinstance(data["comparisons"], list) or not data["comparisons"]:
        raise Wrong("'comparisons' must be a list of comparisons between arms")
    comparisons = tuple(
        _comparison(content, f"comparisons[{i}]", arms, measures) for i, content in enumerate(data["comparisons"])
    )
    card = Card(**common, testbed=bed, arms=arms, measures=measures, comparisons=comparisons)
    seen: dict[str, str] = {}
    for arm in arms.values():
        try:
            check(arm.words, INTERVENTIONS)
        except ValueError as error:
            raise Wrong(f"arm {arm.name!r}: 'words': {error}") from error
        try:
            name = card.key(arm)
        except ValueError as error:
            raise Wrong(f"arm {arm.name!r}: {error}") from error
        other = seen.setdefault(name, arm.name)
        if other != arm.name:
            raise Wrong(f"the arms {other!r} and {arm.name!r} are the same run")
    return card


def _checked_by_function(data: Mapping[str, Any], common: dict[str, Any]) -> Card:
    for name in ("testbed", "arms", "measures", "comparisons", "seeds"):
        if name in data:
            raise Wrong(f"a check runs no agent, and has no {name!r}")
    needs(data, ("check",), "")
    if not isinstance(data["check"], str) or data["check"] not in CHECKS:
        raise Wrong(
            f"unknown check {shorten(data['check'])}.{did_you_mean(str(data['check']), CHECKS)} "
            f"known checks: {', '.join(CHECKS)}"
        )
    return Card(**common, check=data["check"])


def _testbed(path: Path, content: Any) -> Testbed:
    name, where = path.stem, "testbed"
    if isinstance(content, str):
        beds = path.parent / "beds"
        known = [file.stem for file in sorted(beds.glob("*.yaml"))]
        if content not in known:
            raise Wrong(
                f"unknown testbed {shorten(content)}.{did_you_mean(content, known)} "
                f"known in {beds}: {', '.join(known) or 'none'}"
            )
        name, where = content, f"beds/{content}.yaml"
        content = read_yaml(beds / f"{content}.yaml", "card")
    data = section(content, where)
    known_keys(data, Testbed, where, besides={"name"})
    needs(data, ("about", "flags"), where)
    flags = _flags(data["flags"], f"{where}: flags")
    segment = converted(data.get("segment", 0), int, f"{where}: segment")
    if segment < 0:
        raise Wrong(f"{where}: 'segment' must not be negative")
    bed = Testbed(
        name,
        paragraph(data["about"], f"{where}: 'about'"),
        flags,
        segment,
        converted(data.get("record", ()), tuple[str, ...], f"{where}: record"),
    )
    given = data.get("arms")
    arms = labelled({} if given is None else given, f"{where}: arms")
    return replace(bed, arms={name: _arm(name, content, bed) for name, content in arms.items()})


def _paper(content: Any) -> Paper:
    paper: Paper = make(Paper, content, "paper")
    if not re.fullmatch(r"[A-Za-z0-9./-]{0,40}", paper.arxiv):
        raise Wrong(f"paper: 'arxiv' is a number like 2303.01486, not {shorten(paper.arxiv)}")
    title, where = sentence(paper.title, "paper: 'title'"), paragraph(paper.where, "paper: 'where'")
    return replace(paper, title=title, where=where)


def _arm(name: str, content: Any, bed: Testbed) -> Arm:
    if content is None:
        if name not in bed.arms:
            raise Wrong(
                f"arm {name!r} has no content, and the testbed {bed.name} no arm of this name."
                f"{did_you_mean(name, bed.arms)}"
            )
        return bed.arms[name]
    arm = make(Arm, content, f"arm {name!r}", name=name)
    return replace(arm, flags=_flags(arm.flags, f"arm {name!r}: flags", of_arm=True))


def _flags(content: Any, where: str, of_arm: bool = False) -> dict[str, Any]:
    refused = {name: f"a claim file may not set {name!r}" for name in NOT_FOR_FILES}
    if of_arm:
        refused["interventions"] = "interventions are the arm's 'words'"
    return checked_flags(content, where, refused)


def _measure(name: str, content: Any, bed: Testbed) -> Measure:
    measure = make(Measure, content, f"measure {name!r}", name=name)
    if measure.read not in SERIES and "/" not in measure.read:
        raise Wrong(
            f"measure {name!r}: unknown reading {shorten(measure.read)}.{did_you_mean(measure.read, SERIES)} "
            f"Read {', '.join(SERIES)}, or a tag like losses/accuracy"
        )
    if "/" in measure.read and measure.read not in bed.record:
        raise Wrong(
            f"measure {name!r}: the testbed {bed.name} does not record {measure.read[:LONGEST_SHOWN]}."
            f"{did_you_mean(measure.read, bed.record)} Add it to 'record'"
        )
    if measure.first and measure.last:
        raise Wrong(f"measure {name!r}: give first or last, not both")
    if measure.first < 0 or measure.last < 0 or measure.base < 1:
        raise Wrong(f"measure {name!r}: first and last must not be negative, and base at least 1")
    return measure


SERIES = ("return", "end_return", "reward", "end_reward", "length", "eval")


def _comparison(content: Any, where: str, arms: Mapping[str, Arm], measures: Mapping[str, Measure]) -> Comparison:
    comparison = make(Comparison, content, where)
    for key, name in (("a", comparison.a), ("b", comparison.b)):
        if isinstance(name, str) and name not in arms:
            raise Wrong(f"{where}: '{key}': there is no arm {shorten(name)}.{did_you_mean(name, arms)}")
    if comparison.a == comparison.b:
        raise Wrong(f"{where}: {comparison.a!r} is compared with itself")
    if comparison.measure and comparison.measure not in measures:
        raise Wrong(
            f"{where}: there is no measure {shorten(comparison.measure)}.{did_you_mean(comparison.measure, measures)}"
        )
    if comparison.margin <= 0:
        raise Wrong(f"{where}: the margin is the smallest difference that would matter, and positive")
    return comparison if comparison.measure else replace(comparison, measure=next(iter(measures)))

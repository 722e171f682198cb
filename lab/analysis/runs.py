"""Reads run folders for a report: configuration, state, curves, measurements, cost and versions of every run.

This module decides only names. A run of a study has the study's names (environment, agent, arm). Any other run is named
by its environment with its drifts, its agent, and its interventions, with the settings in which it differs from the
first such run. Only finished runs are compared; missing, failed and interrupted runs are listed.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...agents.log import METRICS, TIMING, LogDamaged, read_metrics
from ...common.files import DONE, FileDamaged, Kind, read_json
from ...common.moved import moved
from ...interventions.core.spec import parse as parse_spec
from ..errors import BadInput
from ..experiments.config import RunConfig, differences, dump, load
from ..experiments.pool import OUTPUT, costs
from ..experiments.study import FILE, Cell, Study, load_study
from ..statistics import Array

State = Literal["done", "interrupted", "failed", "missing"]

PLAIN = "plain"
"""The name of the arm without interventions, outside of a study."""
RETURN, LENGTH = "charts/episodic_return", "charts/episodic_length"
# Settings that do not affect learning, or that may be chosen again when a run continues.
NOT_PART_OF_ARM = {
    "seed",
    "run",
    "resume",
    "device",
    "threads",
    "checkpoint_every",
    "keep_checkpoints",
    "monitors",
    "log_every",
    "evaluate_every",
}
# Settings that may change between two sessions of a run (see `folder.FREE`).
MAY_CHANGE = {"run", "monitors", "resume", "steps", "checkpoint_every", "keep_checkpoints"}
INSIDE = {"checkpoints", "replay"}  # folders of a run that hold no runs


@dataclass(frozen=True)
class Series:
    """Values of one tag during a run: [N] environment steps, [N] gradient updates, [N] values."""

    steps: Array
    updates: Array
    values: Array

    def within(self, begin: float, end: float) -> Array:
        """Finite values at more than `begin` and at most `end` environment steps."""
        values = self.values[(self.steps > begin) & (self.steps <= end)]
        return values[np.isfinite(values)]


@dataclass(frozen=True)
class Fork:
    """The origin of a fork: its parent's folder, the environment step, its arm and its replicate."""

    parent: Path
    step: int
    label: str
    replicate: int
    preset: str | None


@dataclass(frozen=True)
class Record:
    """One run. `environment`, `agent` and `arm` are labels; a missing run has nothing else.

    Attributes:
        steps: Environment steps done.
        frame_skip: Environment frames of one step.
        tags: All measurements, by tag; training episodes are `charts/episodic_return`.
        tasks: [N] of the training episodes, NaN where the environment has no tasks.
        firings: Environment steps at which an intervention fired, by its name.
        seconds: Wall clock and processor seconds, NaN if they were not recorded.
        note: The reason why it is not done, in one line.
    """

    name: str
    folder: Path
    environment: str
    agent: str
    arm: str
    seed: int
    state: State
    config: RunConfig | None = None
    steps: int = 0
    updates: int = 0
    frame_skip: int = 1
    done: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, Series] = field(default_factory=dict)
    tasks: Array = field(default_factory=lambda: np.zeros(0))
    firings: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    wall_seconds: float = math.nan
    cpu_seconds: float = math.nan
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    fork: Fork | None = None
    note: str = ""

    @property
    def returns(self) -> Series:
        """Returns of the training episodes, at the steps where they ended."""
        return self.tags.get(RETURN, _EMPTY)


_EMPTY = Series(np.zeros(0), np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Runs:
    """All runs of a report.

    Attributes:
        records: All runs except forks, including missing and unfinished ones.
        forks: Runs that were branched off another run.
        parents: The parents of forks, by folder, even if they were not requested.
        study: The study of the runs, if any.
        not_in_study: Folders below a study's folder that do not belong to the study.
    """

    records: tuple[Record, ...]
    forks: tuple[Record, ...]
    parents: Mapping[Path, Record]
    study: Study | None
    not_in_study: tuple[Path, ...] = ()

    @property
    def finished(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.state == "done")


# ------------------------------------------------------------------------------------------------ finding runs


def collect(paths: Sequence[Path]) -> Runs:
    """The runs given by run folders, folders with runs below them, study files or folders of studies.

    Raises:
        BadInput: A path is none of these or contains no run, or the runs belong to two studies.
    """
    studies: dict[Path, Study] = {}
    whole: set[Path] = set()  # studies of which all runs are requested
    folders: dict[Path, None] = {}
    for path in paths:
        path = Path(path).expanduser()
        if path.is_file():
            if path.suffix not in (".yaml", ".yml"):
                raise BadInput(f"{path} is neither a folder with runs nor a study file (.yaml)")
            study_of_file = load_study(path)
            studies[study_of_file.folder.resolve()] = study_of_file
            whole.add(study_of_file.folder.resolve())
            folders |= dict.fromkeys(run_folders_below(study_of_file.folder))
            continue
        if not path.is_dir():
            raise BadInput(f"{path} does not exist: give run folders, folders with runs below them, or a study file")
        below = list(run_folders_below(path))
        inner = [file.parent for file in _walk(path, FILE)]
        above = [p for p in path.resolve().parents[:4] if (p / FILE).exists()]
        if not below and not inner:
            raise BadInput(f"{path} contains no runs: a run folder contains config.yaml")
        for folder in [*inner, *above[:1]]:
            studies[folder.resolve()] = load_study(folder)
        whole |= {folder.resolve() for folder in inner}
        folders |= dict.fromkeys(below)
    if len(studies) > 1:
        names = " and ".join(sorted(str(folder) for folder in studies))
        raise BadInput(f"these runs belong to several studies ({names}): give the runs of one study")
    study = next(iter(studies.values()), None)
    return _named(list(folders), study, bool(whole))


def run_folders_below(path: Path) -> Iterator[Path]:
    """The run folders at or below a path, in the order of their names."""
    return (file.parent for file in _walk(path, "config.yaml"))


def _walk(path: Path, wanted: str) -> Iterator[Path]:
    for folder, inside, files in os.walk(path, followlinks=True):
        # A stem is a parent that was run again up to a fork; a folder that ends in .tmp is unfinished.
        skipped = INSIDE | ({"stem"} if Path(folder).name == "forks" else set())
        inside[:] = sorted((name for name in inside if name not in skipped and not name.endswith(".tmp")), key=_natural)
        if wanted in files:
            yield Path(folder, wanted)


def _natural(name: str) -> tuple[Any, ...]:
    """seed2 before seed10."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))


def _named(folders: Sequence[Path], study: Study | None, whole: bool) -> Runs:
    cells: dict[Path, Cell] = {cell.folder.resolve(): cell for cell in study.cells()} if study is not None else {}
    records: list[Record] = []
    forks: list[Record] = []
    not_in_study: list[Path] = []
    others: list[Record] = []
    for folder in folders:
        record = read_run(folder)
        cell = cells.get(folder.resolve())
        if record.fork is not None:
            forks.append(record)
        elif cell is not None:
            records.append(
                replace(
                    _as_planned(record, cell),
                    name=cell.name,
                    environment=cell.environment,
                    agent=cell.agent,
                    arm=cell.arm,
                )
            )
        elif study is not None and study.folder.resolve() in folder.resolve().parents:
            not_in_study.append(folder)
        else:
            others.append(record)
    records += _labelled(others)
    if whole:
        there = {folder.resolve() for folder in folders}
        for place, cell in cells.items():
            if place not in there:
                records.append(
                    Record(
                        cell.name,
                        cell.folder,
                        cell.environment,
                        cell.agent,
                        cell.arm,
                        cell.seed,
                        "missing",
                        cell.config,
                        note="it was never started",
                    )
                )
    if study is not None:
        order = [(cell.environment, cell.agent, cell.arm) for cell in cells.values()]
        records.sort(key=lambda r: _place(order, (r.environment, r.agent, r.arm), r.seed))
    _refuse_duplicates(records)
    parents = _parents(forks, records)
    return Runs(tuple(records), tuple(forks), parents, study, tuple(not_in_study))


def _as_planned(record: Record, cell: Cell) -> Record:
    """The run in a cell's folder: missing if the folder holds another run, interrupted if it has fewer steps than the
    study requires."""
    assert record.config is not None
    planned = replace(cell.config, device=record.config.device, threads=record.config.threads)
    changed = [name for name in differences(record.config, planned) if name not in MAY_CHANGE]
    if changed:
        note = f"its folder holds another run, which differs in {', '.join(changed)}"
        return Record(
            cell.name,
            record.folder,
            cell.environment,
            cell.agent,
            cell.arm,
            cell.seed,
            "missing",
            cell.config,
            note=note,
        )
    if record.state == "done" and record.steps < cell.config.steps:
        return replace(record, state="interrupted", note=f"at step {record.steps:,} of {cell.config.steps:,}")
    return record


def _place(order: Sequence[tuple[str, str, str]], labels: tuple[str, str, str], seed: int) -> tuple[int, int]:
    return (order.index(labels) if labels in order else len(order), seed)


def _refuse_duplicates(records: Sequence[Record]) -> None:
    seen: dict[tuple[str, str, str, int], Record] = {}
    for record in records:
        other = seen.setdefault((record.environment, record.agent, record.arm, record.seed), record)
        if other is not record:
            raise BadInput(
                f"{other.folder} and {record.folder} are the same run (seed {record.seed} of {record.arm!r}): "
                "give only one of them"
            )


def _parents(forks: Sequence[Record], records: Sequence[Record]) -> dict[Path, Record]:
    known = {record.folder.resolve(): record for record in records}
    parents: dict[Path, Record] = {}
    for fork in forks:
        assert fork.fork is not None
        place = fork.fork.parent
        if place in parents:
            continue
        if place in known:
            parents[place] = known[place]
        elif (place / "config.yaml").exists():
            parents[place] = _labelled([read_run(place)])[0]
    return parents


# ------------------------------------------------------------------------------------- names of runs outside of studies


def _labelled(records: Sequence[Record]) -> list[Record]:
    """Runs outside of studies, named by their configurations."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        assert record.config is not None
        groups.setdefault(dump(_bare(record.config)), []).append(record)
    configs = [config for group in groups.values() if (config := group[0].config) is not None]
    first: dict[tuple[str, str], RunConfig] = {}
    plain_first = sorted(configs, key=lambda c: bool(c.interventions))
    for config in plain_first:
        first.setdefault((_problem(config), config.agent), config)
    labelled = []
    for group, config in zip(groups.values(), configs, strict=True):
        problem, agent, arm = _problem(config), config.agent, " ".join(config.interventions) or PLAIN
        # Other differences are named, so that they are not mistaken for effects of the interventions.
        settings = [replace(_bare(c), interventions=()) for c in (first[problem, agent], config)]
        if changed := differences(*settings):
            arm += " (" + ", ".join(f"{name}={_short(new)}" for name, (_, new) in changed.items()) + ")"
        labelled += [replace(record, environment=problem, agent=agent, arm=arm) for record in group]
    return labelled


def _bare(config: RunConfig) -> RunConfig:
    blank = RunConfig(agent=config.agent, env=config.env)
    return replace(config, **{name: getattr(blank, name) for name in NOT_PART_OF_ARM})


def _problem(config: RunConfig) -> str:
    drifts = [str(parse_spec(spec)) for spec in getattr(config.env_config, "drift", ())]
    return " ".join([config.env, *drifts])


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ------------------------------------------------------------------------------------------------ one run


def read_run(folder: Path) -> Record:
    """The content of a run's folder, with the labels of a run outside of a study.

    Raises:
        BadInput: One line that begins with the file that cannot be read.
    """
    config = load(folder)
    done = _done(folder / DONE)
    rows = _rows(folder)
    with _as_a_run_writes(folder / METRICS):
        tags, tasks, firings = _columns(rows)
        steps = int(done.get("steps", max((row["steps"] for row in rows), default=0)))
        updates = int(done.get("updates", max((row["updates"] for row in rows), default=0)))
        skip = next((round(row["frames"] / row["steps"]) for row in rows if row["steps"]), 1)
    state, note = _state(folder, config, done, steps)
    wall, cpu = _seconds(folder)
    with _as_a_run_writes(folder / "versions.json"):
        sessions = _json(folder / "versions.json", list) or []
        last = dict(sessions[-1]) if sessions else {}
        versions = _versions(last, config)
    return Record(
        name=str(folder),
        folder=folder,
        environment=config.env,
        agent=config.agent,
        arm=" ".join(config.interventions) or PLAIN,
        seed=config.seed,
        state=state,
        config=config,
        steps=steps,
        updates=updates,
        frame_skip=skip,
        done=done,
        tags=tags,
        tasks=tasks,
        firings=firings,
        wall_seconds=wall,
        cpu_seconds=cpu,
        versions=versions,
        command=str(last.get("command", "")),
        fork=_fork(folder),
        note=note,
    )


def _rows(folder: Path) -> list[dict[str, Any]]:
    if not (folder / METRICS).exists():
        return []
    try:
        return read_metrics(folder)
    except LogDamaged as error:
        raise BadInput(str(error)) from None
    except (ValueError, OSError) as error:
        raise BadInput(f"{folder / METRICS} cannot be read: {' '.join(str(error).split())}") from None


def _json(file: Path, kind: type[Kind]) -> Kind | None:
    try:
        return read_json(file, kind, "Restore it from a copy, or leave this run out")
    except FileDamaged as error:
        raise BadInput(str(error)) from None


@contextmanager
def _as_a_run_writes(file: Path) -> Iterator[None]:
    """Wraps the reading of values: a wrong key or type gives an error that names the file (BadInput)."""
    try:
        yield
    except BadInput:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise BadInput(f"{file} does not have the content that a run writes: {error!r}") from error


def _done(file: Path) -> dict[str, Any]:
    """The content of a finished run's DONE, with its numbers checked; empty for other runs."""
    content: dict[str, Any] = _json(file, dict) or {}
    with _as_a_run_writes(file):
        if content:
            content |= {name: int(content[name]) for name in ("steps", "updates")}
        if (evaluation := content.get("evaluation")) is not None:
            float(evaluation["mean"])
            [float(value) for value in evaluation["returns"]]
    return content


def _columns(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Series], Array, dict[str, tuple[int, ...]]]:
    columns: dict[str, tuple[list[float], list[float], list[float]]] = {}
    tasks: list[float] = []
    firings: dict[str, list[int]] = {}
    for row in rows:
        if RETURN in row:
            tasks.append(float(row.get("task", math.nan)))
        for tag, value in row.items():
            if "/" not in tag:
                continue
            if tag.startswith("firings/"):  # one line per firing, with its counts
                at = firings.setdefault(tag.split("/")[1], [])
                if not at or at[-1] != int(row["steps"]):
                    at.append(int(row["steps"]))
                continue
            column = columns.setdefault(tag, ([], [], []))
            for values, one in zip(column, (row["steps"], row["updates"], value), strict=True):
                values.append(float(one))
    series = {tag: Series(*(np.asarray(x, dtype=np.float64) for x in column)) for tag, column in columns.items()}
    return series, np.asarray(tasks, dtype=np.float64), {name: tuple(at) for name, at in firings.items()}


FAILURE = re.compile(r"^(error: |(\w+\.)*\w*(Error|Exception|Damaged|Failed)\b)")


def _state(folder: Path, config: RunConfig, done: Mapping[str, Any], steps: int) -> tuple[State, str]:
    """Done, failed or interrupted, and a line with the reason (for a failed run, its last output)."""
    if done and steps >= config.steps:
        return "done", ""
    output = folder / OUTPUT
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines() if output.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    where = f"at step {steps:,} of {config.steps:,}"
    if FAILURE.match(last):
        return "failed", f"{where}: {last}"
    return "interrupted", where


def _seconds(folder: Path) -> tuple[float, float]:
    """Wall clock and processor seconds over all sessions of a run."""
    wall = cpu = math.nan
    if sessions := costs(folder):
        return sum(s["wall"] for s in sessions), sum(s["cpu"] for s in sessions)
    if (folder / TIMING).exists():
        try:
            rows = read_metrics(folder / TIMING)
            parts = [sum(float(v) for k, v in row.items() if k.startswith("time/")) for row in rows]
            wall = float(sum(parts)) if parts else math.nan
        except (LogDamaged, TypeError, ValueError, OSError):  # only a displayed time depends on it
            print(f"{folder / TIMING} is damaged: the run's time is not reported", file=sys.stderr)
    return wall, cpu


def _versions(session: Mapping[str, Any], config: RunConfig) -> dict[str, str]:
    versions = {name: str(session[name]) for name in ("git", "python", "platform") if session.get(name)}
    versions |= {name: str(v) for name, v in (session.get("packages") or {}).items() if v is not None}
    return versions | {"device": config.device, "threads": str(config.threads)}


def _fork(folder: Path) -> Fork | None:
    if (data := _json(folder / "fork.json", dict)) is None:
        return None
    try:
        return Fork(
            (folder / data["parent"]).resolve(),
            int(data["step"]),
            str(data["label"]),
            int(data["replicate"]),
            data.get("preset"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{folder / 'fork.json'} does not describe a fork: {type(error).__name__} {error}") from None


__getattr__ = moved(__name__, {"found_below": f"{__name__}.run_folders_below"})  # former names

"""Forks: a run is branched at one step into arms that share everything up to it.

`pliant fork --help` (scripts/fork.py) describes what a fork shares with its parent. Here, `checkpoint_at` provides the
parent's checkpoint, `_prepared` writes the folder of an arm from it (a branched checkpoint, the parent's log,
`fork.json`), and the arms are then trained like any other runs. All folders of a fork are written under temporary names
and renamed when all are complete, so that no incomplete folder ever has its final name.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pliant.agents import Agent
from pliant.agents.checkpoint import (
    Checkpoint,
    Checkpoints,
    FolderUnusable,
    RunLock,
    RunLocked,
    SaveFailed,
    branch,
    make_folder,
    saved_steps,
    unmake,
)
from pliant.agents.clock import At, Clock, Every
from pliant.agents.hooks import Intervention, sample_like_training
from pliant.agents.log import METRICS, TIMING, read_metrics
from pliant.agents.progress import Progress as RunProgress
from pliant.agents.run import Run
from pliant.agents.views import view
from pliant.common.files import read_json, write_whole
from pliant.common.moved import moved
from pliant.common.ranges import COUNTED, parameters_of
from pliant.common.seeds import derive_seed
from pliant.common.specs import shorten
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import Spec, check, parse
from pliant.lab import statistics as stats
from pliant.lab.errors import BadInput, bad_input
from pliant.lab.experiments.config import RunConfig, dump, load, safe_name, spec_for_folder, usable_device
from pliant.lab.experiments.folder import ANOTHER_FOLDER_HELPS, STOPPED
from pliant.lab.experiments.own_modules import refuse_others
from pliant.lab.experiments.pool import Job, Progress, run_all
from pliant.lab.experiments.training import assembled, built
from pliant.monitors.registry import watch

FORKS, LINEAGE, STEM = "forks", "fork.json", "stem"
CONTROL = "control"
ONCE = 10**15  # a period longer than any run: the intervention fires only at the fork

DIAGNOSES: dict[str, tuple[str, str]] = {
    "injection": (
        "plasticity_injection",
        "the critic's head has lost its plasticity (a newly added head still learns)",
    ),
    "actor_reset": (f"reset(layers=actor, every={ONCE})", "the actor has lost its plasticity (a new one learns)"),
    "critic_reset": (f"reset(layers=critic, every={ONCE})", "the critic has lost its plasticity (a new one learns)"),
    "full_reset": (
        f"fresh_agent(every={ONCE}, memory=keep, exploration=keep)",
        "the networks, not the data, limit the agent (new networks do better on the stored data)",
    ),
    "fresh_agent": (
        f"fresh_agent(every={ONCE}, exploration=keep)",
        "the networks limit the agent (new networks do better from here on)",
    ),
    "fresh_optimizer": (f"reset_optimizer(every={ONCE})", "the optimizer's state (its moments) is stale"),
    "fresh_target": (f"reset_target(every={ONCE})", "the target network gives misleading targets"),
}
"""The arms that `--diagnose` adds to the control, and the conclusion if the arm does better than the control."""


@dataclass(frozen=True)
class Arm:
    """One arm: its intervention specs (none for the control), its name, and the preset that defined it."""

    specs: tuple[str, ...] = ()
    label: str = CONTROL
    preset: str | None = None
    monitors: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        if self.preset or not self.specs:
            return self.label
        return safe_name("+".join(spec_for_folder(parse(spec)) for spec in self.specs))


@dataclass(frozen=True)
class Parent:
    """The run that is forked."""

    folder: Path
    config: RunConfig


@contextmanager
def locked_against_forks(parents: Sequence[Parent]) -> Iterator[None]:
    """Lock these runs against other `pliant fork` processes: one would mistake the unfinished folders of arms for
    leftovers of a killed process, and delete them. After an error, the lock files and new folders are removed too.

    Raises:
        BadInput: A run is being forked by another process, or its folder cannot be written.
    """
    locks: list[RunLock] = []
    try:
        for folder in sorted({parent.folder.resolve() / FORKS for parent in parents}):
            try:
                locks.append(RunLock(folder))
            except RunLocked as error:
                raise BadInput(f"{folder.parent} is being forked already: {error}") from error
            except FolderUnusable as error:
                if error.errno not in ANOTHER_FOLDER_HELPS:
                    raise
                raise BadInput(
                    f"{error}. Forks are stored in the folder of their run: copy that folder to another place"
                ) from error
        yield
    except BaseException:
        for lock in reversed(locks):
            lock.undo()
        raise
    finally:
        for lock in locks:
            lock.release()


class _Staged:
    """Folders that are written under temporary names and renamed one after the other when all are complete. After an
    error before that, none of them is left.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[Path, Path]] = []
        self._made: list[Path] = []

    def new(self, folder: Path) -> Path:
        """A temporary folder, later renamed to `folder` (BadInput if something else exists there; FolderUnusable)."""
        staging = folder.with_name(folder.name + ".tmp")
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise BadInput(f"{folder} already exists and is not a fork: move it to another place")
        self._pairs.append((staging, folder))
        if staging.exists():  # left by a process that was killed
            shutil.rmtree(staging)
        self._made += make_folder(staging)
        return staging

    def __enter__(self) -> _Staged:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for staging, folder in self._pairs:
                try:
                    os.replace(staging, folder)
                except OSError as error:
                    raise FolderUnusable(f"cannot make the folder {folder}: {error.strerror}", error.errno) from error
            return
        for staging, _folder in self._pairs:
            shutil.rmtree(staging, ignore_errors=True)
        unmake(self._made)


# ------------------------------------------------------------------------------------------------ arguments


def parent_of(folder: Path) -> Parent:
    """Load a run that can be forked; BadInput if it is not a readable run folder."""
    try:
        there = (folder / "config.yaml").exists()
    except OSError as error:
        raise BadInput(f"{folder} cannot be read: {error.strerror}") from None
    if not there:
        raise BadInput(f"{folder}: not a run folder (no config.yaml)")
    config = load(folder)
    refuse_others(folder, config.env)
    return Parent(folder, config)


def fork_step(text: str, parents: Sequence[Parent]) -> int:
    """The step given by `--at`; `latest` is the step of the newest checkpoint, which is the same in all parents, else
    BadInput."""
    if text == "latest":
        newest = [max(saved_steps(parent.folder), default=0) for parent in parents]
        if min(newest) < 1:
            raise BadInput(f"{parents[newest.index(0)].folder} has no checkpoint to fork from")
        if len(set(newest)) > 1:
            raise BadInput(
                f"the latest checkpoints of these runs differ: {', '.join(map(str, newest))}; give a step with --at"
            )
        return newest[0]
    try:
        plain = text.replace("_", "")
        if (number := float(plain)) != int(number):
            raise ValueError
        at = int(number) if "e" in plain.lower() else int(plain)
    except (ValueError, OverflowError):
        raise BadInput(f"--at must be a number of environment steps or latest, not {shorten(text)}") from None
    if at < 1:
        raise BadInput(f"--at must be at least 1, not {at}: from the very start, use pliant train --interventions")
    if at > COUNTED:
        raise BadInput(f"--at must be at most {COUNTED:,}, not {shorten(text)}")
    return at


def split(text: str) -> list[str]:
    """The intervention specs in a text, split at spaces outside of parentheses and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        if letter.isspace() and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part]


def arm_of(text: str) -> Arm:
    """The arm with the intervention specs in a text (SpecError)."""
    specs = check(split(text), INTERVENTIONS)
    return Arm(specs, " ".join(specs) or CONTROL)


def _at(text: str, step: int) -> str:
    """The spec, with `at=<step of the fork>` if the intervention takes single steps only and the spec gives neither
    `at` nor `when`."""
    spec = parse(text)
    parameters = parameters_of(INTERVENTIONS[spec.name])
    if "at" not in parameters or "every" in parameters or {"at", "when"} & {*spec.arguments}:
        return text
    return check([str(Spec(spec.name, {**spec.arguments, "at": step, "of": "steps"}))], INTERVENTIONS)[0]


def diagnosis(config: RunConfig) -> list[Arm]:
    """The arms of `--diagnose` that suit this agent."""
    arms: list[Arm] = []
    for label, (text, _) in DIAGNOSES.items():
        if label == "fresh_agent" and any(arm.label == "full_reset" for arm in arms):
            continue  # full_reset suits this agent, and is the sharper test: new networks on the same data
        arm = replace(arm_of(text), label=label, preset="diagnose")
        try:
            specs = (*config.interventions, *(_at(spec, 1) for spec in arm.specs))
            envs, _ = built(resolved(replace(config, interventions=specs)))
        except BadInput as error:
            print(f"left out of the diagnosis: {label} ({error})", file=sys.stderr)
        else:
            envs.close()
            arms.append(arm)
    return arms


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with device and threads chosen as `pliant train` resolves them."""
    return replace(config, device=usable_device(config.device), threads=config.threads or torch.get_num_threads())


# ------------------------------------------------------------------------------------------------ forking


def fork(
    parents: Sequence[Parent],
    at: int,
    arms: Sequence[Arm],
    *,
    replicates: int = 1,
    steps: int | None = None,
    length: int | None = None,
    jobs: int = 1,
) -> int:
    """Branch runs into arms, run them, and print the results. Returns the exit code.

    Args:
        parents: The runs.
        at: Environment steps at which they are forked.
        arms: All arms, including the control.
        replicates: Replicates of every arm; all but the first get new random streams.
        steps: The step at which arms end; if None, that of the parent's configuration.
        length: Environment steps that arms run after the fork; replaces `steps`.
        jobs: Processes at a time.

    Raises:
        BadInput: A step that a run never reached, an intervention that cannot be added to a trained network, a monitor
            that does not suit the agent, or an arm that was started with other settings.
    """
    for parent in parents:
        if beside := [spec for arm in arms for spec in arm.monitors]:
            with _Built(resolved(parent.config)) as (_, agent), bad_input():
                watch(agent, *beside)
        for spec in (spec for arm in arms for spec in arm.specs):
            _refuse_late(spec)
        end = parent.config.steps if steps is None else steps
        if length is None and end <= at <= parent.config.steps:
            raise BadInput(f"arms of {parent.folder} would end at step {end}, but begin at {at}: give --for N")
    queue: list[Job] = []
    folders: dict[str, dict[tuple[int, int], Path]] = {arm.label: {} for arm in arms}
    spans: dict[int, tuple[int, int]] = {}
    with _Staged() as staged:
        for number, parent in enumerate(parents):
            checkpoint = checkpoint_at(parent, at)
            end = checkpoint.step + length if length is not None else parent.config.steps if steps is None else steps
            if end <= checkpoint.step:
                raise BadInput(
                    f"arms of {parent.folder} would end at step {end}, but begin at {checkpoint.step}: give --for N"
                )
            spans[number] = checkpoint.step, end
            for arm in arms:
                for replicate in range(replicates):
                    folder = parent.folder / FORKS / str(checkpoint.step) / arm.folder / f"seed{replicate}"
                    config = _prepared(parent, checkpoint, arm, replicate, folder, end, staged)
                    arguments = ("--config", str(folder / "config.yaml"), "--run", str(folder))
                    queue.append(Job(replace(config, run=str(folder)), arguments))
                    folders[arm.label][number, replicate] = folder
    outcomes = run_all(queue, workers=jobs, progress=Progress(sys.stderr))
    failed = [o for o in outcomes if o.status == "failed"]
    open_ = [o for o in outcomes if o.status in ("stopped", "waiting")]
    if open_:
        print(f"{len(open_)} runs are unfinished; the same command continues them", file=sys.stderr)
    if failed or open_:
        return 1 if failed else STOPPED
    print(results_table(folders, arms, spans))
    where = " ".join(str(parent.folder / FORKS / str(spans[number][0])) for number, parent in enumerate(parents))
    print(f"\nReport: pliant report {where} --out report")
    return 0


def checkpoint_at(parent: Parent, at: int) -> Checkpoint:
    """A checkpoint of the parent at a step. If there is none, the parent is run again up to that step (BadInput)."""
    steps = saved_steps(parent.folder)
    if at in steps:
        return Checkpoints.open(parent.folder / "checkpoints" / f"step_{at:012d}", verify=None)
    stem = parent.folder / FORKS / STEM / str(at)
    if made := saved_steps(stem):
        return Checkpoints.open(stem / "checkpoints" / f"step_{made[-1]:012d}", verify=None)
    if at > parent.config.steps:
        raise BadInput(
            f"{parent.folder} ends at step {parent.config.steps:,}, before {at:,}; continue it first "
            "(pliant train --config … --steps …), or fork it earlier"
        )
    before = [step for step in steps if step < at]
    begins = f"step {before[-1]:,}" if before else "the start"
    print(
        f"{parent.folder} has no checkpoint of step {at:,} (it has {_listed(steps)}): running it again from {begins}",
        file=sys.stderr,
    )
    config = resolved(parent.config)
    with _Staged() as staged, _Built(config) as (envs, agent):
        staging = staged.new(stem)
        if before:
            origin = Checkpoints.open(parent.folder / "checkpoints" / f"step_{before[-1]:012d}", verify=None)
            branch(origin, staging)
            _copy_record(parent.folder, staging)
        run, checkpoints, log, _ = assembled(staging, config, envs, agent, RunProgress(at))
        checkpoint = checkpoints.resume()
        if checkpoint is not None:
            run.restore(checkpoint)
        else:
            log.restart()
        run.checkpoint_every = 0
        run.train(at)
        log.close("stopped")
        _check_repeated(parent.folder, staging, at)
        write_whole(staging / "config.yaml", dump(replace(config, run=None)))
    return checkpoint_at(parent, at)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps) or "none"


class _Built:
    """Environments and agent of a configuration. On exit they are closed and torch's thread count is restored."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.threads = config, torch.get_num_threads()

    def __enter__(self) -> tuple[Any, Agent]:
        self.envs, agent = built(self.config)
        return self.envs, agent

    def __exit__(self, *error: object) -> None:
        self.envs.close()
        torch.set_num_threads(self.threads)


def _copy_record(source: Path, target: Path) -> None:
    """Copy the logs. Entries after the checkpoint are removed when the run continues."""
    for file in source.iterdir():
        if file.name in (METRICS, TIMING) or file.name.startswith("events."):
            try:
                shutil.copyfile(file, target / file.name)
            except OSError as error:
                raise SaveFailed(f"cannot copy {file} to {target}: {error.strerror}", error.errno) from error


def _check_repeated(parent: Path, stem: Path, at: int) -> None:
    """Refuse a parent that was not repeated exactly: another machine or version may round differently (BadInput)."""

    def before(folder: Path) -> list[tuple[int, bytes]]:
        """The log lines before the step of the fork (LogDamaged)."""
        if not (folder / METRICS).exists():
            return []
        rows = read_metrics(folder)
        lines = zip(rows, (folder / METRICS).read_bytes().split(b"\n"), strict=False)
        return [(row["steps"], line) for row, line in lines if row["steps"] < at]

    there, here = before(parent), before(stem)
    if there != here[: len(there)] and here != there[: len(here)]:
        shorter = min(len(there), len(here))
        first = next((i for i in range(shorter) if there[i] != here[i]), shorter)
        step = (there or here)[min(first, len(there or here) - 1)][0]
        raise BadInput(
            f"running {parent} again did not repeat it: the logs differ from step {step:,} on (another machine, thread "
            "count or version may round differently). Fork at one of its checkpoints, or continue the run on this "
            "machine with a larger --keep-checkpoints and fork it at a later step"
        )


def begin(parent: Parent, checkpoint: Checkpoint, arm: Arm, replicate: int, folder: Path, steps: int) -> RunConfig:
    """Make the folder of an arm, unless it exists, and return its configuration (BadInput)."""
    with _Staged() as staged:
        return _prepared(parent, checkpoint, arm, replicate, folder, steps, staged)


def _prepared(
    parent: Parent, checkpoint: Checkpoint, arm: Arm, replicate: int, folder: Path, steps: int, staged: _Staged
) -> RunConfig:
    """Like `begin`, but the folder gets its name together with those of the other arms."""
    specs = tuple(_at(spec, checkpoint.step) for spec in arm.specs)
    kept = () if not arm.monitors else tuple(m for m in parent.config.monitors if m != "none")
    config = replace(
        resolved(parent.config),
        interventions=parent.config.interventions + specs,
        steps=steps,
        resume="auto",
        monitors=(*kept, *arm.monitors) if arm.monitors else parent.config.monitors,
    )
    lineage = {
        "parent": os.path.relpath(parent.folder.resolve(), folder.resolve()),
        "step": checkpoint.step,
        "arm": " ".join(arm.specs),
        "label": arm.label,
        "replicate": replicate,
        "preset": arm.preset,
    }
    way_out = "Move the folder of the arm away; the same command makes it again"
    if (there := read_json(folder / LINEAGE, dict, way_out)) is not None:
        if there != lineage:
            key = next((key for key in {**lineage, **there} if there.get(key) != lineage.get(key)), "")
            was, now = there.get(key), lineage.get(key)
            raise BadInput(f"{folder} belongs to another fork: its {key} is {was}, not {now}")
        # Monitors do not change a run, so an arm with more monitors than required can be used; one with fewer cannot.
        if missing := [spec for spec in arm.monitors if spec not in load(folder).monitors]:
            raise BadInput(
                f"{folder} was run without {' '.join(missing)}: move the folder away, and the same command runs "
                "the arm with all its monitors"
            )
        return config
    staging = staged.new(folder)
    branch(checkpoint, staging)
    # The logs are those of the folder that holds the checkpoint, byte for byte, so that the arm continues them.
    _copy_record(checkpoint.path.parent.parent, staging)
    if specs or replicate:
        _convert(parent, config, staging, len(specs), replicate, checkpoint.step)
    write_whole(staging / "config.yaml", dump(replace(config, run=None)))
    write_whole(staging / LINEAGE, json.dumps(lineage, indent=1) + "\n")
    return config


def _refuse_late(spec: str) -> None:
    """Refuse an intervention that cannot be added to a run that has begun (BadInput)."""
    if reason := getattr(INTERVENTIONS[parse(spec).name], "only_from_start", ""):
        raise BadInput(f"{spec} cannot be added to a run that has begun: {reason}")


def _convert(parent: Parent, config: RunConfig, folder: Path, joining: int, replicate: int, step: int) -> None:
    """Add the arm's interventions and random streams to the run in its folder, and save it."""
    plain = replace(config, interventions=config.interventions[: len(config.interventions) - joining])
    with _Built(plain) as (_, before):
        for spec in config.interventions[len(plain.interventions) :]:
            _refuse_late(spec)
            if joining > 1:  # each alone first, so that an error names the right intervention
                with _Built(replace(plain, interventions=(*plain.interventions, spec))) as (_, alone):
                    _adopt(alone, before, Checkpoints.open(folder).load("agent")["state"], 1, spec)
        with _Built(config) as (envs, agent):
            run, checkpoints, log, _ = assembled(folder, config, envs, agent)
            checkpoint = checkpoints.resume()
            assert checkpoint is not None
            specs = " ".join(config.interventions[len(plain.interventions) :])
            with bad_input():
                run.restore(checkpoint, lambda state: _adopt(agent, before, state, joining, specs))
            if replicate:
                reseed_(run, derive_seed(config.seed, f"fork at {step}, replicate {replicate}"))
            if joining:
                _join(run, before, joining, specs)
            run.save()
            log.close("stopped")


def _adopt(agent: Agent, plain: Agent, state: dict[str, Any], joining: int, specs: str) -> None:
    """Load the state of an agent with fewer interventions into `agent`, and into `plain`, which
    is built like the agent that was saved."""
    settings = [_settings(agent), _settings(plain)]
    try:
        plain.load_state_dict(state)
        agent.load_state_dict(state, joining=joining)
    except ValueError as error:
        if not joining:
            raise
        why = " ".join(str(error).split()).partition(". Build the agent")[0].partition(": ")[2]
        raise BadInput(
            f"{specs} cannot be added to a trained network: with it, the agent's tensors do not match the saved ones "
            f"({why}). Compare two runs from the start instead: pliant train --interventions"
        ) from error
    # Optimizer settings changed by the new interventions take precedence over the saved settings.
    for group, mine, initial in zip(_groups(agent), *settings, strict=True):
        group |= {key: value for key, value in mine.items() if value != initial[key]}


def _groups(agent: Agent) -> list[dict[str, Any]]:
    return [group for _, optimizer in agent.optimizers() for group in optimizer.param_groups]


def _settings(agent: Agent) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in _groups(agent)]


def reseed_(run: Run, seed: int) -> None:
    """From now on, draw all random numbers of a run from another seed; the environment and its drifts stay the same."""
    run.agent.reseed(seed)
    run.memory.reseed(derive_seed(seed, "replay"))
    run.envs.reseed(seed)  # type: ignore[attr-defined]


def _join(run: Run, plain: Agent, joining: int, specs: str) -> None:
    """Initialise the last `joining` interventions, which were just added to a run's agent, and fire those due now.

    They must leave the agent's outputs unchanged, else BadInput.
    """
    agent, clock = run.agent, run.clock
    generator = torch.Generator(agent.device).manual_seed(derive_seed(agent.seed, f"fork at {clock.steps}"))
    try:
        batch = sample_like_training(run, agent.sampling(clock).batch_size, generator)
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"the agent has made no update yet at step {clock.steps}; fork later ({error})") from error
    with torch.no_grad():
        pairs = [
            (view(agent).values(batch), view(plain).values(batch)),
            (view(agent).decisions(batch), view(plain).decisions(batch)),
        ]
        if any(component.target is not None for component in agent.components.values()):
            pairs.append((view(agent).values(batch, target=True), view(plain).values(batch, target=True)))
    if not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
        raise BadInput(
            f"{specs} cannot be added to a trained network: it would change the network's outputs at once. "
            "Compare two runs from the start instead: pliant train --interventions"
        )
    with torch.no_grad():
        activations = view(agent).activations(batch)
    parts = list(agent.interventions)
    for part in parts[len(parts) - joining :]:
        part.added_late(run, activations)
        if fires_at_fork(part, clock):
            part.fire_now(run, activations)


def fires_at_fork(part: Intervention, clock: Clock) -> bool:
    """Whether an intervention that is added at this step fires at once.

    A periodic one fires if the fork lies between its `start` and its `stop`, one with single steps if this is one of
    them; neither does if it fires at the next update anyway. BadInput if all its steps are past.
    """
    if type(part).fire is Intervention.fire:
        return False
    when = part.when
    if isinstance(when, Every):
        now = clock.read(when.of)[1]
        return when.start <= now and (when.stop is None or now <= when.stop) and not when(clock.updated())
    if isinstance(when, At):
        now = clock.read(when.of)[1]
        if max(when.moments) < now:
            raise BadInput(
                f"{part.name} would never fire: all its steps are before the fork at {now}; leave out `at`, or give a "
                "later step"
            )
        return now in when.moments and not when(clock.updated())
    return False


# ------------------------------------------------------------------------------------------------ results


def returns(folder: Path, step: int, end: int | None = None) -> list[tuple[int, float]]:
    """Environment step and return of every episode that ended after `step`, up to and including `end`."""
    tag, last = "charts/episodic_return", math.inf if end is None else end
    rows = [row for row in read_metrics(folder) if tag in row]
    return [(row["steps"], float(row[tag])) for row in rows if step < row["steps"] <= last]


def score(folder: Path, step: int, end: int | None = None) -> float:
    """The mean return of the episodes in (step, end]; NaN if there are none. All arms have reached `end`."""
    values = [value for _, value in returns(folder, step, end)]
    return sum(values) / len(values) if values else float("nan")


def results_table(
    folders: Mapping[str, Mapping[tuple[int, int], Path]], arms: Sequence[Arm], spans: Mapping[int, tuple[int, int]]
) -> str:
    """The table of the arms, and the conclusions of a diagnosis.

    `spans` holds the steps at which the arms of each parent begin and end; an arm may have been trained beyond its end.
    """
    scores = {
        label: {key: score(path, *spans[key[0]]) for key, path in paths.items()} for label, paths in folders.items()
    }
    rows = [("arm", "runs", "mean return since the fork", "against the control", "95 % interval")]
    findings, unsure = [], False
    for arm in arms:
        values = [value for value in scores[arm.label].values() if math.isfinite(value)]
        mean = f"{sum(values) / len(values):.4g}" if values else "no episode"
        if arm.label == CONTROL:
            rows.append((CONTROL, str(len(values)), mean, "", ""))
            continue
        gap = stats.paired_by_parent(scores[arm.label], scores[CONTROL])
        if gap is None:
            rows.append((arm.label, str(len(values)), mean, "", "no pair"))
            unsure = True
            continue
        low, high = gap.interval()[1:]
        interval = f"[{low:+.4g}, {high:+.4g}]" if gap.known else "too few runs"
        rows.append((arm.label, str(len(values)), mean, f"{gap.estimate:+.4g}", interval))
        unsure |= not gap.known
        if arm.preset == "diagnose":
            if gap.known and low > 0:
                findings.append(f"{arm.label} recovers: {DIAGNOSES[arm.label][1]}.")
            elif gap.known and high < 0:
                findings.append(f"{arm.label} is worse than the control.")
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    table = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
    if not any(arm.preset == "diagnose" for arm in arms):
        return table
    if unsure and not findings:
        findings = ["Too few runs: an interval needs three pairs, from --reseed N or several parents."]
    elif not any("recovers" in finding for finding in findings):
        findings.append(
            "No arm recovers: within this time, the agent is limited by neither its networks, its optimizer nor its "
            "target, or there are too few runs to detect it."
        )
    return "\n".join([table, "", *findings])


FORMER = {
    "told": "results_table",  # former names
    "held": "locked_against_forks",
    "moment": "fork_step",
    "settled": "resolved",
    "reach": "checkpoint_at",
}
__getattr__ = moved(__name__, {name: f"{__name__}.{new}" for name, new in FORMER.items()})

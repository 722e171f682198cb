"""Forks: a run is branched at one step into arms that share everything up to it.

Every arm is a run in its own folder, RUN/forks/<step>/<arm>/seed<k>. It starts with the parent's weights, optimizer,
replay, environments, and random streams at that step, and with the parent's log up to it. `pliant train --config`
continues an arm like any other run. The control arm changes nothing and repeats the parent to the last bit. `k` is the
replicate: replicate 0 continues the parent's random streams; --reseed draws new streams for the others. The streams are
the same in all arms, so that arms are compared in pairs.

An arm's interventions are added to the parent's. Scheduled interventions (`every=`) fire at the fork itself and then on
their schedule. Interventions with `start=` or `when='...'` wait for their condition. Interventions that would change a
network's outputs at once, such as layer norm, cannot be added to a trained network, and are refused by name.

If no checkpoint holds the step, the parent is run again from the last checkpoint before it (or from the start), which
repeats the parent to the last bit.
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
    Checkpoints,
    FolderUnusable,
    Found,
    RunLock,
    RunLocked,
    SaveFailed,
    branch,
    make_folder,
    saved_steps,
    unmake,
)
from pliant.agents.hooks import At, Clock, Every, Intervention, sample_like_training
from pliant.agents.log import METRICS, TIMING, read_metrics
from pliant.agents.progress import Progress as RunProgress
from pliant.agents.run import Run
from pliant.common.files import read_json, write_whole
from pliant.common.ranges import COUNTED, parameters_of
from pliant.common.seeds import derive_seed
from pliant.common.specs import shorten
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import Spec, check, parse
from pliant.lab import statistics as stats
from pliant.lab.errors import BadInput, bad_input
from pliant.lab.experiments.config import RunConfig, dump, load, safe_name, spec_for_folder, usable_device
from pliant.lab.experiments.folder import ELSEWHERE, STOPPED
from pliant.lab.experiments.own_modules import refuse_others
from pliant.lab.experiments.pool import Job, Progress, run_all
from pliant.lab.experiments.training import assembled, built
from pliant.monitors.registry import watch

FORKS, LINEAGE, STEM = "forks", "fork.json", "stem"
CONTROL = "control"
ONCE = 10**15  # a period that no run completes: what keeps it fires at the fork alone

DIAGNOSES: dict[str, tuple[str, str]] = {
    "injection": ("plasticity_injection", "the critic's head has lost its plasticity: a new one beside it learns"),
    "actor_reset": (f"reset(layers=actor, every={ONCE})", "the actor has lost its plasticity: a new one learns"),
    "critic_reset": (f"reset(layers=critic, every={ONCE})", "the critic has lost its plasticity: a new one learns"),
    "full_reset": (
        f"fresh_agent(every={ONCE}, memory=keep, exploration=keep)",
        "the networks limit the agent, and not its data: new ones do better on what it has stored",
    ),
    "fresh_agent": (
        f"fresh_agent(every={ONCE}, exploration=keep)",
        "the networks limit the agent: new ones do better from here",
    ),
    "fresh_optimizer": (f"reset_optimizer(every={ONCE})", "the optimizer's memory is stale"),
    "fresh_target": (f"reset_target(every={ONCE})", "the target network is what misleads it"),
}
"""What `--diagnose` adds to the control, and what it means if the arm recovers."""


@dataclass(frozen=True)
class Arm:
    """One what-if: its words (none for the control), its name, and the preset that it comes from."""

    words: tuple[str, ...] = ()
    label: str = CONTROL
    preset: str | None = None
    monitors: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        if self.preset or not self.words:
            return self.label
        return safe_name("+".join(spec_for_folder(parse(word)) for word in self.words))


@dataclass(frozen=True)
class Parent:
    """The run that is forked."""

    folder: Path
    config: RunConfig


@contextmanager
def held(parents: Sequence[Parent]) -> Iterator[None]:
    """Let nobody else fork these runs meanwhile, who would take half-made arms for those of a killed one (BadInput).
    After an error nothing of the locks is left."""
    locks: list[RunLock] = []
    try:
        for folder in sorted({parent.folder.resolve() / FORKS for parent in parents}):
            try:
                locks.append(RunLock(folder))
            except RunLocked as error:
                raise BadInput(f"{folder.parent} is being forked already: {error}") from error
            except FolderUnusable as error:
                if error.errno not in ELSEWHERE:
                    raise
                raise BadInput(f"{error}. Forks stand in the folder of their run: copy it to another place") from error
        yield
    except BaseException:
        for lock in reversed(locks):
            lock.undo()
        raise
    finally:
        for lock in locks:
            lock.release()


class _Staged:
    """Folders that are made under other names, and get their own together, once all are made. Otherwise nothing of them
    is left."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Path, Path]] = []
        self._made: list[Path] = []

    def new(self, folder: Path) -> Path:
        """A new folder that is to become `folder` (BadInput if something else is there; FolderUnusable)."""
        staging = folder.with_name(folder.name + ".tmp")
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise BadInput(f"{folder} already exists and is not a fork: move it away")
        self._pairs.append((staging, folder))
        if staging.exists():  # left by one that was killed
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


# ------------------------------------------------------------------------------------------------ what is asked


def parent_of(folder: Path) -> Parent:
    """A run that can be forked (BadInput)."""
    try:
        there = (folder / "config.yaml").exists()
    except OSError as error:
        raise BadInput(f"{folder} cannot be read: {error.strerror}") from None
    if not there:
        raise BadInput(f"{folder}: not a run folder (no config.yaml)")
    config = load(folder)
    refuse_others(folder, config.env)
    return Parent(folder, config)


def moment(text: str, parents: Sequence[Parent]) -> int:
    """The step that `--at` names; of `latest` that of the newest checkpoint, which all parents must have (BadInput)."""
    if text == "latest":
        newest = [max(saved_steps(parent.folder), default=0) for parent in parents]
        if min(newest) < 1:
            raise BadInput(f"{parents[newest.index(0)].folder} has no checkpoint to fork from")
        if len(set(newest)) > 1:
            raise BadInput(f"the latest checkpoints of these runs are of steps {', '.join(map(str, newest))}: give one")
        return newest[0]
    try:
        plain = text.replace("_", "")
        if (number := float(plain)) != int(number):
            raise ValueError
        at = int(number) if "e" in plain.lower() else int(plain)
    except (ValueError, OverflowError):
        raise BadInput(f"--at is a number of environment steps or latest, not {shorten(text)}") from None
    if at < 1:
        raise BadInput(f"--at must be at least 1, not {at}: from the very start, use pliant train --interventions")
    if at > COUNTED:
        raise BadInput(f"--at must be at most {COUNTED:,}, not {shorten(text)}")
    return at


def split(sentence: str) -> list[str]:
    """The words of a sentence: at spaces that stand in no parentheses and no quotes."""
    words, depth, quote = [""], 0, ""
    for letter in sentence:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        if letter.isspace() and not depth and not quote:
            words.append("")
        else:
            words[-1] += letter
    return [word for word in words if word]


def arm_of(sentence: str) -> Arm:
    """The arm that a sentence describes (SpecError)."""
    words = check(split(sentence), INTERVENTIONS)
    return Arm(words, " ".join(words) or CONTROL)


def _at(text: str, step: int) -> str:
    """A word, with the moment of the fork where it knows moments alone and says none, as an injection may."""
    word = parse(text)
    parameters = parameters_of(INTERVENTIONS[word.name])
    if "at" not in parameters or "every" in parameters or {"at", "when"} & {*word.arguments}:
        return text
    return check([str(Spec(word.name, {**word.arguments, "at": step, "of": "steps"}))], INTERVENTIONS)[0]


def diagnosis(config: RunConfig) -> list[Arm]:
    """The arms of `--diagnose` that this agent can have."""
    found: list[Arm] = []
    for label, (sentence, _) in DIAGNOSES.items():
        if label == "fresh_agent" and any(arm.label == "full_reset" for arm in found):
            continue  # with a replay to keep, it is kept
        arm = replace(arm_of(sentence), label=label, preset="diagnose")
        try:
            words = (*config.interventions, *(_at(word, 1) for word in arm.words))
            envs, _ = built(settled(replace(config, interventions=words)))
        except BadInput as error:
            print(f"left out of the diagnosis: {label} ({error})", file=sys.stderr)
        else:
            envs.close()
            found.append(arm)
    return found


def settled(config: RunConfig) -> RunConfig:
    """With device and threads as `pliant train` chooses them."""
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
    """Branch runs into arms, run them, and tell what came of it; the exit code.

    Args:
        parents: The runs.
        at: Environment steps at which they are forked.
        arms: With the control.
        replicates: Of every arm; all but the first have random streams of their own.
        steps: Where arms end; where the parent's configuration does if None.
        length: Or how many steps they go on.
        jobs: Processes at a time.

    Raises:
        BadInput: A moment that a run never reached, a method that cannot be added to a living network, a monitor that
            an agent cannot have, or an arm that was begun with other settings.
    """
    for parent in parents:
        if beside := [word for arm in arms for word in arm.monitors]:
            with _Built(settled(parent.config)) as (_, agent), bad_input():
                watch(agent, *beside)
        for word in (word for arm in arms for word in arm.words):
            _refuse_late(word)
        end = parent.config.steps if steps is None else steps
        if length is None and end <= at <= parent.config.steps:
            raise BadInput(f"arms of {parent.folder} would end at step {end}, but begin at {at}: give --for N")
    queue: list[Job] = []
    folders: dict[str, dict[tuple[int, int], Path]] = {arm.label: {} for arm in arms}
    spans: dict[int, tuple[int, int]] = {}
    with _Staged() as staged:
        for number, parent in enumerate(parents):
            found = reach(parent, at)
            end = found.step + length if length is not None else parent.config.steps if steps is None else steps
            if end <= found.step:
                raise BadInput(
                    f"arms of {parent.folder} would end at step {end}, but begin at {found.step}: give --for N"
                )
            spans[number] = found.step, end
            for arm in arms:
                for replicate in range(replicates):
                    folder = parent.folder / FORKS / str(found.step) / arm.folder / f"seed{replicate}"
                    config = _prepared(parent, found, arm, replicate, folder, end, staged)
                    words = ("--config", str(folder / "config.yaml"), "--run", str(folder))
                    queue.append(Job(replace(config, run=str(folder)), words))
                    folders[arm.label][number, replicate] = folder
    outcomes = run_all(queue, workers=jobs, progress=Progress(sys.stderr))
    failed = [o for o in outcomes if o.status == "failed"]
    open_ = [o for o in outcomes if o.status in ("stopped", "waiting")]
    if open_:
        print(f"{len(open_)} arms are not done; the same command goes on with them", file=sys.stderr)
    if failed or open_:
        return 1 if failed else STOPPED
    print(told(folders, arms, spans))
    where = " ".join(str(parent.folder / FORKS / str(spans[number][0])) for number, parent in enumerate(parents))
    print(f"\nReport: pliant report {where} --out report")
    return 0


def reach(parent: Parent, at: int) -> Found:
    """A checkpoint of the parent at a moment, if need be made by running it again up to there (BadInput)."""
    steps = saved_steps(parent.folder)
    if at in steps:
        return Checkpoints.open(parent.folder / "checkpoints" / f"step_{at:012d}", verify=None)
    stem = parent.folder / FORKS / STEM / str(at)
    if made := saved_steps(stem):
        return Checkpoints.open(stem / "checkpoints" / f"step_{made[-1]:012d}", verify=None)
    if at > parent.config.steps:
        raise BadInput(
            f"{parent.folder} ends at step {parent.config.steps:,}, before {at:,}; go on with it first "
            "(pliant train --config … --steps …), or fork it earlier"
        )
    before = [step for step in steps if step < at]
    begins = f"step {before[-1]:,}" if before else "the start"
    print(
        f"{parent.folder} has no checkpoint of step {at:,} (it has {_listed(steps)}): running it again from {begins}",
        file=sys.stderr,
    )
    config = settled(parent.config)
    with _Staged() as staged, _Built(config) as (envs, agent):
        staging = staged.new(stem)
        if before:
            origin = Checkpoints.open(parent.folder / "checkpoints" / f"step_{before[-1]:012d}", verify=None)
            branch(origin, staging)
            _copy_record(parent.folder, staging)
        run, checkpoints, log, _ = assembled(staging, config, envs, agent, RunProgress(at))
        found = checkpoints.resume()
        if found is not None:
            run.restore(found)
        else:
            log.restart()
        run.checkpoint_every = 0
        run.train(at)
        log.close("stopped")
        _check_repeated(parent.folder, staging, at)
        write_whole(staging / "config.yaml", dump(replace(config, run=None)))
    return reach(parent, at)


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps) or "none"


class _Built:
    """Environments and agent of a configuration, closed again; torch's threads are given back."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.threads = config, torch.get_num_threads()

    def __enter__(self) -> tuple[Any, Agent]:
        self.envs, agent = built(self.config)
        return self.envs, agent

    def __exit__(self, *error: object) -> None:
        self.envs.close()
        torch.set_num_threads(self.threads)


def _copy_record(source: Path, target: Path) -> None:
    """The curves up to now; what came after the checkpoint is cut away when the run goes on."""
    for file in source.iterdir():
        if file.name in (METRICS, TIMING) or file.name.startswith("events."):
            try:
                shutil.copyfile(file, target / file.name)
            except OSError as error:
                raise SaveFailed(f"cannot copy {file} to {target}: {error.strerror}", error.errno) from error


def _check_repeated(parent: Path, stem: Path, at: int) -> None:
    """Refuse to fork what could not be repeated: another machine, or version, may round otherwise (BadInput)."""

    def before(folder: Path) -> list[tuple[int, bytes]]:
        """The lines of steps before the moment (LogDamaged)."""
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
            f"running {parent} again did not repeat it: its record differs from step {step:,} on. Another machine, "
            "thread count or version rounds otherwise; fork at one of its checkpoints, or go on with it here "
            "and give it more --keep-checkpoints"
        )


def begin(parent: Parent, found: Found, arm: Arm, replicate: int, folder: Path, steps: int) -> RunConfig:
    """Make the folder of an arm, unless it stands already, and return its configuration (BadInput)."""
    with _Staged() as staged:
        return _prepared(parent, found, arm, replicate, folder, steps, staged)


def _prepared(
    parent: Parent, found: Found, arm: Arm, replicate: int, folder: Path, steps: int, staged: _Staged
) -> RunConfig:
    """`begin`, with others: the folder gets its name when all are made."""
    words = tuple(_at(word, found.step) for word in arm.words)
    kept = () if not arm.monitors else tuple(m for m in parent.config.monitors if m != "none")
    config = replace(
        settled(parent.config),
        interventions=parent.config.interventions + words,
        steps=steps,
        resume="auto",
        monitors=(*kept, *arm.monitors) if arm.monitors else parent.config.monitors,
    )
    lineage = {
        "parent": os.path.relpath(parent.folder.resolve(), folder.resolve()),
        "step": found.step,
        "arm": " ".join(arm.words),
        "label": arm.label,
        "replicate": replicate,
        "preset": arm.preset,
    }
    way_out = "Move the folder of the arm away, and it is made again"
    if (there := read_json(folder / LINEAGE, dict, way_out)) is not None:
        if there != lineage:
            changed = next((key for key in lineage if there.get(key) != lineage[key]), "more keys")
            was, now = there.get(changed), lineage.get(changed)
            raise BadInput(f"{folder} is another fork ({changed}: {was} there, {now} now)")
        # What watches changes nothing: a control that was watched serves for one that need not be, and not the reverse.
        if missing := [word for word in arm.monitors if word not in load(folder).monitors]:
            raise BadInput(f"{folder} went on without {' '.join(missing)}: move it away, and it is run again with it")
        return config
    staging = staged.new(folder)
    branch(found, staging)
    # The record of the moment is that of whoever saved it, to the byte.
    _copy_record(found.path.parent.parent, staging)
    if words or replicate:
        _convert(parent, config, staging, len(words), replicate, found.step)
    write_whole(staging / "config.yaml", dump(replace(config, run=None)))
    write_whole(staging / LINEAGE, json.dumps(lineage, indent=1) + "\n")
    return config


def _refuse_late(word: str) -> None:
    """Refuse a word that cannot join a run that has begun (BadInput)."""
    if reason := getattr(INTERVENTIONS[parse(word).name], "comes_late", ""):
        raise BadInput(f"{word} cannot be added to a run that has begun: {reason}")


def _convert(parent: Parent, config: RunConfig, folder: Path, joining: int, replicate: int, step: int) -> None:
    """Let the run in an arm's folder become what the arm is, and save it."""
    plain = replace(config, interventions=config.interventions[: len(config.interventions) - joining])
    with _Built(plain) as (_, before):
        for word in config.interventions[len(plain.interventions) :]:
            _refuse_late(word)
            if joining > 1:  # each for itself first, so that the right one is named
                with _Built(replace(plain, interventions=(*plain.interventions, word))) as (_, alone):
                    _adopt(alone, before, Checkpoints.open(folder).load("agent")["state"], 1, word)
        with _Built(config) as (envs, agent):
            run, checkpoints, log, _ = assembled(folder, config, envs, agent)
            found = checkpoints.resume()
            assert found is not None
            sentence = " ".join(config.interventions[len(plain.interventions) :])
            with bad_input():
                run.restore(found, lambda state: _adopt(agent, before, state, joining, sentence))
            if replicate:
                reseed_(run, derive_seed(config.seed, f"fork at {step}, replicate {replicate}"))
            if joining:
                _join(run, before, joining, sentence)
            run.save()
            log.close("stopped")


def _adopt(agent: Agent, plain: Agent, state: dict[str, Any], joining: int, sentence: str) -> None:
    """Take over the state of an agent with fewer interventions; `plain`, which is of its build, takes it, too."""
    settings = [_settings(agent), _settings(plain)]
    try:
        plain.load_state_dict(state)
        agent.load_state_dict(state, joining=joining)
    except ValueError as error:
        if not joining:
            raise
        why = " ".join(str(error).split()).partition(". Build the agent")[0].partition(": ")[2]
        raise BadInput(
            f"{sentence} cannot be added to a trained network: its tensors differ from the saved ones ({why}). "
            "Compare two runs from the start instead: pliant train --interventions"
        ) from error
    # What the new words set of the optimizers holds, and not what the saved ones were set to.
    for group, mine, born in zip(_groups(agent), *settings, strict=True):
        group |= {key: value for key, value in mine.items() if value != born[key]}


def _groups(agent: Agent) -> list[dict[str, Any]]:
    return [group for _, optimizer in agent.optimizers() for group in optimizer.param_groups]


def _settings(agent: Agent) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in _groups(agent)]


def reseed_(run: Run, seed: int) -> None:
    """Let everything random in a run be drawn from another seed from now on; what the problem is stays."""
    run.agent.reseed(seed)
    run.memory.reseed(derive_seed(seed, "replay"))
    run.envs.reseed(seed)  # type: ignore[attr-defined]


def _join(run: Run, plain: Agent, joining: int, sentence: str) -> None:
    """Welcome the last interventions of a run's agent: they change nothing that it says, take up what they are to
    remember, and fire if that is what they do at a moment."""
    agent, clock = run.agent, run.clock
    generator = torch.Generator(agent.device).manual_seed(derive_seed(agent.seed, f"fork at {clock.steps}"))
    try:
        batch = sample_like_training(run, agent.sampling(clock).batch_size, generator)
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"nothing has been learnt from yet at step {clock.steps}; fork later ({error})") from error
    with torch.no_grad():
        pairs = [(agent.values(batch), plain.values(batch)), (agent.decisions(batch), plain.decisions(batch))]
        if any(component.target is not None for component in agent.components.values()):
            pairs.append((agent.values(batch, target=True), plain.values(batch, target=True)))
    if not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
        raise BadInput(
            f"{sentence} cannot be added to a trained network: it would change the network's outputs at once. "
            "Compare two runs from the start instead: pliant train --interventions"
        )
    with torch.no_grad():
        activations = agent.activations(batch)
    parts = list(agent.interventions)
    for part in parts[len(parts) - joining :]:
        part.joined(run, activations)
        if fires_at_fork(part, clock):
            part.fire_now(run, activations)


def fires_at_fork(part: Intervention, clock: Clock) -> bool:
    """Does something that joins at this moment act at once? What keeps a beat does, unless it begins later or would
    come to a beat at the very next update anyway; and what has this one moment. BadInput if its moments are past."""
    if type(part).fire is Intervention.fire:
        return False
    when = part.when
    if isinstance(when, Every):
        now = clock.read(when.of)[1]
        return when.start <= now and (when.stop is None or now <= when.stop) and not when(clock.updated())
    if isinstance(when, At):
        now = clock.read(when.of)[1]
        if max(when.moments) < now:
            raise BadInput(f"{part.name} would never fire: its moments lie before the fork at {now}; leave them out")
        return now in when.moments and not when(clock.updated())
    return False


# ------------------------------------------------------------------------------------------------ telling


def returns(folder: Path, step: int, end: int | None = None) -> list[tuple[int, float]]:
    """Environment steps and return of every episode that ended after a step, and at another one at the latest."""
    tag, last = "charts/episodic_return", math.inf if end is None else end
    rows = [row for row in read_metrics(folder) if tag in row]
    return [(row["steps"], float(row[tag])) for row in rows if step < row["steps"] <= last]


def score(folder: Path, step: int, end: int | None = None) -> float:
    """Mean return of the episodes since the fork, up to where all arms have come; of a stretch without one, NaN."""
    found = [value for _, value in returns(folder, step, end)]
    return sum(found) / len(found) if found else float("nan")


def told(
    folders: Mapping[str, Mapping[tuple[int, int], Path]], arms: Sequence[Arm], spans: Mapping[int, tuple[int, int]]
) -> str:
    """The table of the arms, and what a diagnosis says. `spans`: where the arms of each parent begin and end, though
    one of them may have gone further before."""
    scores = {
        label: {key: score(path, *spans[key[0]]) for key, path in found.items()} for label, found in folders.items()
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
                findings.append(f"{arm.label} does harm.")
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    table = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
    if not any(arm.preset == "diagnose" for arm in arms):
        return table
    if unsure and not findings:
        findings = ["Too few runs to tell: an interval needs three, from --reseed N or several parents."]
    elif not any("recovers" in finding for finding in findings):
        findings.append(
            "No arm recovers: within this time it is not the networks, optimizer or target that limit the agent, or "
            "there are too few runs to see it."
        )
    return "\n".join([table, "", *findings])

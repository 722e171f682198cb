"""One training run: assemble agent, environments, and log in the run's folder, train, evaluate, and save.

The run's folder holds everything about it: config.yaml, versions.json, TensorBoard events, metrics.jsonl, checkpoints,
the replay, SAVED, and at the end DONE with the evaluation. A stopped run continues to the last bit.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pliant.agents import Agent
from pliant.agents.checkpoint import Checkpoint, Checkpoints, FolderUnusable, RunLock
from pliant.agents.log import EVAL_BAND, Log
from pliant.agents.progress import Progress
from pliant.agents.run import Run
from pliant.agents.stopping import Interrupted, graceful_stop, interruptible
from pliant.agents.stream import NO_TARGETS
from pliant.common.files import DONE, write_whole
from pliant.common.moved import moved
from pliant.common.seeds import derive_seed
from pliant.common.specs import one_line
from pliant.envs import Envs, make
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build
from pliant.interventions.core.spec import parse as parse_spec
from pliant.lab.errors import BadInput, bad_input
from pliant.lab.experiments import threads
from pliant.lab.experiments.config import RunConfig, dump, flat_hparams, known, run_folder, usable_device
from pliant.lab.experiments.evaluation import Score, score
from pliant.lab.experiments.folder import (
    ANOTHER_FOLDER_HELPS,
    FAILURE,
    STOPPED,
    check_not_lost,
    check_place,
    check_same_run,
    describe,
    is_done,
    sessions,
)
from pliant.lab.experiments.own_modules import refuse_others
from pliant.lab.experiments.seeds import SharedProgress, describe_seeds, failure_of, folders_of, name_of, seeds_of
from pliant.monitors import watch
from pliant.monitors.base import Monitors

TURN = 64  # steps of one seed before the next seed's turn; turns of a single step take 15 % more time on small networks
ALREADY = "{folder} is already done. More --steps continue it; another --run or --seed starts a new run."


@dataclass
class Session:
    """One run in its folder, in this process.

    Attributes:
        name: `seed3` if several seeds are trained; otherwise empty.
        results, warnings: Lines to print at the end.
    """

    name: str
    folder: Path
    config: RunConfig
    run: Run
    monitors: Monitors
    results: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    finished: bool = False

    def labelled(self, text: str) -> str:
        """A text with the name of the seed before it."""
        return f"{self.name}: {text}" if self.name else text


def train(config: RunConfig, source: str = "", seeds: int | None = None) -> int:
    """Start or continue the run of a configuration, or those of several seeds. Returns the exit code.

    Nothing on disk is created, changed or deleted before environments, agents, monitors and memories have been built
    and the content of every folder has been verified.

    Args:
        source: The source of the settings, shown to the user.
        seeds: Train this number of consecutive seeds, in turn and each in a folder of its own below the run's; one run
            in the run's folder if None.

    Raises:
        SeedsFailed: The training of some of several seeds failed.
    """
    configs, most = [config] if seeds is None else seeds_of(config, seeds), torch.get_num_threads()
    for each in configs:
        check_place(run_folder(each))
    given = next((n for each in configs if (n := threads.recorded_threads(each, run_folder(each)))), 0)
    device = usable_device(config.device)
    configs = [replace(each, device=device, threads=given or 1) for each in configs]
    for each in configs:
        check_same_run(run_folder(each), each)
    # Before the locks: a finished run may be on a read-only disk.
    configs = [each for each in configs if not _already_done(each)]
    if not configs:
        return 0
    for each in configs:
        refuse_others(run_folder(each), each.env)
    with ExitStack() as closing:
        envs, agent = built(configs[0])
        closing.callback(envs.close)
        memory = describe_seeds(agent, config, len(configs)) if seeds is not None else ""
        choice = threads.Choice(configs[0].threads)
        if not given:
            choice = threads.choose(configs[0], agent, most)
            configs = [replace(each, threads=choice.threads) for each in configs]
            agent = fresh_agent(configs[0], envs)  # measuring threads may have trained the first one on noise
        shared = None if seeds is None else SharedProgress([name_of(each) for each in configs], config.steps)
        progress = Progress(config.steps) if shared is None else shared.line
        opened: list[Session] = []
        for number, each in enumerate(configs):
            if number == 1:
                progress.note(memory)  # before the memories of the others are allocated
            if number:
                envs, agent = built(each)
                closing.callback(envs.close)
            folder, own = run_folder(each), progress if shared is None else shared.seeds[number]
            run, _, _, monitors = assembled(folder, each, envs, agent, own)
            opened.append(Session("" if shared is None else name_of(each), folder, each, run, monitors))
        locks: list[RunLock] = []
        try:
            for session in opened:
                locks.append(closing.enter_context(_locked(session.folder)))
                assert session.run.checkpoints is not None
                session.run.checkpoints.lock = locks[-1]
            progress.note(
                f"{folders_of([session.folder for session in opened])}  "
                f"({source or 'as configured'}; {device}, {choice})"
            )
            progress.note(agent.describe_memory(config.num_envs) + (" for each seed" if shared is not None else ""))
            entries = [_verified(session) for session in opened]
        except BaseException:
            for lock in reversed(locks):
                lock.undo()
            raise
        for entry in entries:
            if entry is not None:
                _enter(*entry)
        return _in_folders([session for session, entry in zip(opened, entries, strict=True) if entry], shared)


def _already_done(config: RunConfig) -> bool:
    """Whether the run is done for the requested steps; if so, prints a line."""
    folder = run_folder(config)
    if done := is_done(folder, config):
        print(ALREADY.format(folder=folder))
    return done


class Entry(NamedTuple):
    """A run that is ready to begin or to continue from a checkpoint, with the earlier sessions of its folder."""

    session: Session
    checkpoint: Checkpoint | None
    before: list[Any]


def _verified(session: Session) -> Entry | None:
    """Verify the locked folder of a run and restore its newest checkpoint; None if the run is done."""
    folder, run = session.folder, session.run
    assert run.checkpoints is not None and run.progress is not None
    # Another process may have used the folder since the first check.
    check_same_run(folder, session.config)
    if _already_done(session.config):
        return None
    before = sessions(folder)
    checkpoint = run.checkpoints.newest_good(report=run.progress.note)
    if checkpoint is None:
        check_not_lost(folder)
    else:
        run.restore(checkpoint)
    return Entry(session, checkpoint, before)


def _locked(folder: Path) -> RunLock:
    """The lock of the run's folder (BadInput if no lock can be placed there)."""
    try:
        return RunLock(folder)
    except FolderUnusable as error:
        if error.errno not in ANOTHER_FOLDER_HELPS:
            raise
        raise BadInput(f"{error}. Choose another --run") from None


def built(config: RunConfig) -> tuple[Envs, Agent]:
    """Freshly initialised environments and agent of a configuration (BadInput if they cannot be built)."""
    with bad_input():
        envs = make(config.env, num_envs=config.num_envs, seed=config.seed, config=config.env_config)
    return envs, fresh_agent(config, envs)


def fresh_agent(config: RunConfig, envs: Envs) -> Agent:
    """The freshly initialised agent of a configuration, with its number of threads (BadInput if it cannot be built)."""
    torch.set_num_threads(config.threads)
    with bad_input():
        agent_class = known().agent_class(config.agent)
        agent: Agent = agent_class(
            envs.observation,
            envs.action,
            config.agent_config,
            interventions=tuple(build(config.interventions, INTERVENTIONS)),
            seed=config.seed,
            device=config.device,
        )
        if agent.learns_from_targets and not getattr(envs, "provides_targets", False):
            raise ValueError(NO_TARGETS.format(agent=config.agent, env=config.env))
    return agent


def _enter(session: Session, checkpoint: Checkpoint | None, before: list[Any]) -> None:
    """Prepare the folder for a run that continues from a checkpoint, or begins (None)."""
    folder, run = session.folder, session.run
    assert run.checkpoints is not None
    # On a full disk this fails before anything is changed.
    describe(folder, session.config, before)
    # Before the log is truncated: that removes the last evaluation, and a kill must not leave a DONE without it.
    (folder / DONE).unlink(missing_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)  # left by an earlier attempt that failed
    run.checkpoints.accept(checkpoint)
    if checkpoint is not None:
        run.log.go_on()
        if run.progress is not None:
            run.progress.note(f"continues from step {run.clock.steps:,} ({checkpoint.path.name})")
    else:
        run.log.restart()


def _in_folders(entered: list[Session], shared: SharedProgress | None) -> int:
    """Train runs in turn, some steps of each at a time. Returns the exit code.

    If one of several seeds fails, the others go on, and the error is raised at the end.
    """
    if not entered:
        return 0
    failed: dict[str, Exception] = {}
    try:
        with graceful_stop() as stop:
            going = {session.name: _turns(session, stop) for session in entered}
            try:
                while going:
                    for name, turns in [*going.items()]:
                        try:
                            for _ in range(TURN):
                                next(turns)
                        except StopIteration:
                            del going[name]
                        except Exception as error:
                            if shared is None:
                                raise
                            failed[name] = error
                            del going[name]
                            shared.line.note(f"{name} failed, the others go on: {one_line(error)}")
                        if shared is not None:
                            shared.show()
            finally:
                for turns in going.values():
                    turns.close()
    finally:
        for session in entered:
            if session.run.progress is not None:
                session.run.progress.close()
        if shared is not None:
            shared.line.close()
        for session in entered:
            for line in session.results:
                print(session.labelled(line))
            for line in session.warnings:
                print(session.labelled(f"warning: {line}"), file=sys.stderr)
    stopped = [session for session in entered if not session.finished and session.name not in failed]
    if stopped:
        steps = ", ".join(session.labelled(f"step {session.run.clock.steps:,}") for session in stopped)
        print(f"stopped and saved at {steps}; the same command continues", file=sys.stderr)
    if failed:
        raise failure_of(failed, len(entered))
    if stopped:
        return STOPPED
    folders = [session.folder for session in entered]
    logs = shlex.quote(str(folders[0].parent.parent))
    print(f"Curves: {_tensorboard()} --logdir {logs}   Folder: {folders_of(folders)}")
    return 0


def _turns(session: Session, stop: Callable[[], bool]) -> Generator[None, None, None]:
    """Train and finish a run; yields after every step. Sets `Session.finished`, which stays False after a stop."""
    config, run, log = session.config, session.run, session.run.log
    try:
        log.hparams(flat_hparams(config), ("eval/episodic_return", "charts/episodic_return"))
        log.text("run/summary", _summary(config, session.monitors))
        log.text("run/config", f"```yaml\n{dump(config)}```")
        trained = yield from run.turns(config.steps, stop)
        session.finished = trained and _finished(session, stop)
        log.close("done" if session.finished else "stopped")
    except BaseException:
        log.close("failed")
        raise


def assembled(
    folder: Path, config: RunConfig, envs: Envs, agent: Agent, progress: Progress | None = None
) -> tuple[Run, Checkpoints, Log, Monitors]:
    """A run in its folder, with its parts, before it is restored or begins (BadInput: a monitor does not suit the
    agent, or the memory does not fit)."""
    checkpoints = Checkpoints(folder, keep=config.keep_checkpoints)
    log = Log(folder, envs.frame_skip, log_every=config.log_every)
    with bad_input():
        monitors = watch(agent, *(config.monitors or ("none",)))
    log.layout |= monitors.board.charts()
    if config.evaluate_episodes < 3:
        del log.layout["Overview"][EVAL_BAND]  # too few for an interval

    def evaluated(agent: Agent) -> dict[str, float]:
        if not config.evaluate_episodes:
            return {}
        result = _evaluate(agent, config, run.clock.steps)
        if result.cut and progress is not None:
            progress.note(f"evaluation at step {run.clock.steps:,}: {result.cuts()}")
        return result.metrics()

    with bad_input():  # the memory may not fit
        run = Run(
            agent,
            envs,
            log=log,
            checkpoints=checkpoints,
            checkpoint_every=config.checkpoint_every,
            evaluate=evaluated,
            evaluate_every=config.evaluate_every,
            progress=progress,
            monitors=monitors,
            fresh_envs=lambda: make(
                config.env,
                num_envs=1,
                seed=derive_seed(config.seed, "monitors"),
                config=config.env_config,
                at_steps=max(0, run.clock.steps - 1),
                drift_seed=config.seed,
            ),
        )
    return run, checkpoints, log, monitors


def _summary(config: RunConfig, monitors: Monitors) -> str:
    """The run, and one line for each intervention and monitor, for TensorBoard's text tab."""
    title = " ".join(["plain", config.agent] if not config.interventions else config.interventions)
    lines = [f"# {config.agent} in {config.env}, seed {config.seed}", "", f"`{title}`"]
    drifts = getattr(config.env_config, "drift", ())
    if drifts:
        from pliant.envs.drift import DRIFTS  # loads a simulator's library, which plain runs may not need
    tables: dict[str, dict[str, type[Any]]] = {
        "intervention": {spec: INTERVENTIONS[parse_spec(spec).name] for spec in config.interventions},
        "drift": {spec: DRIFTS[parse_spec(spec).name] for spec in drifts},
        "monitor": {name: type(part) for name, part in monitors.parts.items()},
    }
    for title, kinds in tables.items():
        shown = [(spec.replace("|", r"\|"), inspect.getdoc(kind) or "") for spec, kind in kinds.items()]
        rows = [f"| `{spec}` | {text.partition(chr(10))[0]} |" for spec, text in shown]
        lines += ["", *((f"| {title} | description |", "| --- | --- |", *rows) if rows else (f"No {title}s.",))]
    return "\n".join(lines) + "\n"


def _finished(session: Session, stop: Callable[[], bool]) -> bool:
    """Finish a saved run. False if a stop is requested before its evaluation, which is then done next time."""
    assert session.run.progress is not None
    session.run.progress.close()
    try:
        with interruptible(stop):
            _finish(session)
    except Interrupted:
        return False
    return True


def _finish(session: Session) -> None:
    """The last evaluation, and the file that marks the run as done."""
    run, config = session.run, session.config
    result: dict[str, Any] = {"steps": run.clock.steps, "updates": run.clock.updates}
    if config.evaluate_episodes:
        evaluation = _evaluate(run.agent, config, run.clock.steps)
        run.log.scalars(evaluation.metrics(), run.clock)
        result["evaluation"] = evaluation.json()
        session.results.append(str(evaluation))
    if warnings := _warnings(run):
        result["warnings"] = warnings
        session.warnings += warnings
    if run.checkpoints is not None and run.checkpoints.lock is not None:
        run.checkpoints.lock.check()
    write_whole(session.folder / DONE, json.dumps(result, indent=1) + "\n")


def _warnings(run: Run) -> list[str]:
    """Warnings about the result of a finished run."""
    if run.clock.updates:
        return []
    c = run.agent.config
    settings = ", ".join(
        f"--agent.{name.replace('_', '-')} {getattr(c, name)}"
        for name in ("learning_starts", "update_every", "replay_ratio", "n_step", "rollout")
        if hasattr(c, name)
    )
    return [
        f"the agent has not been trained: no gradient update in {run.clock.steps:,} environment steps. With {settings} "
        "the first one comes later, or never"
    ]


def _evaluate(agent: Agent, config: RunConfig, steps: int) -> Score:
    # At a task change, evaluate the task that was just trained.
    return score(
        agent,
        config.env,
        config.env_config,
        config.evaluate_episodes,
        seed=config.seed,
        at_steps=max(0, steps - 1),
        drift_seed=config.seed,
    )


def _tensorboard() -> str:
    """The command for TensorBoard: with its path if its environment is not the active one."""
    beside = Path(sys.executable).parent / "tensorboard"
    on_path = any((Path(place) / "tensorboard").exists() for place in os.get_exec_path())
    return "tensorboard" if on_path or not beside.exists() else os.path.relpath(beside)


__getattr__ = moved(__name__, {"born": f"{__name__}.fresh_agent"})  # former names

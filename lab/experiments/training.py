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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from pliant.monitors import watch
from pliant.monitors.base import Monitors

ALREADY = "{folder} is already done. More --steps continue it; another --run or --seed starts a new run."


def train(config: RunConfig, source: str = "") -> int:
    """Start or continue the run of a configuration. Returns the exit code.

    Nothing on disk is created, changed or deleted before environments, agent, monitors and memory have been built and
    the folder's content has been verified.
    """
    folder, most = run_folder(config), torch.get_num_threads()
    check_place(folder)
    given = threads.recorded_threads(config, folder)
    config = replace(config, device=usable_device(config.device), threads=given or 1)
    check_same_run(folder, config)
    if is_done(folder, config):  # before the lock: a finished run may be on a read-only disk
        print(ALREADY.format(folder=folder))
        return 0
    refuse_others(folder, config.env)
    envs, agent = built(config)
    try:
        choice = threads.Choice(config.threads)
        if not given:
            choice = threads.choose(config, agent, most)
            config = replace(config, threads=choice.threads)
            agent = fresh_agent(config, envs)  # measuring threads may have trained the first one on noise
        progress = Progress(config.steps)
        run, checkpoints, _, monitors = assembled(folder, config, envs, agent, progress)
        with _locked(folder) as lock:
            checkpoints.lock = lock
            progress.note(f"{folder}  ({source or 'as configured'}; {config.device}, {choice})")
            progress.note(agent.describe_memory(config.num_envs))
            try:
                # Another process may have used the folder since the first check.
                check_same_run(folder, config)
                if is_done(folder, config):
                    print(ALREADY.format(folder=folder))
                    return 0
                before = sessions(folder)
                checkpoint = checkpoints.newest_good(report=progress.note)
                if checkpoint is None:
                    check_not_lost(folder)
                else:
                    run.restore(checkpoint)
            except BaseException:
                lock.undo()
                raise
            _enter(folder, config, run, checkpoint, before)
            return _in_folder(folder, config, run, monitors)
    finally:
        envs.close()


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


def _enter(folder: Path, config: RunConfig, run: Run, checkpoint: Checkpoint | None, before: list[Any]) -> None:
    """Prepare the folder for a run that continues from a checkpoint, or begins (None)."""
    assert run.checkpoints is not None
    # On a full disk this fails before anything is changed.
    describe(folder, config, before)
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


def _in_folder(folder: Path, config: RunConfig, run: Run, monitors: Monitors) -> int:
    log, progress = run.log, run.progress
    assert progress is not None
    try:
        with graceful_stop() as stop:
            log.hparams(flat_hparams(config), ("eval/episodic_return", "charts/episodic_return"))
            log.text("run/summary", _summary(config, monitors))
            log.text("run/config", f"```yaml\n{dump(config)}```")
            finished = run.train(config.steps, stop) and _finished(folder, config, run, stop)
        if not finished:
            log.close("stopped")
            progress.close()
            print(f"stopped and saved at step {run.clock.steps:,}; the same command continues", file=sys.stderr)
            return STOPPED
        log.close("done")
    except BaseException:
        log.close("failed")
        progress.close()
        raise
    return 0


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


def _finished(folder: Path, config: RunConfig, run: Run, stop: Callable[[], bool]) -> bool:
    """Finish a saved run. False if a stop is requested before its evaluation, which is then done next time."""
    assert run.progress is not None
    run.progress.close()
    try:
        with interruptible(stop):
            _finish(folder, config, run)
    except Interrupted:
        return False
    return True


def _finish(folder: Path, config: RunConfig, run: Run) -> None:
    """The last evaluation, and the file that marks the run as done."""
    result: dict[str, Any] = {"steps": run.clock.steps, "updates": run.clock.updates}
    if config.evaluate_episodes:
        evaluation = _evaluate(run.agent, config, run.clock.steps)
        run.log.scalars(evaluation.metrics(), run.clock)
        result["evaluation"] = evaluation.json()
        print(evaluation)
    if warnings := _warnings(run):
        result["warnings"] = warnings
        print(*(f"warning: {text}" for text in warnings), sep="\n", file=sys.stderr)
    if run.checkpoints is not None and run.checkpoints.lock is not None:
        run.checkpoints.lock.check()
    write_whole(folder / DONE, json.dumps(result, indent=1) + "\n")
    print(f"Curves: {_tensorboard()} --logdir {shlex.quote(str(folder.parent.parent))}   Folder: {folder}")


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

"""Train an agent: `pliant train`, or `python scripts/train.py`.

    pliant train --agent dqn --env ALE/Pong-v5 --steps 200000 --seed 1
    pliant train --agent sac --env HalfCheetah-v5 --agent.replay-ratio 4
    pliant train --config runs/ALE-Pong-v5/dqn/seed1/config.yaml --seed 2

Everything about a run stands in its folder: config.yaml, versions.json, TensorBoard events, metrics.jsonl, checkpoints,
the replay, and in the end DONE with the evaluation. The same command goes on where the run stopped, to the last bit.

Exit codes: 0 done, 2 bad input, 75 stopped by a signal after saving (the same command goes on), 1 anything else.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    from pliant.scripts.spinning import bound_spinning

    if __name__ == "__main__":
        bound_spinning()  # as `pliant train` does: before torch is loaded
    from pliant.agents.checkpoint import Checkpoints, RunLock
except ModuleNotFoundError as missing:
    if missing.name not in ("pliant", "pliant.scripts", "pliant.agents"):
        raise
    sys.exit("error: pliant is not installed. Run `make train`, or `pip install -e .` in the checkout first")

import torch

from pliant.agents import Agent
from pliant.agents.hooks import derive_seed
from pliant.agents.log import EVAL_BAND, Log
from pliant.agents.progress import Progress
from pliant.agents.run import Run, graceful_stop
from pliant.agents.stream import NO_TARGETS
from pliant.envs import Envs, make
from pliant.interventions import INTERVENTIONS, watch
from pliant.interventions.monitor import Monitors
from pliant.interventions.spec import build
from pliant.interventions.spec import parse as parse_word
from pliant.scripts import threads
from pliant.scripts.config import (
    BadInput,
    RunConfig,
    bad_input,
    differences,
    dump,
    flat_hparams,
    known,
    load,
    parse,
    run_folder,
)
from pliant.scripts.evaluate import Score, score
from pliant.scripts.pool import FAILURE

STOPPED = 75  # EX_TEMPFAIL: try again
PACKAGES = ("pliant", "torch", "numpy", "gymnasium", "ale-py", "mujoco", "minatar", "tensorboard")

# What may change between two sessions of one run, because it does not change the run itself.
FREE = {"run", "monitors", "resume", "steps", "checkpoint_every", "keep_checkpoints"}


def main(argv: list[str] | None = None) -> int:
    config, source = parse(argv, prog="pliant train")
    return train(config, source)


def train(config: RunConfig, source: str = "") -> int:
    """Run, or go on with, the run that a configuration describes; returns the exit code."""
    folder, most = run_folder(config), torch.get_num_threads()
    given = threads.told(config, folder)
    config = replace(config, device=_device(config.device), threads=given or 1)
    # What cannot be built should leave no folder behind.
    envs, agent = built(config)
    try:
        choice = threads.Choice(config.threads)
        if not given:
            choice = threads.choose(config, agent, most)
            config = replace(config, threads=choice.threads)
            agent = born(config, envs)  # the first one may have learnt from noise
        with bad_input():
            folder.mkdir(parents=True, exist_ok=True)
        with RunLock(folder):
            return _in_folder(folder, config, envs, agent, source, choice)
    finally:
        envs.close()


def built(config: RunConfig) -> tuple[Envs, Agent]:
    """Environments and agent of a configuration, as they are born (BadInput if they cannot be built)."""
    with bad_input():
        envs = make(config.env, num_envs=config.num_envs, seed=config.seed, config=config.env_config)
    return envs, born(config, envs)


def born(config: RunConfig, envs: Envs) -> Agent:
    """The agent of a configuration, as it is born, with the threads that it says (BadInput if it cannot be built)."""
    torch.set_num_threads(config.threads)
    with bad_input():
        agent_class = known().agent_class(config.agent)
        agent: Agent = agent_class(
            envs.observation, envs.action, config.agent_config,
            interventions=tuple(build(config.interventions, INTERVENTIONS)), seed=config.seed, device=config.device,
        )  # fmt: skip
        if agent.learns_from_targets and not getattr(envs, "tells_targets", False):
            raise ValueError(NO_TARGETS.format(agent=config.agent, env=config.env))
    return agent


def _in_folder(folder: Path, config: RunConfig, envs: Envs, agent: Agent, source: str, choice: threads.Choice) -> int:
    _check_same_run(folder, config)
    if _is_done(folder, config):
        print(f"{folder} is done already. More --steps go on with it; another --run or --seed starts anew.")
        return 0
    (folder / FAILURE).unlink(missing_ok=True)  # an attempt that failed before this one
    progress = Progress(config.steps)
    progress.note(f"{folder}  ({source or 'as configured'}; {config.device}, {choice})")
    progress.note(agent.describe_memory(config.num_envs))
    run, checkpoints, log, monitors = assembled(folder, config, envs, agent, progress)
    found = checkpoints.resume(progress.note)
    if found is not None:
        run.restore(found)
        progress.note(f"goes on from step {run.clock.steps:,} ({found.path.name})")
    else:
        log.restart()
    _describe(folder, config)
    log.hparams(flat_hparams(config), ("eval/episodic_return", "charts/episodic_return"))
    log.text("run/summary", _summary(config, monitors))
    log.text("run/config", f"```yaml\n{dump(config)}```")
    try:
        with graceful_stop() as stop:
            finished = run.train(config.steps, stop)
        if not finished:
            log.close("stopped")
            progress.close()
            print(f"stopped and saved at step {run.clock.steps:,}; the same command goes on", file=sys.stderr)
            return STOPPED
        progress.close()
        _finish(folder, config, run)
        log.close("done")
    except BaseException:
        log.close("failed")
        progress.close()
        raise
    return 0


def assembled(
    folder: Path, config: RunConfig, envs: Envs, agent: Agent, progress: Progress | None = None
) -> tuple[Run, Checkpoints, Log, Monitors]:
    """A run in its folder, and its parts, before it is restored or begins (BadInput if a monitor does not fit)."""
    checkpoints = Checkpoints(folder, keep=config.keep_checkpoints)
    log = Log(folder, envs.frame_skip, log_every=config.log_every)
    with bad_input():
        monitors = watch(agent, *(config.monitors or ("none",)))
    log.layout |= monitors.board.charts()
    if config.evaluate_episodes < 3:
        del log.layout["Overview"][EVAL_BAND]  # too few for an interval
    run = Run(
        agent, envs, log=log, checkpoints=checkpoints, checkpoint_every=config.checkpoint_every,
        evaluate=lambda agent: _evaluate(agent, config, run.clock.steps).metrics() if config.evaluate_episodes else {},
        evaluate_every=config.evaluate_every, progress=progress, monitors=monitors,
        fresh_envs=lambda: make(
            config.env, num_envs=1, seed=derive_seed(config.seed, "monitors"), config=config.env_config,
            at_steps=max(0, run.clock.steps - 1), drift_seed=config.seed,
        ),
    )  # fmt: skip
    return run, checkpoints, log, monitors


def _summary(config: RunConfig, monitors: Monitors) -> str:
    """What runs, and in one line each what is done to the agent and what looks at it; for TensorBoard's text tab."""
    sentence = " ".join(["plain", config.agent] if not config.interventions else config.interventions)
    lines = [f"# {config.agent} in {config.env}, seed {config.seed}", "", f"`{sentence}`"]
    drifts = getattr(config.env_config, "drift", ())
    if drifts:
        from pliant.envs.drift import DRIFTS  # and with it a simulator's library, which plain runs may not need
    tables: dict[str, dict[str, type[Any]]] = {
        "intervention": {word: INTERVENTIONS[parse_word(word).name] for word in config.interventions},
        "drift": {word: DRIFTS[parse_word(word).name] for word in drifts},
        "monitor": {name: type(part) for name, part in monitors.parts.items()},
    }
    for title, kinds in tables.items():
        rows = [f"| `{word}` | {(inspect.getdoc(kind) or '').partition(chr(10))[0]} |" for word, kind in kinds.items()]
        lines += ["", *((f"| {title} | what it is |", "| --- | --- |", *rows) if rows else (f"No {title}s.",))]
    return "\n".join(lines) + "\n"


def _finish(folder: Path, config: RunConfig, run: Run) -> None:
    """The last evaluation, and the file that says that the run is done."""
    result: dict[str, Any] = {"steps": run.clock.steps, "updates": run.clock.updates}
    if config.evaluate_episodes:
        evaluation = _evaluate(run.agent, config, run.clock.steps)
        run.log.scalars(evaluation.metrics(), run.clock)
        result["evaluation"] = evaluation.json()
        print(evaluation)
    _write(folder / "DONE", json.dumps(result, indent=1) + "\n")
    print(f"Curves: {_tensorboard()} --logdir {shlex.quote(str(folder.parent.parent))}   Folder: {folder}")


def _evaluate(agent: Agent, config: RunConfig, steps: int) -> Score:
    # At the edge of two tasks it is the one learned so far that counts.
    return score(
        agent, config.env, config.env_config, config.evaluate_episodes, seed=config.seed, at_steps=max(0, steps - 1),
        drift_seed=config.seed,
    )  # fmt: skip


def _tensorboard() -> str:
    """How to call TensorBoard from here: by path if its environment is not the active one."""
    beside = Path(sys.executable).parent / "tensorboard"
    on_path = any((Path(place) / "tensorboard").exists() for place in os.get_exec_path())
    return "tensorboard" if on_path or not beside.exists() else os.path.relpath(beside)


# ------------------------------------------------------------------------------------------------------ the folder


def _is_done(folder: Path, config: RunConfig) -> bool:
    """Is the run done for as many steps as are asked for now? A run that is to go further is done no more."""
    done = folder / "DONE"
    if not done.exists():
        return False
    if json.loads(done.read_text())["steps"] >= config.steps:
        return True
    done.unlink()
    return False


def _check_same_run(folder: Path, config: RunConfig) -> None:
    """Refuse to mix two runs in one folder."""
    file = folder / "config.yaml"
    if not file.exists():
        return
    if config.resume == "never":
        raise BadInput(f"{folder} holds a run already; go on with --resume auto, or choose another --run or --seed")
    with bad_input():
        changed = {name: pair for name, pair in differences(load(file), config).items() if name not in FREE}
    if changed:
        listed = "; ".join(f"--{name.replace('_', '-')} {old} there, {new} now" for name, (old, new) in changed.items())
        raise BadInput(f"{folder} holds another run: {listed}. Choose another --run")


def _describe(folder: Path, config: RunConfig) -> None:
    """Write down what runs and on what, before the first step."""
    _write(folder / "config.yaml", dump(replace(config, run=None)))
    session = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    file = folder / "versions.json"
    sessions = json.loads(file.read_text()) if file.exists() else []
    if not sessions or sessions[-1] != session:
        _write(file, json.dumps([*sessions, session], indent=1) + "\n")


def _write(file: Path, text: str) -> None:
    scratch = file.with_name(file.name + ".tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, file)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> str | None:
    """The commit of the checkout that runs, with a mark if it was changed since."""
    here = Path(__file__).resolve().parent
    call: Callable[..., Any] = lambda *words: subprocess.run(  # noqa: E731
        ["git", "-C", str(here), *words], capture_output=True, text=True
    )
    try:
        commit = call("rev-parse", "HEAD")
        changed = call("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return None
    if commit.returncode:
        return None
    return str(commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""))


def _device(name: str) -> str:
    """The device asked for; `auto` is the accelerator if there is one.

    Raises:
        BadInput: There is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {name} is not to be had here: {str(error).splitlines()[0]}") from None
    return name


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("train"))

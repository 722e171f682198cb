"""Speed of pliant and Stable-Baselines3, measured in turns: steps and updates per second, memory, and checkpoints.

Each measurement runs in its own process and trains for real. It warms up past `learning starts` and then times whole
steps: acting, environment, storage, and updates. Within every round, pliant and its peers take turns, so that other
load on the machine affects all. The result is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pliant.lab.commands.cards import COSTS

from . import peers
from .record import Record


@dataclass(frozen=True)
class Task:
    """One speed comparison; both libraries get the same numbers."""

    title: str
    env: str
    agent: str
    batch: int
    steps_per_update: int
    warmup: int  # environment steps before the clock starts
    steps: int  # environment steps timed


TASKS = {
    "pong": Task("DQN, Pong: batch 32, update every 4 steps", "ALE/Pong-v5", "dqn", 32, 4, 600, 1_000),
    "cartpole": Task("DQN, CartPole: batch 128, update every 10 steps", "CartPole-v1", "dqn", 128, 10, 2_000, 20_000),
    "halfcheetah": Task("SAC, HalfCheetah: batch 256, update every step", "HalfCheetah-v5", "sac", 256, 1, 200, 700),
}


def synchronise(device: str) -> None:
    """Wait until the device has done all its work."""
    from . import machine

    machine.synchronise(device)


def _timed(task: Task, advance: Callable[[int], None]) -> float:
    """Seconds for `task.steps` steps after the warm-up."""
    advance(task.warmup)
    start = time.perf_counter()
    advance(task.steps)
    return time.perf_counter() - start


def training(task: Task, device: str = "cpu", num_envs: int = 1) -> Any:
    """A run of this task, in memory: no log on disk, no checkpoints."""
    from pliant.agents import DQN, SAC, DQNConfig, SACConfig
    from pliant.agents.networks import NetworkConfig
    from pliant.agents.optimizers import OptimizerConfig
    from pliant.agents.run import Run
    from pliant.envs import make

    envs = make(task.env, num_envs=num_envs, seed=0)
    common: dict[str, Any] = dict(
        batch_size=task.batch,
        replay_ratio=1 / task.steps_per_update,
        update_every=task.steps_per_update,
        learning_starts=task.warmup // 2,
    )
    agent: DQN | SAC
    if task.agent == "sac":
        agent = SAC(envs.observation, envs.action, SACConfig(**common, buffer_size=100_000), seed=0, device=device)
    else:
        pixels = envs.observation.pixels
        config = DQNConfig(
            **common,
            buffer_size=100_000 if pixels else 10_000,
            epsilon_steps=1_000,
            reward_clip=float(pixels),
            network=NetworkConfig(hidden=(512,) if pixels else (120, 84)),
            optimizer=OptimizerConfig(lr=1e-4, max_grad_norm=10.0),
        )
        agent = DQN(envs.observation, envs.action, config, seed=0, device=device)
    return Run(agent, envs)


def measure_pliant(task: Task, device: str = "cpu") -> float:
    """Seconds of pliant's training loop, in memory like SB3's."""
    run = training(task, device)

    def advance(steps: int) -> None:
        run.train(run.clock.steps + steps)
        synchronise(device)

    return _timed(task, advance)


def measure_sb3(task: Task, device: str = "cpu") -> float:
    """Seconds of Stable-Baselines3's own loop with its own Atari wrappers."""
    import gymnasium as gym
    import stable_baselines3 as sb3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    common: dict[str, Any] = dict(
        batch_size=task.batch,
        learning_starts=task.warmup // 2,
        train_freq=task.steps_per_update,
        gradient_steps=1,
        seed=0,
        device=device,
    )
    model: Any
    if task.agent == "sac":
        model = sb3.SAC("MlpPolicy", gym.make(task.env), buffer_size=100_000, **common)
    elif task.env.startswith("ALE/"):
        import ale_py

        gym.register_envs(ale_py)
        env = VecFrameStack(make_atari_env(task.env, n_envs=1, seed=0), 4)
        # Only speed is measured here; ten thousand of its transitions take 0.56 GB.
        model = sb3.DQN("CnnPolicy", env, buffer_size=10_000, learning_rate=1e-4, **common)
    else:
        policy = {"net_arch": [120, 84]}
        model = sb3.DQN("MlpPolicy", gym.make(task.env), buffer_size=10_000, policy_kwargs=policy, **common)

    class Clock(BaseCallback):
        """Reads the clock within one call to learn, because only one call keeps SB3's schedules running."""

        started = 0.0

        def _on_step(self) -> bool:
            if self.num_timesteps == task.warmup:
                Clock.started = time.perf_counter()
            return True

    model.learn(task.warmup + task.steps, callback=Clock())
    synchronise(device)
    return time.perf_counter() - Clock.started


MEASURES: dict[str, Callable[[Task, str], float]] = {"pliant": measure_pliant, "sb3": measure_sb3}
TITLES = {"pliant": "pliant", "sb3": "SB3"} | peers.NAMES


class MeasurementFailed(RuntimeError):
    """The process that measures a library failed."""


@dataclass(frozen=True)
class Settings:
    """What the speed tables compare.

    Attributes:
        rounds: Each library is measured once per round.
        threads: CPU threads of each process.
        device: cpu or cuda.
        seconds: After this time no further round of a task starts that would probably not end in time. The first round
            is always made.
        scripts: The folders of CleanRL and LeanRL that were given.
    """

    rounds: int = 3
    threads: int = 1
    device: str = "cpu"
    seconds: float = 300.0
    scripts: dict[str, Path] = field(default_factory=dict)


def _in_process(library: str, name: str, threads: int, device: str = "cpu") -> float:
    """Environment steps per second of a library, measured in a process of its own."""
    task = TASKS[name]
    command = [sys.executable, "-m", "pliant.scripts", "bench", "measure", library, name]
    command += ["--threads", str(threads), "--device", device]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without output"]
        raise MeasurementFailed(f"{' '.join(command[2:])} ended with exit code {done.returncode}: {lines[-1]}")
    return task.steps / float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def _of_script(library: str, name: str, settings: Settings) -> float | str | None:
    """Environment steps per second that a script prints; the reason if it failed; None if there is no script."""
    task = TASKS[name]
    script = peers.script_for(library, name, settings.scripts[library])
    if script is None:
        return None
    line = peers.arguments(
        library,
        name,
        steps=task.warmup + task.steps,
        learning_starts=task.warmup // 2,
        batch=task.batch,
        device=settings.device,
    )
    try:
        return peers.steps_per_second(script, line, settings.threads)
    except peers.ScriptFailed as failed:
        return str(failed)


Speeds = dict[str, dict[str, list[Any]]]  # task → library → steps per second of each round


def measure_speeds(names: list[str], settings: Settings, record: Record, note: Callable[[str], None]) -> Speeds:
    """Measure every task in every round; a later round starts only if there is time for it.

    Args:
        note: Called with one line for each measurement, as it comes.
    """
    libraries = [*MEASURES, *settings.scripts]
    speeds: Speeds = {name: {library: [] for library in libraries} for name in names}
    start = time.monotonic()
    took: dict[str, float] = {}
    for number in range(1, settings.rounds + 1):
        for name in names:
            began = time.monotonic()
            keys = {library: f"{name}/{library}/{number}" for library in libraries}
            missing = [library for library in libraries if keys[library] not in record.measurements]
            if number > 1 and missing and began - start + took.get(name, 0.0) > settings.seconds:
                continue
            for library in libraries:
                measure = _of_script if library in settings.scripts else None
                value = record.once(
                    keys[library],
                    partial(measure, library, name, settings)
                    if measure
                    else partial(_in_process, library, name, settings.threads, settings.device),
                )
                speeds[name][library].append(value)
                if library in missing and value is not None:
                    note(f"round {number} of {settings.rounds}: {TASKS[name].title}: {TITLES[library]} {_shown(value)}")
            if len(missing) == len(libraries):
                took[name] = time.monotonic() - began
    done = {name: len(each["pliant"]) for name, each in speeds.items()}
    if short := [f"{name} {number}" for name, number in done.items() if number < settings.rounds]:
        note(f"the time was over after these numbers of rounds: {', '.join(short)}")
    return speeds


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.0f} steps/s"


def speed_rows(speeds: Speeds, settings: Settings) -> list[str]:
    """Markdown rows of environment steps/s, updates/s and the ratio to SB3."""
    threads = f"{settings.threads} thread{'s' * (settings.threads > 1)}"
    scripts = list(settings.scripts)
    rows = [
        f"| training, {settings.device}, {threads} | pliant steps/s | SB3 steps/s | "
        + "".join(f"{TITLES[each]} steps/s | " for each in scripts)
        + "pliant updates/s | ratio to SB3 (range) | rounds |",
        "|---|" + "---|" * (5 + len(scripts)),
    ]
    for name, each in speeds.items():
        task = TASKS[name]
        ours, sb3 = statistics.median(each["pliant"]), statistics.median(each["sb3"])
        ratios = sorted(a / b for a, b in zip(each["pliant"], each["sb3"], strict=True))
        cells = []
        for library in scripts:
            numbers = [value for value in each[library] if isinstance(value, float)]
            reasons = [value for value in each[library] if isinstance(value, str)]
            cells.append(f"{statistics.median(numbers):,.0f}" if numbers else reasons[0] if reasons else "no script")
        cells.append(f"{ours / task.steps_per_update:,.0f}")
        rows.append(
            f"| {task.title} | {ours:,.0f} | {sb3:,.0f} | {' | '.join(cells)} | "
            f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f}–{ratios[-1]:.2f}) | {len(ratios)} |"
        )
    return rows


def limits_table(device: str, record: Record, seconds: float = 1.0) -> list[str]:
    """Markdown rows of what bounds every speed on this machine."""
    from .machine import limits

    rows = [f"| limit, {device} | measured |", "|---|---|"]
    for title, (unit, measure) in limits(device).items():
        if not title.startswith("ALE/") or find_spec("ale_py") is not None:
            rows.append(f"| {title} | {record.once(f'limits/{title}', partial(measure, seconds)):,.0f} {unit} |")
    return rows


def updates_table(device: str, record: Record, note: Callable[[str], None], seconds: float = 2.0) -> list[str]:
    """Markdown rows of updates alone: updates/s, and operators or kernels per update."""
    from .updates import TITLES as WORKLOADS
    from .updates import captured, eager, kernels, operators, updates_per_second

    on_gpu = device != "cpu"

    def measure(workload: str) -> list[str]:
        run = eager(workload, device)
        cells = [f"{updates_per_second(run, seconds, device):,.0f}"]
        if on_gpu:
            try:
                cells.append(f"{updates_per_second(captured(workload, device), seconds, device):,.0f}")
            except RuntimeError as refused:
                cells.append(str(refused))
            number, spent = kernels(run, device)
            return [*cells, f"{number:.0f}", f"{spent:,.0f} µs"]
        return [*cells, str(operators(run))]

    titles = ["as graphs/s", "kernels an update", "GPU time an update"] if on_gpu else ["operators an update"]
    rows = [f"| updates alone, {device} | operator by operator/s | {' | '.join(titles)} |"]
    rows.append("|---|" + "---|" * (1 + len(titles)))
    for workload, title in WORKLOADS.items():
        cells = record.once(f"updates/{workload}", partial(measure, workload))
        rows.append(f"| {title} | {' | '.join(cells)} |")
        note(rows[-1])
    return rows


def memory_table() -> list[str]:
    """Bytes per Atari transition at one and sixteen environments, compared with SB3's default buffer."""
    from pliant.agents import Replay
    from pliant.common.spaces import ActionSpec
    from pliant.envs import make

    peer = 2 * 4 * 84 * 84 + 8 + 4 + 1 + 4  # observations and successors whole; action, reward, done, timeout
    rows = ["| Atari replay of 1,000,000 | bytes a transition | share of SB3's default |", "|---|---|---|"]
    observation = make("ALE/Pong-v5").observation
    for num_envs in (1, 16):
        size = Replay.size_of(observation, ActionSpec(6, discrete=True), capacity=1_000_000, num_envs=num_envs)
        each = size / 1_000_000
        rows.append(f"| pliant, {num_envs} environment{'s' * (num_envs > 1)} | {each:,.0f} | 1/{peer / each:.2f} |")
    rows.append(f"| SB3 `ReplayBuffer` | {peer:,} | 1 |")
    return rows


def checkpoint_table(transitions: list[int], record: Record) -> list[str]:
    """Seconds and bytes of a first checkpoint, and of the next one 10,000 transitions later, on real frames."""
    rows = [
        "| Pong under a random policy | first checkpoint | after 10,000 more transitions | loading |",
        "|---|---|---|---|",
    ]
    for count in transitions:
        rows.append(record.once(f"checkpoint/{count}", partial(_checkpoint_row, count)))
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _checkpoint_row(count: int) -> str:
    import numpy as np

    from pliant.agents import DQN, DQNConfig
    from pliant.agents.checkpoint import Checkpoints
    from pliant.agents.networks import NetworkConfig
    from pliant.agents.run import Run
    from pliant.envs import make

    with tempfile.TemporaryDirectory() as folder:
        envs = make("ALE/Pong-v5", num_envs=8, seed=0)
        config = DQNConfig(network=NetworkConfig(hidden=(512,)), buffer_size=count, learning_starts=10**9)
        run = Run(DQN(envs.observation, envs.action, config), envs, checkpoints=Checkpoints(Path(folder)))
        run.obs = envs.reset()
        run.memory.start(run.obs)
        cells = []
        for target in (count, count + 10_000):
            while run.clock.steps < target:
                run.step()
            before = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
            start = time.perf_counter()
            run.save()
            seconds = time.perf_counter() - start
            written = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) - before
            cells.append(f"{seconds:.1f} s, {written / 1e6:,.0f} MB")
        start = time.perf_counter()
        checkpoint = Checkpoints(Path(folder)).newest_good()
        assert checkpoint is not None
        again = Run(DQN(envs.observation, envs.action, config), make("ALE/Pong-v5", num_envs=8, seed=0))
        again.restore(checkpoint)
        cells.append(f"{time.perf_counter() - start:.1f} s")
        assert np.array_equal(again.obs, run.obs)  # type: ignore[arg-type]
        return f"| {count:,} transitions | {' | '.join(cells)} |"


def interventions_table(rounds: int, threads: int, save: bool, record: Record) -> list[str]:
    """Markdown rows of the cost of each method; with `save`, also stored for its card."""
    from .interventions import costs, table

    agents = ["dqn", "sac"]
    by_method = costs(agents, rounds, record.once)
    if save:
        machine = f"one process, {threads} thread{'s' * (threads > 1)}, {platform.machine()} CPU"
        costs_before = json.loads(COSTS.read_text()) if COSTS.exists() else {}
        COSTS.write_text(json.dumps(costs_before | {"machine": machine, "methods": by_method}, indent=1) + "\n")
    return table(by_method, agents)


def monitors_table(rounds: int, threads: int, save: bool, record: Record) -> list[str]:
    """Markdown rows of the cost of each monitor, and of real training with the cheap ones."""
    from .monitors import end_to_end, shares, table

    agents = ["dqn", "sac"]
    by_monitor = shares(agents, rounds, record.once)
    if save:
        costs = json.loads(COSTS.read_text())
        machine = f"one process, {threads} thread{'s' * (threads > 1)}, {platform.machine()} CPU"
        COSTS.write_text(json.dumps(costs | {"monitors": by_monitor, "monitors_machine": machine}, indent=1) + "\n")
    return [*table(by_monitor, agents), "", *record.once("monitors/training", partial(end_to_end, rounds))]

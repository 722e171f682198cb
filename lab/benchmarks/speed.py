"""Speed of pliant and Stable-Baselines3, measured in turns: steps and updates per second, memory, and checkpoints.

Each measurement runs in its own process and trains for real. It warms up past `learning starts` and then times whole
steps: acting, environment, storage, and updates. Within every round, pliant and Stable-Baselines3 take turns, so that
other load on the machine affects both. The result is the median of the rounds' ratios.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pliant.lab.commands.cards import COSTS


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
    "pong": Task("DQN, Pong: batch 32, update every 4 steps", "ALE/Pong-v5", "dqn", 32, 4, 1_200, 2_000),
    "cartpole": Task("DQN, CartPole: batch 128, update every 10 steps", "CartPole-v1", "dqn", 128, 10, 3_000, 40_000),
    "halfcheetah": Task("SAC, HalfCheetah: batch 256, update every step", "HalfCheetah-v5", "sac", 256, 1, 300, 1_500),
}


def _timed(task: Task, advance: Callable[[int], None]) -> float:
    """Seconds for `task.steps` steps after the warm-up."""
    advance(task.warmup)
    start = time.perf_counter()
    advance(task.steps)
    return time.perf_counter() - start


def measure_pliant(task: Task) -> float:
    """Seconds of pliant's training loop, in memory (no log on disk, no checkpoints), like SB3's."""
    from pliant.agents import DQN, SAC, DQNConfig, SACConfig
    from pliant.agents.networks import NetworkConfig
    from pliant.agents.optimizers import OptimizerConfig
    from pliant.agents.run import Run
    from pliant.envs import make

    envs = make(task.env, num_envs=1, seed=0)
    common: dict[str, Any] = dict(
        batch_size=task.batch,
        replay_ratio=1 / task.steps_per_update,
        update_every=task.steps_per_update,
        learning_starts=task.warmup // 2,
    )
    agent: DQN | SAC
    if task.agent == "sac":
        agent = SAC(envs.observation, envs.action, SACConfig(**common, buffer_size=100_000), seed=0)
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
        agent = DQN(envs.observation, envs.action, config, seed=0)
    run = Run(agent, envs)

    def advance(steps: int) -> None:
        run.train(run.clock.steps + steps)

    return _timed(task, advance)


def measure_sb3(task: Task) -> float:
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
        device="cpu",
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
    return time.perf_counter() - Clock.started


MEASURES = {"pliant": measure_pliant, "sb3": measure_sb3}


class MeasurementFailed(RuntimeError):
    """The process that measures a library failed."""


def _in_process(library: str, name: str, threads: int) -> float:
    command = [sys.executable, "-m", "pliant.lab.benchmarks.speed", "measure", library, name, "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without output"]
        raise MeasurementFailed(f"{' '.join(command[2:])} ended with exit code {done.returncode}: {lines[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def speed_table(names: list[str], rounds: int, threads: int) -> list[str]:
    """Markdown rows of environment steps/s, updates/s and the ratio to SB3."""
    rows = [
        f"| training, {threads} thread{'s' * (threads > 1)} | pliant steps/s | SB3 steps/s | pliant updates/s "
        f"| ratio (range of {rounds} rounds) |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        task = TASKS[name]
        seconds: dict[str, list[float]] = {library: [] for library in MEASURES}
        for _ in range(rounds):
            for library in MEASURES:
                seconds[library].append(_in_process(library, name, threads))
        ours, peer = (statistics.median(seconds[library]) for library in ("pliant", "sb3"))
        ratios = sorted(b / a for a, b in zip(seconds["pliant"], seconds["sb3"], strict=True))
        rows.append(
            f"| {task.title} | {task.steps / ours:,.0f} | {task.steps / peer:,.0f} | "
            f"{task.steps / task.steps_per_update / ours:,.0f} | **{statistics.median(ratios):.2f}** "
            f"({ratios[0]:.2f}–{ratios[-1]:.2f}) |"
        )
        print(rows[-1], file=sys.stderr, flush=True)
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


def checkpoint_table(transitions: list[int]) -> list[str]:
    """Seconds and bytes of a first checkpoint, and of the next one 10,000 transitions later, on real frames."""
    import numpy as np

    from pliant.agents import DQN, DQNConfig
    from pliant.agents.checkpoint import Checkpoints
    from pliant.agents.networks import NetworkConfig
    from pliant.agents.run import Run
    from pliant.envs import make

    rows = [
        "| Pong under a random policy | first checkpoint | after 10,000 more transitions | loading |",
        "|---|---|---|---|",
    ]
    for count in transitions:
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
            rows.append(f"| {count:,} transitions | {' | '.join(cells)} |")
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def interventions_table(rounds: int, threads: int, save: bool) -> list[str]:
    """Markdown rows of the cost of each method; with `save`, also stored for its card."""
    from .interventions import costs, table

    agents = ["dqn", "sac"]
    by_method = costs(agents, rounds)
    if save:
        machine = f"one process, {threads} thread{'s' * (threads > 1)}, {platform.machine()} CPU"
        costs_before = json.loads(COSTS.read_text()) if COSTS.exists() else {}
        COSTS.write_text(json.dumps(costs_before | {"machine": machine, "methods": by_method}, indent=1) + "\n")
    return table(by_method, agents)


def monitors_table(rounds: int, threads: int, save: bool) -> list[str]:
    """Markdown rows of the cost of each monitor, and of real training with the cheap ones."""
    from .monitors import end_to_end, shares, table

    agents = ["dqn", "sac"]
    by_monitor = shares(agents, rounds)
    if save:
        costs = json.loads(COSTS.read_text())
        machine = f"one process, {threads} thread{'s' * (threads > 1)}, {platform.machine()} CPU"
        COSTS.write_text(json.dumps(costs | {"monitors": by_monitor, "monitors_machine": machine}, indent=1) + "\n")
    return [*table(by_monitor, agents), "", *end_to_end(rounds)]

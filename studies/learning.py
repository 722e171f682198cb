"""Learning curves of DQN, SAC and PPO beside Stable-Baselines3, at equal steps and equal settings.

    python studies/learning.py run --library pliant --task hopper --seed 0     # one run -> one JSON file
    python studies/learning.py all --jobs 2                                    # all runs without a result
    python studies/learning.py report                                          # the tables of docs/evidence.md

One run writes `studies/results/learning/<task>/<library>/seed<S>.json`: the return and the env step of every training
episode, twenty evaluation episodes of the greedy (DQN), mean (SAC) or likeliest (PPO) action on seeds of their own, the
same for both libraries, and the versions.
Finished files are never run again.

The *training score* of a run is the mean return of the episodes that end in the last fifth of its steps (the whole
run's last episode if none does); the *evaluation score* is the mean of the twenty.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pliant.lab.experiments.pool import Call, Progress, run_all
from pliant.lab.experiments.sweep import exit_code_of
from pliant.lab.statistics import mean_interval, welch

RESULTS = Path(__file__).parent / "results" / "learning"
LOGS = Path("runs", "learning")
EVALUATION_EPISODES = 20
EVALUATION_SEED = 10_000


@dataclass(frozen=True)
class Task:
    """One environment and the settings that both libraries share."""

    env: str
    steps: int
    agent: str
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: int = 5
    max_episode_steps: int | None = None


# Settings under neutral names; each library's adapter below translates them.
SAC = dict(
    lr=3e-4,
    batch=256,
    buffer=100_000,
    starts=1_000,
    gamma=0.99,
    tau=0.005,
    hidden=(256, 256),
    replay_ratio=1.0,
    update_every=1,
)
# RL Zoo's settings for CartPole. Its target network follows every 10 steps, which, when 128 updates are made in one
# go every 256 steps, is once a round.
DQN = dict(
    lr=2.3e-3,
    batch=64,
    buffer=100_000,
    starts=1_000,
    gamma=0.99,
    target_every_steps=256,
    replay_ratio=0.5,
    update_every=256,
    epsilon_end=0.04,
    epsilon_fraction=0.16,
    hidden=(256, 256),
    max_grad_norm=10.0,
)
# PPO's value weight is that of the mean squared error, without a half. On CartPole RL Zoo's settings, but that there
# the clip range falls too, from 0.2 to 0; on Pendulum RL Zoo's, without state-dependent exploration, which only SB3
# has; on HalfCheetah SB3's defaults, which are those of Schulman et al. 2017, with observations and rewards normalised.
# Steps are whole rollouts.
PPO = dict(
    lr=3e-4,
    anneal=False,
    num_envs=1,
    rollout=2048,
    batch=64,
    epochs=10,
    gamma=0.99,
    lam=0.95,
    clip=0.2,
    entropy=0.0,
    value_weight=0.5,
    max_grad_norm=0.5,
    hidden=(64, 64),
    normalise=False,
)
PPO_CARTPOLE = PPO | dict(lr=1e-3, anneal=True, num_envs=8, rollout=32, batch=256, epochs=20, gamma=0.98, lam=0.8)
PPO_PENDULUM = PPO | dict(lr=1e-3, num_envs=4, rollout=1024, gamma=0.9)
MINATAR = DQN | dict(
    lr=5e-4,
    batch=32,
    starts=5_000,
    target_every_steps=1_000,
    update_every=2,
    epsilon_end=0.05,
    epsilon_fraction=0.25,
    hidden=(128,),
    channels=16,
)
TASKS = {
    "cartpole": Task("CartPole-v1", 50_000, "dqn", DQN),
    "pendulum": Task("Pendulum-v1", 10_000, "sac", SAC | dict(lr=1e-3)),
    "halfcheetah": Task("HalfCheetah-v5", 30_000, "sac", SAC),
    "hopper": Task("Hopper-v5", 30_000, "sac", SAC),
    # A greedy policy can bounce the ball for ever through a hole in the wall, hence the limit.
    "minatar-breakout": Task("MinAtar/Breakout-v1", 60_000, "dqn", MINATAR, max_episode_steps=5_000),
    "minatar-spaceinvaders": Task("MinAtar/SpaceInvaders-v1", 60_000, "dqn", MINATAR, max_episode_steps=5_000),
    "ppo-cartpole": Task("CartPole-v1", 51_200, "ppo", PPO_CARTPOLE),
    "ppo-pendulum": Task("Pendulum-v1", 102_400, "ppo", PPO_PENDULUM),
    "ppo-halfcheetah": Task("HalfCheetah-v5", 61_440, "ppo", PPO | dict(normalise=True)),
}


def gym_env(task: Task) -> Any:
    """The task's environment as gymnasium has it; MinAtar's images channel first."""
    import gymnasium as gym
    import numpy as np

    class Channels(gym.ObservationWrapper):
        """MinAtar's boolean (10, 10, C) as uint8 (C, 10, 10), which SB3 stores as it is."""

        def __init__(self, env: gym.Env) -> None:
            super().__init__(env)
            height, width, channels = env.observation_space.shape or (0, 0, 0)
            self.observation_space = gym.spaces.Box(0, 1, (channels, height, width), np.uint8)

        def observation(self, observation: Any) -> Any:
            return np.moveaxis(observation, -1, 0).astype(np.uint8)

    if task.env.startswith("MinAtar/"):
        import minatar.gym

        if task.env not in gym.registry:
            minatar.gym.register_envs()
    env: gym.Env = gym.make(task.env, max_episode_steps=task.max_episode_steps)
    if task.env.startswith("MinAtar/"):
        env = Channels(env)
    return gym.wrappers.RecordEpisodeStatistics(env)


def evaluate(task: Task, policy: Callable[[Any], Any]) -> list[float]:
    """Returns of episodes that begin alike for both libraries: where an episode begins can matter more than who plays
    it (on Pendulum by 40 points between two sets of twenty)."""
    env, returns = gym_env(task), []
    for k in range(EVALUATION_EPISODES):
        obs, _ = env.reset(seed=EVALUATION_SEED + k)
        done, total = False, 0.0
        while not done:
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


Policy = Callable[[Any], Any]


def sb3_off_policy(task: Task, seed: int) -> tuple[Any, Policy]:
    """SB3's DQN or SAC, and its policy without exploration."""
    import gymnasium as gym
    import stable_baselines3 as sb3
    import torch
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import nn

    class Features(BaseFeaturesExtractor):
        """MinAtar's network: one 3x3 convolution and one hidden layer."""

        def __init__(self, space: gym.Space, channels: int, width: int) -> None:
            super().__init__(space, width)
            shape = space.shape or (0, 0, 0)
            flat = channels * (shape[1] - 2) * (shape[2] - 2)
            self.net = nn.Sequential(
                nn.Conv2d(shape[0], channels, 3), nn.ReLU(), nn.Flatten(), nn.Linear(flat, width), nn.ReLU()
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    s = task.settings
    policy: dict[str, Any] = {"net_arch": list(s["hidden"])}
    if "channels" in s:
        policy = {
            "net_arch": [],
            "normalize_images": False,
            "features_extractor_class": Features,
            "features_extractor_kwargs": {"channels": s["channels"], "width": s["hidden"][0]},
        }
    common: dict[str, Any] = dict(
        policy="MlpPolicy",
        env=gym_env(task),
        learning_rate=s["lr"],
        batch_size=s["batch"],
        buffer_size=s["buffer"],
        learning_starts=s["starts"],
        gamma=s["gamma"],
        policy_kwargs=policy,
        seed=seed,
        device="cpu",
        train_freq=s["update_every"],
        gradient_steps=round(s["replay_ratio"] * s["update_every"]),
    )
    if task.agent == "dqn":
        model: Any = sb3.DQN(
            **common,
            target_update_interval=s["target_every_steps"],
            exploration_fraction=s["epsilon_fraction"],
            exploration_final_eps=s["epsilon_end"],
            max_grad_norm=s["max_grad_norm"],
        )
    else:
        model = sb3.SAC(**common, tau=s["tau"])
    return model, lambda obs: model.predict(obs, deterministic=True)[0]


def sb3_ppo(task: Task, seed: int) -> tuple[Any, Policy]:
    """SB3's PPO, and its policy without exploration.

    Its Gaussian is in the environment's units and ours in those of the range, so that boxes are rescaled to [-1, 1].
    """
    import gymnasium as gym
    import numpy as np
    import stable_baselines3 as sb3
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    s = task.settings
    box = isinstance(gym_env(task).action_space, gym.spaces.Box)

    def env() -> Any:
        return gym.wrappers.RescaleAction(gym_env(task), np.float32(-1), np.float32(1)) if box else gym_env(task)

    envs: Any = DummyVecEnv([env] * s["num_envs"])
    if s["normalise"]:
        envs = VecNormalize(envs, gamma=s["gamma"])
    model = sb3.PPO(
        "MlpPolicy",
        envs,
        learning_rate=(lambda left: left * s["lr"]) if s["anneal"] else s["lr"],
        n_steps=s["rollout"],
        batch_size=s["batch"],
        n_epochs=s["epochs"],
        gamma=s["gamma"],
        gae_lambda=s["lam"],
        clip_range=s["clip"],
        ent_coef=s["entropy"],
        vf_coef=s["value_weight"],
        max_grad_norm=s["max_grad_norm"],
        policy_kwargs={"net_arch": list(s["hidden"])},
        seed=seed,
        device="cpu",
    )
    bounds = gym_env(task).action_space.high if box else 1

    def policy(obs: Any) -> Any:
        seen = envs.normalize_obs(obs) if s["normalise"] else obs
        return model.predict(seen, deterministic=True)[0] * bounds

    return model, policy


def run_sb3(task: Task, seed: int) -> dict[str, Any]:
    import stable_baselines3 as sb3

    model, policy = (sb3_ppo if task.agent == "ppo" else sb3_off_policy)(task, seed)
    episodes: list[tuple[int, float]] = []

    class Record(sb3.common.callbacks.BaseCallback):
        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    episodes.append((self.num_timesteps, float(info["episode"]["r"])))
            return True

    start = time.perf_counter()
    model.learn(task.steps, callback=Record())
    seconds = time.perf_counter() - start
    returns = evaluate(task, policy)
    return {"episodes": episodes, "evaluation": returns, "seconds": seconds, "version": sb3.__version__}


def pliant_agent(task: Task, seed: int, envs: Any, specs: tuple[str, ...]) -> Any:
    """Our agent of the task, with the interventions of the specs."""
    from pliant.agents import DQN, PPO, SAC, DQNConfig, PPOConfig, SACConfig
    from pliant.agents.networks import NetworkConfig
    from pliant.agents.optimizers import OptimizerConfig
    from pliant.interventions import INTERVENTIONS
    from pliant.interventions.core.spec import build

    s = task.settings
    built: dict[str, Any] = dict(interventions=tuple(build(specs, INTERVENTIONS)), seed=seed)
    if task.agent == "ppo":
        network = NetworkConfig(hidden=s["hidden"], activation="tanh", init="orthogonal")
        ppo = PPOConfig(
            network=network,
            actor_network=network,
            anneal_steps=task.steps if s["anneal"] else 0,
            optimizer=OptimizerConfig(lr=s["lr"], eps=1e-5, max_grad_norm=s["max_grad_norm"]),
            rollout=s["rollout"],
            epochs=s["epochs"],
            batch_size=s["batch"],
            gamma=s["gamma"],
            gae_lambda=s["lam"],
            clip=s["clip"],
            entropy=s["entropy"],
            normalise_observations=s["normalise"],
            scale_rewards=s["normalise"],
            value_weight=2 * s["value_weight"],  # of half the squared error
        )
        return PPO(envs.observation, envs.action, ppo, **built)
    common: dict[str, Any] = dict(
        batch_size=s["batch"],
        buffer_size=s["buffer"],
        learning_starts=s["starts"],
        gamma=s["gamma"],
        replay_ratio=s["replay_ratio"],
        update_every=s["update_every"],
        network=NetworkConfig(hidden=s["hidden"]),
        optimizer=OptimizerConfig(lr=s["lr"], max_grad_norm=s.get("max_grad_norm", 0.0)),
    )
    if task.agent == "dqn":
        dqn = DQNConfig(
            **common,
            target_period=round(s["target_every_steps"] * s["replay_ratio"]),
            epsilon_end=s["epsilon_end"],
            epsilon_steps=round(s["epsilon_fraction"] * task.steps) - s["starts"],
        )
        return DQN(envs.observation, envs.action, dqn, **built)
    sac = SACConfig(
        **common,
        target_tau=s["tau"],
        actor_network=NetworkConfig(hidden=s["hidden"]),
        actor_optimizer=OptimizerConfig(lr=s["lr"]),
        temperature_lr=s["lr"],
    )
    return SAC(envs.observation, envs.action, sac, **built)


def run_pliant(task: Task, seed: int, specs: tuple[str, ...] = ()) -> dict[str, Any]:
    from importlib.metadata import version

    import numpy as np

    from pliant.agents import Clock, Episode
    from pliant.agents.log import Log
    from pliant.agents.run import Run
    from pliant.envs import EnvConfig, make

    env_config = EnvConfig(max_episode_steps=task.max_episode_steps)
    envs = make(task.env, num_envs=task.settings.get("num_envs", 1), seed=seed, config=env_config)
    envs_type = np.uint8 if envs.observation.pixels else np.float32
    agent = pliant_agent(task, seed, envs, specs)
    episodes: list[tuple[int, float]] = []

    class Record(Log):
        def episode(self, episode: Episode, clock: Clock) -> None:
            episodes.append((clock.steps, episode.ret))

    def policy(obs: Any) -> Any:
        action = agent.act(obs[None].astype(envs_type))[0].cpu().numpy()
        return action if agent.action.discrete else np.clip(action, agent.action.low, agent.action.high)

    start = time.perf_counter()
    Run(agent, envs, log=Record(None)).train(task.steps)
    seconds = time.perf_counter() - start
    returns = evaluate(task, policy)
    return {"episodes": episodes, "evaluation": returns, "seconds": seconds, "version": version("pliant")}


LIBRARIES = {"pliant": run_pliant, "sb3": run_sb3}


def result_file(task: str, library: str, seed: int) -> Path:
    return RESULTS / task / library / f"seed{seed}.json"


def measure(task: str, library: str, seed: int) -> dict[str, Any]:
    """The result of one run, with its settings and versions."""
    import numpy
    import torch

    return LIBRARIES[library](TASKS[task], seed) | {
        "task": task,
        "library": library,
        "seed": seed,
        "steps": TASKS[task].steps,
        "evaluation_seeds": [EVALUATION_SEED, EVALUATION_SEED + EVALUATION_EPISODES - 1],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def run_missing(runs: Iterable[tuple[str, str, int]], jobs: int) -> int:
    """Do the runs (task, library, seed) without a result, `jobs` at a time. Returns the exit code."""
    calls = [
        Call(function=measure, arguments=run, file=result_file(*run), log=LOGS / "/".join(map(str, run)))
        for run in runs
    ]
    return exit_code_of(run_all(calls, workers=jobs, progress=Progress(sys.stderr)))


# ------------------------------------------------------------------------------------------------------ report


def training_score(result: dict[str, Any]) -> float:
    """Mean return of the episodes that end in the last fifth of the steps."""
    late = [ret for step, ret in result["episodes"] if step > 0.8 * result["steps"]]
    return statistics.fmean(late or [result["episodes"][-1][1]])


def evaluation_score(result: dict[str, Any]) -> float:
    return statistics.fmean(result["evaluation"])


def interval(scores: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval over seeds."""
    mean, _, high = mean_interval(scores)
    return mean, high - mean


def difference(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Mean difference and half-width of its 95 % interval (Welch)."""
    gap, _, high = welch(ours, theirs).interval()
    return gap, high - gap


def report() -> str:
    """The tables of docs/evidence.md, from the result files alone."""
    rows = {"training": training_score, "evaluation": evaluation_score}
    lines: list[str] = []
    for title, score in rows.items():
        lines += [
            f"**{title.capitalize()} score** (mean ± half-width of the 95 % t-interval over seeds; below 3 seeds, "
            "each run's)",
            "",
            "| agent | task | steps | seeds | pliant | SB3 | pliant − SB3 | verdict |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, task in TASKS.items():
            results = {
                library: [json.loads(f.read_text()) for f in sorted((RESULTS / name / library).glob("seed*.json"))]
                for library in LIBRARIES
            }
            ours, theirs = ([score(r) for r in results[library]] for library in ("pliant", "sb3"))
            head = f"| {task.agent.upper()} | {task.env} | {task.steps:,}"
            seeds = f"{len(ours)}" if len(ours) == len(theirs) else f"{len(ours)} / {len(theirs)}"
            if min(len(ours), len(theirs)) < 3:
                each = [", ".join(f"{s:.4g}" for s in scores) or "-" for scores in (ours, theirs)]
                lines.append(f"{head} | {seeds} | {' | '.join(each)} | | too few seeds |")
                continue
            cells = ["{:.4g} ± {:.2g}".format(*interval(scores)) for scores in (ours, theirs)]
            gap, half = difference(ours, theirs)
            verdict = "below" if gap + half < 0 else "above" if gap - half > 0 else "no significant difference"
            cells += [f"{gap:+.4g} ± {half:.2g}", verdict]
            lines.append(f"{head} | {seeds} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="one run")
    one.add_argument("--task", choices=TASKS, required=True)
    one.add_argument("--library", choices=LIBRARIES, required=True)
    one.add_argument("--seed", type=int, required=True)
    every = commands.add_parser("all", help="every run that has no result yet")
    every.add_argument("--jobs", type=int, default=1, help="processes at once, one thread each")
    every.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    every.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    commands.add_parser("report", help="print the tables, as Markdown")
    arguments = parser.parse_args()
    if arguments.command == "report":
        print(report())
        return 0
    if arguments.command == "run":
        return run_missing([(arguments.task, arguments.library, arguments.seed)], jobs=1)
    # Seeds outside, so that an interrupted study has few seeds of everything and not everything of few.
    seeds = range(max(TASKS[task].seeds for task in arguments.tasks))
    runs = [(t, lib, s) for s in seeds for t in arguments.tasks for lib in arguments.libraries if s < TASKS[t].seeds]
    return run_missing(runs, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())

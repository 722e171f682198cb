"""Small agents of every kind, fast random environments, and functions that compare two runs to the last bit."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from no_wait import no_wait
from numpy.typing import NDArray

from pliant.agents import (
    DQN,
    PPO,
    SAC,
    Agent,
    DQNConfig,
    Intervention,
    PPOConfig,
    SACConfig,
    Supervised,
    SupervisedConfig,
)
from pliant.agents.checkpoint import Chunked
from pliant.agents.networks import NetworkConfig
from pliant.agents.optimizers import OptimizerConfig
from pliant.agents.run import Run
from pliant.common.spaces import ActionSpec, Episode, ObservationSpec, Step
from pliant.monitors import watch
from pliant.monitors.base import Monitor

VECTOR = ObservationSpec((5,))
ATARI = ObservationSpec((4, 84, 84), torch.uint8, 255.0, stack=4)
IMAGE = ObservationSpec((3, 21, 21), torch.uint8, 255.0)
MINATAR = ObservationSpec((4, 10, 10), torch.uint8, 1.0)
DISCRETE = ActionSpec(3, discrete=True)
BOX = ActionSpec(2, discrete=False, low=(-2.0, 0.0), high=(2.0, 1.0))

NET = NetworkConfig(hidden=(12, 10))
COMMON: dict[str, Any] = dict(batch_size=8, buffer_size=96, learning_starts=8, replay_ratio=1.0, update_every=1)
DQN_CONFIG = DQNConfig(**COMMON, network=NET, target_period=3)
SAC_CONFIG = SACConfig(**COMMON, network=NET, actor_network=NET, projection=8)


def dqn(observation: ObservationSpec, network: Mapping[str, Any] | None = None, **changes: Any) -> Callable[..., Agent]:
    config = replace(DQN_CONFIG, network=replace(NET, **(network or {})), **changes)
    return lambda **k: DQN(observation, DISCRETE, config, **k)


def sac(observation: ObservationSpec, network: Mapping[str, Any] | None = None, **changes: Any) -> Callable[..., Agent]:
    config = replace(SAC_CONFIG, network=replace(NET, **(network or {})), **changes)
    return lambda **k: SAC(observation, BOX, config, **k)


def ppo(
    observation: ObservationSpec, action: ActionSpec, network: Mapping[str, Any] | None = None, **changes: Any
) -> Callable[..., Agent]:
    net = replace(NET, init="orthogonal", **(network or {}))
    changes = {"network": net, "actor_network": net, "optimizer": OptimizerConfig()} | changes
    config = PPOConfig(rollout=3, epochs=2, batch_size=4, **changes)
    return lambda **k: PPO(observation, action, config, **k)


def supervised(
    observation: ObservationSpec, action: ActionSpec, network: Mapping[str, Any] | None = None, **changes: Any
) -> Callable[..., Agent]:
    config = SupervisedConfig(network=replace(NET, **(network or {})), buffer_size=24, **changes)
    return lambda **k: Supervised(observation, action, config, **k)


AGENTS: dict[str, Callable[..., Agent]] = {
    "dqn": dqn(VECTOR),
    "dqn, double dueling prioritised 3-step": dqn(
        VECTOR, double=True, dueling=True, prioritised=True, n_step=3, target_period=1, target_tau=0.1
    ),
    "dqn, minatar, dueling": dqn(MINATAR, dueling=True),
    "dqn, crelu, orthogonal": dqn(IMAGE, {"body": "drq", "width": 0.1, "activation": "crelu", "init": "orthogonal"}),
    "dqn, nature": dqn(ATARI, {"width": 0.25}),
    "dqn, impala": dqn(IMAGE, {"body": "impala", "width": 0.25}),
    "sac": sac(VECTOR),
    "redq": sac(VECTOR, critics=5, target_critics=2, actor_value="mean", actor_period=4),
    "droq": sac(VECTOR, {"norm": "layer_norm"}, dropout=0.1, actor_value="mean", actor_period=2),
    "sac, pixels": sac(IMAGE, {"width": 0.25}),
    "ppo": ppo(VECTOR, DISCRETE, {"activation": "tanh"}, entropy=0.01),
    "ppo, continuous": ppo(VECTOR, BOX, normalise_observations=True, scale_rewards=True),
    "ppo, pixels": ppo(MINATAR, DISCRETE),
    "supervised": supervised(VECTOR, DISCRETE),
    "supervised, numbers from pixels": supervised(IMAGE, BOX, {"body": "drq", "width": 0.25}, updates_per_step=2),
}
# One of each kind for the laws of pairs.
PAIRED = ("dqn, minatar, dueling", "sac, pixels")


class RandomEnvs:
    """Random environments with short episodes; their outputs are a function of their state."""

    frame_skip = 1

    def __init__(self, observation: ObservationSpec, action: ActionSpec, num_envs: int = 1, seed: int = 0) -> None:
        self.observation, self.action, self.num_envs = observation, action, num_envs
        self.rng, self.target_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        self.age = np.zeros(num_envs, np.int64)
        self.frames = np.zeros((num_envs, *observation.shape), np.uint8 if observation.pixels else np.float32)

    def _frame(self) -> NDArray[Any]:
        shape = (self.num_envs, *self.observation.frame_shape)
        if self.observation.pixels:
            return self.rng.integers(int(self.observation.high) + 1, size=shape).astype(np.uint8)
        return self.rng.normal(size=shape).astype(np.float32)

    def _see(self, restart: NDArray[np.bool_]) -> NDArray[Any]:
        frame, channels = self._frame(), self.observation.frame_shape[0]
        self.frames = self.frames.copy()
        self.frames[restart] = 0
        if self.observation.stack > 1:
            self.frames[:, :-channels] = self.frames[:, channels:].copy()
            self.frames[:, -channels:] = frame
        else:
            self.frames[:] = frame
        return self.frames.copy()

    def reset(self) -> NDArray[Any]:
        return self._see(np.ones(self.num_envs, bool))

    def step(self, action: NDArray[Any]) -> Step:
        assert len(action) == self.num_envs
        self.age += 1
        over = (self.rng.random(self.num_envs) < 0.15) | (self.age >= 12)
        terminated = over & (self.rng.random(self.num_envs) < 0.5)
        final = self._see(np.zeros(self.num_envs, bool))
        obs = final.copy()
        if over.any():
            obs[over] = self._see(over)[over]
        self.frames = obs.copy()
        ended = tuple(Episode(i, 1.0, int(self.age[i]), 0) for i in np.flatnonzero(over))
        self.age[over] = 0
        reward = self.rng.normal(size=self.num_envs).astype(np.float32)
        return Step(obs, reward, terminated, over & ~terminated, over, final, ended, target=self._target())

    def _target(self) -> NDArray[Any]:
        """Targets from a random stream of their own: agents that ignore targets get the same observations as before."""
        if self.action.discrete:
            return self.target_rng.integers(self.action.size, size=self.num_envs)
        return self.target_rng.normal(size=(self.num_envs, self.action.size)).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        states = {"rng": self.rng.bit_generator.state, "target_rng": self.target_rng.bit_generator.state}
        return states | {"age": self.age.copy(), "frames": self.frames.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state, self.target_rng.bit_generator.state = state["rng"], state["target_rng"]
        self.age, self.frames = state["age"].copy(), state["frames"].copy()

    def close(self) -> None:
        pass


def build_run(
    agent: str,
    interventions: Sequence[Intervention] = (),
    *,
    seed: int = 0,
    num_envs: int = 2,
    monitors: Sequence[str | Monitor] = (),
) -> Run:
    """A run of one of AGENTS that has begun in random environments; with monitors if they are given."""
    return begin_run(AGENTS[agent](interventions=tuple(interventions), seed=seed), num_envs=num_envs, monitors=monitors)


def begin_run(made: Agent, *, num_envs: int = 2, monitors: Sequence[str | Monitor] = ()) -> Run:
    """A run of this agent that has begun in random environments of the same seed."""
    seed = made.seed
    envs = RandomEnvs(made.observation, made.action, num_envs, seed)
    run = Run(
        made,
        envs,
        monitors=watch(made, *monitors) if monitors else None,
        fresh_envs=lambda: RandomEnvs(made.observation, made.action, 1, seed + 1000),
    )
    run.obs = run.envs.reset()
    run.memory.start(run.obs)
    return run


def take_steps(run: Run, steps: int) -> None:
    """Make this many steps in every environment, with all updates that become due."""
    for _ in range(steps):
        run.step()


def take_steps_with_monitors(run: Run, steps: int) -> None:
    """Make this many steps, and measure, log and save between them as a run does."""
    for _ in range(steps):
        before = run.clock.steps
        run.step()
        run.after_step(before)


def learn_from(run: Run, batch: Any) -> None:
    """Make one update of a run from this batch."""
    memory: Any = run.memory
    memory.draw = lambda: batch
    try:
        run.learn(None)
    finally:
        del memory.draw


def refuse_waiting(run: Run, updates: int, after: int = 0) -> Callable[[], int]:
    """Forbid that one of the next updates makes the host wait for the device; the first `after` updates are exempt.

    Returns:
        A function that makes the remaining updates and returns the number of steps that it took.
    """
    learn = run.learn

    def guarded(draw: Any) -> None:
        nonlocal updates, after
        if after:
            after -= 1
            return learn(draw)
        updates -= 1
        with no_wait():
            learn(draw)
        if not updates:
            del run.learn

    def make_remaining_updates() -> int:
        for steps in range(50):  # an agent that has just begun anew waits until it has data to learn from
            if not updates:
                return steps
            run.step()
        raise AssertionError(f"{updates} updates were never made")

    run.learn = guarded  # type: ignore[method-assign]
    return make_remaining_updates


def current_state(run: Run) -> Any:
    """The whole state of a run, without a copy: compare it before the run goes on."""
    content = {
        "agent": run.agent.state_dict(),
        "memory": run.memory.state_dict(),
        "chunks": {name: run.memory.chunk(name) for name, _ in run.memory.chunks()}
        if isinstance(run.memory, Chunked)
        else {},
        "clock": asdict(run.clock),
        "monitors": None if run.monitors is None else run.monitors.state_dict(),
    }
    return content, run.envs.state_dict(), run.obs  # type: ignore[union-attr]


def saved(run: Run) -> Any:
    """The whole state of a run, written to a file and read back as a checkpoint would be."""
    content, envs, obs = current_state(run)
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True), envs, obs.copy()


def resume(run: Run, state: Any) -> None:
    """Load a saved state into a new run."""
    content, envs, obs = state
    run.agent.load_state_dict(content["agent"])
    run.memory.load_state_dict(content["memory"])
    for name, chunk in content["chunks"].items():
        run.memory.load_chunk(name, chunk)  # type: ignore[attr-defined]
    run.clock = type(run.clock)(**content["clock"])
    if run.monitors is not None:
        run.monitors.load_state_dict(content["monitors"])
    run.envs.load_state_dict(envs)
    run.obs = obs


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Nested containers as one dictionary, with paths as keys."""
    if isinstance(state, Mapping):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{prefix}/{key}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{prefix}/{i}").items()}
    return {prefix: state}


def differences(first: Any, second: Any) -> list[str]:
    """The paths at which two states differ, compared to the last bit."""
    a, b = flat(first), flat(second)
    paths = sorted(a.keys() ^ b.keys())
    for key in a.keys() & b.keys():
        if not _same(a[key], b[key]):
            paths.append(key)
    return paths


def _same(x: Any, y: Any) -> bool:
    """Whether two values are equal; NaN equals NaN, since readings may be undefined."""
    if isinstance(x, torch.Tensor):
        if x.is_floating_point() and x.dtype == y.dtype and x.isnan().any():
            return torch.equal(x.isnan(), y.isnan()) and torch.equal(x[~x.isnan()], y[~y.isnan()])
        return torch.equal(x, y)
    return np.array_equal(x, y) if isinstance(x, np.ndarray) else bool(x == y or (x != x and y != y))


def identities(agent: Agent) -> list[tuple[str, int]]:
    """The identity (`id`) of every parameter, buffer and optimizer of an agent."""
    tensors = [(f"{n}.{k}", id(t)) for n, m in agent.modules() for k, t in (*m.named_parameters(), *m.named_buffers())]
    return [*tensors, *((name, id(optimizer)) for name, optimizer in agent.optimizers())]

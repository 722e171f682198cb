"""Environments as agents see them, and episodes of a trained agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..common.spaces import LONGEST_EPISODE, ActionSpec, Episode, ObservationSpec, Step
from .agent import Agent
from .stopping import heed


class Environments(Protocol):
    """The interface of environments. `pliant.envs.make` returns one; any class may implement it."""

    num_envs: int
    observation: ObservationSpec
    action: ActionSpec
    frame_skip: int

    def reset(self) -> NDArray[Any]: ...
    def step(self, action: NDArray[Any]) -> Step: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


def play(
    agent: Agent,
    envs: Environments,
    episodes: int,
    *,
    epsilon: float = 0.0,
    seed: int = 0,
    frame: Callable[[], None] | None = None,
) -> list[Episode]:
    """Play episodes with the greedy policy, without drawing from the agent's generator.

    Each environment plays its share of the episodes. The first episodes to finish would over-represent short ones.
    `epsilon` is the probability of a random action; `frame` is called after every step (for a video).

    An episode that does not end is cut after `envs.longest_episode` steps (27,000 if the environments have no such
    attribute), and counts with its return so far (`Episode.cut`). A stop request can interrupt the function at any step
    if the caller allows it (`heed`).
    """
    quota = [episodes // envs.num_envs + (i < episodes % envs.num_envs) for i in range(envs.num_envs)]
    rng = np.random.default_rng(seed)
    done: list[list[Episode]] = [[] for _ in quota]
    longest = getattr(envs, "longest_episode", LONGEST_EPISODE)
    begun, now = [0] * envs.num_envs, 0
    obs = envs.reset()
    while any(len(mine) < share for mine, share in zip(done, quota, strict=True)):
        heed()
        action = agent.act(obs).cpu().numpy()
        if epsilon > 0:
            random = rng.integers(agent.action.size, size=action.shape)
            action = np.where(rng.random(len(action)) < epsilon, random, action)
        step = envs.step(action)
        obs = step.obs
        now += 1
        for episode in step.episodes:
            done[episode.env].append(episode)
            begun[episode.env] = now
        if now - min(begun) >= longest:
            for episode in _cut(envs, [i for i, since in enumerate(begun) if now - since >= longest]):
                done[episode.env].append(episode)
                begun[episode.env] = now
            obs = envs.obs  # type: ignore[attr-defined]
        if frame is not None:
            frame()
    return [episode for mine, share in zip(done, quota, strict=True) for episode in mine[:share]]


def _cut(envs: Environments, which: list[int]) -> Sequence[Episode]:
    """End the present episodes of the environments `which`.

    Raises:
        RuntimeError: The environments have no `cut`.
    """
    cut = getattr(envs, "cut", None)
    if cut is None:
        raise RuntimeError(
            f"an episode of {type(envs).__name__} does not end, and these environments have no cut(): give them a "
            "time limit"
        )
    ended: Sequence[Episode] = cut(which)
    return ended

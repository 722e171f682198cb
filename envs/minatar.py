"""MinAtar (Young and Tian, 2019): five Atari games on a 10 x 10 grid, one channel for each kind of object.

This module does not use MinAtar's own gymnasium class, because its `reset(seed=…)` does not make episodes repeatable:
the action that sticky actions repeat is carried over from the previous episode.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from .adapter import Array, Envs, ListAdapter
from .errors import MissingPackage, NoSuchName

if TYPE_CHECKING:
    from .config import EnvConfig
    from .drift import Drifts

HOW_TO_INSTALL = "MinAtar is not installed: pip install 'pliant[minatar]'"
GAMES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
CHANNELS = {"Asterix": 4, "Breakout": 4, "Freeway": 7, "Seaquest": 10, "SpaceInvaders": 6}


def names() -> list[str]:
    """MinAtar's gymnasium names: -v1 has the game's minimal action set, -v0 all six actions."""
    return [f"MinAtar/{game}-v{version}" for game in GAMES for version in (0, 1)]


class MinAtarGame(gymnasium.Env[Array, Any]):
    """One game; observations are 0/1 uint8 [channels, 10, 10]. An episode is a function of its seed and actions.

    `channels` is the number of channels shown, if not the game's own; additional channels are empty.
    """

    def __init__(
        self, game: str, minimal_actions: bool, sticky_actions: float, ramping: bool, channels: int | None = None
    ) -> None:
        from minatar import Environment

        self.game = Environment(game, sticky_action_prob=sticky_actions, difficulty_ramping=ramping)
        height, width, own = self.game.state_shape()
        self.actions = self.game.minimal_action_set() if minimal_actions else list(range(self.game.num_actions()))
        self._padding = None if channels is None else (channels - own, height, width)
        self.observation_space = gymnasium.spaces.Box(0, 1, (channels or own, height, width), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self.actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode, with new randomness if a seed is given."""
        if seed is not None:
            self.game.seed(seed)
        self.game.last_action = 0
        self.game.reset()
        return self._state(), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """One frame."""
        if not 0 <= action < len(self.actions):
            raise ValueError(f"action {action} is not in 0 … {len(self.actions) - 1}")
        reward, terminated = self.game.act(self.actions[action])
        return self._state(), float(reward), bool(terminated), False, {}

    def _state(self) -> Array:
        shown = self.game.state().astype(np.uint8).transpose(2, 0, 1)
        return shown if self._padding is None else np.concatenate([shown, np.zeros(self._padding, np.uint8)])


def make_minatar(
    name: str, num_envs: int, seed: int, config: EnvConfig, evaluation: bool, drift: Drifts | None = None
) -> Envs:
    """`num_envs` games of one name; see `pliant.envs.make`."""
    from .drift_games import Games, Several

    if name not in names():
        raise NoSuchName(name)
    if find_spec("minatar") is None:
        raise MissingPackage(f"{name}: {HOW_TO_INSTALL}")
    game, version = name.removeprefix("MinAtar/").rsplit("-v", 1)
    sticky = 0.1 if config.sticky_actions is None else config.sticky_actions

    def one(game: str, channels: int | None = None) -> gymnasium.Env[Any, Any]:
        env: gymnasium.Env[Any, Any] = MinAtarGame(
            GAMES[game], version == "1", sticky, config.difficulty_ramping, channels
        )
        return env if config.max_episode_steps is None else gymnasium.wrappers.TimeLimit(env, config.max_episode_steps)

    games: Games | None = None if drift is None else drift.of_kind(Games)
    envs: list[gymnasium.Env[Any, Any]]
    if games is None:
        envs = [one(game) for _ in range(num_envs)]
    else:
        if version == "1":
            raise ValueError(
                f"{name} has only the actions with an effect in {game}; a sequence of games needs all six: use "
                f"MinAtar/{game}-v0"
            )
        played = games.played(game, list(GAMES))
        channels = max(CHANNELS[other] for other in played)
        envs = [Several(played, lambda other: one(other, channels)) for _ in range(num_envs)]
    if drift is not None:
        envs = drift.around(envs, name, pixels=True)
    return ListAdapter(envs, name=name, seed=seed, evaluation=evaluation, drift=drift)

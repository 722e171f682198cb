"""Atari games, by ALE's own vector environment (C++, with its preprocessing).

`AtariGame` adds the features that it lacks, modes and difficulties of a game and sequences of games. It runs one
emulator at a time, more slowly, with bit-identical results otherwise.

The setup is that of Machado et al. (2018), "Revisiting the Arcade Learning Environment": sticky actions with
probability 0.25, four frames per step with the last two max-pooled, 84 x 84 grayscale, the end of the game (not of a
life) as the end of the episode, at most half an hour of play, the game's minimal action set, and no automatic FIRE
after a reset. Rewards are raw scores; agents clip them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from ..common.spaces import ObservationSpec
from .adapter import Array, Envs, ListAdapter, VectorAdapter
from .errors import NoSuchName

if TYPE_CHECKING:
    from .config import EnvConfig
    from .drift import Drifts

# Cartridges for two or more players only; gymnasium has no id for them either.
MULTIPLAYER = {"combat", "joust", "maze_craze", "warlords"}


@functools.cache
def roms() -> dict[str, str]:
    """ALE's ROMs by gymnasium name: {"ALE/MsPacman-v5": "ms_pacman", …}."""
    from ale_py.registration import rom_id_to_name
    from ale_py.roms import get_all_rom_ids

    return {f"ALE/{rom_id_to_name(rom)}-v5": rom for rom in sorted(get_all_rom_ids()) if rom not in MULTIPLAYER}


def names() -> list[str]:
    """gymnasium's names of all games."""
    return list(roms())


class AtariAdapter(VectorAdapter):
    """ALE's games, with lost lives as terminations if requested.

    A life is lost if the counter of lives falls and does not reach zero. ALE's own `life_loss_info` has the same rule,
    but hides that a game is truncated in the step of a lost life. ALE's `episodic_life` would restart the game at every
    life.
    """

    def __init__(self, env: Any, *, terminal_on_life_loss: bool, **settings: Any) -> None:
        super().__init__(env, seeds_of_masked_only=True, fresh_arrays=True, **settings)
        self._terminal_on_life_loss = terminal_on_life_loss
        self._lives: Array = np.zeros(self.num_envs, np.int32)

    def _begin(self, envs: list[int], seeds: list[int], obs: Array) -> None:
        super()._begin(envs, seeds, obs)
        self._lives = self._info["lives"]

    def _advance(self, action: Array) -> tuple[Array, Array, Array, Array, list[int]]:
        obs, reward, terminated, truncated, ended = super()._advance(action)
        lives = self._info["lives"]
        if self._terminal_on_life_loss:
            terminated |= (lives < self._lives) & (lives > 0)
        self._lives = lives
        return obs, reward, terminated, truncated, ended


@functools.cache
def _area_taps(size: int, wanted: int) -> list[tuple[Array, Array]]:
    """The source pixels, out of `size`, and their float32 weights for each of `wanted` pixels: [(indices, weights), …].

    The weights and the order of summation are those of OpenCV's INTER_AREA, which ALE's vector environment uses.
    """
    scale = size / wanted
    rows: list[list[tuple[int, float]]] = []
    for i in range(wanted):
        begin = i * scale
        end = begin + scale
        cell = min(scale, size - begin)
        last = min(math.floor(end), size - 1)
        first = min(math.ceil(begin), last)
        row = [(first - 1, (first - begin) / cell)] if first - begin > 1e-3 else []
        row += [(j, 1 / cell) for j in range(first, last)]
        row += [(last, min(end - last, 1.0, cell) / cell)] if end - last > 1e-3 else []
        rows.append(row)
    taps = []
    for k in range(max(map(len, rows))):
        chosen = [row[k] if k < len(row) else (0, 0.0) for row in rows]
        taps.append((np.array([j for j, _ in chosen]), np.array([w for _, w in chosen], np.float32)))
    return taps


def shrunk(screen: Array, side: int = 84) -> Array:
    """A grayscale screen [H, W] averaged over areas into uint8 [side, side], like OpenCV's INTER_AREA."""
    image = screen.astype(np.float32)
    across = np.zeros((image.shape[0], side), np.float32)
    for columns, weights in _area_taps(image.shape[1], side):
        across += image[:, columns] * weights
    down = np.zeros((side, side), np.float32)
    for rows, weights in _area_taps(image.shape[0], side):
        down += across[rows] * weights[:, None]
    return np.rint(down).astype(np.uint8)


class AtariGame(gymnasium.Env[Array, Any]):
    """One game in a mode and a difficulty; observations are uint8 [stack, 84, 84].

    Seeds, no-op frames, sticky actions, max-pooling, the skipped frames at the end of a game and the frame count are
    those of ALE's vector environment, so that both give the same results for the same seed and actions. `mode` and
    `difficulty` may be set between episodes.
    """

    def __init__(self, rom: str, config: EnvConfig, mode: int | None = None, difficulty: int | None = None) -> None:
        import ale_py
        from ale_py.roms import get_rom_path

        path = get_rom_path(rom)
        assert path is not None, rom
        self._noop, self._rom = ale_py.Action.NOOP, path
        self._frame_skip, self._noop_max = config.frame_skip, config.noop_max
        self._max_frames = config.max_episode_frames
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # for all games; otherwise a new one prints a banner
        self._game = game = ale_py.ALEInterface()
        game.setFloat("repeat_action_probability", 0.25 if config.sticky_actions is None else config.sticky_actions)
        game.loadROM(self._rom)
        self.modes, self.difficulties = tuple(game.getAvailableModes()), tuple(game.getAvailableDifficulties())
        self.mode, self.difficulty = mode, difficulty
        for what, value, there in (("mode", mode, self.modes), ("difficulty", difficulty, self.difficulties)):
            if value is not None and value not in there:
                raise ValueError(f"{rom} has no {what} {value}; it has {', '.join(map(str, there))}")
        self._actions = game.getLegalActionSet() if config.full_action_space else game.getMinimalActionSet()
        stack = 4 if config.frame_stack is None else config.frame_stack
        self._stack = np.zeros((stack, 84, 84), np.uint8)
        self._screens = np.zeros((2, *game.getScreenDims()), np.uint8)
        self._frames = self._lives = 0
        self.life_lost = False
        self.observation_space = gymnasium.spaces.Box(0, 255, self._stack.shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode with a number of no-op frames that follows from the seed."""
        game = self._game
        game.setInt("random_seed", 0 if seed is None else seed)
        game.loadROM(self._rom)
        if self.mode is not None:
            game.setMode(self.mode)
        if self.difficulty is not None:
            game.setDifficulty(self.difficulty)
        game.reset_game()
        for _ in range(_draw(0 if seed is None else seed, self._noop_max)):
            game.act(self._noop)
            if game.game_over():
                game.reset_game()
        game.getScreenGrayscale(self._screens[0])
        self._screens[1] = 0
        self._stack[:] = 0
        self._stack[-1] = shrunk(self._screens[0])
        self._frames, self._lives, self.life_lost = 0, game.lives(), False
        return self._stack.copy(), {"lives": self._lives}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Repeat one action for the skipped frames, at most until the end of the game."""
        game, reward, over, cut = self._game, 0.0, False, False
        for left in range(self._frame_skip, 0, -1):
            reward += game.act(self._actions[action])
            self._frames += 1
            over, cut = game.game_over(with_truncation=False), self._frames >= self._max_frames
            if over or cut:
                break
            if left <= 2:
                game.getScreenGrayscale(self._screens[left - 1])
        if self._frame_skip > 1:
            # In place, as in ALE: if an episode ends within a step, the previously pooled screen is shown again.
            np.maximum(self._screens[0], self._screens[1], out=self._screens[0])
        self._stack[:-1] = self._stack[1:]
        self._stack[-1] = shrunk(self._screens[0])
        lives = game.lives()
        self.life_lost = 0 < lives < self._lives
        self._lives = lives
        return self._stack.copy(), reward, over, cut, {"lives": lives}


def _draw(seed: int, below: int) -> int:
    """The result of C++'s std::mt19937 and uniform_int_distribution(0, below - 1) for a seed, in GCC's library."""
    if below < 2:
        return 0
    source = np.random.MT19937()
    source._legacy_seeding(seed)
    product = int(source.random_raw()) * below
    while product % 2**32 < (2**32 - below) % below:
        product = int(source.random_raw()) * below
    return product >> 32


class AtariListAdapter(ListAdapter):
    """Single games, with lost lives as terminations if requested; the rule is that of `AtariAdapter`."""

    def __init__(
        self, envs: Sequence[gymnasium.Env[Any, Any]], *, terminal_on_life_loss: bool, **settings: Any
    ) -> None:
        super().__init__(envs, **settings)
        self._games: list[Any] = [env.unwrapped for env in envs]
        self._terminal_on_life_loss = terminal_on_life_loss

    def _advance(self, action: Array) -> tuple[Array, Array, Array, Array, list[int]]:
        obs, reward, terminated, truncated, ended = super()._advance(action)
        if self._terminal_on_life_loss:
            terminated |= [game.life_lost for game in self._games]
        return obs, reward, terminated, truncated, ended


def _one_by_one(
    name: str,
    num_envs: int,
    seed: int,
    config: EnvConfig,
    evaluation: bool,
    spec: ObservationSpec,
    drift: Drifts | None,
) -> Envs:
    from .drift_games import Games, Several

    if config.continuous:
        raise ValueError(f"{name}: modes, difficulties and drift are not available with continuous actions")
    known = {rom_name.removeprefix("ALE/").removesuffix("-v5"): rom for rom_name, rom in roms().items()}
    own = name.removeprefix("ALE/").removesuffix("-v5")

    def one(game: str) -> gymnasium.Env[Any, Any]:
        try:
            return AtariGame(known[game], config, config.mode, config.difficulty)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    games: Games | None = None if drift is None else drift.of_kind(Games)
    envs: list[gymnasium.Env[Any, Any]]
    if games is not None and (config.mode is not None or config.difficulty is not None):
        raise ValueError(f"{name}: a sequence of games excludes mode and difficulty: remove them")
    if games is None:
        envs = [one(own) for _ in range(num_envs)]
    else:
        if not config.full_action_space:
            raise ValueError(f"{name}: a sequence of games needs all 18 actions: set full_action_space")
        played = games.played(own, list(known))
        envs = [Several(played, one) for _ in range(num_envs)]
    if drift is not None:
        envs = drift.around(envs, name, pixels=True)
    return AtariListAdapter(
        envs,
        terminal_on_life_loss=config.terminal_on_life_loss,
        name=name,
        observation=spec,
        seed=seed,
        evaluation=evaluation,
        frame_skip=config.frame_skip,
        drift=drift,
    )


def make_atari(
    name: str, num_envs: int, seed: int, config: EnvConfig, evaluation: bool, drift: Drifts | None = None
) -> Envs:
    """`num_envs` games of one name; see `pliant.envs.make`."""
    rom = roms().get(name)
    if rom is None:
        raise NoSuchName(name)
    if config.continuous and config.full_action_space:
        raise ValueError(f"{name}: continuous actions have no full_action_space; set one of the two")
    stack = 4 if config.frame_stack is None else config.frame_stack
    # After a reset ALE's stack holds zeros and the newest frame.
    spec = ObservationSpec((stack, 84, 84), torch.uint8, 255.0, stack=stack, padding="zero")
    if drift is not None or config.mode is not None or config.difficulty is not None:
        return _one_by_one(name, num_envs, seed, config, evaluation, spec, drift)

    from ale_py.vector_env import AtariVectorEnv
    from gymnasium.vector import AutoresetMode

    env = AtariVectorEnv(
        rom,
        num_envs,
        num_threads=config.threads,
        max_num_frames_per_episode=config.max_episode_frames,
        repeat_action_probability=0.25 if config.sticky_actions is None else config.sticky_actions,
        full_action_space=config.full_action_space,
        continuous=config.continuous,
        # In this mode, a step that ends an episode does not reset, which avoids a superfluous reset.
        autoreset_mode=AutoresetMode.NEXT_STEP,
        stack_num=stack,
        frameskip=config.frame_skip,
        noop_max=config.noop_max,
        reward_clipping=False,
        use_fire_reset=False,
    )
    return AtariAdapter(
        env,
        terminal_on_life_loss=config.terminal_on_life_loss,
        name=name,
        observation=spec,
        seed=seed,
        evaluation=evaluation,
        frame_skip=config.frame_skip,
    )

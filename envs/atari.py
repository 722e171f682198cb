"""Atari games, by ALE's own vector environment (C++, with its preprocessing).

The set-up is that of Machado et al. (2018), "Revisiting the Arcade Learning Environment": sticky actions with
probability 0.25, four frames a step with the last two max-pooled, 84 x 84 grayscale, the end of the game (not of a
life) as the end of the episode, half an hour of play at most, the game's minimal action set, and no automatic press
of FIRE after a reset. Rewards are raw scores; clipping is the agent's business.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..agents.spaces import ObservationSpec
from .adapter import Array, Envs, VectorAdapter

if TYPE_CHECKING:
    from . import EnvConfig

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
    """ALE's games, with lost lives as terminations if wanted.

    A life is lost where the counter of lives falls and does not reach zero: the rule of ALE's own `life_loss_info`,
    which hides however that a game is truncated in the step of a lost life. ALE's `episodic_life` would restart the
    game at every life.
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


def make_atari(name: str, num_envs: int, seed: int, config: EnvConfig, evaluation: bool) -> Envs:
    """`num_envs` games of one name; see `pliant.envs.make`."""
    from . import unknown

    rom = roms().get(name)
    if rom is None:
        raise unknown(name)
    if config.continuous and config.full_action_space:
        raise ValueError(f"{name}: continuous actions have no full_action_space; set one of the two")
    if config.mode is not None or config.difficulty is not None:
        raise ValueError(f"{name}: ALE's vector environment can set neither mode nor difficulty")

    from ale_py.vector_env import AtariVectorEnv
    from gymnasium.vector import AutoresetMode

    stack = 4 if config.frame_stack is None else config.frame_stack
    env = AtariVectorEnv(
        rom,
        num_envs,
        num_threads=config.threads,
        max_num_frames_per_episode=config.max_episode_frames,
        repeat_action_probability=0.25 if config.sticky_actions is None else config.sticky_actions,
        full_action_space=config.full_action_space,
        continuous=config.continuous,
        # The mode in which a step that ends an episode does not reset (and so does no reset in vain).
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
        # After a reset ALE's stack holds zeros and the newest frame.
        observation=ObservationSpec((stack, 84, 84), torch.uint8, 255.0, stack=stack, padding="zero"),
        seed=seed,
        evaluation=evaluation,
        frame_skip=config.frame_skip,
    )

"""Changes of the game: a sequence of games, and the modes of one game."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeAlias

import gymnasium

from ..common.ranges import EnvSteps, Share, SomeEnvSteps, at_least
from ..common.specs import did_you_mean
from .adapter import Array
from .drifting import Drift, Target
from .schedule import Level

Mode: TypeAlias = Annotated[int, at_least(0, most=2**31 - 1, why="the emulator counts in 32 bits")]


class Several(gymnasium.Env[Array, Any]):
    """Games with the same spaces; `choose` selects the game of the next episode.

    A game is created when it is first played.
    """

    def __init__(self, names: Sequence[str], build: Callable[[str], gymnasium.Env[Any, Any]]) -> None:
        self._build = build
        self._made: dict[str, gymnasium.Env[Any, Any]] = {}
        self.choose(names[0])
        self.observation_space, self.action_space = self._playing.observation_space, self._playing.action_space

    def choose(self, name: str) -> None:
        if name not in self._made:
            self._made[name] = self._build(name)
        self._playing = self._made[name]

    @property
    def life_lost(self) -> bool:
        game: Any = self._playing.unwrapped
        return bool(game.life_lost)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode of the chosen game."""
        return self._playing.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """Act in the chosen game."""
        return self._playing.step(action)

    def close(self) -> None:
        """Close all games that were created."""
        for env in self._made.values():
            env.close()


def _bare(game: str) -> str:
    return re.sub(r"^(ALE|MinAtar)/|-v\d+$", "", game)


class Games(Drift):
    """Play a sequence of games, repeatedly.

    When: The standard continual problem on pixels: Switching-ALE, or a cycle of MinAtar games within an hour.
    Paper: Abbas et al. 2023, "Loss of plasticity in continual deep RL", 2303.07507: Alien, Atlantis, Boxing, Breakout
        and Centipede on all 18 actions, about 20 million frames per visit. Tang et al. 2025, 2506.00592: MinAtar.
    Differs: MinAtar's games have different channels: a game with fewer channels than the largest of the sequence gets
        empty ones, and channel k has a different meaning in each game. The replay is not cleared.
    Excludes: modes. Atari needs full_action_space, MinAtar the -v0 of the game, which has all six actions.

    Args:
        levels: The games, starting with the environment's own: (Breakout, Asterix). By default, all five of MinAtar.
        every: Length of a task in environment steps (of four frames in Atari).
        at: Alternative to `every`: the environment steps at which the second, third, … task begins.
        order: Order of the levels, repeated. By default, the order in which they are given.
        abruptness: 1 changes at once. Below 1, in the last share `1 - abruptness` of a task, a growing share of
            episodes shows the next level.
    """

    name = "games"
    example = "games(levels=(Breakout, Asterix, Freeway), every=500000)"
    excludes = ("modes",)
    numeric = False

    def __init__(
        self,
        levels: tuple[str, ...] = (),
        every: EnvSteps = 0,
        at: tuple[SomeEnvSteps, ...] = (),
        order: tuple[Level, ...] = (),
        abruptness: Share = 1.0,
    ) -> None:
        levels = tuple(map(_bare, levels))
        if twice := [game for game in levels if levels.count(game) > 1]:
            raise ValueError(f"{twice[0]} is given twice; order=(0, 1, 0) repeats a game")
        if len(levels) == 1:
            raise ValueError("give at least two games")
        super().__init__(every, at, order, abruptness, levels, None)

    def played(self, own: str, known: Sequence[str]) -> tuple[str, ...]:
        """The sequence of games, checked against the known games; `own` is the environment's game."""
        if not self.levels:
            if len(known) > 5:
                raise ValueError(f"games: name them, such as games(levels=({own}, Pong), every=5000000)")
            first = known.index(own)
            self.levels = (*known[first:], *known[:first])
            if self.schedule.order and max(self.schedule.order) >= len(self.levels):
                raise ValueError(
                    f"games: order has the level {max(self.schedule.order)}, but there are only five games"
                )
            if not self.schedule.order:
                self.schedule = replace(self.schedule, order=tuple(range(len(self.levels))))
        for game in self.levels:
            if game not in known:
                raise ValueError(f"games: there is no game {game!r}.{did_you_mean(game, known)}")
        if self.levels[0] != own:
            raise ValueError(f"games: the first must be the environment's own, {own}, not {self.levels[0]}")
        return self.levels

    def bind(self, target: Target) -> None:
        if not isinstance(target.env.unwrapped, Several):
            raise ValueError("only Atari and MinAtar have games that share an action space")

    def draw(self, level: int) -> str:
        raise AssertionError("games are never drawn")

    def enter(self, env: gymnasium.Env[Any, Any], value: str) -> None:
        env.unwrapped.choose(value)  # type: ignore[attr-defined]


class Modes(Drift):
    """Change the mode and the difficulty of an Atari game.

    When: To change one game, with the same actions and similar images.
    Paper: Farebrother, Machado & Bowling 2018, "Generalization and regularization in DQN", 1810.00123.
    Differs: The agent trains on the modes in sequence, and is not tested on unseen modes.
    Excludes: games, and a fixed mode of the environment.

    Args:
        levels: Modes, or pairs of a mode and a difficulty: (0, 4) or ((0, 0), (0, 1)). By default, all its modes.
        every: Length of a task in environment steps (of four frames).
        at: Alternative to `every`: the environment steps at which the second, third, … task begins.
        order: Order of the levels, repeated. By default, the order in which they are given.
        abruptness: 1 changes at once. Below 1, in the last share `1 - abruptness` of a task, a growing share of
            episodes shows the next level.
    """

    name = "modes"
    example = "modes(levels=(0, 4), every=500000)"
    excludes = ("games",)
    numeric = False

    def __init__(
        self,
        levels: tuple[Mode | tuple[Mode, Mode], ...] = (),
        every: EnvSteps = 0,
        at: tuple[SomeEnvSteps, ...] = (),
        order: tuple[Level, ...] = (),
        abruptness: Share = 1.0,
    ) -> None:
        super().__init__(every, at, order, abruptness, levels, None)

    def bind(self, target: Target) -> None:
        game: Any = target.env.unwrapped
        if not hasattr(game, "modes"):
            raise ValueError("only Atari games have modes")
        if game.mode is not None:
            raise ValueError(f"the environment has the fixed mode {game.mode}: remove it, or this drift")
        self._modes, self._difficulties = game.modes, game.difficulties
        self._difficulty = game.difficulty
        if not self.levels:
            if len(game.modes) == 1:
                raise ValueError(f"the game has only one mode, and the difficulties {game.difficulties}: give levels")
            self.levels = tuple(game.modes)
            last = max(self.schedule.order, default=0)
            if last >= len(self.levels):
                raise ValueError(f"order has the level {last}, but the game has only {len(game.modes)} modes")
            self.schedule = replace(self.schedule, order=self.schedule.order or tuple(range(len(self.levels))))

    def given(self, level: int | tuple[int, int]) -> tuple[int, int | None]:
        mode, difficulty = (level, self._difficulty) if isinstance(level, int) else level
        for what, value, there in (("mode", mode, self._modes), ("difficulty", difficulty, self._difficulties)):
            if value is not None and value not in there:
                raise ValueError(f"the game has no {what} {value}; it has {', '.join(map(str, there))}")
        return mode, difficulty

    def draw(self, level: int) -> tuple[int, int | None]:
        raise AssertionError("modes are never drawn")

    def enter(self, env: gymnasium.Env[Any, Any], value: tuple[int, int | None]) -> None:
        game: Any = env.unwrapped
        game.mode, game.difficulty = value

"""Environments behind one adapter: `make` one by name, or `wrap` your own.

Importing this module imports no simulator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from ..agents.memory import refuse_too_large
from ..agents.ranges import (
    AT_ONCE,
    EnvSteps,
    Number,
    NumEnvs,
    Seed,
    Share,
    ShareBelow,
    SomeEnvSteps,
    Threads,
    at_least,
    check_numbers,
    check_value,
)
from ..agents.spaces import LONGEST_EPISODE, ObservationSpec
from .adapter import Envs, ListAdapter, NotReproduced, VectorAdapter, episode_seed
from .schedule import Level

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.vector import VectorEnv

__all__ = [
    "EnvConfig",
    "Envs",
    "ListAdapter",
    "MissingPackage",
    "NotReproduced",
    "RenderingUnavailable",
    "UnknownEnvironment",
    "VectorAdapter",
    "episode_seed",
    "make",
    "names",
    "suite",
    "wrap",
]

Suite = Literal["atari", "minatar", "control", "stream"]


THIRTY_TWO = "the emulator counts in 32 bits"
Mode: TypeAlias = Annotated[int, at_least(0, most=2**31 - 1, why=THIRTY_TWO)]


class UnknownEnvironment(ValueError):
    """No environment of this name; the message names the nearest ones."""


class MissingPackage(UnknownEnvironment):
    """The environment's package is not installed; the message says how to install it."""


class RenderingUnavailable(ValueError):
    """Pixels were asked of a simulator that cannot draw on this machine; the message names the way out."""


@dataclass(frozen=True)
class EnvConfig:
    """Options of an environment. Those of another suite must keep their defaults."""

    sticky_actions: ShareBelow | None = None
    """Probability that the simulator repeats the previous action (Atari: per frame, default 0.25 as Machado et al.
    2018; MinAtar: per step, default 0.1 as its authors)."""
    frame_skip: Annotated[int, at_least(1, "frames", most=10_000, why="a step would take minutes")] = 4
    """Atari: emulator frames per agent step, the last two of which are max-pooled."""
    frame_stack: Annotated[int, at_least(1, "frames", most=1_024, why="every observation holds them all")] | None = None
    """Frames in one observation (Atari: default 4; pixels of a control task: default 3)."""
    terminal_on_life_loss: bool = False
    """Atari: a lost life ends bootstrapping. The game goes on, and scores and episodes are those of whole games."""
    full_action_space: bool = False
    """Atari: all 18 joystick actions instead of those that do something in the game."""
    continuous: bool = False
    """Atari: the continuous actions of CALE (radius, angle, fire) instead of the joystick's."""
    noop_max: Annotated[int, at_least(0, "frames", most=10_000, why="an episode would take minutes to begin")] = 30
    """Atari: an episode starts after 0 to `noop_max - 1` random frames without action."""
    max_episode_frames: Annotated[int, at_least(1, "frames", most=2**31 - 1, why=THIRTY_TWO)] = 108_000
    """Atari: truncate after this many emulator frames (108,000 are half an hour of play)."""
    mode: Mode | None = None
    """Atari: game mode of the cartridge. ALE's vector environment cannot set it: emulators then step one by one."""
    difficulty: Mode | None = None
    """Atari: difficulty switch of the console; as `mode`."""
    threads: Threads = 0
    """Atari: threads of the emulators; 0: one per environment, at most one per core. Does not change what is seen."""
    difficulty_ramping: bool = True
    """MinAtar: games get harder as they go on."""
    max_episode_steps: SomeEnvSteps | None = None
    """Control and MinAtar: truncate after this many simulator steps (default: the task's own limit; evaluations cut an
    episode after 27,000 agent steps)."""
    action_repeat: Annotated[int, at_least(1, "simulator steps", most=10_000, why="a step would take minutes")] = 1
    """Control: simulator steps per agent step; their rewards are summed."""
    pixels: Annotated[int, at_least(0, most=4_096, why="no renderer draws more")] = 0
    """Control: side length in pixels of drawn observations; 0: the task's own observations."""
    drift: tuple[str, ...] = ()
    """Control, MinAtar, Atari: what changes as the run goes on, as words like "observation_offset(every=160000)".
    `pliant drifts` lists them."""
    period: EnvSteps = 0
    """Stream: environment steps (samples, over all environments together) that a task lasts; 0: the stream's own."""
    at: tuple[SomeEnvSteps, ...] = ()
    """Stream: the environment steps at which the second task, the third … begin, in the place of a period."""
    order: tuple[Level, ...] = ()
    """Stream: which level each task shows, over and over again; 0 1 is A-B-A-B, 0 alone never changes. Not given:
    every task shows a new one."""
    abruptness: Share = 1.0
    """Stream: 1 changes all at once at a task's edge; less spends the last 1 - abruptness of a task on moving steadily
    to the next level."""
    stretch: SomeEnvSteps = 50
    """Stream: steps of every environment in an episode, which is never longer than what is left of a task."""
    samples: Annotated[int, at_least(0, most=10**9, why=AT_ONCE)] = 0
    """Stream: inputs that there are; 0: the stream's own number, or all images."""
    classes: Annotated[int, at_least(0, most=1_000_000, why="a network has as many outputs")] = 0
    """Stream: how many labels random labels are; 0: 10, or those of the images."""
    features: Annotated[int, at_least(0, "numbers", most=10_000_000, why="every input holds them all")] = 0
    """Stream: numbers in a Gaussian input; 0: 64."""
    target_drift: Number = 0.0
    """Stream: by how much the targets of each level of RandomTargets lie above those of the one before."""
    data: str = ""
    """Stream: the folder of the images, for streams of files."""
    flat: bool = False
    """Stream: images as vectors of numbers in [0, 1], for networks without convolutions."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.drift:
            from .drift import check

            words = (self.drift,) if isinstance(self.drift, str) else self.drift
            object.__setattr__(self, "drift", check(words))  # one spelling, by which configurations are compared


_OPTIONS: dict[Suite, str] = {
    "atari": (
        "sticky_actions frame_skip frame_stack terminal_on_life_loss full_action_space continuous noop_max "
        "max_episode_frames mode difficulty threads drift"
    ),
    "minatar": "sticky_actions difficulty_ramping max_episode_steps drift",
    "control": "frame_stack max_episode_steps action_repeat pixels drift",
    "stream": "period at order abruptness stretch samples classes features target_drift data flat",
}


def suite(name: str) -> Suite:
    """The suite a name belongs to: `ALE/…`, `MinAtar/…`, `stream/…`, or any other gymnasium id."""
    if name.startswith("ALE/"):
        return "atari"
    if name.startswith("stream/"):
        return "stream"
    return "minatar" if name.startswith("MinAtar/") else "control"


def names() -> list[str]:
    """Every environment that `make` knows here, sorted; imports gymnasium and ale_py."""
    import gymnasium

    from . import atari, minatar, streams

    found = set()
    for name, spec in gymnasium.registry.items():
        dropped = getattr(spec.entry_point, "__name__", "").startswith("_raise_")  # by gymnasium; making it only raises
        if not dropped and spec.entry_point != "ale_py.env:AtariEnv" and not name.startswith(("phys2d/", "tabular/")):
            found.add(name)
    return sorted(found | set(atari.names()) | set(minatar.names()) | set(streams.names()))


def make(
    name: str, num_envs: int = 1, seed: int = 0, config: EnvConfig | None = None, evaluation: bool = False,
    drawn: bool = False, at_steps: int | None = None, drift_seed: int | None = None,
) -> Envs:  # fmt: skip
    """`num_envs` environments of a name, each of whose episodes has a seed of its own derived from `seed`.

    Evaluation environments never share an episode's seed with training ones. `drawn` makes `Envs.picture` work for
    simulators that have to be told beforehand.

    A problem that drifts (`EnvConfig.drift`) changes with the steps taken. With `at_steps`, and in evaluation (where
    it is 0 if not given), it stands still as it is at so many environment steps of the run. Its levels follow from
    `drift_seed`, the seed of that run (`seed` if not given).

    Raises:
        ValueError: An option that the environment does not have, or a drift that does not fit it.
        UnknownEnvironment: No environment has this name.
        TooLarge: They do not fit into memory.
    """
    check_value(num_envs, NumEnvs, "num_envs")
    check_value(seed, Seed, "seed")
    config = config or EnvConfig()
    kind = suite(name)
    _refuse_other_suites_options(name, kind, config)
    what = f"the memory of {num_envs:,} environments {name}"
    refuse_too_large(what, _bytes_needed(kind, num_envs, config), "cpu", WAY_OUT[kind])
    envs = _made(name, kind, num_envs, seed, config, evaluation, drawn, at_steps, drift_seed)
    envs.longest_episode = _longest_episode(kind, config)
    return envs


def _longest_episode(kind: Suite, config: EnvConfig) -> int:
    """Environment steps after which evaluations cut an episode: the limit that the configuration sets, or else
    `LONGEST_EPISODE`."""
    if kind == "atari":
        return -(-config.max_episode_frames // config.frame_skip)
    if kind == "stream":
        return max(LONGEST_EPISODE, config.stretch)
    return LONGEST_EPISODE if config.max_episode_steps is None else -(-config.max_episode_steps // config.action_repeat)


def _made(
    name: str, kind: Suite, num_envs: int, seed: int, config: EnvConfig, evaluation: bool, drawn: bool,
    at_steps: int | None, drift_seed: int | None,
) -> Envs:  # fmt: skip
    if kind == "stream":
        from .streams import make_stream

        return make_stream(
            name, num_envs, seed, config, evaluation, level_seed=seed if drift_seed is None else drift_seed,
            stands=0 if at_steps is None and evaluation else at_steps,
        )  # fmt: skip
    drift = None
    if config.drift:
        from .drift import Drifts

        stands = 0 if at_steps is None and evaluation else at_steps
        drift = Drifts(config.drift, seed if drift_seed is None else drift_seed, num_envs, stands)
    if kind == "atari":
        from .atari import make_atari as build
    elif kind == "minatar":
        from .minatar import make_minatar as build
    else:
        from .control import make_control

        return make_control(name, num_envs, seed, config, evaluation, drawn, drift)
    return build(name, num_envs, seed, config, evaluation, drift)


def _bytes_needed(kind: Suite, num_envs: int, config: EnvConfig) -> int:
    """Bytes that environments of a suite take at the very least: simulators as measured, and frames of three copies
    (the simulator's, the stack, the observation)."""
    if kind == "stream":
        # The inputs that there are, drawn in double precision, and as many again for a minibatch.
        return 12 * (config.features or 64) * (config.samples + num_envs)
    if kind == "atari":
        return num_envs * (1_500_000 + 3 * 84 * 84 * (config.frame_stack or 4))
    stack = 3 if config.frame_stack is None else config.frame_stack
    return num_envs * (3_000 + 3 * 3 * config.pixels**2 * stack)


WAY_OUT = {
    "stream": "give fewer --num-envs, or smaller --env.samples or --env.features",
    "atari": "give fewer --num-envs or a smaller --env.frame-stack", "minatar": "give fewer --num-envs",
    "control": "give fewer --num-envs, or smaller --env.pixels or --env.frame-stack",
}  # fmt: skip


def wrap(
    envs: VectorEnv[Any, Any, Any] | Sequence[Env[Any, Any]],
    seed: int = 0,
    *,
    name: str = "",
    observation: ObservationSpec | None = None,
    frame_skip: int = 1,
    evaluation: bool = False,
) -> Envs:
    """Your own environments: a gymnasium `VectorEnv` in any autoreset mode, or a list of single environments.

    Give `observation` to say more than a gymnasium space can, such as that pixels are a stack of frames. For
    resumption to be exact, an episode must be a function of the seed given to `reset` and of the actions.
    """
    from gymnasium.vector import VectorEnv

    if not isinstance(envs, VectorEnv):
        return ListAdapter(
            envs, seed=seed, name=name, observation=observation, evaluation=evaluation, frame_skip=frame_skip
        )
    is_ale = type(envs.unwrapped).__module__.startswith("ale_py.")
    return VectorAdapter(
        envs,
        seed=seed,
        name=name,
        observation=observation,
        evaluation=evaluation,
        frame_skip=frame_skip,
        seeds_of_masked_only=is_ale,
    )


def _refuse_other_suites_options(name: str, kind: Suite, config: EnvConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in _OPTIONS[kind].split():
            continue
        having = " and ".join(sorted(s for s, options in _OPTIONS.items() if field.name in options.split()))
        raise ValueError(f"{name} has no option {field.name} (given: {value}); it belongs to {having}")


def _bare(name: str) -> str:
    return re.sub(r"^.*[/:]|-v\d+$", "", name).lower().replace("_", "")


def unknown(name: str) -> UnknownEnvironment:
    """The error for a name that no suite knows."""
    from . import atari, minatar

    older = re.fullmatch(r"(\w+?)(?:-ram)?(?:NoFrameskip|Deterministic)?-v[04]", name)
    if older and (modern := f"ALE/{older[1]}-v5") in atari.names():
        sticky = "EnvConfig(sticky_actions=0)" if name.endswith("-v4") else "EnvConfig()"
        return UnknownEnvironment(f"{name} is an older id of an Atari game: use {modern} with {sticky}")
    known = names()
    # A game's name alone, or one with a wrong version, should find it: compare without namespace and version.
    by_bare: dict[str, list[str]] = {}
    for n in known:
        by_bare.setdefault(_bare(n), []).append(n)
    near = [n for bare in get_close_matches(_bare(name), by_bare, n=8, cutoff=0.6) for n in reversed(by_bare[bare])]
    namespace = name.split("/")[0] if "/" in name else None
    if namespace and any(n.startswith(f"{namespace}/") for n in near):
        near = [n for n in near if n.startswith(f"{namespace}/")]
    near = near[:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `pliant.envs.names()` lists all"
    if name.startswith("MinAtar/") and find_spec("minatar") is None:
        hint += f" ({minatar.HOW_TO_INSTALL})"
    return UnknownEnvironment(f"unknown environment {name}{hint}")

"""Options of environments, and the suites that read them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal, TypeAlias

from ..common.ranges import AT_ONCE, EnvSteps, Number, Share, ShareBelow, SomeEnvSteps, Threads, at_least, check_numbers
from ..common.spaces import LONGEST_EPISODE
from .schedule import Level

Suite = Literal["atari", "minatar", "control", "stream"]

THIRTY_TWO = "the emulator counts in 32 bits"
Mode: TypeAlias = Annotated[int, at_least(0, most=2**31 - 1, why=THIRTY_TWO)]


@dataclass(frozen=True)
class EnvConfig:
    """Options of an environment. Options of another suite must keep their defaults."""

    sticky_actions: ShareBelow | None = None
    """Probability that the simulator repeats the previous action (Atari: per frame, default 0.25 as Machado et al.
    2018; MinAtar: per step, default 0.1 as its authors)."""
    frame_skip: Annotated[int, at_least(1, "frames", most=10_000, why="a step would take minutes")] = 4
    """Atari: emulator frames per agent step, the last two of which are max-pooled."""
    frame_stack: Annotated[int, at_least(1, "frames", most=1_024, why="every observation holds them all")] | None = None
    """Frames in one observation (Atari: default 4; pixels of a control task: default 3)."""
    terminal_on_life_loss: bool = False
    """Atari: a lost life ends bootstrapping. The game continues, and scores and episodes are those of whole games."""
    full_action_space: bool = False
    """Atari: all 18 joystick actions instead of those with an effect in the game."""
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
    """Atari: threads of the emulators; 0: one per environment, at most one per core. Does not change observations."""
    difficulty_ramping: bool = True
    """MinAtar: games get harder over time."""
    max_episode_steps: SomeEnvSteps | None = None
    """Control and MinAtar: truncate after this many simulator steps (default: the task's own limit; evaluations cut an
    episode after 27,000 agent steps)."""
    action_repeat: Annotated[int, at_least(1, "simulator steps", most=10_000, why="a step would take minutes")] = 1
    """Control: simulator steps per agent step; their rewards are summed."""
    pixels: Annotated[int, at_least(0, most=4_096, why="no renderer draws more")] = 0
    """Control: side length in pixels of drawn observations; 0: the task's own observations."""
    drift: tuple[str, ...] = ()
    """Control, MinAtar, Atari: changes of the problem during the run, as specs like "observation_offset(every=160000)".
    `pliant drifts` lists them."""
    period: EnvSteps = 0
    """Stream: environment steps (samples, over all environments together) per task; 0: the stream's own."""
    at: tuple[SomeEnvSteps, ...] = ()
    """Stream: the environment steps at which the second, third, … task begins; replaces the period."""
    order: tuple[Level, ...] = ()
    """Stream: the level of each task, repeated; 0 1 is A-B-A-B, 0 alone never changes. By default,
    every task has a new level."""
    abruptness: Share = 1.0
    """Stream: 1 changes at once at the end of a task; below 1, the last share 1 - abruptness of a task moves steadily
    to the next level."""
    stretch: SomeEnvSteps = 50
    """Stream: steps of each environment per episode; an episode never extends beyond its task."""
    samples: Annotated[int, at_least(0, most=10**9, why=AT_ONCE)] = 0
    """Stream: number of inputs; 0: the stream's own number, or all images."""
    classes: Annotated[int, at_least(0, most=1_000_000, why="a network has as many outputs")] = 0
    """Stream: number of random labels; 0: 10, or those of the images."""
    features: Annotated[int, at_least(0, "numbers", most=10_000_000, why="every input holds them all")] = 0
    """Stream: numbers in a Gaussian input; 0: 64."""
    target_drift: Number = 0.0
    """Stream: increase of the targets of RandomTargets from each level to the next."""
    data: str = ""
    """Stream: the folder of the images, for streams of files."""
    flat: bool = False
    """Stream: images as vectors of numbers in [0, 1], for networks without convolutions."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.drift:
            from .drift import check

            specs = (self.drift,) if isinstance(self.drift, str) else self.drift
            object.__setattr__(self, "drift", check(specs))  # one spelling, so that configurations can be compared


OPTIONS: dict[str, str] = {
    "atari": (
        "sticky_actions frame_skip frame_stack terminal_on_life_loss full_action_space continuous noop_max "
        "max_episode_frames mode difficulty threads drift"
    ),
    "minatar": "sticky_actions difficulty_ramping max_episode_steps drift",
    "control": "frame_stack max_episode_steps action_repeat pixels drift",
    "stream": "period at order abruptness stretch samples classes features target_drift data flat",
}


def suite(name: str) -> Suite:
    """The suite of a name: `ALE/…`, `MinAtar/…`, `stream/…`, or any other gymnasium id."""
    if name.startswith("ALE/"):
        return "atari"
    if name.startswith("stream/"):
        return "stream"
    return "minatar" if name.startswith("MinAtar/") else "control"


def options_of(kind: str) -> list[str]:
    """The fields of `EnvConfig` that a suite reads."""
    return OPTIONS[kind].split()


def refuse_other_suites_options(name: str, kind: Suite, config: EnvConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in OPTIONS[kind].split():
            continue
        having = " and ".join(sorted(s for s, options in OPTIONS.items() if field.name in options.split()))
        raise ValueError(f"{name} has no option {field.name} (given: {value}); it belongs to {having}")


def longest_episode(kind: Suite, config: EnvConfig) -> int:
    """Environment steps after which evaluations truncate an episode: the limit of the configuration, or
    `LONGEST_EPISODE`."""
    if kind == "atari":
        return -(-config.max_episode_frames // config.frame_skip)
    if kind == "stream":
        return max(LONGEST_EPISODE, config.stretch)
    return LONGEST_EPISODE if config.max_episode_steps is None else -(-config.max_episode_steps // config.action_repeat)

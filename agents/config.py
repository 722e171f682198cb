"""Configurations of agents: what all of them share, and the settings of agents with a replay.

A configuration is a frozen dataclass of numbers, strings and nested configurations, checked when it is made. The
presets of the benchmark suites are data in `presets.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, Self

from ..common.ranges import (
    EnvSteps,
    NotNegative,
    NStep,
    OutOfRange,
    Ratio,
    Samples,
    Share,
    SomeEnvSteps,
    SomeTransitions,
    SomeUpdates,
    check_numbers,
)
from .heads import HeadConfig, HeadName
from .presets import PRESETS


@dataclass(frozen=True)
class AgentConfig:
    """Base of the agents' configurations.

    Attributes:
        compile: How updates run. off: operator by operator. graph: as CUDA graphs, which needs a GPU. auto: as CUDA
            graphs on a GPU if the first one does what an update without it does, else as off.

    Raises:
        ValueError: A number is not in its range.
    """

    compile: Literal["auto", "off", "graph"] = "auto"

    # Component → names of the fields that shape its network and its optimizer.
    parts: ClassVar[dict[str, tuple[str, str]]] = {}
    # Key of `PRESETS`; empty for a configuration without presets.
    presets: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_numbers(self)

    @classmethod
    def for_suite(cls, suite: str) -> Self:
        """The preset of a suite of environments (`control`, `atari`, `minatar`, …), or the defaults if it has none."""
        return edited(cls(), PRESETS.get(cls.presets, {}).get(suite, {}))


@dataclass(frozen=True)
class OffPolicyConfig(AgentConfig):
    """Settings of every agent that learns from a replay and has target networks.

    Attributes:
        batch_size: Transitions in a batch.
        buffer_size: Transitions that the replay holds.
        learning_starts: Environment steps of random actions before the first update.
        replay_ratio: Gradient updates per environment step.
        update_every: Environment steps between two rounds of updates; a round makes all pending updates.
        gamma: Discount factor.
        n_step: Rewards summed before bootstrapping.
        value_loss: Value head and loss.
        head: Parameters of the value loss.
        reward_clip: Clip rewards to [-reward_clip, reward_clip] in the targets, never in the score; 0 is off.
        target_period: Gradient updates between two updates of the target network.
        target_tau: Weight of the online network in an update of the target network; 1 is a hard copy.

    Raises:
        ValueError: A number is not in its range, or no window of `n_step` rewards fits into the replay.
    """

    batch_size: Samples = 256
    buffer_size: SomeTransitions = 1_000_000
    learning_starts: EnvSteps = 5_000
    replay_ratio: Ratio = 1.0
    update_every: SomeEnvSteps = 1
    gamma: Share = 0.99
    n_step: NStep = 1
    value_loss: HeadName = "mse"
    head: HeadConfig = field(default_factory=HeadConfig)
    reward_clip: NotNegative = 0.0
    target_period: SomeUpdates = 1
    target_tau: Share = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_step >= self.buffer_size:
            raise OutOfRange(
                "n_step",
                f"must be below buffer_size = {self.buffer_size:,}, not {self.n_step:,}: no window of so many rewards "
                "fits into the replay",
            )


def edited(config: Any, settings: dict[str, Any]) -> Any:
    """A copy of a configuration with other settings, by dotted name (`network.hidden`)."""
    own = {name: value for name, value in settings.items() if "." not in name}
    for section in dict.fromkeys(name.partition(".")[0] for name in settings if "." in name):
        inner = {name.partition(".")[2]: value for name, value in settings.items() if name.startswith(f"{section}.")}
        own[section] = edited(getattr(config, section), inner)
    return replace(config, **own)


def plain(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts of numbers, strings and lists."""
    return {
        f.name: plain(value)
        if is_dataclass(value := getattr(config, f.name))
        else list(value)
        if isinstance(value, tuple)
        else value
        for f in fields(config)
    }


def restore(cls: type[Any], values: dict[str, Any]) -> Any:
    """The inverse of `plain`. The types of the default values show which fields are nested configurations or tuples."""
    default = cls()
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    given = {
        name: restore(type(old), value)
        if is_dataclass(old := getattr(default, name))
        else tuple(value)
        if isinstance(old, tuple)
        else value
        for name, value in values.items()
    }
    return cls(**given)

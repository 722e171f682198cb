"""What TensorBoard shows of monitors: which tags, which charts, which pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..agents.hooks import Clock
from ..agents.log import Log


@dataclass(frozen=True)
class Picture:
    """An image for the dashboard: a PNG and its size in pixels."""

    png: bytes
    width: int
    height: int


class Arrived(NamedTuple):
    """What has come to the host of one moment."""

    clock: Clock
    values: dict[str, float]  # by key, `<place>/<metric>`
    pictures: dict[str, Picture]  # by tag
    fired: tuple[str, ...]  # names of the interventions of which these values tell a firing


class Board:
    """Writes what arrives to a run's log."""

    def __init__(self, monitors: Mapping[str, Any]) -> None:
        self.monitors = monitors

    def write(self, log: Log, arrived: Arrived) -> None:
        """Values to `metrics.jsonl`, and what is worth to be seen of them to TensorBoard."""
        values = {tag(key): value for key, value in arrived.values.items()}
        log.scalars(values, arrived.clock)
        for name, picture in arrived.pictures.items():
            log.image(name, picture.png, (picture.width, picture.height), arrived.clock)

    def charts(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Pages of TensorBoard's custom scalars: page → chart → regular expressions of its tags."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, in plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


def tag(key: str) -> str:
    """`critic/dormant_fraction` → `plasticity/dormant_fraction/critic`: charts of one metric stand together."""
    place, _, metric = key.rpartition("/")
    return f"plasticity/{metric}/{place}"

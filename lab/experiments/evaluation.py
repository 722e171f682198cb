"""Evaluation of a saved agent: play episodes, compute its score, and film it.

The replay is not loaded. The episodes use their own seeds, which no training run uses.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pliant.agents import Agent, Episode
from pliant.agents.playing import play
from pliant.common.files import replacing
from pliant.envs import EnvConfig, Envs, make
from pliant.envs.scores import human_normalised
from pliant.lab.commands.outputs import file_for, written
from pliant.lab.errors import BadInput
from pliant.lab.experiments.saved import check_fits
from pliant.lab.statistics import bootstrap_mean

FILM_FRAMES = 5_000  # frames of a video; a longer one does not fit into a GIF


@dataclass(frozen=True)
class Score:
    """Raw returns of an evaluation, and their statistics."""

    env: str
    returns: list[float]
    lengths: list[int]
    seeds: list[int]
    cut: int = 0  # number of episodes that were cut; their return so far counts

    @property
    def mean(self) -> float:
        return statistics.fmean(self.returns)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the mean over episodes of this agent; None with fewer than three episodes."""
        interval = bootstrap_mean(self.returns)
        return (interval.low, interval.high) if interval.known else None

    @property
    def normalised(self) -> float | None:
        return human_normalised(self.env, self.mean)

    def metrics(self) -> dict[str, float]:
        """For the log."""
        values = {"eval/episodic_return": self.mean, "eval/episodic_length": statistics.fmean(self.lengths)}
        if (interval := self.interval) is not None:
            values |= {"eval/episodic_return_low": interval[0], "eval/episodic_return_high": interval[1]}
        if self.normalised is not None:
            values["eval/human_normalised"] = self.normalised
        if self.cut:
            values["eval/episodes_cut"] = self.cut
        return values

    def cuts(self) -> str:
        """One line on episodes that were cut; empty if none was."""
        if not self.cut:
            return ""
        return (
            f"{self.cut} of {len(self.returns)} episodes did not end within {max(self.lengths):,} steps; they were cut "
            "there and count with their return so far"
        )

    def __str__(self) -> str:
        interval = self.interval
        spread = f" (95 % interval {interval[0]:.4g} … {interval[1]:.4g})" if interval else " (too few for an interval)"
        lines = [
            f"{self.env}: mean return {self.mean:.4g} over {len(self.returns)} episodes{spread}",
            f"  median {statistics.median(self.returns):.4g}, lowest {min(self.returns):.4g}, "
            f"highest {max(self.returns):.4g}, mean length {statistics.fmean(self.lengths):,.0f} steps",
        ]
        if self.normalised is not None:
            lines.append(f"  human-normalised {self.normalised:.3f} (0 random, 1 human)")
        if self.cut:
            lines.append(f"  {self.cuts()}")
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        return {
            "env": self.env,
            "mean": self.mean,
            "interval_95": self.interval,
            "human_normalised": self.normalised,
            "returns": self.returns,
            "lengths": self.lengths,
            "seeds": self.seeds,
        } | ({"cut": self.cut} if self.cut else {})


def score(
    agent: Agent,
    env: str,
    config: EnvConfig,
    episodes: int,
    *,
    seed: int = 0,
    epsilon: float = 0.0,
    num_envs: int = 8,
    video: Path | None = None,
    at_steps: int = 0,
    drift_seed: int | None = None,
    longest: int | None = None,
) -> Score:
    """Play `episodes` episodes of the greedy policy on evaluation seeds.

    An episode that does not end is cut after `longest` environment steps, or at the limit of the environment's
    configuration. A drifting environment is frozen as it is at `at_steps` environment steps of the run with seed
    `drift_seed`.
    """
    envs = make(
        env,
        num_envs=1 if video else min(num_envs, episodes),
        seed=seed,
        config=config,
        evaluation=True,
        drawn=video is not None,
        at_steps=at_steps,
        drift_seed=drift_seed,
    )
    if longest is not None:
        envs.longest_episode = longest
    try:
        check_fits(agent, envs)
        frames: list[Any] = []
        if video is not None:

            def record() -> None:
                if len(frames) < FILM_FRAMES:
                    frames.append(picture(envs))

        done = play(agent, envs, episodes, epsilon=epsilon, seed=seed, frame=record if video is not None else None)
        if video is not None:
            write_gif(frames, video)
    finally:
        envs.close()
    return summarise(env, done)


def summarise(env: str, episodes: list[Episode]) -> Score:
    returns, lengths, seeds = ([getattr(e, name) for e in episodes] for name in ("ret", "length", "seed"))
    return Score(env, returns, lengths, seeds, sum(e.cut for e in episodes))


# ------------------------------------------------------------------------------------------------------ video


def picture(envs: Envs) -> Any:
    """The current image of the (single) environment, [H, W, 3] or [H, W] uint8."""
    frame = envs.picture()
    if frame is None:
        raise BadInput(f"{envs.name} cannot be drawn; remove --video")
    # Small frames are enlarged to be visible.
    times = max(1, 252 // frame.shape[0])
    return frame.repeat(times, axis=0).repeat(times, axis=1)


def check_film(path: Path) -> None:
    """Refuse a video that cannot be written, before the episodes are played.

    Raises:
        BadInput: Pillow is not installed, the file is not a GIF, or the path cannot be written.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise BadInput("--video needs Pillow: pip install pillow") from None
    Image.init()
    if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE_ALL:
        raise BadInput(f"--video {path}: a video is a GIF; choose a name that ends in .gif")
    file_for(path, "--video")


def write_gif(frames: list[Any], path: Path, fps: int = 15) -> None:
    """Frames as an animated GIF (BadInput: the file cannot be written; see `check_film`)."""
    from PIL import Image

    images = [Image.fromarray(np.asarray(frame)) for frame in frames]
    # Writing takes seconds, and may be interrupted.
    with written(path, "--video"), replacing(path) as scratch:
        images[0].save(
            scratch, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
        )

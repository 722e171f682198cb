"""Play a saved agent and say how well it does.

    pliant evaluate runs/ALE-Pong-v5/dqn/seed1                    # the newest good checkpoint of a run
    pliant evaluate runs/…/checkpoints/step_000000100000 --episodes 100 --epsilon 0.001
    pliant evaluate agent.pt --env CartPole-v1 --video cartpole.gif

The replay is not read. Episodes have seeds of their own, which no training run ever sees. The result goes to the screen
and, as JSON, next to the checkpoint (or to --out).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pliant.agents import Agent, Episode
from pliant.agents.ranges import EnvSteps, Episodes, NumEnvs, Seed, Share, SomeEnvSteps
from pliant.agents.run import play
from pliant.agents.stopping import signals_held
from pliant.envs import EnvConfig, Envs, make, suite
from pliant.envs.scores import human_normalised
from pliant.scripts.arguments import Parser, read
from pliant.scripts.config import BadInput, bad_input, usable_device
from pliant.scripts.outputs import file_for, written
from pliant.scripts.own_modules import refuse_others
from pliant.scripts.saved import check_fits, read_saved

FILM_FRAMES = 5_000  # of a video; a longer one fits into no GIF


@dataclass(frozen=True)
class Score:
    """Raw returns of an evaluation, and what they say."""

    env: str
    returns: list[float]
    lengths: list[int]
    seeds: list[int]
    cut: int = 0  # of these episodes, how many did not end by themselves, and count with their return so far

    @property
    def mean(self) -> float:
        return statistics.fmean(self.returns)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the mean over episodes of this one agent; None below three episodes."""
        if len(self.returns) < 3:
            return None
        rng, returns = np.random.default_rng(0), np.asarray(self.returns)
        means = returns[rng.integers(len(returns), size=(10_000, len(returns)))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)

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
            "env": self.env, "mean": self.mean, "interval_95": self.interval, "human_normalised": self.normalised,
            "returns": self.returns, "lengths": self.lengths, "seeds": self.seeds,
        } | ({"cut": self.cut} if self.cut else {})  # fmt: skip


def score(
    agent: Agent, env: str, config: EnvConfig, episodes: int, *, seed: int = 0, epsilon: float = 0.0,
    num_envs: int = 8, video: Path | None = None, at_steps: int = 0, drift_seed: int | None = None,
    longest: int | None = None,
) -> Score:  # fmt: skip
    """Play `episodes` episodes of the greedy policy on evaluation seeds.

    An episode that does not end is cut after `longest` environment steps, or as the environment's configuration says. A
    problem that drifts stands still as it is at `at_steps` environment steps of the run whose seed is `drift_seed`.
    """
    envs = make(
        env, num_envs=1 if video else min(num_envs, episodes), seed=seed, config=config, evaluation=True,
        drawn=video is not None, at_steps=at_steps, drift_seed=drift_seed)  # fmt: skip
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
    """What the (single) environment shows, [H, W, 3] or [H, W] uint8."""
    frame = envs.picture()
    if frame is None:
        raise BadInput(f"{envs.name} cannot be drawn; leave out --video")
    # Small frames are enlarged, or nobody sees anything.
    times = max(1, 252 // frame.shape[0])
    return frame.repeat(times, axis=0).repeat(times, axis=1)


def check_film(path: Path) -> None:
    """Refuse a film that could not be written, before it is played.

    Raises:
        BadInput: Pillow, which writes it, is not installed; it cannot write such files; nothing can be written there.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise BadInput("--video needs Pillow: pip install pillow") from None
    Image.init()
    if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE_ALL:
        raise BadInput(f"--video {path}: a film is a GIF; choose a name that ends in .gif")
    file_for(path, "--video")


def write_gif(frames: list[Any], path: Path, fps: int = 15) -> None:
    """Frames as an animated GIF (BadInput: the file cannot be written; see `check_film`)."""
    from PIL import Image

    images = [Image.fromarray(np.asarray(frame)) for frame in frames]
    scratch = path.with_name(f"{path.name}.tmp")  # writing takes seconds, and may be interrupted
    with written(path, "--video"):
        try:
            images[0].save(
                scratch, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0
            )
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------ command line


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="pliant evaluate", description=__doc__)
    parser.add_argument("agent", type=Path, metavar="PATH", help="a run's folder, a checkpoint, or a saved agent")
    parser.add_argument("--env", help="environment to play in; that of the run if not given")
    parser.add_argument("--episodes", type=read(Episodes), default=20, help="episodes to play (default: 20)")
    parser.add_argument("--seed", type=read(Seed), default=0, help="decides the episodes' seeds (default: 0)")
    parser.add_argument(
        "--at-steps", type=read(EnvSteps), metavar="N",
        help="show a problem that drifts as it is at N environment steps (default: where the checkpoint was saved)",
    )  # fmt: skip
    parser.add_argument("--epsilon", type=read(Share), default=0.0, help="probability of a random action (default: 0)")
    parser.add_argument("--num-envs", type=read(NumEnvs), default=8, help="environments stepped together (default: 8)")
    parser.add_argument(
        "--max-episode-steps", type=read(SomeEnvSteps), metavar="N",
        help="cut an episode after N steps (default: the limit that the run set for its environment, or else 27,000)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="where the networks run (default: cpu)")
    parser.add_argument("--out", type=Path, help="where the result goes as JSON (default: beside the agent)")
    parser.add_argument("--video", type=Path, metavar="GIF", help="film the first 5,000 steps (one environment then)")
    arguments = parser.parse_args(argv)
    beside = arguments.agent if arguments.agent.is_dir() else arguments.agent.parent
    if arguments.video is not None:
        check_film(arguments.video)
    device = usable_device(arguments.device)
    with bad_input():
        saved = read_saved(arguments.agent)
        agent, config = saved.build(device), saved.config
        env = arguments.env or (config.env if config is not None else None)
        if env is None:
            raise BadInput(f"{arguments.agent} does not say which environment it was trained in; give --env")
        same = config is not None and env == config.env
        if same:
            refuse_others(arguments.agent, env)
        env_config = config.env_config if config is not None and same else EnvConfig()
        at_steps, drifts = arguments.at_steps, bool(env_config.drift) or suite(env) == "stream"
        if at_steps is None:
            at_steps = max(0, saved.steps - 1) if drifts and same else 0
        # Episodes take minutes: what cannot be written afterwards is refused before.
        out = file_for(arguments.out or beside / "evaluation.json", "--out")
        result = score(
            agent, env, env_config, arguments.episodes, seed=arguments.seed, epsilon=arguments.epsilon,
            num_envs=arguments.num_envs, video=arguments.video, at_steps=at_steps,
            drift_seed=config.seed if config is not None and same else None, longest=arguments.max_episode_steps,
        )  # fmt: skip
    print(result)
    protocol = {"agent": saved.source, "seed": arguments.seed, "epsilon": arguments.epsilon}
    protocol |= {"at_steps": at_steps} if drifts else {}
    with written(out, "--out"), signals_held():
        out.write_text(json.dumps(protocol | result.json(), indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("evaluate"))

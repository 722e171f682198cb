"""Play episodes with a saved agent and report its score.

    pliant evaluate runs/ALE-Pong-v5/dqn/seed1                    # the newest intact checkpoint of a run
    pliant evaluate runs/…/checkpoints/step_000000100000 --episodes 100 --epsilon 0.001
    pliant evaluate agent.pt --env CartPole-v1 --video cartpole.gif

The replay is not loaded. The episodes use their own seeds, which no training run uses. The result is printed, and saved
as JSON next to the checkpoint (or at --out).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pliant.agents.stopping import signals_held
from pliant.common.ranges import EnvSteps, Episodes, NumEnvs, Seed, Share, SomeEnvSteps
from pliant.envs import EnvConfig, suite
from pliant.lab.commands.arguments import Parser, read
from pliant.lab.commands.outputs import file_for, written
from pliant.lab.errors import BadInput, bad_input
from pliant.lab.experiments.config import usable_device
from pliant.lab.experiments.evaluation import check_film, score
from pliant.lab.experiments.own_modules import refuse_others
from pliant.lab.experiments.saved import read_saved


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="pliant evaluate", description=__doc__)
    parser.add_argument("agent", type=Path, metavar="PATH", help="a run's folder, a checkpoint, or a saved agent")
    parser.add_argument("--env", help="environment to play in (default: the run's)")
    parser.add_argument("--episodes", type=read(Episodes), default=20, help="episodes to play (default: 20)")
    parser.add_argument("--seed", type=read(Seed), default=0, help="determines the seeds of the episodes (default: 0)")
    parser.add_argument(
        "--at-steps",
        type=read(EnvSteps),
        metavar="N",
        help="freeze a drifting environment as it is at N environment steps (default: the checkpoint's)",
    )
    parser.add_argument("--epsilon", type=read(Share), default=0.0, help="probability of a random action (default: 0)")
    parser.add_argument("--num-envs", type=read(NumEnvs), default=8, help="environments stepped together (default: 8)")
    parser.add_argument(
        "--max-episode-steps",
        type=read(SomeEnvSteps),
        metavar="N",
        help="cut an episode after N steps (default: the limit in the run's configuration, or else 27,000)",
    )
    parser.add_argument("--device", default="cpu", help="device of the networks (default: cpu)")
    parser.add_argument("--out", type=Path, help="JSON file for the result (default: next to the agent)")
    parser.add_argument("--video", type=Path, metavar="GIF", help="film the first 5,000 steps (uses one environment)")
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
            raise BadInput(f"{arguments.agent} does not record the environment it was trained in; give --env")
        same = config is not None and env == config.env
        if same:
            refuse_others(arguments.agent, env)
        env_config = config.env_config if config is not None and same else EnvConfig()
        at_steps, drifts = arguments.at_steps, bool(env_config.drift) or suite(env) == "stream"
        if at_steps is None:
            at_steps = max(0, saved.steps - 1) if drifts and same else 0
        # Episodes take minutes: an output that cannot be written is refused before.
        out = file_for(arguments.out or beside / "evaluation.json", "--out")
        result = score(
            agent,
            env,
            env_config,
            arguments.episodes,
            seed=arguments.seed,
            epsilon=arguments.epsilon,
            num_envs=arguments.num_envs,
            video=arguments.video,
            at_steps=at_steps,
            drift_seed=config.seed if config is not None and same else None,
            longest=arguments.max_episode_steps,
        )
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

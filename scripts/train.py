"""Train an agent: `pliant train`, or `python scripts/train.py`.

    pliant train --agent dqn --env ALE/Pong-v5 --steps 200000 --seed 1
    pliant train --agent sac --env HalfCheetah-v5 --agent.replay-ratio 4
    pliant train --config runs/ALE-Pong-v5/dqn/seed1/config.yaml --seed 2
    pliant train --agent dqn --env CartPole-v1 --seeds 8

The run's folder holds everything about it: config.yaml, versions.json, TensorBoard events, metrics.jsonl, checkpoints,
the replay, SAVED, and at the end DONE with the evaluation. Repeating the command continues a stopped run, to the last
bit.

Exit codes: 0 done, 2 bad input, 75 stopped by a signal after saving (repeat to continue), 1 any other error.
"""

from __future__ import annotations

import sys

try:
    from pliant.common.spinning import bound_spinning

    if __name__ == "__main__":
        bound_spinning()  # as `pliant train` does: before torch is loaded
    from pliant.lab.experiments.config import parse
except ModuleNotFoundError as missing:
    if not (missing.name or "").startswith("pliant"):
        raise
    sys.exit("error: pliant is not installed. Run `make train`, or `pip install -e .` in the checkout first")

from pliant.lab.experiments.training import train


def main(argv: list[str] | None = None) -> int:
    return train(*parse(argv, prog="pliant train", several_seeds=True))


if __name__ == "__main__":
    from pliant.scripts.main import script

    sys.exit(script("train"))

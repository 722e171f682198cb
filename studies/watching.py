"""A network that loses its plasticity, watched: random labels as a reinforcement-learning problem.

    python studies/watching.py run --arm plain --seed 0     # one run: a folder with its record, for TensorBoard
    python studies/watching.py all --jobs 2                 # every arm and seed that is missing
    python studies/watching.py report                       # the tables of docs/evidence.md

The agent sees one of 256 Gaussian vectors and names one of five labels; the reward is 1 if it is right. The labels are
drawn anew every 4,000 steps, so that everything must be learnt again, as well as the first time: the sum over 100 steps
is 20 for who guesses. DQN with discount 0 regresses on the rewards. The arm `closed-loop` recycles dormant units
whenever its monitors find more than a tenth of the critic's units dormant, `closed-loop-late` more than a quarter.

Runs write to `runs/watching/<arm>/seed<S>`, results to `studies/results/watching/<arm>/seed<S>.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.agents import DQN, DQNConfig
from pliant.agents.log import Log, read_metrics
from pliant.agents.networks import NetworkConfig
from pliant.agents.optimizers import OptimizerConfig
from pliant.agents.run import Run
from pliant.common.spaces import ActionSpec, Episode, ObservationSpec, Step
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build
from pliant.lab.experiments.pool import Call, Progress, run_all
from pliant.lab.experiments.sweep import exit_code_of
from pliant.lab.statistics import mean_interval
from pliant.monitors import watch

RESULTS = Path(__file__).parent / "results" / "watching"
RUNS = Path("runs/watching")
SEEDS = range(5)
PERIOD, TASKS, INPUTS, LABELS = 4_000, 30, 256, 5
ARMS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "closed-loop": ("redo(tau=0.1, when='critic/dormant_fraction > 0.1')",),
    "closed-loop-late": ("redo(tau=0.1, when='critic/dormant_fraction > 0.25')",),
}
# The monitors; the rare experiments are made often enough for a run of a minute or two.
MONITORS = (
    "units(every=50)",
    "norms(every=50)",
    "ranks(every=50)",
    "values(every=50)",
    "activity(every=50)",
    "churn(every=200)",
    "curvature(every=2000)",
    "landscape(every=6000)",
    "probe(every=6000, steps=300, samples=256, draws=10)",
)


class RandomLabels:
    """Vectors with labels that are drawn anew; episodes of 100 steps, which are only a way to count."""

    frame_skip = 1

    def __init__(self, num_envs: int = 16, seed: int = 0) -> None:
        self.num_envs = num_envs
        self.observation, self.action = ObservationSpec((64,)), ActionSpec(LABELS, discrete=True)
        self.rng = np.random.default_rng(seed)
        self.inputs = self.rng.normal(size=(INPUTS, 64)).astype(np.float32)
        self.steps, self.task = 0, -1
        self.age, self.total = np.zeros(num_envs, np.int64), np.zeros(num_envs)

    def _see(self) -> NDArray[Any]:
        if self.steps // PERIOD != self.task:
            self.task = self.steps // PERIOD
            self.labels = self.rng.integers(LABELS, size=INPUTS)
        self.shown = self.rng.integers(INPUTS, size=self.num_envs)
        return self.inputs[self.shown]

    def reset(self) -> NDArray[Any]:
        return self._see()

    def step(self, action: NDArray[Any]) -> Step:
        reward = (action == self.labels[self.shown]).astype(np.float32)
        self.steps += self.num_envs
        self.age += 1
        self.total += reward
        over = self.age >= 100
        ended = tuple(Episode(int(i), float(self.total[i]), 100, 0) for i in np.flatnonzero(over))
        self.age[over], self.total[over] = 0, 0.0
        obs = self._see()
        return Step(obs, reward, np.zeros(self.num_envs, bool), over, over, obs.copy(), ended)

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError("this study is never stopped and resumed")

    load_state_dict = state_dict  # type: ignore[assignment]

    def close(self) -> None:
        pass


def agent_for(specs: tuple[str, ...], seed: int) -> DQN:
    config = DQNConfig(
        network=NetworkConfig(hidden=(128, 128)),
        optimizer=OptimizerConfig(lr=3e-3),
        batch_size=64,
        gamma=0.0,
        buffer_size=PERIOD // 2,
        learning_starts=256,
        replay_ratio=0.25,
        update_every=16,
        value_loss="mse",
        target_period=1000,
        epsilon_steps=1000,
        epsilon_end=0.05,
    )
    return DQN((64,), LABELS, config, interventions=tuple(build(specs, INTERVENTIONS)), seed=seed)


def run(arm: str, seed: int) -> dict[str, Any]:
    """One run; what of it goes into the tables."""
    folder = RUNS / arm / f"seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    agent = agent_for(ARMS[arm], seed)
    monitors = watch(agent, *MONITORS)
    log = Log(folder, log_every=500)
    log.layout |= monitors.board.charts()
    log.text("run/config", f"random labels, {arm}: {' '.join(ARMS[arm]) or 'no intervention'}")
    started = time.perf_counter()
    with log:
        Run(agent, RandomLabels(seed=seed), log=log, monitors=monitors).train(PERIOD * TASKS)
    rows = read_metrics(folder)
    returns = [(row["steps"], row["charts/episodic_return"]) for row in rows if "charts/episodic_return" in row]
    # The second half of each task, when what can be learnt has been.
    last = [
        statistics.fmean(r for s, r in returns if PERIOD * task + PERIOD / 2 < s <= PERIOD * (task + 1))
        for task in range(TASKS)
    ]
    series = {
        key: [(row["updates"], row[tag]) for row in rows if tag in row]
        for key, tag in {
            "dormant": "plasticity/dormant_fraction/critic",
            "rank": "plasticity/effective_rank/critic",
            "weights": "plasticity/weight_norm/critic",
            "value_change": "firings/redo/value_change",
            "probe": "plasticity/plasticity_ratio_random/critic",
        }.items()
    }
    return {"arm": arm, "seed": seed, "seconds": time.perf_counter() - started, "returns": last, "series": series}


def interval(values: list[float]) -> str:
    """Mean and the half-width of its 95 % interval (Student)."""
    mean, _, high = mean_interval(values)
    return f"{mean:.2f} ± {high - mean:.2f}"


def report() -> list[str]:
    """The table, from the results on disk."""
    lines = [
        "| arm | seeds | return, task 1 | return, last 5 tasks | dormant units, task 1 | dormant units, last 5 tasks "
        "| effective rank, last 5 tasks | probe: plasticity ratio, first / last | firings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        runs = [json.loads(f.read_text()) for f in sorted((RESULTS / arm).glob("seed*.json"))]
        if len(runs) < 3:
            continue

        def late(run: dict[str, Any], key: str) -> float:
            end = run["series"][key][-1][0]
            return statistics.fmean(v for u, v in run["series"][key] if u > end * (1 - 5 / TASKS))

        cells = [
            [r["returns"][0] for r in runs],
            [statistics.fmean(r["returns"][-5:]) for r in runs],
            [statistics.fmean(v for u, v in r["series"]["dormant"] if u <= PERIOD / 4) for r in runs],
            [late(r, "dormant") for r in runs],
            [late(r, "rank") for r in runs],
        ]
        ends = " / ".join(interval([r["series"]["probe"][i][1] for r in runs]) for i in (0, -1))
        firings = interval([float(len(r["series"]["value_change"])) for r in runs])
        row = " | ".join(interval(c) for c in cells)
        lines.append(f"| {arm} | {len(runs)} | {row} | {ends} | {firings} |")
    return lines


def around(run: dict[str, Any], key: str, after: int) -> tuple[float, float]:
    """A metric at the last measurement before a firing and `after` updates later, means over the firings of a run."""
    pairs = []
    for fired, _ in run["series"]["value_change"]:
        earlier = [v for u, v in run["series"][key] if u < fired]
        later = [v for u, v in run["series"][key] if u >= fired + after]
        if earlier and later:
            pairs.append((earlier[-1], later[0]))
    return statistics.fmean(a for a, _ in pairs), statistics.fmean(b for _, b in pairs)


def report_firings() -> list[str]:
    """What stood before the firings and what 50 updates after them, from the results on disk."""
    lines = [
        "| arm | dormant units before a firing | 50 updates after | effective rank before | 50 updates after |",
        "|---|---|---|---|---|",
    ]
    for arm in ARMS:
        runs = [json.loads(f.read_text()) for f in sorted((RESULTS / arm).glob("seed*.json"))]
        if len(runs) >= 3 and all(r["series"]["value_change"] for r in runs):
            cells = [interval([around(r, key, 50)[i] for r in runs]) for key in ("dormant", "rank") for i in (0, 1)]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "all", "report"))
    parser.add_argument("--arm", choices=tuple(ARMS), default="plain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    if args.command == "report":
        print("\n".join([*report(), "", *report_firings()]))
        return 0
    runs = [(args.arm, args.seed)] if args.command == "run" else [(arm, seed) for seed in SEEDS for arm in ARMS]
    calls = [
        Call(
            function=run, arguments=(arm, seed), file=RESULTS / arm / f"seed{seed}.json", log=RUNS / arm / f"log{seed}"
        )
        for arm, seed in runs
    ]
    return exit_code_of(run_all(calls, workers=args.jobs, progress=Progress(sys.stderr)))


if __name__ == "__main__":
    sys.exit(main())

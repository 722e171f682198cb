"""Measurements of the effect of each method on small problems, with many seeds.

    python studies/interventions.py dormancy     # ReDo and continual backprop where units die: random labels
    python studies/interventions.py hl_gauss     # HL-Gauss beside Huber on two MinAtar games (with studies/learning.py)
    python studies/interventions.py injection    # the changes by an injection, and the parameters that move afterwards
    python studies/interventions.py report       # the tables of docs/evidence.md

Every run leaves one JSON file in `studies/results/interventions/`; finished ones are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import learning
import torch
from torch import Tensor, nn

from pliant.lab.experiments.pool import Call, Progress, run_all
from pliant.lab.experiments.sweep import exit_code_of

RESULTS = Path(__file__).parent / "results" / "interventions"
SEEDS = range(5)

# Random labels: 512 Gaussian inputs of dimension 64, ten new labels for every task, batch 64.
TASKS, STEPS, INPUTS, BATCH, LR = 40, 300, 512, 64, 3e-3
ARMS: dict[str, tuple[str, ...]] = {
    "plain Adam": (),
    "redo(tau=0.025, every=300)": ("redo(tau=0.025, every=300)",),
    "continual_backprop(rho=0.001, maturity=100)": ("continual_backprop(rho=0.001, maturity=100)",),
}
GAMES = {
    "minatar-breakout": "hl_gauss(bins=101, low=-5.0, high=20.0)",
    "minatar-spaceinvaders": "hl_gauss(bins=101, low=-5.0, high=30.0)",
}


def run_missing(function: Callable[..., Any], runs: Mapping[Path, tuple[Any, ...]], jobs: int) -> int:
    """Call the function for the result files that are missing, `jobs` at a time. Returns the exit code."""
    calls = [
        Call(
            function=function,
            arguments=arguments,
            file=RESULTS / file,
            log=Path("runs", "interventions", file.with_suffix("")),
        )
        for file, arguments in runs.items()
    ]
    return exit_code_of(run_all(calls, workers=jobs, progress=Progress(sys.stderr)))


# ------------------------------------------------------------------------------------------------------ dormancy


def random_labels(specs: tuple[str, ...], seed: int) -> dict[str, list[float]]:
    """Accuracy at the end of every task, and shares of dormant (score <= 0.025) and dead units on all inputs."""
    from pliant.agents.optimizers import Adam, OptimizerConfig
    from pliant.interventions import attach

    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = Adam(network.parameters(), OptimizerConfig(lr=LR))
    plasticity = attach(network, optimizer, torch.zeros(1, 64), *specs, seed=seed) if specs else None
    inputs = torch.randn(INPUTS, 64, generator=g)
    shares: dict[str, list[float]] = {"accuracy": [], "dormant": [], "dead": []}
    for _ in range(TASKS):
        labels = torch.randint(10, (INPUTS,), generator=g)
        for _ in range(STEPS):
            places = torch.randint(INPUTS, (BATCH,), generator=g)
            if plasticity is not None:
                plasticity.before_update()
            loss = nn.functional.cross_entropy(network(inputs[places]), labels[places])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if plasticity is not None:
                plasticity.after_update()
        with torch.no_grad():
            first = network[:2](inputs)
            sizes = [h.abs().mean(0) for h in (first, network[2:4](first))]
            shares["accuracy"].append((network(inputs).argmax(1) == labels).float().mean().item())
            shares["dormant"].append(share([s <= 0.025 * s.mean() for s in sizes]))
            shares["dead"].append(share([s == 0 for s in sizes]))
    return shares


def share(masks: list[Tensor]) -> float:
    return torch.cat(masks).float().mean().item()


def dormancy_file(arm: str, seed: int) -> Path:
    return Path("dormancy", arm.partition("(")[0].replace(" ", "-"), f"seed{seed}.json")


def run_dormancy(jobs: int) -> int:
    runs = {dormancy_file(arm, seed): (specs, seed) for seed in SEEDS for arm, specs in ARMS.items()}
    return run_missing(random_labels, runs, jobs)


def report_dormancy() -> list[str]:
    rows = [
        f"| arm | seeds | dormant units after task 1 | after task {TASKS} | dead units after task {TASKS} "
        f"| accuracy, tasks 1–5 | accuracy, last 5 tasks |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        files = sorted((RESULTS / dormancy_file(arm, 0)).parent.glob("seed*.json"))
        runs = [json.loads(f.read_text()) for f in files]
        if len(runs) < 3:
            continue

        def cell(values: list[float]) -> str:
            mean, half = learning.interval(values)
            return f"{100 * mean:.1f} ± {100 * half:.1f} %"

        columns = [
            [r["dormant"][0] for r in runs],
            [r["dormant"][-1] for r in runs],
            [r["dead"][-1] for r in runs],
            [statistics.fmean(r["accuracy"][:5]) for r in runs],
            [statistics.fmean(r["accuracy"][-5:]) for r in runs],
        ]
        rows.append(f"| `{arm}` | {len(runs)} | " + " | ".join(cell(c) for c in columns) + " |")
    return rows


# ------------------------------------------------------------------------------------------------------ HL-Gauss


def hl_gauss(game: str, spec: str, seed: int) -> dict[str, Any]:
    """DQN with HL-Gauss on a game of the learning study."""
    task = learning.TASKS[game]
    return learning.run_pliant(task, seed, (spec,)) | {"steps": task.steps}


def run_hl_gauss(jobs: int) -> int:
    games = [(game, spec, seed) for seed in SEEDS for game, spec in GAMES.items()]
    return run_missing(hl_gauss, {Path("hl_gauss", run[0], f"seed{run[2]}.json"): run for run in games}, jobs)


def report_hl_gauss() -> list[str]:
    rows = ["| game | steps | seeds | HL-Gauss | Huber | HL-Gauss − Huber |", "|---|---|---|---|---|---|"]
    for game, spec in GAMES.items():
        ours = [json.loads(f.read_text()) for f in sorted((RESULTS / "hl_gauss" / game).glob("seed*.json"))]
        theirs = [json.loads(f.read_text()) for f in sorted((learning.RESULTS / game / "pliant").glob("seed*.json"))]
        if min(len(ours), len(theirs)) < 3:
            continue
        a, b = ([learning.training_score(r) for r in runs] for runs in (ours, theirs))
        cells = ["{:.2f} ± {:.2f}".format(*learning.interval(scores)) for scores in (a, b)]
        cells.append("{:+.2f} ± {:.2f}".format(*learning.difference(a, b)))
        task = learning.TASKS[game]
        rows.append(f"| {task.env}, `{spec}` | {task.steps:,} | {len(a)} / {len(b)} | {' | '.join(cells)} |")
    return rows


# ----------------------------------------------------------------------------------------------------- injection


def injection() -> dict[str, list[float]]:
    """DQN on MinAtar Breakout: the change of predictions at an injection, and how far weights move in later updates."""
    from pliant.agents import DQN, DQNConfig
    from pliant.agents.hooks import sample_like_training
    from pliant.agents.run import Run
    from pliant.envs import make
    from pliant.interventions import INTERVENTIONS
    from pliant.interventions.core.spec import build

    result: dict[str, list[float]] = {"change": [], "frozen": [], "head": [], "encoder": []}
    for seed in SEEDS:
        envs = make("MinAtar/Breakout-v1", num_envs=1, seed=seed)
        parts = tuple(build(["plasticity_injection(at=3000, of=updates)"], INTERVENTIONS))
        config = DQNConfig.for_suite("minatar")
        agent = DQN(envs.observation, envs.action, config, interventions=parts, seed=seed)
        run = Run(agent, envs)
        network: Any = agent.critic.online
        run.train(config.learning_starts + 2_999)
        probe = sample_like_training(run, 256, torch.Generator().manual_seed(0)).obs
        sizes: list[float] = []
        inner = parts[0].after_update

        def watched(r: Any, activations: Any, inner: Any = inner, probe: Any = probe, sizes: Any = sizes) -> None:
            with torch.no_grad():
                before = r.agent.critic.online(probe)
                inner(r, activations)
                sizes.append((r.agent.critic.online(probe) - before).abs().max().item())

        parts[0].after_update = watched  # type: ignore[method-assign]
        run.train(run.clock.steps + 1)
        kept = {
            "frozen": [p.clone() for p in network.injection.parameters()],
            "head": [p.detach().clone() for m in network.head_modules().values() for p in m.parameters()],
            "encoder": [p.detach().clone() for p in network.encoder.parameters()],
        }
        run.train(run.clock.steps + 100)
        now = {
            "frozen": list(network.injection.parameters()),
            "head": [p for m in network.head_modules().values() for p in m.parameters()],
            "encoder": list(network.encoder.parameters()),
        }
        result["change"].append(sizes[0])
        for key in kept:
            result[key].append(max((a - b).abs().max().item() for a, b in zip(kept[key], now[key], strict=True)))
        envs.close()
    return result


def report_injection() -> list[str]:
    result = json.loads((RESULTS / "injection.json").read_text())
    return [
        "| at the injection, 5 seeds | largest over seeds |",
        "|---|---|",
        f"| change of any prediction on 256 observations | {max(result['change']):.2g} |",
        f"| movement of any frozen weight in the next 100 updates | {max(result['frozen']):.2g} |",
        f"| movement of the new head (smallest over seeds) | {min(result['head']):.2g} |",
        f"| movement of the encoder (smallest over seeds) | {min(result['encoder']):.2g} |",
    ]


def report() -> str:
    parts = [report_dormancy(), report_hl_gauss()]
    if (RESULTS / "injection.json").exists():
        parts.append(report_injection())
    return "\n\n".join("\n".join(rows) for rows in parts)


def run_injection(jobs: int) -> int:
    return run_missing(injection, {Path("injection.json"): ()}, jobs)


def main() -> int:
    commands = {"dormancy": run_dormancy, "hl_gauss": run_hl_gauss, "injection": run_injection}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*commands, "report"])
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    arguments = parser.parse_args()
    if arguments.what == "report":
        print(report())
        return 0
    return commands[arguments.what](arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())

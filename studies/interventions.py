"""Do the methods do what they are for? Small problems, many seeds.

    python studies/interventions.py dormancy     # ReDo and continual backprop where units die: random labels
    python studies/interventions.py hl_gauss     # HL-Gauss beside Huber on two MinAtar games (with studies/learning.py)
    python studies/interventions.py injection    # what an injection changes at its moment, and what learns afterwards
    python studies/interventions.py report       # the tables of docs/evidence.md

Every run leaves one JSON file in `studies/results/interventions/`; finished ones are not run again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pliant.common.files import write_whole

RESULTS = Path(__file__).parent / "results" / "interventions"
SEEDS = range(5)

# Random labels: 512 Gaussian inputs of dimension 64, ten labels drawn anew for every task, batch 64.
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


def learning() -> ModuleType:
    """The learning study, whose tasks and statistics are used here too."""
    spec = importlib.util.spec_from_file_location("learning_study", Path(__file__).with_name("learning.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["learning_study"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write(path: Path, result: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result) + "\n")


# ------------------------------------------------------------------------------------------------------ dormancy


def random_labels(words: tuple[str, ...], seed: int) -> dict[str, list[float]]:
    """Accuracy at the end of every task, and shares of dormant (score <= 0.025) and dead units on all inputs."""
    from pliant.agents.optimizers import Adam, OptimizerConfig
    from pliant.interventions import attach

    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = Adam(network.parameters(), OptimizerConfig(lr=LR))
    plasticity = attach(network, optimizer, torch.zeros(1, 64), *words, seed=seed) if words else None
    inputs = torch.randn(INPUTS, 64, generator=g)
    found: dict[str, list[float]] = {"accuracy": [], "dormant": [], "dead": []}
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
            found["accuracy"].append((network(inputs).argmax(1) == labels).float().mean().item())
            found["dormant"].append(share([s <= 0.025 * s.mean() for s in sizes]))
            found["dead"].append(share([s == 0 for s in sizes]))
    return found


def share(masks: list[Tensor]) -> float:
    return torch.cat(masks).float().mean().item()


def run_dormancy() -> None:
    for seed in SEEDS:
        for arm, words in ARMS.items():
            path = RESULTS / "dormancy" / arm.partition("(")[0].replace(" ", "-") / f"seed{seed}.json"
            if not path.exists():
                write(path, random_labels(words, seed))
                print(f"{arm} seed {seed}: done", flush=True)


def report_dormancy(study: ModuleType) -> list[str]:
    rows = [
        f"| arm | seeds | dormant units after task 1 | after task {TASKS} | dead units after task {TASKS} "
        f"| accuracy, tasks 1–5 | accuracy, last 5 tasks |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        files = sorted((RESULTS / "dormancy" / arm.partition("(")[0].replace(" ", "-")).glob("seed*.json"))
        runs = [json.loads(f.read_text()) for f in files]
        if len(runs) < 3:
            continue

        def cell(values: list[float]) -> str:
            mean, half = study.interval(values)
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


def run_hl_gauss() -> None:
    study = learning()
    for seed in SEEDS:
        for game, word in GAMES.items():
            path = RESULTS / "hl_gauss" / game / f"seed{seed}.json"
            if not path.exists():
                write(path, study.run_pliant(study.TASKS[game], seed, (word,)) | {"steps": study.TASKS[game].steps})
                print(f"{game} {word} seed {seed}: done", flush=True)


def report_hl_gauss(study: ModuleType) -> list[str]:
    rows = ["| game | steps | seeds | HL-Gauss | Huber | HL-Gauss − Huber |", "|---|---|---|---|---|---|"]
    for game, word in GAMES.items():
        ours = [json.loads(f.read_text()) for f in sorted((RESULTS / "hl_gauss" / game).glob("seed*.json"))]
        theirs = [json.loads(f.read_text()) for f in sorted((study.RESULTS / game / "pliant").glob("seed*.json"))]
        if min(len(ours), len(theirs)) < 3:
            continue
        a, b = ([study.training_score(r) for r in runs] for runs in (ours, theirs))
        cells = ["{:.2f} ± {:.2f}".format(*study.interval(scores)) for scores in (a, b)]
        cells.append("{:+.2f} ± {:.2f}".format(*study.difference(a, b)))
        task = study.TASKS[game]
        rows.append(f"| {task.env}, `{word}` | {task.steps:,} | {len(a)} / {len(b)} | {' | '.join(cells)} |")
    return rows


# ----------------------------------------------------------------------------------------------------- injection


def injection() -> None:
    """DQN on MinAtar Breakout: what the predictions do at an injection, and which weights move in the next updates."""
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
    write(RESULTS / "injection.json", result)


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
    study = learning()
    parts = [report_dormancy(study), report_hl_gauss(study)]
    if (RESULTS / "injection.json").exists():
        parts.append(report_injection())
    return "\n\n".join("\n".join(rows) for rows in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["dormancy", "hl_gauss", "injection", "report"])
    what = parser.parse_args().what
    torch.set_num_threads(1)
    if what == "report":
        print(report())
    else:
        {"dormancy": run_dormancy, "hl_gauss": run_hl_gauss, "injection": injection}[what]()
    return 0


if __name__ == "__main__":
    sys.exit(main())

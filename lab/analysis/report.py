"""The report on a set of runs: choose the score, compute the comparisons, write the page, its figures, and tables.

The score of a run is its final evaluation if all runs have one. Otherwise, for tasks of a known length (a study's
segment, or --segment), it is the mean return per task over the last half of the tasks. Otherwise it is the mean return
over the last tenth of the run's steps. --measure chooses another score.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pliant.agents import Agent
from pliant.agents.clock import Clock
from pliant.agents.stopping import signals_held
from pliant.common.files import write_whole
from pliant.envs import Envs, make
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build, did_you_mean
from pliant.lab.analysis.comparisons import MEASURES, choose_measure, guess_baseline, guess_oracle
from pliant.lab.analysis.runs import Record, Runs
from pliant.lab.analysis.sections import Report, csv_text
from pliant.lab.commands.outputs import written
from pliant.lab.errors import BadInput
from pliant.lab.experiments.config import RunConfig, known

HTML, MARKDOWN = "report.html", "report.md"
MOST_STEPS = 5_000  # environment steps until a freshly built agent must make its first update
SMALL = {"buffer_size": 4_096, "learning_starts": 200}  # settings of that agent


def make_report(
    runs: Runs,
    command: str,
    *,
    measure: str | None = None,
    segment: int | None = None,
    baseline: str | None = None,
    oracle: str | None = None,
    margin: float | None = None,
    flops: bool = True,
    higher_is_better: bool = True,
) -> Report:
    """The report of runs.

    Raises:
        BadInput: An arm or a measure is unknown.
    """
    arms = list(dict.fromkeys(record.arm for record in runs.records))
    for flag, arm in (("baseline", baseline), ("oracle", oracle)):
        if arm is not None and arm not in arms:
            raise BadInput(
                f"--{flag} {arm!r} is not one of the arms.{did_you_mean(arm, arms)} they are: {', '.join(arms)}"
            )
    length = segment or (runs.study.segment if runs.study is not None else 0)
    if measure == "tasks" and not length:
        raise BadInput("--measure tasks needs the length of a task: --segment N, or 'segment' in the study")
    if measure is not None and measure not in MEASURES:
        tags = {tag for record in runs.records for tag in record.tags}
        if measure not in tags:
            raise BadInput(
                f"--measure {measure!r} is not one of {', '.join(MEASURES)}, and no run has measured it."
                f"{did_you_mean(measure, [*MEASURES, *sorted(tags)])}"
            )
    chosen = choose_measure(runs, measure, length, higher_is_better)
    if measure == "final" and runs.finished and not any(record.done.get("evaluation") for record in runs.finished):
        raise BadInput(
            "--measure final: none of these runs was evaluated at its end; --measure last reads their curves"
        )
    base = baseline or guess_baseline(runs)
    best = oracle or guess_oracle(runs)
    return Report(
        runs, chosen, base, None if best == base else best, margin, command, count_flops(runs) if flops else {}
    )


def write(out: Path, report: Report, html: str, markdown: str) -> None:
    """Write all files, the page last, so that a new page always has its figures and tables. Signals are delayed."""
    with written(out, "--out"), signals_held():
        shutil.rmtree(out / "figures", ignore_errors=True)
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for name, picture in report.pictures.items():
            (out / name).write_bytes(picture)
        if not report.pictures:
            (out / "figures").rmdir()
        for name, (header, rows) in report.tables.items():
            (out / name).write_text(csv_text(header, rows), encoding="utf-8")
        for name, text in ((MARKDOWN, markdown), (HTML, html)):
            write_whole(out / name, text)


# ------------------------------------------------------------------------------------------------ FLOPs


def count_flops(runs: Runs) -> dict[tuple[str, str, str], float | str]:
    """FLOPs of a gradient update by (environment, agent, arm), or a short reason why they are unknown."""
    first: dict[tuple[str, str, str], Record] = {}
    for record in runs.finished:
        first.setdefault((record.environment, record.agent, record.arm), record)
    return {labels: flops_of_update(record.config) for labels, record in first.items() if record.config is not None}


def flops_of_update(config: RunConfig) -> float | str:
    """Floating-point operations of one gradient update of an agent like this one, counted on its first update.

    A new agent is built on the CPU with a small memory. Matrix products and convolutions are counted, forward and
    backward (`torch.utils.flop_counter`); elementwise operations, acting and interventions between updates are not. If
    the number is unknown (no simulator, no update within some thousand steps), a text gives the reason.
    """
    threads = torch.get_num_threads()
    try:
        envs, agent = _built_small(config)
        try:
            count = _first_update(envs, agent)
        finally:
            envs.close()
    except (ValueError, RuntimeError, ImportError, NotImplementedError) as error:
        return f"{config.agent} in {config.env} cannot be built here ({' '.join(str(error).split())[:120]})"
    finally:
        torch.set_num_threads(threads)
    if count is None:
        return f"{config.agent} in {config.env} makes no update within {MOST_STEPS:,} steps"
    return float(count) if count else f"an update of {config.agent} in {config.env} has no operation that is counted"


def _built_small(config: RunConfig) -> tuple[Envs, Agent]:
    names = {field.name for field in fields(config.agent_config)}
    smaller: Mapping[str, Any] = {
        name: min(most, getattr(config.agent_config, name)) for name, most in SMALL.items() if name in names
    }
    agent_config = replace(config.agent_config, **smaller)
    envs = make(config.env, num_envs=config.num_envs, seed=config.seed, config=config.env_config)
    interventions = build(config.interventions, INTERVENTIONS)
    agent: Agent = known().agent_class(config.agent)(
        envs.observation, envs.action, agent_config, interventions=tuple(interventions), seed=config.seed, device="cpu"
    )
    return envs, agent


def _first_update(envs: Envs, agent: Agent) -> int | None:
    """Like `Run`, but without monitors: interventions that wait for a measurement never fire."""
    memory, clock, obs = agent.memory(envs.num_envs), Clock(), envs.reset()
    memory.start(obs)
    while clock.steps < MOST_STEPS:
        action = agent.act(obs, clock).cpu().numpy()
        step = envs.step(action)
        memory.add(action, step)
        obs, clock = step.obs, clock.stepped(envs.num_envs, len(step.episodes))
        for batch in memory.batches(agent.sampling(clock)):
            clock = clock.updated()
            with FlopCounterMode(display=False) as counter:
                agent.update(batch, agent.plan(clock))
            return int(counter.get_total_flops())
    return None

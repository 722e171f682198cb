"""Heavy priming: the number of updates, their transitions, and that a run can be stopped during them."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from law_agents import AGENTS, VECTOR, RandomEnvs, build_run, current_state, differences, dqn, resume, saved, take_steps
from test_baselines import learnt, parts, run_of
from test_runs import assert_same_run, start

from pliant.agents import replay as replay_module
from pliant.agents.checkpoint import Checkpoints
from pliant.agents.log import Log, read_metrics
from pliant.agents.run import Run
from pliant.interventions.core.spec import SpecError
from pliant.interventions.heavy_priming import HeavyPriming
from pliant.monitors import watch
from pliant.scripts import train

PRIMED = "heavy_priming(updates=20, transitions=10)"


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of four updates, so that a small priming has several slices."""
    monkeypatch.setattr(replay_module, "AT_ONCE", 4)


# --------------------------------------------------------------------------------------------- number of updates


@pytest.mark.parametrize("num_envs", [1, 2, 3])
@pytest.mark.parametrize("agent", ["dqn", "sac", "dqn, double dueling prioritised 3-step"])
def test_all_updates_are_made_on_the_first_transitions_before_another_step(agent: str, num_envs: int) -> None:
    run = run_of(agent, PRIMED, num_envs=num_envs)
    seen = learnt(run, 24 // num_envs)
    started_at = -(-10 // num_envs) * num_envs  # complete steps of all environments
    first = [(step, newest) for step, _, newest in seen if step == started_at]
    assert seen[0][0] == started_at and len(first) == 20 + started_at - 10
    assert max(newest for _, newest in first) < started_at
    # Afterwards the usual ratio holds: one update for every transition.
    assert [step for step, *_ in seen[len(first) :]] == [
        step for step in range(started_at + num_envs, run.clock.steps + 1, num_envs) for _ in range(num_envs)
    ]
    assert run.clock.updates == 20 + run.clock.steps - 10


def test_priming_does_not_wait_for_a_round_of_updates() -> None:
    """Rounds come every 16 steps here, but the priming still uses the first ten transitions."""
    run = run_of(dqn(VECTOR, update_every=16, replay_ratio=0.5), PRIMED)
    seen = learnt(run, 16)
    assert [step for step, *_ in seen] == [10] * 20 + [16] * 3 + [32] * 8


def test_the_configuration_sets_when_learning_begins() -> None:
    agent: Any = AGENTS["sac"](interventions=parts(PRIMED))
    assert agent.config.learning_starts == 10 and agent.given_config.learning_starts == 8
    assert HeavyPriming().updates == 100_000 and HeavyPriming().transitions == 100


def test_it_combines_with_methods_that_set_the_ratio() -> None:
    """Composite methods that set n-step, discount or ratio do not change the extra pending updates, in either order."""
    adaptive = "adaptive_replay_ratio(low=1, high=2, every=1000)"
    for other in ("bbf(every=1000, n_start=2, n_end=1)", adaptive, "replay_ratio(1)"):
        for specs in ((PRIMED, other), (other, PRIMED)):
            run = run_of("dqn, minatar, dueling", *specs)
            take_steps(run, 7)
            assert run.clock.updates >= 20, specs


def test_a_new_agent_is_not_primed_again() -> None:
    run = run_of("dqn", PRIMED, "fresh_agent(every=16)")
    seen = learnt(run, 16)
    assert [step for step, *_ in seen] == [10] * 20 + [12, 12, 14, 14, 16] + [28, 28, 30, 30, 32]


@pytest.mark.parametrize(
    ("agent", "spec", "message"),
    [
        ("ppo", PRIMED, "heavy_priming needs a replay, and ppo has none"),
        ("supervised", PRIMED, "heavy_priming needs a replay, and supervised has none"),
        ("dqn", "heavy_priming(transitions=97)", "97 transitions do not fit into the replay, which holds 96"),
    ],
)
def test_agents_without_a_replay_are_refused(agent: str, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match="heavy_priming") as refusal:
        run_of(agent, spec)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(SpecError, match="updates must be at least 1 gradient update, not 0"):
        parts("heavy_priming(updates=0)")


# ------------------------------------------------------------------------------------------------- during priming


@pytest.mark.usefixtures("slices")
def test_no_step_is_taken_while_updates_are_pending() -> None:
    run = run_of("sac", PRIMED)
    moments = []
    for _ in range(12):
        run.step()
        moments.append((run.clock.steps, run.clock.updates, run.has_pending))
    assert moments == [
        (2, 0, False),
        (4, 0, False),
        (6, 0, False),
        (8, 0, False),
        (10, 4, True),
        (10, 8, True),
        (10, 12, True),
        (10, 16, True),
        (10, 20, False),
        (12, 22, False),
        (14, 24, False),
        (16, 26, False),
    ]


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("agent", ["dqn", "sac", "dqn, double dueling prioritised 3-step"])
@pytest.mark.parametrize("stop", [5, 7, 8, 9])
def test_it_resumes_during_priming(agent: str, stop: int) -> None:
    specs = PRIMED, "redo(tau=0.7, every=3, samples=16)"
    straight, stopped, resumed = (run_of(agent, *specs, seed=s) for s in (0, 0, 9))
    take_steps(straight, 14)
    take_steps(stopped, stop)
    resume(resumed, saved(stopped))
    take_steps(resumed, 14 - stop)
    assert straight.clock.steps == 20
    assert not differences(current_state(straight), current_state(resumed))


class SavableEnvs(RandomEnvs):
    """Environments of noise whose state a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        return {
            key: torch.from_numpy(value) if isinstance(value, np.ndarray) else json.dumps(value)
            for key, value in super().state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(
            {
                key: value.numpy() if isinstance(value, torch.Tensor) else json.loads(value)
                for key, value in state.items()
            }
        )


def in_folder(folder: Path, **options: Any) -> Run:
    made = AGENTS["sac"](interventions=parts(PRIMED))
    envs = SavableEnvs(made.observation, made.action, 2)
    log = Log(folder, log_every=options.pop("log_every", 8))
    return Run(made, envs, log=log, checkpoints=Checkpoints(folder, keep=50), monitors=watch(made, "none"), **options)


@pytest.mark.usefixtures("slices")
def test_a_stop_is_obeyed_between_two_slices(tmp_path: Path) -> None:
    """The record of a run that was stopped there three times equals that of an uninterrupted run, to the last byte."""
    straight = in_folder(tmp_path / "straight")
    assert straight.train(24)
    straight.log.close()
    done = False
    for stops in (6, 1, 1, 100):
        run = in_folder(tmp_path / "stopped")
        newest = Checkpoints(tmp_path / "stopped").newest_good()
        if newest is not None:
            assert run.checkpoints is not None
            run.restore(run.checkpoints.resume())  # type: ignore[arg-type]
        stops_requested = iter([False] * stops + [True] * 100)
        before = run.clock
        done = run.train(24, lambda stops_requested=stops_requested: next(stops_requested))  # type: ignore[misc]
        if not done:
            assert run.clock.steps == 10 and run.has_pending and run.clock.updates - before.updates <= 8
        run.log.close()
    assert done
    one, other = (tmp_path / name / "metrics.jsonl" for name in ("straight", "stopped"))
    assert one.read_bytes() == other.read_bytes()
    assert not differences(current_state(straight), current_state(run))


@pytest.mark.usefixtures("slices")
def test_a_run_ends_without_pending_updates(tmp_path: Path) -> None:
    """A run of exactly as many steps as are primed on still makes the updates, and ends only after them."""
    run = in_folder(tmp_path)
    stops_requested = iter([False] * 6 + [True])
    assert not run.train(10, lambda: next(stops_requested)) and run.clock.steps == 10
    assert run.train(10) and run.clock.updates == 20 and not run.has_pending


@pytest.mark.usefixtures("slices")
def test_schedules_in_steps_wait_and_checkpoints_and_log_lines_do_not(tmp_path: Path) -> None:
    """While no step is taken, a schedule of every 8 steps fires every 8 updates; a monitor at the end of a step
    fires once."""
    evaluated: list[Any] = []
    saves: list[Any] = []
    run = in_folder(
        tmp_path, checkpoint_every=8, evaluate_every=10, evaluate=lambda a: evaluated.append(run.clock) or {}
    )
    save = run.save
    run.save = lambda: (saves.append((run.clock.steps, run.clock.updates)), save())  # type: ignore[method-assign, assignment, func-returns-value]
    run.train(24)
    run.log.close()
    assert [(c.steps, c.updates) for c in evaluated] == [(10, 20), (20, 30)]
    assert saves == [(8, 0), (10, 8), (10, 16), (16, 26), (24, 34), (24, 34)]
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "losses/q_magnitude" in line]
    assert [(line["steps"], line["updates"]) for line in lines] == [(10, 8), (10, 16), (16, 26), (24, 34)]
    assert all("losses/alpha" in line and "losses/entropy" in line for line in lines)
    newest = Checkpoints(tmp_path).newest_good()
    assert newest is not None and newest.step == 24


@pytest.mark.usefixtures("slices")
def test_a_kill_loses_at_most_the_last_interval_between_checkpoints(tmp_path: Path) -> None:
    """During priming the files on disk form a complete run."""
    run = in_folder(tmp_path, checkpoint_every=8)
    stops_requested = iter([False] * 7 + [True])
    save, run.save = run.save, lambda: None  # type: ignore[method-assign]

    def after_slice(updates: int) -> None:
        run.save = save  # type: ignore[method-assign]
        type(run).between_updates(run, updates)
        run.save = lambda: None  # type: ignore[method-assign]

    run.between_updates = after_slice  # type: ignore[method-assign]
    assert not run.train(24, lambda: next(stops_requested))  # killed at update 12: the save at the end is not made
    assert run.clock.updates == 12
    run.log.close()
    other = in_folder(tmp_path)
    assert other.checkpoints is not None
    other.restore(other.checkpoints.resume())  # type: ignore[arg-type]
    assert (other.clock.steps, other.clock.updates, other.has_pending) == (10, 8, True)
    other.train(24)
    straight = in_folder(tmp_path / "straight")
    straight.train(24)
    assert not differences(current_state(straight), current_state(other))


def test_the_length_of_slices_does_not_change_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with slices of different lengths are equal to the last bit."""
    runs = []
    for at_once in (1, 3, 256):
        monkeypatch.setattr(replay_module, "AT_ONCE", at_once)
        run = build_run("dqn", parts("replay_ratio(4)"))
        while run.clock.steps < 20 or run.has_pending:
            run.step()
        runs.append(saved(run))
    assert not differences(runs[0], runs[1]) and not differences(runs[1], runs[2])


@pytest.mark.full
def test_the_real_command_is_stopped_and_killed_during_priming(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--agent",
        "dqn",
        "--env",
        "CartPole-v1",
        "--steps",
        "200",
        "--threads",
        "1",
        "--log-every",
        "100",
        "--evaluate-episodes",
        "0",
        "--checkpoint-every",
        "300",
        "--agent.network.hidden",
        "16",
        "--agent.batch-size",
        "16",
        "--monitors",
        "none",
        "--interventions",
        "heavy_priming(updates=2500, transitions=60)",
    ]
    assert train.main([*arguments, "--run", str(tmp_path / "straight")]) == 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        before, process = saved_at(tmp_path / "stopped"), start(tmp_path / "stopped", *arguments)
        deadline = time.monotonic() + 120
        while saved_at(tmp_path / "stopped")[1] <= before[1] and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send(number)
        assert process.wait(60) == (75 if number == signal.SIGTERM else -9), process.printed()
        step, updates = saved_at(tmp_path / "stopped")
        assert step == 60 and 0 < updates < 2500, "the signal did not come during priming"
    assert train.main([*arguments, "--run", str(tmp_path / "stopped")]) == 0
    assert "continues from step 60" in capsys.readouterr().err
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    lines = [json.loads(line) for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["updates"] for line in lines if line["steps"] == 60) > 2000


def saved_at(folder: Path) -> tuple[int, int]:
    """Steps and updates of the newest checkpoint."""
    try:
        newest = Checkpoints(folder).newest_good(report=lambda text: None)
        clock = {"steps": 0, "updates": 0} if newest is None else newest.load("loop")["clock"]
    except (OSError, RuntimeError):  # between two renames
        return 0, 0
    return clock["steps"], clock["updates"]

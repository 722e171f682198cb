"""A pool of real runs: skipped, killed, resumed, stopped, failed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from processes import has_checkpoint

from pliant.common.files import FileDamaged
from pliant.lab.errors import BadInput
from pliant.lab.experiments import pool
from pliant.lab.experiments.config import RunConfig, parse
from pliant.lab.experiments.pool import Job, Outcome, Progress, is_done, run_all

LINE = (
    "--agent ppo --env CartPole-v1 --agent.rollout 64 --agent.epochs 1 --evaluate-episodes 0 --monitors none "
    "--device cpu --threads 1 --log-every 100"
)


# For processes that import this file: its folder, the folder of the shared helpers, and the paths of this process.
PATH = os.pathsep.join(map(str, [*Path(__file__).parents[:2], *filter(None, [os.environ.get("PYTHONPATH")])]))


def config(folder: Path, steps: int = 300, seed: int = 0, **changes: Any) -> RunConfig:
    start = parse(LINE.split(), prog="test").config
    return replace(start, steps=steps, seed=seed, run=str(folder / f"seed{seed}"), **changes)


def jobs(folder: Path, count: int = 2, **changes: Any) -> list[Job]:
    return [Job(config(folder, seed=seed, **changes)) for seed in range(count)]


def started(folder: Path) -> int:
    """The number of sessions of a run."""
    return (folder / "output.log").read_text().count("in a pool")


def poke(monkeypatch: pytest.MonkeyPatch, what: Callable[[Any], None]) -> None:
    """Call `what` on the workers each time that the pool waits for them."""
    wait = pool._Workers.wait

    def poked(self: Any, seconds: float) -> Any:
        what(self)
        return wait(self, 0.02)

    monkeypatch.setattr(pool._Workers, "wait", poked)


def test_every_run_is_done_exactly_once(tmp_path: Path) -> None:
    finished: list[Outcome] = []
    for again in range(2):
        finished.clear()
        outcomes = run_all(jobs(tmp_path, 3), workers=2, finished=finished.append)
        assert [(o.status, o.ran, o.attempts) for o in outcomes] == [("done", not again, 1 - again)] * 3
        assert {o.job.config.seed for o in finished} == {0, 1, 2}
    for seed in range(3):
        folder = tmp_path / f"seed{seed}"
        assert json.loads((folder / "DONE").read_text())["steps"] == 300 and started(folder) == 1
        assert pool.cost(folder) > 0
        # The recorded command is a `pliant train` that a user can repeat.
        command = json.loads((folder / "versions.json").read_text())[0]["command"]
        assert command == f"pliant train --config {folder}/config.yaml"
    # A longer run in the same folder is not done yet.
    assert not is_done(Job(config(tmp_path, steps=400)))


@pytest.mark.full
def test_a_run_in_the_pool_equals_the_run_of_the_command(tmp_path: Path) -> None:
    run_all(jobs(tmp_path, 1))
    alone = tmp_path / "alone"
    command = [sys.executable, "-m", "pliant.scripts", "train", *LINE.split(), "--steps", "300", "--run", str(alone)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (alone / "metrics.jsonl").read_bytes() == (tmp_path / "seed0" / "metrics.jsonl").read_bytes()


def test_a_worker_killed_by_sigkill_is_tried_again_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(jobs(tmp_path / "whole", 1, steps=4000))
    killed: list[int] = []

    def kill_once(team: Any) -> None:
        for process in team.busy:
            if not killed and has_checkpoint(tmp_path / "seed0"):
                killed.append(process.pid)
                process.kill()

    poke(monkeypatch, kill_once)
    (outcome,) = run_all(jobs(tmp_path, 1, steps=4000, checkpoint_every=500))
    assert killed and (outcome.status, outcome.attempts) == ("done", 2)
    assert "continues from step" in (tmp_path / "seed0" / "output.log").read_text()
    same = [(tmp_path / f / "seed0" / "metrics.jsonl").read_bytes() for f in ("", "whole")]
    assert same[0] == same[1]


@pytest.mark.full
def test_a_run_whose_worker_is_killed_twice_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poke(monkeypatch, lambda team: [process.kill() for process in team.busy])
    shown = io.StringIO()
    (outcome,) = run_all(jobs(tmp_path, 1), progress=Progress(shown))
    assert (outcome.status, outcome.attempts, outcome.tail[-1]) == ("failed", 2, "killed by SIGKILL")
    assert "failed: " in shown.getvalue() and "killed by SIGKILL" in shown.getvalue()


def kill_server() -> None:
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]


@pytest.mark.full
def test_a_server_that_is_killed_before_a_run_begins_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, killed = pool._Workers.start, []

    def kill_once(team: Any, outcome: Outcome) -> Any:
        if not killed:
            killed.append(kill_server())
        return start(team, outcome)

    monkeypatch.setattr(pool._Workers, "start", kill_once)
    assert [(o.status, o.attempts) for o in run_all(jobs(tmp_path, 2), workers=2)] == [("done", 1)] * 2
    assert killed


@pytest.mark.full
def test_a_server_that_is_killed_during_runs_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(jobs(tmp_path / "whole", 1, steps=3000))
    killed: list[None] = []

    def kill_once(team: Any) -> None:
        if not killed and has_checkpoint(tmp_path / "seed0"):
            killed.append(kill_server())

    poke(monkeypatch, kill_once)
    (outcome,) = run_all(jobs(tmp_path, 1, steps=3000, checkpoint_every=300))
    assert killed and outcome.status == "done"
    same = [(tmp_path / f / "seed0" / "metrics.jsonl").read_bytes() for f in ("", "whole")]
    assert same[0] == same[1]


@pytest.mark.full
def test_a_server_that_is_killed_again_and_again_fails_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = forkserver._forkserver  # type: ignore[attr-defined]
    running = server.ensure_running

    def kill_always() -> None:
        running()
        kill_server()

    with monkeypatch.context() as patch:
        patch.setattr(pool, "PRELOAD", ("pliant.lab.experiments.pool_server",))
        with pool._Workers() as team:
            patch.setattr(server, "ensure_running", kill_always)
            outcome = Outcome(jobs(tmp_path, 1)[0])
            assert not team.start(outcome) and not team.busy
    assert (outcome.status, outcome.attempts) == ("failed", 1)
    assert outcome.tail == ("the server of the pool was killed 3 times while the run was begun",)
    assert (tmp_path / "seed0" / "FAILED").read_text() == outcome.tail[0] + "\n"
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_run_whose_folder_cannot_be_made_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "seed0").write_text("mine")
    shown = io.StringIO()
    outcomes = run_all(jobs(tmp_path, 2), workers=2, progress=Progress(shown))
    assert [o.status for o in outcomes] == ["failed", "done"]
    assert "cannot make the folder" in outcomes[0].tail[0] and "seed0: File exists" in shown.getvalue()
    # Its output cannot be written.
    (tmp_path / "third" / "seed0" / "output.log").mkdir(parents=True)
    (outcome,) = run_all(jobs(tmp_path / "third", 1))
    assert (outcome.status, outcome.tail) == ("failed", ("exit code 1",))


def test_lines_without_a_cost_are_skipped_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = b'{"cpu": 1.5, "wall": 2}\n'
    (tmp_path / "cost.jsonl").write_bytes(good + b'{"cpu": 1\n[]\n{"cpu": NaN, "wall": 1}\n\xff\n' + good + b'{"cp')
    assert pool.cost(tmp_path) == 3.0
    assert "cost.jsonl: 5 of 7 lines do not hold a session's cost" in capsys.readouterr().err
    (tmp_path / "cost.jsonl").write_bytes(good)
    assert pool.cost(tmp_path) == 1.5 and pool.cost(tmp_path / "none") == 0.0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["", "{", "[300]", '{"steps": "300"}', '{"steps": null}'])
def test_a_damaged_done_is_named(tmp_path: Path, text: str) -> None:
    job = jobs(tmp_path, 1)[0]
    job.folder.mkdir()
    (job.folder / "DONE").write_text(text)
    with pytest.raises(FileDamaged, match=r"seed0/DONE .*Delete it"):
        is_done(job)


def test_a_refused_run_keeps_the_record_of_the_earlier_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the record until the run goes on; the pool writes its own record afterwards."""
    seen: list[str] = []
    monkeypatch.setattr(pool, "mark_failed", lambda place, end: seen.append((place / "FAILED").read_text()))
    bad = Job(replace(config(tmp_path, seed=7), env="CartPole-v9"))
    bad.folder.mkdir()
    (bad.folder / "FAILED").write_text("killed by SIGKILL\n")
    assert run_all([bad])[0].status == "failed"
    assert seen == ["killed by SIGKILL\n"]


def test_a_failure_is_reported_with_its_last_lines_and_affects_no_other_run(tmp_path: Path) -> None:
    bad = Job(replace(config(tmp_path, seed=7), env="CartPole-v9"))
    outcomes = run_all([bad, *jobs(tmp_path, 1)], workers=2)
    assert [o.status for o in outcomes] == ["failed", "done"]
    assert outcomes[0].attempts == 1 and outcomes[0].tail[-1] == "exit code 2"
    assert "error: " in outcomes[0].tail[-2] and "CartPole-v9" in outcomes[0].tail[-2]


@pytest.mark.full
def test_runs_are_saved_at_the_end_of_the_budget_and_continued_by_the_next_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic
    late = [0.0]
    monkeypatch.setattr(pool.time, "monotonic", lambda: now() + late[0])

    def budget_ends(team: Any) -> None:
        if has_checkpoint(tmp_path / "seed0"):
            late[0] = 50.0

    poke(monkeypatch, budget_ends)
    first = run_all(jobs(tmp_path, 2, steps=200_000, checkpoint_every=500), budget=40.0)
    assert [o.status for o in first] == ["stopped", "waiting"]
    assert not (tmp_path / "seed1").exists()
    reached = max(int(p.name[5:]) for p in (tmp_path / "seed0").glob("checkpoints/step_*"))
    monkeypatch.undo()
    second = run_all(jobs(tmp_path, 2, steps=reached + 200, checkpoint_every=500))
    assert [o.status for o in second] == ["done", "done"]
    assert f"continues from step {reached:,}" in (tmp_path / "seed0" / "output.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.full
def test_a_signal_to_the_pool_saves_running_runs(tmp_path: Path, number: int) -> None:
    """The signal goes to the whole group of processes, as from a terminal or from `timeout`."""
    code = (
        "import sys, test_pool as t\nfrom pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    done = t.run_all(t.jobs(Path(sys.argv[1]), 2, steps=500_000, checkpoint_every=300))\n"
        "    print([o.status for o in done], flush=True)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    path = os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=path,
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    while not has_checkpoint(tmp_path / "seed0"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=100)
    assert output.strip() == "['stopped', 'waiting']"
    assert "stopped and saved" in (tmp_path / "seed0" / "output.log").read_text()


@pytest.mark.full
def test_workers_save_and_end_when_the_pool_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, test_pool as t\nfrom pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    t.run_all(t.jobs(Path(sys.argv[1]), 1, steps=500_000, checkpoint_every=300))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    path = os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=path)
    deadline = time.monotonic() + 100
    while not has_checkpoint(tmp_path / "seed0"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    log = tmp_path / "seed0" / "output.log"
    while "stopped and saved" not in log.read_text():
        assert time.monotonic() < deadline, "the worker still runs"
        time.sleep(0.02)


@pytest.mark.full
def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two runs want the folder"):
        run_all([*jobs(tmp_path, 1), *jobs(tmp_path, 1)])
    with pytest.raises(BadInput, match="at least one worker"):
        run_all(jobs(tmp_path, 1), workers=0)


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path) -> None:
    run_all(jobs(tmp_path, 1))
    with pytest.raises(BadInput, match="holds another run, which differs in num_envs"):
        run_all(jobs(tmp_path, 1, num_envs=2))


def outcome(status: Any, seconds: float = 10.0, ran: bool = True) -> Outcome:
    return Outcome(Job(RunConfig(), seconds=seconds), status, ran)


def test_the_line_of_progress_shows_counts_and_the_remaining_time() -> None:
    clock = [0.0]
    stream = io.StringIO()
    line = Progress(stream, now=lambda: clock[0])
    before = outcome("done", ran=False)
    some = [before, outcome("done"), outcome("waiting"), outcome("waiting", 30.0), outcome("failed")]
    clock[0] = 20.0
    # 10 expected seconds took 20 seconds; 40 remain.
    assert line.text(some, 2, 2) == "2 of 5 runs done, 2 running, 1 failed, 1:20 left"
    assert line.text(some, 2, 2, ends=50.0) == "2 of 5 runs done, 2 running, 1 failed, 0:30 left of the budget"
    assert line.text([outcome("waiting", 0.0)], 1, 1) == "0 of 1 runs done, 1 running, ? left"
    # Nothing is done yet: the expected time for two workers, less the time that has passed.
    assert line.text([outcome("waiting", 60.0)] * 2, 2, 2) == "0 of 2 runs done, 2 running, 0:40 left"
    line.update(some, 2, 2)
    line.update(some, 2, 2)
    assert stream.getvalue().count("\n") == 1  # without a terminal only changes are printed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_of_a_pool_is_a_bar_on_a_terminal() -> None:
    clock = [0.0]
    stream = Terminal()
    line = Progress(stream, now=lambda: clock[0])
    some = [outcome("done"), outcome("waiting"), outcome("waiting"), outcome("waiting"), outcome("failed")]
    for clock[0] in (20.0, 20.1):  # the second time is too early
        line.update(some, 2, 2)
    line.note("failed: output.log")
    line.close()
    lines = stream.getvalue().split("\r")
    assert lines[1] == " 20% ████░░░░░░░░░░░░░░░░  1 of 5 runs done, 2 running, 1 failed, 1:00 left"
    assert "failed: output.log\n" in lines and stream.getvalue().endswith("\n") and stream.getvalue().count("\n") == 2

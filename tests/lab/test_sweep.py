"""Sweeps of real runs: killed, resumed, locked, with a full disk; in a pool, on Ray and as a SLURM array."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import Command, has_checkpoint, outcome_of

from pliant.agents.checkpoint import Checkpoints, RunLock
from pliant.lab.experiments import pool, sweep
from pliant.lab.experiments.status import locked, state_of
from pliant.lab.experiments.study import load_study
from pliant.scripts.main import main

TINY: dict[str, Any] = {
    "name": "tiny",
    "title": "A small study, of nothing",
    "agents": {"ppo": {"agent.rollout": 64, "agent.epochs": 1}},
    "environments": {"CartPole-v1": None},
    "arms": {"plain": {"kind": "control"}, "layer_norm": ["layer_norm"]},
    "seeds": 1,
    "flags": {"steps": 300, "log_every": 100, "evaluate_episodes": 0, "monitors": ["none"], "checkpoint_every": 500},
}
RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not RAY, reason="Ray is not installed: pip install -e '.[sweep]'")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def study(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """The small study as a file; `steps` and `device` become flags."""
    data = TINY | {"name": name} | changes
    data["flags"] = TINY["flags"] | {k: data.pop(k) for k in ("steps", "device") if k in data}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def call(*arguments: Any) -> int:
    return main(["sweep", *map(str, arguments)])


def popen(*arguments: Any, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pliant.scripts", "sweep", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT | more.pop("env", {}),
        start_new_session=True,
        **more,
    )


def begin(*arguments: Any) -> Command:
    """As `popen`, in a process that need not import anything first."""
    return Command("sweep", *map(str, arguments))


def sessions(root: Path) -> dict[str, int]:
    return {str(f.parent.relative_to(root)): len(f.read_text().splitlines()) for f in sorted(root.rglob("cost.jsonl"))}


def results(root: Path) -> dict[str, Any]:
    """The results of the runs: all their metrics, and the hash of the final agent's content. (The bytes of the file may
    differ after a resumption, where two equal strings are no longer one object.)"""
    by_folder = {}
    for done in sorted(root.rglob("DONE")):
        checkpoint = Checkpoints(done.parent).newest_good()
        assert checkpoint is not None
        digest = hashlib.sha256(b"".join(content(checkpoint.load("agent")))).hexdigest()
        by_folder[str(done.parent.relative_to(root))] = ((done.parent / "metrics.jsonl").read_bytes(), digest)
    return by_folder


def content(value: Any) -> Iterator[bytes]:
    """The bytes of everything in a state."""
    if isinstance(value, torch.Tensor):
        yield repr((value.dtype, tuple(value.shape))).encode()
        yield value.contiguous().view(-1).numpy().tobytes()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield repr(key).encode()
            yield from content(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from content(item)
    else:
        yield repr(value).encode()


Process = subprocess.Popen[str] | Command


def output_of(process: Process) -> str:
    return process.printed() if isinstance(process, Command) else process.communicate()[0]


def until(condition: Callable[[], bool], process: Process | None = None, seconds: float = 100) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, output_of(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_run_is_done_once_and_the_status_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, root = study(tmp_path, seeds=2), tmp_path / "runs"
    assert call(file, "--out", root, "--dry-run", "--seeds", 1, "--only", "plain") == 0
    line = capsys.readouterr().out.splitlines()
    assert len(line) == 2 and line[1].startswith("pliant train --agent ppo --env CartPole-v1") and not root.exists()
    assert call(file, "--out", root, "--seeds", 1) == 0
    assert "2 of 2 runs done (0 before)" in capsys.readouterr().out
    assert call(file, "--out", root, "--status") == 0
    output = capsys.readouterr().out
    assert output.startswith("tiny: 2 of 4 runs done, 2 waiting")
    assert output.count("50 %") == 2
    assert call(file, "--out", root) == 0
    assert "4 of 4 runs done (2 before)" in capsys.readouterr().out
    assert set(sessions(root).values()) == {1} and len(sessions(root)) == 4
    # The folder can be given instead of the file.
    assert call(root, "--status") == 0
    assert capsys.readouterr().out.startswith("tiny: 4 of 4 runs done ")


def test_a_mistake_gives_one_line_of_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, root = study(tmp_path), tmp_path / "runs"
    for arguments, message in (
        ((file, "--only", "plian"), "there is no arm 'plian'. Did you mean 'plain'?"),
        ((file, "--seeds", 9), "has 1 seeds, not 9"),
        ((file, "--jobs", -1), "--jobs must be at least 0 processes, not -1"),
        ((file, "--out", file), "is a file: name a folder"),
        ((file, "--out", root, "--executor", "slurm", "--emit", tmp_path), "is a folder: name the script"),
        ((study(tmp_path, "gpu", device="cuda"), "--out", root), "this machine has no GPU"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            assert call(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    same = study(tmp_path, "same", arms={"plain": None, "other": {"flags": {"agent.rollout": 64}}})
    assert call(same) == 2
    assert "'plain' and 'other' are the same run" in capsys.readouterr().err


def test_a_folder_with_another_run_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    assert call(study(tmp_path), "--out", root, "--only", "layer_norm") == 0
    other = study(tmp_path, agents={"ppo": {"agent.rollout": 32, "agent.epochs": 1}})
    assert call(other, "--out", root) == 2
    assert "holds another run, which differs in agent.rollout" in capsys.readouterr().err
    assert len(sessions(root)) == 1


@pytest.mark.full
def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, root = study(tmp_path), tmp_path / "runs"
    root.mkdir()
    with RunLock(root):
        assert call(file, "--out", root) == 1
        error = capsys.readouterr().err
        assert "is in use by pid" in error and error.count("\n") == 1
        assert call(file, "--out", root, "--status") == 0
    assert not sessions(root)


def test_states_are_read_without_taking_the_lock(tmp_path: Path) -> None:
    cell = load_study(study(tmp_path)).cells(tmp_path / "runs")[0]
    assert state_of(cell).state == "waiting"
    lock = RunLock(cell.folder)
    assert locked(cell.folder / ".lock") and state_of(cell).state == "running"
    lock.release()
    assert not locked(cell.folder / ".lock")
    (cell.folder / "config.yaml").touch()
    (cell.folder / "checkpoints" / "step_000000000120").mkdir(parents=True)
    assert (state_of(cell).state, state_of(cell).steps) == ("interrupted", 120)
    pool.mark_failed(cell.folder, "killed by SIGKILL")
    assert (state_of(cell).state, state_of(cell).tail) == ("failed", ("killed by SIGKILL",))
    # A run is done once it has made all the steps that the study now gives.
    for steps, state in ((299, "failed"), (300, "done"), (400, "done")):
        (cell.folder / "DONE").write_text(json.dumps({"steps": steps, "updates": 1}))
        assert state_of(cell).state == state


@pytest.mark.full
def test_a_killed_sweep_leaves_no_process_and_the_same_command_finishes(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert call(study(tmp_path, steps=6000), "--out", whole, "--jobs", 2) == 0
    file, root = study(tmp_path, steps=6000), tmp_path / "runs"
    first = begin(file, "--out", root, "--jobs", 1)
    plain, norm = (root / "CartPole-v1" / "ppo" / arm / "seed0" for arm in ("plain", "layer_norm"))
    until(lambda: (plain / "DONE").exists() and has_checkpoint(norm), first)
    first.send(signal.SIGKILL)
    first.wait()
    until(lambda: not locked(norm / ".lock"))
    code, output = outcome_of("sweep", str(file), "--out", str(root))
    assert code == 0 and "2 of 2 runs done (1 before)" in output
    assert sessions(root)["CartPole-v1/ppo/plain/seed0"] == 1
    assert "continues from step" in (norm / "output.log").read_text()
    assert results(root) == results(whole) and len(results(root)) == 2


@pytest.mark.full
def test_a_killed_worker_and_truncated_event_files_change_no_result(tmp_path: Path) -> None:
    file, whole, root = study(tmp_path, steps=6000), tmp_path / "whole", tmp_path / "runs"
    assert call(file, "--out", whole, "--only", "plain") == 0
    folder = root / "CartPole-v1" / "ppo" / "plain" / "seed0"
    first = begin(file, "--out", root, "--only", "plain")
    until(lambda: has_checkpoint(folder), first)
    pid = int((folder / ".lock").read_text().split()[1])
    os.kill(pid, signal.SIGKILL)
    until(lambda: (folder / "output.log").read_text().count("in a pool") == 2, first)
    os.killpg(first.pid, signal.SIGTERM)
    assert first.wait(100) == 75, first.printed()
    for events in folder.glob("events*"):
        os.truncate(events, max(0, events.stat().st_size - 7))
    assert call(file, "--out", root, "--only", "plain") == 0
    assert results(root) == results(whole) and len(results(root)) == 1


@pytest.mark.full
def test_a_run_whose_disk_is_full_fails_and_others_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files acts as a full disk on the run that reaches it, the wide one."""
    wide = {"flags": {"agent.network.hidden": [600, 600]}}
    file, root = study(tmp_path, arms={"plain": None, "wide": wide}), tmp_path
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1500000, 1500000)); "
    run = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from pliant.scripts.main import main; "
    code = f"{limit}{run}sys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", code, "sweep", str(file), "--out", str(root / "runs")]
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=100)
    assert done.returncode == 1 and "1 of 2 runs done" in done.stdout, done
    assert "cannot save a checkpoint" in done.stdout and "Make room and resume" in done.stdout
    assert call(file, "--out", root / "runs", "--status") == 0
    output = capsys.readouterr().out
    for text in ("1 failed", "failed: CartPole-v1/ppo/wide/seed0", "cannot save a checkpoint"):
        assert text in output
    assert call(file, "--out", root / "runs") == 0  # room was made
    assert sorted(sessions(root / "runs").values()) == [1, 2] and not list((root / "runs").rglob("FAILED"))


def test_every_run_gets_a_free_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep.slots(["0", "1"], 1) == ("0", "1")
    assert sweep.slots(["0", "1"], 0.5) == ("0", "1", "0", "1")
    assert sweep.slots(["0", "1", "2", "3", "4"], 2) == ("0,1", "2,3")
    for bad in (1.5, 3.0):
        with pytest.raises(ValueError, match="gpus-per-run"):
            sweep.slots(["0", "1"], bad)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert sweep.visible_gpus() == ["3", "5"]
    given: list[tuple[str | None, int]] = []

    class Process:
        exitcode, pid = 0, 1

        def __init__(self, target: Any, args: tuple[Any, str | None]) -> None:
            self.gpu = args[1]

        def start(self) -> None:
            given.append((self.gpu, len(given)))

        def join(self) -> None: ...
        def kill(self) -> None: ...

        @property
        def sentinel(self) -> Process:
            return self

    monkeypatch.setattr(pool.connection, "wait", lambda sentinels, timeout: sentinels[:1])
    team = pool._Workers(["3", "5"])
    monkeypatch.setattr(team, "context", type("C", (), {"Process": Process}))
    cells = load_study(study(tmp_path, seeds=2)).cells(tmp_path / "runs")
    outcomes = [pool.Outcome(pool.Job(cell.config)) for cell in cells]
    for outcome in outcomes[:2]:
        team.start(outcome)
    assert list(team.wait(0)) == outcomes[:1]  # its GPU is free again
    for outcome in outcomes[2:3]:
        team.start(outcome)
    assert [gpu for gpu, _ in given] == ["3", "5", "3"]


@pytest.mark.full
def test_a_task_of_a_slurm_array_does_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, root = study(tmp_path, seeds=3), tmp_path / "a b's runs"
    script = tmp_path / "array.sh"
    arguments = (file, "--out", root, "--executor", "slurm", "--emit", script, "--runs-per-job", 4, "--cpus", 2)
    assert call(*arguments, "--time", "01:00:00", "--partition", "gpu", "--gpus", 1) == 0
    text = script.read_text()
    for option in (
        "--array=0-1",
        "--time=01:00:00",
        "--partition=gpu",
        "--cpus-per-task=2",
        "--gpus=1",
        "--requeue",
        "--signal=B:TERM@120",
    ):
        assert f"#SBATCH {option}\n" in text
    (listed,) = tmp_path.glob("array-*.commands")
    before = listed.read_bytes()
    assert len(before.splitlines()) == 6
    # A script for other runs does not change the list that an array in the queue will read.
    assert call(*arguments, "--seeds", 1) == 0
    assert listed.read_bytes() == before and len([*tmp_path.glob("array-*.commands")]) == 2
    script.write_text(text)
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash", str(script)], env=ENVIRONMENT | path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done
    assert len(list(root.rglob("DONE"))) == 2  # the last two of six, four in a job
    assert call(file, "--out", root, "--status") == 0
    assert capsys.readouterr().out.startswith("tiny: 2 of 6 runs done, 4 waiting")


def test_a_slurm_job_saves_when_it_is_terminated(tmp_path: Path) -> None:
    file, root, script = study(tmp_path, steps=500_000), tmp_path / "runs", tmp_path / "array.sh"
    assert call(file, "--out", root, "--executor", "slurm", "--emit", script, "--only", "plain") == 0
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "0"}
    job = subprocess.Popen(["bash", str(script)], env=ENVIRONMENT | path, start_new_session=True)
    folder = root / "CartPole-v1" / "ppo" / "plain" / "seed0"
    until(lambda: has_checkpoint(folder))
    job.terminate()  # only the batch shell, as with `--signal=B:`
    assert job.wait(timeout=100) == 75
    assert "stopped and saved" in (folder / "output.log").read_text() and not (folder / "FAILED").exists()


def test_the_error_without_ray_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Missing:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "ray":
                raise ModuleNotFoundError("No module named 'ray'", name="ray")

    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert call(study(tmp_path), "--out", tmp_path / "runs", "--executor", "ray") == 2
    error = capsys.readouterr().err
    assert "needs Ray: pip install" in error and error.count("\n") == 1


@needs_ray
@pytest.mark.full
def test_ray_gives_the_results_of_the_pool(tmp_path: Path) -> None:
    bad = TINY["environments"] | {"broken": {"env": "CartPole-v9"}}
    file = study(tmp_path, environments=bad, arms={"plain": None})
    ray = popen(file, "--out", tmp_path / "ray", "--executor", "ray", "--jobs", 2)
    output, _ = ray.communicate(timeout=200)
    assert ray.returncode == 1, output  # the broken run, tried once
    assert "1 of 2 runs done" in output and "CartPole-v9" in output
    assert set(sessions(tmp_path / "ray").values()) == {1}
    assert call(file, "--out", tmp_path / "pool") == 1
    assert results(tmp_path / "ray") == results(tmp_path / "pool") and len(results(tmp_path / "ray")) == 1


@needs_ray
@pytest.mark.slow
def test_a_sweep_on_ray_saves_when_it_is_terminated(tmp_path: Path) -> None:
    file, root = study(tmp_path, steps=500_000), tmp_path / "runs"
    process = popen(file, "--out", root, "--executor", "ray", "--jobs", 1)
    folder = root / "CartPole-v1" / "ppo" / "plain" / "seed0"
    until(lambda: has_checkpoint(folder), process, 200)
    process.terminate()
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    assert "stopped and saved" in (folder / "output.log").read_text()


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_loss_of_a_ray_node_changes_no_result(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    file = study(tmp_path, seeds=2, steps=20_000)
    assert call(file, "--out", tmp_path / "pool", "--jobs", 2) == 0
    root = tmp_path / "ray"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = cluster.add_node(num_cpus=1)
        process = popen(file, "--out", root, "--executor", "ray", env={"RAY_ADDRESS": cluster.address})
        folders = [cell.folder for cell in load_study(file).cells(root)]
        until(lambda: sum(map(has_checkpoint, folders)) >= 2, process, 200)
        finished = {f for f in folders if (f / "DONE").exists()}
        cluster.remove_node(doomed, allow_graceful=False)
        output, _ = process.communicate(timeout=300)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, output
    assert results(root) == results(tmp_path / "pool") and len(results(root)) == 4
    counts = sessions(root)
    assert all(counts[str(f.relative_to(root))] == 1 for f in finished)
    assert any("continues from step" in (f / "output.log").read_text() for f in folders)

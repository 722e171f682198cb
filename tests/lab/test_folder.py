"""The folder of a run: a refused command leaves it unchanged, and errors name lost and moved files."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from refusals import contents, error_line

from pliant.agents import checkpoint
from pliant.agents.checkpoint import Checkpoints, saved_steps
from pliant.agents.run import Run
from pliant.agents.stopping import Asked
from pliant.common.files import WriteFailed, replacing, write_whole
from pliant.lab.commands.outputs import written
from pliant.lab.errors import BadInput
from pliant.lab.experiments import training as train
from pliant.scripts.main import main

LINE = shlex.split(
    "train --agent ppo --env CartPole-v1 --agent.rollout 64 --agent.epochs 1 --evaluate-episodes 3 --device cpu "
    "--threads 1 --log-every 64"
)
STEPS = 320
QUIET = ["--monitors", "none"]


def call(folder: Path | str, *arguments: str, steps: int = STEPS, monitors: Sequence[str] = QUIET) -> int:
    """`pliant train` in this process; the exit code."""
    return main([*LINE, "--run", str(folder), "--steps", str(steps), *monitors, *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done, with its DONE file."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert call(folder) == 0
    (folder / ".lock").unlink()  # as in a copy that was made without hidden files
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    shutil.copytree(finished, tmp_path / "runs" / "run")
    return tmp_path / "runs" / "run"


# A refused command changes nothing


def flip(path: Path, at: int = 10) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


REFUSED: dict[str, tuple[Callable[[Path], Any], list[str], int, str]] = {
    "a monitor": (lambda f: None, ["tandem"], 2, "tandem"),
    "no good checkpoint": (lambda f: flip(next(f.glob("checkpoints/*/agent.pt"))), ["none"], 1, "agent.pt"),
    "a bit of the record": (lambda f: flip(f / "metrics.jsonl"), ["none"], 1, "metrics.jsonl"),
    "no record": (lambda f: (f / "metrics.jsonl").unlink(), ["none"], 1, "metrics.jsonl is missing"),
    "versions": (lambda f: (f / "versions.json").write_text('[{"a": 1'), ["none"], 1, "versions.json is not JSON"),
    "other versions": (lambda f: (f / "versions.json").write_text("{}"), ["none"], 1, "versions.json must hold a list"),
    "no versions": (lambda f: (f / "versions.json").write_text(""), ["none"], 1, "versions.json is empty"),
    "DONE, torn": (lambda f: (f / "DONE").write_text('{"steps": 3'), ["none"], 1, "DONE is not JSON"),
    "DONE, empty": (lambda f: (f / "DONE").write_text(""), ["none"], 1, "DONE is empty"),
    "DONE, a text": (
        lambda f: (f / "DONE").write_text('{"steps": "3"}'),
        ["none"],
        1,
        "DONE does not contain the number",
    ),
    "DONE, a list": (lambda f: (f / "DONE").write_text("[3]"), ["none"], 1, "DONE must hold an object"),
    "DONE, no text": (lambda f: (f / "DONE").write_bytes(b"\xff\xfe"), ["none"], 1, "DONE is not JSON"),
    "DONE, nested": (lambda f: (f / "DONE").write_text("[" * 100_000), ["none"], 1, "DONE is not JSON"),
    "an empty configuration": (lambda f: (f / "config.yaml").write_text(""), ["none"], 2, "config.yaml is empty"),
    "no configuration": (lambda f: (f / "config.yaml").unlink(), ["none"], 2, "checkpoints, but no config.yaml"),
    "another run": (lambda f: None, ["none", "--agent.gamma", "0.5"], 2, "holds another run: --agent.gamma"),
    "no checkpoints": (lambda f: shutil.rmtree(f / "checkpoints"), ["none"], 2, "checkpoints/ was deleted"),
    "checkpoints emptied": (
        lambda f: shutil.rmtree(next(f.glob("checkpoints/step_*"))),
        ["none"],
        2,
        "checkpoints/ was deleted",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_command_leaves_the_folder_unchanged(
    what: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, arguments, code, message = REFUSED[what]
    damage(copy)
    (copy / "FAILED").write_text("killed by SIGKILL\n")
    before = contents(copy.parent)
    assert call(copy, steps=2 * STEPS, monitors=["--monitors", *arguments]) == code
    error = error_line(capsys)
    assert message in error and (what == "a monitor" or str(copy) in error)
    assert contents(copy.parent) == before


def test_after_a_refusal_the_right_command_continues_the_run(copy: Path, tmp_path: Path) -> None:
    assert call(copy, steps=2 * STEPS, monitors=["--monitors", "tandem"]) == 2
    assert call(copy, steps=2 * STEPS) == 0
    assert call(tmp_path / "straight", steps=2 * STEPS) == 0
    same = [(folder / "metrics.jsonl").read_bytes() for folder in (copy, tmp_path / "straight")]
    assert same[0] == same[1]
    assert json.loads((copy / "DONE").read_text())["steps"] >= 2 * STEPS


def test_a_run_from_before_a_parameter_was_renamed_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = ["--interventions", "redo(every=4, step_counts=per_tensor)"]
    folder = tmp_path / "run"
    assert call(folder, *specs) == 0
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("step_counts=per_tensor", "ages=shared"))
    assert "ages=shared" in config.read_text()
    capsys.readouterr()
    assert call(folder, "--interventions", "redo(every=4, ages=shared)", steps=2 * STEPS) == 2
    assert "'ages' is called 'step_counts' now; write redo(step_counts=per_tensor)" in error_line(capsys)
    assert call(folder, *specs, steps=2 * STEPS) == 0
    assert call(tmp_path / "straight", *specs, steps=2 * STEPS) == 0
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--monitors", "tandem"], "tandem"),
        ([*QUIET, "--interventions", "redo(tau=0.1, when='critic/nothing > 1')"], "critic/nothing"),
        ([*QUIET, "--agent", "dqn", "--agent.buffer-size", "1000000000000"], "fits"),
        ([*QUIET, "--env", "CartPole-v9"], "CartPole"),
    ],
)
def test_a_run_that_cannot_begin_leaves_nothing_on_the_disk(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [part for part in LINE if not ("--agent" in options and part.startswith("--agent"))]
    if "--agent" in options:
        line = ["train", "--env", "CartPole-v1", "--device", "cpu"]
    for place in ([], ["--run", "new/deep/run"]):
        assert main([*line, *options, "--steps", "100", *place]) == 2
        assert message in error_line(capsys)
        assert contents(tmp_path) == {}


# Paths of folders


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "file is a file, not a folder"),
        ("file/x/y", "file is a file, not a folder"),
        ("new/" + "x" * 300, "a name of 300 bytes"),
        ("new/" + "ü" * 140, "a name of 280 bytes"),
        ("new/" + "x/" * 2100, "a path of 4,"),
        ("new/" + ("x" * 200 + "/") * 21, "file systems allow 4,095"),
        ("loop/x", "cannot be used: Too many levels"),
    ],
)
def test_a_path_that_cannot_be_a_folder_is_named(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    before = contents(tmp_path)
    assert call(tmp_path / name) == 2
    error = error_line(capsys)
    assert error.startswith("error: --run ") and message in error and len(error) < 500
    assert "Choose another --run" in error or "file systems allow" in error
    assert contents(tmp_path) == before


def test_names_that_no_file_system_allows_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("~no-user-of-this-name/x") == 2
    assert (error := error_line(capsys)).startswith("error: --run ") and "~no-user-of-this-name/x" in error
    file = tmp_path / "config.yaml"
    file.write_text('run: "a\\0b"\n')
    assert main([*LINE, *QUIET, "--config", str(file)]) == 2
    assert "U+0000" in error_line(capsys)
    assert main([*LINE, *QUIET, "--config", "x" * 5000]) == 2
    assert error_line(capsys).startswith("error: --config")


def read_only(monkeypatch: pytest.MonkeyPatch, number: int = errno.EROFS) -> None:
    """Let every call that would change the disk fail, as on a read-only disk."""

    def refuse(*arguments: Any, **more: Any) -> Any:
        raise OSError(number, os.strerror(number), str(arguments[0]))

    opened, stream = os.open, Path.open

    def only_read(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse(path)
        return opened(path, flags, *more, **named)

    def only_read_stream(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        return refuse(path) if set(mode) & set("wax+") else stream(path, mode, *more, **named)

    monkeypatch.setattr(os, "open", only_read)
    monkeypatch.setattr(Path, "open", only_read_stream)
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "link", "truncate"):
        monkeypatch.setattr(os, name, refuse)


def test_a_finished_run_is_reported_as_done_from_a_read_only_disk(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_only(monkeypatch)
    assert call(copy) == 0
    assert "is already done" in capsys.readouterr().out
    assert call(copy, steps=2 * STEPS) == 2
    error = error_line(capsys)
    assert str(copy) in error and "Read-only file system" in error and "another --run" in error


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, 2), (errno.EACCES, 2), (errno.ENOSPC, 1)])
def test_a_new_folder_on_a_disk_that_cannot_be_written_is_refused_by_name(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        read_only(patch, number)
        assert call(tmp_path / "a" / "b") == code
    error = error_line(capsys)
    assert str(tmp_path / "a") in error and os.strerror(number) in error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_before_the_first_step_keeps_the_result_of_the_evaluation(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = (copy / "DONE").read_bytes()

    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = contents(copy)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert call(copy, steps=2 * STEPS) == 1
    assert "cannot write" in (error := error_line(capsys)) and "config.yaml" in error
    assert (copy / "DONE").read_bytes() == done
    assert {k: v[2] for k, v in contents(copy).items() if k != ".lock"} == {k: v[2] for k, v in before.items()}


def test_a_small_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_whole(file, "old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(WriteFailed, match=r"cannot write .*file: Input/output error") as failed:
        write_whole(file, "new")
    assert failed.value.errno == errno.EIO
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    monkeypatch.undo()
    write_whole(file, b"new")
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, "old")
    with pytest.raises(RuntimeError, match="encoder"), replacing(file) as scratch:
        scratch.write_text("half")
        raise RuntimeError("encoder")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    missing = tmp_path / "none" / "file"
    with pytest.raises(BadInput, match=r"^--out .* cannot be written: No such file or directory$"):  # noqa: SIM117
        with written(missing, "--out"):
            write_whole(missing, "x")


# Checkpoints that were deleted


def test_a_run_whose_checkpoints_were_deleted_is_refused_and_does_not_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run was stopped and saved, and is not done; only its file SAVED shows this."""
    folder = tmp_path / "run"
    turns = Run.turns

    def stopped(run: Run, steps: int, stop: Asked) -> Generator[None, None, bool]:
        yield from turns(run, steps // 2, stop)
        return False

    monkeypatch.setattr(Run, "turns", stopped)
    assert call(folder) == train.STOPPED
    monkeypatch.undo()
    for name in ("checkpoints", "replay"):
        shutil.rmtree(folder / name)
    (folder / ".lock").unlink()
    before = contents(folder)
    assert call(folder) == 2
    error = error_line(capsys)
    assert "no checkpoint" in error and "SAVED" in error and "move the folder away" in error and str(folder) in error
    assert contents(folder) == before
    # The way out that the error names.
    os.rename(folder, tmp_path / "away")
    assert call(folder) == 0


class Killed(BaseException):
    """No handler catches it."""


@pytest.mark.parametrize(("owner", "method"), [(Run, "save"), (Checkpoints, "_remove_leftovers")])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(
    owner: type, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(self: Any, *arguments: Any) -> None:
        raise Killed

    monkeypatch.setattr(Checkpoints, "_undo", lambda self, *arguments: None)
    monkeypatch.setattr(owner, method, kill)
    with pytest.raises(Killed):
        call(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").exists() and not saved_steps(tmp_path)
    assert call(tmp_path) == 0


# A folder that is moved during its run


def during(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Call `act` once the run has reached a step."""
    original, acted = Run.after_step, []

    def with_act(self: Run, before: int) -> None:
        if self.clock.steps >= step and not acted:
            acted.append(act())
        original(self, before)

    monkeypatch.setattr(Run, "after_step", with_act)


@pytest.mark.parametrize("every", ["64", "0"])
@pytest.mark.parametrize("put_there", ["nothing", "an empty folder", "another run"])
def test_a_run_whose_folder_is_renamed_saves_at_the_new_path_and_goes_on_from_there(
    put_there: str,
    every: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, moved, straight = tmp_path / "run", tmp_path / "moved", tmp_path / "straight"

    def rename() -> None:
        os.rename(run, moved)
        if put_there == "an empty folder":
            run.mkdir()
        if put_there == "another run":
            shutil.copytree(finished, run)

    with monkeypatch.context() as patch:
        during(patch, 160, rename)
        assert call(run, "--checkpoint-every", every) == 1
    error = error_line(capsys)
    assert f"{run} was moved to {moved}" in error and "saved there at step" in error
    there = contents(run) if run.exists() else None
    assert call(moved, "--checkpoint-every", every) == 0
    assert "continues from step " in capsys.readouterr().err
    assert call(straight) == 0
    assert (moved / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert (moved / "DONE").exists()
    expected = {"nothing": None, "an empty folder": {}}
    if put_there in expected:
        assert there == expected[put_there]
    else:
        assert there is not None and {k: v[2] for k, v in there.items()} == {
            k: v[2] for k, v in contents(finished).items()
        }


def test_a_folder_that_is_moved_during_a_save_is_reported_and_the_run_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    made = os.mkdir

    def rename(path: Any, *more: Any) -> None:
        if str(path).endswith("step_000000000128.tmp") and not moved.exists():
            os.rename(run, moved)
        made(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", rename)
        assert call(run, "--checkpoint-every", "64") == 1
    assert f"was moved to {moved}" in error_line(capsys)
    assert saved_steps(moved)[-1] == 128 and not run.exists()
    assert call(moved) == 0


def test_a_folder_that_is_moved_during_the_last_evaluation_is_reported_and_finished_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    evaluate = train._evaluate

    def rename(*arguments: Any) -> Any:
        os.rename(run, moved)
        return evaluate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_evaluate", rename)
        assert call(run) == 1
    assert f"was moved to {moved}" in error_line(capsys)
    assert not run.exists() and not (moved / "DONE").exists()
    assert call(moved) == 0
    assert (moved / "DONE").exists()


def test_a_folder_that_is_deleted_during_the_run_is_reported_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    during(monkeypatch, 100, lambda: shutil.rmtree(run))
    assert call(run) == 1
    assert "was moved, replaced or deleted" in error_line(capsys)
    assert not run.exists()


def test_a_moved_folder_is_reported_on_a_system_that_does_not_give_its_new_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_place_of", lambda directory: None)
        during(patch, 160, lambda: os.rename(run, moved))
        assert call(run, "--checkpoint-every", "64") == 1
    assert f"{run} was moved, replaced or deleted" in error_line(capsys)
    assert saved_steps(moved) and not run.exists()
    assert call(moved) == 0


def test_a_deleted_lock_is_taken_again_unless_another_process_has_taken_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        during(patch, 100, lambda: (run / ".lock").unlink())
        assert call(run) == 0
    assert (run / ".lock").exists()
    # Another process has taken the lock first.
    other: list[Any] = []

    def steal() -> None:
        (tmp_path / "second" / ".lock").unlink()
        other.append(checkpoint.RunLock(tmp_path / "second"))

    during(monkeypatch, 100, steal)
    assert call(tmp_path / "second") == 1
    assert "is in use by" in error_line(capsys)
    other[0].release()

"""The same command, however it is called: `pliant NAME`, `python scripts/NAME.py`, `python -m pliant.scripts NAME`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import outcome_of

from pliant.scripts import main as command

SCRIPTS = Path(command.__file__).resolve().parent
FILES = {name: SCRIPTS / f"{name}.py" for name in command.COMMANDS} | {"inspect": SCRIPTS / "inspection.py"}


def python(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """A new interpreter, with what it prints."""
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300)


def said_by_pliant(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and standard output of `pliant`, in this process."""
    capsys.readouterr()
    try:
        code = command.main(words)
    except SystemExit as done:
        code = int(done.code or 0)
    return code, capsys.readouterr().out


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed has the width of the terminal, which processes without one take from here."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_is_a_file_that_runs(name: str) -> None:
    code, said = outcome_of("--help", file=FILES[name])
    assert code == 0 and said.startswith(f"usage: pliant {name}"), said
    assert (code, said) == outcome_of(name, "--help")


@pytest.mark.parametrize("name", command.COMMANDS)
def test_a_wrong_argument_is_refused_by_every_file_as_by_the_command(name: str) -> None:
    code, said = outcome_of("--no-such-flag", file=FILES[name])
    assert (code, said) == outcome_of(name, "--no-such-flag")
    assert code == 2


@pytest.mark.full
def test_the_folder_and_the_package_are_the_command_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    expected = said_by_pliant(capsys, "drifts", "friction")
    for way in ((SCRIPTS,), (SCRIPTS / "main.py",), ("-m", "pliant.scripts")):
        done = python(*way, "drifts", "friction")
        assert (done.returncode, done.stdout, done.stderr) == (*expected, "")


@pytest.mark.full
def test_claims_as_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    done = python(SCRIPTS / "claims.py", "list", "random_labels")
    assert (done.returncode, done.stdout) == said_by_pliant(capsys, "claims", "list", "random_labels")
    assert done.returncode == 0 and "random_labels" in done.stdout and done.stderr == ""


@pytest.mark.full
def test_fork_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its workers import the file, too, as every process of a pool imports the script that started the pool."""
    for folder in ("file", "command"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "file")
    line = ["--agent", "dqn", "--env", "CartPole-v1", "--steps", "300", "--run", "run", "--threads", "1"]
    small = ["--agent.learning-starts", "64", "--agent.buffer-size", "300", "--agent.network.hidden", "8"]
    code, said = outcome_of("train", *line, *small, "--evaluate-episodes", "0", "--monitors", "none")
    assert code == 0, said
    shutil.copytree("run", tmp_path / "command" / "run")
    fork = ["run", "--at", "latest", "--with", "shrink_perturb", "--for", "100", "--jobs", "1"]
    done = python(SCRIPTS / "fork.py", *fork)
    monkeypatch.chdir(tmp_path / "command")
    assert (done.returncode, done.stdout) == said_by_pliant(capsys, "fork", *fork), done.stderr
    assert done.returncode == 0
    arms = [f"run/forks/300/{arm}/seed0/metrics.jsonl" for arm in ("control", "shrink_perturb")]
    for arm in arms:
        assert (tmp_path / "file" / arm).read_bytes() == (tmp_path / "command" / arm).read_bytes()


def test_a_file_hides_no_module_of_the_user(tmp_path: Path) -> None:
    """`scripts` has modules with everyday names, and Python puts a script's folder before everything else."""
    (tmp_path / "report.py").write_text("print('mine')\n")
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
sys.argv = ["scripts/drifts.py", "friction"]
from pliant.scripts.main import script
script("drifts")
import report
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert done.returncode == 0 and done.stdout.endswith("mine\n"), done.stderr

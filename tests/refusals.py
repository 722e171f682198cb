"""Helpers for tests of refused commands: the one line of the error, and the content of a folder before and after."""

from __future__ import annotations

from pathlib import Path

import pytest


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The line of the error on stderr; fails unless there is exactly one."""
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, errors
    return errors[0]


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in a folder, hidden files and folders too: inode, time of a file's last change, and its bytes."""
    entries = {}
    for path in folder.rglob("*"):
        status, is_file = path.lstat(), path.is_file()
        data = path.read_bytes() if is_file else b""
        entries[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns if is_file else 0, data)
    return entries

"""Reading and writing the small files of a run (`DONE`, `versions.json`, `fork.json`).

Reading checks a file's content; errors name the file. Writing is atomic.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

DONE = "DONE"
Kind = TypeVar("Kind", dict[str, Any], list[Any])
_KINDS: dict[type, str] = {dict: "an object", list: "a list"}


class FileDamaged(RuntimeError):
    """A file of a run has invalid content. The message names the file and what the user can do."""


class WriteFailed(OSError):
    """A file could not be written. An earlier file of the same name is unchanged."""


def read_json(file: Path, kind: type[Kind], way_out: str) -> Kind | None:
    """The content of a JSON file, or None if there is no such file.

    Args:
        file: The file.
        kind: The required type of the outermost value: dict or list.
        way_out: What the user can do about a damaged file; the end of the message.

    Raises:
        FileDamaged: The file cannot be read, is not JSON, or holds another type of value.
    """
    try:
        data = file.read_bytes()
        content = json.loads(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FileDamaged(f"{file} cannot be read: {error.strerror}. {way_out}") from error
    except (ValueError, RecursionError) as error:
        state = f"is not JSON ({error})" if data.strip() else "is empty"
        raise FileDamaged(f"{file} {state}. {way_out}") from error
    if not isinstance(content, kind):
        raise FileDamaged(f"{file} must hold {_KINDS[kind]}, not {type(content).__name__}. {way_out}")
    return content


def steps_done(folder: Path) -> int | None:
    """Environment steps of a finished run, read from `DONE` in its folder; None if the run is not finished.

    Raises:
        FileDamaged: `DONE` is not a JSON object with a number of steps.
    """
    file = folder / DONE
    way_out = "Delete it; the same command then continues from the last checkpoint"
    content: dict[str, Any] | None = read_json(file, dict, way_out)
    if content is None:
        return None
    steps = content.get("steps")
    if not is_count(steps):
        raise FileDamaged(f"{file} does not contain the number of steps. {way_out}")
    return steps


def is_count(value: object) -> TypeGuard[int]:
    """True for an integer that is not negative; False for a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file atomically and durably: after a kill or a failure at any moment, the old or the new file is there.

    Raises:
        WriteFailed: The file cannot be written (the disk is full or read-only, for example).
    """
    with replacing(file) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """For writers that need a path: yields a temporary path, which replaces `file` atomically after the block.

    Raises:
        WriteFailed: The temporary file cannot be written, or cannot replace `file`.
    """
    scratch = file.with_name(file.name + ".tmp")
    try:
        yield scratch
        _sync(scratch, os.O_RDWR)
        os.replace(scratch, file)
        sync_folder(file.parent)
    except BaseException as error:
        with suppress(OSError):  # this may fail on the same disk; the first error is reported below
            scratch.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        failed = WriteFailed(f"cannot write {file}: {error.strerror}")
        failed.errno = error.errno
        raise failed from error


def write_durably(file: Path, content: bytes | memoryview) -> None:
    """Write a file and wait until its content, though not its name, is on the disk."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    view = memoryview(content)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    _sync(path, os.O_RDONLY)


def _sync(path: Path, access: int) -> None:
    descriptor = os.open(path, access)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

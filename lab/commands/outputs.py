"""Output files and folders of a command. They are checked before the work starts, not after hours of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...common.files import WriteFailed
from ..errors import BadInput


def file_for(path: Path, flag: str) -> Path:
    """The path, if a file can be written there; its folder must exist (BadInput, which begins with the flag)."""
    with _named(path, flag):
        if path.is_dir():
            raise BadInput(f"{flag} {path} is a folder: name a file")
        if not path.parent.exists():
            raise BadInput(f"{flag} {path}: there is no folder {path.parent}; make it, or name another file")
        if not path.parent.is_dir():
            raise BadInput(f"{flag} {path}: {path.parent} is a file, not a folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise BadInput(f"{flag} {path} cannot be written: no permission; name another file")
    return path


def folder_for(path: Path, flag: str) -> Path:
    """The path, if it is a folder or can be created as one (BadInput, which begins with the flag). Creates nothing."""
    with _named(path, flag):
        if path.exists() and not path.is_dir():
            raise BadInput(f"{flag} {path} is a file, not a folder")
        above = next(place for place in (path, *path.parents) if place.exists())
        if not above.is_dir():
            raise BadInput(f"{flag} {path}: {above} is a file, not a folder")
        if not os.access(above, os.W_OK):
            raise BadInput(f"{flag} {path} cannot be written: no permission; name another folder")
    return path


@contextmanager
def written(path: Path, flag: str) -> Iterator[None]:
    """Wraps the writing itself: errors of the system name the flag and the path (BadInput)."""
    try:
        yield
    except OSError as error:
        reason = error.__cause__ if isinstance(error, WriteFailed) else error
        raise BadInput(f"{flag} {path} cannot be written: {getattr(reason, 'strerror', None) or error}") from None


@contextmanager
def _named(path: Path, flag: str) -> Iterator[None]:
    """Turns invalid file names (too long, a null byte) into an error that names the flag."""
    try:
        yield
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) <= 60 else f"{str(path)[:57]}..."
        raise BadInput(f"{flag} {shown!r} cannot be written: {getattr(error, 'strerror', None) or error}") from None

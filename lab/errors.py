"""Errors that the user can fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BadInput(ValueError):
    """What was asked for cannot be run. The message is for the user; the exit code is 2."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Around the setting up of a run: what is wrong here is wrong with what the user gave, and becomes `BadInput`.

    Inside it environments and agents are built from names and settings. Outside it a ValueError is a bug of ours and
    keeps its traceback.
    """
    try:
        yield
    except BadInput:
        raise
    except (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise BadInput(f"{error.filename}: {error.strerror}") from error
        raise BadInput(str(error)) from error

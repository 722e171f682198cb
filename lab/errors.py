"""Errors that the user can fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BadInput(ValueError):
    """The request cannot be carried out. The message is for the user; the exit code is 2."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Wraps the setup of a run: errors within are mistakes in the user's input and become `BadInput`.

    Within it, environments and agents are built from names and settings. Outside of it, a ValueError is a bug and keeps
    its traceback.
    """
    try:
        yield
    except BadInput:
        raise
    except (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise BadInput(f"{error.filename}: {error.strerror}") from error
        raise BadInput(str(error)) from error

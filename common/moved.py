"""Errors for public names that have moved or changed: the message gives the new name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn


def moved(module: str, names: Mapping[str, str], otherwise: str | None = None) -> Callable[[str], Any]:
    """The `__getattr__` of a module that has lost public names.

    Args:
        module: The module's name (`__name__`).
        names: New dotted path by old name.
        otherwise: The module that holds all other names, for a module that has moved as a whole.

    Raises:
        ImportError: (by the returned function) The name has moved. `from module import name` shows the message, which
            an `AttributeError` would lose.
        AttributeError: (by the returned function) The module has never had this name.
    """

    def missing(name: str) -> NoReturn:
        special = name.startswith("__") and name.endswith("__")
        new = names.get(name, f"{otherwise}.{name}" if otherwise is not None and not special else None)
        if new is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        raise ImportError(f"{module}.{name} has moved: use {new}", name=module)

    return missing


def renamed(owner: str, names: Mapping[str, str]) -> Callable[[Any, str], Any]:
    """The `__getattr__` of a class whose public attributes have new names.

    Args:
        owner: The name of the class.
        names: New name by old name.

    Raises:
        AttributeError: (by the returned function) The attribute has a new name, or does not exist.
    """

    def missing(self: Any, name: str) -> NoReturn:
        if name in names:
            raise AttributeError(f"{owner}.{name} has a new name: use {owner}.{names[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    return missing

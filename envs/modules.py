"""User-defined environments: `module:Name-v0` imports the module, which registers `Name-v0` with gymnasium.

The module is searched as by `python -m`: first in the current folder, and then on Python's module path.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from difflib import get_close_matches
from typing import Any

import gymnasium

from .errors import UnknownEnvironment
from .spelling import bare

_registered: dict[str, set[str]] = {}
"""The ids that each module registered when it was imported here."""


class FailedImport(UnknownEnvironment):
    """The module of an environment cannot be imported; the message names the cause."""


class MissingModule(FailedImport):
    """The module does not exist in the folders searched."""


def split(name: str) -> tuple[str, str]:
    """The module of a name (or ""), and the rest."""
    module, colon, rest = name.partition(":")
    return (module, rest) if colon else ("", name)


def imported(name: str) -> str:
    """Import the module of a name, if it has one; return the rest, an id that gymnasium knows.

    The current folder becomes the first entry of Python's module path, as by `python -m`; with `python -P` it is not
    added.

    Raises:
        UnknownEnvironment: The name is not written as `module:Name-v0`, or the module cannot be imported.
    """
    module, rest = split(name)
    if not module and rest == name:
        return name
    if module.endswith(".py") or not all(map(str.isidentifier, module.split("."))):
        raise UnknownEnvironment(
            f"{name}: {module!r} is not the name of a module; write dots for slashes and no .py, "
            "such as my_project.envs:Name-v0"
        )
    if not rest or ":" in rest:
        raise UnknownEnvironment(f"{name} is not written as module:Name-v0")
    known = set(gymnasium.registry)
    load(module, name)
    _registered.setdefault(module, set()).update(set(gymnasium.registry) - known)
    return rest


def load(module: str, name: str) -> Any:
    """Import a module of the environment `name` (FailedImport); reports every exception, including `SystemExit`."""
    here = os.getcwd()
    added = not (sys.flags.safe_path or "" in sys.path or here in sys.path)
    if added:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if added and here in sys.path:
            sys.path.remove(here)
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise MissingModule(
                f"{name}: {_line(error)}. Python searched the current folder, {here}, and its module path; "
                "change to the folder that contains it, or add that folder to PYTHONPATH"
            ) from error
        what = f"it calls sys.exit({error.code!r})" if isinstance(error, SystemExit) else _line(error, named=True)
        raise FailedImport(f"{name}: the module {module} cannot be imported: {what}{_place(error)}") from error


def not_registered(name: str) -> UnknownEnvironment:
    """The error for an id that an imported module has not registered."""
    module, rest = split(name)
    holder = sys.modules[module]
    where = f"{module} ({getattr(holder, '__file__', None) or 'a folder without __init__.py'})"
    own = sorted(id for id in gymnasium.registry if id in _registered.get(module, ()) or _is_of(id, module))
    near = [id for key in get_close_matches(bare(rest), map(bare, own), n=1) for id in own if bare(id) == key]
    given = getattr(holder, rest, None)
    if near:
        hint = f"did you mean {_listed(module, near, ' or ')}?"
    elif inspect.isclass(given) and issubclass(given, gymnasium.Env):
        return UnknownEnvironment(
            f'{name}: {rest} is a class. Let {where} call gymnasium.register("{rest}-v0", entry_point="{name}"), and '
            f"name it {name}-v0"
        )
    elif own:
        hint = f"it registers {_listed(module, own[:8], ', ')}"
    else:
        return UnknownEnvironment(
            f"{name}: {where} registers no environment. Let it call "
            f'gymnasium.register("{rest}", entry_point="{module}:ClassName")'
        )
    return UnknownEnvironment(f"{name}: {where} registers no {rest}; {hint}")


def check_entry_point(name: str, spec: Any) -> None:
    """Refuse an environment whose class is missing from the module of its registration."""
    if not isinstance(spec.entry_point, str):
        return
    module, _, attribute = spec.entry_point.partition(":")
    if not hasattr(load(module, name), attribute):
        raise UnknownEnvironment(
            f"{name} is registered with entry_point={spec.entry_point!r}, and {module} has no {attribute}"
        )


def sources(name: str) -> dict[str, str]:
    """Module → file, for the modules of an environment that has been created; empty for a name without a module."""
    module, rest = split(name)
    if not module:
        return {}
    entry = gymnasium.spec(rest).entry_point
    made = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", module)
    files = {each: getattr(sys.modules.get(each), "__file__", None) for each in (module, made)}
    return {each: os.path.abspath(file) for each, file in files.items() if file}


def _is_of(id: str, module: str) -> bool:
    entry = gymnasium.registry[id].entry_point
    made = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "")
    return f"{made}.".startswith(f"{module}.")


def _listed(module: str, ids: list[str], between: str) -> str:
    return between.join(f"{module}:{id}" for id in ids)


def _line(error: BaseException, named: bool = False) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:300]}…"
    return ": ".join(filter(None, [type(error).__name__ if named else "", text]))


def _place(error: BaseException) -> str:
    """The location where an import failed, as far as the traceback shows it."""
    if isinstance(error, SyntaxError):
        return ""  # its message contains the location
    ours = ("<frozen", os.path.dirname(importlib.__file__), __file__)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""

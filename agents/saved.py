"""Files of torch that a user names: read without running code from them, and refused in words of our own."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import torch


class BadFile(ValueError):
    """A file that was given as a saved agent, or as weights, is none. The message is one line that names the file."""


def read_torch(path: str | os.PathLike[str]) -> Any:
    """The content of a file that `torch.save` wrote: tensors, numbers, texts, lists and dictionaries of these.

    Raises:
        BadFile: There is no such file, it is no file of torch, it is damaged, or it holds other Python objects.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            first = file.read(4)
    except FileNotFoundError:
        raise BadFile(f"there is no file {path}") from None
    except OSError as error:
        what = "it is a folder" if error.errno == errno.EISDIR else error.strerror
        raise BadFile(f"{path} cannot be read: {what}") from None
    except ValueError as error:  # a name that no file can have
        raise BadFile(f"{str(path)!r} cannot be read: {error}") from None
    if not first:
        raise BadFile(f"{path} cannot be read as a file of torch: it is empty")
    if not first.startswith((b"PK", b"\x80")):
        raise BadFile(f"{path} cannot be read as a file of torch: torch did not write it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on kinds of files that it refuses just after
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch, zipfile and pickle make of it
        raise BadFile(f"{path} cannot be read as a file of torch: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why torch refused a file. Its own text is for programmers, and advises to run the code in the file."""
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript program; save the state dict of the module instead"
    if "Unsupported" in text or "WeightsUnpickler" in text:
        return (
            "it holds Python objects beside tensors, numbers and texts, and loading them could run code; save the "
            "state dict of the module instead"
        )
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    return "it is damaged or incomplete"


def read_agent(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a file that `Agent.save` wrote; `Agent.from_content` makes the agent of it.

    Raises:
        BadFile: As `read_torch`, or the file holds no agent.
    """
    content = read_torch(path)
    check_is_agent(content, path)
    return dict(content)


def check_is_agent(content: Any, path: str | os.PathLike[str]) -> None:
    """Refuse what is no saved agent, or not all of one (BadFile)."""
    if not isinstance(content, dict) or not isinstance(content.get("agent"), str):
        raise BadFile(f"{path} holds no agent")
    for name, kind in _PARTS.items():
        if not isinstance(content.get(name), kind):
            raise BadFile(f"{path} holds no complete agent: its part {name!r} is missing or no {kind.__name__}")


_PARTS: dict[str, type[Any]] = {
    "format": int,
    "interventions": list,
    "observation": dict,
    "action": dict,
    "config": dict,
    "seed": int,
    "state": dict,
}

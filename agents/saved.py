"""Reading of torch files that a user names, without running code from them and with clear errors."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import torch


class BadFile(ValueError):
    """A given file is not a saved agent, or does not hold weights. The message is one line that names the file."""


def read_torch(path: str | os.PathLike[str]) -> Any:
    """The content of a file that `torch.save` wrote: tensors, numbers, strings, lists and dictionaries of these.

    Raises:
        BadFile: The file does not exist, is not a torch file, is damaged, or holds other Python objects.
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
    except ValueError as error:  # not a valid file name
        raise BadFile(f"{str(path)!r} cannot be read: {error}") from None
    if not first:
        raise BadFile(f"{path} cannot be read as a file of torch: it is empty")
    if not first.startswith((b"PK", b"\x80")):
        raise BadFile(f"{path} cannot be read as a file of torch: torch did not write it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about kinds of files just before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle raise many types
        raise BadFile(f"{path} cannot be read as a file of torch: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The reason why torch refused a file. torch's own message advises to run the code in the file."""
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
    """The content of a file that `Agent.save` wrote; `Agent.from_content` builds the agent from it.

    Raises:
        BadFile: As `read_torch`, or the file does not hold an agent.
    """
    content = read_torch(path)
    check_is_agent(content, path)
    return dict(content)


def check_is_agent(content: Any, path: str | os.PathLike[str]) -> None:
    """Check that `content` is that of a complete saved agent.

    Raises:
        BadFile: It is not.
    """
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

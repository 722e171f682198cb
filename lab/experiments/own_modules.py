"""Records the file of a user's own environment module, so that a run continues with the same code.

A module is located by its name, and the same name may lead to another file later, for example from another current
folder. Commands that continue or measure a run refuse another file of that name with other content. An edited version
of the same file is accepted, like a new version of any package; `versions.json` records both.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ...envs import modules
from ..errors import BadInput, bad_input

RECORD = "versions.json"


def described(env: str) -> dict[str, dict[str, str]]:
    """File and digest of the modules that an environment comes from; empty if it does not come from a user's module."""
    return {
        name: {"file": file, "blake2b": hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()}
        for name, file in modules.sources(env).items()
        if Path(file).is_file()
    }


def recorded(place: Path) -> dict[str, dict[str, str]]:
    """The modules recorded by the last session of the run at a path, or above it; empty if none can be read."""
    file = next((folder / RECORD for folder in (place, *place.parents) if (folder / RECORD).exists()), None)
    try:
        return dict(json.loads(file.read_text())[-1]["modules"]) if file is not None else {}
    except (ValueError, LookupError, TypeError):
        return {}


def refuse_others(place: Path, env: str) -> None:
    """Refuse to use a run with modules other than its own (BadInput).

    Args:
        place: The run's folder, or a checkpoint in it.
        env: Its environment.
    """
    if not modules.split(env)[0] or not (there := recorded(place)):
        return
    try:
        with bad_input():
            modules.imported(env)
            here = described(env)
    except BadInput as error:
        if not isinstance(error.__cause__, modules.MissingModule):
            raise
        raise BadInput(
            f"{error}. {place} was made with {' and '.join(each['file'] for each in there.values())}"
        ) from error
    for name, was in there.items():
        now = here.get(name, was)
        if now["blake2b"] != was["blake2b"] and now["file"] != was["file"]:
            raise BadInput(
                f"{place} was made with the module {name} in {was['file']}, but here {name} is another module, "
                f"{now['file']}: change to the folder of the first, or add that folder to PYTHONPATH"
            )

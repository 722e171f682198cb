"""The claims that come with pliant, and those in a user's files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...common.specs import shorten
from ...interventions.core.spec import did_you_mean
from ..errors import BadInput
from ..experiments import study
from ..experiments.study import Claim
from .checks import CHECKS

BUILT_IN = Path(__file__).resolve().parents[2] / "claims"
"""The folder of the claims that come with pliant, in a checkout and in an installed package."""


def find(names: Iterable[str] = ()) -> list[Claim]:
    """Claims by name, or by the path of a file; without names, all that come with pliant (BadInput)."""
    known = {path.stem: path for path in sorted(BUILT_IN.glob("*.yaml"))}
    paths: list[Path] = []
    for name in names:
        if name in known:
            paths.append(known[name])
        elif name.endswith((".yaml", ".yml")) or "/" in name:
            paths.append(Path(name).expanduser())
        else:
            hint = did_you_mean(name, known)
            raise BadInput(f"unknown claim {name!r}.{hint} `pliant claims` lists them; a file is given by its path")
    return [load_claim(path) for path in dict.fromkeys(paths or known.values())]


def load_claim(path: Path) -> Claim:
    """The claim in a file (BadInput, one line that begins with the file; nothing is run or built)."""
    claim = study.load_claim(path)
    if claim.kind == "check" and claim.check not in CHECKS:
        hint = did_you_mean(claim.check, CHECKS)
        raise BadInput(f"{path}: unknown check {shorten(claim.check)}.{hint} known checks: {', '.join(CHECKS)}")
    return claim

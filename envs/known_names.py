"""Names of environments, and the closest names to an unknown one."""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib.util import find_spec

from . import atari, minatar, streams
from .errors import UnknownEnvironment
from .spelling import bare


def names() -> list[str]:
    """Every environment that `make` knows here, sorted; imports gymnasium and ale_py."""
    import gymnasium

    known = set()
    for name, spec in gymnasium.registry.items():
        dropped = getattr(spec.entry_point, "__name__", "").startswith(
            "_raise_"
        )  # removed from gymnasium: creating it only raises
        if not dropped and spec.entry_point != "ale_py.env:AtariEnv" and not name.startswith(("phys2d/", "tabular/")):
            known.add(name)
    return sorted(known | set(atari.names()) | set(minatar.names()) | set(streams.names()))


def unknown(name: str) -> UnknownEnvironment:
    """The error for a name that belongs to no suite."""
    older = re.fullmatch(r"(\w+?)(?:-ram)?(?:NoFrameskip|Deterministic)?-v[04]", name)
    if older and (modern := f"ALE/{older[1]}-v5") in atari.names():
        sticky = "EnvConfig(sticky_actions=0)" if name.endswith("-v4") else "EnvConfig()"
        return UnknownEnvironment(f"{name} is an older id of an Atari game: use {modern} with {sticky}")
    known = names()
    # Compare without namespace and version, so that a bare name or a wrong version still matches.
    by_bare: dict[str, list[str]] = {}
    for n in known:
        by_bare.setdefault(bare(n), []).append(n)
    near = [n for key in get_close_matches(bare(name), by_bare, n=8, cutoff=0.6) for n in reversed(by_bare[key])]
    namespace = name.split("/")[0] if "/" in name else None
    if namespace and any(n.startswith(f"{namespace}/") for n in near):
        near = [n for n in near if n.startswith(f"{namespace}/")]
    near = near[:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `pliant.envs.names()` lists all"
    if name.startswith("MinAtar/") and find_spec("minatar") is None:
        hint += f" ({minatar.HOW_TO_INSTALL})"
    return UnknownEnvironment(f"unknown environment {name}{hint}")

"""Pure edits of an agent's frozen configuration."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any


def edit(config: Any, intervention: str, **changes: Any) -> Any:
    """The configuration with fields changed.

    Raises:
        ValueError: This agent has no such field. The message begins with `intervention`.
    """
    known = {f.name for f in fields(config)}
    if missing := [name for name in changes if name not in known]:
        raise ValueError(f"{intervention} sets {missing[0]}, which {agent_name(config)} does not have")
    return replace(config, **changes)


def edit_network(config: Any, component: str, intervention: str, **changes: Any) -> Any:
    """The configuration with the network of a component changed (ValueError if there is no such component)."""
    parts = config.parts
    if component not in parts:
        raise ValueError(f"{intervention}: {agent_name(config)} has no {component}; it has {', '.join(parts)}")
    name = parts[component][0]
    return replace(config, **{name: replace(getattr(config, name), **changes)})


def agent_name(config: Any) -> str:
    """The name of the agent to which a configuration belongs."""
    return type(config).__name__.removesuffix("Config").lower()

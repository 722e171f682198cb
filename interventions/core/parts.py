"""The parts of an agent that a word can name, and what an intervention needs to know of them.

    all         every network
    critic      a component: `critic`, `actor`
    encoder     what turns observations into features: the convolutions of the critic
    head        everything but the encoder, in every component
    last        the output layers
    critic.head.layers.*    layers by their qualified name, with wildcards

`survey` measures an agent once, when it is built; whatever else can describe itself in the same way (`attach`) can be
operated on by the same methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from ...agents.agent import Agent
from ...agents.networks import Layer, all_layers, hidden_layers
from .spec import did_you_mean
from .units import UnitGraph, agent_graph

ENCODER = "critic.encoder."


@dataclass(frozen=True)
class Survey:
    """What an agent is made of, by qualified layer name (`critic.head.layers.0`)."""

    name: str  # of the agent, for errors
    layers: dict[str, Layer]  # every layer that learns, in the order in which they were drawn
    twins: dict[str, Layer]  # the target network's layer of the same place, where there is one
    graph: UnitGraph
    taps: dict[str, list[str]]  # component → its hidden layers in the order of the trace

    def outputs(self, activations: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """The outputs that an update returned, by layer."""
        return {
            name: h
            for component, trace in activations.items()
            for name, h in zip(self.taps[component], trace, strict=True)
        }


def survey(agent: Agent) -> Survey:
    """Measure an agent."""
    if isinstance(own := getattr(agent, "survey", None), Survey):
        return own
    layers: dict[str, Layer] = {}
    twins: dict[str, Layer] = {}
    for name, component in agent.components.items():
        layers |= {f"{name}.{key}": layer for key, layer in all_layers(component.online).items()}
        if component.target is not None:
            twins |= {f"{name}.{key}": layer for key, layer in all_layers(component.target).items()}
    taps = {name: [f"{name}.{key}" for key in hidden_layers(c.online)] for name, c in agent.components.items()}
    return Survey(agent.name, layers, twins, agent_graph(agent), taps)


def chosen_layers(found: Survey, parts: str | Iterable[str], who: str) -> list[str]:
    """The names of the layers that `parts` means, in the order in which they were drawn.

    Raises:
        ValueError: A part that this agent does not have; the message names `who` asked.
    """
    wanted = (parts,) if isinstance(parts, str) else tuple(parts)
    names: set[str] = set()
    for part in wanted:
        matching = {name for name, layer in found.layers.items() if _matches(part, name, layer)}
        if not matching:
            known = [part for part in known_parts(found) if part != "all"]
            hint = did_you_mean(part, [*known, *found.layers])
            raise ValueError(
                f"{who}: this {found.name} has no {part!r}.{hint} It has {', '.join(known)}, and "
                f"layers such as {next(iter(found.layers), 'none')}"
            )
        names |= matching
    return [name for name in found.layers if name in names]


def known_parts(found: Survey) -> list[str]:
    """The parts that an agent has."""
    components = dict.fromkeys(name.partition(".")[0] for name in found.layers)
    return [
        part
        for part in ("all", *components, "encoder", "head", "last")
        if any(_matches(part, name, layer) for name, layer in found.layers.items())
    ]


def edited(parts: str | Iterable[str]) -> tuple[str, ...]:
    """What whoever changes these parts edits: the claim that protects the critics' heads, or nothing."""
    wanted = (parts,) if isinstance(parts, str) else tuple(parts)
    outside = all(part in ("encoder", "actor") or part.startswith((ENCODER, "actor.")) for part in wanted)
    return () if outside else (HEADS,)


HEADS = "the heads of the critic"


def _matches(part: str, name: str, layer: Layer) -> bool:
    in_encoder = name.startswith(ENCODER)
    if part == "all":
        return True
    if part == "encoder":
        return in_encoder
    if part == "head":
        return not in_encoder
    if part == "last":
        return layer.is_output and not in_encoder
    return name.partition(".")[0] == part or fnmatchcase(name, part)

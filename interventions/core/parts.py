"""The parts of an agent that an intervention spec can name, and the layers and units in them.

    all         every network
    critic      a component: `critic`, `actor`
    encoder     the layers that turn observations into features: the convolutions of the critic
    head        everything but the encoder, in every component
    last        the output layers
    critic.head.layers.*    layers by their qualified name, with wildcards

`survey` measures an agent once, when it is built. An object that provides its own `Survey` (as `attach` does) works
with the same methods.
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
    """The layers and units of an agent, by qualified layer name (`critic.head.layers.0`)."""

    name: str  # of the agent, for error messages
    layers: dict[str, Layer]  # every trained layer, in the order of initialisation
    copies: dict[str, Layer]  # the corresponding layers of target networks, if there are any
    graph: UnitGraph
    traced: dict[str, list[str]]  # component → its hidden layers, in the order of the trace

    def outputs(self, activations: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """The outputs that an update returned, by layer."""
        return {
            name: h
            for component, trace in activations.items()
            for name, h in zip(self.traced[component], trace, strict=True)
        }


def survey(agent: Agent) -> Survey:
    """Collect the layers and units of an agent."""
    if isinstance(own := getattr(agent, "survey", None), Survey):
        return own
    layers: dict[str, Layer] = {}
    copies: dict[str, Layer] = {}
    for name, component in agent.components.items():
        layers |= {f"{name}.{key}": layer for key, layer in all_layers(component.online).items()}
        if component.target is not None:
            copies |= {f"{name}.{key}": layer for key, layer in all_layers(component.target).items()}
    traced = {name: [f"{name}.{key}" for key in hidden_layers(c.online)] for name, c in agent.components.items()}
    return Survey(agent.name, layers, copies, agent_graph(agent), traced)


def chosen_layers(surveyed: Survey, parts: str | Iterable[str], intervention: str) -> list[str]:
    """The names of the layers that `parts` names, in the order of initialisation.

    Raises:
        ValueError: This agent does not have one of the parts. The message begins with `intervention`.
    """
    wanted = (parts,) if isinstance(parts, str) else tuple(parts)
    names: set[str] = set()
    for part in wanted:
        matching = {name for name, layer in surveyed.layers.items() if _matches(part, name, layer)}
        if not matching:
            known = [part for part in known_parts(surveyed) if part != "all"]
            hint = did_you_mean(part, [*known, *surveyed.layers])
            raise ValueError(
                f"{intervention}: this {surveyed.name} has no {part!r}.{hint} It has {', '.join(known)}, and "
                f"layers such as {next(iter(surveyed.layers), 'none')}"
            )
        names |= matching
    return [name for name in surveyed.layers if name in names]


def known_parts(surveyed: Survey) -> list[str]:
    """The parts that an agent has."""
    components = dict.fromkeys(name.partition(".")[0] for name in surveyed.layers)
    return [
        part
        for part in ("all", *components, "encoder", "head", "last")
        if any(_matches(part, name, layer) for name, layer in surveyed.layers.items())
    ]


def edited(parts: str | Iterable[str]) -> tuple[str, ...]:
    """The resources that an intervention on these parts edits: the critics' heads, or nothing if all parts are outside
    them."""
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

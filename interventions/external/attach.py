"""Interventions in a training loop that is not pliant's.

    plasticity = attach(network, optimizer, example_input, "redo(tau=0.1, every=1000)", target=target_network)

    plasticity.before_update()                          # before the forward pass whose activations count
    loss = loss_of(network, batch) + plasticity.penalty()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    plasticity.after_update(steps=4)                    # environment steps since the last update

The network is measured (`networks.py`), never changed: what methods see of it is the first forward pass with gradients
after `before_update`, and what they edit are its own tensors and its optimizer's memory of them. Methods that shape an
agent while it is built, or decide what batches it gets, are refused by name.

With torch's own Adam a weight that is drawn anew makes a first step of 3.2 times the learning rate, since its moments
begin at zero and the step counter is shared by the whole tensor; `pliant.agents.optimizers.Adam` keeps an age a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...agents.hooks import Clock, Compose, Intervention, Run, When
from ...agents.networks import InitName
from ..core.recycling import per_unit
from ..core.spec import build
from ..core.units import NotMeasurable
from ..registry import INTERVENTIONS
from ..regrama import ReGraMa
from .networks import ExternalLayer, ExternalNetwork, ExternalSurvey, Place, read_network

FORMAT = 1
# Those of which `surgery.MEMORY` names all that is remembered of a weight; pliant's Adam is an AdamW.
OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.RAdam)
# Their edit of the configuration sets what is the loop's own here: the target's pace and who acts, a weight decay (of
# which l2 itself says so).
PACED_BY_THE_LOOP = ("hare_tortoise", "l2")
# It asks an agent what it says of a batch from its memory.
NEEDS_AN_AGENT = ("chain",)
INSTEAD = {
    "layer_norm": "put nn.LayerNorm between linear map and activation yourself",
    "replay_ratio": "make more updates in your loop, with 'reset(every=..., of=updates)' beside them",
    "adaptive_replay_ratio": "the number of updates is your loop's",
    "bbf": "'shrink_perturb(layers=encoder, every=...)' and 'reset(layers=head, every=...)' do its resets; n-step and "
    "discount are your loop's",
    "random_shift": "shift the images in your loop",
    "crelu": "use torch.cat([x.relu(), (-x).relu()], dim=1) in your network",
    "fourier": "use torch.cat([x.sin(), x.cos()], dim=1) in your network",
    "activation": "choose it in your network",
    "linear": "leave the activations out of your network",
    "plasticity_injection": "'reset(layers=head, every=...)' is the nearest that a built network can take",
}


@dataclass
class Learner:
    """A network with all that trains it.

    Attributes:
        network: What is read and edited.
        optimizer: What holds all of its parameters; several if they share them.
        example_input: What its forward pass takes: a tensor, a tuple of arguments, or a mapping as one argument. With a
            batch dimension; its values do not matter.
        target: The slow copy, if any, for methods that reset it or copy from it.
        forward: Runs every part of the network once on the example; the network itself if None.
        encoder: The submodule that `layers=encoder` means.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
    example_input: Any
    target: nn.Module | None = None
    forward: Callable[..., Any] | None = None
    encoder: str = "encoder"

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        return (self.optimizer,) if isinstance(self.optimizer, torch.optim.Optimizer) else tuple(self.optimizer)

    def run(self) -> Any:
        """One forward pass on the example."""
        inputs = self.example_input if isinstance(self.example_input, tuple) else (self.example_input,)
        return (self.forward or self.network)(*inputs)


def attach(
    network: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    example_input: Any,
    *interventions: str | Intervention,
    target: nn.Module | None = None,
    seed: int = 0,
    init: InitName | None = None,
    forward: Callable[..., Any] | None = None,
    encoder: str = "encoder",
) -> Plasticity:
    """Let interventions act on a network, whoever trains it.

    In words the network is the `critic`, which is where methods act if nothing is said; its layers are named by their
    modules (`layers="critic.body.0"`).

    Args:
        network: Linear maps, convolutions and norms, with any activations, pooling and reshaping between them.
        optimizer: Holds all of the network's parameters: torch's Adam, AdamW, RAdam, SGD, RMSprop, or pliant's Adam.
        example_input: What the network takes: a tensor, a tuple of arguments, or a mapping as one argument.
        interventions: Words (`"redo(tau=0.1)"`) or interventions, in the order in which they act.
        target: The network's slow copy.
        seed: Of everything that interventions draw.
        init: The law that weights were born with, and are drawn from: torch (PyTorch's default) or orthogonal. If None
            it is torch, and a network that has not learnt yet is checked against it.
        forward: Runs every part of the network once on the example, if calling the network does not.
        encoder: The submodule that `layers=encoder` means.

    Raises:
        ValueError: Something is not understood; one line names what, and the way out.
    """
    learner = Learner(network, optimizer, example_input, target, forward, encoder)
    return Plasticity({"critic": learner}, interventions, seed=seed, init=init)


class Plasticity:
    """Interventions at work on somebody's networks; what `attach` returns.

    Attributes:
        interventions: All of them, as one.
        clock: How far training has come.
        left_alone: Hidden layers whose units cannot be reset one by one, and why.
    """

    def __init__(
        self,
        learners: Mapping[str, Learner],
        interventions: Sequence[str | Intervention],
        *,
        seed: int = 0,
        init: InitName | None = None,
    ) -> None:
        parts = [_built(word) for word in interventions]
        for part in parts:
            _refuse_what_needs_an_agent(part)
        self.interventions = Compose(parts)
        self.clock = Clock()
        self.counted = [p for p in parts if getattr(p.when, "of", "updates") != "updates"]
        self.with_penalty = [p for p in parts if type(p).penalty is not Intervention.penalty]
        _check_apart(learners)
        found = {name: _read(name, learner, init) for name, learner in learners.items()}
        self.left_alone = {key: why for f in found.values() for key, why in f.left_alone.items()}
        wants_gradients = [p for p in parts if isinstance(p, ReGraMa) and p.mode == "unit"]
        for part in wants_gradients:
            _check_gradients(part, found)
        self.recording = Recording(bool(wants_gradients))
        self.agent = ExternalAgent(learners, found, self.recording, seed)
        self.agent.interventions = self.interventions
        self.interventions.to(self.agent.device)
        self.interventions.bind(self.agent)  # type: ignore[arg-type]
        consumers = {
            place.consumer: None
            for f in found.values()
            for places in f.places.values()
            for place in (places if wants_gradients else places[:1])
        }
        self.handles = [
            m.register_forward_pre_hook(Hook(self.recording, m), with_kwargs=True, prepend=False) for m in consumers
        ]
        self.attached, self.asked_for_penalty = True, False

    def before_update(self) -> None:
        """Let the first forward pass with gradients from now on be the one whose activations count."""
        self._check_attached()
        self.recording.start()
        self.asked_for_penalty = False

    def penalty(self, component: str | None = None) -> Tensor | float:
        """What interventions add to the loss: of one component, or of all."""
        self.asked_for_penalty = True
        total: Tensor | float = 0.0
        for name in self.agent.components if component is None else (component,):
            total = total + self.interventions.penalty(self.agent, name)  # type: ignore[arg-type]
        return total

    def after_update(self, steps: int | None = None, episodes: int | None = None) -> None:
        """Tick the clock and let interventions act, without waiting for the device.

        Args:
            steps: Environment steps since the previous update; None if nobody counts them.
            episodes: Episodes that ended since the previous update.

        Raises:
            RuntimeError: No forward pass was seen, or something was not told that a method needs.
        """
        self._check_attached()
        for part in self.counted:
            unit = part.when.of  # type: ignore[attr-defined]
            if (steps if unit == "steps" else episodes) is None:
                raise RuntimeError(
                    f"{part.name} counts {unit}: call after_update({unit}=...), or write of=updates in the word"
                )
        if self.with_penalty and not self.asked_for_penalty:
            raise RuntimeError(f"{self.with_penalty[0].name} is a penalty: add plasticity.penalty() to the loss")
        activations = self.agent.seen()
        self.clock = self.clock.stepped(steps or 0, episodes or 0).updated()
        run: Any = SimpleNamespace(agent=self.agent, clock=self.clock, memory=None)
        self.interventions.after_update(run, activations)
        self.recording.stop()

    def measurements(self) -> dict[str, Tensor]:
        """What interventions did lately, as 0-d tensors on the device."""
        return self.interventions.measurements()

    def state_dict(self) -> dict[str, Any]:
        """The clock and what interventions remember; networks and optimizers are saved by who owns them."""
        return {
            "format": FORMAT,
            "names": [part.name for part in self.interventions],
            "clock": asdict(self.clock),
            "interventions": dict(self.interventions.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken (ValueError if it was with other interventions or another network)."""
        names = [part.name for part in self.interventions]
        if state["format"] > FORMAT:
            raise ValueError(f"the state was written by a newer version (format {state['format']}); upgrade pliant")
        if state["names"] != names:
            raise ValueError(f"the state was saved with the interventions {state['names']}, not {names}")
        try:
            self.interventions.load_state_dict(state["interventions"])
        except RuntimeError as error:
            raise ValueError(f"the state belongs to another network: {' '.join(str(error).split())}") from error
        self.clock = Clock(**state["clock"])

    def detach(self) -> None:
        """Leave the network as if nobody had looked at it."""
        for handle in self.handles:
            handle.remove()
        self.recording.stop()
        self.handles, self.attached = [], False

    def _check_attached(self) -> None:
        if not self.attached:
            raise RuntimeError("these interventions are detached; attach them again, and load_state_dict to go on")


# ------------------------------------------------------------------------------------------------- what is seen


class Recording:
    """What consumers read in the forward pass that counts."""

    def __init__(self, gradients: bool) -> None:
        self.gradients = gradients
        self.open = False
        self.inputs: dict[nn.Module, Tensor] = {}

    def start(self) -> None:
        self.open, self.inputs = True, {}

    def stop(self) -> None:
        self.open, self.inputs = False, {}

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.open or module in self.inputs or not torch.is_grad_enabled():
            return None
        x = args[0] if args else kwargs["input"]
        if not (self.gradients and x.requires_grad):
            self.inputs[module] = x.detach()
            return None
        # A name of its own for what this consumer reads, so that its gradient is not mixed with that of others.
        x = self.inputs[module] = x.view_as(x)
        x.retain_grad()
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"input": x})


class Hook:
    """Tells the recording what a module reads. In copies of the module it does nothing."""

    def __init__(self, recording: Recording | None = None, module: nn.Module | None = None) -> None:
        self.recording, self.module = recording, module

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None if self.recording is None else self.recording.note(module, args, kwargs)

    def __reduce__(self) -> Any:
        return Hook, ()


class Networks(NamedTuple):
    """A network and its slow copy."""

    online: nn.Module
    target: nn.Module | None


class ExternalAgent:
    """What interventions ask of an agent, of networks that belong to none."""

    def __init__(
        self, learners: Mapping[str, Learner], found: Mapping[str, ExternalNetwork], recording: Recording, seed: int
    ) -> None:
        self.name = " and ".join(type(m.network).__name__ for m in learners.values())
        self.seed = seed
        self.device = next(next(iter(learners.values())).network.parameters()).device
        self.components = {name: Networks(m.network, m.target) for name, m in learners.items()}
        self.places: dict[str, dict[str, list[Place]]] = {name: f.places for name, f in found.items()}
        self.recording = recording
        self.interventions: Iterable[Intervention] = ()
        self._optimizers: dict[int, tuple[str, torch.optim.Optimizer]] = {}
        for name, learner in learners.items():
            for optimizer in learner.optimizers:
                self._optimizers.setdefault(id(optimizer), (name, optimizer))
        parts = list(found.values())
        self.survey = ExternalSurvey(
            self.name,
            {k: layer for f in parts for k, layer in f.layers.items()},
            {k: layer for f in parts for k, layer in f.twins.items()},
            {k: units for f in parts for k, units in f.graph.items()},
            {name: list(f.places) for name, f in found.items()},
        )

    def optimizers(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        """Every distinct optimizer, by the name of the first component that it serves."""
        yield from self._optimizers.values()

    def seen(self) -> dict[str, list[Any]]:
        """The outputs of the layers that took part in the update, by component; None for those that did not."""
        inputs = self.recording.inputs
        if not inputs and any(self.places.values()):
            raise RuntimeError(
                "no forward pass with gradients was seen: call before_update() before every update, and "
                "the network itself, not a copy, after it"
            )
        traces = {
            name: [
                p[0].take(inputs[p[0].consumer].detach()).float() if p[0].consumer in inputs else None
                for p in places.values()
            ]
            for name, places in self.places.items()
        }
        return {name: trace for name, trace in traces.items() if any(h is not None for h in trace)}

    def unit_gradients(self) -> dict[str, Tensor]:
        """Gradients of the loss with respect to the outputs of each layer's units, summed over who reads them."""
        found = {}
        for places in self.places.values():
            for name, here in places.items():
                grads = [(p, x.grad) for p in here if (x := self.recording.inputs.get(p.consumer)) is not None]
                parts = [p.take(g) for p, g in grads if g is not None]
                if parts:
                    found[name] = torch.stack([g.reshape(*g.shape[:2], -1) for g in parts]).sum(0)
        return found


class OwnReGraMa(ReGraMa):
    # Without a replay, unit gradients are those of the update itself.
    __doc__ = ReGraMa.__doc__

    def unit_gradients(self, run: Run) -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = run.agent.unit_gradients()  # type: ignore[attr-defined]
        if not gradients:
            raise RuntimeError(
                "regrama: no gradient reached the network; call loss.backward() between before_update() "
                "and after_update()"
            )
        return {
            name: per_unit(self.units[name].layer, g).abs().mean(dim=(0, 1, 3))
            for name, g in gradients.items()
            if name in self.units
        }


# --------------------------------------------------------------------------------------------------- refusals


def _built(word: str | Intervention) -> Intervention:
    """An intervention from its word."""
    if isinstance(word, str):
        return next(iter(build([word], {**INTERVENTIONS, "regrama": OwnReGraMa})))
    if isinstance(word, ReGraMa) and word.mode == "unit" and not isinstance(word, OwnReGraMa):
        raise ValueError("attach: regrama measures its gradients on a replay; give it as a word, 'regrama(...)'")
    return word


def _refuse_what_needs_an_agent(part: Intervention) -> None:
    """Refuse by name what shapes an agent or its batches: there is none."""
    if isinstance(part.when, When):
        raise ValueError(
            f"{part.name} waits for {part.when}, and nobody measures in a loop of your own; write every=... in the word"
        )
    if part.name in PACED_BY_THE_LOOP:
        return
    if part.name in NEEDS_AN_AGENT:
        raise ValueError(
            f"{part.name} asks an agent what it says of a batch from its memory, and cannot be attached to a network "
            f"alone; what does work: {', '.join(attachable())}"
        )
    hooks = {
        "configure": "shapes an agent while it is built",
        "schedule": "decides how batches are drawn",
        "transform_batch": "changes batches",
    }
    for hook, what in hooks.items():
        if getattr(type(part), hook) is not getattr(Intervention, hook):
            instead = INSTEAD.get(part.name, f"what does work: {', '.join(attachable())}")
            raise ValueError(f"{part.name} {what}, and cannot be attached to a network that is there; {instead}")


def attachable() -> list[str]:
    """The names of all interventions that need no agent."""
    hooks = ("configure", "schedule", "transform_batch")
    needless = {
        name
        for name, kind in INTERVENTIONS.items()
        if name not in NEEDS_AN_AGENT and all(getattr(kind, h) is getattr(Intervention, h) for h in hooks)
    }
    return sorted(needless | {*PACED_BY_THE_LOOP})


def _check_apart(learners: Mapping[str, Learner]) -> None:
    """No weight belongs to two networks, for it would be reset in both."""
    owner: dict[int, str] = {}
    for name, learner in learners.items():
        for key, p in learner.network.named_parameters():
            if (other := owner.setdefault(id(p), name)) != name:
                raise ValueError(
                    f"attach: {key} belongs to {other} and to {name}; attach them as one network, with a "
                    "forward=... that runs both"
                )


def _read(name: str, learner: Learner, init: InitName | None) -> ExternalNetwork:
    """Measure one network, and refuse what does not fit it."""
    found = read_network(
        learner.network, learner.run, name=name, encoder=learner.encoder, init=init or "torch", target=learner.target
    )
    if learner.encoder != "encoder" and learner.encoder not in dict(learner.network.named_modules()):
        raise ValueError(f"attach: the network has no submodule {learner.encoder!r} to be its encoder")
    _check_optimizers(learner)
    if init is None and not any(_steps(o) for o in learner.optimizers):
        for key, layer in found.layers.items():
            if not layer.is_output:
                _check_birth(key, layer)
    return found


def _check_optimizers(learner: Learner) -> None:
    """Every parameter is held by exactly one optimizer, of a kind whose memory is known."""
    held: list[int] = []
    for optimizer in learner.optimizers:
        if not isinstance(optimizer, OPTIMIZERS):
            raise ValueError(
                f"attach: it is not known what {type(optimizer).__name__} remembers of a weight; use "
                f"{', '.join(kind.__name__ for kind in OPTIMIZERS)} or pliant.agents.optimizers.Adam"
            )
        if hasattr(optimizer, "give_age") and _steps(optimizer):
            raise ValueError(
                "attach: pliant's Adam must give weights their ages before its first step; attach first, "
                "load its state then"
            )
        held += [id(p) for group in optimizer.param_groups for p in group["params"]]
    devices = set()
    for name, p in learner.network.named_parameters():
        devices.add(p.device)
        if held.count(id(p)) != 1 or not p.requires_grad:
            why = "does not learn" if not p.requires_grad else f"is in {held.count(id(p))} optimizers"
            raise ValueError(
                f"attach: {name} {why}, and all that is attached must be in exactly one; attach to the "
                "part that learns, with all its optimizers"
            )
    if len(devices) != 1:
        raise ValueError(
            f"attach: the network lives on several devices ({', '.join(sorted(map(str, devices)))}); "
            "attach to each part of it"
        )


def _steps(optimizer: torch.optim.Optimizer) -> bool:
    """Has it moved anything yet?"""
    states = list(optimizer.state.values())
    return any(bool(state["step"] > 0) if "step" in state else bool(state) for state in states)


def _check_birth(name: str, layer: ExternalLayer) -> None:
    """Refuse a new layer whose weights do not look drawn from PyTorch's default law."""
    weight = layer.linear.weight.detach()
    bound, largest = weight[0].numel() ** -0.5, weight.abs().max().item()
    if largest > bound * 1.0001 or (weight.numel() >= 32 and largest < 0.5 * bound):
        raise ValueError(
            f"attach: the weights of {name} reach {largest:.3g}, where PyTorch's default law reaches {bound:.3g}; say "
            "init='orthogonal' if that is how they were born, or init='torch' to draw new ones by that law all the same"
        )


def _check_gradients(part: ReGraMa, found: Mapping[str, ExternalNetwork]) -> None:
    """Gradients of what is read at different numbers of places cannot be summed."""
    if pooled := [name for foreign in found.values() for name in foreign.pooled]:
        raise NotMeasurable(
            f"{part.name}: {pooled[0]} is read at different numbers of places, so its units have no "
            "one gradient; write regrama(mode=weight_grad)"
        )

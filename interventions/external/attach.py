"""Interventions in an external training loop.

    plasticity = attach(network, optimizer, example_input, "redo(tau=0.1, every=1000)", target=target_network)

    plasticity.before_update()                          # before the forward pass whose activations count
    loss = loss_of(network, batch) + plasticity.penalty()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    plasticity.after_update(steps=4)                    # environment steps since the last update

The network is measured (`networks.py`), never rebuilt. Methods observe the first forward pass with gradients after
`before_update`. They edit only the network's own tensors and the optimizer state of these tensors. Methods that shape
an agent while it is built, or decide which batches it gets, are refused by name.

With torch's own Adam a reinitialised weight makes a first step of 3.2 times the learning rate, because its moments
start at zero and the whole tensor shares one step counter. `pliant.agents.optimizers.Adam` keeps a step count per
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...agents.clock import Clock, When
from ...agents.hooks import Compose, Intervention, Run
from ...agents.networks import InitName
from ..core.recycling import per_unit
from ..core.spec import build
from ..core.units import NotMeasurable
from ..registry import INTERVENTIONS
from ..regrama import ReGraMa
from .networks import ExternalLayer, ExternalNetwork, ExternalSurvey, Place, read_network

FORMAT = 1
# Optimizers whose whole state per weight is listed in `surgery.MEMORY`; pliant's Adam is an AdamW.
OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.RAdam)
# These edit the configuration of an agent. In an external loop, the loop itself sets these things: the speed of the
# target network and the acting network, or a weight decay (l2 refuses form=decoupled with its own message).
SET_BY_THE_LOOP = ("hare_tortoise", "l2")
# This one needs an agent's predictions on a batch from the agent's memory.
NEEDS_AN_AGENT = ("chain",)
ALTERNATIVES = {
    "layer_norm": "put nn.LayerNorm between linear map and activation yourself",
    "replay_ratio": "make more updates in your loop, and add 'reset(every=..., of=updates)'",
    "adaptive_replay_ratio": "your loop sets the number of updates",
    "bbf": "'shrink_perturb(layers=encoder, every=...)' and 'reset(layers=head, every=...)' make the same resets; your "
    "loop sets n-step and discount",
    "random_shift": "shift the images in your loop",
    "crelu": "use torch.cat([x.relu(), (-x).relu()], dim=1) in your network",
    "fourier": "use torch.cat([x.sin(), x.cos()], dim=1) in your network",
    "activation": "choose it in your network",
    "linear": "remove the activations from your network",
    "plasticity_injection": "'reset(layers=head, every=...)' is the most similar method for an existing network",
}


@dataclass
class Learner:
    """A network with its optimizers, target and example input.

    Attributes:
        network: The network that interventions read and edit.
        optimizer: The optimizer that holds all parameters of the network; a sequence if several share them.
        example_input: The input of its forward pass: a tensor, a tuple of arguments, or a mapping as one argument. It
            has a batch dimension; its values do not matter.
        target: The target network (slow copy), if any, for methods that reset it or copy from it.
        forward: Runs every part of the network once on the example; the network itself if None.
        encoder: The submodule that `layers=encoder` names.
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
    """Apply interventions to a network in an external training loop.

    In specs the network is called `critic`, the default part of methods. The names of its layers are those of its
    modules (`layers="critic.body.0"`).

    Args:
        network: Linear maps, convolutions and norms, with any activations, pooling and reshaping between them.
        optimizer: Holds all of the network's parameters: torch's Adam, AdamW, RAdam, SGD, RMSprop, or pliant's Adam.
        example_input: The network's input: a tensor, a tuple of arguments, or a mapping as one argument.
        interventions: Specs (`"redo(tau=0.1)"`) or interventions, in the order of application.
        target: The network's slow copy.
        seed: Seed of all random draws of the interventions.
        init: The initialiser of the network, from which new weights are drawn: torch (PyTorch's default) or orthogonal.
            If None it is torch, and a network that has not been trained is checked against it.
        forward: Runs every part of the network once on the example, if calling the network does not.
        encoder: The submodule that `layers=encoder` names.

    Raises:
        ValueError: The network, an optimizer or a spec is not supported. The message is one line that names the problem
            and the solution.
    """
    learner = Learner(network, optimizer, example_input, target, forward, encoder)
    return Plasticity({"critic": learner}, interventions, seed=seed, init=init)


class Plasticity:
    """Interventions attached to external networks; the result of `attach`.

    Attributes:
        interventions: All interventions, composed.
        clock: The progress of training.
        left_alone: Hidden layers whose units cannot be reset one by one, and the reason.
    """

    def __init__(
        self,
        learners: Mapping[str, Learner],
        interventions: Sequence[str | Intervention],
        *,
        seed: int = 0,
        init: InitName | None = None,
    ) -> None:
        parts = [_built(spec) for spec in interventions]
        for part in parts:
            _refuse_methods_of_agents(part)
        self.interventions = Compose(parts)
        self.clock = Clock()
        self.counted = [p for p in parts if getattr(p.when, "of", "updates") != "updates"]
        self.with_penalty = [p for p in parts if type(p).penalty is not Intervention.penalty]
        _check_apart(learners)
        networks = {name: _read(name, learner, init) for name, learner in learners.items()}
        self.left_alone = {key: why for network in networks.values() for key, why in network.left_alone.items()}
        wants_gradients = [p for p in parts if isinstance(p, ReGraMa) and p.mode == "unit"]
        for part in wants_gradients:
            _check_gradients(part, networks)
        self.recording = Recording(bool(wants_gradients))
        self.agent = ExternalAgent(learners, networks, self.recording, seed)
        self.agent.interventions = self.interventions
        self.interventions.to(self.agent.device)
        self.interventions.bind(self.agent)  # type: ignore[arg-type]
        consumers = {
            place.consumer: None
            for network in networks.values()
            for places in network.places.values()
            for place in (places if wants_gradients else places[:1])
        }
        self.handles = [
            m.register_forward_pre_hook(Hook(self.recording, m), with_kwargs=True, prepend=False) for m in consumers
        ]
        self.attached, self.penalty_requested = True, False

    def before_update(self) -> None:
        """Observe the activations of the first forward pass with gradients from now on."""
        self._check_attached()
        self.recording.start()
        self.penalty_requested = False

    def penalty(self, component: str | None = None) -> Tensor | float:
        """The term that interventions add to the loss: of one component, or of all."""
        self.penalty_requested = True
        total: Tensor | float = 0.0
        for name in self.agent.components if component is None else (component,):
            total = total + self.interventions.penalty(self.agent, name)  # type: ignore[arg-type]
        return total

    def after_update(self, steps: int | None = None, episodes: int | None = None) -> None:
        """Advance the clock and apply the interventions, without waiting for the device.

        Args:
            steps: Environment steps since the previous update; None if the loop does not count them.
            episodes: Episodes that ended since the previous update.

        Raises:
            RuntimeError: There was no forward pass, or a method needs a count or a call that is missing.
        """
        self._check_attached()
        for part in self.counted:
            unit = part.when.of  # type: ignore[attr-defined]
            if (steps if unit == "steps" else episodes) is None:
                raise RuntimeError(
                    f"{part.name} counts {unit}: call after_update({unit}=...), or write of=updates in the spec"
                )
        if self.with_penalty and not self.penalty_requested:
            raise RuntimeError(f"{self.with_penalty[0].name} is a penalty: add plasticity.penalty() to the loss")
        activations = self.agent.observed()
        self.clock = self.clock.stepped(steps or 0, episodes or 0).updated()
        run: Any = SimpleNamespace(agent=self.agent, clock=self.clock, memory=None)
        self.interventions.after_update(run, activations)
        self.recording.stop()

    def measurements(self) -> dict[str, Tensor]:
        """The interventions' latest measurements, as 0-d tensors on the device."""
        return self.interventions.measurements()

    def state_dict(self) -> dict[str, Any]:
        """The clock and the interventions' state. The caller saves networks and optimizers."""
        return {
            "format": FORMAT,
            "names": [part.name for part in self.interventions],
            "clock": asdict(self.clock),
            "interventions": dict(self.interventions.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict` (ValueError if it came from other interventions or another network)."""
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
        """Remove all hooks from the network."""
        for handle in self.handles:
            handle.remove()
        self.recording.stop()
        self.handles, self.attached = [], False

    def _check_attached(self) -> None:
        if not self.attached:
            raise RuntimeError("these interventions are detached; attach them again, and load_state_dict to go on")


# --------------------------------------------------------------------------------------------------- recording


class Recording:
    """The inputs of consumers in the observed forward pass."""

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
        # A separate view for this consumer, so that its gradient is not mixed with that of other consumers.
        x = self.inputs[module] = x.view_as(x)
        x.retain_grad()
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"input": x})


class Hook:
    """Passes the inputs of a module to the recording. In copies of the module it does nothing."""

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
    """The part of the agent interface that interventions need, for networks without an agent."""

    def __init__(
        self, learners: Mapping[str, Learner], networks: Mapping[str, ExternalNetwork], recording: Recording, seed: int
    ) -> None:
        self.name = " and ".join(type(m.network).__name__ for m in learners.values())
        self.seed = seed
        self.device = next(next(iter(learners.values())).network.parameters()).device
        self.components = {name: Networks(m.network, m.target) for name, m in learners.items()}
        self.places: dict[str, dict[str, list[Place]]] = {name: network.places for name, network in networks.items()}
        self.recording = recording
        self.interventions: Iterable[Intervention] = ()
        self._optimizers: dict[int, tuple[str, torch.optim.Optimizer]] = {}
        for name, learner in learners.items():
            for optimizer in learner.optimizers:
                self._optimizers.setdefault(id(optimizer), (name, optimizer))
        parts = list(networks.values())
        self.survey = ExternalSurvey(
            self.name,
            {k: layer for part in parts for k, layer in part.layers.items()},
            {k: layer for part in parts for k, layer in part.copies.items()},
            {k: units for part in parts for k, units in part.graph.items()},
            {name: list(network.places) for name, network in networks.items()},
        )

    def optimizers(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        """Every distinct optimizer, with the name of the first component that uses it."""
        yield from self._optimizers.values()

    def observed(self) -> dict[str, list[Any]]:
        """The outputs of layers in the observed pass, by component; None for a layer that did not take part."""
        inputs = self.recording.inputs
        if not inputs and any(self.places.values()):
            raise RuntimeError(
                "there was no forward pass with gradients: call before_update() before every update, and then call "
                "the network itself, not a copy"
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
        """Gradients of the loss with respect to the outputs of each layer's units, summed over their consumers."""
        gradients = {}
        for places in self.places.values():
            for name, here in places.items():
                grads = [(p, x.grad) for p in here if (x := self.recording.inputs.get(p.consumer)) is not None]
                parts = [p.take(g) for p, g in grads if g is not None]
                if parts:
                    gradients[name] = torch.stack([g.reshape(*g.shape[:2], -1) for g in parts]).sum(0)
        return gradients


class OwnReGraMa(ReGraMa):
    # There is no replay, so unit gradients are those of the update itself.
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


def _built(spec: str | Intervention) -> Intervention:
    """An intervention from its spec."""
    if isinstance(spec, str):
        return next(iter(build([spec], {**INTERVENTIONS, "regrama": OwnReGraMa})))
    if isinstance(spec, ReGraMa) and spec.mode == "unit" and not isinstance(spec, OwnReGraMa):
        raise ValueError("attach: regrama measures its gradients on a replay; pass it as a spec, 'regrama(...)'")
    return spec


def _refuse_methods_of_agents(part: Intervention) -> None:
    """Refuse by name a method that shapes an agent or its batches, because there is no agent."""
    if isinstance(part.when, When):
        raise ValueError(
            f"{part.name} waits for {part.when}, but an external loop has no monitors; write every=... in the spec"
        )
    if part.name in SET_BY_THE_LOOP:
        return
    if part.name in NEEDS_AN_AGENT:
        raise ValueError(
            f"{part.name} needs an agent's predictions on a batch from its memory, and cannot be attached to a network "
            f"alone; these can be attached: {', '.join(attachable())}"
        )
    hooks = {
        "configure": "shapes an agent while it is built",
        "schedule": "decides how batches are drawn",
        "transform_batch": "changes batches",
    }
    for hook, what in hooks.items():
        if getattr(type(part), hook) is not getattr(Intervention, hook):
            alternative = ALTERNATIVES.get(part.name, f"these can be attached: {', '.join(attachable())}")
            raise ValueError(f"{part.name} {what}, and cannot be attached to an existing network; {alternative}")


def attachable() -> list[str]:
    """The names of all interventions that need no agent."""
    hooks = ("configure", "schedule", "transform_batch")
    needless = {
        name
        for name, kind in INTERVENTIONS.items()
        if name not in NEEDS_AN_AGENT and all(getattr(kind, h) is getattr(Intervention, h) for h in hooks)
    }
    return sorted(needless | {*SET_BY_THE_LOOP})


def _check_apart(learners: Mapping[str, Learner]) -> None:
    """Refuse a weight that belongs to two networks, because both would reset it."""
    owner: dict[int, str] = {}
    for name, learner in learners.items():
        for key, p in learner.network.named_parameters():
            if (other := owner.setdefault(id(p), name)) != name:
                raise ValueError(
                    f"attach: {key} belongs to {other} and to {name}; attach them as one network, with a "
                    "forward=... that runs both"
                )


def _read(name: str, learner: Learner, init: InitName | None) -> ExternalNetwork:
    """Measure one network, and refuse unsupported settings."""
    measured = read_network(
        learner.network, learner.run, name=name, encoder=learner.encoder, init=init or "torch", target=learner.target
    )
    if learner.encoder != "encoder" and learner.encoder not in dict(learner.network.named_modules()):
        raise ValueError(f"attach: the network has no submodule {learner.encoder!r} to be its encoder")
    _check_optimizers(learner)
    if init is None and not any(_steps(o) for o in learner.optimizers):
        for key, layer in measured.layers.items():
            if not layer.is_output:
                _check_initial_weights(key, layer)
    return measured


def _check_optimizers(learner: Learner) -> None:
    """Check that exactly one optimizer of a supported class holds each parameter."""
    held: list[int] = []
    for optimizer in learner.optimizers:
        if not isinstance(optimizer, OPTIMIZERS):
            raise ValueError(
                f"attach: the optimizer state of {type(optimizer).__name__} is not supported; use "
                f"{', '.join(kind.__name__ for kind in OPTIMIZERS)} or pliant.agents.optimizers.Adam"
            )
        if hasattr(optimizer, "count_per_weight") and _steps(optimizer):
            raise ValueError(
                "attach: pliant's Adam must create step counts per weight before its first step; attach first, "
                "then load its state"
            )
        held += [id(p) for group in optimizer.param_groups for p in group["params"]]
    devices = set()
    for name, p in learner.network.named_parameters():
        devices.add(p.device)
        if held.count(id(p)) != 1 or not p.requires_grad:
            why = "does not learn" if not p.requires_grad else f"is in {held.count(id(p))} optimizers"
            raise ValueError(
                f"attach: {name} {why}, and every parameter must be in exactly one; attach to the part of the network "
                "that learns, with all its optimizers"
            )
    if len(devices) != 1:
        raise ValueError(
            f"attach: the network is on several devices ({', '.join(sorted(map(str, devices)))}); "
            "attach to each part of it"
        )


def _steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer has made a step."""
    states = list(optimizer.state.values())
    return any(bool(state["step"] > 0) if "step" in state else bool(state) for state in states)


def _check_initial_weights(name: str, layer: ExternalLayer) -> None:
    """Refuse an untrained layer whose weights do not seem to come from PyTorch's default initialiser."""
    weight = layer.linear.weight.detach()
    bound, largest = weight[0].numel() ** -0.5, weight.abs().max().item()
    if largest > bound * 1.0001 or (weight.numel() >= 32 and largest < 0.5 * bound):
        raise ValueError(
            f"attach: the weights of {name} reach {largest:.3g}, while PyTorch's default reaches {bound:.3g}; pass "
            "init='orthogonal' if they were initialised that way, or init='torch' to draw new weights from PyTorch's "
            "default"
        )


def _check_gradients(part: ReGraMa, networks: Mapping[str, ExternalNetwork]) -> None:
    """Refuse layers whose consumers read different numbers of positions, because their gradients cannot be summed."""
    if pooled := [name for network in networks.values() for name in network.pooled]:
        raise NotMeasurable(
            f"{part.name}: {pooled[0]} is read at different numbers of positions, so its units have no "
            "single gradient; write regrama(mode=weight_grad)"
        )

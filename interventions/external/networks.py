"""External networks: which of their modules are layers, and which weights read which unit.

A layer is a linear map or a convolution, with the norm on its units. Between layers there may be any module or
function. As in `units`, numbers are pushed through the network; here one layer at a time and twice, with the outputs of
every other layer replaced by noise. If both sets of numbers of a layer arrive unchanged, the consumer reads the layer's
units. If only their difference arrives unchanged, the units were added to other values (a residual stream), and cannot
be reset one by one. Everything else, such as a softmax, a gate or attention, is refused by name. Activations, norms and
dropout pass numbers on unchanged.

A unit's output is the value that its consumers read: after the activation, after a norm behind the activation, after
pooling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves  # noqa: PLC2701

from ...agents.networks import INITIALISERS, InitName, Layer
from ..core.parts import Survey
from ..core.units import Consumer, NotMeasurable, UnitGraph, Units

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHANNEL_NORMS = (nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SHAPE_NORMS = (nn.LayerNorm, nn.RMSNorm)
LAYERS = (nn.Linear, *CONVOLUTIONS)
NORMS = (*CHANNEL_NORMS, *SHAPE_NORMS)

# Elementwise functions and norms. During the measurement a unit's number passes them unchanged.
PASSING = {
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "softplus",
    "softsign",
    "tanh",
    "sigmoid",
    "hardtanh",
    "hardsigmoid",
    "hardswish",
    "logsigmoid",
    "log_sigmoid",
    "tanhshrink",
    "softshrink",
    "hardshrink",
    "threshold",
    "rrelu",
    "clamp",
    "clip",
    "clamp_min",
    "clamp_max",
    "abs",
    "square",
    "sqrt",
    "exp",
    "log",
    "log1p",
    "expm1",
    "sin",
    "cos",
    "erf",
    "nan_to_num",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
    "layer_norm",
    "group_norm",
    "batch_norm",
    "instance_norm",
    "rms_norm",
    "normalize",
}
ARITHMETIC = {
    "add",
    "sub",
    "subtract",
    "mul",
    "multiply",
    "div",
    "divide",
    "true_divide",
    "pow",
    "__radd__",
    "__rsub__",
    "__rmul__",
    "__rdiv__",
    "__rtruediv__",
    "__pow__",
    "__rpow__",
}
MIXING = {
    "softmax",
    "log_softmax",
    "softmin",
    "glu",
    "scaled_dot_product_attention",
    "gumbel_softmax",
    "einsum",
    "matmul",
    "__matmul__",
    "bmm",
    "linear",
    "cumsum",
    "sort",
    "fft_fft",
    "local_response_norm",
    "pixel_shuffle",
}


class ExternalLayer(Layer):
    """A linear map and its norm from an external network, as a `Layer` that can be reinitialised, but never run.

    Its running statistics, if any, are reset with it (mean 0, variance 1), unit by unit.

    Args:
        beside: Norms that belong to the layer, but not to its units: they are reset only with the whole layer.
        output: Its outputs have no consumers, so they are not units.
    """

    def __init__(
        self, linear: nn.Module, norm: nn.Module | None, beside: Sequence[nn.Module], init: InitName, output: bool
    ) -> None:
        nn.Module.__init__(self)
        self.linear: Any = linear
        self.norm, self.beside = norm, nn.ModuleList(beside)
        self.is_output, self.is_dense, self.init = output, isinstance(linear, nn.Linear), init
        self.gain = 1.0 if output else math.sqrt(2.0)
        self.copies, self.units = 1, linear.weight.shape[0]  # type: ignore[index, assignment]
        self.dropout = None

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that is drawn with the layer, by key; every key of a norm begins with `norm.`."""
        tensors = {f"linear.{key}": p for key, p in self.linear.named_parameters()}
        for prefix, norm in (("norm", self.norm), *((f"norm.beside{i}", m) for i, m in enumerate(self.beside))):
            if norm is not None:
                tensors |= {f"{prefix}.{key}": t for key, t in (*norm.named_parameters(), *norm.named_buffers())}
        return tensors

    def get_parameter(self, target: str) -> Any:
        return self.tensors()[target]

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return iter([(key, t) for key, t in self.tensors().items() if isinstance(t, nn.Parameter)])

    @torch.no_grad()
    def fresh(self, generator: Generator) -> dict[str, Tensor]:
        return {key: self._drawn(key, t.shape, generator) for key, t in self.tensors().items()}

    @torch.no_grad()
    def fresh_units(self, count: int, generator: Generator) -> dict[str, Tensor]:
        # Rows of an orthogonal matrix depend on each other, so a whole matrix is drawn.
        rows = count if self.init == "torch" else self.units
        return {
            key: self._drawn(key, torch.Size((rows, *t.shape[1:])), generator)[:count]
            for key, t in self.tensors().items()
            if t.ndim and ".beside" not in key
        }

    def _drawn(self, key: str, shape: torch.Size, generator: Generator) -> Tensor:
        if key.startswith("linear."):
            fan_in = self.linear.weight[0].numel()
            return INITIALISERS[self.init](shape, fan_in, key == "linear.bias", self.gain, generator)
        value = 1.0 if key.endswith((".weight", ".running_var")) else 0.0
        return torch.full(shape, value, device=generator.device)

    def forward(self, x: Tensor, trace: Any = None) -> Tensor:
        raise NotImplementedError("an external layer can be read and edited, but not run")


@dataclass(frozen=True)
class Place:
    """The inputs of one consumer that read the units of one layer, as [copies, units, positions] in input order."""

    consumer: nn.Module
    index: Tensor | None  # [copies * units * positions] int64, the inputs that belong to the units; None means all
    layout: tuple[int, int, int]

    def take(self, x: Tensor) -> Tensor:
        """The inputs that belong to the units [B, copies * units, *positions], out of all inputs of the consumer."""
        x = _features_first(self.consumer, x)
        if self.index is not None:
            x = x.index_select(1, self.index)
        copies, units, positions = self.layout
        inner = () if positions == 1 else (positions,)
        return x.reshape(len(x), copies * units, *inner, *x.shape[2:])


@dataclass
class ExternalNetwork:
    """The measured layers and units of a network, by qualified layer name."""

    layers: dict[str, ExternalLayer] = field(default_factory=dict)
    copies: dict[str, ExternalLayer] = field(default_factory=dict)  # the layers of the target network
    graph: UnitGraph = field(default_factory=dict)
    # The consumers of every layer in the graph; the consumer that reads the most positions is the first.
    places: dict[str, list[Place]] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)  # hidden layers that are not in the graph, and the reason
    # Layers in the graph whose consumers read different numbers of positions.
    pooled: list[str] = field(default_factory=list)


class ExternalSurvey(Survey):
    """A survey of layers that may be unused in an update, like the heads of other tasks."""

    def outputs(self, activations: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        return {name: h for name, h in super().outputs(activations).items() if h is not None}


def read_network(
    network: nn.Module,
    forward: Callable[[], Any],
    *,
    name: str,
    encoder: str,
    init: InitName,
    target: nn.Module | None = None,
) -> ExternalNetwork:
    """Measure a network.

    Args:
        forward: Runs all of it once, on an example.
        name: Prefix of its layers' names.
        encoder: The submodule whose layers are called `encoder`.

    Raises:
        NotMeasurable: A part of the network is not supported. The message names the part and the solution.
    """
    check_modules(network)
    measured = _Measurement(network, forward)
    keys = {m: key for key, m in network.named_modules()}
    names = {m: _called(key, name, encoder) for m, key in keys.items() if isinstance(m, LAYERS)}
    result = ExternalNetwork()
    order = {m: i for i, m in enumerate(measured.order)}
    beside = measured.loose_norms()
    for module in sorted(names, key=order.__getitem__):
        reads = measured.reads[module]
        output = not reads.owners and not reads.summed
        result.layers[names[module]] = ExternalLayer(module, reads.norm, beside.get(module, ()), init, output)
    views: dict[nn.Module, ExternalLayer] = {m: result.layers[names[m]] for m in names}
    for module in sorted(names, key=order.__getitem__):
        reads, layer, called = measured.reads[module], views[module], names[module]
        if layer.is_output:
            continue
        units = Units(called, layer, [Consumer(views[m], owner) for m, owner in reads.owners.items()])
        if reads.summed:
            result.left_alone[called] = f"its outputs are added to others before {keys[reads.summed[0]]!r} reads them"
        elif not units.resettable:
            result.left_alone[called] = "some of its units have no consumer"
        else:
            places = [_place(keys[module], keys[m], m, owner, layer.units) for m, owner in reads.owners.items()]
            result.places[called] = _agreeing(keys, module, places)
            layer.copies = result.places[called][0].layout[0]
            result.graph[called] = units
    result.pooled = measured.compare_consumers(result.places, keys)
    if target is not None:
        result.copies = _target_layers(network, target, result.layers, keys, init)
    return result


def check_modules(network: nn.Module) -> None:
    """Refuse modules whose weights are not supported (NotMeasurable)."""
    if hasattr(network, "_orig_mod"):
        raise NotMeasurable(
            "attach: this network is wrapped by torch.compile, where hooks do not fire; attach to the "
            "network itself and train it uncompiled"
        )
    owner: dict[Tensor, str] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        weights = {key: p for key, p in module._parameters.items() if p is not None}
        if parametrize.is_parametrized(module) or (
            isinstance(module, (*LAYERS, *NORMS)) and weights.keys() - {"weight", "bias"}
        ):
            _refuse(
                name,
                module,
                "its weights are computed from other parameters (weight norm, spectral norm or similar), which methods "
                "do not edit; remove the parametrisation first",
            )
        if not isinstance(module, (*LAYERS, *NORMS)):
            if weights:
                _refuse(
                    name,
                    module,
                    "it has weights, and only linear maps, convolutions and norms may have weights; keep other weights "
                    "outside the attached network",
                )
            continue
        if any(nn.parameter.is_lazy(p) for p in weights.values()):
            _refuse(name, module, "its shape is not known yet; run the network once before")
        base = next(kind for kind in (*LAYERS, *NORMS) if isinstance(module, kind))
        if type(module).forward is not base.forward or "forward" in module.__dict__:
            _refuse(name, module, f"it overrides the forward of {base.__name__}, so its inputs are unknown")
        if isinstance(module, CONVOLUTIONS) and module.groups != 1:
            _refuse(name, module, f"a convolution of {module.groups} groups; only groups=1 is supported")
        for key, p in weights.items():
            if p.dtype != torch.float32:
                _refuse(name, module, f"its {key} is {p.dtype}; only float32 is supported (autocast is fine)")
            if p in owner:
                _refuse(name, module, f"it shares its {key} with {owner[p]!r}, so that its units are not its own")
            owner[p] = name


def _refuse(name: str, module: nn.Module, why: str) -> NoReturn:
    raise NotMeasurable(f"attach: {name or 'the network'} ({type(module).__name__}): {why}")


def _called(key: str, name: str, encoder: str) -> str:
    """The qualified name of a layer, with `encoder` in place of the name of the encoder submodule."""
    inside = key == encoder or key.startswith(f"{encoder}.")
    key = f"encoder{key[len(encoder) :]}" if inside else key
    return f"{name}.{key or 'linear'}"


# ------------------------------------------------------------------------------------------------- measurement


class _Elementwise(TorchFunctionMode):
    """Passes numbers unchanged through elementwise functions, and records functions that mix values."""

    def __init__(self, order: list[Any]) -> None:
        super().__init__()
        self.order = order

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        plain = name if name.startswith("__") else name.rstrip("_")
        if plain in PASSING and _is_float(x := args[0] if args else kwargs.get("input")):
            return x
        if plain in ARITHMETIC:
            operands = (*args, *kwargs.values())
            if len(floats := [x for x in operands if _is_float(x) and x.ndim]) == 1 and not any(
                isinstance(x, Tensor) and x.ndim for x in operands if x is not floats[0]
            ):
                return floats[0]
        if plain in MIXING:
            self.order.append(plain)
        return func(*args, **kwargs)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@dataclass
class _Pass:
    """One forward pass with numbers as the layers' outputs."""

    # Modules in the order of execution, and names of functions that mix values.
    order: list[Any] = field(default_factory=list)
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)


@dataclass
class _Reads:
    """The consumers of the units of one layer."""

    owners: dict[nn.Module, Tensor] = field(default_factory=dict)  # by consumer [inputs]: the unit of each input, or -1
    summed: list[nn.Module] = field(default_factory=list)  # consumers that read them added to other values
    norm: nn.Module | None = None


class _Measurement:
    """All passes through one network, and their results."""

    def __init__(self, network: nn.Module, forward: Callable[[], Any]) -> None:
        self.network, self.forward = network, forward
        self.names = {m: name or "the network" for name, m in network.named_modules()}
        self.layers: list[Any] = [m for m in self.names if isinstance(m, LAYERS)]
        self.norms: list[Any] = [m for m in self.names if isinstance(m, NORMS)]
        if not self.layers:
            raise NotMeasurable("attach: the network has no layer: no linear map and no convolution")
        self.device = self.layers[0].weight.device
        self.dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.generator = Generator().manual_seed(0)
        # Between one and two, so that none of them is twice another; a unit has one value at all positions.
        self.noise = {m: 1 + self._random(len(m.weight)) for m in self.layers}
        self.order: list[Any] = [m for m in self._run(self.noise).order if isinstance(m, nn.Module)]
        for module in (*self.layers, *self.norms):
            if module not in self.order:
                _refuse(
                    self.names[module],
                    module,
                    "a forward pass does not reach it; give attach forward=..., a function of the example that runs "
                    "every part of the network",
                )
        self.reads = {m: self._measure(m) for m in self.layers}

    def loose_norms(self) -> dict[nn.Module, list[nn.Module]]:
        """The norms that belong to no layer's units, by the layer that runs before them (or the first layer)."""
        taken = {reads.norm for reads in self.reads.values()}
        norms: dict[nn.Module, list[nn.Module]] = {}
        before = next(m for m in self.order if isinstance(m, LAYERS))
        for module in self.order:
            if isinstance(module, LAYERS):
                before = module
            elif module not in taken:
                norms.setdefault(before, []).append(module)
        return norms

    def compare_consumers(self, places: Mapping[str, list[Place]], keys: Mapping[nn.Module, str]) -> list[str]:
        """The layers whose consumers read different numbers of positions.

        Raises:
            NotMeasurable: Two consumers read different functions of the same units, so the units have no single output.
        """
        noise = {m: 2 * self._random(len(m.weight), torch.float32) - 1 for m in self.layers}
        seen = self._run(noise, numbers=False).inputs
        pooled = []
        for name, here in places.items():
            first, *others = (_flat(place.take(seen[place.consumer])) for place in here)
            for place, other in zip(here[1:], others, strict=True):
                if other.shape != first.shape:
                    pooled.append(name)
                elif not torch.allclose(first, other):
                    raise NotMeasurable(
                        f"attach: {keys[here[0].consumer]!r} and {keys[place.consumer]!r} read different functions of "
                        f"the units of {name}; let both read the same"
                    )
        return pooled

    def _random(self, count: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.rand(count, generator=self.generator, dtype=torch.float64).to(self.device, dtype or self.dtype)

    def _measure(self, module: Any) -> _Reads:
        """Push two sets of numbers from one layer through the network."""
        count = len(module.weight)
        orders = [torch.randperm(count, generator=self.generator) for _ in range(2)]
        # One to two, and three to five, so that a shift or a factor between layer and consumer is always detected.
        codes = [k * order.double() / count + 2 * k - 1 for k, order in zip((1, 2), orders, strict=True)]
        codes = [code.to(self.device, self.dtype) for code in codes]
        first, second = (self._run(self.noise | {module: code}) for code in codes)
        places = orders[0].argsort().to(self.device)
        reads = _Reads()
        for other in self.layers:
            a, b = (_features_first(other, p.inputs[other]).transpose(0, 1).flatten(1) for p in (first, second))
            moved = a != b
            if other is module or not moved.any():
                continue
            unit = places[((a.abs() - 1) * count).round().long().clamp(0, count - 1)]
            close = [(x.abs() - code[unit]).abs() < 1e-6 for x, code in zip((a, b), codes, strict=True)]
            clean = close[0] & close[1] & (a.sign() == b.sign())
            owner = torch.where(moved & clean, unit, -1).amax(1)
            if (moved & ~clean).any():
                steps = (b.abs() - a.abs())[moved] * count
                if (steps - steps.round()).abs().max() > 1e-6 * count:
                    self._refuse_mixed(module, other, first.order)
                reads.summed.append(other)
            elif (moved & (unit != owner[:, None])).any():
                self._refuse_mixed(module, other, first.order)
            else:
                reads.owners[other] = owner
        leaves = any(not torch.equal(a, b) for a, b in zip(first.outputs, second.outputs, strict=True))
        if leaves and reads.owners:
            _refuse(
                self.names[module],
                module,
                "its units are inputs of other layers and outputs of the network; give attach forward=..., a function "
                "of the example that returns predictions only",
            )
        reads.norm = next(
            (m for m in self.order if m in self.norms and _normalises(m, first.inputs[m], codes[0])), None
        )
        return reads

    def _refuse_mixed(self, module: nn.Module, consumer: nn.Module, order: list[Any]) -> NoReturn:
        between = order[order.index(module) : order.index(consumer)]
        functions = ", ".join(dict.fromkeys(m for m in between if isinstance(m, str)))
        raise NotMeasurable(
            f"attach: {self.names[consumer]!r} ({type(consumer).__name__}) reads the units of {self.names[module]!r} "
            f"mixed with each other or with others{f' (by {functions})' if functions else ''}, so none can be reset "
            "alone; attach to a part of the network without it"
        )

    @torch.no_grad()
    def _run(self, values: Mapping[nn.Module, Tensor], *, numbers: bool = True) -> _Pass:
        """A forward pass in which every layer outputs the given value of each unit, at all positions."""
        done = _Pass()

        def enter(module: nn.Module, x: Tensor) -> None:
            if module in done.inputs:
                _refuse(
                    self.names[module],
                    module,
                    "it is used twice in one forward pass, so that its units have two outputs each; attach with "
                    "forward=..., which uses it once",
                )
            done.order.append(module)
            done.inputs[module] = x

        def layer(module: nn.Module) -> Callable[[Tensor], Tensor]:
            def run(input: Tensor) -> Tensor:
                enter(module, input)
                return _spread(module, input, values[module])

            return run

        def norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
            inner = module.forward

            def run(input: Tensor) -> Tensor:
                enter(module, input)
                return input if numbers else inner(input)

            return run

        forwards = {m: layer(m) for m in self.layers} | {m: norm(m) for m in self.norms}
        with _undisturbed(self.network, self.device), _replaced(forwards):
            if numbers:
                with _Elementwise(done.order):
                    result = self.forward()
            else:
                result = self.forward()
        done.outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        return done


def _features_first(module: nn.Module, x: Tensor) -> Tensor:
    """The inputs of a layer as [B, features, ...]; the features of a linear map are the last axis of `x`."""
    return x.movedim(-1, 1) if isinstance(module, nn.Linear) else x


def _flat(h: Tensor) -> Tensor:
    """[B, units, *positions] → [B, units, positions]."""
    return h.reshape(*h.shape[:2], -1)


def _spread(module: Any, x: Tensor, values: Tensor) -> Tensor:
    """One value per unit, in the shape of the layer's output."""
    if isinstance(module, nn.Linear):
        return values.expand(*x.shape[:-1], -1).contiguous()
    if x.ndim != module.weight.ndim:
        raise NotMeasurable(
            f"attach: {type(module).__name__} reads {tuple(x.shape)}; give an example with a batch dimension"
        )
    sizes = []
    for i, size in enumerate(x.shape[2:]):
        kernel, stride, dilation = module.kernel_size[i], module.stride[i], module.dilation[i]
        if isinstance(module.padding, str):
            padding = dilation * (kernel - 1) if module.padding == "same" else 0
        else:
            padding = 2 * module.padding[i]
        sizes.append((size + padding - dilation * (kernel - 1) - 1) // stride + 1)
    return values.view(1, -1, *(1,) * len(sizes)).expand(len(x), -1, *sizes).contiguous()


def _normalises(norm: Any, x: Tensor, codes: Tensor) -> bool:
    """Whether the norm normalises exactly the units of one layer, with one gain and shift for each."""
    axis = x.ndim - len(norm.normalized_shape) if isinstance(norm, SHAPE_NORMS) else 1
    if x.shape[axis] != len(codes):
        return False
    rows = x.movedim(axis, 0).flatten(1)
    return bool((rows == codes[:, None]).all())


def _place(name: str, consumer_name: str, consumer: nn.Module, owner: Tensor, count: int) -> Place:
    """The inputs with which a consumer reads a layer; refuses an irregular order of inputs."""
    index = (owner >= 0).nonzero().flatten()
    units = owner[index]
    positions = int((units == units[0]).cumprod(0).sum())
    copies = len(units) // (count * positions)
    expected = torch.arange(count, device=units.device).repeat_interleave(positions).repeat(max(copies, 1))
    if not torch.equal(units, expected):
        raise NotMeasurable(
            f"attach: {consumer_name!r} reads the units of {name!r} out of order or at different numbers "
            "of positions, which is not supported"
        )
    return Place(consumer, None if len(index) == len(owner) else index, (copies, count, positions))


def _agreeing(keys: Mapping[nn.Module, str], module: nn.Module, places: list[Place]) -> list[Place]:
    """The places, with the most positions first, if all others have the same layout or one position per unit."""
    places = sorted(places, key=lambda place: -place.layout[0] * place.layout[2])
    first = places[0]
    for other in places[1:]:
        if other.layout not in (first.layout, (first.layout[0], first.layout[1], 1)):
            raise NotMeasurable(
                f"attach: {keys[first.consumer]!r} and {keys[other.consumer]!r} read the units of "
                f"{keys[module]!r} in different orders or poolings, which is not supported"
            )
    return places


def _target_layers(
    network: nn.Module,
    target: nn.Module,
    layers: Mapping[str, ExternalLayer],
    keys: Mapping[nn.Module, str],
    init: InitName,
) -> dict[str, ExternalLayer]:
    """The corresponding layers of the target network."""
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (network, target)]
    if shapes[0] != shapes[1] or target is network:
        odd = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
        raise NotMeasurable(f"attach: the target must be another network of the same shape{_at(odd)}")
    modules = dict(target.named_modules())

    def counterpart(module: nn.Module) -> nn.Module:
        return modules[keys[module]]

    return {
        name: ExternalLayer(
            counterpart(layer.linear),
            layer.norm and counterpart(layer.norm),
            [counterpart(m) for m in layer.beside],
            init,
            layer.is_output,
        )
        for name, layer in layers.items()
    }


def _at(names: Sequence[str]) -> str:
    return f"; they differ in {names[0]}" if names else ""


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Temporarily replace the forward functions of modules."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


@contextmanager
def _undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode with fixed random draws; restores the modes of all modules and the random states afterwards."""
    training = {m: m.training for m in network.modules()}
    state = torch.default_generator.get_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    torch.default_generator.manual_seed(0)
    if on_device is not None:
        torch.cuda.default_generators[device.index or 0].manual_seed(0)
    network.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        torch.default_generator.set_state(state)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)

"""Networks, built from one kind of layer.

A `Layer` is linear map → norm → activation. Its outputs are its *units*: an output feature of a linear map or a channel
of a convolution, with the parameters that belong to it alone (row of weights, bias, gain and shift). A layer can
reinitialise itself from its own initialiser.

Activations are a return value: `forward(x, trace)` appends the output of every hidden layer to `trace`, in the order of
`hidden_layers`. Forward hooks do not work here: a hook that is registered after the first compiled call never fires.
Without hooks, modules can call each other's `forward` directly, which saves a third of the time of a small network's
forward pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..common.ranges import above, at_least, check_numbers
from ..common.spaces import ObservationSpec

Trace = list[Tensor]
BodyName = Literal["auto", "mlp", "minatar", "nature", "impala", "drq"]
ActivationName = Literal["relu", "tanh", "elu", "gelu", "silu", "leaky_relu", "crelu", "fourier", "identity"]
NormName = Literal["none", "layer_norm"]
NormPlacement = Literal["all", "dense", "encoder", "last"]
ConvNorm = Literal["gn1", "ln_chw"]
InitName = Literal["torch", "orthogonal"]
MOST_INJECTIONS = 100
MOST_LAYERS = 1_000
TWO_COPIES = "each adds two copies of the head"
Injections: TypeAlias = Annotated[int, at_least(0, most=MOST_INJECTIONS, why=TWO_COPIES)]
Units: TypeAlias = Annotated[int, at_least(1, "units", most=10**9, why="no device holds a layer of more")]
Width: TypeAlias = Annotated[float, above(0, most=10_000, why="no device holds so many channels")]


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a network.

    Attributes:
        body: Network from observations to features. auto: `mlp` for vectors, `nature` for large images, `minatar`
            for images below 36 pixels.
        hidden: Widths of the dense hidden layers.
        width: Factor on the channels of a convolutional body.
        activation: Activation of every hidden layer.
        norm: Normalisation between a hidden linear map and its activation.
        norm_placement: Which hidden layers are normalised. all: every one. dense: those after the encoder. encoder:
            the convolutions. last: only the last hidden layer, whose outputs are the features of the value.
        norm_conv: Normalisation of a convolution. gn1: over channels and positions, one gain and shift per channel.
            ln_chw: over the same numbers, but one gain and shift for every channel and position.
        init: Initialiser of the weights. torch: uniform in ±1/sqrt(fan-in), PyTorch's default. orthogonal: orthogonal
            weights of gain sqrt(2) (output layers 1), zero biases.
        injections: Plasticity injections to allocate memory for; each adds two frozen copies of a value head.
    """

    body: BodyName = "auto"
    hidden: tuple[Units, ...] = (256, 256)
    width: Width = 1.0
    activation: ActivationName = "relu"
    norm: NormName = "none"
    norm_placement: NormPlacement = "all"
    norm_conv: ConvNorm = "gn1"
    init: InitName = "torch"
    injections: Injections = 0

    def __post_init__(self) -> None:
        check_numbers(self)
        if len(self.hidden) > MOST_LAYERS:
            raise ValueError(f"hidden names the widths of {len(self.hidden):,} layers, and at most {MOST_LAYERS:,} fit")


class ReLU(nn.Module):
    """max(x, 0). Skips the checks of `nn.ReLU`, which for a single observation take longer than the maximum itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class CReLU(nn.Module):
    """relu(x) and relu(-x) along the feature axis: each unit has two copies (Shang et al. 2016, 1603.05201)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(x), F.relu(-x)], dim=1)


class Fourier(nn.Module):
    """sin(x) and cos(x) along the feature axis: each unit has two copies (Lewandowski et al. 2024, 2410.20634)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.sin(), x.cos()], dim=1)


class Dropout(nn.Module):
    """Inverted dropout that draws its masks from a given generator, not from the global one."""

    def __init__(self, p: float, generator: Generator) -> None:
        super().__init__()
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1.0 - self.p
        return x * torch.empty_like(x).bernoulli_(keep, generator=self.generator).div_(keep)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "crelu": CReLU,
    "fourier": Fourier,
    "identity": nn.Identity,
}
COPIES = {"crelu": 2, "fourier": 2}
"""Outputs per unit, for activations with more than one."""


def _draw_uniform(shape: torch.Size, fan_in: int, is_bias: bool, gain: float, generator: Generator) -> Tensor:
    bound = 1.0 / math.sqrt(fan_in)
    return torch.empty(shape, device=generator.device).uniform_(-bound, bound, generator=generator)


def _draw_orthogonal(shape: torch.Size, fan_in: int, is_bias: bool, gain: float, generator: Generator) -> Tensor:
    if is_bias:
        return torch.zeros(shape, device=generator.device)
    return nn.init.orthogonal_(torch.empty(shape, device=generator.device), gain, generator=generator)


INITIALISERS = {"torch": _draw_uniform, "orthogonal": _draw_orthogonal}


def blank(kind: type[nn.Module], *sizes: int, **settings: int) -> Any:
    """A linear map or a convolution with uninitialised weights; under `with torch.device("meta")`, without memory."""
    device = "meta" if torch.get_default_device().type == "meta" else "cpu"
    return nn.utils.skip_init(kind, *sizes, device=device, **settings)


class Layer(nn.Module):
    """Linear map → (dropout) → norm → activation.

    An *output layer* has neither norm nor activation. Its outputs are not units, so it does not appear in the trace.
    """

    def __init__(
        self,
        linear: nn.Linear | nn.Conv2d,
        generator: Generator,
        *,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        init: str = "torch",
        output: bool = False,
        shape: tuple[int, ...] = (),
        gain: float | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.is_output = output
        self.is_dense = isinstance(linear, nn.Linear)
        self.init = init
        self.gain = gain if gain is not None else 1.0 if output else math.sqrt(2.0)
        self.copies = COPIES.get(activation, 1)
        self.units = linear.out_features if isinstance(linear, nn.Linear) else linear.out_channels
        self.dropout = Dropout(dropout, generator) if dropout else None
        self.norm: nn.Module | None = None
        if norm == "layer_norm":
            # With `shape`, a convolution has a gain for every position. GroupNorm with one group normalises the same
            # numbers, but its gain and shift belong to a channel, and so to one unit.
            dense = isinstance(linear, nn.Linear)
            self.norm = nn.LayerNorm(shape or self.units) if dense or shape else nn.GroupNorm(1, self.units)
        self.activation = ACTIVATIONS[activation]()
        self.load_fresh(generator)

    @property
    def features(self) -> int:
        """Width of the output: units times copies."""
        return self.units * self.copies

    @torch.no_grad()
    def fresh(self, generator: Generator) -> dict[str, Tensor]:
        """Draw new parameters from this layer's initialiser, by parameter name; the layer itself does not change.

        The draw happens on the generator's device: on the CPU when an agent is built, so that a seed gives the same
        weights on every device; on the agent's device during training, where the host must not wait.
        """
        weight, bias = self.linear.weight, self.linear.bias
        fan_in = weight[0].numel()
        draw = INITIALISERS[self.init]
        drawn = {"linear.weight": draw(weight.shape, fan_in, False, self.gain, generator)}
        if bias is not None:
            drawn["linear.bias"] = draw(bias.shape, fan_in, True, self.gain, generator)
        if self.norm is not None:
            shape = self.norm.weight.shape
            drawn["norm.weight"] = torch.ones(shape, device=generator.device)  # type: ignore[arg-type]
            drawn["norm.bias"] = torch.zeros(shape, device=generator.device)  # type: ignore[arg-type]
        return drawn

    @torch.no_grad()
    def fresh_units(self, count: int, generator: Generator) -> dict[str, Tensor]:
        """Draw new incoming weights for `count` units from this layer's initialiser, by parameter name."""
        if self.init != "torch" or count >= self.units:
            # Rows of an orthogonal matrix depend on each other, so the whole matrix is drawn.
            return {key: value[:count] for key, value in self.fresh(generator).items()}
        drawn = {}
        for key, parameter in self.named_parameters():
            shape = torch.Size((count, *parameter.shape[1:]))
            if key.startswith("linear."):
                fan_in = self.linear.weight[0].numel()
                drawn[key] = INITIALISERS[self.init](shape, fan_in, key == "linear.bias", self.gain, generator)
            else:
                value = 1.0 if key == "norm.weight" else 0.0
                drawn[key] = torch.full(shape, value, device=generator.device)
        return drawn

    @torch.no_grad()
    def load_fresh(self, generator: Generator) -> None:
        """Reinitialise this layer in place; does nothing on the meta device, where parameters have no values."""
        if self.linear.weight.is_meta:
            return
        parameters = dict(self.named_parameters())
        for name, value in self.fresh(generator).items():
            parameters[name].copy_(value)

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        # Reads nn.Module's own dictionary: attribute access would take longer than a small layer's arithmetic.
        modules = self._modules
        linear = modules["linear"]
        if self.is_dense:
            x = F.linear(x, linear._parameters["weight"], linear._parameters["bias"])  # type: ignore[union-attr, arg-type]
        else:
            x = linear.forward(x)  # type: ignore[union-attr]
        if self.dropout is not None:
            x = self.dropout.forward(x)
        if self.norm is not None:
            x = self.norm.forward(x)
        # In place where possible: nothing else reads the input, and a second array of its size would displace others
        # from the cache.
        activation = modules["activation"]
        x = torch.relu_(x) if type(activation) is ReLU else activation.forward(x)  # type: ignore[union-attr]
        if trace is not None and not self.is_output:
            trace.append(x)
        return x


class Frozen(nn.ModuleDict):
    """Copies of a value head's modules that are never trained; gradients still flow through them to the encoder."""


def frozen_modules(network: nn.Module) -> set[nn.Module]:
    """All modules inside `Frozen` copies."""
    return {inner for m in network.modules() if isinstance(m, Frozen) for inner in m.modules()}


def all_layers(network: nn.Module) -> dict[str, Layer]:
    """The trained layers, hidden and output, by qualified name, in the order of their initialisation."""
    frozen = frozen_modules(network)
    return {name: m for name, m in network.named_modules() if isinstance(m, Layer) and m not in frozen}


def hidden_layers(network: nn.Module) -> dict[str, Layer]:
    """The trained hidden layers by qualified name, in the order in which a forward pass fills the trace."""
    return {name: layer for name, layer in all_layers(network).items() if not layer.is_output}


INITIAL_COPIES = "born"  # a key of checkpoints


class Injection(nn.Module):
    """Preallocated copies for plasticity injections (Nikishin et al. 2023, 2305.15555) into a value head.

    A head h from features to logits becomes h(x) + sum of (old_i(x) - initial_i(x)) over the first `opened` pairs.
    Unused copies hold zeros. An injection copies the trained head into `old`, and reinitialises h and `initial` with
    the same values. The trained tensors are the same objects before and after, and the output does not change. The sum
    is computed as (h(x) - initial(x)) + old(x), newest pair first: right after an injection the difference is zero, so
    the output is exact to the last bit.
    """

    def __init__(self, head: dict[str, nn.Module], count: int) -> None:
        super().__init__()

        def zeros() -> Frozen:
            copies = Frozen({name: copy.deepcopy(module) for name, module in head.items()})
            for parameter in copies.parameters():
                parameter.requires_grad_(False).zero_()
            return copies

        with torch.no_grad():
            self.old = nn.ModuleList(zeros() for _ in range(count))
            self.add_module(INITIAL_COPIES, nn.ModuleList(zeros() for _ in range(count)))
        self.opened = 0  # number of pairs in use; a host integer, since the clock that opens pairs is on the host

    @property
    def initial(self) -> nn.ModuleList:
        """The copies that hold the initial values of the new heads."""
        return cast(nn.ModuleList, self._modules[INITIAL_COPIES])

    def get_extra_state(self) -> dict[str, int]:
        return {"opened": self.opened}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.opened = state["opened"]

    def forward(self, logits: Tensor, head: Callable[[Mapping[str, Any]], Tensor]) -> Tensor:
        """Add the pairs in use to `logits`; `head(modules)` computes the logits of a head with the given modules."""
        for number in reversed(range(self.opened)):
            old, initial = self.old[number], self.initial[number]
            logits = (logits - head(initial._modules)) + head(old._modules)
        return logits


class LayerBuilder:
    """Builds layers with one configuration and one generator."""

    def __init__(self, config: NetworkConfig, generator: Generator, *, dropout: float = 0.0) -> None:
        self.config = config
        self.generator = generator
        self.dropout = dropout
        self.size: tuple[int, ...] = ()  # height and width of the next convolution's input

    def dense(self, inputs: int, units: int, *, last: bool = False) -> Layer:
        c = self.config
        normed = c.norm_placement in ("all", "dense") or (c.norm_placement == "last" and last)
        return Layer(
            blank(nn.Linear, inputs, units),
            self.generator,
            activation=c.activation,
            norm=c.norm if normed else "none",
            dropout=self.dropout,
            init=c.init,
        )

    def conv(self, inputs: int, channels: int, kernel: int, stride: int = 1, padding: int = 0) -> Layer:
        """A convolution; updates `size` from its input's height and width to its output's."""
        c = self.config
        linear = blank(nn.Conv2d, inputs, channels, kernel, stride=stride, padding=padding)
        self.size = tuple((n + 2 * padding - kernel) // stride + 1 for n in self.size)
        if min(self.size) < 1:
            raise RuntimeError("nothing is left of the image")
        normed = c.norm_placement in ("all", "encoder")
        return Layer(
            linear,
            self.generator,
            activation=c.activation,
            norm=c.norm if normed else "none",
            init=c.init,
            shape=(channels, *self.size) if c.norm_conv == "ln_chw" else (),
        )

    def output(self, inputs: int, outputs: int, gain: float | None = None) -> Layer:
        """An output layer; `gain` scales orthogonal weights."""
        linear = blank(nn.Linear, inputs, outputs)
        return Layer(linear, self.generator, activation="identity", init=self.config.init, output=True, gain=gain)

    def channels(self, n: int) -> int:
        return max(1, round(n * self.config.width))


class Dense(nn.Module):
    """A sequence of hidden dense layers."""

    def __init__(self, inputs: int, hidden: Sequence[int], build: LayerBuilder) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for i, units in enumerate(hidden):
            layer = build.dense(inputs, units, last=i == len(hidden) - 1)
            self.layers.append(layer)
            inputs = layer.features
        self.features = inputs

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        for layer in self._modules["layers"]._modules.values():  # type: ignore[union-attr]
            x = layer.forward(x, trace)  # type: ignore[union-attr]
        return x


class Vectors(nn.Module):
    """The encoder of vector observations: flattens them, and has no parameters."""

    def __init__(self, observation: ObservationSpec) -> None:
        super().__init__()
        self.features = math.prod(observation.shape)

    def forward(self, obs: Tensor, trace: Trace | None = None) -> Tensor:
        return obs if obs.ndim == 2 and obs.is_floating_point() else obs.flatten(1).float()


class Pixels(nn.Module):
    """A convolutional encoder: uint8 [B, C, H, W] → features [B, F]."""

    def __init__(self, observation: ObservationSpec) -> None:
        super().__init__()
        self.scale = 1.0 / observation.high
        self.blocks = nn.ModuleList()

    def _measure(self, observation: ObservationSpec) -> None:
        """The number of features, by a forward pass on one blank observation."""
        with torch.no_grad():
            self.features = self(torch.zeros(1, *observation.shape, dtype=observation.dtype)).shape[1]

    def scaled(self, obs: Tensor) -> Tensor:
        """Pixels as floats in [0, 1].

        Convolutions on a CPU are fastest in the channels-last layout (their backward pass about three times). Bytes
        change their layout in less time than floats do.
        """
        x = obs.contiguous(memory_format=torch.channels_last)
        return x.to(torch.float32, memory_format=torch.channels_last).mul_(self.scale)

    def forward(self, obs: Tensor, trace: Trace | None = None) -> Tensor:
        x = self.scaled(obs)
        for block in self.blocks:
            x = block(x, trace)
        return x.flatten(1)


class NatureCNN(Pixels):
    """Mnih et al. 2015, "Human-level control through deep reinforcement learning", Nature 518, Methods."""

    def __init__(self, observation: ObservationSpec, build: LayerBuilder) -> None:
        super().__init__(observation)
        inputs = observation.shape[0]
        for channels, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            layer = build.conv(inputs, build.channels(channels), kernel, stride)
            self.blocks.append(layer)
            inputs = layer.features
        self._measure(observation)


class MinAtarCNN(Pixels):
    """One 3x3 convolution of 16 channels (Young & Tian 2019, 1903.03176)."""

    def __init__(self, observation: ObservationSpec, build: LayerBuilder) -> None:
        super().__init__(observation)
        self.blocks.append(build.conv(observation.shape[0], build.channels(16), 3))
        self._measure(observation)


class DrQCNN(Pixels):
    """Four 3x3 convolutions of 32 channels, the first of stride 2 (Yarats et al. 2021, 2107.09645)."""

    def __init__(self, observation: ObservationSpec, build: LayerBuilder) -> None:
        super().__init__(observation)
        inputs = observation.shape[0]
        for stride in (2, 1, 1, 1):
            layer = build.conv(inputs, build.channels(32), 3, stride)
            self.blocks.append(layer)
            inputs = layer.features
        self._measure(observation)


class Residual(nn.Module):
    """x + conv(act(conv(act(x)))). The last convolution joins the residual stream, so its outputs are not units."""

    def __init__(self, channels: int, build: LayerBuilder) -> None:
        super().__init__()
        # The first convolution reads the activated stream, which has `COPIES` times as many channels.
        self.entry = ACTIVATIONS[build.config.activation]()
        self.inner = build.conv(channels * COPIES.get(build.config.activation, 1), channels, 3, padding=1)
        linear = blank(nn.Conv2d, self.inner.features, channels, 3, padding=1)
        self.outer = Layer(linear, build.generator, activation="identity", init=build.config.init, output=True)

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        return x + self.outer(self.inner(self.entry(x), trace), trace)


class ImpalaStage(nn.Module):
    """Convolution, 3x3 max-pool of stride 2, two residual blocks."""

    def __init__(self, inputs: int, channels: int, build: LayerBuilder) -> None:
        super().__init__()
        linear = blank(nn.Conv2d, inputs, channels, 3, padding=1)
        self.stem = Layer(linear, build.generator, activation="identity", init=build.config.init, output=True)
        build.size = tuple((n + 1) // 2 for n in build.size)
        self.first = Residual(channels, build)
        self.second = Residual(channels, build)

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        x = F.max_pool2d(self.stem(x, trace), 3, stride=2, padding=1)
        return self.second(self.first(x, trace), trace)


class ImpalaCNN(Pixels):
    """Three stages of 16, 32 and 32 channels (Espeholt et al. 2018, 1802.01561, figure 3, right)."""

    def __init__(self, observation: ObservationSpec, build: LayerBuilder) -> None:
        super().__init__(observation)
        inputs = observation.shape[0]
        for channels in (16, 32, 32):
            self.blocks.append(ImpalaStage(inputs, build.channels(channels), build))
            inputs = build.channels(channels)
        self.exit = ACTIVATIONS[build.config.activation]()
        self._measure(observation)

    def forward(self, obs: Tensor, trace: Trace | None = None) -> Tensor:
        x = self.scaled(obs)
        for block in self.blocks:
            x = block(x, trace)
        return self.exit(x).flatten(1)


BODIES: dict[str, type[NatureCNN] | type[MinAtarCNN] | type[DrQCNN] | type[ImpalaCNN]] = {
    "nature": NatureCNN,
    "minatar": MinAtarCNN,
    "drq": DrQCNN,
    "impala": ImpalaCNN,
}


def build_encoder(observation: ObservationSpec, build: LayerBuilder, default: BodyName = "nature") -> Vectors | Pixels:
    """The encoder of a configuration; `default` is the body that `auto` selects for large images.

    Raises:
        ValueError: The body reads images and the observations are vectors, or the images are too small for it.
    """
    body = build.config.body
    if body == "auto":
        small = observation.pixels and min(observation.shape[1:]) < 36
        body = ("minatar" if small else default) if observation.pixels else "mlp"
    if body == "mlp":
        return Vectors(observation)
    if not observation.pixels:
        raise ValueError(
            f"the body {body!r} reads images (uint8, channel first), not observations of shape {observation.shape}; "
            "use --agent.network.body mlp"
        )
    build.size = tuple(observation.shape[1:])
    try:
        encoder = BODIES[body](observation, build)
    except RuntimeError as error:
        raise ValueError(
            f"observations of shape {observation.shape} are too small for the body {BODIES[body].__name__}; choose "
            "another with --agent.network.body"
        ) from error
    # Weights in the same layout as the data; otherwise every call would convert them.
    return cast(Pixels, encoder.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


class ValueNetwork(nn.Module):
    """Observations [B, *obs] → logits [B, outputs]; the actor may read the outputs of `encoder` or `body`."""

    def __init__(self, observation: ObservationSpec, outputs: int, config: NetworkConfig, generator: Generator) -> None:
        super().__init__()
        build = LayerBuilder(config, generator)
        self.encoder = build_encoder(observation, build)
        self.body = Dense(self.encoder.features, config.hidden, build)
        self.output = build.output(self.body.features, outputs)

    def forward(self, obs: Tensor, trace: Trace | None = None) -> Tensor:
        return self.read(obs, trace)[0]

    def read(self, obs: Tensor, trace: Trace | None = None) -> tuple[Tensor, Tensor]:
        """Logits [B, outputs], and the features [B, F] from which the output layer computes them."""
        features = self.body(self.encoder(obs, trace), trace)
        logits: Tensor = self.output.forward(features)
        return logits, features


class QNetwork(nn.Module):
    """Observations [B, *obs] → logits [B, actions, outputs]; `outputs` belongs to the value head.

    `encoder` holds the convolutions. `head` (in a dueling network, two streams) holds the dense layers.
    """

    def __init__(
        self,
        observation: ObservationSpec,
        actions: int,
        outputs: int,
        config: NetworkConfig,
        generator: Generator,
        *,
        dueling: bool = False,
    ) -> None:
        super().__init__()
        build = LayerBuilder(config, generator)
        self.actions, self.outputs, self.dueling = actions, outputs, dueling
        self.encoder = build_encoder(observation, build)
        self.head = Dense(self.encoder.features, config.hidden, build)
        self.advantage = build.output(self.head.features, actions * outputs)
        if dueling:
            self.value_head = Dense(self.encoder.features, config.hidden, build)
            self.value = build.output(self.value_head.features, outputs)
        self.injection = Injection(self.head_modules(), config.injections) if config.injections else None

    def head_modules(self) -> dict[str, nn.Module]:
        """The dense modules from features to logits, by name."""
        names = ("head", "advantage", "value_head", "value") if self.dueling else ("head", "advantage")
        return {name: getattr(self, name) for name in names}

    def forward(self, obs: Tensor, trace: Trace | None = None) -> Tensor:
        features = self._modules["encoder"].forward(obs, trace)  # type: ignore[union-attr]
        logits = self.logits(self._modules, features, trace)
        if self.injection is not None:
            logits = self.injection(logits, lambda modules: self.logits(modules, features))
        return logits

    def logits(self, modules: Mapping[str, Any], features: Tensor, trace: Trace | None = None) -> Tensor:
        """Features [B, F] → logits [B, actions, outputs], by this head's modules or a copy of them."""
        logits = modules["advantage"].forward(modules["head"].forward(features, trace))
        logits = logits.view(-1, self.actions, self.outputs)
        if self.dueling:
            # Wang et al. 2016 (1511.06581), eq. 9: the mean advantage is subtracted.
            value = modules["value"].forward(modules["value_head"].forward(features, trace)).unsqueeze(1)
            logits = value + logits - logits.mean(dim=1, keepdim=True)
        return logits


class Projection(nn.Module):
    """Image features → layer-normalised tanh features of a small width (Yarats et al. 2021, 2107.09645)."""

    def __init__(self, inputs: int, units: int, build: LayerBuilder) -> None:
        super().__init__()
        self.layer = Layer(
            blank(nn.Linear, inputs, units),
            build.generator,
            activation="tanh",
            norm="layer_norm",
            init=build.config.init,
        )
        self.features = units

    def forward(self, x: Tensor, trace: Trace | None = None) -> Tensor:
        return self.layer(x, trace)


class QFunction(nn.Module):
    """Features and action → logits [B, outputs]."""

    def __init__(self, features: int, action: int, outputs: int, hidden: Sequence[int], build: LayerBuilder) -> None:
        super().__init__()
        self.body = Dense(features + action, hidden, build)
        self.output = build.output(self.body.features, outputs)
        count = build.config.injections
        self.injection = Injection(self.head_modules(), count) if count else None

    def head_modules(self) -> dict[str, nn.Module]:
        """All modules, from features and action to logits, by name."""
        return {"body": self.body, "output": self.output}

    def forward(self, features: Tensor, action: Tensor, trace: Trace | None = None) -> Tensor:
        x = torch.cat([features, action], dim=1)
        logits = self.logits(self._modules, x, trace)
        if self.injection is not None:
            logits = self.injection(logits, lambda modules: self.logits(modules, x))
        return logits

    def logits(self, modules: Mapping[str, Any], x: Tensor, trace: Trace | None = None) -> Tensor:
        """Features and action [B, F + A] → logits [B, outputs], by this head's modules or a copy of them."""
        logits: Tensor = modules["output"].forward(modules["body"].forward(x, trace))
        return logits


class Critic(nn.Module):
    """N action-value functions on one encoder: [B, *obs], [B, A] → logits [N, B, outputs]."""

    def __init__(
        self,
        observation: ObservationSpec,
        action: int,
        outputs: int,
        config: NetworkConfig,
        generator: Generator,
        *,
        size: int = 2,
        projection: int = 50,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        build = LayerBuilder(config, generator, dropout=dropout)
        self.encoder = build_encoder(observation, build, default="drq")
        self.projection = Projection(self.encoder.features, projection, build) if observation.pixels else None
        features = self.projection.features if self.projection else self.encoder.features
        self.members = nn.ModuleList(QFunction(features, action, outputs, config.hidden, build) for _ in range(size))

    def values(self, encoded: Tensor, action: Tensor, trace: Trace | None = None) -> Tensor:
        """Logits [N, B, outputs] from the encoder's output."""
        if self.projection is not None:
            encoded = self.projection(encoded, trace)
        return torch.stack([member.forward(encoded, action, trace) for member in self.members])

    def forward(self, obs: Tensor, action: Tensor, trace: Trace | None = None) -> Tensor:
        return self.values(self.encoder(obs, trace), action, trace)


class Actor(nn.Module):
    """Encoded observations [B, F] → mean and log standard deviation of a Gaussian [B, A] before squashing.

    The standard deviation is clipped to e^-20 … e^2 (Haarnoja et al. 2018, the authors' code).
    """

    def __init__(
        self, features: int, action: int, config: NetworkConfig, generator: Generator, *, projection: int = 0
    ) -> None:
        super().__init__()
        build = LayerBuilder(config, generator)
        self.projection = Projection(features, projection, build) if projection else None
        self.body = Dense(projection or features, config.hidden, build)
        self.output = build.output(self.body.features, 2 * action)

    def forward(self, encoded: Tensor, trace: Trace | None = None) -> tuple[Tensor, Tensor]:
        if self.projection is not None:
            encoded = self.projection(encoded, trace)
        mean, log_std = self.output.forward(self.body.forward(encoded, trace)).chunk(2, dim=1)
        return mean, log_std.clamp(-20.0, 2.0)

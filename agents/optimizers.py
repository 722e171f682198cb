"""Optimizers: torch's fused Adam, called directly: one kernel per step, without torch's checks and hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common.ranges import NotNegative, Positive, ShareBelow, check_numbers


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam (Kingma & Ba 2015), optionally with decoupled weight decay (Loshchilov & Hutter 2019).

    Attributes:
        lr: Learning rate.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay (AdamW); 0 is plain Adam.
        max_grad_norm: Gradients are scaled to this norm if they exceed it; 0 is off.
    """

    lr: Positive = 3e-4
    beta1: ShareBelow = 0.9
    beta2: ShareBelow = 0.999
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_numbers(self)


class Adam(torch.optim.AdamW):
    """torch's fused AdamW, bitwise equal to it; optionally with a step count per weight (`count_per_weight`).

    Its state is allocated at construction, so that surgery and captured graphs can use it before the first step. `step`
    calls the fused kernel directly: for the small networks of control tasks, torch's checks and profiling hooks take
    longer than the kernel.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        super().__init__(
            list(parameters),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
                }
        self._per_weight: set[Tensor] = set()
        self._lr: Tensor | None = None  # the learning rate on the device, once it has been changed

    def count_per_weight(self, parameter: Tensor) -> None:
        """Give every weight of a parameter its own step count; call this before the first step (Dohare et al. 2024,
        Nature 632: AdamGnT as described in the paper; the released code does not use the bias correction that it
        computes, so that a weight's k-th step is (1 - beta1^k) sqrt(1 - beta2^k) times the learning rate).

        torch keeps one step counter per tensor. This is wrong for weights that are reinitialised at another time than
        their neighbours: zeroing only their moments makes their first steps 3.2 times the learning rate, and zeroing
        the counter slows all other weights. Here each weight has its own bias correction. Instead of a step count a,
        the state holds the value that the correction needs, 1 - beta^a. This is the same exponential average, taken
        over ones (`filled`): zero for a new weight, near one for an old one, and cheaper to update than a power is to
        compute.
        """
        if parameter not in self._per_weight:
            self._per_weight.add(parameter)
            for name in ("filled", "filled_sq"):
                self.state[parameter][name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    def set_learning_rate(self, lr: float) -> None:
        """Change the learning rate. From then on the kernel reads it from the device, so a captured graph sees it."""
        for group in self.param_groups:
            if self._lr is None:
                device = group["params"][0].device
                self._lr = torch.empty(
                    (), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device
                )
            self._lr.fill_(lr)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state. A parameter with step counts per weight takes them from the tensor's step count if the
        saved state has none per weight."""
        # torch keeps references to the given tensors: without a copy, two optimizers would share their state.
        super().load_state_dict(copy.deepcopy(state_dict))
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if p in self._per_weight and "filled" not in state:
                    ones = torch.ones_like(p, memory_format=torch.preserve_format)
                    for name, beta in zip(("filled", "filled_sq"), group["betas"], strict=True):
                        state[name] = ones * (1 - beta ** state["step"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Make one step with `.grad` of every parameter; each parameter must have one."""
        assert closure is None
        for group in self.param_groups:
            self.apply(group, [p.grad for p in group["params"]])

    def apply(self, group: dict[str, Any], gradients: list[Tensor]) -> None:
        """Make one step of a parameter group with the given gradients."""
        parameters = group["params"]
        if self._per_weight:
            pairs = list(zip(parameters, gradients, strict=True))
            counted = [pair for pair in pairs if pair[0] in self._per_weight]
            if counted:
                self._apply_per_weight(group, [p for p, _ in counted], [g for _, g in counted])
            parameters = [p for p, _ in pairs if p not in self._per_weight]
            gradients = [g for p, g in pairs if p not in self._per_weight]
            if not parameters:
                return
        states = [self.state[p] for p in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            parameters,
            gradients,
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            steps,
            lr=group["lr"] if self._lr is None else self._lr,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=None,
        )

    def _apply_per_weight(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Make the same step, with the bias correction of each weight's own step count."""
        states = [self.state[p] for p in parameters]
        names = ("exp_avg", "exp_avg_sq", "filled", "filled_sq")
        mean, square, filled, filled_sq = ([s[name] for s in states] for name in names)
        beta1, beta2 = group["betas"]
        torch._foreach_add_([s["step"] for s in states], 1)
        torch._foreach_lerp_(mean, gradients, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - beta2)
        for averages, beta in ((filled, beta1), (filled_sq, beta2)):
            torch._foreach_mul_(averages, beta)
            torch._foreach_add_(averages, 1 - beta)
        # mean / filled / (sqrt(square / filled_sq) + eps)
        scale = torch._foreach_div(square, filled_sq)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_mul_(scale, filled)
        if group["weight_decay"]:
            lr = group["lr"] if self._lr is None else self._lr
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        if self._lr is None:
            torch._foreach_addcdiv_(parameters, mean, scale, -group["lr"])
        else:
            torch._foreach_sub_(parameters, torch._foreach_mul(torch._foreach_div(mean, scale), self._lr))

    # torch wraps `step` in a profiling hook at construction, unless this attribute marks it as wrapped already.
    step.hooked = True  # type: ignore[attr-defined]


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> Adam:
    """Adam over the parameters that require gradients."""
    return Adam([p for p in parameters if p.requires_grad], config)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Change an optimizer's learning rate between two updates."""
    if isinstance(optimizer, Adam):
        optimizer.set_learning_rate(lr)
    for group in optimizer.param_groups:
        group["lr"] = lr


def step(loss: Tensor, optimizer: torch.optim.Optimizer, max_grad_norm: float = 0.0) -> None:
    """Make one gradient update of the optimizer's parameters, and of no others.

    Gradients are computed for the optimizer's parameters only. Other networks in the loss cost no parameter gradients,
    and their `.grad` does not change. The used (clipped) gradients stay in `.grad` for monitors. `optimizer.clipped` is
    the factor by which they were clipped (0-d, or None if clipping is off).
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # The fused kernel needs gradients with the strides of their parameters. Some have others: gradients of a
    # convolution's weights (channels last) that come from another operator, and expanded ones.
    gradients = [
        gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True)
    ]
    optimizer.clipped = clip_(gradients, max_grad_norm) if max_grad_norm else None  # type: ignore[attr-defined]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


@torch.no_grad()
def clip_(gradients: list[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most `max_norm`, as `clip_grad_norm_`; return the factor."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    factor = (max_norm / (norm + 1e-6)).clamp_(max=1.0)
    torch._foreach_mul_(gradients, factor)
    return factor

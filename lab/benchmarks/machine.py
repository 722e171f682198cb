"""The machine: its description, and the limits that bound every speed, measured on the spot."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

ENVIRONMENTS = ("CartPole-v1", "ALE/Pong-v5", "HalfCheetah-v5")
LIBRARIES = ("stable-baselines3", "gymnasium", "ale-py", "mujoco")


def describe(device: str = "cpu") -> dict[str, str]:
    """The machine and the versions on it, by title."""
    lines = {"processor": f"{_processor()}, {os.cpu_count()} hardware threads"}
    if (memory := _memory()) is not None:
        lines["memory"] = f"{memory / 2**30:.0f} GiB"
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        lines["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    lines["software"] = ", ".join(
        (
            f"{platform.system()} {platform.machine()}",
            f"Python {platform.python_version()}",
            f"torch {torch.__version__}",
            *(f"{name} {version}" for name in LIBRARIES if (version := _version(name))),
        )
    )
    return lines


def load() -> str:
    """The load of the machine at present: the number of busy processes in the last minute."""
    return f"{os.getloadavg()[0]:.1f} busy processes in the last minute"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def synchronise(device: str) -> None:
    """Wait until the device has done all its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def rate(make: Callable[[int], Any], seconds: float, device: str = "cpu") -> float:
    """Calls per second: the median of three blocks of calls that take `seconds` together.

    Args:
        make: Makes the given number of calls.
        seconds: Time for the three blocks. Finding the size of a block takes about half as much.
        device: The clock stops when this device has done all its work.
    """

    def timed(calls: int) -> float:
        synchronise(device)
        start = time.perf_counter()
        make(calls)
        synchronise(device)
        return time.perf_counter() - start

    calls = 1
    while (spent := timed(calls)) < seconds / 6:
        calls *= 2
    calls = max(1, round(calls * seconds / 3 / spent))
    return calls / statistics.median(timed(calls) for _ in range(3))


def repeat(function: Callable[[], Any]) -> Callable[[int], None]:
    """A function that calls `function` the given number of times."""

    def make(calls: int) -> None:
        for _ in range(calls):
            function()

    return make


def matrix_product(device: str, seconds: float) -> float:
    """float32 GFLOP/s of a product of two square matrices."""
    size = 4_096 if torch.device(device).type == "cuda" else 1_024
    a, b = torch.ones(size, size, device=device), torch.ones(size, size, device=device)
    out = torch.empty_like(a)
    return rate(repeat(lambda: torch.mm(a, b, out=out)), seconds, device) * 2 * size**3 / 1e9


def copy(device: str, seconds: float) -> float:
    """GB/s, read and written, of a copy that no cache holds."""
    a = torch.zeros(2**26, device=device)
    b = torch.empty_like(a)
    return rate(repeat(lambda: b.copy_(a)), seconds, device) * 2 * a.nbytes / 1e9


def launches(device: str, seconds: float) -> float:
    """Operators on one number per second: the most operators that Python starts."""
    one = torch.zeros(1, device=device)
    return rate(repeat(lambda: one.add_(1.0)), seconds, device)


def environment(name: str, seconds: float) -> float:
    """Steps per second of one environment alone, with random actions."""
    from pliant.envs import make

    envs = make(name, num_envs=1, seed=0)
    envs.reset()
    rng, spec = np.random.default_rng(0), envs.action
    actions: Any
    if spec.discrete:
        actions = rng.integers(spec.size, size=(512, 1))
    else:
        actions = rng.uniform(spec.low, spec.high, (512, 1, spec.size)).astype(np.float32)
    turn = iter(range(10**12))
    per_second = rate(repeat(lambda: envs.step(actions[next(turn) % 512])), seconds)
    envs.close()
    return per_second


def limits(device: str) -> dict[str, tuple[str, Callable[[float], float]]]:
    """Title → unit and measurement, which takes a number of seconds."""
    return {
        "matrix product, float32": ("GFLOP/s", lambda seconds: matrix_product(device, seconds)),
        "copy in memory, read and written": ("GB/s", lambda seconds: copy(device, seconds)),
        "operators on one number": ("1/s", lambda seconds: launches(device, seconds)),
        **{
            f"{name} alone, random actions": ("steps/s", lambda seconds, name=name: environment(name, seconds))  # type: ignore[misc]
            for name in ENVIRONMENTS
        },
    }

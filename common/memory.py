"""How much memory a device has to spare, so that what cannot fit is refused before it is allocated."""

from __future__ import annotations

import os
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
HEADROOM = 0.9  # of the available memory; the rest is left to everything else
SMALL = 256 * 2**20  # bytes that are there without asking, for an agent may be built a thousand times


class TooLarge(ValueError):
    """Something does not fit into the memory of its device. The message says what it needs and what there is."""


def refuse_too_large(what: str, nbytes: int, device: torch.device | str, way_out: str) -> None:
    """Refuse what does not fit into the memory that a device has to spare, before it is allocated.

    Args:
        what: What is to be allocated, as the subject of a sentence in the singular.
        nbytes: Bytes that it takes.
        way_out: What makes it smaller, as a request.

    Raises:
        TooLarge: It does not fit.
    """
    if nbytes <= SMALL:
        return
    spare = int(available_memory(device) * HEADROOM)
    if nbytes > spare:
        raise TooLarge(f"{what} takes {in_bytes(nbytes)}, but {device} has {in_bytes(spare)} to spare: {way_out}")


def in_bytes(count: float) -> str:
    """A number of bytes as people read it: 7.2 kB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def available_memory(device: torch.device | str) -> int:
    """Bytes that can still be allocated on a device.

    For a CPU it is what the system calls available, or what the control group of this process (a container, a batch
    job) leaves of its limit, whichever is less.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([_system_memory(), *_cgroup_memory()])


def _system_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: what is installed is the best bound there is
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_memory() -> list[int]:
    """What each control group with a limit leaves free, from that of this process up to the root (versions 1 and 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, cache = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage, cache = (
                CGROUPS / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        # Inside a container the path can be that of the host, of which only the root is visible.
        here = root / path.lstrip("/")
        for group in (here, *here.parents):
            if group.is_relative_to(root):
                found += _group_memory(group, limit, usage, cache)
    return found


def _group_memory(group: Path, limit: str, usage: str, cache: str) -> list[int]:
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        # File cache counts as used, yet the kernel gives it back when asked.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return []  # no such group, or one without a memory controller
    return [] if most == "max" else [max(0, int(most) - used + int(stat.get(cache, 0)))]

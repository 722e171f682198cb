"""How much memory a device has left. An object that cannot fit is refused before it is allocated."""

from __future__ import annotations

import os
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
USABLE = 0.9  # fraction of the available memory that one object may take
SMALL = 256 * 2**20  # smaller objects are not checked: a check takes time, and tests build thousands of agents


class TooLarge(ValueError):
    """An object does not fit into the memory of its device. The message gives the needed and the usable bytes."""


def refuse_too_large(what: str, nbytes: int, device: torch.device | str, way_out: str) -> None:
    """Check, before an allocation, that an object fits into the usable memory of a device.

    Args:
        what: The object to be allocated; the subject of the message, in the singular.
        nbytes: Bytes that it takes.
        device: The device on which it would be allocated.
        way_out: Advice on how to make it smaller, as an imperative: "give a smaller …".

    Raises:
        TooLarge: It does not fit.
    """
    if nbytes <= SMALL:
        return
    spare = int(available_memory(device) * USABLE)
    if nbytes > spare:
        raise TooLarge(f"{what} takes {in_bytes(nbytes)}, but {device} has {in_bytes(spare)} to spare: {way_out}")


def refuse_too_many(number: int, what: str, nbytes: int, device: torch.device | str, flag: str) -> None:
    """Check, before any is allocated, that a number of equal objects fits into the free memory of a device.

    Args:
        number: How many objects.
        what: Their name in the plural.
        nbytes: Bytes that one of them takes.
        flag: The flag that gives their number.

    Raises:
        TooLarge: They do not fit. The message states how many would.
    """
    if number * nbytes <= SMALL:
        return
    spare = int(available_memory(device) * USABLE)
    if number * nbytes > spare:
        most = spare // nbytes
        way_out = f"{flag} {most} fits" if most else "not even one fits"
        raise TooLarge(
            f"{number} {what} take {in_bytes(number * nbytes)} ({in_bytes(nbytes)} each), but {device} has "
            f"{in_bytes(spare)} to spare: {way_out}"
        )


def in_bytes(count: float) -> str:
    """A number of bytes with a readable unit: 7.2 kB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def available_memory(device: torch.device | str) -> int:
    """Bytes that can still be allocated on a device.

    For a CPU: the memory that the system reports as available, or the rest of the memory limit of this process's
    control group (a container, a batch job), whichever is less.
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
        pass  # not Linux: the installed memory is the best available bound
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_memory() -> list[int]:
    """Free bytes of each control group with a limit, from this process's group up to the root (versions 1 and 2)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    free = []
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
        # Inside a container the path may be the host's, of which only the root is visible here.
        here = root / path.lstrip("/")
        for group in (here, *here.parents):
            if group.is_relative_to(root):
                free += _group_memory(group, limit, usage, cache)
    return free


def _group_memory(group: Path, limit: str, usage: str, cache: str) -> list[int]:
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        # File cache counts as used, but the kernel frees it on demand.
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return []  # there is no such group, or it has no memory controller
    return [] if most == "max" else [max(0, int(most) - used + int(stat.get(cache, 0)))]

"""
How many processors and how much memory this process may use, as ``nproc`` and a container's limits say.

A container or a job has a control group (cgroup), whose limits the kernel enforces: threads beyond them only
wait for each other, and memory beyond them ends the process.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def usable_processors(root: Path = _ROOT) -> int:
    """Return how many processors the process may run on, or the quota of its cgroup if that is less."""
    quotas = [*map(_quota_2, _groups(root, "")), *map(_quota_1, _groups(root, "cpu"))]
    limits = [len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas if quota)]
    return max(1, min(limits))


def usable_memory(root: Path = _ROOT) -> int:
    """Return the memory in bytes: of the machine, or the limit of the process's cgroup if less."""
    files = [group / "memory.max" for group in _groups(root, "")]
    files += [group / "memory.limit_in_bytes" for group in _groups(root, "memory")]
    limits = [int(words[0]) for file in files if (words := _words(file)) and words[0].isdecimal()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *filter(None, limits)])


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the process's cgroup of *controller*, empty for version 2, and those around it."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text("utf-8", "surrogateescape").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                top = root / "sys/fs/cgroup" / controller
                group = top / path.strip("/")
                # In a container the path may be that outside of it: then the top is its own group.
                yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _quota_2(group: Path) -> float | None:
    """Return how many processors version 2 allows, from ``QUOTA PERIOD``; None for ``max PERIOD``."""
    words = _words(group / "cpu.max")
    return _share(*words) if len(words) == 2 else None


def _quota_1(group: Path) -> float | None:
    words = [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
    return _share(*words) if len(words) == 2 else None


def _share(quota: str, period: str) -> float | None:
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _words(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text("ascii", "replace").split()
    return []

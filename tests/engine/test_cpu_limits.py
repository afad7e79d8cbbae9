"""Processors and memory by affinity and by cgroups, of both versions, in containers and outside."""

import os
from pathlib import Path

import pytest

from virnuc_async.engine.cpu_limits import usable_memory, usable_processors

ALL, MEMORY = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
VERSION_2 = {"proc/self/cgroup": "0::/jobs/7"}
VERSION_1 = {"proc/self/cgroup": "5:memory:/docker/7\n4:cpu,cpuacct:/docker/7\n1:name=systemd:/docker/7"}


def written(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({}, 8),
        (VERSION_2, 8),
        (VERSION_2 | {"sys/fs/cgroup/jobs/7/cpu.max": "max 100000"}, 8),
        (VERSION_2 | {"sys/fs/cgroup/jobs/7/cpu.max": "300000 100000"}, 3),
        (VERSION_2 | {"sys/fs/cgroup/jobs/7/cpu.max": "150000 100000"}, 2),  # one and a half: two are busy
        (VERSION_2 | {"sys/fs/cgroup/jobs/7/cpu.max": "10000 100000"}, 1),
        (VERSION_2 | {"sys/fs/cgroup/jobs/7/cpu.max": "9900000 100000"}, 8),
        (VERSION_2 | {"sys/fs/cgroup/jobs/cpu.max": "200000 100000"}, 2),  # of a group around it
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),  # in a container
        (VERSION_2 | {"sys/fs/cgroup/jobs/7/cpu.max": "nonsense"}, 8),
        (
            VERSION_1
            | {"sys/fs/cgroup/cpu/docker/7/cpu.cfs_quota_us": "250000"}
            | {"sys/fs/cgroup/cpu/docker/7/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            VERSION_1
            | {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            VERSION_1
            | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}
            | {"sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            8,
        ),
    ],
)
def test_processors(
    files: dict[str, str], processors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_processors(written(tmp_path, files)) == processors


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, MEMORY),
        (VERSION_2 | {"sys/fs/cgroup/jobs/7/memory.max": "max"}, MEMORY),
        (VERSION_2 | {"sys/fs/cgroup/jobs/7/memory.max": "1048576"}, 1 << 20),
        (VERSION_2 | {"sys/fs/cgroup/jobs/memory.max": "2097152"}, 2 << 20),
        (VERSION_1 | {"sys/fs/cgroup/memory/docker/7/memory.limit_in_bytes": "4096"}, 4096),
        (VERSION_1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(1 << 62)}, MEMORY),
    ],
)
def test_memory(files: dict[str, str], memory: int, tmp_path: Path) -> None:
    assert usable_memory(written(tmp_path, files)) == memory


def test_of_this_process() -> None:
    assert 1 <= usable_processors() <= ALL
    assert 0 < usable_memory() <= MEMORY

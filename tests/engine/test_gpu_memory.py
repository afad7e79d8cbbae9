"""The memory use of a GPU as the driver reports it; the driver is simulated."""

from typing import NamedTuple

import pynvml
import pytest

from virnuc_async.engine.devices import Device
from virnuc_async.engine.gpu_memory import MemoryUse, memory_use

GIB = 1 << 30


class Memory(NamedTuple):
    """What the driver reports about a GPU's memory."""

    used: int
    total: int


def test_memory_in_use_is_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: calls.append("init"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetMemoryInfo",
        lambda uuid: Memory(60 * GIB, 80 * GIB) if uuid == "GPU-aa" else None,
    )
    use = memory_use(Device("cuda:0", "A100", 80 * GIB, (8, 0), uuid="GPU-aa"))
    assert use == MemoryUse(60 * GIB, 80 * GIB)
    assert (str(use), use.share) == ("60.0 of 80.0 GiB in use (75%)", 0.75)
    assert calls == ["init", "shutdown"]


def test_memory_in_use_is_unknown_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert memory_use(Device("cuda:0", "A100", 80 * GIB, (8, 0), uuid="GPU-aa")) is None

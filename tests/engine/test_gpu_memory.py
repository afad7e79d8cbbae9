"""The memory use of a GPU as the driver reports it; the driver is simulated."""

import pynvml
import pytest
from gpus import GIB, Gpu, Machine

from virnuc_async.engine.devices import Device
from virnuc_async.engine.gpu_memory import MemoryUse, memory_use

A100 = Device("cuda:0", "A100", 80 * GIB, (8, 0), uuid="GPU-aa")


def test_memory_in_use_is_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Gpu("aa", total_memory=80 * GIB, free_memory=20 * GIB, reports_memory=True), Gpu("bb")]
    Machine(gpus, gpus).install(monkeypatch)
    calls = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: calls.append("init"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: calls.append("shutdown"))
    use = memory_use(A100)
    assert use == MemoryUse(60 * GIB, 80 * GIB)
    assert (str(use), use.share, use.free) == ("60.0 of 80.0 GiB in use (75%)", 0.75, 20 * GIB)
    assert calls == ["init", "shutdown"]


def test_memory_of_a_slice_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Gpu("cc", total_memory=10 * GIB, free_memory=7 * GIB, reports_memory=True)
    gpus = [Gpu("aa", slices=[part], reports_memory=True)]
    Machine(gpus, [part]).install(monkeypatch)
    own = Device("cuda:0", "A100 MIG 1g.10gb", 10 * GIB, (8, 0), uuid="MIG-cc")
    assert memory_use(own) == MemoryUse(3 * GIB, 10 * GIB)
    # The numbers of the whole card are not those of what this process has of it.
    assert memory_use(A100) is None


def test_memory_in_use_is_unknown_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert memory_use(A100) is None


@pytest.mark.parametrize("uuid", ["GPU-aa", "GPU-zz", ""])
def test_memory_in_use_is_unknown_where_it_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, uuid: str
) -> None:
    gpus = [Gpu("aa")]
    Machine(gpus, gpus).install(monkeypatch)
    assert memory_use(Device("cuda:0", "A100", 80 * GIB, (8, 0), uuid=uuid)) is None

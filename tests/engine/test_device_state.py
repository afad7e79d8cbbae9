"""What is known of a device while it works; the driver is simulated."""

import pynvml
import pytest
from gpus import GIB, Gpu, Machine

from virnuc_async.engine.device_state import DeviceState, device_state
from virnuc_async.engine.devices import Device
from virnuc_async.engine.gpu_memory import MemoryUse

A100 = Device("cuda:0", "A100", 80 * GIB, (8, 0), uuid="GPU-aa")


def test_memory_utilization_and_temperature_are_the_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(
        "aa",
        total_memory=80 * GIB,
        free_memory=20 * GIB,
        reports_memory=True,
        utilization=97,
        temperature=61,
    )
    Machine([gpu], [gpu]).install(monkeypatch)
    assert device_state(A100) == DeviceState(MemoryUse(60 * GIB, 80 * GIB), 97.0, 61.0)


def test_what_a_gpu_does_not_tell_does_not_hide_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Gpu("aa", temperature=48)]
    Machine(gpus, gpus).install(monkeypatch)
    assert device_state(A100) == DeviceState(None, None, 48.0)


def test_nothing_is_known_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert device_state(A100) == DeviceState()


def test_of_a_cpu_it_is_the_memory_of_this_process() -> None:
    content = bytearray(64 << 20)
    state = device_state(Device("cpu:0", "CPU", 1 << 40))
    assert state.memory is not None
    assert len(content) < state.memory.used < 1 << 40
    assert (state.memory.total, state.utilization, state.temperature) == (1 << 40, None, None)

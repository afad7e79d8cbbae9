"""What the driver (NVML) tells of a GPU while it works, and the system of this process on a CPU."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pynvml

from .gpu_memory import MemoryUse, memory_of
from .nvml import nvml_session

if TYPE_CHECKING:
    from .devices import Device

_MEMORY_OF_PROCESS = Path("/proc/self/statm")  # in pages: its size, and what of that is in memory


@dataclass(frozen=True, slots=True)
class DeviceState:
    """How a device is doing; None for what nobody tells."""

    memory: MemoryUse | None = None  # of a GPU by any process, of a CPU by this one
    utilization: float | None = None  # percent of the time in which the GPU computed
    temperature: float | None = None  # degrees Celsius


def device_state(device: "Device") -> DeviceState:
    """Return what is known of *device* at this moment; it takes a call of the driver."""
    if device.capability is None:
        return DeviceState(_memory_of_process(device.memory))
    with suppress(pynvml.NVMLError), nvml_session():
        handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
        memory = utilization = temperature = None
        # Each may be unknown where the others are known: of a slice of a GPU, for example.
        with suppress(pynvml.NVMLError):
            memory = memory_of(handle, device.uuid)
        with suppress(pynvml.NVMLError):
            utilization = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        with suppress(pynvml.NVMLError):
            temperature = float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
        return DeviceState(memory, utilization, temperature)
    return DeviceState()


def _memory_of_process(total: int) -> MemoryUse | None:
    with suppress(OSError, ValueError, IndexError):
        resident = int(_MEMORY_OF_PROCESS.read_text().split()[1])
        return MemoryUse(resident * os.sysconf("SC_PAGE_SIZE"), max(total, 1))
    return None

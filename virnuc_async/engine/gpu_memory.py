"""How much memory of a GPU, or of a slice of one, is in use by any process, as the driver reports it."""

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pynvml

from .nvml import is_divided, nvml_session

if TYPE_CHECKING:
    from .devices import Device


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of a GPU in use by any process, in bytes."""

    used: int
    total: int

    @property
    def share(self) -> float:
        """The part of all memory that is in use, 0 to 1."""
        return self.used / self.total

    @property
    def free(self) -> int:
        """What is not in use."""
        return self.total - self.used

    def __str__(self) -> str:
        return f"{self.used / 2**30:.1f} of {self.total / 2**30:.1f} GiB in use ({self.share:.0%})"


def memory_use(device: "Device") -> MemoryUse | None:
    """Return a GPU's memory use; None without a driver, or if it does not report it."""
    with suppress(pynvml.NVMLError), nvml_session():
        return memory_of(pynvml.nvmlDeviceGetHandleByUUID(device.uuid), device.uuid)
    return None


def memory_of(handle: Any, uuid: str) -> MemoryUse | None:
    """Return the memory use of the GPU or slice *uuid*, whose *handle* this is; raises NVMLError."""
    if uuid.startswith("GPU-") and is_divided(handle):
        return None  # of which slices CUDA does not say
    info = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return MemoryUse(int(info.used), int(info.total))

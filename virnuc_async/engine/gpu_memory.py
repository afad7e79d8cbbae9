"""How much memory of a GPU is in use, by any process, as the driver reports it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pynvml

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

    def __str__(self) -> str:
        return f"{self.used / 2**30:.1f} of {self.total / 2**30:.1f} GiB in use ({self.share:.0%})"


def memory_use(device: "Device") -> MemoryUse | None:
    """Return a GPU's memory use; None without a driver, or if it does not report it."""
    with suppress(pynvml.NVMLError), nvml_session():
        info = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(device.uuid))
        return MemoryUse(int(info.used), int(info.total))
    return None


@contextmanager
def nvml_session() -> Iterator[None]:
    """Initialize NVML, the driver's interface, for the time of the block."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()

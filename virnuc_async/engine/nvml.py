"""
The GPUs as the driver knows them (NVML): their numbers in nvidia-smi, and the slices of a divided one (MIG).

CUDA has numbers of its own, sees what CUDA_VISIBLE_DEVICES leaves, and of a divided GPU one slice.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pynvml

_BROKEN = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU of the machine."""

    uuid: str  # GPU-...
    slices: tuple[str, ...] = ()  # MIG-...; none if it is not divided

    @property
    def uuids(self) -> tuple[str, ...]:
        """All names that a device of it may have."""
        return self.uuid, *self.slices


@contextmanager
def nvml_session() -> Iterator[None]:
    """Initialize NVML, the driver's interface, for the time of the block."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def cards() -> list[Card]:
    """Return the GPUs of the machine, in nvidia-smi's order; none without a driver."""
    with suppress(pynvml.NVMLError), nvml_session():
        return [_card(number) for number in range(pynvml.nvmlDeviceGetCount())]
    return []


def driver_uuid(cuda_uuid: str, among: Sequence[Card]) -> str:
    """
    Return the driver's name for what CUDA calls *cuda_uuid*, one of the GPUs or slices of *among*.

    Of a divided GPU CUDA has one slice, under its own name or that of the GPU.
    """
    for card in among:
        if f"MIG-{cuda_uuid}" in card.slices:
            return f"MIG-{cuda_uuid}"
        if f"GPU-{cuda_uuid}" == card.uuid and len(card.slices) == 1:
            return card.slices[0]
    return f"GPU-{cuda_uuid}"


def failure_of(uuid: str) -> str:
    """Return why the GPU or slice cannot be used, if the driver says so; else an empty text."""
    try:
        with nvml_session():
            pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError as error:
        if error.value in _BROKEN:
            return f"{error}: see nvidia-smi"
    return ""


def _card(number: int) -> Card:
    # A card that has failed keeps its number; the other cards can be used.
    with suppress(pynvml.NVMLError):
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        return Card(pynvml.nvmlDeviceGetUUID(handle), tuple(_slices(handle)))
    return Card("")


def _slices(handle: Any) -> Iterator[str]:
    count = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle) if is_divided(handle) else 0
    for index in range(count):
        with suppress(pynvml.NVMLError):  # fewer than the most there can be
            yield pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))


def is_divided(handle: Any) -> bool:
    """Return whether the GPU of *handle* is divided into slices."""
    with suppress(pynvml.NVMLError):  # most GPUs cannot be
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    return False

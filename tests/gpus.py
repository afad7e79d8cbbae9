"""A machine with GPUs that follow rules: what CUDA, torch and the driver (NVML) report about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pynvml
import pytest
import torch

GIB = 1 << 30


class Memory(NamedTuple):
    """What the driver reports about a GPU's memory."""

    used: int
    total: int


class Utilization(NamedTuple):
    """What the driver reports about the work of a GPU, in percent of the time."""

    gpu: int
    memory: int


@dataclass
class Gpu:
    """What CUDA and NVML report about a GPU, or a slice of one."""

    uuid: str
    name: str = "H100"
    major: int = 9
    minor: int = 0
    total_memory: int = 80 * GIB
    free_memory: int = 70 * GIB
    multi_processor_count: int = 132
    slices: list["Gpu"] = field(default_factory=list)
    is_broken: bool = False  # for CUDA
    is_lost: bool = False  # for the driver
    reports_memory: bool = False  # the driver, not only CUDA
    utilization: int | None = None  # percent
    temperature: int | None = None


@dataclass
class Machine:
    """
    A machine with the GPUs *all*, in nvidia-smi's order.

    CUDA shows *visible* to this process, in another order; *contexts* are the GPUs that it was asked about
    by what needs a context.
    """

    all: Sequence[Gpu]
    visible: Sequence[Gpu]
    contexts: list[str] = field(default_factory=list)
    names_parent: bool = False  # whether CUDA calls a slice by the name of its GPU

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.cuda, "device_count", lambda: len(self.visible))
        patch.setattr(torch.cuda, "get_device_properties", self.properties)
        patch.setattr(torch.cuda, "mem_get_info", self.cuda_memory)
        patch.setattr(pynvml, "nvmlInit", lambda: None)
        patch.setattr(pynvml, "nvmlShutdown", lambda: None)
        patch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(self.all))
        patch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda number: self.all[number])
        patch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", self.handle)
        patch.setattr(pynvml, "nvmlDeviceGetUUID", self.uuid)
        patch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", self.memory)
        patch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", self.utilization)
        patch.setattr(pynvml, "nvmlDeviceGetTemperature", self.temperature)
        patch.setattr(pynvml, "nvmlDeviceGetMigMode", self.mig_mode)
        patch.setattr(pynvml, "nvmlDeviceGetMaxMigDeviceCount", lambda _: 7)
        patch.setattr(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", self.mig_handle)

    def properties(self, number: int) -> Gpu:
        gpu = self.visible[number]
        if gpu.is_broken:
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nmore")
        parent = next((card for card in self.all if gpu in card.slices), None)
        return replace(gpu, uuid=parent.uuid) if parent and self.names_parent else gpu

    def cuda_memory(self, device: torch.device) -> tuple[int, int]:
        gpu = self.visible[device.index]
        self.contexts.append(gpu.uuid)
        if gpu.is_broken:
            raise torch.AcceleratorError("CUDA error: out of memory\nmore")
        return gpu.free_memory, gpu.total_memory

    def uuid(self, gpu: Gpu) -> str:
        return f"GPU-{gpu.uuid}" if gpu in self.all else f"MIG-{gpu.uuid}"

    def handle(self, uuid: str) -> Gpu:
        for gpu in self.all:
            for named in (gpu, *gpu.slices):
                if self.uuid(named) == uuid:
                    return named
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def memory(self, gpu: Gpu) -> Memory:
        if gpu.is_lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if not gpu.reports_memory:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return Memory(gpu.total_memory - gpu.free_memory, gpu.total_memory)

    def utilization(self, gpu: Gpu) -> Utilization:
        return Utilization(_known(gpu.utilization), 0)

    def temperature(self, gpu: Gpu, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return _known(gpu.temperature)

    def mig_mode(self, gpu: Gpu) -> list[int]:
        if gpu not in self.all or gpu.major < 8:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(bool(gpu.slices)), 0]

    def mig_handle(self, gpu: Gpu, index: int) -> Gpu:
        if index >= len(gpu.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return gpu.slices[index]


def _known(value: int | None) -> int:
    if value is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value

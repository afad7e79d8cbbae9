"""Which devices are available, which of them a run uses, in which precision and batch size."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import pynvml
import torch

from virnuc_async.errors import MixedDevices, UnknownDevice, UnsuitablePrecision
from virnuc_async.settings import Precision, Settings
from virnuc_async.text import plural

from .gpu_memory import nvml_session
from .instruction_sets import instruction_sets

BASE_BUDGET = {Precision.FP32: 2048, Precision.BF16: 3072, Precision.FP16: 3072, Precision.FP8: 3072}

_MAX_BUDGET = 16_384  # with more tokens a GPU is not faster, and a failed batch costs more
# Activations of ESM-2 3B: at most about 12 rows of 2,560 numbers at the same time.
_NUMBERS_PER_TOKEN = 12 * 2560
_BYTES_PER_TOKEN = {
    Precision.FP32: _NUMBERS_PER_TOKEN * 4,
    Precision.BF16: _NUMBERS_PER_TOKEN * 2,
    Precision.FP16: _NUMBERS_PER_TOKEN * 2,
    Precision.FP8: _NUMBERS_PER_TOKEN * 2,
}


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a share of the CPU's cores."""

    name: str  # cuda:1, or cuda:1/1 for a second replica there; cpu:0, cpu:1
    model: str  # of a CPU with the instruction sets that are used; of a slice of a GPU with its profile
    memory: int  # total, in bytes
    capability: tuple[int, int] | None = None  # CUDA's; None on the CPU
    threads: int = 1  # of a CPU replica
    index: int = 0  # CUDA's number of the GPU
    uuid: str = ""  # of the GPU, as the driver writes it
    multiprocessors: int = 0  # of the GPU, or of the slice of it

    @property
    def kind(self) -> str:
        """Devices of one kind compute identical results, to the last bit; so do equal slices of GPUs."""
        if self.capability is None:
            return self.model
        major, minor = self.capability
        cores = f", {plural(self.multiprocessors, 'multiprocessor')}" if self.multiprocessors else ""
        return f"{self.model} (capability {major}.{minor}{cores})"

    @property
    def native_precision(self) -> Precision:
        """The precision that it computes fastest in: by its capability BF16, FP16, or FP32 like a CPU."""
        capability = self.capability or (0, 0)
        if capability >= (8, 0):
            return Precision.BF16
        return Precision.FP16 if capability >= (7, 0) else Precision.FP32

    @property
    def has_fp8(self) -> bool:
        """Whether it multiplies in FP8: CUDA capability 8.9 and above."""
        return self.capability is not None and self.capability >= (8, 9)

    @property
    def torch_device(self) -> torch.device:
        """The device as torch knows it."""
        return torch.device("cpu") if self.capability is None else torch.device("cuda", self.index)

    def free_memory(self) -> int:
        """Return the free bytes of a GPU."""
        free, _ = torch.cuda.mem_get_info(self.torch_device)
        return free


def available() -> list[Device]:
    """Return every GPU that this process can see, then the CPU as one replica."""
    return [*_gpus(), *_cpu_replicas(1)]


def choose(settings: Settings) -> list[Device]:
    """
    Return the devices of a run: those named in *settings*, else every GPU, else one CPU replica.

    Raises:
        UnknownDevice: *settings* name a device that this process cannot see
    """
    if settings.gpus:
        return _by_number(settings.gpus)
    if settings.devices:
        return _by_name(settings.devices)
    return _gpus() or _cpu_replicas(1)


def decide_precision(devices: Iterable[Device], requested: Precision) -> Precision:
    """
    Return the precision of a run: as requested, else the native one of its devices.

    Raises:
        MixedDevices: the devices would compute different results and no precision was requested
        UnsuitablePrecision: a device does not have the requested one
    """
    devices = tuple(devices)
    if requested is not Precision.AUTO:
        for device in devices:
            require_precision(device, requested)
        return requested
    kinds = {device.kind: device.native_precision for device in devices}
    if len(kinds) > 1:
        raise MixedDevices(sorted(kinds))
    (native,) = kinds.values()
    return native


def require_precision(device: Device, precision: Precision) -> None:
    """Check that *device* computes in *precision*; raise UnsuitablePrecision if not."""
    if precision is Precision.FP8 and not device.has_fp8:
        what = "a CPU" if device.capability is None else "of capability {}.{}".format(*device.capability)
        reason = f"it needs a GPU of capability 8.9 or higher, and {device.name} is {what}"
        raise UnsuitablePrecision(precision.upper(), reason, device.native_precision)


def decide_budget(devices: Iterable[Device], precision: Precision, requested: int | None) -> int:
    """Return the token budget of a run: as requested, else what fits on the smallest device."""
    return requested or min(_budget_by_memory(device, precision) for device in devices)


def _budget_by_memory(device: Device, precision: Precision) -> int:
    base = BASE_BUDGET[precision]
    if device.capability is None:
        return base  # a CPU is not faster with larger batches
    fitting = device.free_memory() // 2 // _BYTES_PER_TOKEN[precision]
    return max(base, min(fitting, _MAX_BUDGET) // 1024 * 1024)


def _gpus() -> list[Device]:
    return [_gpu(number) for number in range(torch.cuda.device_count())]


def _gpu(number: int) -> Device:
    properties = torch.cuda.get_device_properties(number)
    capability = (properties.major, properties.minor)
    name, uuid = f"cuda:{number}", f"GPU-{properties.uuid}"
    return Device(
        name,
        properties.name,
        properties.total_memory,
        capability,
        index=number,
        uuid=uuid,
        multiprocessors=properties.multi_processor_count,
    )


def _cpu_replicas(count: int) -> list[Device]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = f"CPU ({instruction_sets()})"
    threads = max(1, torch.get_num_threads() // max(1, count))
    return [Device(f"cpu:{number}", model, memory, threads=threads) for number in range(count)]


def _by_name(names: Sequence[str]) -> list[Device]:
    replicas = iter(_cpu_replicas(names.count("cpu")))
    gpus = {gpu.name: gpu for gpu in _gpus()}
    found: list[Device] = []
    for name in names:
        if name not in ("cpu", *gpus):
            raise UnknownDevice(name, [*gpus, "cpu"])
        found.append(next(replicas) if name == "cpu" else _with_own_name(gpus[name], found))
    return found


def _with_own_name(gpu: Device, others: Sequence[Device]) -> Device:
    """Return *gpu*, numbered if *others* has replicas on it already."""
    count = sum(other.torch_device == gpu.torch_device for other in others)
    return replace(gpu, name=f"{gpu.name}/{count}") if count else gpu


def _by_number(numbers: Sequence[int]) -> list[Device]:
    """Return the GPUs with nvidia-smi's *numbers*; this process may see fewer, in another order."""
    visible = {gpu.uuid: gpu for gpu in _gpus()}
    by_number = {n: visible[uuid] for n, uuid in enumerate(_gpu_uuids()) if uuid in visible}
    for number in numbers:
        if number not in by_number:
            names = [f"GPU {known}" for known in by_number] or ["cpu (no GPU that CUDA can use)"]
            raise UnknownDevice(f"GPU {number}", names)
    return [by_number[number] for number in numbers]


def _gpu_uuids() -> list[str]:
    """Return the UUID of every GPU of the machine, in nvidia-smi's order; none without a driver."""
    with suppress(pynvml.NVMLError), nvml_session():
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return list(map(pynvml.nvmlDeviceGetUUID, handles))
    return []

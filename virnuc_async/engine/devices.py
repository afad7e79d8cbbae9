"""Which devices there are, which of them a run uses, and what they can do."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import pynvml
import torch

from virnuc_async.errors import MixedDevices, UnknownDevice
from virnuc_async.settings import Precision, Settings

BASE_BUDGET = {Precision.FP32: 2048, Precision.BF16: 3072}

_MOST_TOKENS = 16_384  # beyond it a GPU is no faster, and a batch lost costs more
# Activations of ESM-2 3B: about 12 rows of 2,560 numbers alive at once in the widest layer.
_BYTES_PER_TOKEN = {Precision.FP32: 12 * 2560 * 4, Precision.BF16: 12 * 2560 * 2}


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a share of the CPU's cores."""

    name: str  # cuda:1, or cuda:1/1 for a second replica there; cpu:0, cpu:1
    model: str
    memory: int  # bytes in all
    capability: tuple[int, int] | None = None  # CUDA's; None on the CPU
    threads: int = 1  # of a CPU replica
    index: int = 0  # CUDA's number of the GPU
    uuid: str = ""  # of the GPU, as the driver writes it

    @property
    def kind(self) -> str:
        """Devices of one kind compute alike to the last bit."""
        if self.capability is None:
            return "CPU"
        return "GPU with BF16" if self.has_bf16 else "GPU without BF16"

    @property
    def has_bf16(self) -> bool:
        """Whether BF16 is native: CUDA capability 8.0 and above."""
        return self.capability is not None and self.capability >= (8, 0)

    @property
    def torch_device(self) -> torch.device:
        """The device as torch knows it."""
        return torch.device("cpu") if self.capability is None else torch.device("cuda", self.index)

    def free_memory(self) -> int:
        """Give the bytes of a GPU that nobody uses now."""
        free, _ = torch.cuda.mem_get_info(self.torch_device)
        return free


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What of a GPU's memory is in use, by whomever, in bytes."""

    used: int
    total: int

    @property
    def share(self) -> float:
        """The part of all memory that is in use, 0 to 1."""
        return self.used / self.total

    def __str__(self) -> str:
        return f"{self.used / 2**30:.1f} of {self.total / 2**30:.1f} GiB in use ({self.share:.0%})"


def memory_use(device: Device) -> MemoryUse | None:
    """Ask the driver about a GPU's memory; None where there is no driver, or it does not say."""
    with suppress(pynvml.NVMLError), _driver():
        facts = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(device.uuid))
        return MemoryUse(int(facts.used), int(facts.total))
    return None


def available() -> list[Device]:
    """Give every GPU that this process can see, then the CPU as one replica."""
    return [*_gpus(), *_cpu_replicas(1)]


def choose(settings: Settings) -> list[Device]:
    """
    Give the devices of a run: those that were named, else every GPU, else one CPU replica.

    Raises:
        UnknownDevice: a device was named that this process cannot see
    """
    if settings.gpus:
        return _by_number(settings.gpus)
    if settings.devices:
        return _by_name(settings.devices)
    return _gpus() or _cpu_replicas(1)


def decide_precision(devices: Iterable[Device], wanted: Precision) -> Precision:
    """
    Give the one precision of a run: as wanted, else BF16 where every device has it natively.

    Raises:
        MixedDevices: the devices would compute differently and no precision was asked for
    """
    if wanted is not Precision.AUTO:
        return wanted
    kinds = {device.kind: device.has_bf16 for device in devices}
    if len(kinds) > 1:
        raise MixedDevices(sorted(kinds))
    return Precision.BF16 if all(kinds.values()) else Precision.FP32


def decide_budget(devices: Iterable[Device], precision: Precision, wanted: int | None) -> int:
    """Give the one token budget of a run: as wanted, else what the smallest device has room for."""
    return wanted or min(_roomy_budget(device, precision) for device in devices)


def _roomy_budget(device: Device, precision: Precision) -> int:
    base = BASE_BUDGET[precision]
    if device.capability is None:
        return base  # a CPU gains nothing from larger batches
    room = device.free_memory() // 2 // _BYTES_PER_TOKEN[precision]
    return max(base, min(room, _MOST_TOKENS) // 1024 * 1024)


def _gpus() -> list[Device]:
    return [_gpu(number) for number in range(torch.cuda.device_count())]


def _gpu(number: int) -> Device:
    facts = torch.cuda.get_device_properties(number)
    capability = (facts.major, facts.minor)
    name, uuid = f"cuda:{number}", f"GPU-{facts.uuid}"
    return Device(name, facts.name, facts.total_memory, capability, index=number, uuid=uuid)


def _cpu_replicas(count: int) -> list[Device]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    threads = max(1, torch.get_num_threads() // max(1, count))
    return [Device(f"cpu:{number}", model, memory, threads=threads) for number in range(count)]


def _by_name(names: Sequence[str]) -> list[Device]:
    replicas = iter(_cpu_replicas(names.count("cpu")))
    gpus = {gpu.name: gpu for gpu in _gpus()}
    found: list[Device] = []
    for name in names:
        if name not in ("cpu", *gpus):
            raise UnknownDevice(name, [*gpus, "cpu"])
        found.append(next(replicas) if name == "cpu" else _another(gpus[name], found))
    return found


def _another(gpu: Device, others: Sequence[Device]) -> Device:
    """Give *gpu* a name of its own where there are replicas on it already."""
    before = sum(other.torch_device == gpu.torch_device for other in others)
    return replace(gpu, name=f"{gpu.name}/{before}") if before else gpu


def _by_number(numbers: Sequence[int]) -> list[Device]:
    """Find GPUs by nvidia-smi's numbers, whatever order and choice this process sees them in."""
    visible = {gpu.uuid: gpu for gpu in _gpus()}
    by_number = {n: visible[uuid] for n, uuid in enumerate(_uuids()) if uuid in visible}
    for number in numbers:
        if number not in by_number:
            names = [f"GPU {known}" for known in by_number] or ["cpu (no GPU that CUDA can use)"]
            raise UnknownDevice(f"GPU {number}", names)
    return [by_number[number] for number in numbers]


def _uuids() -> list[str]:
    """Give the UUID of every GPU of the machine, in nvidia-smi's order; none without a driver."""
    with suppress(pynvml.NVMLError), _driver():
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return list(map(pynvml.nvmlDeviceGetUUID, handles))
    return []


@contextmanager
def _driver() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()

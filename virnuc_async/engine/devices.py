"""Which devices are available, which of them a run uses, in which precision and batch size."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from virnuc_async.errors import DeviceLost, MixedDevices, NoDevicesLeft, UnknownDevice, UnsuitablePrecision
from virnuc_async.networks.shapes import Shapes
from virnuc_async.settings import Precision, Settings

from .cpu_limits import usable_memory, usable_processors
from .gpu_memory import memory_use
from .instruction_sets import has_native_bf16, instruction_sets
from .kinds import GpuKind, budget_of, budget_within, has_fp8, native_precision
from .memory_account import MemoryAccount, account
from .nvml import Card, cards, driver_uuid, failure_of

_EVERY_GPU = "cuda"  # in the place of a name


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a share of the CPU's cores."""

    name: str  # cuda:1, or cuda:1/1 for a second replica there; cpu:0, cpu:1
    model: str  # of a CPU with the instruction sets that are used; of a slice of a GPU with its profile
    memory: int  # total, in bytes
    capability: tuple[int, int] | None = None  # CUDA's; None on the CPU
    threads: int = 1  # of a CPU replica
    has_native_bf16: bool = False  # of a CPU, whose results in FP32 are its own: BF16 only on request
    index: int = 0  # CUDA's number of the GPU
    uuid: str = ""  # of the GPU, or of the slice of it, as the driver writes it
    multiprocessors: int = 0  # of the GPU, or of the slice of it
    failure: str = ""  # why it cannot be used, if so

    @property
    def kind(self) -> str:
        """Devices of one kind compute identical results, to the last bit; so do equal slices of GPUs."""
        if self.capability is None:
            return self.model
        return str(GpuKind(self.model, self.capability, self.multiprocessors))

    @property
    def native_precision(self) -> Precision:
        """The precision that it computes fastest in: by its capability BF16, FP16, or FP32 like a CPU."""
        return native_precision(self.capability)

    @property
    def has_fp8(self) -> bool:
        """Whether it multiplies in FP8: CUDA capability 8.9 and above."""
        return has_fp8(self.capability)

    @property
    def torch_device(self) -> torch.device:
        """The device as torch knows it."""
        return torch.device("cpu") if self.capability is None else torch.device("cuda", self.index)

    def free_memory(self) -> int:
        """Return the free bytes of a GPU; 0 if it does not answer, which loading a model on it will show."""
        # The driver is asked first: CUDA needs a context, which takes hundreds of megabytes.
        if use := memory_use(self):
            return use.free
        with suppress(RuntimeError):
            return torch.cuda.mem_get_info(self.torch_device)[0]
        return 0


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
        return _by_name(settings.devices, settings.threads)
    return _gpus() or _cpu_replicas(1, settings.threads)


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


def leave_out_failed(devices: Sequence[Device]) -> tuple[tuple[Device, ...], tuple[DeviceLost, ...]]:
    """
    Return the *devices* that can be used, and what is wrong with the others.

    Raises:
        NoDevicesLeft: none of them can be used
    """
    failed = tuple(DeviceLost(device.name, device.failure) for device in devices if device.failure)
    if len(failed) == len(devices):
        raise NoDevicesLeft(failed)
    return tuple(device for device in devices if not device.failure), failed


def decide_budget(
    devices: Sequence[Device], precision: Precision, requested: int | None, shapes: Shapes
) -> int:
    """Return the token budget of a run: as requested, else what fits on the smallest device."""
    if requested:
        return requested
    if any(device.capability is None for device in devices):
        return budget_within(None, precision, shapes)
    needed = account(shapes, precision)
    return budget_of((_fitting(device, devices, needed) for device in devices), precision)


def _fitting(gpu: Device, devices: Sequence[Device], needed: MemoryAccount) -> int:
    """Return the tokens that fit on *gpu*, of whose memory every replica among *devices* gets its share."""
    replicas = sum(other.torch_device == gpu.torch_device for other in devices)
    return needed.tokens_within(gpu.free_memory() // replicas)


def _gpus() -> list[Device]:
    known = cards()
    return [_gpu(number, known) for number in range(_gpu_count())]


def _gpu_count() -> int:
    with suppress(RuntimeError):
        return torch.cuda.device_count()
    return 0  # no driver that this torch can use


def _gpu(number: int, known: Sequence[Card]) -> Device:
    name = f"cuda:{number}"
    try:
        properties = torch.cuda.get_device_properties(number)
    except (RuntimeError, AssertionError) as error:  # torch asserts that CUDA has as many as the driver
        failure = (str(error).splitlines() or ["it does not answer"])[0]
        return Device(name, "unknown GPU", 0, (0, 0), index=number, failure=failure)
    uuid = driver_uuid(str(properties.uuid), known)
    return Device(
        name,
        properties.name,
        properties.total_memory,
        (properties.major, properties.minor),
        index=number,
        uuid=uuid,
        multiprocessors=properties.multi_processor_count,
        failure=failure_of(uuid),
    )


def _cpu_replicas(count: int, threads: int | None = None) -> list[Device]:
    """Return *count* replicas that share *threads*, by default those that this process may use."""
    model = f"CPU ({instruction_sets()})"
    threads = threads or min(torch.get_num_threads(), usable_processors())
    threads = max(1, threads // max(1, count))
    one = Device("cpu", model, usable_memory(), threads=threads, has_native_bf16=has_native_bf16())
    return [replace(one, name=f"cpu:{number}") for number in range(count)]


def _by_name(names: Sequence[str], threads: int | None) -> list[Device]:
    replicas = iter(_cpu_replicas(names.count("cpu"), threads))
    gpus = {gpu.name: gpu for gpu in _gpus()}
    found: list[Device] = []
    for name in _expanded(names, gpus):
        if name not in ("cpu", *gpus):
            raise UnknownDevice(name, [*gpus, "cpu"])
        found.append(next(replicas) if name == "cpu" else _with_own_name(gpus[name], found))
    return found


def _expanded(names: Iterable[str], gpus: Iterable[str]) -> Iterator[str]:
    """Yield *names*, with all *gpus*, if there are any, in the place of the name for every one."""
    for name in names:
        yield from (name == _EVERY_GPU and tuple(gpus)) or (name,)


def _with_own_name(gpu: Device, others: Sequence[Device]) -> Device:
    """Return *gpu*, numbered if *others* has replicas on it already."""
    count = sum(other.torch_device == gpu.torch_device for other in others)
    return replace(gpu, name=f"{gpu.name}/{count}") if count else gpu


def _by_number(numbers: Sequence[int]) -> list[Device]:
    """Return the GPUs with nvidia-smi's *numbers*; this process may see fewer, in another order."""
    gpus, known = _gpus(), cards()
    visible = {gpu.uuid: gpu for gpu in gpus if gpu.uuid}
    by_number = {n: visible[uuid] for n, card in enumerate(known) for uuid in card.uuids if uuid in visible}
    # A GPU that does not answer has no name: it is taken for one that is there and was not found.
    nameless = (gpu for gpu in gpus if not gpu.uuid)
    for number in numbers:
        if number not in by_number and number < len(known):
            by_number |= zip((number,), nameless, strict=False)
        if number not in by_number:
            names = [f"GPU {known}" for known in by_number] or ["cpu (no GPU that CUDA can use)"]
            raise UnknownDevice(f"GPU {number}", names)
    return [by_number[number] for number in numbers]

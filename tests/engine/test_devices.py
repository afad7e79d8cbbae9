"""Which devices a run uses, in which precision and batch size; the GPUs are simulated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pynvml
import pytest
import torch

from virnuc_async.engine import devices
from virnuc_async.engine.devices import (
    BASE_BUDGET,
    Device,
    available,
    choose,
    decide_budget,
    decide_precision,
)
from virnuc_async.errors import MixedDevices, UnknownDevice, UnsuitablePrecision
from virnuc_async.settings import Precision, Settings

GIB = 1 << 30
CPU = Device("cpu:0", "CPU (AVX2)", 8 * GIB)
PASCAL = Device("cuda:4", "P4", 8 * GIB, (6, 1), index=4)
VOLTA = Device("cuda:0", "V100", 32 * GIB, (7, 0))
TURING = Device("cuda:1", "T4", 16 * GIB, (7, 5), index=1)
AMPERE = Device("cuda:2", "A100", 80 * GIB, (8, 0), index=2, multiprocessors=108)
SLICE = replace(AMPERE, model="A100 MIG 3g.40gb", memory=40 * GIB, multiprocessors=42)
ADA = Device("cuda:5", "L4", 24 * GIB, (8, 9), index=5)
HOPPER = Device("cuda:3", "H100", 80 * GIB, (9, 0), index=3)


@dataclass
class Gpu:
    """What CUDA and NVML report about a GPU."""

    uuid: str
    name: str = "H100"
    major: int = 9
    minor: int = 0
    total_memory: int = 80 * GIB
    free_memory: int = 70 * GIB
    multi_processor_count: int = 132


@dataclass
class Machine:
    """
    A machine with the GPUs *all*, in nvidia-smi's order.

    CUDA shows *visible* to this process, in another order.
    """

    all: Sequence[Gpu]
    visible: Sequence[Gpu]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.cuda, "device_count", lambda: len(self.visible))
        patch.setattr(torch.cuda, "get_device_properties", lambda number: self.visible[number])
        patch.setattr(torch.cuda, "mem_get_info", self.memory)
        patch.setattr(pynvml, "nvmlInit", lambda: None)
        patch.setattr(pynvml, "nvmlShutdown", lambda: None)
        patch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(self.all))
        patch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda number: self.all[number])
        patch.setattr(pynvml, "nvmlDeviceGetUUID", lambda gpu: f"GPU-{gpu.uuid}")

    def memory(self, device: torch.device) -> tuple[int, int]:
        gpu = self.visible[device.index]
        return gpu.free_memory, gpu.total_memory


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with three GPUs, of which this process sees the last and the first, in that order."""
    gpus = [Gpu("aa", "A100", 8, 0), Gpu("bb"), Gpu("cc", "T4", 7, 5, 16 * GIB, 9 * GIB)]
    machine = Machine(gpus, [gpus[2], gpus[0]])
    machine.install(monkeypatch)
    return machine


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine([], []).install(monkeypatch)


def names(settings: Settings) -> list[str]:
    return [device.name for device in choose(settings)]


# Selection


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_one_cpu_replica_is_used() -> None:
    (cpu,) = choose(Settings())
    assert (cpu.name, cpu.capability, cpu.kind) == ("cpu:0", None, cpu.model)
    assert cpu.threads == torch.get_num_threads()
    assert cpu.memory > GIB // 4
    assert cpu.torch_device == torch.device("cpu")
    assert available() == [cpu]


@pytest.mark.usefixtures("no_gpu")
def test_cpu_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    three = choose(Settings(devices=("cpu", "cpu", "cpu")))
    assert [(cpu.name, cpu.threads) for cpu in three] == [("cpu:0", 2), ("cpu:1", 2), ("cpu:2", 2)]
    assert {cpu.threads for cpu in choose(Settings(devices=("cpu",) * 20))} == {1}


@pytest.mark.usefixtures("machine")
def test_every_visible_gpu_is_used() -> None:
    assert names(Settings()) == ["cuda:0", "cuda:1"]
    t4, a100 = choose(Settings())
    assert t4 == Device("cuda:0", "T4", 16 * GIB, (7, 5), index=0, uuid="GPU-cc", multiprocessors=132)
    assert a100 == Device("cuda:1", "A100", 80 * GIB, (8, 0), index=1, uuid="GPU-aa", multiprocessors=132)
    assert a100.torch_device == torch.device("cuda", 1)
    assert (t4.free_memory(), a100.free_memory()) == (9 * GIB, 70 * GIB)
    assert [device.name for device in available()] == ["cuda:0", "cuda:1", "cpu:0"]


@pytest.mark.usefixtures("machine")
def test_devices_by_name_in_the_order_of_the_names() -> None:
    assert names(Settings(devices=("cuda:1", "cpu", "cuda:0", "cpu"))) == [
        "cuda:1",
        "cpu:0",
        "cuda:0",
        "cpu:1",
    ]


@pytest.mark.usefixtures("machine")
def test_replicas_of_one_gpu_have_names_of_their_own() -> None:
    several = choose(Settings(devices=("cuda:1", "cuda:0", "cuda:1", "cuda:1")))
    assert [device.name for device in several] == ["cuda:1", "cuda:0", "cuda:1/1", "cuda:1/2"]
    assert [device.index for device in several] == [1, 0, 1, 1]


@pytest.mark.usefixtures("machine")
def test_gpus_by_the_numbers_of_nvidia_smi() -> None:
    # Number 2 there is the first that this process sees, and number 0 the second.
    assert [(d.name, d.model) for d in choose(Settings(gpus=(0,)))] == [("cuda:1", "A100")]
    assert [(d.name, d.model) for d in choose(Settings(gpus=(2, 0)))] == [
        ("cuda:0", "T4"),
        ("cuda:1", "A100"),
    ]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("settings", "name", "known"),
    [
        (Settings(gpus=(1,)), "GPU 1", ("GPU 0", "GPU 2")),  # exists, but is not visible
        (Settings(gpus=(0, 9)), "GPU 9", ("GPU 0", "GPU 2")),
        (Settings(gpus=(-1,)), "GPU -1", ("GPU 0", "GPU 2")),
        (Settings(devices=("cuda:2",)), "cuda:2", ("cuda:0", "cuda:1", "cpu")),
        (Settings(devices=("cpu", "tpu")), "tpu", ("cuda:0", "cuda:1", "cpu")),
        (Settings(devices=("",)), "", ("cuda:0", "cuda:1", "cpu")),
    ],
)
def test_unknown_device_is_reported_with_others(
    settings: Settings, name: str, known: tuple[str, ...]
) -> None:
    with pytest.raises(UnknownDevice) as caught:
        choose(settings)
    assert (caught.value.name, caught.value.known) == (name, known)


@pytest.mark.usefixtures("no_gpu")
def test_gpu_of_a_machine_without_any() -> None:
    with pytest.raises(
        UnknownDevice, match=r"no device 'GPU 0' here. There are: cpu \(no GPU that CUDA can use\)"
    ):
        choose(Settings(gpus=(0,)))


def test_machine_without_a_driver_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert devices._gpu_uuids() == []


# Precision and batch size


def test_kinds() -> None:
    assert [device.kind for device in (CPU, VOLTA, TURING, AMPERE, HOPPER)] == [
        "CPU (AVX2)",
        "V100 (capability 7.0)",
        "T4 (capability 7.5)",
        "A100 (capability 8.0, 108 multiprocessors)",
        "H100 (capability 9.0)",
    ]
    # Slices of one size are of one kind, and of another kind than the whole.
    assert SLICE.kind == "A100 MIG 3g.40gb (capability 8.0, 42 multiprocessors)"
    assert replace(SLICE, name="cuda:5", index=5, uuid="MIG-2").kind == SLICE.kind
    assert replace(AMPERE, multiprocessors=42).kind != AMPERE.kind


@pytest.mark.parametrize(
    ("some", "requested", "used"),
    [
        ([AMPERE], "auto", "bf16"),
        ([AMPERE, replace(AMPERE, name="cuda:4", index=4)], "auto", "bf16"),
        ([TURING, TURING], "auto", "fp16"),
        ([VOLTA], "auto", "fp16"),
        ([PASCAL, PASCAL], "auto", "fp32"),
        ([HOPPER], "auto", "bf16"),
        ([AMPERE], "fp16", "fp16"),
        ([ADA], "fp8", "fp8"),
        ([HOPPER, ADA], "fp8", "fp8"),
        ([ADA], "auto", "bf16"),
        ([TURING], "fp32", "fp32"),
        ([CPU], "fp16", "fp16"),
        ([AMPERE, TURING], "fp16", "fp16"),
        ([AMPERE, HOPPER], "bf16", "bf16"),
        ([CPU, CPU], "auto", "fp32"),
        ([AMPERE], "fp32", "fp32"),
        ([CPU], "bf16", "bf16"),
        ([TURING], "bf16", "bf16"),
        ([CPU, HOPPER, VOLTA], "fp32", "fp32"),
        ([CPU, HOPPER, VOLTA], "bf16", "bf16"),
    ],
)
def test_precision(some: list[Device], requested: str, used: str) -> None:
    assert decide_precision(some, Precision(requested)) is Precision(used)


@pytest.mark.parametrize(
    ("some", "kinds"),
    [
        ([CPU, AMPERE], (AMPERE.kind, CPU.kind)),
        ([VOLTA, TURING], (TURING.kind, VOLTA.kind)),
        ([TURING, AMPERE], (AMPERE.kind, TURING.kind)),
        ([HOPPER, AMPERE, HOPPER], (AMPERE.kind, HOPPER.kind)),
        ([AMPERE, SLICE], (AMPERE.kind, SLICE.kind)),
    ],
)
def test_devices_of_different_kinds_are_not_mixed_by_default(
    some: list[Device], kinds: tuple[str, ...]
) -> None:
    with pytest.raises(MixedDevices) as caught:
        decide_precision(some, Precision.AUTO)
    assert caught.value.kinds == kinds


@pytest.mark.parametrize(
    ("device", "what", "instead"),
    [
        (CPU, "a CPU", "fp32"),
        (PASCAL, "of capability 6.1", "fp32"),
        (TURING, "of capability 7.5", "fp16"),
        (AMPERE, "of capability 8.0", "bf16"),
    ],
)
def test_fp8_needs_a_gpu_that_has_it(device: Device, what: str, instead: str) -> None:
    with pytest.raises(UnsuitablePrecision) as caught:
        decide_precision([HOPPER, device], Precision.FP8)
    needed = "it needs a GPU of capability 8.9 or higher"
    assert str(caught.value) == (
        f"cannot compute in FP8: {needed}, and {device.name} is {what}. Use --precision {instead}"
    )


@pytest.mark.parametrize(
    ("precision", "tokens"), [("fp32", 2048), ("bf16", 3072), ("fp16", 3072), ("fp8", 3072)]
)
def test_budget_of_a_cpu(precision: str, tokens: int) -> None:
    used = Precision(precision)
    assert decide_budget([CPU, CPU], used, None) == tokens == BASE_BUDGET[used]


def budget(monkeypatch: pytest.MonkeyPatch, precision: Precision, *free: float) -> int:
    Machine([], [Gpu(str(n), free_memory=int(gib * GIB)) for n, gib in enumerate(free)]).install(monkeypatch)
    return decide_budget(choose(Settings()), precision, None)


def test_budget_grows_with_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free = (0.01, 0.5, 1, 2, 4, 16, 80)
    fp32 = [budget(monkeypatch, Precision.FP32, gib) for gib in free]
    bf16 = [budget(monkeypatch, Precision.BF16, gib) for gib in free]
    assert fp32 == [2048, 2048, 4096, 8192, 16384, 16384, 16384]
    assert bf16 == [3072, 4096, 8192, 16384, 16384, 16384, 16384]
    assert [budget(monkeypatch, Precision.FP16, gib) for gib in free] == bf16


def test_budget_is_that_of_the_smallest_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert budget(monkeypatch, Precision.BF16, 80, 1, 16) == budget(monkeypatch, Precision.BF16, 1)


def test_budget_as_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine([], [Gpu("aa", free_memory=0)]).install(monkeypatch)
    assert decide_budget(choose(Settings()), Precision.FP32, 100_000) == 100_000
    assert decide_budget([CPU], Precision.FP32, 1) == 1

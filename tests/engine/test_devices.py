"""Which devices a run uses, in which precision and batch size; the GPUs are simulated."""

from dataclasses import replace

import pynvml
import pytest
import torch
from gpus import GIB, Gpu, Machine

from virnuc_async.engine import devices, nvml
from virnuc_async.engine.devices import (
    Device,
    available,
    choose,
    decide_budget,
    decide_precision,
    leave_out_failed,
)
from virnuc_async.engine.kinds import BASE_BUDGET
from virnuc_async.engine.memory_account import account
from virnuc_async.errors import MixedDevices, NoDevicesLeft, UnknownDevice, UnsuitablePrecision
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape, Shapes
from virnuc_async.settings import Precision, Settings

CPU = Device("cpu:0", "CPU (AVX2)", 8 * GIB)
PASCAL = Device("cuda:4", "P4", 8 * GIB, (6, 1), index=4)
VOLTA = Device("cuda:0", "V100", 32 * GIB, (7, 0))
TURING = Device("cuda:1", "T4", 16 * GIB, (7, 5), index=1)
AMPERE = Device("cuda:2", "A100", 80 * GIB, (8, 0), index=2, multiprocessors=108)
SLICE = replace(AMPERE, model="A100 MIG 3g.40gb", memory=40 * GIB, multiprocessors=42)
ADA = Device("cuda:5", "L4", 24 * GIB, (8, 9), index=5)
HOPPER = Device("cuda:3", "H100", 80 * GIB, (9, 0), index=3)


# ESM-2 3B and DNABERT-S, as published.
PUBLISHED = Shapes(
    ProteinShape(36, 2560, 40), NucleotideShape(12, 768, 12, 3072, 4096), ClassifierShape(3328, 512)
)


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
    monkeypatch.setattr(devices, "usable_processors", lambda: 16)
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
def test_every_gpu_has_a_common_name() -> None:
    assert names(Settings(devices=("cuda",))) == ["cuda:0", "cuda:1"]
    assert names(Settings(devices=("cpu", "cuda"))) == ["cpu:0", "cuda:0", "cuda:1"]


@pytest.mark.usefixtures("no_gpu")
def test_every_gpu_of_none_is_unknown() -> None:
    with pytest.raises(UnknownDevice, match="no device 'cuda' here. There are: cpu"):
        choose(Settings(devices=("cuda",)))


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
    assert nvml.cards() == []


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
    assert decide_budget([CPU, CPU], used, None, PUBLISHED) == tokens == BASE_BUDGET[used]


def budget(monkeypatch: pytest.MonkeyPatch, precision: Precision, *free: float, replicas: int = 1) -> int:
    gpus = [Gpu(str(n), free_memory=int(gib * GIB)) for n, gib in enumerate(free)]
    Machine(gpus, gpus).install(monkeypatch)
    return decide_budget(choose(Settings()) * replicas, precision, None, PUBLISHED)


def test_budget_grows_with_what_the_weights_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    free = (0.01, 4, 8, 9, 14, 15, 20, 80)
    fp32 = [budget(monkeypatch, Precision.FP32, gib) for gib in free]
    bf16 = [budget(monkeypatch, Precision.BF16, gib) for gib in free]
    # The weights take 11.0 GiB in FP32, half of that in BF16.
    assert fp32 == [2048, 2048, 2048, 2048, 5120, 11264, 16384, 16384]
    assert bf16 == [3072, 3072, 10240, 16384, 16384, 16384, 16384, 16384]
    assert [budget(monkeypatch, Precision.FP16, gib) for gib in free] == bf16


def test_a_batch_of_the_budget_fits_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in (Precision.FP32, Precision.BF16, Precision.FP16):
        needed = account(PUBLISHED, precision)
        for free in range(1, 40):
            tokens = budget(monkeypatch, precision, free)
            fits = needed.context + needed.peak(tokens) < free * GIB
            assert fits or tokens == BASE_BUDGET[precision]


def test_replicas_on_one_card_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    one = budget(monkeypatch, Precision.BF16, 8)
    assert budget(monkeypatch, Precision.BF16, 16, replicas=2) == one < 16_384
    assert budget(monkeypatch, Precision.BF16, 24, replicas=3) == one


def test_budget_is_that_of_the_smallest_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert budget(monkeypatch, Precision.BF16, 80, 8, 16) == budget(monkeypatch, Precision.BF16, 8) < 16_384
    # One that does not hold the model does not decide for the others.
    assert budget(monkeypatch, Precision.BF16, 80, 1) == budget(monkeypatch, Precision.BF16, 80)
    two = [CPU, choose(Settings())[0]]
    assert decide_budget(two, Precision.BF16, None, PUBLISHED) == BASE_BUDGET[Precision.BF16]


def test_free_memory_is_asked_of_the_driver_without_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Gpu("aa", free_memory=9 * GIB, reports_memory=True), Gpu("bb", free_memory=8 * GIB)]
    machine = Machine(gpus, gpus)
    machine.install(monkeypatch)
    assert [gpu.free_memory() for gpu in choose(Settings())] == [9 * GIB, 8 * GIB]
    assert machine.contexts == ["bb"]


# Cards that do not answer


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_card_that_does_not_answer_is_left_out(monkeypatch: pytest.MonkeyPatch, is_lost: bool) -> None:
    gpus = [Gpu("aa"), Gpu("bb", is_broken=not is_lost, is_lost=is_lost), Gpu("cc")]
    machine = Machine(gpus, gpus)
    machine.install(monkeypatch)
    for settings in (
        Settings(),
        Settings(devices=("cuda:0", "cuda:1", "cuda:2")),
        Settings(gpus=(0, 1, 2)),
    ):
        chosen = choose(settings)
        assert [device.name for device in chosen] == ["cuda:0", "cuda:1", "cuda:2"]
        usable, failed = leave_out_failed(chosen)
        assert usable == (chosen[0], chosen[2])
        reason = (
            "GPU is lost: see nvidia-smi" if is_lost else "CUDA error: uncorrectable ECC error encountered"
        )
        assert [str(error) for error in failed] == [f"cuda:1 failed: {reason}"]
        assert chosen[1].torch_device == torch.device("cuda", 1)
    assert machine.contexts == []


def test_a_card_whose_memory_cannot_be_asked_for_is_found_when_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus = [Gpu("aa"), Gpu("bb")]
    Machine(gpus, gpus).install(monkeypatch)
    both = choose(Settings())
    gpus[1].is_broken = True
    assert both[1].free_memory() == 0
    assert decide_budget(both, Precision.BF16, None, PUBLISHED) == 16_384


def test_without_a_card_that_answers_the_reasons_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [Gpu("aa", is_broken=True), Gpu("bb", is_lost=True)]
    Machine(gpus, gpus).install(monkeypatch)
    with pytest.raises(NoDevicesLeft, match=r"cuda:0 failed: CUDA error: .*; cuda:1 failed: GPU is lost"):
        leave_out_failed(choose(Settings()))


def test_cuda_may_have_fewer_cards_than_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def properties(number: int) -> Gpu:
        if number:
            raise AssertionError("Invalid device id")
        return Gpu("aa")

    gpus = [Gpu("aa"), Gpu("bb")]
    Machine(gpus, gpus).install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert [device.failure for device in choose(Settings())] == ["", "Invalid device id"]


def test_a_driver_that_cannot_be_started_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment")

    Machine([], []).install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", fail)
    assert names(Settings()) == ["cpu:0"]


# Slices of a GPU (MIG)


def sliced(count: int) -> Gpu:
    slices = [
        Gpu(f"a{n}", "A100 MIG 1g.10gb", 8, 0, 10 * GIB, (9 - n) * GIB, 14, reports_memory=True)
        for n in range(count)
    ]
    return Gpu("aa", "A100", 8, 0, 80 * GIB, 40 * GIB, 108, slices, reports_memory=True)


@pytest.mark.parametrize("names_parent", [True, False])
def test_a_slice_has_its_own_name_and_memory(monkeypatch: pytest.MonkeyPatch, names_parent: bool) -> None:
    gpus = [Gpu("zz"), sliced(1)]
    machine = Machine(gpus, gpus[1].slices, names_parent=names_parent)
    machine.install(monkeypatch)
    (device,) = choose(Settings(gpus=(1,)))
    assert device == choose(Settings())[0]
    assert (device.uuid, device.model) == ("MIG-a0", "A100 MIG 1g.10gb")
    assert device.kind == "A100 MIG 1g.10gb (capability 8.0, 14 multiprocessors)"
    assert device.free_memory() == 9 * GIB
    assert machine.contexts == []
    with pytest.raises(UnknownDevice, match="no device 'GPU 0' here. There are: GPU 1"):
        choose(Settings(gpus=(0,)))


def test_the_second_slice_is_told_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [sliced(3)]
    Machine(gpus, gpus[0].slices[1:2]).install(monkeypatch)
    (device,) = choose(Settings(gpus=(0,)))
    assert (device.uuid, device.free_memory()) == ("MIG-a1", 8 * GIB)


def test_memory_of_the_whole_card_is_not_taken_for_that_of_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [sliced(3)]
    machine = Machine(gpus, gpus[0].slices[1:2], names_parent=True)
    machine.install(monkeypatch)
    (device,) = choose(Settings(gpus=(0,)))
    assert device.uuid == "GPU-aa"  # which slice it is, CUDA does not say
    assert device.free_memory() == 8 * GIB
    assert machine.contexts == ["a1"]


def test_budget_as_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine([], [Gpu("aa", free_memory=0)]).install(monkeypatch)
    assert decide_budget(choose(Settings()), Precision.FP32, 100_000, PUBLISHED) == 100_000
    assert decide_budget([CPU], Precision.FP32, 1, PUBLISHED) == 1

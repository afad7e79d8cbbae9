"""Errors of torch, CUDA's libraries and Triton become errors of this program."""

import traceback
import weakref

import pytest
import torch

from virnuc_async.engine.torch_errors import Fault, TorchErrors, call_and_free, fault_of, is_responsive
from virnuc_async.errors import DeviceLost, DeviceOutOfMemory, Stage

MEMORY, LOST, UNKNOWN = Fault

# What torch appends to errors of the runtime, by its version.
MORE = (
    "\nSearch for `cudaErrorX' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html "
    "for more information.\nCUDA kernel errors might be asynchronously reported at some other API call, so "
    "the stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)
STUCK = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb)`"


def accelerator_error(text: str, code: int | None = None) -> RuntimeError:
    """Return torch's error of the CUDA runtime; torch sets its number."""
    error = torch.AcceleratorError(f"CUDA error: {text}{MORE}")
    if code is not None:
        error.error_code = code  # type: ignore[attr-defined]
    return error


FAULTS = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total"), MEMORY),
    (accelerator_error("out of memory", 2), MEMORY),
    (accelerator_error("out of memory"), MEMORY),
    (accelerator_error("in the words of another version", 2), MEMORY),
    (RuntimeError("CUDA driver error: out of memory"), MEMORY),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), MEMORY),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), MEMORY),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul( ltHandle,"), MEMORY),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), MEMORY),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED\nmore"), MEMORY),
    (RuntimeError("Triton Error [CUDA]: out of memory"), MEMORY),
    (accelerator_error("an illegal memory access was encountered", 700), LOST),
    (accelerator_error("an illegal memory access was encountered"), LOST),
    (accelerator_error("uncorrectable ECC error encountered", 214), LOST),
    (accelerator_error("unspecified launch failure", 719), LOST),
    (accelerator_error("device-side assert triggered", 710), LOST),
    (accelerator_error("misaligned address"), LOST),
    (accelerator_error("the launch timed out and was terminated"), LOST),
    (accelerator_error("CUDA-capable device(s) is/are busy or unavailable", 46), LOST),
    (accelerator_error("no kernel image is available for execution on the device", 209), LOST),
    (accelerator_error("unknown error", 999), LOST),
    (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), LOST),
    (RuntimeError("Triton Error [CUDA]: unspecified launch failure"), LOST),
    (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), LOST),
    (accelerator_error("invalid argument", 1), UNKNOWN),
    (accelerator_error("invalid configuration argument", 9), UNKNOWN),
    (RuntimeError("Triton Error [CUDA]: invalid argument"), UNKNOWN),
    (RuntimeError(STUCK), UNKNOWN),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasGemmEx( handle,"), UNKNOWN),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), UNKNOWN),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), UNKNOWN),
    (RuntimeError("a file of that size would be out of memory"), UNKNOWN),
    (RuntimeError(""), UNKNOWN),
]


def errors(responsive: bool = True) -> TorchErrors:
    return TorchErrors("cuda:1", lambda: responsive)


def translate(error: Exception, responsive: bool = True) -> None:
    """Raise *error* in the block."""
    with errors(responsive).translated(900, Stage.PROTEIN):
        raise error


@pytest.mark.parametrize(("error", "fault"), FAULTS, ids=lambda value: str(value).split("\n")[0][:60])
def test_what_an_error_says_about_the_device(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


@pytest.mark.parametrize("responsive", [True, False])
@pytest.mark.parametrize("error", [error for error, fault in FAULTS if fault is MEMORY], ids=str)
def test_lack_of_memory(error: Exception, responsive: bool) -> None:
    with pytest.raises(DeviceOutOfMemory) as caught:
        translate(error, responsive)
    assert (caught.value.device, caught.value.tokens, caught.value.stage) == ("cuda:1", 900, Stage.PROTEIN)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("responsive", [True, False])
@pytest.mark.parametrize("error", [error for error, fault in FAULTS if fault is LOST], ids=str)
def test_a_lost_device(error: Exception, responsive: bool) -> None:
    with pytest.raises(DeviceLost) as caught:
        translate(error, responsive)
    assert str(caught.value) == f"cuda:1 failed: {str(error).splitlines()[0]}"
    assert caught.value.__cause__ is error


def test_an_error_that_says_nothing_of_an_unresponsive_device() -> None:
    with pytest.raises(DeviceLost, match="cuda:1 failed: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"):
        translate(RuntimeError(f"{STUCK}\nmore"), responsive=False)


@pytest.mark.parametrize("error", [RuntimeError(STUCK), ValueError("bug"), DeviceLost("cuda:1", "gone")])
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        translate(error)
    assert caught.value is error


def test_a_kernel_that_needs_more_than_the_card_has_is_no_reason_for_a_smaller_batch() -> None:
    resources = pytest.importorskip("triton.runtime.errors").OutOfResources
    with pytest.raises(DeviceLost, match=r"out of resource: shared memory, Required: 278528, Hardware limit"):
        translate(resources(278_528, 232_448, "shared memory"))


def test_it_is_known_whether_the_device_was_lost() -> None:
    here = errors()
    outcomes = []
    for error in (
        RuntimeError("Triton Error [CUDA]: out of memory"),
        DeviceLost("cuda:1", "it was closed"),  # by us, and not by torch
        RuntimeError("Triton Error [CUDA]: misaligned address"),
    ):
        with pytest.raises((DeviceLost, DeviceOutOfMemory)), here.translated(1, Stage.PROTEIN):
            raise error
        outcomes.append(here.has_lost_device)
    assert outcomes == [False, False, True]
    assert repr(here) == "<TorchErrors cuda:1 [lost]>"


def test_the_cpu_is_responsive() -> None:
    assert is_responsive(torch.device("cpu"))


def test_a_device_that_raises_is_not_responsive(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: device lost")

    monkeypatch.setattr(torch, "ones", fail)
    assert not is_responsive(torch.device("cpu"))


class Activations:
    """Something large that frames refer to."""


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyboardInterrupt])
def test_an_error_that_is_kept_keeps_no_variable(kind: type[BaseException]) -> None:
    alive = []

    def made() -> Activations:
        thing = Activations()
        alive.append(weakref.ref(thing))
        return thing

    def deep(given: Activations) -> None:
        inner = made()
        try:
            raise OSError
        except OSError as error:
            both = [inner, error]  # a cycle
            raise ExceptionGroup("some", [both[1]]) from error  # type: ignore[list-item]

    def work(given: Activations, *, by_name: Activations) -> None:
        try:
            deep(given)
        except ExceptionGroup:
            raise kind("no") from None

    with pytest.raises(kind) as kept:
        call_and_free(work, made(), by_name=made())
    assert [thing() for thing in alive] == [None] * 3
    assert "in deep" in "".join(traceback.format_exception(kept.value.__context__))

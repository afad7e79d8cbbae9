"""The only place where what torch, CUDA's libraries and Triton raise becomes an error of this program."""

import re
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

from virnuc_async.errors import DeviceError, DeviceLost, DeviceOutOfMemory, Stage

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Fault(Enum):
    """What an error says about the device that it was raised for."""

    OUT_OF_MEMORY = auto()  # a smaller batch may fit
    LOST = auto()  # the device cannot be used any more in this process
    UNKNOWN = auto()  # a bug, or a device that has stopped working without saying so


# CUDA's numbers of errors and what the runtime, the driver and Triton write for them.
_OUT_OF_MEMORY = {2: "out of memory"}
_LOST = {
    3: "initialization error",
    4: "driver shutting down",
    46: "CUDA-capable device(s) is/are busy or unavailable",
    100: "no CUDA-capable device is detected",
    101: "invalid device ordinal",
    209: "no kernel image is available for execution on the device",
    214: "uncorrectable ECC error encountered",
    218: "device kernel image is invalid",
    220: "uncorrectable NVLink error detected during the execution",
    222: "the provided PTX was compiled with an unsupported toolchain.",
    226: "Invalid access of peer GPU memory over nvlink or a hardware error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    709: "context is destroyed",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "tensor memory not completely freed",
    802: "system not yet initialized",
    803: "system has unsupported display driver / cuda driver combination",
    804: "forward compatibility was attempted on non supported HW",
    999: "unknown error",
}
_BY_CODE = dict.fromkeys(_OUT_OF_MEMORY, Fault.OUT_OF_MEMORY) | dict.fromkeys(_LOST, Fault.LOST)
_BY_TEXT = {text: _BY_CODE[code] for code, text in (_OUT_OF_MEMORY | _LOST).items()}

# What these raise has no type or number of its own: the runtime and the driver through torch, and Triton.
_CUDA = re.compile(r"(?:CUDA error|CUDA driver error|Triton Error \[CUDA\]): (?P<text>.+)")
# Libraries that allocate workspaces of their own. A handle that cannot be created lacks memory, too.
_LIBRARY_OUT_OF_MEMORY = re.compile(
    r"CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `.*"
    r"|CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublas(?:Lt)?Create\(.*"
    r"|cuDNN error: CUDNN_STATUS_(?:ALLOC_FAILED|INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)\b.*"
)


def fault_of(error: BaseException) -> Fault:
    """Return what *error* says about the device; see the table above."""
    if isinstance(error, torch.OutOfMemoryError):
        return Fault.OUT_OF_MEMORY
    if not isinstance(error, RuntimeError):
        # Triton's OutOfResources: a kernel needs more shared memory than the card has, for any batch.
        return Fault.LOST
    # torch sets the number on the errors that it raises in C++.
    code = getattr(error, "error_code", None)
    if code in _BY_CODE:
        return _BY_CODE[code]
    line = _first_line(error)
    if _LIBRARY_OUT_OF_MEMORY.fullmatch(line):
        return Fault.OUT_OF_MEMORY
    match = _CUDA.fullmatch(line)
    return _BY_TEXT.get(match["text"], Fault.UNKNOWN) if match else Fault.UNKNOWN


class TorchErrors:
    """
    Translates what torch raises on the device called *device*.

    *is_responsive* is asked where an error itself does not say whether the device still works.
    """

    def __init__(self, device: str, is_responsive: Callable[[], bool]) -> None:
        self._device = device
        self._is_responsive = is_responsive
        self.has_lost_device = False

    def __repr__(self) -> str:
        return f"<TorchErrors {self._device} [{'lost' if self.has_lost_device else 'works'}]>"

    def translated(self, tokens: int, stage: Stage) -> AbstractContextManager[None]:
        """
        Return a context that translates what torch raises in the *stage* of a batch of *tokens*.

        A bug stays as it is.

        Raises:
            DeviceOutOfMemory: the batch did not fit
            DeviceLost: the device failed
        """
        return _Translated(self, DeviceOutOfMemory(self._device, tokens, stage))

    def translate(self, error: BaseException, out_of_memory: DeviceOutOfMemory) -> DeviceError | None:
        """Return what *error* means, *out_of_memory* or a lost device; None if it is not of a device."""
        if not isinstance(error, RuntimeError) and not _is_triton_error(error):
            return None
        fault = fault_of(error)
        if fault is Fault.OUT_OF_MEMORY:
            return out_of_memory
        if fault is Fault.UNKNOWN and self._is_responsive():
            return None
        self.has_lost_device = True
        return DeviceLost(self._device, _first_line(error))


@dataclass(slots=True)
class _Translated(AbstractContextManager[None]):
    errors: TorchErrors
    out_of_memory: DeviceOutOfMemory

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        translated = error and self.errors.translate(error, self.out_of_memory)
        if translated:
            raise translated from error


def _is_triton_error(error: BaseException) -> bool:
    """Return whether it is Triton's OutOfResources, which is no RuntimeError; Triton may not be installed."""
    return type(error).__module__ == "triton.runtime.errors"


def call_and_free(
    work: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """
    Return what *work* returns; if it raises, free the variables of every frame that the error went through.

    The error is kept by futures, groups and records of lost devices. Its frames, and those of the errors
    that led to it, would keep the tensors of a failed batch in the memory that its halves need.
    """
    try:
        with _FreedFrames():
            return work(*args, **kwargs)
    finally:
        del work, args, kwargs  # this frame is one of them


class _FreedFrames(AbstractContextManager[None]):
    """Frees the variables of the frames below its block that an error goes through."""

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        pending, seen = [error], set()
        while pending:
            link = pending.pop()
            if link is not None and id(link) not in seen:
                seen.add(id(link))
                traceback.clear_frames(link.__traceback__)
                pending += [link.__cause__, link.__context__]
                if isinstance(link, BaseExceptionGroup):
                    pending += link.exceptions


def is_responsive(device: torch.device) -> bool:
    """Return whether *device* can still compute 1 = 1."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return bool(torch.ones(1, device=device).sum().item() == 1)
    except RuntimeError:
        return False


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0].rstrip()

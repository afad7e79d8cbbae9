"""The only place where what torch raises becomes an error of this program."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from virnuc_async.errors import DeviceError, DeviceLost, DeviceOutOfMemory, Stage

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@contextmanager
def translate_torch_errors(
    device: str, tokens: int, stage: Stage, is_responsive: Callable[[], bool]
) -> Iterator[None]:
    """
    Translate what torch raises in the *stage* of a batch of *tokens* on the device called *device*.

    A RuntimeError without a type of its own is a bug, and stays, unless the device has stopped working.

    Raises:
        DeviceOutOfMemory: the batch did not fit
        DeviceLost: the device failed, and *is_responsive* or torch's type of error says so
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceOutOfMemory(device, tokens, stage) from error
    except torch.AcceleratorError as error:
        raise DeviceLost(device, _first_line(error)) from error
    except RuntimeError as error:
        # cuBLAS and other libraries raise errors without a type of their own.
        if is_responsive():
            raise
        raise DeviceLost(device, _first_line(error)) from error


def call_and_free(
    work: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """
    Return what *work* returns; if it raises, free the variables of every frame that the error went through.

    The error is kept by futures, groups and records of lost devices. Its frames, and those of the errors
    that led to it, would keep the tensors of a failed batch in the memory that its halves need.
    """
    try:
        return work(*args, **kwargs)
    except (DeviceError, RuntimeError) as error:
        _free_frames(error)
        raise


def _free_frames(error: BaseException) -> None:
    pending, seen = [error], set()
    while pending:
        link = pending.pop()
        if id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            pending += filter(None, (link.__cause__, link.__context__))


def is_responsive(device: torch.device) -> bool:
    """Return whether *device* can still compute 1 = 1."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return bool(torch.ones(1, device=device).sum().item() == 1)
    except RuntimeError:
        return False


def _first_line(error: RuntimeError) -> str:
    return str(error).splitlines()[0]

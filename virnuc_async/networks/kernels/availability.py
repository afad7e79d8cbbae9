"""Whether this machine can use a kernel, and why not."""

from importlib import import_module
from subprocess import CalledProcessError
from typing import cast

import torch

# Triton needs a C compiler with Python's headers, and a directory for what it compiles. It asserts that it
# has found the driver's library.
_ERRORS = (RuntimeError, ImportError, OSError, AssertionError, CalledProcessError)

_OUT_OF_MEMORY = "Triton Error [CUDA]: out of memory"  # a RuntimeError
_MAX_REASON = 200  # characters


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a kernel that is not available here: of torch, of Triton, of its compilers."""
    try:
        return (*_ERRORS, cast(type[Exception], import_module("triton").TritonError))
    except ImportError:
        return _ERRORS


def why_unavailable(error: Exception, device: torch.device) -> str:
    """
    Return on one line why a kernel that raised *error* is not available on *device*.

    Raises:
        torch.OutOfMemoryError, torch.AcceleratorError: it is *device* that has no memory left, or failed
    """
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        raise error
    if str(error) == _OUT_OF_MEMORY:
        raise torch.OutOfMemoryError(_OUT_OF_MEMORY) from error
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # raises if the device has failed
    if isinstance(error, ImportError):
        return f"Triton cannot be imported: {_one_line(error)}"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."

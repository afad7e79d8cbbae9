"""Whether this machine can use a kernel."""

from importlib import import_module
from subprocess import CalledProcessError
from typing import cast

# Triton needs a C compiler with Python's headers, and a directory for what it compiles.
_ERRORS = (RuntimeError, ImportError, OSError, CalledProcessError)


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a kernel that is not available here: of torch, of Triton, of its compilers."""
    try:
        return (*_ERRORS, cast(type[Exception], import_module("triton").TritonError))
    except ImportError:
        return _ERRORS

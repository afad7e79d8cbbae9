"""
Which kernels a network uses: each one that gives its twin's answer on this device.

Whether a kernel can be compiled depends on the machine: on Triton, on a C compiler for its launcher, on the
driver. No kernel is trusted: it is used only if its answer on a sample of the network's shape is right.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from threading import Lock
from typing import Any, NamedTuple

import torch

from virnuc_async.networks.operations import PLAIN, Operations

from .availability import kernel_errors, why_unavailable
from .cache_directory import use_writable_cache

_MODULES = {
    "gelu": "gelu",
    "gated_gelu": "gated_gelu",
    "add_norm": "add_norm",
    "normed_sum": "add_norm",
    "rotate": "rotary",
}
_NAMES = {
    "gelu": "GELU",
    "gated_gelu": "gated GELU",
    "add_norm": "residual sum and norm",
    "normed_sum": "residual sum and norm",
    "rotate": "rotary positions",
}

WRONG_ANSWER = "wrong answer on a sample"
# A wrong kernel is wrong by tenths. Results in half precision are rounded once: by one step at most.
_ABSOLUTE_TOLERANCE = 1e-5
_STEPS = {torch.bfloat16: 1.0, torch.float16: 1.0, torch.float32: 0.0}

# Two replicas load at the same time, each in its own thread. Triton may not compile one kernel twice at once.
_LOCK = Lock()


class Missing(NamedTuple):
    """A kernel that cannot be used."""

    name: str
    reason: str


@contextmanager
def first_launches() -> Iterator[None]:
    """Let the block launch kernels for the first time, which compiles them; one thread does at a time."""
    with _LOCK:
        with suppress(ImportError):
            use_writable_cache(import_module("triton").knobs)
        yield


def select(
    shapes: Mapping[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> tuple[Operations, list[Missing]]:
    """
    Return kernels for the operations that *shapes* name, and those that cannot be used.

    *shapes* has what ``sample`` of the kernel's file is given. Call it within :func:`first_launches`.

    Raises:
        torch.OutOfMemoryError, torch.AcceleratorError: the device has no memory left, or failed
    """
    usable: dict[str, Any] = {}
    missing = []
    for name, shape in shapes.items():
        if reason := _why_unusable(name, shape, device, dtype):
            missing.append(Missing(_NAMES[name], reason))
        else:
            usable[name] = _imported(name)[0]
    return replace(PLAIN, **usable), missing


def warning_of(missing: Iterable[Missing]) -> str | None:
    """Return a line that says which kernels are *missing* and why, or None."""
    names: dict[str, dict[str, None]] = {}
    for kernel, reason in missing:
        names.setdefault(reason, {})[kernel] = None
    texts = [f"{', '.join(kernels)}: {reason}" for reason, kernels in names.items()]
    return f"the run is slower, but right, without the kernels for {'; '.join(texts)}" if texts else None


def _why_unusable(name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the kernel of an operation cannot be used, or None if it gives its twin's answer."""
    try:
        kernel, twin, sample = _imported(name)
        given = sample(dtype, *shape)
        # A copy: kernels overwrite what they are given.
        found = [part.cpu() for part in _tensors(kernel(*(deepcopy(part).to(device) for part in given)))]
    except kernel_errors() as error:
        return why_unavailable(error, device)
    pairs = zip(found, _tensors(twin(*given)), strict=True)
    return None if all(_is_right(*pair, dtype) for pair in pairs) else WRONG_ANSWER


def _imported(name: str) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return the kernel of an operation, its twin, and what makes a sample for both."""
    module = import_module(f".{_MODULES[name]}", __package__)
    return getattr(module, name), getattr(module, f"{name}_twin"), module.sample


def _is_right(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    step = _STEPS[dtype] * torch.finfo(dtype).eps
    within = _ABSOLUTE_TOLERANCE + step * expected.abs()
    return found.dtype == dtype and bool(((found.float() - expected).abs() <= within).all())


def _tensors(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)

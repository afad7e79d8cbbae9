"""How the tensors of a batch get to its device, its results back, and how long the device took."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 256  # bytes: what CUDA's own allocations have, for kernels that read wide vectors


class Transfers(Protocol):
    """What one batch at a time uses; all but :meth:`wait` is called on the thread that submits batches."""

    def begin(self) -> None:
        """Begin a batch; results of the previous one must have been taken."""

    def to_device(self, *tensors: Tensor) -> list[Tensor]:
        """Return *tensors* on the device; the host does not wait."""

    def end(self, results: Sequence[Tensor]) -> None:
        """End the batch: *results* are what :meth:`wait` returns."""

    def abandon(self) -> None:
        """Wait until the device has read what it was given for a batch that cannot be ended."""

    def wait(self) -> tuple[float, list[NDArray[Any]]]:
        """Wait for the device; return the seconds that it took, and the results."""


class HostTransfers:
    """On the CPU, nothing is transferred, and everything is done when it is submitted."""

    def __init__(self) -> None:
        self._started = 0.0
        self._done: tuple[float, list[NDArray[Any]]] = (0.0, [])

    def begin(self) -> None:
        """Begin a batch."""
        self._started = time.perf_counter()

    def to_device(self, *tensors: Tensor) -> list[Tensor]:
        """Return *tensors*."""
        return list(tensors)

    def end(self, results: Sequence[Tensor]) -> None:
        """End the batch, which is done."""
        self._done = time.perf_counter() - self._started, [result.numpy() for result in results]

    def abandon(self) -> None:
        """Nothing is left to be read."""

    def wait(self) -> tuple[float, list[NDArray[Any]]]:
        """Return the seconds that the batch took, and its results."""
        done, self._done = self._done, (0.0, [])
        return done


class GpuTransfers:
    """
    Copies on the GPU's current stream, through page-locked memory that is used again for each batch.

    Page-locked memory is not freed before this is: torch's allocator of it is shared by all GPUs, and
    raises on a working one if the events of a block that was freed on a broken one are pending.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = HostMemory(page_locked)
        # Blocking: a thread that waits sleeps, where it would otherwise keep a core busy.
        self._started, self._finished = (
            torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        self._results: list[Tensor] = []

    def begin(self) -> None:
        """Begin a batch on the current stream."""
        self._memory.reuse()
        self._started.record()

    def to_device(self, *tensors: Tensor) -> list[Tensor]:
        """Return *tensors* on the GPU, copied at once."""
        return copy_to(self._device, tensors, self._memory)

    def end(self, results: Sequence[Tensor]) -> None:
        """Queue the copies of *results* to the host."""
        self._results = [self._memory.like(result) for result in results]
        for host, result in zip(self._results, results, strict=True):
            host.copy_(result, non_blocking=True)
        self._finished.record()

    def abandon(self) -> None:
        """Wait for the GPU's stream."""
        self.end(())
        self._finished.synchronize()

    def wait(self) -> tuple[float, list[NDArray[Any]]]:
        """Wait for the GPU without keeping a core busy; return the seconds it took, and the results."""
        self._finished.synchronize()
        seconds = float(self._started.elapsed_time(self._finished)) / 1000
        # Copied: the next batch uses this memory again.
        return seconds, [result.numpy().copy() for result in self._results]


class HostMemory:
    """Memory for one batch at a time; it grows, and is not freed before this is."""

    def __init__(self, allocate: Callable[[int], Tensor]) -> None:
        self._allocate = allocate
        self._blocks: list[Tensor] = []  # the last one is in use
        self._used = 0  # bytes of it

    def reuse(self) -> None:
        """Begin anew; what was taken before is overwritten."""
        self._used = 0

    def take(self, size: int) -> Tensor:
        """Return *size* bytes that were not taken before."""
        if not self._blocks or self._used + size > len(self._blocks[-1]):
            # At least twice the previous block: few blocks, whatever the batches are.
            previous = len(self._blocks[-1]) if self._blocks else 0
            self._blocks.append(self._allocate(max(2 * previous, _aligned(size))))
            self._used = 0
        start = self._used
        self._used = _aligned(start + size)
        return self._blocks[-1][start : start + size]

    def like(self, tensor: Tensor) -> Tensor:
        """Return memory for a tensor of the type and shape of *tensor*."""
        return self.take(tensor.nbytes).view(tensor.dtype).view(tensor.shape)


def copy_to(device: torch.device, tensors: Sequence[Tensor], memory: HostMemory) -> list[Tensor]:
    """Return copies of *tensors* on *device*: one transfer from *memory*, however many they are."""
    starts = [0, *accumulate(_aligned(tensor.nbytes) for tensor in tensors)]
    host = memory.take(starts[-1])
    for start, tensor in zip(starts, tensors, strict=False):
        # By NumPy: torch divides such a copy among threads, and waits for cores that others use.
        np.copyto(_part(host, start, tensor).numpy(), tensor.numpy())
    copied = torch.empty(len(host), dtype=torch.uint8, device=device)
    copied.copy_(host, non_blocking=True)
    return [_part(copied, start, tensor) for start, tensor in zip(starts, tensors, strict=False)]


def release_cached(device: torch.device) -> None:
    """Release the memory that torch has cached, which is that of all GPUs; on the CPU there is none."""
    if device.type == "cuda":
        # It raises for a GPU that was lost; the one that this is for is asked again when it is used.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def page_locked(size: int) -> Tensor:
    """Return *size* bytes that a GPU copies from and to while the host goes on."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _part(block: Tensor, start: int, like: Tensor) -> Tensor:
    return block[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT

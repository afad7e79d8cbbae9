"""What the kernels share: how they are launched, and the numbers that they are checked with. No Triton."""

import torch

SAMPLE_ROWS = 3  # of the sample that a kernel is checked with

_NUMBERS_PER_THREAD, _THREADS, _MAX_WARPS = 16, 32, 16


def options(warps: int) -> dict[str, int]:
    """Return the options of a launch with *warps* a program."""
    # A product and a sum are rounded once: Triton's own default depends on its version.
    return {"num_warps": warps, "enable_fp_fusion": True}


def random_numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the same random numbers for the same shape, on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def block_of(count: int) -> int:
    """Return the length of a block for *count* numbers: the next power of two."""
    return 1 << max(count - 1, 0).bit_length()


def warps_for(block: int) -> int:
    """Return the number of warps that share a *block* of numbers."""
    return min(_MAX_WARPS, max(1, block // (_NUMBERS_PER_THREAD * _THREADS)))

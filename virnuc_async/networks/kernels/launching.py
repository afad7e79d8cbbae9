"""What the kernels share: how a launch is described, and the shapes of the published networks. No Triton."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

MODULES = ("add_norm", "gated_gelu", "gelu", "quantize", "rotary")

# Of the published networks: heads and width of each head; width of the MLP, gated or not.
ESM2_HEADS = ((20, 16), (20, 24), (20, 32), (20, 64), (40, 64), (40, 128))
DNABERT_S_HEADS, DNABERT_S_INTERMEDIATE = (12, 64), 3072
ESM2_WIDTHS = tuple(heads * width for heads, width in ESM2_HEADS)
DNABERT_S_WIDTH = DNABERT_S_HEADS[0] * DNABERT_S_HEADS[1]

SAMPLE_ROWS = 3  # of the sample that a kernel is checked with

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float8_e4m3fn: "*fp8e4nv",
}
_NUMBERS_PER_THREAD, _THREADS, _MAX_WARPS = 16, 32, 16


@dataclass(frozen=True, slots=True)
class Variant:
    """One compilation of a kernel. All of its pointers are aligned to 16 bytes."""

    name: str
    kernel: Any  # what triton.jit returns
    arguments: Mapping[str, str]  # Triton's types of those that are not constant, in the kernel's order
    constants: Mapping[str, Any]
    warps: int
    capability: tuple[int, int] = (7, 0)  # the lowest that it can be compiled for

    @property
    def signature(self) -> dict[str, str]:
        """Triton's types of all arguments."""
        return {**self.arguments, **dict.fromkeys(self.constants, "constexpr")}

    @property
    def options(self) -> dict[str, int]:
        """Triton's options."""
        return options(self.warps)


def options(warps: int) -> dict[str, int]:
    """Return the options of a launch with *warps* a program."""
    # A product and a sum are rounded once: Triton's own default depends on its version.
    return {"num_warps": warps, "enable_fp_fusion": True}


def pointer(dtype: torch.dtype) -> str:
    """Return Triton's type of a pointer to numbers of *dtype*."""
    return _TYPES[dtype]


def random_numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the same random numbers for the same shape, on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def block_of(count: int) -> int:
    """Return the length of a block for *count* numbers: the next power of two."""
    return 1 << max(count - 1, 0).bit_length()


def warps_for(block: int) -> int:
    """Return the number of warps that share a *block* of numbers."""
    return min(_MAX_WARPS, max(1, block // (_NUMBERS_PER_THREAD * _THREADS)))

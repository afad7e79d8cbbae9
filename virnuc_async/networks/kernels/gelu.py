"""The exact GELU, 0.5 x (1 + erf(x / sqrt 2)), in place: one read and one write of each number."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from .launching import SAMPLE_ROWS, options, random_numbers

_BLOCK, _WARPS = 1024, 4  # 8 numbers a thread: a load of 16 bytes in half precision


@triton.jit
def exact_gelu(x: tl.tensor) -> tl.tensor:
    """Return gelu(x) of a block in FP32."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gelu(x: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    # A row a program: the mask depends on the constant width alone, so that loads are of 16 bytes.
    at = x + tl.program_id(0).to(tl.int64) * WIDTH + column
    inside = column < WIDTH
    tl.store(at, exact_gelu(tl.load(at, mask=inside).to(tl.float32)), mask=inside)


def gelu(x: Tensor) -> Tensor:
    """Replace *x* (T, C) by gelu(x), and return it."""
    rows, width = x.shape
    _gelu[(rows, triton.cdiv(width, _BLOCK))](x, **_constants(width), **options(_WARPS))
    return x


def gelu_twin(x: Tensor) -> Tensor:
    """Return what :func:`gelu` makes of *x*, in FP32."""
    return functional.gelu(x.float())


def sample(dtype: torch.dtype, width: int) -> tuple[Tensor]:
    """Return an argument for :func:`gelu`."""
    return (random_numbers(SAMPLE_ROWS, width, dtype=dtype),)


def _constants(width: int) -> dict[str, int]:
    return {"WIDTH": width, "BLOCK": _BLOCK}

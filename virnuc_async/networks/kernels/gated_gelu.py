"""gelu(gate) * up of the two halves of each row: one pass over both, and no rounding between."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from .gelu import exact_gelu
from .launching import SAMPLE_ROWS, options, random_numbers

_BLOCK, _WARPS = 1024, 4  # 8 numbers a thread: a load of 16 bytes in half precision


@triton.jit
def _gated_gelu(x: tl.tensor, out: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = x + row * 2 * WIDTH + column
    gate = tl.load(at, mask=inside).to(tl.float32)
    up = tl.load(at + WIDTH, mask=inside).to(tl.float32)
    tl.store(out + row * WIDTH + column, exact_gelu(gate) * up, mask=inside)


def gated_gelu(x: Tensor) -> Tensor:
    """Return gelu(gate) * up, (T, C), of *x* (T, 2 C): the gates, then the others."""
    rows, width = len(x), x.shape[1] // 2
    out = x.new_empty(rows, width)
    _gated_gelu[(rows, triton.cdiv(width, _BLOCK))](x, out, **_constants(width), **options(_WARPS))
    return out


def gated_gelu_twin(x: Tensor) -> Tensor:
    """Return what :func:`gated_gelu` returns, in FP32."""
    gate, up = x.float().chunk(2, dim=1)
    return functional.gelu(gate) * up


def sample(dtype: torch.dtype, width: int) -> tuple[Tensor]:
    """Return an argument for :func:`gated_gelu`."""
    return (random_numbers(SAMPLE_ROWS, 2 * width, dtype=dtype),)


def _constants(width: int) -> dict[str, int]:
    return {"WIDTH": width, "BLOCK": _BLOCK}

"""
The residual sum and its LayerNorm in one pass: two reads, and two writes or one.

The norm is of the sum before it is rounded.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

from .launching import (
    SAMPLE_ROWS,
    block_of,
    options,
    random_numbers,
    warps_for,
)


@triton.jit
def normalize(x: tl.tensor, inside: tl.tensor, eps: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """Return a row of WIDTH numbers in FP32, those that are *inside*, with mean 0 and variance 1."""
    # From the numbers' distance to their mean: their squares would cancel in FP32.
    centred = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
    return centred * (1.0 / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + eps))


@triton.jit
def _add_norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    eps: tl.tensor,
    CONSTANTS: tl.constexpr,
) -> None:
    WIDTH: tl.constexpr = CONSTANTS[0]
    BLOCK: tl.constexpr = CONSTANTS[1]
    KEEPS_SUM: tl.constexpr = CONSTANTS[2]
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    row = tl.program_id(0).to(tl.int64) * WIDTH
    at, residual_at = x + row + column, residual + row + column
    total = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual_at, mask=inside, other=0.0).to(tl.float32)
    if KEEPS_SUM:
        tl.store(residual_at, total, mask=inside)
    scale = tl.load(weight + column, mask=inside).to(tl.float32)
    shift = tl.load(bias + column, mask=inside).to(tl.float32)
    tl.store(at, normalize(total, inside, eps, WIDTH) * scale + shift, mask=inside)


def add_norm(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Replace *residual* by residual + x, (T, C), and *x* by norm(residual + x); return both."""
    _launch(x, residual, norm, keeps_sum=True)
    return residual, x


def normed_sum(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Replace *x* (T, C) by norm(residual + x), and return it."""
    _launch(x, residual, norm, keeps_sum=False)
    return x


def add_norm_twin(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return what :func:`add_norm` returns, in FP32."""
    total = residual.float() + x.float()
    weight, bias = norm.weight.float(), norm.bias.float()
    return total, functional.layer_norm(total, norm.normalized_shape, weight, bias, norm.eps)


def normed_sum_twin(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return what :func:`normed_sum` returns, in FP32."""
    return add_norm_twin(x, residual, norm)[1]


def sample(dtype: torch.dtype, width: int) -> tuple[Tensor, Tensor, nn.LayerNorm]:
    """Return arguments for both functions."""
    norm = nn.LayerNorm(width, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(random_numbers(width, dtype=dtype))
    norm.bias.copy_(random_numbers(width, dtype=dtype))
    x = random_numbers(SAMPLE_ROWS, width, dtype=dtype)
    return x, 1 + x.flip(1), norm


def _launch(x: Tensor, residual: Tensor, norm: nn.LayerNorm, keeps_sum: bool) -> None:
    rows, width = x.shape
    given = (x, residual, norm.weight, norm.bias, norm.eps)
    _add_norm[(rows,)](*given, **_constants(width, keeps_sum), **options(warps_for(block_of(width))))


def _constants(width: int, keeps_sum: bool) -> dict[str, tuple[int, int, bool]]:
    return {"CONSTANTS": (width, block_of(width), keeps_sum)}

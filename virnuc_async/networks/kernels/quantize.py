"""
Rows in FP8 with a scale each, in the pass that computes them: plain, their GELU, or residual sum and norm.

A program has a whole row in its registers: the scale is known before the first number is written. The numbers
are rounded when they are stored: with another *dtype* than FP8, tests see them before that.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from virnuc_async.networks.quantized import FP8, Quantized

from .add_norm import normalize
from .gelu import exact_gelu
from .launching import block_of, options, warps_for


@triton.jit
def _store_quantized(
    x: tl.tensor, inside: tl.tensor, values: tl.tensor, scales: tl.tensor, WIDTH: tl.constexpr
) -> None:
    """Store the program's row *x* in FP32, of which only what is *inside* counts, and its scale."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.max(tl.where(inside, tl.abs(x), 0.0), 0)
    # 448 is the largest number of FP8; a row of zeros has any scale but zero.
    scale = tl.maximum(largest / 448.0, 1.1754943508222875e-38)
    column = tl.arange(0, x.shape[0])
    # What is not finite must stay so: a maximum of NaN and a number is a number, unless it is asked for.
    shrunk = tl.clamp(x / scale, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(values + row * WIDTH + column, shrunk, mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def _quantize(
    x: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_GELU: tl.constexpr,
) -> None:
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = x + tl.program_id(0).to(tl.int64) * WIDTH + column
    row = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if IS_GELU:
        row = exact_gelu(row)
    _store_quantized(row, inside, values, scales, WIDTH)


@triton.jit
def _add_norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    EPS: tl.constexpr,
) -> None:
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    row = tl.program_id(0).to(tl.int64) * WIDTH
    total = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual + row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(residual + row + column, total, mask=inside)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    normed = normalize(total, inside, EPS, WIDTH) * scale + shift
    _store_quantized(normed, inside, values, scales, WIDTH)


def quantize(x: Tensor, dtype: torch.dtype = FP8) -> Quantized:
    """Return *x* (T, C) with the largest number of each row at the end of FP8's range."""
    return _launch(x, dtype, is_gelu=False)


def quantized_gelu(x: Tensor, dtype: torch.dtype = FP8) -> Quantized:
    """Return gelu(x) of *x* (T, C), the exact one."""
    return _launch(x, dtype, is_gelu=True)


def quantized_add_norm(
    x: Tensor, residual: Tensor, norm: nn.LayerNorm, dtype: torch.dtype = FP8
) -> tuple[Tensor, Quantized]:
    """Replace *residual* by residual + x, (T, C); return it, and the norm of the sum before it is rounded."""
    rows, out = len(x), _empty(x, dtype)
    constants = _constants(x.shape[1])
    _add_norm[(rows,)](
        x,
        residual,
        norm.weight,
        norm.bias,
        *out,
        **constants,
        EPS=norm.eps,
        **options(warps_for(constants["BLOCK"])),
    )
    return residual, out


def _launch(x: Tensor, dtype: torch.dtype, is_gelu: bool) -> Quantized:
    out, constants = _empty(x, dtype), _constants(x.shape[1])
    warps = warps_for(constants["BLOCK"])
    _quantize[(len(x),)](x, *out, **constants, IS_GELU=is_gelu, **options(warps))
    return out


def _empty(x: Tensor, dtype: torch.dtype) -> Quantized:
    return Quantized(
        torch.empty(x.shape, dtype=dtype, device=x.device),
        torch.empty(len(x), 1, dtype=torch.float32, device=x.device),
    )


def _constants(width: int) -> dict[str, int]:
    return {"WIDTH": width, "BLOCK": block_of(width)}

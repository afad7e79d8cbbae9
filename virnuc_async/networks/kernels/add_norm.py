"""
The residual sum and its LayerNorm in one pass: two reads, and two writes or one.

The norm is of the sum before it is rounded.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

from .launching import DNABERT_S_WIDTH, ESM2_WIDTHS, Variant, block_of, pointer, warps_for


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
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    KEEPS_SUM: tl.constexpr,
) -> None:
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


def variants(dtype: torch.dtype) -> Iterator[Variant]:
    """Yield the compilations for the published networks."""
    arguments = dict.fromkeys(("x", "residual", "weight", "bias"), pointer(dtype)) | {"eps": "fp32"}
    for width, keeps_sum in [*((width, True) for width in ESM2_WIDTHS), (DNABERT_S_WIDTH, False)]:
        name = f"{'add + norm' if keeps_sum else 'norm of sum'} {width}"
        constants = _constants(width, keeps_sum)
        yield Variant(name, _add_norm, arguments, constants, warps_for(constants["BLOCK"]))


def _launch(x: Tensor, residual: Tensor, norm: nn.LayerNorm, keeps_sum: bool) -> None:
    rows, width = x.shape
    constants = _constants(width, keeps_sum)
    _add_norm[(rows,)](
        x, residual, norm.weight, norm.bias, norm.eps, **constants, num_warps=warps_for(constants["BLOCK"])
    )


def _constants(width: int, keeps_sum: bool) -> dict[str, int]:
    return {"WIDTH": width, "BLOCK": block_of(width), "KEEPS_SUM": keeps_sum}

"""
Rotary positions of the queries and keys of a packed product, in place: one read and one write of each.

The values, which lie behind them in each row, are not touched.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from virnuc_async.networks.rotary import rotate_halves

from .launching import ESM2_HEADS, Variant, block_of, pointer

_PAIRS, _WARPS = 1024, 4  # of a program; 8 pairs a thread


@triton.jit
def _rotate(
    x: tl.tensor,
    angles: tl.tensor,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEAD_BLOCK + tl.arange(0, HEAD_BLOCK)
    column = tl.arange(0, HALF_BLOCK)
    # One read of the angles serves all heads of the block.
    angle = angles + token * (2 * HALF) + column
    cos = tl.load(angle, mask=column < HALF)[None, :]
    sin = tl.load(angle + HALF, mask=column < HALF)[None, :]
    inside = (head < HEADS)[:, None] & (column < HALF)[None, :]
    at = x + token * (3 * HEADS * HALF) + head[:, None] * (2 * HALF) + column[None, :]
    left = tl.load(at, mask=inside).to(tl.float32)
    right = tl.load(at + HALF, mask=inside).to(tl.float32)
    tl.store(at, left * cos - right * sin, mask=inside)
    tl.store(at + HALF, right * cos + left * sin, mask=inside)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """
    Rotate *x*, the queries and keys (T, 2, H, D) of a contiguous product (T, 3, H, D), in place; return it.

    *angles* are those of ``rotary_angles``, and the order is the published one.
    """
    tokens, _, heads, width = x.shape
    constants = _constants(heads, width)
    grid = (tokens, triton.cdiv(2 * heads, constants["HEAD_BLOCK"]))
    _rotate[grid](x, angles, **constants, num_warps=_WARPS)
    return x


def rotate_twin(x: Tensor, angles: Tensor) -> Tensor:
    """Return what :func:`rotate` makes of *x*, in FP32."""
    return rotate_halves(x.float(), angles)


def variants(dtype: torch.dtype) -> Iterator[Variant]:
    """Yield the compilations for the published networks."""
    arguments = {"x": pointer(dtype), "angles": pointer(torch.float32)}
    for heads, width in ESM2_HEADS:
        constants = _constants(heads, width)
        yield Variant(f"rotary {heads} x {width}", _rotate, arguments, constants, _WARPS)


def _constants(heads: int, width: int) -> dict[str, int]:
    half = width // 2
    half_block = block_of(half)
    return {
        "HEADS": 2 * heads,
        "HALF": half,
        "HEAD_BLOCK": max(1, _PAIRS // half_block),
        "HALF_BLOCK": half_block,
    }

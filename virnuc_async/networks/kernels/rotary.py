"""
Rotary positions of the queries and keys of a packed product, in place: one read and one write of each.

The values, which lie behind them in each row, are not touched.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from virnuc_async.networks.rotary import rotary_angles, rotate_halves

from .launching import SAMPLE_ROWS, block_of, options, random_numbers

_PAIRS = 1024  # of a program


@triton.jit
def _rotate(
    qkv: tl.tensor,
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
    at = qkv + token * (3 * HEADS * HALF) + head[:, None] * (2 * HALF) + column[None, :]
    left = tl.load(at, mask=inside).to(tl.float32)
    right = tl.load(at + HALF, mask=inside).to(tl.float32)
    tl.store(at, left * cos - right * sin, mask=inside)
    tl.store(at + HALF, right * cos + left * sin, mask=inside)


def rotate(qkv: Tensor, angles: Tensor) -> Tensor:
    """
    Rotate queries and keys of the contiguous *qkv* (T, 3, H, D) in place; return them, (T, 2, H, D).

    *angles* are those of ``rotary_angles``, and the order is the published one.
    """
    tokens, _, heads, width = qkv.shape
    constants = _constants(heads, width)
    grid = (tokens, triton.cdiv(2 * heads, constants["HEAD_BLOCK"]))
    _rotate[grid](qkv, angles, **constants, **options(_warps(qkv.dtype)))
    return qkv[:, :2]


def rotate_twin(qkv: Tensor, angles: Tensor) -> Tensor:
    """Return what :func:`rotate` returns, in FP32."""
    return rotate_halves(qkv.float(), angles)


def sample(dtype: torch.dtype, heads: int, width: int) -> tuple[Tensor, Tensor]:
    """Return arguments for :func:`rotate`."""
    angles = rotary_angles(torch.arange(SAMPLE_ROWS) * 100, width)
    return random_numbers(SAMPLE_ROWS, 3, heads, width, dtype=dtype), angles


def _warps(dtype: torch.dtype) -> int:
    return _PAIRS * dtype.itemsize // (16 * 32)  # a thread loads 16 bytes of each half


def _constants(heads: int, width: int) -> dict[str, int]:
    half = width // 2
    half_block = block_of(half)
    return {
        "HEADS": 2 * heads,
        "HALF": half,
        "HEAD_BLOCK": max(1, _PAIRS // half_block),
        "HALF_BLOCK": half_block,
    }

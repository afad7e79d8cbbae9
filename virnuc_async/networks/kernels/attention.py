"""
Attention over packed sequences of any lengths, with or without ALiBi, in one launch.

FlashAttention's method (Dao et al. 2022, arXiv:2205.14135): a program owns a tile of queries of one
sequence and one head, goes over the sequence's keys in blocks, and keeps the softmax's maximum and
sum in FP32. It needs no scratch memory and no padding. Its twin in plain torch is
:func:`virnuc_async.networks.attention.sdpa_by_length`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from virnuc_async.networks.packing import TILE, Packed

_NARROWEST = 16  # numbers: tensor cores multiply no narrower heads, so these are padded


@triton.jit
def _attention(
    inputs: tl.tuple,
    strides: tl.tuple,
    out: tl.tensor,
    tiles: tl.tensor,
    slopes: tl.tensor,
    CONSTANTS: tl.constexpr,
) -> None:
    q, k, v = inputs
    q_stride, k_stride, v_stride = strides
    HEADS: tl.constexpr = CONSTANTS[0]
    WIDTH: tl.constexpr = CONSTANTS[1]
    PADDED: tl.constexpr = CONSTANTS[2]
    QUERIES: tl.constexpr = CONSTANTS[3]
    KEYS: tl.constexpr = CONSTANTS[4]
    WIDEN: tl.constexpr = CONSTANTS[5]
    LOG2_E: tl.constexpr = 1.4426950408889634  # a GPU computes powers of 2
    head = tl.program_id(0) % HEADS
    tile = tiles + tl.program_id(0) // HEADS * 3
    first, start, end = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    length = end - start
    column = tl.arange(0, PADDED)
    # A token can begin 2**31 numbers after the first one of the batch, but not of its sequence.
    q += first.to(tl.int64) * q_stride + head * WIDTH
    k += start.to(tl.int64) * k_stride + head * WIDTH
    v += start.to(tl.int64) * v_stride + head * WIDTH
    out += (first.to(tl.int64) * HEADS + head) * WIDTH
    query = tl.arange(0, QUERIES)
    is_query = (query < end - first)[:, None] & (column < WIDTH)[None, :]
    queries = tl.load(q + query[:, None] * q_stride + column[None, :], mask=is_query, other=0.0)
    queries = queries.to(tl.float32) if WIDEN else queries
    if slopes is not None:
        slope = tl.load(slopes + head) * LOG2_E
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    attended = tl.zeros((QUERIES, PADDED), tl.float32)
    for begin in range(0, length, KEYS):
        key = begin + tl.arange(0, KEYS)
        is_key = (key < length)[:, None] & (column < WIDTH)[None, :]
        keys = tl.load(k + key[:, None] * k_stride + column[None, :], mask=is_key, other=0.0)
        keys = keys.to(tl.float32) if WIDEN else keys
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (LOG2_E * WIDTH**-0.5)
        if slopes is not None:
            distance = tl.abs((first - start + query)[:, None] - key[None, :])
            scores -= slope * distance.to(tl.float32)
        scores = tl.where((key < length)[None, :], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_highest[:, None])
        shrink = tl.exp2(highest - new_highest)
        highest = new_highest
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(v + key[:, None] * v_stride + column[None, :], mask=is_key, other=0.0)
        values = values.to(tl.float32) if WIDEN else values
        attended *= shrink[:, None]
        attended = tl.dot(weights.to(values.dtype), values, attended, input_precision="ieee")
    attended = (attended / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + query[:, None] * (HEADS * WIDTH) + column[None, :], attended, mask=is_query)


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a program goes over the keys."""

    keys: int  # of a block
    warps: int  # that share a program
    widen: bool  # multiply in FP32: for FP32, and where Triton does not use the tensor cores

    @classmethod
    def of(cls, dtype: torch.dtype, capability: tuple[int, int]) -> "Blocks":
        """
        Return the blocks for numbers of *dtype* on a GPU of *capability*, such that registers suffice.

        Without tensor cores both operands of a product are in registers: few keys, and half precision,
        which is converted first, among more warps. Triton has no tensor cores for capability 7.5.
        """
        if dtype == torch.float32:
            return cls(keys=16, warps=4, widen=True)
        if capability < (8, 0):
            return cls(keys=16, warps=8, widen=True)
        return cls(keys=64, warps=4, widen=False)


def attention(
    packed: Packed, slopes: Tensor | None = None, blocks: Blocks | None = None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attend by one launch a call. Heads must be contiguous, tokens may be apart."""
    tiles = packed.tiles
    capability = (0, 0) if blocks else _capability(tiles.device)  # asked once for all layers

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, width = q.shape[1:]
        chosen = blocks or Blocks.of(q.dtype, capability)
        out = q.new_empty(q.shape)
        padded = max(_NARROWEST, triton.next_power_of_2(width))
        constants = (heads, width, padded, TILE, chosen.keys, chosen.widen)
        _attention[(len(tiles) * heads,)](
            (q, k, v),
            (q.stride(0), k.stride(0), v.stride(0)),
            *(out, tiles, slopes, constants),
            num_warps=chosen.warps,
            num_stages=2,
            enable_fp_fusion=True,
        )
        return out

    return attend


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)

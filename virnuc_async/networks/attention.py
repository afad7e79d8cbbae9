"""
Attention within each sequence of packed tokens: a reference, and faster kernels for GPUs.

A kernel is prepared once per batch and then called in every layer. ALiBi (Press et al. 2022,
arXiv:2108.12409) biases head h by -slope[h] * distance, the same in both directions. A GPU uses the
first of the faster kernels that is available and matches the reference; see :func:`select_kernel`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from .packing import Packed, Run, dummy_batch, pack

# Queries, keys and values, (T, H, D) each, to softmax(q k' / sqrt(D) + bias) v, (T, H, D).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# A batch, and the slope of each head (H,) in FP32 or None for no bias, to the function above.
Attention = Callable[[Packed, Tensor | None], Attend]

MAX_SCORES = 1 << 22  # attention scores of a block: 200 MB of bias for 12 heads in FP32
_MIN_FILL = 0.75  # of a block's longest sequence: a shorter one begins the next block
_ALIGNMENT = 8  # numbers: kernels read a bias with aligned rows in place, and copy others first

# On this sample, a wrong bias, boundary or order changes results by tenths.
_SAMPLE = (48, 33, 33, 32, 9, 3, 1)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def sdpa_by_length(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """Attend run by run, without padding; the reference, and the fastest kernel on a CPU."""
    bias = None if slopes is None else distance_bias(slopes, packed.longest)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # GPU kernels require the queries' type; CPU kernels accept FP32, which is more exact.
        typed_bias = bias.to(q.dtype) if bias is not None and q.is_cuda else bias
        attended = []
        for queries, keys, values in zip(*map(packed.views, (q, k, v)), strict=True):
            length = queries.shape[1]
            mask = None if typed_bias is None else typed_bias[:, :length, :length]
            attended.append(_dense(queries, keys, values, mask).flatten(0, 1))
        return torch.cat(attended)

    return attend


def varlen(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """Attend by FlashAttention's kernel for sequences of any lengths: one call, no padding."""
    cu_seqlens, longest = packed.cu_seqlens, packed.longest

    def unbiased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _varlen_attn()(q, k, v, cu_seqlens, cu_seqlens, longest, longest)

    def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # torch's public function takes no slopes; its kernel does, if it was built with them.
        shape = (cu_seqlens, cu_seqlens, longest, longest, 0.0, False, False)
        out, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *shape, alibi_slopes=slopes)
        return out  # type: ignore[no-any-return]

    return unbiased if slopes is None else biased


@cache
def _varlen_attn() -> Callable[..., Tensor]:
    # Its import takes a second, and only GPUs use it.
    return cast(Callable[..., Tensor], import_module("torch.nn.attention.varlen").varlen_attn)


def sdpa_padded(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """Attend in a few dense blocks of similar lengths; padding is masked."""
    blocks = list(_blocks(packed, slopes))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(len(q) + 1, *q.shape[1:])  # padding is written to the last row
        for block in blocks:
            mask = None if block.mask is None else block.mask.to(q.dtype)
            out[block.write] = _dense(q[block.read], k[block.read], v[block.read], mask)
        return out[:-1]

    return attend


def select_kernel(
    device: torch.device, dtype: torch.dtype, heads: int, width: int, biased: bool
) -> Attention:
    """
    Return the fastest kernel for *heads* of *width* numbers on a GPU.

    Which kernels are available depends on the card, on torch's build and on the shape, and none is
    trusted: a kernel is used only if it matches the reference on a sample.
    """
    for kernel in (varlen, sdpa_padded):
        if _matches_reference(kernel, device, dtype, (heads, width), biased):
            return kernel
    return sdpa_by_length


def distance_bias(slopes: Tensor, length: int) -> Tensor:
    """Return -slope * distance, (H, length, length) in FP32."""
    at = torch.arange(length, device=slopes.device)
    return -slopes[:, None, None] * (at[:, None] - at).abs()


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend in sequences of equal length; all tensors are (B, L, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # B H L D
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive sequences as a dense grid of tokens."""

    read: Tensor  # (B, L): indices of tokens; padding reads any token
    write: Tensor  # (B, L): the same; padding is written after the last token
    mask: Tensor | None  # (B, H or 1, L, L)


def _blocks(packed: Packed, slopes: Tensor | None) -> Iterator[_Block]:
    total = len(packed.ids)
    for first, end, longest, is_ragged in _block_ranges(packed.runs):
        has_mask = is_ragged or slopes is not None
        length = -(-longest // _ALIGNMENT) * _ALIGNMENT if has_mask else longest
        at = torch.arange(length, device=packed.cu_seqlens.device)
        starts, ends = packed.cu_seqlens[first:end, None], packed.cu_seqlens[first + 1 : end + 1, None]
        tokens = starts + at
        is_real = tokens < ends
        yield _Block(
            read=tokens.clamp(max=total - 1),
            write=tokens.where(is_real, total),
            mask=_mask(is_real, slopes) if has_mask else None,
        )


def _mask(is_real: Tensor, slopes: Tensor | None) -> Tensor:
    length = is_real.shape[1]
    padding = torch.where(is_real, 0.0, -torch.inf)[:, None, None]
    if slopes is None:
        return padding.expand(-1, -1, length, -1)
    return padding + distance_bias(slopes, length)


def _block_ranges(
    runs: tuple[Run, ...], max_scores: int = MAX_SCORES
) -> Iterator[tuple[int, int, int, bool]]:
    """Yield each block's first and end sequence, its longest, and whether others are shorter."""
    lengths = [run.length for run in runs for _ in range(run.count)]
    first = 0
    while first < len(lengths):
        longest = lengths[first]
        last = min(len(lengths), first + max(1, max_scores // longest**2)) - 1
        while lengths[last] < _MIN_FILL * longest:
            last -= 1
        yield first, last + 1, longest, lengths[last] < longest
        first = last + 1


def _matches_reference(
    kernel: Attention, device: torch.device, dtype: torch.dtype, shape: tuple[int, int], biased: bool
) -> bool:
    packed = pack(dummy_batch(*_SAMPLE))
    random = torch.Generator().manual_seed(1)
    numbers = torch.randn(3, len(packed.ids), *shape, generator=random).to(dtype)
    slopes = 2.0 ** -torch.arange(1, shape[0] + 1) if biased else None
    expected = sdpa_by_length(packed, slopes)(*numbers.float())
    try:
        slopes = slopes if slopes is None else slopes.to(device)
        found = kernel(packed.to(device), slopes)(*numbers.to(device))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError:  # a kernel that is not available, or not for this shape
        return False
    return bool(((found.cpu().float() - expected).abs() < _TOLERANCE[dtype]).all())

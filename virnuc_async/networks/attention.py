"""
Attention within each sequence of packed tokens: the plain way, and faster ones for GPUs.

A way is prepared once a batch and then called in every layer. ALiBi (Press et al. 2022,
arXiv:2108.12409) biases head h by -slope[h] * distance, the same in both directions. A GPU uses the
first of the faster ways that is there and proves to give the plain answer; see :func:`select_kernel`.
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
# A batch and the slope of each head (H,), FP32, if there is a bias.
Attention = Callable[[Packed, Tensor | None], Attend]

_MOST_CELLS = 1 << 22  # of a block's scores: 200 MB of bias for 12 heads in FP32
_LEAST_FULL = 0.75  # of the longest: a shorter sequence begins a block of its own
_ALIGNED = 8  # numbers: a kernel reads a bias whose rows begin so, and copies others first

# A wrong bias, border or order moves numbers of this sample by tenths.
_SAMPLE = (48, 33, 33, 32, 9, 3, 1)
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def sdpa_by_length(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """Attend run by run, without padding; the reference, and the fastest way on a CPU."""
    bias = None if slopes is None else distance_bias(slopes, packed.longest)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # A GPU's kernels want the queries' type; a CPU's take FP32, which is more exact.
        fitting = bias.to(q.dtype) if bias is not None and q.is_cuda else bias
        attended = []
        for queries, keys, values in zip(*map(packed.views, (q, k, v)), strict=True):
            length = queries.shape[1]
            corner = None if fitting is None else fitting[:, :length, :length]
            attended.append(_dense(queries, keys, values, corner).flatten(0, 1))
        return torch.cat(attended)

    return attend


def varlen(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """Attend by FlashAttention's kernel for sequences of any lengths: one call, no padding."""
    borders, longest = packed.cu_seqlens, packed.longest

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _varlen_attn()(q, k, v, borders, borders, longest, longest)

    def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # torch's public function takes no slopes; its kernel does, where it was built with them.
        shape = (borders, borders, longest, longest, 0.0, False, False)
        out, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *shape, alibi_slopes=slopes)
        return out  # type: ignore[no-any-return]

    return plain if slopes is None else biased


@cache
def _varlen_attn() -> Callable[..., Tensor]:
    # It takes a second to import, and only GPUs have use for it.
    return cast(Callable[..., Tensor], import_module("torch.nn.attention.varlen").varlen_attn)


def sdpa_padded(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """Attend in a few dense blocks of similar lengths, the padding masked."""
    blocks = list(_blocks(packed, slopes))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(len(q) + 1, *q.shape[1:])  # padding goes to the last row
        for block in blocks:
            mask = None if block.mask is None else block.mask.to(q.dtype)
            out[block.write] = _dense(q[block.read], k[block.read], v[block.read], mask)
        return out[:-1]

    return attend


def select_kernel(
    device: torch.device, dtype: torch.dtype, heads: int, width: int, biased: bool
) -> Attention:
    """
    Give the fastest way to attend with *heads* of *width* numbers on a GPU.

    Which kernels there are depends on the card, on torch's build and on the shape, and a new one
    is not trusted: a way is taken where it gives the plain answer to a sample.
    """
    for way in (varlen, sdpa_padded):
        if _gives_the_plain_answer(way, device, dtype, (heads, width), biased):
            return way
    return sdpa_by_length


def distance_bias(slopes: Tensor, length: int) -> Tensor:
    """Give -slope * distance, (H, length, length) in FP32."""
    at = torch.arange(length, device=slopes.device)
    return -slopes[:, None, None] * (at[:, None] - at).abs()


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend in sequences of one length: (B, L, H, D) each."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # B H L D
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive sequences as a dense grid of tokens."""

    read: Tensor  # (B, L): numbers of tokens; padding reads any
    write: Tensor  # (B, L): the same; padding is written behind the last
    mask: Tensor | None  # (B, H or 1, L, L)


def _blocks(packed: Packed, slopes: Tensor | None) -> Iterator[_Block]:
    total = len(packed.ids)
    for first, end, longest, is_ragged in _cuts(packed.runs):
        has_mask = is_ragged or slopes is not None
        length = -(-longest // _ALIGNED) * _ALIGNED if has_mask else longest
        at = torch.arange(length, device=packed.cu_seqlens.device)
        starts, ends = packed.cu_seqlens[first:end, None], packed.cu_seqlens[first + 1 : end + 1, None]
        places = starts + at
        is_real = places < ends
        yield _Block(
            read=places.clamp(max=total - 1),
            write=places.where(is_real, total),
            mask=_mask(is_real, slopes) if has_mask else None,
        )


def _mask(is_real: Tensor, slopes: Tensor | None) -> Tensor:
    length = is_real.shape[1]
    hidden = torch.where(is_real, 0.0, -torch.inf)[:, None, None]
    if slopes is None:
        return hidden.expand(-1, -1, length, -1)
    return hidden + distance_bias(slopes, length)


def _cuts(runs: tuple[Run, ...]) -> Iterator[tuple[int, int, int, bool]]:
    """Give each block's first and end sequence, its longest, and whether others are shorter."""
    lengths = [run.length for run in runs for _ in range(run.count)]
    first = 0
    while first < len(lengths):
        longest = lengths[first]
        last = min(len(lengths), first + max(1, _MOST_CELLS // longest**2)) - 1
        while lengths[last] < _LEAST_FULL * longest:
            last -= 1
        yield first, last + 1, longest, lengths[last] < longest
        first = last + 1


def _gives_the_plain_answer(
    way: Attention, device: torch.device, dtype: torch.dtype, shape: tuple[int, int], biased: bool
) -> bool:
    packed = pack(dummy_batch(*_SAMPLE))
    random = torch.Generator().manual_seed(1)
    numbers = torch.randn(3, len(packed.ids), *shape, generator=random).to(dtype)
    slopes = 2.0 ** -torch.arange(1, shape[0] + 1) if biased else None
    wanted = sdpa_by_length(packed, slopes)(*numbers.float())
    try:
        slopes = slopes if slopes is None else slopes.to(device)
        found = way(packed.to(device), slopes)(*numbers.to(device))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError:  # a kernel that is not there, or not for this shape
        return False
    return bool(((found.cpu().float() - wanted).abs() < _TOLERANCE[dtype]).all())

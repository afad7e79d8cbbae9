"""
Attention within each sequence of packed tokens: a reference, and faster ways for CPUs and GPUs.

A kernel is prepared once per batch and then called in every layer. ALiBi (Press et al. 2022,
arXiv:2108.12409) biases head h by -slope[h] * distance, the same in both directions. A GPU uses the
first of the faster kernels that is available and matches the reference; see :func:`select_kernel`.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from .kernels.availability import kernel_errors, why_unavailable
from .packing import Packed, dummy_batch, pack

# Queries, keys and values, (T, H, D) each, to softmax(q k' / sqrt(D) + bias) v, (T, H, D).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# A batch, and the slope of each head (H,) in FP32 or None for no bias, to the function above.
Attention = Callable[[Packed, Tensor | None], Attend]

# More than one tile and block of keys in each kernel, sequences that end within one, and single tokens.
_SAMPLE = (300, 129, 128, 64, 33, 33, 9, 1, 1)
# On the sample, a wrong bias, boundary or order changes results by tenths.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# Only with a mask of two or four dimensions, torch's kernel for CPUs is a fused one: 1.5 to 3 times as fast.
# With narrower heads than these, its bits depend on the number of threads.
_FUSED_WIDTH = 16
# Scores of a block on a CPU: 2 MiB in FP32, which stay in the caches between the operations.
_SCORES_IN_CACHE = 1 << 19
# Scores of a sequence from which torch's kernel, which keeps none of them, is faster on a CPU.
_MANY_SCORES = 1 << 23


def sdpa_by_length(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """Attend run by run, without padding; the reference, and the fastest kernel in FP32 on a CPU."""
    return _by_length(packed, slopes, _dense)


def products_by_length(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """
    Attend run by run by matrix products, with softmax in FP32: the fastest way in BF16 on a CPU.

    oneDNN computes the products several times as fast as torch's kernel its own in BF16. The scores
    are rounded to BF16 before the softmax, as the weights are after it.
    """
    return _by_length(packed, slopes, _products)


# Queries, keys and values, (B, L, H, D) each, and a bias (H, L, L) or None, to their attention.
_AttendRun = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def _by_length(packed: Packed, slopes: Tensor | None, attend_run: _AttendRun) -> Attend:
    bias = None if slopes is None else distance_bias(slopes, packed.longest)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # GPU kernels require the queries' type; CPU kernels accept FP32, which is more exact.
        typed_bias = bias.to(q.dtype) if bias is not None and q.is_cuda else bias
        attended = []
        for queries, keys, values in zip(*map(packed.views, (q, k, v)), strict=True):
            length = queries.shape[1]
            run_bias = None if typed_bias is None else typed_bias[:, :length, :length]
            attended.append(attend_run(queries, keys, values, run_bias).flatten(0, 1))
        return torch.cat(attended) if len(attended) > 1 else attended[0]

    return attend


def varlen(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """Attend by FlashAttention's kernel: in half precision, from capability 8.0, without a bias."""
    cu_seqlens, longest = packed.cu_seqlens, packed.longest

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _varlen_attn()(q, k, v, cu_seqlens, cu_seqlens, longest, longest)

    return attend


@cache
def _varlen_attn() -> Callable[..., Tensor]:
    # Its import takes a second, and only GPUs use it.
    return cast(Callable[..., Tensor], import_module("torch.nn.attention.varlen").varlen_attn)


def memory_efficient(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """Attend by torch's memory-efficient kernel: in any precision, on any card, without a bias."""
    cu_seqlens, longest = packed.cu_seqlens, packed.longest

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # It has sequences of any lengths (as one of nested tensors), but in no public function.
        limits = (cu_seqlens, cu_seqlens, longest, longest)
        out = torch.ops.aten._efficient_attention_forward(q[None], k[None], v[None], None, *limits, 0.0, 0)
        return cast(Tensor, out[0][0])

    return attend


def triton_kernel(packed: Packed, slopes: Tensor | None = None) -> Attend:
    """Attend by the kernel of this package, in any precision, with or without a bias."""
    # Imported late: only GPUs, and tests, have a use for Triton.
    return cast(Attend, import_module("virnuc_async.networks.kernels.attention").attention(packed, slopes))


def fastest_on_cpu(dtype: torch.dtype) -> Attention:
    """Return the fastest way for packed weights of *dtype* on a CPU."""
    return products_by_length if dtype == torch.bfloat16 else sdpa_by_length


def select_kernel(
    device: torch.device, dtype: torch.dtype, heads: int, width: int, biased: bool
) -> Attention:
    """
    Return the fastest kernel for *heads* of *width* numbers on a GPU.

    Which kernels are available depends on the card, on torch's build, on the shape and on whether the
    machine has a C compiler for Triton, and none is trusted: a kernel is used only if it matches the
    reference on a sample. The reference itself is the last choice: it needs many small launches.
    """
    # Neither of torch's takes slopes. Triton has no tensor cores for capability 7.5, torch's have.
    kernels = (triton_kernel,) if biased else (varlen, memory_efficient, triton_kernel)
    for kernel in kernels:
        if _matches_reference(kernel, device, dtype, (heads, width), biased):
            return kernel
    return sdpa_by_length


def distance_bias(slopes: Tensor, length: int) -> Tensor:
    """Return -slope * distance, (H, length, length) in FP32."""
    at = torch.arange(length, device=slopes.device)
    return -slopes[:, None, None] * (at[:, None] - at).abs()


def _dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend in sequences of equal length by torch's kernel."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # B H L D
    if bias is not None and q.shape[-1] >= _FUSED_WIDTH:
        bias = bias.expand(len(q), -1, -1, -1)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def _products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend in sequences of equal length by matrix products, a block of sequences at a time."""
    _, length, heads, _ = q.shape
    scores = heads * length**2
    if scores > _MANY_SCORES:
        return _dense(q, k, v, bias)
    count = max(1, _SCORES_IN_CACHE // scores)
    blocks = zip(torch.split(q, count), torch.split(k, count), torch.split(v, count), strict=True)
    attended = [_block_products(*block, bias) for block in blocks]
    return torch.cat(attended) if len(attended) > 1 else attended[0]


def _block_products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    count, length, heads, width = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # B*H L D
    scores = torch.bmm(q, k.transpose(1, 2))
    if bias is None:
        logits = scores.float().mul_(width**-0.5)
    else:
        by_head = scores.view(count, heads, length, length)
        logits = torch.add(bias, by_head, alpha=width**-0.5).flatten(0, 1)  # FP32, as the bias
    attended = torch.bmm(logits.softmax(-1).to(v.dtype), v)
    return attended.view(count, heads, length, width).transpose(1, 2)


def _matches_reference(
    kernel: Attention, device: torch.device, dtype: torch.dtype, shape: tuple[int, int], biased: bool
) -> bool:
    packed = pack(dummy_batch(*_SAMPLE))
    random = torch.Generator().manual_seed(1)
    numbers = torch.randn(len(packed.ids), 3, *shape, generator=random).to(dtype)
    slopes = 2.0 ** -torch.arange(1, shape[0] + 1) if biased else None
    expected = sdpa_by_length(packed, slopes)(*numbers.float().unbind(1))
    try:
        slopes = slopes if slopes is None else slopes.to(device)
        found = kernel(packed.to(device), slopes)(*numbers.to(device).unbind(1))
    except kernel_errors() as error:  # a kernel that is not available, or not for this shape
        why_unavailable(error, device)
        return False
    return bool(((found.cpu().float() - expected).abs() < _TOLERANCE[dtype]).all())

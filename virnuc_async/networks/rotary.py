"""
Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), as ESM-2 uses them.

Each pair of numbers of a query or key is rotated by position * rate, and each pair has a rate of its
own. In the published order a pair is one number of each half of a head; interleaved, it is two
neighbours.
"""

import torch
from torch import Tensor

_GRAIN = 1 << 15  # numbers that torch computes on one thread at least


def rotary_angles(at: Tensor, width: int) -> Tensor:
    """Return the cosines, then the sines, for the positions *at* (T,) and heads of *width*: (T, 2, D/2)."""
    # FP32 whatever the run's precision: in BF16, positions above 256 would be rounded to the same.
    rates = 1 / 10000 ** (torch.arange(0, width, 2, device=at.device).float() / width)
    angles = torch.outer(at.float(), rates)  # T D/2
    return torch.stack((angles.cos(), angles.sin()), 1)


def complex_angles(at: Tensor, width: int) -> Tensor:
    """Return cosine + i sine for the positions *at* (T,) and heads of *width*: (T, D/2)."""
    return torch.view_as_complex(rotary_angles(at, width).transpose(1, 2).contiguous())


def rotate_halves(qkv: Tensor, angles: Tensor) -> Tensor:
    """Return queries and keys of *qkv* (T, 3, H, D) rotated by :func:`rotary_angles`: (T, 2, H, D)."""
    x = qkv[:, :2]
    cos, sin = angles[:, :, None, None].unbind(1)  # T 1 1 D/2
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)


def rotate_interleaved(qkv: Tensor, angles: Tensor) -> Tensor:
    """
    Rotate queries and keys of *qkv* (T, 3, H, D) by :func:`complex_angles` in place; return them.

    Their heads are interleaved.
    """
    x = qkv[:, :2]  # T 2 H D
    # One pass as complex numbers: 0.7 ms where halves take 13, at width 320.
    wide = x.float()  # x itself in FP32
    pairs = torch.view_as_complex(wide.view(*x.shape[:-1], -1, 2))  # T 2 H D/2
    # Where a thread's share of the numbers ends, torch rounds products otherwise: shares are of whole tokens.
    sizes = _shares(len(pairs), pairs[:1].numel(), torch.get_num_threads())
    for part, turns in zip(torch.split(pairs, sizes), torch.split(angles, sizes), strict=True):
        part.mul_(turns[:, None, None])
    return x if wide is x else x.copy_(wide)


def _shares(tokens: int, numbers: int, threads: int) -> list[int]:
    """
    Return how many *tokens* of so many *numbers* to compute at a time.

    Torch's threads share the first of them evenly, so each has whole tokens. One thread computes the others.
    """
    shared = tokens
    while shared % (count := max(1, min(threads, -(-shared * numbers // _GRAIN)))):
        shared -= shared % count
    few = max(1, _GRAIN // numbers)
    return [shared, *(min(few, tokens - first) for first in range(shared, tokens, few))]

"""
Packed tokens: the sequences of a batch are concatenated, without padding or masks.

Every linear layer sees one matrix of (tokens, width). Only attention and pooling see where a
sequence begins. Sequences of equal length form a run, which is a dense (sequences, length, width)
view of the tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnuc_async.sequences.tokens import Ragged

TILE = 64  # queries of a sequence that one program of an attention kernel attends with, at most
_KNOWN_TOKEN = 4  # L for ESM-2, and the first token after the special ones of DNABERT-S


@dataclass(frozen=True, slots=True)
class Run:
    """*count* consecutive sequences of *length* tokens each."""

    count: int
    length: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch for one network: sorted by length, longest first."""

    ids: Tensor  # T, int32
    cu_seqlens: Tensor  # B + 1, int32: the first token of each sequence, and the end
    inverse_order: Tensor  # B, int64: position of each row of the batch among the sorted sequences
    tiles: Tensor  # N, 3, int32: the first token of up to TILE; first and end of their sequence
    runs: tuple[Run, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the batch."""
        return self.ids, self.cu_seqlens, self.inverse_order, self.tiles

    def views(self, tokens: Tensor) -> Iterator[Tensor]:
        """Yield each run's part of *tokens* (T, ...) as a view (count, length, ...)."""
        # One split for all runs: in the backward pass, each slice would allocate a full-size zero tensor.
        parts = torch.split(tokens, [run.count * run.length for run in self.runs])
        for run, part in zip(self.runs, parts, strict=True):
            yield part.view(run.count, run.length, *part.shape[1:])

    def to(self, device: torch.device) -> "Packed":
        """Return a copy on *device*."""
        return self.with_tensors(*(tensor.to(device) for tensor in self.tensors))

    def with_tensors(self, *tensors: Tensor) -> "Packed":
        """Return the batch with these copies of its :attr:`tensors`, in their order."""
        ids, cu_seqlens, inverse_order, tiles = tensors
        return Packed(ids, cu_seqlens, inverse_order, tiles, self.runs)

    @property
    def longest(self) -> int:
        """The length of the longest sequence, in tokens."""
        return self.runs[0].length


def pack(rows: Ragged) -> Packed:
    """Return *rows* packed on the host, sorted by length, longest first; equal lengths keep their order."""
    order = np.argsort(-rows.lengths, kind="stable")
    inverse_order = np.empty_like(order)
    inverse_order[order] = np.arange(len(order))
    packed = rows.take(order)
    cu_seqlens = np.concatenate(([0], np.cumsum(packed.lengths))).astype(np.int32)
    return Packed(
        ids=torch.from_numpy(packed.ids),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        inverse_order=torch.from_numpy(inverse_order),
        tiles=torch.from_numpy(_tiles(cu_seqlens)),
        runs=tuple(Run(len(list(same)), length) for length, same in groupby(packed.lengths.tolist())),
    )


def _tiles(cu_seqlens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the tiles of up to TILE tokens of each sequence: their first; its first and end."""
    counts = -(-np.diff(cu_seqlens) // TILE)
    starts, ends = (np.repeat(part, counts) for part in (cu_seqlens[:-1], cu_seqlens[1:]))
    number = np.arange(len(starts), dtype=np.int32) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack((starts + TILE * number, starts, ends), 1).astype(np.int32)


def dummy_batch(*lengths: int) -> Ragged:
    """Return rows of *lengths* tokens, all of them one token that every network knows."""
    return Ragged(np.full(sum(lengths), _KNOWN_TOKEN, np.int32), np.array(lengths, np.int64))


def mean_pool(hidden: Tensor, packed: Packed, first: int = 0, most: int | None = None) -> Tensor:
    """
    Return the mean of each sequence's *hidden* (T, C) as (B, C) in FP32.

    *first* tokens are left out at both ends, and of the rest at most *most* are averaged.
    """
    if hidden.is_cuda:
        return segment_means(hidden, packed, first, most)
    pooled = []
    for view in packed.views(hidden):
        end = view.shape[1] - first
        if most is not None:
            end = min(end, first + most)
        pooled.append(view[:, first:end].float().mean(1))
    return torch.cat(pooled)[packed.inverse_order]


def segment_means(hidden: Tensor, packed: Packed, first: int = 0, most: int | None = None) -> Tensor:
    """Return what :func:`mean_pool` does, in the same number of launches for any lengths."""
    starts, ends = packed.cu_seqlens[:-1] + first, packed.cu_seqlens[1:] - first
    if most is not None:
        ends = torch.minimum(ends, starts + most)
    # What is left out between two sequences is a segment, too, and dropped. Each sum has one order.
    borders = torch.stack((starts, torch.maximum(starts, ends)), 1).flatten()
    means = torch.segment_reduce(hidden.float(), "mean", offsets=borders, axis=0, unsafe=True)
    return means[::2][packed.inverse_order]


def positions(packed: Packed) -> Tensor:
    """Return each token's position within its sequence, (T,) int64."""
    total = len(packed.ids)
    # Given output_size, the host does not wait for the GPU.
    starts = packed.cu_seqlens[:-1].repeat_interleave(packed.cu_seqlens.diff(), output_size=total)
    return torch.arange(total, device=starts.device) - starts

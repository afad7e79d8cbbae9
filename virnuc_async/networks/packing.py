"""
Packed tokens: the sequences of a batch stand one behind the other, without padding or masks.

Every linear layer sees one matrix of (tokens, width). Only attention and pooling see where a
sequence begins, as runs: sequences of equal length stand together, so that each run is a dense
(sequences, length, width) view.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from virnuc_async.sequences.tokens import Ragged

_KNOWN = 4  # L to ESM-2, and behind the special tokens of DNABERT-S


@dataclass(frozen=True, slots=True)
class Run:
    """*count* sequences of *length* tokens each, one behind the other."""

    count: int
    length: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch for one network: sorted by length, longest first."""

    ids: Tensor  # T, int32
    cu_seqlens: Tensor  # B + 1, int32: the first token of each sequence, and the end
    inverse_order: Tensor  # B, int64: where each row of the batch stands among the sorted sequences
    runs: tuple[Run, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is on the device."""
        return self.ids, self.cu_seqlens, self.inverse_order

    def views(self, tokens: Tensor) -> Iterator[Tensor]:
        """See each run's part of *tokens* (T, ...) as (count, length, ...)."""
        # One split for all runs: a slice for each would cost its backward a full-size zero.
        parts = torch.split(tokens, [run.count * run.length for run in self.runs])
        for run, part in zip(self.runs, parts, strict=True):
            yield part.view(run.count, run.length, *part.shape[1:])

    def to(self, device: torch.device) -> "Packed":
        """Copy to *device*; the copy is ordered on its current stream."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Packed":
        """
        Copy to page-locked host memory, from where a device copies without waiting.

        torch keeps these buffers, and gives one again once the event of its last copy has come.
        """
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Packed":
        ids, cu_seqlens, inverse_order = map(move, self.tensors)
        return Packed(ids, cu_seqlens, inverse_order, self.runs)

    @property
    def longest(self) -> int:
        """The length of the longest sequence, in tokens."""
        return self.runs[0].length


def pack(rows: Ragged) -> Packed:
    """Sort *rows* by length, longest first and otherwise in order, and pack them on the host."""
    order = np.argsort(-rows.lengths, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    packed = rows.take(order)
    return Packed(
        ids=torch.from_numpy(packed.ids),
        cu_seqlens=torch.from_numpy(np.concatenate(([0], np.cumsum(packed.lengths))).astype(np.int32)),
        inverse_order=torch.from_numpy(places),
        runs=tuple(Run(len(list(same)), length) for length, same in groupby(packed.lengths.tolist())),
    )


def dummy_batch(*lengths: int) -> Ragged:
    """Give rows of *lengths* tokens, each of them one that every network knows."""
    return Ragged(np.full(sum(lengths), _KNOWN, np.int32), np.array(lengths, np.int64))


def mean_pool(hidden: Tensor, packed: Packed, first: int = 0, most: int | None = None) -> Tensor:
    """
    Average each sequence's *hidden* (T, C) from its token *first* on; give (B, C) in FP32.

    With *first*, as many tokens are left out at the end; at most *most* tokens are averaged.
    """
    pooled = []
    for view in packed.views(hidden):
        end = view.shape[1] - first
        if most is not None:
            end = min(end, first + most)
        pooled.append(view[:, first:end].float().mean(1))
    return torch.cat(pooled)[packed.inverse_order]


def positions(packed: Packed) -> Tensor:
    """Give each token's position within its sequence, (T,) int64."""
    total = len(packed.ids)
    # With the total given, a GPU need not be waited for.
    starts = packed.cu_seqlens[:-1].repeat_interleave(packed.cu_seqlens.diff(), output_size=total)
    return torch.arange(total, device=starts.device) - starts

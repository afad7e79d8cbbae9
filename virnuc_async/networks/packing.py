"""
Packed tokens: the sequences of a batch stand one behind the other, without padding or masks.

Every linear layer sees one matrix of (tokens, width). Only attention and pooling see where a
sequence begins, as runs: sequences of equal length stand together, so that each run is a dense
(sequences, length, width) view.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..tokens import Ragged


@dataclass(frozen=True, slots=True)
class Run:
    """*count* sequences of *length* tokens each, one behind the other."""

    count: int
    length: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch for one network: sorted by length, longest first."""

    ids: Tensor  # T, int32
    places: Tensor  # B, int64: where each row of the batch stands among the sorted sequences
    runs: tuple[Run, ...]

    def views(self, tokens: Tensor) -> Iterator[Tensor]:
        """See each run's part of *tokens* (T, ...) as (count, length, ...)."""
        # One split for all runs: a slice for each would cost its backward a full-size zero.
        parts = torch.split(tokens, [run.count * run.length for run in self.runs])
        for run, part in zip(self.runs, parts, strict=True):
            yield part.view(run.count, run.length, *part.shape[1:])

    def to(self, device: torch.device) -> "Packed":
        """Copy to *device*; the copy is ordered on its current stream."""
        return Packed(
            self.ids.to(device, non_blocking=True),
            self.places.to(device, non_blocking=True),
            self.runs,
        )

    def pinned(self) -> "Packed":
        """Copy to page-locked host memory, from where a device copies without waiting."""
        return Packed(self.ids.pin_memory(), self.places.pin_memory(), self.runs)

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
    runs = [Run(len(list(same)), length) for length, same in groupby(packed.lengths.tolist())]
    return Packed(torch.from_numpy(packed.ids), torch.from_numpy(places), tuple(runs))


def attend(q: Tensor, k: Tensor, v: Tensor, packed: Packed, bias: Tensor | None = None) -> Tensor:
    """
    Attend within each sequence: softmax(q k' / sqrt(D) + bias) v, for (T, H, D) each.

    *bias* is (H, longest, longest); a shorter sequence uses its upper left corner.
    """
    attended = []
    for queries, keys, values in zip(*map(packed.views, (q, k, v)), strict=True):
        length = queries.shape[1]
        corner = None if bias is None else bias[:, :length, :length]
        out = functional.scaled_dot_product_attention(
            queries.transpose(1, 2),  # B H L D
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=corner,
        )
        attended.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended)  # T H D


def means(hidden: Tensor, packed: Packed, first: int = 0, most: int | None = None) -> Tensor:
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
    return torch.cat(pooled)[packed.places]


def positions(packed: Packed) -> Tensor:
    """Give each token's position within its sequence, (T,) int64."""
    steps = torch.arange(packed.longest, device=packed.ids.device)
    return torch.cat([steps[: run.length].repeat(run.count) for run in packed.runs])

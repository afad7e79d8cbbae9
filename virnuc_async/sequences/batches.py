"""
Batches: ORFs packed under a token budget, longest first, with their embeddings where these exist already.

They are a function of the input, and of the embeddings to be reused: which device runs a batch, and
when, changes nothing in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .segments import window_name
from .tokens import Ragged

# Which embeddings of an ORF exist before it is scored: bits of a number.
BASES, RESIDUES = 1, 2


class SpotCheck(NamedTuple):
    """An ORF whose existing embeddings are computed all the same, to check that they are its own."""

    row: int  # in the batch
    id: str
    sources: tuple[str, ...]  # the files that they are from


@dataclass(frozen=True, slots=True)
class PrecomputedEmbeddings:
    """Embeddings of a batch that need not be computed; row i belongs to ORF i."""

    bases: NDArray[np.float32] | None = None  # (B, C)
    residues: NDArray[np.float32] | None = None  # (B, C)
    compared: tuple[SpotCheck, ...] = ()

    def take(self, rows: NDArray[np.int64]) -> "PrecomputedEmbeddings":
        """Return those of *rows*."""
        bases, residues = (None if part is None else part[rows] for part in (self.bases, self.residues))
        places = {row: place for place, row in enumerate(rows.tolist())}
        inside = (one for one in self.compared if one.row in places)
        return PrecomputedEmbeddings(
            bases, residues, tuple(one._replace(row=places[one.row]) for one in inside)
        )


class FeatureLookup(Protocol):
    """The existing embeddings of a window's ORFs, before any is scored."""

    @property
    def parts(self) -> NDArray[np.int64]:
        """Which embeddings of each ORF exist: BASES, RESIDUES, both added, or 0."""

    def known(self, rows: NDArray[np.int64]) -> PrecomputedEmbeddings:
        """Return the embeddings of *rows*, which have the same parts."""


@dataclass(frozen=True, slots=True)
class Batch:
    """
    Some ORFs of a window, longest first, to be scored in one visit of a device.

    *split_path* is empty for a batch as it was packed; a half has its parent's and 0 or 1.
    """

    window: int
    number: int  # within the window
    split_path: str
    orfs: NDArray[np.int64]  # (B,): their numbers in the run
    origins: NDArray[np.int64]  # (B, 3): contig's number, fragment's from 1, frame
    nucleotides: Ragged
    residues: Ragged
    known: PrecomputedEmbeddings = PrecomputedEmbeddings()

    def __len__(self) -> int:
        return len(self.orfs)

    @property
    def tokens(self) -> int:
        """The number of residue tokens, which is what a batch is measured in."""
        return len(self.residues.ids)

    @property
    def name(self) -> str:
        """The batch's name, which no other batch of the run has."""
        return f"{window_name(self.window)}.{self.number}" + (
            f".{self.split_path}" if self.split_path else ""
        )

    def halves(self) -> tuple["Batch", "Batch"]:
        """Return two halves; every ORF of the first is at least as long as those of the second."""
        first, second = np.split(np.arange(len(self)), [len(self) // 2])
        return (
            replace(self.take(first), split_path=self.split_path + "0"),
            replace(self.take(second), split_path=self.split_path + "1"),
        )

    def take(self, rows: NDArray[np.int64]) -> "Batch":
        """Return some *rows* of it, under its name."""
        return replace(
            self,
            orfs=self.orfs[rows],
            origins=self.origins[rows],
            nucleotides=self.nucleotides.take(rows),
            residues=self.residues.take(rows),
            known=self.known.take(rows),
        )


def pack_rows(
    lengths: NDArray[np.int64], budget: int, lookup: FeatureLookup | None = None
) -> Iterator[NDArray[np.int64]]:
    """
    Yield the rows of each batch, of at most *budget* tokens.

    The ORFs of a batch have the same parts in *lookup*, so that a device computes the same of each.
    """
    parts = lookup.parts if lookup else np.zeros(len(lengths), np.int64)
    for part in np.unique(parts):
        same_part = np.flatnonzero(parts == part)
        for rows in longest_first(lengths[same_part], budget):
            yield same_part[rows]


def longest_first(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """
    Yield rows, sorted by length, in groups whose lengths add up to at most *budget*.

    A row longer than that is a group of its own. Rows of equal length keep their order.
    """
    # Longest first, so that a batch too big for the device fails in the first second of a run
    # and not in its last.
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield order[start:end]
        start = end

"""Scores and records in columns, and the ids of ORFs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from virnuc_async.sequences.orfs import Frame

# Without padding, and little-endian on every machine.
SCORE = np.dtype("<i8, <i8, <i4, <i4, <f4, <f4")
SCORE.names = ("orf", "contig", "fragment", "frame", "others", "virus")
CONTIG = np.dtype("<i8, <i8, <i4, <i4")
CONTIG.names = ("number", "length", "file", "fragments")

FRAMES = tuple(frame.name.encode() for frame in Frame)


@dataclass(frozen=True, slots=True)
class Block:
    """Records of the input with all their scored ORFs, in columns and in input order."""

    contigs: NDArray[np.void]  # CONTIG
    ids: bytes  # of the contigs, a line each
    scores: NDArray[np.void]  # SCORE

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return consecutive blocks as one."""
        contigs, scores = ([getattr(part, name) for part in parts] for name in ("contigs", "scores"))
        return cls(np.concatenate(contigs), b"".join([part.ids for part in parts]), np.concatenate(scores))

    @property
    def rows(self) -> NDArray[np.int64]:
        """For each ORF, the row of its contig in this block."""
        numbers = self.contigs["number"]
        first = numbers[0] if self.ids else 0
        if not self.ids or numbers[-1] - first == len(numbers) - 1:
            rows: NDArray[np.int64] = self.scores["contig"] - first
            return rows
        return np.searchsorted(numbers, self.scores["contig"])  # some records are left out

    def names(self) -> list[str]:
        """Return the ids decoded as Latin-1: this is faster than bytes, and has the same sort order."""
        return self.ids.decode("latin-1").split("\n")[:-1]

    def orf_ids(self) -> Iterator[bytes]:
        """Yield the published id of each ORF."""
        columns = (self.scores[name].tolist() for name in ("fragment", "frame"))
        return map(orf_id, map(self.ids.split(b"\n").__getitem__, self.rows.tolist()), *columns)

    def split_last(self) -> tuple["Block", "Block"]:
        """Return all records but the last, and the last, which may continue in the next window."""
        start = self.ids.rfind(b"\n", 0, -1) + 1
        cut = np.searchsorted(self.scores["contig"], self.contigs["number"][-1])
        return (
            Block(self.contigs[:-1], self.ids[:start], self.scores[:cut]),
            Block(self.contigs[-1:], self.ids[start:], self.scores[cut:]),
        )

    def within(self, first: int, end: int) -> "Block":
        """Return the records numbered *first* to *end* - 1, with those of their ORFs that are here."""
        rows, orfs = (
            slice(*np.searchsorted(numbers, (first, end)))
            for numbers in (self.contigs["number"], self.scores["contig"])
        )
        starts = np.append(0, 1 + np.flatnonzero(np.frombuffer(self.ids, np.uint8) == ord("\n")))
        return Block(self.contigs[rows], self.ids[starts[rows.start] : starts[rows.stop]], self.scores[orfs])

    def at_least(self, length: int) -> "Block":
        """Return the records of at least *length* bases, with their ORFs."""
        return self.of(self.contigs["length"] >= length)

    def of(self, are_kept: NDArray[np.bool_]) -> "Block":
        """Return the records that *are_kept*, with their ORFs."""
        if are_kept.all():
            return self
        ids = self.ids.split(b"\n")[:-1]
        kept = b"".join(b"%s\n" % ids[row] for row in np.flatnonzero(are_kept).tolist())
        return Block(self.contigs[are_kept], kept, self.scores[are_kept[self.rows]])

    def is_complete(self) -> bool:
        """Whether each record and each ORF is here once, and each ORF is of a fragment of these records."""
        numbers, orfs, rows = self.contigs["number"], self.scores["orf"], self.rows
        return (
            self.ids.count(b"\n") == len(numbers)
            and bool((np.diff(numbers) == 1).all())
            and bool((np.diff(orfs) > 0).all())
            and bool(((rows >= 0) & (rows < len(numbers))).all())
            and bool((self.scores["fragment"] <= self.contigs["fragments"][rows]).all())
        )


def orf_id(contig: bytes, fragment: int, frame: int) -> bytes:
    """Return the published id of an ORF: contig, fragment, frame."""
    return b"%s_chunk_%d%s" % (contig, fragment, FRAMES[frame])

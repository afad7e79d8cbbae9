"""
Six-frame translation: the frames of a fragment without a stop codon are its ORFs.

VirNucPro's rule: a codon with any letter but A, C, G, T is dropped and does not end a frame, and
letters other than A, C, G, T are their own complement. Translation is columnar: every position
of a contig is translated once on each strand, and a frame is every third letter of that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The standard genetic code in the order T, C, A, G of each base (NCBI translation table 1).
_STANDARD_CODE = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
_STOP = ord("*")
_COMPLEMENT = bytes.maketrans(b"ACGTacgt", b"TGCAtgca")
_DROPPED = b"\0"  # stands where a codon has a letter outside ACGT


class Frame(IntEnum):
    """A strand and an offset on it, in the published order."""

    F1 = 0
    F2 = 1
    F3 = 2
    R1 = 3
    R2 = 4
    R3 = 5


class Orf(NamedTuple):
    """A stop-free frame: its residues, and the bases that they were read from."""

    frame: Frame
    protein: bytes
    bases: bytes  # one base more than the codons, where the strand has one


@dataclass(frozen=True, slots=True)
class Orfs:
    """ORFs in columns, in the order of their fragments and frames."""

    fragments: NDArray[np.int64]  # which of the fragments each is of
    frames: NDArray[np.int64]
    proteins: list[bytes]
    bases: list[bytes]

    def __len__(self) -> int:
        return len(self.proteins)

    def __iter__(self) -> Iterator[Orf]:
        columns = (map(Frame, self.frames.tolist()), self.proteins, self.bases)
        return map(Orf._make, zip(*columns, strict=True))


def open_frames(bases: bytes, fragments: Sequence[tuple[int, int]]) -> Orfs:
    """
    Give the ORFs of *fragments*, half-open ranges of *bases*: F1 to R3 of each.

    *bases* may be of any letters, in any case, and of several contigs one behind the other: a
    frame never leaves its fragment.
    """
    size = len(bases)
    forward = bases.upper()
    reverse = forward[::-1].translate(_COMPLEMENT)
    ranges = np.array(fragments, dtype=np.int64).reshape(-1, 2)
    strands = (_Strand(forward, ranges), _Strand(reverse, size - ranges[:, ::-1]))
    rows, frames = np.nonzero(np.concatenate([strand.are_open for strand in strands], axis=1))
    proteins, bases_of = [b""] * len(rows), [b""] * len(rows)
    for number, strand in enumerate(strands):
        for at, protein, read in strand.orfs(rows, frames - 3 * number):
            proteins[at], bases_of[at] = protein, read
    return _without_empty(Orfs(rows, frames, proteins, bases_of))


class _Strand:
    """One strand, translated at every position; *ranges* (fragments, 2) count along it."""

    def __init__(self, bases: bytes, ranges: NDArray[np.int64]) -> None:
        self._bases = bases
        self._residues = _translate_every_position(bases)
        self._begins = ranges[:, :1] + np.arange(3)  # fragments, offsets
        self._codons = np.maximum(ranges[:, 1:] - self._begins, 0) // 3
        self._ends = ranges[:, 1]
        stops = _stops_before(self._residues, len(bases))
        is_free = stops[self._begins + 3 * self._codons] == stops[self._begins]
        self.are_open = is_free & (self._codons > 0)

    def orfs(self, rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> Iterator[tuple[int, bytes, bytes]]:
        """Read those of the frames that are on this strand: place among *rows*, protein, bases."""
        (ours,) = np.nonzero((offsets >= 0) & (offsets < 3))
        rows, offsets = rows[ours], offsets[ours]
        begins, codons = self._begins[rows, offsets], self._codons[rows, offsets]
        stops = begins + 3 * codons
        for at, begin, stop, end in zip(
            *(column.tolist() for column in (ours, begins, stops, self._ends[rows])), strict=True
        ):
            # Dropped codons shorten the protein, and with it the bases that are embedded.
            protein = self._residues[begin:stop:3].replace(_DROPPED, b"")
            yield at, protein, self._bases[begin : min(begin + 3 * len(protein) + 1, end)]


def _without_empty(orfs: Orfs) -> Orfs:
    """Leave out the frames of which every codon was dropped."""
    if all(orfs.proteins):
        return orfs
    kept = [at for at, protein in enumerate(orfs.proteins) if protein]
    proteins, bases = ([column[at] for at in kept] for column in (orfs.proteins, orfs.bases))
    return Orfs(orfs.fragments[kept], orfs.frames[kept], proteins, bases)


def _stops_before(residues: bytes, bases: int) -> NDArray[np.int32]:
    """Count, for each position and the end, the stops before it in its frame: 3, 6, ... before."""
    # A row a codon, a column a frame; two rows more than codons, for frames that begin at the end.
    stops = np.zeros((bases // 3 + 2, 3), dtype=np.int32)
    stops.reshape(-1)[3 : 3 + len(residues)] = np.frombuffer(residues, dtype=np.uint8) == _STOP
    return np.cumsum(stops, axis=0, dtype=np.int32).reshape(-1)


def _base_numbers() -> bytes:
    """Map T, C, A, G to 0 to 3, and any other letter to 4."""
    numbers = bytearray([4] * 256)
    for number, base in enumerate(b"TCAG"):
        numbers[base] = number
    return bytes(numbers)


def _codon_table() -> bytes:
    """Map 25 a + 5 b + c to a residue, for the numbers of three bases."""
    table = np.zeros((5, 5, 5), dtype=np.uint8)
    table[:4, :4, :4] = np.frombuffer(_STANDARD_CODE, dtype=np.uint8).reshape(4, 4, 4)
    return table.tobytes().ljust(256, _DROPPED)


_NUMBERS = _base_numbers()
_CODONS = _codon_table()


def _translate_every_position(bases: bytes) -> bytes:
    """Translate the codon that begins at each position but the last two."""
    numbers = np.frombuffer(bases.translate(_NUMBERS), dtype=np.uint8)
    codons = 25 * numbers[:-2] + 5 * numbers[1:-1] + numbers[2:]
    return codons.tobytes().translate(_CODONS)

"""
Six-frame translation: the frames of a fragment without a stop codon are its ORFs.

VirNucPro's rule: a codon with any letter but A, C, G, T is dropped and does not end a frame, and
letters other than A, C, G, T are their own complement. Translation is columnar: every position
of a contig is translated once on each strand, and a frame is every third letter of that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

# The standard genetic code in the order T, C, A, G of each base (NCBI translation table 1).
_STANDARD_CODE = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
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


@dataclass(frozen=True, slots=True)
class Orf:
    """A stop-free frame: its residues, and the bases that they were read from."""

    frame: Frame
    protein: bytes
    bases: bytes  # one base more than the codons, where the strand has one


class Strands:
    """
    A contig, upper case, on both strands, translated at every position.

    *bases* may be of any letters; positions count on the forward strand from 0.
    """

    def __init__(self, bases: bytes) -> None:
        self._forward = bases.upper()
        self._reverse = self._forward[::-1].translate(_COMPLEMENT)
        self._forward_residues = _translate_every_position(self._forward)
        self._reverse_residues = _translate_every_position(self._reverse)

    def open_frames(self, start: int, end: int) -> Iterator[Orf]:
        """Give the ORFs of the fragment [*start*, *end*), F1 to R3."""
        size = len(self._forward)
        strands = (
            (self._forward, self._forward_residues, start, end),
            (self._reverse, self._reverse_residues, size - end, size - start),
        )
        for strand, (bases, residues, first, last) in enumerate(strands):
            for offset in range(3):
                frame = residues[first + offset : max(first, last - 2) : 3]
                if b"*" in frame:
                    continue
                # Dropped codons shorten the protein, and with it the bases that are embedded.
                protein = frame.replace(_DROPPED, b"")
                if protein:
                    begin = first + offset
                    stop = min(begin + 3 * len(protein) + 1, last)
                    yield Orf(Frame(3 * strand + offset), protein, bases[begin:stop])


def _codon_table() -> NDArray[np.uint8]:
    """Map 25 a + 5 b + c to a residue; base number 4 is "any other letter"."""
    table = np.zeros((5, 5, 5), dtype=np.uint8)
    table[:4, :4, :4] = np.frombuffer(_STANDARD_CODE, dtype=np.uint8).reshape(4, 4, 4)
    return table.reshape(-1)


def _base_numbers() -> NDArray[np.uint8]:
    numbers = np.full(256, 4, dtype=np.uint8)
    numbers[np.frombuffer(b"TCAG", dtype=np.uint8)] = range(4)
    return numbers


_CODONS = _codon_table()
_NUMBERS = _base_numbers()


def _translate_every_position(bases: bytes) -> bytes:
    """Translate the codon that begins at each position but the last two."""
    numbers = _NUMBERS[np.frombuffer(bases, dtype=np.uint8)]
    codons = 25 * numbers[:-2] + 5 * numbers[1:-1] + numbers[2:]
    return bytes(_CODONS[codons].data)

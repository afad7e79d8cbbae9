"""
Six-frame translation: the frames of a fragment without a stop codon are its ORFs.

VirNucPro's rule: a codon with any letter but A, C, G, T is dropped and does not end a frame, and
letters other than A, C, G, T are their own complement. Translation is columnar: the codon at
every position is translated once for each strand and put into one of three rows, by the remainder
of its position, so that a frame is a slice of a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The standard genetic code in the order T, C, A, G of each base (NCBI translation table 1).
_STANDARD_CODE = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
# A stop sorts before all else: the smallest letter of a frame shows whether it is open.
_STOP = b"*"
_DROPPED = b"-"  # stands where a codon has a letter outside ACGT
_OTHER = b"\4"  # the number of a letter outside ACGT
_COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")

_Column = NDArray[np.int64]


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


def open_frames(bases: bytes, fragments: Sequence[tuple[int, int]] | NDArray[np.int64]) -> Orfs:
    """
    Return the ORFs of *fragments*, half-open ranges of *bases*: F1 to R3 of each.

    *bases* may be of any letters, in any case, and of several contigs, one after the other: a
    frame never leaves its fragment.
    """
    ranges = np.asarray(fragments, dtype=np.int64).reshape(-1, 2)
    residues, strands = _residues(bases), _both_strands(bases)
    owners, frames, codon_starts, codons = _stop_free(ranges, residues)
    # Dropped codons shorten the protein, and with it the bases that are embedded.
    proteins = [
        part.replace(_DROPPED, b"") for part in _slices(residues, codon_starts, codon_starts + codons)
    ]
    sizes = 3 * np.fromiter(map(len, proteins), np.int64, len(proteins)) + 1
    on_strands = np.stack((ranges, 2 * len(bases) - ranges[:, ::-1]))
    starts, ends = on_strands[frames // 3, owners].T
    begins = starts + frames % 3
    read = _slices(strands, begins, np.minimum(begins + sizes, ends))
    return _without_empty(Orfs(owners, frames, proteins, read))


def _stop_free(ranges: _Column, residues: bytes) -> tuple[_Column, _Column, _Column, _Column]:
    """Return the frames with codons and without a stop: fragment, frame, start in *residues*, codons."""
    offsets, begins, codons = _six_frames(ranges, len(residues))
    rows, owners = np.nonzero(_have_no_stop(residues, begins, codons) & (codons > 0))
    frames = offsets[rows, owners] + rows // 3 * 3
    order = np.lexsort((frames, owners))
    rows, owners = rows[order], owners[order]
    return owners, frames[order], begins[rows, owners], codons[rows, owners]


def _six_frames(ranges: _Column, residues: int) -> tuple[_Column, _Column, _Column]:
    """Return all frames, each column (6 rows, fragments): offset, start among *residues*, codons."""
    starts, ends = ranges.T
    rows = np.arange(3)[:, None]
    forward, reverse = (rows - starts) % 3, (ends - rows) % 3
    offsets = np.concatenate((forward, reverse))
    skipped = rows * (residues // 6)
    begins = np.concatenate((skipped + (starts + forward) // 3, residues - skipped - (ends - reverse) // 3))
    # A frame without a codon may begin behind the end.
    return offsets, np.minimum(begins, residues), np.maximum(ends - starts - offsets, 0) // 3


def _have_no_stop(residues: bytes, begins: _Column, codons: _Column) -> NDArray[np.bool_]:
    letters = np.frombuffer(residues + _DROPPED, dtype=np.uint8)  # frames may begin at the end
    # Every other slice is what lies between two frames: a letter or two.
    bounds = np.stack((begins, begins + codons), axis=-1)
    least = np.minimum.reduceat(letters, bounds.reshape(-1))[::2]
    return least.reshape(begins.shape) > ord(_STOP)


def _slices(letters: bytes, begins: _Column, ends: _Column) -> list[bytes]:
    return [letters[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def _without_empty(orfs: Orfs) -> Orfs:
    """Return *orfs* without the frames of which every codon was dropped."""
    if all(orfs.proteins):
        return orfs
    kept = [at for at, protein in enumerate(orfs.proteins) if protein]
    proteins, bases = ([column[at] for at in kept] for column in (orfs.proteins, orfs.bases))
    return Orfs(orfs.fragments[kept], orfs.frames[kept], proteins, bases)


def _base_numbers() -> bytes:
    """Return the table of numbers: 0 to 3 for T, C, A, G in any case, 4 for any other letter."""
    numbers = bytearray([4] * 256)
    for number, letters in enumerate((b"Tt", b"Cc", b"Aa", b"Gg")):
        for letter in letters:
            numbers[letter] = number
    return bytes(numbers)


def _codon_tables() -> tuple[bytes, bytes]:
    """Return the residue that each strand reads at 25 a + 5 b + c, for the numbers of three bases."""
    forward = np.frombuffer(_STANDARD_CODE, dtype=np.uint8).reshape(4, 4, 4)
    # A and T, and C and G, are two numbers apart; the other strand reads c, b, a.
    reverse = np.roll(forward, 2, axis=(0, 1, 2)).T
    tables = np.full((2, 5, 5, 5), ord(_DROPPED), dtype=np.uint8)
    tables[:, :4, :4, :4] = forward, reverse
    return tables[0].tobytes().ljust(256, _DROPPED), tables[1].tobytes().ljust(256, _DROPPED)


_NUMBERS = _base_numbers()
_FORWARD_CODE, _REVERSE_CODE = _codon_tables()


def _both_strands(bases: bytes) -> bytes:
    letters = np.frombuffer(bases, dtype=np.uint8)
    # Looking is twenty times as fast as upper(), and most sequences are in upper case.
    forward = bases if letters.max(initial=0) < ord("a") else bases.upper()
    reverse = np.frombuffer(forward, dtype=np.uint8)[::-1].tobytes()
    return forward + reverse.translate(_COMPLEMENT)


def _residues(bases: bytes) -> bytes:
    """
    Return the residue of the codon at every position on both strands, in six rows of the same length.

    Position p of the forward strand is in row p % 3 at p // 3; the other strand's rows are the
    same codons, last row and last codon first.
    """
    codons = len(bases) // 3 + 2  # a row
    padded = bases.translate(_NUMBERS).ljust(3 * codons + 4, _OTHER)
    numbers = np.frombuffer(padded, dtype=np.uint8)
    letters = np.stack([numbers[offset : offset + 3 * codons : 3] for offset in range(5)])
    rows = 25 * letters[:3] + 5 * letters[1:4] + letters[2:]
    reverse = rows.reshape(-1)[::-1].tobytes()
    return rows.tobytes().translate(_FORWARD_CODE) + reverse.translate(_REVERSE_CODE)

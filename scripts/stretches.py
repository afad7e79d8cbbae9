"""Random stretches of genomes and what is learnt from them: ORFs with their class, group and genome."""

import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from genomes import Piece, reverse_complement
from numpy.typing import NDArray

from virnuc_async.sequences.orfs import Orf, open_frames
from virnuc_async.sequences.tokens import ESM2_ALPHABET, Ragged

_AT_ONCE = 256  # stretches drawn together
_POOL = 1000  # ORFs among which the next ones are drawn, so that those of one stretch part
_FIRST_LETTER = 4  # of both alphabets, behind the special tokens

# BLOSUM62 (Henikoff and Henikoff 1992, PNAS 89:10915) in half bits, its upper triangle, and the
# share of each residue in the proteins that it was made of.
_RESIDUES = "ARNDCQEGHILKMFPSTWYV"
_BLOSUM62 = """
4 -1 -2 -2 0 -1 -1 0 -2 -1 -1 -1 -1 -2 -1 1 0 -3 -2 0
5 0 -2 -3 1 0 -2 0 -3 -2 2 -1 -3 -2 -1 -1 -3 -2 -3
6 1 -3 0 0 0 1 -3 -3 0 -2 -3 -2 1 0 -4 -2 -3
6 -3 0 2 -1 -1 -3 -4 -1 -3 -3 -1 0 -1 -4 -3 -3
9 -3 -4 -3 -3 -1 -1 -3 -1 -2 -3 -1 -1 -2 -2 -1
5 2 -2 0 -3 -2 1 0 -3 -1 0 -1 -2 -1 -2
5 -2 0 -3 -3 1 -2 -3 -1 0 -1 -3 -2 -2
6 -2 -4 -4 -2 -3 -3 -2 0 -2 -2 -3 -3
8 -3 -3 -1 -2 -1 -2 -1 -2 -2 2 -3
4 2 -3 1 0 -3 -2 -1 -3 -1 3
4 -2 2 0 -3 -2 -1 -2 -1 1
5 -1 -3 -1 0 -1 -3 -2 -2
5 0 -2 -1 -1 -1 -1 1
6 -4 -2 -2 1 3 -1
7 -1 -1 -4 -3 -2
4 1 -3 -2 -2
5 -2 -2 0
11 2 -3
7 -1
4
"""
_SHARES = (
    *(0.078, 0.051, 0.041, 0.052, 0.024, 0.034, 0.059, 0.083, 0.025, 0.062),
    *(0.092, 0.056, 0.024, 0.043, 0.043, 0.059, 0.055, 0.014, 0.034, 0.072),
)

Key = TypeVar("Key", bound=tuple[object, ...])


@dataclass(frozen=True, slots=True)
class Example:
    """An ORF to learn from."""

    orf: Orf
    viral: bool
    group: int
    genome: int


class Sampler:
    """Draws ORFs of random stretches of *pieces*: as many viral stretches as not, all groups in balance."""

    def __init__(self, pieces: Sequence[Piece], random: np.random.Generator) -> None:
        self._random = random
        self._pieces = pieces
        self.groups = _numbers((piece.viral, piece.group) for piece in pieces)
        self.genomes = _numbers((piece.viral, piece.genome) for piece in pieces)
        self._long_enough: dict[int, tuple[list[Piece], NDArray[np.float64]]] = {}
        self._pools: dict[int, list[Example]] = defaultdict(list)

    def examples(self, count: int, length: int) -> list[Example]:
        """Give *count* ORFs of stretches of *length* bases, in random order."""
        pool = self._pools[length]
        while len(pool) < _POOL + count:
            pool += self._drawn(length)
        return [self._taken(pool) for _ in range(count)]

    def _drawn(self, length: int) -> Iterator[Example]:
        pieces, shares = self._of(length)
        for at in self._random.choice(len(pieces), _AT_ONCE, p=shares):
            piece = pieces[at]
            facts = (
                piece.viral,
                self.groups[piece.viral, piece.group],
                self.genomes[piece.viral, piece.genome],
            )
            for orf in open_frames(self._stretch(piece.bases, length), [(0, length)]):
                yield Example(orf, *facts)

    def _stretch(self, bases: bytes, length: int) -> bytes:
        start = int(self._random.integers(len(bases) - length + 1))
        stretch = bases[start : start + length]
        return reverse_complement(stretch) if self._random.random() < 0.5 else stretch

    def _taken(self, pool: list[Example]) -> Example:
        at = int(self._random.integers(len(pool)))
        pool[at], pool[-1] = pool[-1], pool[at]
        return pool.pop()

    def _of(self, length: int) -> tuple[list[Piece], NDArray[np.float64]]:
        if length not in self._long_enough:
            pieces = [piece for piece in self._pieces if len(piece.bases) >= length]
            self._long_enough[length] = pieces, _shares(pieces)
        return self._long_enough[length]


def _numbers(keys: Iterator[tuple[bool, str]]) -> dict[tuple[bool, str], int]:
    return {key: number for number, key in enumerate(sorted(set(keys)))}


def _shares(pieces: Sequence[Piece]) -> NDArray[np.float64]:
    """
    Give the chance of each piece to be drawn.

    Half for each class. Within a class the groups, and within a group the genomes, share by the
    square root of their bases: a few large ones do not decide, and the smallest are not learnt by
    heart. Within a genome, pieces share by their bases.
    """
    genomes: dict[tuple[bool, str, str], int] = defaultdict(int)
    for piece in pieces:
        genomes[_place(piece)] += len(piece.bases)
    of_genome = _by_root(genomes)
    groups: dict[tuple[bool, str], int] = defaultdict(int)
    for (viral, group, _), size in genomes.items():
        groups[viral, group] += size
    of_group = _by_root(groups)
    weights = [
        of_group[place[:2]] * of_genome[place] * len(piece.bases) / genomes[place]
        for piece, place in zip(pieces, map(_place, pieces), strict=True)
    ]
    return np.array(weights) / sum(weights)


def _place(piece: Piece) -> tuple[bool, str, str]:
    return piece.viral, piece.group, piece.genome


def _by_root(sizes: dict[Key, int]) -> dict[Key, float]:
    """Share 1 among the members of each parent, the parent being the key but its last part."""
    totals: dict[Hashable, float] = defaultdict(float)
    for key, size in sizes.items():
        totals[key[:-1]] += math.sqrt(size)
    return {key: math.sqrt(size) / totals[key[:-1]] for key, size in sizes.items()}


def hide(tokens: Ragged, share: float, mask: int, random: np.random.Generator) -> Ragged:
    """Put *mask* in the place of *share* of the letters of *tokens*."""
    hidden = (random.random(len(tokens.ids)) < share) & (tokens.ids >= _FIRST_LETTER)
    return Ragged(np.where(hidden, np.int32(mask), tokens.ids), tokens.lengths)


def diverge(residues: Ragged, most: float, random: np.random.Generator) -> Ragged:
    """
    Exchange residues as evolution does: in each sequence at a rate between 0 and *most*, drawn anew.

    What takes a residue's place follows BLOSUM62's odds.
    """
    rates = np.repeat(random.random(len(residues)) * most, residues.lengths)
    known = _NUMBERS[residues.ids]
    changed = np.flatnonzero((random.random(len(rates)) < rates) & (known >= 0))
    odds = _SUBSTITUTES[known[changed], :-1]  # cumulative: the last one is 1
    ids = residues.ids.copy()
    ids[changed] = _IDS[(odds < random.random((len(changed), 1))).sum(1)]
    return Ragged(ids, residues.lengths)


def _substitutes() -> NDArray[np.float64]:
    """Give the cumulative odds of what takes each residue's place, (20, 20)."""
    scores = np.zeros((len(_RESIDUES), len(_RESIDUES)))
    for row, line in enumerate(_BLOSUM62.split("\n")[1:-1]):
        scores[row, row:] = scores[row:, row] = [int(score) for score in line.split()]
    odds = np.array(_SHARES) * 2 ** (scores / 2)
    np.fill_diagonal(odds, 0)
    return np.cumsum(odds / odds.sum(1, keepdims=True), 1)


_SUBSTITUTES = _substitutes()
_IDS = np.array([ESM2_ALPHABET.index(residue) for residue in _RESIDUES], np.int32)
_NUMBERS = np.full(len(ESM2_ALPHABET), -1)
_NUMBERS[_IDS] = np.arange(len(_IDS))


def words(letters: str, length: int) -> list[str]:
    """Give all words of *length* *letters*, in order."""
    return list(map("".join, itertools.product(letters, repeat=length)))

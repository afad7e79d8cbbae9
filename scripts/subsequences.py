"""Random subsequences of genomes as training data: ORFs with their class, group and genome."""

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

_DRAWN = 256  # subsequences drawn at a time
_POOL = 1000  # ORFs that the next ones are drawn from, which separates the ORFs of one subsequence
_FIRST_LETTER = 4  # of both alphabets, after the special tokens

# The upper triangle of BLOSUM62 (Henikoff and Henikoff 1992, PNAS 89:10915) in half bits, and the
# frequency of each residue in the proteins that it was computed from.
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
_FREQUENCIES = (
    *(0.078, 0.051, 0.041, 0.052, 0.024, 0.034, 0.059, 0.083, 0.025, 0.062),
    *(0.092, 0.056, 0.024, 0.043, 0.043, 0.059, 0.055, 0.014, 0.034, 0.072),
)

Key = TypeVar("Key", bound=tuple[object, ...])


@dataclass(frozen=True, slots=True)
class Example:
    """An ORF for training."""

    orf: Orf
    viral: bool
    group: int
    genome: int


class Sampler:
    """Draws ORFs of random subsequences of *pieces*: half of them viral, and all groups balanced."""

    def __init__(self, pieces: Sequence[Piece], random: np.random.Generator) -> None:
        self._random = random
        self._pieces = pieces
        self.groups = _numbers((piece.viral, piece.group) for piece in pieces)
        self.genomes = _numbers((piece.viral, piece.genome) for piece in pieces)
        self._long_enough: dict[int, tuple[list[Piece], NDArray[np.float64]]] = {}
        self._pools: dict[int, list[Example]] = defaultdict(list)

    def examples(self, count: int, length: int) -> list[Example]:
        """Return *count* ORFs of subsequences of *length* bases, in random order."""
        pool = self._pools[length]
        while len(pool) < _POOL + count:
            pool += self._draw(length)
        return [self._take(pool) for _ in range(count)]

    def _draw(self, length: int) -> Iterator[Example]:
        pieces, shares = self._weighted_pieces(length)
        for at in self._random.choice(len(pieces), _DRAWN, p=shares):
            piece = pieces[at]
            labels = (
                piece.viral,
                self.groups[piece.viral, piece.group],
                self.genomes[piece.viral, piece.genome],
            )
            for orf in open_frames(self._subsequence(piece.bases, length), [(0, length)]):
                yield Example(orf, *labels)

    def _subsequence(self, bases: bytes, length: int) -> bytes:
        start = int(self._random.integers(len(bases) - length + 1))
        subsequence = bases[start : start + length]
        return reverse_complement(subsequence) if self._random.random() < 0.5 else subsequence

    def _take(self, pool: list[Example]) -> Example:
        at = int(self._random.integers(len(pool)))
        pool[at], pool[-1] = pool[-1], pool[at]
        return pool.pop()

    def _weighted_pieces(self, length: int) -> tuple[list[Piece], NDArray[np.float64]]:
        if length not in self._long_enough:
            pieces = [piece for piece in self._pieces if len(piece.bases) >= length]
            self._long_enough[length] = pieces, _draw_probabilities(pieces)
        return self._long_enough[length]


def _numbers(keys: Iterator[tuple[bool, str]]) -> dict[tuple[bool, str], int]:
    return {key: number for number, key in enumerate(sorted(set(keys)))}


def _draw_probabilities(pieces: Sequence[Piece]) -> NDArray[np.float64]:
    """
    Return the probability of each piece to be drawn.

    Each class has one half. Within a class the groups, and within a group the genomes, have shares
    in proportion to the square root of their bases: a few large ones do not dominate, and the
    smallest are not memorized. Within a genome, shares of pieces are in proportion to their bases.
    """
    genomes: dict[tuple[bool, str, str], int] = defaultdict(int)
    for piece in pieces:
        genomes[_genome_key(piece)] += len(piece.bases)
    of_genome = _root_shares(genomes)
    groups: dict[tuple[bool, str], int] = defaultdict(int)
    for (viral, group, _), size in genomes.items():
        groups[viral, group] += size
    of_group = _root_shares(groups)
    weights = [
        of_group[key[:2]] * of_genome[key] * len(piece.bases) / genomes[key]
        for piece, key in zip(pieces, map(_genome_key, pieces), strict=True)
    ]
    return np.array(weights) / sum(weights)


def _genome_key(piece: Piece) -> tuple[bool, str, str]:
    return piece.viral, piece.group, piece.genome


def _root_shares(sizes: dict[Key, int]) -> dict[Key, float]:
    """Return each key's share among the keys with the same first parts; the shares of these add up to 1."""
    totals: dict[Hashable, float] = defaultdict(float)
    for key, size in sizes.items():
        totals[key[:-1]] += math.sqrt(size)
    return {key: math.sqrt(size) / totals[key[:-1]] for key, size in sizes.items()}


def hide(tokens: Ragged, share: float, mask: int, random: np.random.Generator) -> Ragged:
    """Return *tokens* with *mask* in place of a *share* of their letters."""
    hidden = (random.random(len(tokens.ids)) < share) & (tokens.ids >= _FIRST_LETTER)
    return Ragged(np.where(hidden, np.int32(mask), tokens.ids), tokens.lengths)


def diverge(residues: Ragged, max_rate: float, random: np.random.Generator) -> Ragged:
    """
    Return *residues* with substitutions: for each sequence, at a random rate between 0 and *max_rate*.

    The odds of substitutions are those of BLOSUM62.
    """
    rates = np.repeat(random.random(len(residues)) * max_rate, residues.lengths)
    known = _NUMBERS[residues.ids]
    changed = np.flatnonzero((random.random(len(rates)) < rates) & (known >= 0))
    odds = _SUBSTITUTES[known[changed], :-1]  # cumulative: the last one is 1
    ids = residues.ids.copy()
    ids[changed] = _IDS[(odds < random.random((len(changed), 1))).sum(1)]
    return Ragged(ids, residues.lengths)


def _substitutes() -> NDArray[np.float64]:
    """Return the cumulative odds of each residue's substitutes, (20, 20)."""
    scores = np.zeros((len(_RESIDUES), len(_RESIDUES)))
    for row, line in enumerate(_BLOSUM62.split("\n")[1:-1]):
        scores[row, row:] = scores[row:, row] = [int(score) for score in line.split()]
    odds = np.array(_FREQUENCIES) * 2 ** (scores / 2)
    np.fill_diagonal(odds, 0)
    return np.cumsum(odds / odds.sum(1, keepdims=True), 1)


_SUBSTITUTES = _substitutes()
_IDS = np.array([ESM2_ALPHABET.index(residue) for residue in _RESIDUES], np.int32)
_NUMBERS = np.full(len(ESM2_ALPHABET), -1)
_NUMBERS[_IDS] = np.arange(len(_IDS))


def words(letters: str, length: int) -> list[str]:
    """Return all words of *length* *letters*, in order."""
    return list(map("".join, itertools.product(letters, repeat=length)))

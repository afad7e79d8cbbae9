"""Pairs: both mates as one block of records and scores, for the table of pairs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnuc_async.runs.blocks import CONTIG, SCORE, Block
from virnuc_async.runs.reader import RunReader
from virnuc_async.sequences.mates import Mates, pair_id


@dataclass(frozen=True, slots=True)
class PairBlock:
    """Consecutive pairs of two files, or of an interleaved one, with all their scored ORFs."""

    lengths: NDArray[np.int64]  # (pairs, 2): of the mates, in bases
    joint: Block  # as if each pair were a contig, with the fragments of both

    def at_least(self, length: int) -> "PairBlock":
        """Return the pairs whose longer mate has at least *length* bases."""
        are_kept = self.lengths.max(1) >= length
        return PairBlock(self.lengths[are_kept], self.joint.of(are_kept))


def pair_blocks(reader: RunReader, mates: Mates) -> Iterator[PairBlock]:
    """
    Yield the pairs of *mates*, whose ids agree, in order, about a window at a time.

    Pairs of which both mates are shorter than *reader*'s ``min_length`` are left out. The rest of one file
    when the other has ended is in no pair.
    """
    firsts, seconds = reader.all_blocks(mates.first), reader.all_blocks(mates.second)
    if mates.are_interleaved:
        firsts, seconds = _every_other(firsts, 0), _every_other(seconds, 1)
    for one, two in _aligned(firsts, seconds):
        pairs = _pair_block(one, two).at_least(reader.min_length)
        if pairs.joint.ids:
            yield pairs


def _every_other(blocks: Iterable[Block], first: int) -> Iterator[Block]:
    """Yield every second record, from the record *first* on, in blocks with numbers of their own."""
    before = 0
    for block in blocks:
        start, rows = (first + before) % 2, block.rows
        before += len(block.contigs)
        are_own = rows % 2 == start
        contigs, scores = block.contigs[start::2].copy(), block.scores[are_own]
        contigs["number"] = np.arange(len(contigs))
        scores["contig"] = rows[are_own] // 2
        if contigs.size:
            yield Block(contigs, _join_ids(block.ids.split(b"\n")[:-1][start::2]), scores)


def _aligned(firsts: Iterator[Block], seconds: Iterator[Block]) -> Iterator[tuple[Block, Block]]:
    """Yield blocks with equal numbers of records, until one of the two has no more."""
    none = Block(np.empty(0, CONTIG), b"", np.empty(0, SCORE))
    one = two = none
    while True:
        one, two = one if one.ids else next(firsts, none), two if two.ids else next(seconds, none)
        if not one.ids or not two.ids:
            return
        count = min(len(one.contigs), len(two.contigs))
        (begin, one), (other, two) = _split_at(one, count), _split_at(two, count)
        yield begin, other


def _split_at(block: Block, count: int) -> tuple[Block, Block]:
    first = int(block.contigs["number"][0])
    return block.within(first, first + count), block.within(first + count, first + len(block.contigs))


def _pair_block(one: Block, two: Block) -> PairBlock:
    rows = np.concatenate((one.rows, two.rows))
    scores: NDArray[np.void] = np.concatenate((one.scores, two.scores))
    scores["contig"] = rows
    # Fragments of the two mates must not have the same number.
    scores["fragment"][len(one.scores) :] *= -1
    mates = np.stack((one.contigs, two.contigs), 1)  # pairs, 2
    pairs = np.zeros(len(mates), CONTIG)
    pairs["number"] = np.arange(len(mates))
    pairs["fragments"] = mates["fragments"].sum(1)
    in_order = scores[np.argsort(rows, kind="stable")]
    return PairBlock(mates["length"], Block(pairs, _join_ids(_pair_ids(one, two)), in_order))


def _pair_ids(one: Block, two: Block) -> Iterator[bytes]:
    firsts, seconds = (block.ids.split(b"\n")[:-1] for block in (one, two))
    for first, second in zip(firsts, seconds, strict=True):
        id = pair_id(first, second)
        assert id is not None, "the ids were compared before"
        yield id


def _join_ids(ids: Iterable[bytes]) -> bytes:
    return b"".join(b"%s\n" % id for id in ids)

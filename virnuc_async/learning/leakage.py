"""
Exact search for k-mers that sequences share with others, on either strand, in bounded memory.

The k-mers of the queries are kept in memory while the targets are streamed past them. If there are too
many query k-mers, a hash divides them into partitions that fit, and the sequences are read again for
each partition.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Long enough that unrelated genomes share none by chance (4^31 is 5e18), short enough that overlapping
# reads share some; and the largest odd number of bases, of two bits each, that fits into 64 bits. With an
# odd number, no k-mer is its own reverse complement.
K = 31
MAX_KMERS = 1 << 25  # query k-mers in memory at a time: 256 MiB, and as much again while they are sorted
BLOCK_SIZE = 1 << 20  # bases, or k-mers, that are processed at a time

_PIECES = ((16, 0), (8, 16), (4, 24), (2, 28), (1, 30))  # lengths and offsets that add up to 31
_NOT_ACGT = 4
_HASH = np.uint64(0x9E3779B97F4A7C15)

Kmers = NDArray[np.uint64]
Read = Callable[[], Iterator[bytes]]  # yields the bases of every sequence, in the same order each time


def canonical_kmers(bases: bytes) -> Kmers:
    """Return every 31-mer of *bases* that is all ACGT, as the smaller number of its two strands."""
    codes = _CODES[np.frombuffer(bases, np.uint8)]
    if len(codes) < K:
        return np.empty(0, np.uint64)
    ambiguous = np.cumsum(np.append(0, codes == _NOT_ACGT))
    bits = (codes & 3).astype(np.uint64)
    forward = _pack(bits)
    reverse = _pack((3 - bits)[::-1])[::-1]
    found: Kmers = np.minimum(forward, reverse)[ambiguous[K:] == ambiguous[:-K]]
    return found


def shared_kmer_fraction(
    read: Read,
    queries: NDArray[np.bool_],
    targets: NDArray[np.bool_],
    max_kmers: int = MAX_KMERS,
    block_size: int = BLOCK_SIZE,
) -> NDArray[np.float64]:
    """
    Return, for each sequence, the fraction of its 31-mers that also occur in one of the *targets*.

    The fraction is 0 for sequences that are not *queries*, and for those without a 31-mer.
    """
    lengths = np.fromiter((len(bases) for bases in read()), np.int64, len(queries))
    partitions = max(1, -(-int(lengths[queries].sum()) // max_kmers))
    reader = _KmerReader(read, partitions, block_size)
    totals = np.zeros((2, len(queries)), np.int64)  # all k-mers of a sequence, and the shared ones
    for partition in range(partitions):
        known = _distinct(found for _, found in reader.blocks(queries, partition))
        is_shared = np.zeros(len(known), bool)
        for _, found in reader.blocks(targets, partition):
            is_shared[_positions(known, found)] = True
        for numbers, found in reader.blocks(queries, partition):
            of_shared = numbers[np.isin(found, known[is_shared])]
            totals += np.stack([np.bincount(of, minlength=len(queries)) for of in (numbers, of_shared)])
    fractions: NDArray[np.float64] = totals[1] / np.maximum(totals[0], 1)
    return fractions


@dataclass(frozen=True, slots=True)
class _KmerReader:
    """Reads the k-mers of sequences, one of *partitions* at a time."""

    read: Read
    partitions: int
    block_size: int

    def blocks(
        self, selected: NDArray[np.bool_], partition: int
    ) -> Iterator[tuple[NDArray[np.int64], Kmers]]:
        """Yield the k-mers of the *selected* sequences in blocks, and the number of each one's sequence."""
        numbers, kmers, size = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
        for number, found in self._pieces(selected):
            own = found if self.partitions == 1 else found[self._partition_of(found) == partition]
            numbers.append(np.full(len(own), number))
            kmers.append(own)
            size += len(own)
            if size >= self.block_size:
                yield np.concatenate(numbers), np.concatenate(kmers)
                numbers, kmers, size = numbers[:1], kmers[:1], 0
        yield np.concatenate(numbers), np.concatenate(kmers)

    def _pieces(self, selected: NDArray[np.bool_]) -> Iterator[tuple[int, Kmers]]:
        for number, (bases, is_selected) in enumerate(zip(self.read(), selected.tolist(), strict=True)):
            for start in range(0, len(bases) if is_selected else 0, self.block_size):
                yield number, canonical_kmers(bases[start : start + self.block_size + K - 1])

    def _partition_of(self, kmers: Kmers) -> NDArray[np.uint64]:
        # Canonical k-mers begin with A more often than with T: their first bits would divide them unevenly.
        return (kmers * _HASH >> np.uint64(32)) % np.uint64(self.partitions)


def _distinct(blocks: Iterable[Kmers]) -> Kmers:
    return _unique(np.concatenate([np.empty(0, np.uint64), *map(_unique, blocks)]))


def _unique(kmers: Kmers) -> Kmers:
    # np.unique may use a hash table, which took ten times as long as sorting.
    ordered = np.sort(kmers)
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(kmers)]
    found: Kmers = ordered[is_first]
    return found


def _positions(known: Kmers, kmers: Kmers) -> NDArray[np.int64]:
    """Return the positions in *known*, which is sorted, of those *kmers* that are in it."""
    # Sorted look-ups hit neighbouring memory: five times as fast as in the order of the sequence.
    ordered = _unique(kmers)
    positions: NDArray[np.int64] = np.searchsorted(known, ordered)
    inside = positions < len(known)
    positions, ordered = positions[inside], ordered[inside]
    found: NDArray[np.int64] = positions[known[positions] == ordered]
    return found


def _pack(codes: Kmers) -> Kmers:
    """Return, for each position, the K two-bit *codes* from there on as one number."""
    packed = {1: codes}  # by the number of codes in each
    for size in (2, 4, 8, 16):
        half = packed[size // 2]
        packed[size] = half[: len(half) - size // 2] << np.uint64(size) | half[size // 2 :]
    words = np.zeros(len(codes) - K + 1, np.uint64)
    for size, offset in _PIECES:
        words = words << np.uint64(2 * size) | packed[size][offset : offset + len(words)]
    return words


def _base_codes() -> NDArray[np.uint8]:
    codes = np.full(256, _NOT_ACGT, np.uint8)
    for code, letters in enumerate((b"Aa", b"Cc", b"Gg", b"Tt")):
        codes[list(letters)] = code
    return codes


_CODES = _base_codes()

"""
Which sequences share long k-mers with others: exactly, on either strand, in bounded memory.

The k-mers of the sequences that are asked about are held in memory, and the others stream past them.
Where there are too many of them, they are told apart by a hash into parts that fit, and the sequences
are read again for each part.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

# Long enough that unrelated genomes share none by chance (4^31 is 5e18), short enough that two reads
# of one place share some; and the longest whose two bits a base fit into a machine word with its strand.
K = 31
ROOM = 1 << 25  # k-mers held at a time: 256 MiB, and as much again while they are sorted

_BLOCK = 1 << 20  # bases and k-mers looked at a time
_PIECES = ((16, 0), (8, 16), (4, 24), (2, 28), (1, 30))  # lengths and places that make up 31
_OTHER = 4  # stands for a letter outside ACGT
_HASH = np.uint64(0x9E3779B97F4A7C15)

Kmers = NDArray[np.uint64]
Read = Callable[[], Iterator[bytes]]  # gives the bases of every sequence, in the same order each time


def kmers(bases: bytes) -> Kmers:
    """Give every 31-mer of *bases* without a letter outside ACGT, the lesser of its two strands."""
    numbers = _NUMBERS[np.frombuffer(bases, np.uint8)]
    if len(numbers) < K:
        return np.empty(0, np.uint64)
    outside = np.cumsum(np.append(0, numbers == _OTHER))
    bits = (numbers & 3).astype(np.uint64)
    forward = _words(bits)
    reverse = _words((3 - bits)[::-1])[::-1]
    least: Kmers = np.minimum(forward, reverse)[outside[K:] == outside[:-K]]
    return least


def shared_kmer_fraction(
    read: Read, held: NDArray[np.bool_], others: NDArray[np.bool_], room: int = ROOM
) -> NDArray[np.float64]:
    """
    Give, of each sequence that is *held*, the share of its 31-mers that one of the *others* has too.

    A sequence without a 31-mer shares none, and those that are not held are not asked about: 0.
    """
    counts = np.zeros((2, len(held)), np.int64)
    sizes = np.fromiter((len(bases) for bases in read()), np.int64, len(held))
    parts = max(1, -(-int(sizes[held].sum()) // room))
    for part in range(parts):
        own = _distinct(kmers for _, kmers in _of(read, held, parts, part))
        is_met = np.zeros(len(own), bool)
        for _, found in _of(read, others, parts, part):
            is_met[_places(own, found)] = True
        for owners, found in _of(read, held, parts, part):
            are_shared = np.isin(found, own[is_met])
            counts += np.stack([np.bincount(of, minlength=len(held)) for of in (owners, owners[are_shared])])
    shares: NDArray[np.float64] = counts[1] / np.maximum(counts[0], 1)
    return shares


def _distinct(found: Iterable[Kmers]) -> Kmers:
    return _sorted(np.concatenate([np.empty(0, np.uint64), *map(_sorted, found)]))


def _sorted(found: Kmers) -> Kmers:
    """Give each k-mer once."""
    # numpy's unique may hash, which took ten times as long as to sort.
    in_order = np.sort(found)
    is_first = np.append(True, in_order[1:] != in_order[:-1])[: len(found)]
    once: Kmers = in_order[is_first]
    return once


def _places(own: Kmers, found: Kmers) -> NDArray[np.int64]:
    """Give where among *own*, which is sorted, those of *found* are that are there."""
    # Looked up in order, they are found near each other: five times as fast as they come.
    known = _sorted(found)
    places: NDArray[np.int64] = np.searchsorted(own, known)
    inside = places < len(own)
    places, known = places[inside], known[inside]
    met: NDArray[np.int64] = places[own[places] == known]
    return met


def _of(
    read: Read, which: NDArray[np.bool_], parts: int, part: int
) -> Iterator[tuple[NDArray[np.int64], Kmers]]:
    """Give the k-mers of one part that the sequences *which* have, many at a time, with their numbers."""
    owners, gathered, size = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
    for number, found in _of_each(read, which):
        own = found if parts == 1 else found[_parts(found, parts) == part]
        owners.append(np.full(len(own), number))
        gathered.append(own)
        size += len(own)
        if size >= _BLOCK:
            yield np.concatenate(owners), np.concatenate(gathered)
            owners, gathered, size = owners[:1], gathered[:1], 0
    yield np.concatenate(owners), np.concatenate(gathered)


def _of_each(read: Read, which: NDArray[np.bool_]) -> Iterator[tuple[int, Kmers]]:
    """Give the k-mers of each sequence, some of a long one at a time."""
    for number, (bases, is_one) in enumerate(zip(read(), which.tolist(), strict=True)):
        for start in range(0, len(bases) if is_one else 0, _BLOCK):
            yield number, kmers(bases[start : start + _BLOCK + K - 1])


def _parts(found: Kmers, parts: int) -> NDArray[np.uint64]:
    # The lesser of two strands begins with A more often than with T: not to be cut by its first bits.
    return (found * _HASH >> np.uint64(32)) % np.uint64(parts)


def _words(numbers: Kmers) -> Kmers:
    """Put K numbers of two bits at every place into one word."""
    stretches = {1: numbers}
    for size in (2, 4, 8, 16):
        half = stretches[size // 2]
        stretches[size] = half[: len(half) - size // 2] << np.uint64(size) | half[size // 2 :]
    words = np.zeros(len(numbers) - K + 1, np.uint64)
    for size, place in _PIECES:
        words = words << np.uint64(2 * size) | stretches[size][place : place + len(words)]
    return words


def _base_numbers() -> NDArray[np.uint8]:
    numbers = np.full(256, _OTHER, np.uint8)
    for number, letters in enumerate((b"Aa", b"Cc", b"Gg", b"Tt")):
        numbers[list(letters)] = number
    return numbers


_NUMBERS = _base_numbers()

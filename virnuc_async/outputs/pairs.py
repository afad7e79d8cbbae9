"""
Which records are mates, and each pair of them as one.

Names of files only say where mates may be; whether records are mates, their ids say. Where the ids of
two files do not agree, to the last record, there are no pairs of these files: one that is wrong is
worse than none.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product, zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import InputError
from virnuc_async.runs.blocks import CONTIG, SCORE, Block
from virnuc_async.runs.reader import FileLine, RunReader
from virnuc_async.sequences.batches import Reader
from virnuc_async.sequences.inputs import split_extensions
from virnuc_async.settings import Pairing
from virnuc_async.text import plural

# The mark of a mate in a file's name: 1 or 2 as a word of its own, with no word behind it that has a
# digit, since numbers have many meanings; or else R1 or R2, whatever is behind it, the last one that
# there is. Trimmomatic writes 1P and 2P, Trim Galore x_R1_val_1 and x_R2_val_2.
_ALONE = "(?!.*(?i:unpaired))"  # as Trimmomatic calls what has lost its mate
_TRIMMED = "(_val_(?P=mate))?"
_NUMBER = re.compile(
    rf"{_ALONE}(?P<before>.+?[._])(?P<mate>[12])(?P<after>P|([._-][A-Za-z]+)*?){_TRIMMED}", re.DOTALL
)
_READ = re.compile(
    rf"{_ALONE}(?P<before>(.*[._-])?[Rr])(?P<mate>[12])(?P<after>([._-].*?)??){_TRIMMED}", re.DOTALL
)
_FASTQ = (".fq", ".fastq")

_ENDS = ((b"/1", b"/2"), (b".1", b".2"))  # of ids: as Illumina wrote them, and as SRA's tools do
_SHOWN = 80  # letters of an id

_GLANCE = 1000  # records: files that were trimmed or sorted apart differ in so many

Ids = Callable[[int], Iterator[bytes]]  # of the records of a file, by its number


class Mates(NamedTuple):
    """Two files of the run, by their numbers, whose records may be mates; twice the same if interleaved."""

    first: int
    second: int

    @property
    def are_interleaved(self) -> bool:
        """Whether the records of one file are mates of each other."""
        return self.first == self.second


@dataclass(frozen=True, slots=True)
class PairComparison:
    """How far the ids of mates agree; the two behind that do not, of which one may be missing."""

    pairs: int
    first: bytes | None = None
    second: bytes | None = None

    @property
    def differ(self) -> bool:
        """Whether there is anything behind the pairs."""
        return self.first is not None or self.second is not None


@dataclass(frozen=True, slots=True)
class PairBlock:
    """Consecutive pairs of two files, or of an interleaved one, with all their scored ORFs."""

    lengths: NDArray[np.int64]  # (pairs, 2): of the mates, in bases
    joint: Block  # as if each pair were a contig, with the fragments of both


def find_mates(paths: Sequence[str], pairing: Pairing) -> list[Mates]:
    """Give the files whose records may be mates, in the order of the first ones."""
    if pairing == Pairing.OFF:
        return []
    if pairing == Pairing.INTERLEAVED:
        return [Mates(number, number) for number in range(len(paths))]
    found: list[Mates] = []
    left = dict(enumerate(paths))
    # Those whose suffixes are the same come first: both forms of a file may be there, packed and not.
    for is_exact, mark in product((True, False), (_NUMBER, _READ)):
        alike: dict[tuple[str, ...], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for number, path in left.items():
            if marked := _marked(path, mark):
                mate, suffixes, *others = marked
                alike[(*others, suffixes if is_exact else "")][mate == "2"].append(number)
        for ones, twos in alike.values():
            if len(ones) == len(twos) == 1:
                found.append(Mates(ones[0], twos[0]))
                del left[ones[0]], left[twos[0]]
    return sorted(found)


def _marked(path: str, mark: re.Pattern[str]) -> tuple[str, ...] | None:
    """Give which mate *path* is named as, its suffixes, and what two mates have in common."""
    directory, name = os.path.split(os.path.abspath(path))
    stem, suffixes = split_extensions(name)
    # Contigs are numbered as well, and assemblers call the first one of each sample alike.
    if mark is _NUMBER and not suffixes.lower().startswith(_FASTQ):
        return None
    found = mark.fullmatch(stem)
    return found and (found["mate"], suffixes, directory, found["before"], found["after"])


def pair_id(first: bytes, second: bytes) -> bytes | None:
    """Give the id of the pair that records with these ids are; None if they are no mates."""
    if first == second:
        return first or None  # no id says nothing
    if first[:-2] == second[:-2] and (first[-2:], second[-2:]) in _ENDS:
        return first[:-2] or None
    return None


def compare(mates: Mates, ids: Ids, most: int | None = None) -> PairComparison:
    """See how far the ids of *mates* agree, or of as many as *most* pairs of them."""
    firsts, seconds = ids(mates.first), ids(mates.second)
    if mates.are_interleaved:
        firsts, seconds = islice(firsts, 0, None, 2), islice(seconds, 1, None, 2)
    count = 0
    for first, second in islice(zip_longest(firsts, seconds), most):
        if first is None or second is None or pair_id(first, second) is None:
            return PairComparison(count, first, second)
        count += 1
    return PairComparison(count)


def check_first_records(mates: Mates, paths: Sequence[str], read: Reader) -> PairComparison:
    """Compare the first records as the files have them; what cannot be read yet agrees."""
    if not all(os.path.isfile(paths[file]) for file in mates):
        return PairComparison(0)  # nobody can look into a pipe and not take from it
    try:
        return compare(mates, lambda file: (contig.id for contig in read(paths[file])), _GLANCE)
    except InputError:
        return PairComparison(0)


def is_truncated(mates: Mates, compared: PairComparison, files: Sequence[FileLine]) -> bool:
    """Whether all that is wrong is that a file breaks half way: its mate goes on alone."""
    ends_first = mates.second if compared.second is None else mates.first
    return compared.differ and None in (compared.first, compared.second) and files[ends_first].failed


def describe_mismatch(mates: Mates, compared: PairComparison, paths: Sequence[str]) -> str:
    """Say where the ids of *mates* do not agree."""
    number, ids = compared.pairs + 1, (compared.first, compared.second)
    if mates.are_interleaved:
        if compared.second is None:
            return f"not interleaved: record {2 * number - 1:,}, {_shown(compared.first)}, has no mate"
        one, two = map(_shown, ids)
        return f"not interleaved: records {2 * number - 1:,} and {2 * number:,} are {one} and {two}"
    first, second = paths[mates.first], paths[mates.second]
    if None in ids:
        longer, shorter = (first, second) if compared.second is None else (second, first)
        count = plural(compared.pairs, "record")
        what = f"record {number:,} of {longer} has no mate: {shorter} has {count}"
    else:
        one, two = map(_shown, ids)
        what = f"record {number:,} is {one} in one and {two} in the other"
    return f"{first} and {second} are named as mates, but {what}"


def _shown(id: bytes | None) -> str:
    return repr((id or b"")[:_SHOWN].decode("latin-1"))


def pair_blocks(reader: RunReader, mates: Mates) -> Iterator[PairBlock]:
    """
    Give every pair of *mates*, whose ids agree, in order, about a window at a time.

    What is left of one file when the other has ended is in no pair.
    """
    firsts, seconds = reader.blocks(mates.first), reader.blocks(mates.second)
    if mates.are_interleaved:
        firsts, seconds = _every_other(firsts, 0), _every_other(seconds, 1)
    return (_joined(one, two) for one, two in _side_by_side(firsts, seconds))


def _every_other(blocks: Iterable[Block], first: int) -> Iterator[Block]:
    """Give every second record, from the record *first* on, in blocks that are numbered anew."""
    before = 0
    for block in blocks:
        start, rows = (first + before) % 2, block.rows
        before += len(block.contigs)
        are_own = rows % 2 == start
        contigs, scores = block.contigs[start::2].copy(), block.scores[are_own]
        contigs["number"] = np.arange(len(contigs))
        scores["contig"] = rows[are_own] // 2
        if contigs.size:
            yield Block(contigs, _lines(block.ids.split(b"\n")[:-1][start::2]), scores)


def _side_by_side(firsts: Iterator[Block], seconds: Iterator[Block]) -> Iterator[tuple[Block, Block]]:
    """Give blocks of as many records each, until one of the two has no more."""
    none = Block(np.empty(0, CONTIG), b"", np.empty(0, SCORE))
    one = two = none
    while True:
        one, two = one if one.ids else next(firsts, none), two if two.ids else next(seconds, none)
        if not one.ids or not two.ids:
            return
        count = min(len(one.contigs), len(two.contigs))
        (begin, one), (other, two) = _split(one, count), _split(two, count)
        yield begin, other


def _split(block: Block, count: int) -> tuple[Block, Block]:
    first = int(block.contigs["number"][0])
    return block.within(first, first + count), block.within(first + count, first + len(block.contigs))


def _joined(one: Block, two: Block) -> PairBlock:
    rows = np.concatenate((one.rows, two.rows))
    scores: NDArray[np.void] = np.concatenate((one.scores, two.scores))
    scores["contig"] = rows
    # No fragment of one mate is to be taken for one of the other.
    scores["fragment"][len(one.scores) :] *= -1
    mates = np.stack((one.contigs, two.contigs), 1)  # pairs, 2
    pairs = np.zeros(len(mates), CONTIG)
    pairs["number"] = np.arange(len(mates))
    pairs["fragments"] = mates["fragments"].sum(1)
    in_order = scores[np.argsort(rows, kind="stable")]
    return PairBlock(mates["length"], Block(pairs, _lines(_pair_ids(one, two)), in_order))


def _pair_ids(one: Block, two: Block) -> Iterator[bytes]:
    firsts, seconds = (block.ids.split(b"\n")[:-1] for block in (one, two))
    for first, second in zip(firsts, seconds, strict=True):
        id = pair_id(first, second)
        assert id is not None, "these have been compared"
        yield id


def _lines(ids: Iterable[bytes]) -> bytes:
    return b"".join(b"%s\n" % id for id in ids)

"""
Mates: which files and records are, by the names of files and the ids of records.

Names of files only show where mates may be; the ids of the records decide. Where the ids of two files
do not agree, to the last record, there are no pairs of these files: a wrong pair is worse than none.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product, zip_longest
from typing import NamedTuple, Protocol

from virnuc_async.errors import InputError
from virnuc_async.settings import Pairing
from virnuc_async.text import plural

from .files import absolute, is_regular
from .inputs import Reader, split_extensions

# The mark of a mate in a file's name: 1 or 2 as a word of its own, with no word after it that has a
# digit, since numbers have many meanings; or else the last R1 or R2, whatever comes after it.
# Trimmomatic writes 1P and 2P, Trim Galore x_R1_val_1 and x_R2_val_2.
_NOT_UNPAIRED = "(?!.*(?i:unpaired))"  # Trimmomatic's word for reads without a mate
_TRIMMED = "(_val_(?P=mate))?"
_NUMBER = re.compile(
    rf"{_NOT_UNPAIRED}(?P<before>.+?[._])(?P<mate>[12])(?P<after>P|([._-][A-Za-z]+)*?){_TRIMMED}", re.DOTALL
)
_READ = re.compile(
    rf"{_NOT_UNPAIRED}(?P<before>(.*[._-])?[Rr])(?P<mate>[12])(?P<after>([._-].*?)??){_TRIMMED}", re.DOTALL
)
_FASTQ = (".fq", ".fastq")

_ENDS = ((b"/1", b"/2"), (b".1", b".2"))  # of ids: as Illumina wrote them, and as SRA's tools do
# A run of an archive, in which spots are numbered: SRR9.1 and SRR9.2 are two of them, SRR9.1.1 and SRR9.1.2
# are mates.
_ACCESSION = re.compile(rb"[SED]RR\d+", re.IGNORECASE)
_QUOTED_LETTERS = 80  # of an id

SAMPLE_RECORDS = 1000  # enough: files that were trimmed or sorted separately differ within so many


class ReadFile(Protocol):
    """A file of the run, after it was read."""

    @property
    def failed(self) -> bool:
        """Whether it could not be read, or not to its end."""


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
    """How far the ids of mates agree, and the first two ids that do not, of which one may be missing."""

    pairs: int
    first: bytes | None = None
    second: bytes | None = None

    @property
    def differ(self) -> bool:
        """Whether any record is not in a pair."""
        return self.first is not None or self.second is not None


def find_mates(paths: Sequence[str], pairing: Pairing) -> list[Mates]:
    """Return the files whose records may be mates, in the order of the first ones."""
    if pairing == Pairing.OFF:
        return []
    if pairing == Pairing.INTERLEAVED:
        return [Mates(number, number) for number in range(len(paths))]
    found: list[Mates] = []
    left = dict(enumerate(paths))
    # Equal suffixes come first: a file may be there in both forms, compressed and not.
    for is_exact, mark in product((True, False), (_NUMBER, _READ)):
        candidates: dict[tuple[str, ...], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for number, path in left.items():
            if found_mark := _find_mark(path, mark):
                mate, suffixes, *others = found_mark
                candidates[(*others, suffixes if is_exact else "")][mate == "2"].append(number)
        for ones, twos in candidates.values():
            if len(ones) == len(twos) == 1:
                found.append(Mates(ones[0], twos[0]))
                del left[ones[0]], left[twos[0]]
    return sorted(found)


def _find_mark(path: str, mark: re.Pattern[str]) -> tuple[str, ...] | None:
    """Return which mate *path* is named as, its suffixes, and what two mates have in common."""
    directory, name = os.path.split(absolute(path))
    stem, suffixes = split_extensions(name)
    # Contigs are numbered as well, and assemblers give the first one of each sample the same name.
    if mark is _NUMBER and not suffixes.lower().startswith(_FASTQ):
        return None
    found = mark.fullmatch(stem)
    return found and (found["mate"], suffixes, directory, found["before"], found["after"])


def pair_id(first: bytes, second: bytes) -> bytes | None:
    """Return the id of the pair that two records with these ids form; None if they are not mates."""
    if first == second:
        return first or None  # two records without an id need not be mates
    stem, ends = first[:-2], (first[-2:], second[-2:])
    if stem != second[:-2] or ends not in _ENDS or (ends == _ENDS[1] and _ACCESSION.fullmatch(stem)):
        return None
    return stem or None


def compare(mates: Mates, ids: Ids, limit: int | None = None) -> PairComparison:
    """Return how far the ids of *mates* agree, within the first *limit* pairs if it is given."""
    firsts, seconds = ids(mates.first), ids(mates.second)
    if mates.are_interleaved:
        firsts, seconds = islice(firsts, 0, None, 2), islice(seconds, 1, None, 2)
    count = 0
    for first, second in islice(zip_longest(firsts, seconds), limit):
        if first is None or second is None or pair_id(first, second) is None:
            return PairComparison(count, first, second)
        count += 1
    return PairComparison(count)


def check_first_records(
    mates: Mates, paths: Sequence[str], read: Reader, limit: int = SAMPLE_RECORDS
) -> PairComparison:
    """Return how far the first *limit* pairs of two files agree; what cannot be read yet agrees."""
    if not all(is_regular(paths[file]) for file in mates):
        return PairComparison(0)  # reading a pipe would take its records from the run
    try:
        return compare(mates, lambda file: (contig.id for contig in read(paths[file])), limit)
    except InputError:
        return PairComparison(0)


def is_truncated(mates: Mates, compared: PairComparison, files: Sequence[ReadFile]) -> bool:
    """Whether the ids differ only because one file breaks half way and its mate continues."""
    ends_first = mates.second if compared.second is None else mates.first
    return compared.differ and None in (compared.first, compared.second) and files[ends_first].failed


def describe_mismatch(mates: Mates, compared: PairComparison, paths: Sequence[str]) -> str:
    """Describe where the ids of *mates* do not agree."""
    number, ids = compared.pairs + 1, (compared.first, compared.second)
    if mates.are_interleaved:
        if compared.second is None:
            return f"not interleaved: record {2 * number - 1:,}, {_quote(compared.first)}, has no mate"
        one, two = map(_quote, ids)
        return f"not interleaved: records {2 * number - 1:,} and {2 * number:,} are {one} and {two}"
    first, second = paths[mates.first], paths[mates.second]
    if None in ids:
        longer, shorter = (first, second) if compared.second is None else (second, first)
        count = plural(compared.pairs, "record")
        what = f"record {number:,} of {longer} has no mate: {shorter} has {count}"
    else:
        one, two = map(_quote, ids)
        what = f"record {number:,} is {one} in one and {two} in the other"
    return f"{first} and {second} are named as mates, but {what}"


def _quote(id: bytes | None) -> str:
    return repr((id or b"")[:_QUOTED_LETTERS].decode("latin-1"))

"""
LabelledFiles sequences: which records are viral, and which belong together.

Records that are alike must stand on one side of a split: a table says which, or ``genome=`` in their
headers. A split never divides what belongs together, unless it is asked for the published protocol.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import BadTable, MissingClassError, NoRecords, TooFewClusters, UsageError
from virnuc_async.fileio import read_bounded
from virnuc_async.sequences.fastx import Contig, first_word
from virnuc_async.sequences.inputs import STDIN, list_sequence_files, read_contigs

KINDS = ("nonviral", "viral")  # by whether it is
TRAINING, VALIDATION, TEST, LEFT_OUT = range(4)
SIDES = ("training", "validation", "test", "left out")

_LARGEST_TABLE = 1 << 30  # bytes
_GENOME = re.compile(rb"(?:^|\s)genome=(\S+)")
_GROUP = re.compile(rb"(?:^|\s)group=(\S+)")
_COMPLEMENT = bytes.maketrans(b"ACGTacgt", b"TGCAtgca")

Sides = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """Files of labelled sequences, directories expanded, and the tables that describe them."""

    viral: tuple[str, ...]
    nonviral: tuple[str, ...]
    clusters: Path | None = None
    groups: Path | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All files, the viral ones first."""
        return self.viral + self.nonviral

    def contigs(self) -> Iterator[Contig]:
        """Give all records in order; raises InputError: half of a file is no basis."""
        for path in self.paths:
            yield from read_contigs(path)


@dataclass(frozen=True, slots=True)
class Records:
    """Labelled records, in the order of their files, in columns."""

    are_viral: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    clusters: NDArray[np.int64]  # numbers of names
    cluster_names: tuple[str, ...]
    groups: NDArray[np.int64]
    group_names: tuple[tuple[bool, str], ...]  # whether it is viral, and how it is called

    def __len__(self) -> int:
        return len(self.lengths)

    def told(self) -> list[dict[str, Any]]:
        """Give how much there is of each group."""
        return [self._group(number) for number in range(len(self.group_names))]

    def _group(self, number: int) -> dict[str, Any]:
        is_viral, name = self.group_names[number]
        own = self.groups == number
        return {
            "group": name,
            "class": KINDS[is_viral],
            "records": int(own.sum()),
            "bases": int(self.lengths[own].sum()),
            "clusters": len(np.unique(self.clusters[own])),
        }


def label_files(
    viral: Sequence[str | Path], nonviral: Sequence[str | Path], clusters: Path | None, groups: Path | None
) -> LabelledFiles:
    """
    Name the files of labelled sequences.

    Raises:
        UsageError: a file is of both classes, or can be read only once
    """
    of_class = [tuple(list_sequence_files(paths)) for paths in (viral, nonviral)]
    if STDIN in (*of_class[0], *of_class[1]):
        raise UsageError("labelled sequences are read more than once: name files, not standard input")
    places = [{Path(path).resolve() for path in paths} for paths in of_class]
    if both := places[0] & places[1]:
        raise UsageError(f"{min(both)} cannot be viral and nonviral")
    return LabelledFiles(of_class[0], of_class[1], clusters, groups)


def read_records(data: LabelledFiles) -> Records:
    """
    Read what there is to know of each record before it is scored.

    Raises:
        InputError: a file cannot be read, wholly
        BadTable: a table is malformed, or does not name a record
        NoRecords, MissingClassError: there are none, or none of one class
    """
    clusters, groups = (
        _Names(path, kind) for path, kind in ((data.clusters, _GENOME), (data.groups, _GROUP))
    )
    numbers: tuple[dict[Any, int], dict[Any, int]] = ({}, {})
    rows: list[tuple[int, ...]] = []
    for is_viral, header, length in _headers(data):
        cluster = clusters.of(header) or ("record", _text(first_word(header)), len(rows))
        group = groups.of(header) or KINDS[is_viral]
        keys = (cluster, (is_viral, group))
        of_names = (own.setdefault(key, len(own)) for own, key in zip(numbers, keys, strict=True))
        rows.append((is_viral, length, *of_names))
    if not rows:
        raise NoRecords(data.paths)
    are_viral, lengths, of_clusters, of_groups = np.array(rows, np.int64).T
    check_classes(are_viral.astype(bool), "the labelled sequences")
    names = tuple(key if isinstance(key, str) else key[1] for key in numbers[0])
    return Records(are_viral.astype(bool), lengths, of_clusters, names, of_groups, tuple(numbers[1]))


def _headers(data: LabelledFiles) -> Iterator[tuple[bool, bytes, int]]:
    for is_viral, paths in ((True, data.viral), (False, data.nonviral)):
        for path in paths:
            for contig in read_contigs(path, name=bytes.strip):
                yield is_viral, contig.id, len(contig.bases)


class _Names:
    """What records are called, by a table or by a pattern of headers."""

    def __init__(self, path: Path | None, pattern: re.Pattern[bytes]) -> None:
        self._path, self._pattern = path, pattern
        self._table = None if path is None else _read_table(path)

    def of(self, header: bytes) -> str | None:
        genome = _GENOME.search(header)
        if self._table is None or self._path is None:
            found = self._pattern.search(header)
            return _text(found[1]) if found else None
        keys = [_text(first_word(header)), *([_text(genome[1])] if genome else ())]
        for key in keys:
            if key in self._table:
                return self._table[key]
        raise BadTable(str(self._path), f"has no line for {' or '.join(keys)}")


def _read_table(path: Path) -> Mapping[str, str]:
    """Read lines of a record or genome, a tab, and what it belongs to."""
    table: dict[str, str] = {}
    try:
        lines = read_bounded(path, _LARGEST_TABLE).splitlines()
    except (OSError, ValueError) as error:
        raise BadTable(str(path), getattr(error, "strerror", None) or str(error)) from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        key, *values = (_text(word.strip()) for word in line.split(b"\t"))
        if len(values) != 1 or not key or not values[0]:
            raise BadTable(str(path), f"line {number:,} is not a name, a tab and another name")
        if table.setdefault(key, values[0]) != values[0]:
            raise BadTable(str(path), f"line {number:,}: {key} is in {table[key]} already")
    return table


def _text(word: bytes) -> str:
    """Read a name; what a terminal would obey, or could not show, is spelt out."""
    text = word.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def check_classes(are_viral: NDArray[np.bool_], where: str) -> None:
    """
    See that there are both classes in *where*.

    Raises:
        MissingClassError: there are not
    """
    for kind, is_there in zip(KINDS, (not are_viral.all(), are_viral.any()), strict=True):
        if not is_there:
            raise MissingClassError(kind, where)


def check_sides(are_viral: NDArray[np.bool_], sides: Sides, what: str) -> None:
    """
    See that there are *what* of both classes on every side.

    Raises:
        MissingClassError: there are not
    """
    for side in (TRAINING, VALIDATION, TEST):
        check_classes(are_viral[sides == side], f"the {what} for {SIDES[side]}")


def split_records(records: Records, validation: float, test: float, seed: int) -> Sides:
    """
    Put each cluster on a side, so that the sides have their shares of the bases of each class.

    Raises:
        TooFewClusters: there are fewer clusters of a class than sides
    """
    shares = np.array([1 - validation - test, validation, test])
    count = len(records.cluster_names)
    bases = np.bincount(records.clusters, records.lengths, count).astype(np.float64)
    viral = np.bincount(records.clusters, records.are_viral, count) > 0
    random = np.random.default_rng(seed)
    sides = np.zeros(count, np.uint8)
    for kind in (True, False):
        own = np.flatnonzero(viral == kind)
        if len(own) < len(shares):
            raise TooFewClusters(KINDS[kind], len(own), len(shares))
        own = own[random.permutation(len(own))]
        # Large ones first, while there is a side with room for them.
        is_small = bases[own] < shares.min() * bases[own].sum() / 2
        own = own[np.argsort(is_small, kind="stable")]
        sides[own] = _dealt(bases[own], shares)
    return sides[records.clusters]


def _dealt(sizes: NDArray[np.float64], shares: NDArray[np.float64]) -> list[int]:
    """Deal *sizes* one by one to the side that lacks most; none stays empty."""
    lacks = shares * sizes.sum()
    sides: list[int] = []
    for left, size in zip(range(len(sizes), 0, -1), sizes.tolist(), strict=True):
        empty = [side for side in range(len(shares)) if side not in sides] if left <= len(shares) else []
        among = empty if len(empty) == left else range(len(shares))
        side = max(among, key=lacks.__getitem__)
        lacks[side] -= size
        sides.append(side)
    return sides


def split_fragments(fragments: int, validation: float, test: float, seed: int) -> Sides:
    """Put each fragment on a side at random, as was published: its neighbours may stand on others."""
    order = np.random.default_rng(seed).permutation(fragments)
    ends = np.cumsum(np.round(np.array((test, validation)) * fragments).astype(np.int64))
    tested, validated, _ = np.split(order, ends)
    sides = np.full(fragments, TRAINING, np.uint8)
    sides[tested], sides[validated] = TEST, VALIDATION
    return sides


@dataclass(frozen=True, slots=True)
class SubsequenceSampler:
    """Stretches of *length* bases, at random places of records, on either strand."""

    length: int
    seed: int
    count: int | None = None  # of each record that is long enough; None: as many as it has fragments

    def owners(self, records: Records) -> NDArray[np.int64]:
        """Give the record of each stretch."""
        counts = np.maximum(1, -(-records.lengths // self.length))
        if self.count is not None:
            counts = np.where(records.lengths >= self.length, self.count, 0)
        return np.repeat(np.arange(len(records)), counts)

    def stretches(self, data: LabelledFiles, records: Records) -> Iterator[bytes]:
        """Give the stretches as lines of FASTA; their ids say where they are from."""
        counts = np.bincount(self.owners(records), minlength=len(records)).tolist()
        random = np.random.default_rng([self.seed, self.length])
        for contig, count in zip(data.contigs(), counts, strict=True):
            yield from map(partial(self._stretch, contig), random.random((count, 2)))

    def _stretch(self, contig: Contig, drawn: NDArray[np.float64]) -> bytes:
        start = int(drawn[0] * (max(0, len(contig.bases) - self.length) + 1))
        bases = contig.bases[start : start + self.length]
        is_forward = drawn[1] < 0.5
        strand = b"+" if is_forward else b"-"
        if not is_forward:
            bases = bases[::-1].translate(_COMPLEMENT)
        return b">%s:%d-%d%s\n%s\n" % (contig.id, start + 1, start + len(bases), strand, bases)

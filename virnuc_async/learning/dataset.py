"""
Labelled sequences: the class, cluster and group of each record, and the split into training, validation
and test data.

Similar records must be in the same split. A table assigns them to clusters, or ``genome=`` in their headers
does. A cluster is never divided, except in the published protocol, which splits by fragment.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import (
    BadTable,
    MissingClassError,
    MissingInputs,
    NoRecords,
    TooFewClusters,
    UnreadableInput,
    UsageError,
)
from virnuc_async.fileio import read_lines
from virnuc_async.log import logger
from virnuc_async.sequences.fastx import Contig, first_word
from virnuc_async.sequences.inputs import read_contigs, read_headers
from virnuc_async.sequences.listing import file_key, is_stdin, list_inputs
from virnuc_async.settings import user_paths

KINDS = ("nonviral", "viral")  # indexed by is_viral
TRAINING, VALIDATION, TEST, EXCLUDED = range(4)
SPLIT_NAMES = ("training", "validation", "test", "left out")

_LARGEST_TABLE = 1 << 30  # bytes
_GENOME = re.compile(rb"(?:^|\s)genome=(\S+)")
_GROUP = re.compile(rb"(?:^|\s)group=(\S+)")
_COMPLEMENT = bytes.maketrans(b"ACGTacgt", b"TGCAtgca")

Splits = NDArray[np.uint8]  # the split of each record, fragment or ORF


@dataclass(frozen=True, slots=True)
class LabelledFiles:
    """Files of labelled sequences, directories expanded, and the tables that describe them."""

    viral: tuple[str, ...]
    nonviral: tuple[str, ...]
    clusters: Path | None = None
    groups: Path | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All files, viral ones first."""
        return self.viral + self.nonviral

    def contigs(self) -> Iterator[Contig]:
        """
        Yield all records in order.

        Raises:
            InputError: a file cannot be read completely
        """
        for path in self.paths:
            yield from read_contigs(path)


@dataclass(frozen=True, slots=True)
class Records:
    """The labelled records in columns, in the order of their files."""

    are_viral: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    clusters: NDArray[np.int64]  # indices into cluster_names
    cluster_names: tuple[str, ...]
    groups: NDArray[np.int64]  # indices into group_names
    group_names: tuple[tuple[bool, str], ...]  # whether the group is viral, and its name

    def __len__(self) -> int:
        return len(self.lengths)

    def group_summaries(self) -> list[dict[str, Any]]:
        """Return the size of each group."""
        return [self._group_summary(number) for number in range(len(self.group_names))]

    def _group_summary(self, number: int) -> dict[str, Any]:
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
    viral: Sequence[str | Path],
    nonviral: Sequence[str | Path],
    clusters: Path | None,
    groups: Path | None,
    *,
    recursive: bool = False,
    allow_duplicates: bool = False,
) -> LabelledFiles:
    """
    Return the files of each class, with directories expanded; log what is left out of them.

    Raises:
        UsageError: a file belongs to both classes, or is standard input
        MissingInputs: files cannot be read
    """
    named = user_paths(viral, "a viral file"), user_paths(nonviral, "a nonviral file")
    if any(map(is_stdin, (*named[0], *named[1]))):
        raise UsageError("labelled sequences are read more than once: name files, not standard input")
    files: list[tuple[str, ...]] = []
    missing: list[UnreadableInput] = []
    for inputs in named:
        try:
            listed = list_inputs(inputs, recursive=recursive, allow_duplicates=allow_duplicates)
        except MissingInputs as error:
            missing += error.failures
            continue
        files.append(listed.paths)
        for level, text in listed.notices:
            logger.log(level, "{}", text)
    if missing:
        raise MissingInputs(missing)
    names = {file_key(path): path for path in files[0]}
    if both := sorted(names[key] for key in set(map(file_key, files[1])) & names.keys()):
        raise UsageError(f"{both[0]} cannot be both viral and nonviral. Name it once")
    return LabelledFiles(files[0], files[1], clusters, groups)


def read_records(data: LabelledFiles) -> Records:
    """
    Return the class, length, cluster and group of each record.

    Raises:
        InputError: a file cannot be read completely
        BadTable: a table is malformed, or has no line for a record
        NoRecords, MissingClassError: there are no records, or none of one class
    """
    clusters = _LabelTable(data.clusters, _GENOME)
    groups = _LabelTable(data.groups, _GROUP)
    cluster_ids: dict[Any, int] = {}
    group_ids: dict[tuple[bool, str], int] = {}
    rows: list[tuple[int, ...]] = []
    for is_viral, header, length in _headers(data):
        cluster = clusters.lookup(header) or ("record", _printable(first_word(header)), len(rows))
        group = is_viral, groups.lookup(header) or KINDS[is_viral]
        cluster_id = cluster_ids.setdefault(cluster, len(cluster_ids))
        rows.append((is_viral, length, cluster_id, group_ids.setdefault(group, len(group_ids))))
    if not rows:
        raise NoRecords(data.paths)
    are_viral, lengths, of_clusters, of_groups = np.array(rows, np.int64).T
    check_classes(are_viral.astype(bool), "the labelled sequences")
    names = tuple(key if isinstance(key, str) else key[1] for key in cluster_ids)
    return Records(are_viral.astype(bool), lengths, of_clusters, names, of_groups, tuple(group_ids))


def _headers(data: LabelledFiles) -> Iterator[tuple[bool, bytes, int]]:
    for is_viral, paths in ((True, data.viral), (False, data.nonviral)):
        for path in paths:
            for contig in read_headers(path):
                yield is_viral, contig.id, len(contig.bases)


class _LabelTable:
    """The label of each record: from a table, or without one from the header."""

    def __init__(self, path: Path | None, pattern: re.Pattern[bytes]) -> None:
        self._path, self._pattern = path, pattern
        self._table = None if path is None else _read_table(path)

    def lookup(self, header: bytes) -> str | None:
        if self._table is None or self._path is None:
            found = self._pattern.search(header)
            return _printable(found[1]) if found else None
        genome = _GENOME.search(header)
        keys = [_printable(first_word(header)), *([_printable(genome[1])] if genome else ())]
        for key in keys:
            if key in self._table:
                return self._table[key]
        raise BadTable(str(self._path), f"has no line for {' or '.join(keys)}")


def _read_table(path: Path) -> Mapping[str, str]:
    """Return the label by record or genome, from lines of both with a tab between."""
    table: dict[str, str] = {}
    try:
        lines = list(read_lines(str(path), _LARGEST_TABLE, has_comments=True))
    except (OSError, ValueError) as error:
        raise BadTable(str(path), getattr(error, "strerror", None) or str(error)) from error
    for number, line in lines:
        key, *values = (_printable(word.strip()) for word in line.split(b"\t"))
        if len(values) != 1 or not key or not values[0]:
            raise BadTable(str(path), f"line {number:,} is not a name, a tab and another name")
        if table.setdefault(key, values[0]) != values[0]:
            raise BadTable(str(path), f"line {number:,}: {key} is already in {table[key]}")
    return table


def _printable(word: bytes) -> str:
    """Decode a name, with control characters and invalid UTF-8 escaped."""
    text = word.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def check_classes(are_viral: NDArray[np.bool_], where: str) -> None:
    """Check that both classes are present in *where*; raise MissingClassError if not."""
    for kind, is_present in zip(KINDS, (not are_viral.all(), are_viral.any()), strict=True):
        if not is_present:
            raise MissingClassError(kind, where)


def check_splits(are_viral: NDArray[np.bool_], splits: Splits, what: str) -> None:
    """Check that every split has *what* of both classes; raise MissingClassError if not."""
    for split in (TRAINING, VALIDATION, TEST):
        check_classes(are_viral[splits == split], f"the {what} for {SPLIT_NAMES[split]}")


def split_records(records: Records, validation: float, test: float, seed: int) -> Splits:
    """
    Return the split of each record, by cluster, so that each class is divided in proportion to its bases.

    Raises:
        TooFewClusters: a class has fewer clusters than there are splits
    """
    fractions = np.array([1 - validation - test, validation, test])
    count = len(records.cluster_names)
    bases = np.bincount(records.clusters, records.lengths, count).astype(np.float64)
    viral = np.bincount(records.clusters, records.are_viral, count) > 0
    random = np.random.default_rng(seed)
    splits = np.zeros(count, np.uint8)
    for kind in (True, False):
        own = np.flatnonzero(viral == kind)
        if len(own) < len(fractions):
            raise TooFewClusters(KINDS[kind], len(own), len(fractions))
        own = own[random.permutation(len(own))]
        # Large clusters first, while a split has room for them.
        is_small = bases[own] < fractions.min() * bases[own].sum() / 2
        own = own[np.argsort(is_small, kind="stable")]
        splits[own] = _assign_greedily(bases[own], fractions)
    return splits[records.clusters]


def _assign_greedily(sizes: NDArray[np.float64], fractions: NDArray[np.float64]) -> list[int]:
    """Return the split of each item: the one that lacks most so far. No split stays empty."""
    lacking = fractions * sizes.sum()
    empty = set(range(len(fractions)))
    splits: list[int] = []
    for left, size in zip(range(len(sizes), 0, -1), sizes.tolist(), strict=True):
        candidates = sorted(empty) if len(empty) == left else range(len(fractions))
        split = max(candidates, key=lacking.__getitem__)
        lacking[split] -= size
        empty.discard(split)
        splits.append(split)
    return splits


def split_fragments(fragments: int, validation: float, test: float, seed: int) -> Splits:
    """Return a random split of each fragment, as published: one sequence may be in several splits."""
    order = np.random.default_rng(seed).permutation(fragments)
    ends = np.cumsum(np.round(np.array((test, validation)) * fragments).astype(np.int64))
    of_test, of_validation, _ = np.split(order, ends)
    splits = np.full(fragments, TRAINING, np.uint8)
    splits[of_test], splits[of_validation] = TEST, VALIDATION
    return splits


@dataclass(frozen=True, slots=True)
class SubsequenceSampler:
    """Cuts subsequences of *length* bases from records, at random positions and on either strand."""

    length: int
    seed: int
    count: int | None = None  # per record that is long enough; None: as many as the record has fragments

    def record_index(self, records: Records) -> NDArray[np.int64]:
        """Return the index of the record of each subsequence."""
        counts = np.maximum(1, -(-records.lengths // self.length))
        if self.count is not None:
            counts = np.where(records.lengths >= self.length, self.count, 0)
        return np.repeat(np.arange(len(records)), counts)

    def subsequences(self, data: LabelledFiles, records: Records) -> Iterator[bytes]:
        """Yield each subsequence as a FASTA record, with its coordinates and strand in the id."""
        counts = np.bincount(self.record_index(records), minlength=len(records)).tolist()
        random = np.random.default_rng([self.seed, self.length])
        for contig, count in zip(data.contigs(), counts, strict=True):
            yield from map(partial(self._subsequence, contig), random.random((count, 2)))

    def _subsequence(self, contig: Contig, drawn: NDArray[np.float64]) -> bytes:
        start = int(drawn[0] * (max(0, len(contig.bases) - self.length) + 1))
        bases = contig.bases[start : start + self.length]
        is_forward = drawn[1] < 0.5
        strand = b"+" if is_forward else b"-"
        if not is_forward:
            bases = bases[::-1].translate(_COMPLEMENT)
        return b">%s:%d-%d%s\n%s\n" % (contig.id, start + 1, start + len(bases), strand, bases)

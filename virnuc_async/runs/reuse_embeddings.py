"""
Precomputed embeddings of ORFs, so that they need not be computed again.

Feature files name ORFs and contain no sequence, so they are not trusted: some ORFs of every window
are computed all the same, and compared with what the files have for them.
"""

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from virnuc_async import models
from virnuc_async.errors import (
    AmbiguousFeatures,
    FeatureMismatchError,
)
from virnuc_async.fileio import Directory, write_all
from virnuc_async.sequences.batches import BASES, RESIDUES, PrecomputedEmbeddings, SpotCheck
from virnuc_async.sequences.windows import Window
from virnuc_async.text import plural

from .blocks import orf_id
from .feature_files import FeatureFile, decode_id

# Embeddings of the same ORF in FP32 and in BF16 had a similarity of 0.99994 or more; those of different
# ORFs had 0.7 to 0.96 in the median and up to 0.9998, so a single ORF proves little.
MIN_SIMILARITY = 0.999
_SPOT_CHECKS = 8  # ORFs of a window, in addition to the first one of each file

ROWS_AT_ONCE = 1024  # of a file that are in memory at a time

Vectors = NDArray[np.float32]  # (ORFs, width)

_NONE = -1  # no row, or no file
_PARTS = (BASES, RESIDUES)


class FeatureIndex:
    """
    The embeddings in *files*: their ids in memory, their numbers on disk; use from one thread at a time.

    *widths* are those of the embeddings of bases and of residues.
    """

    def __init__(
        self, files: Sequence[FeatureFile], widths: tuple[int, int], rows_at_once: int = ROWS_AT_ONCE
    ) -> None:
        self._files = tuple(files)
        self._widths = widths
        self._rows_at_once = rows_at_once
        self._row_bytes = 4 * sum(widths)
        self._rows: dict[bytes, int] = {}
        self._sources = (array("i"), array("i"))  # of each part and row: the number of its file
        self._is_used = bytearray()  # of each row: whether the input had this id
        # Of each file: whether one of its ORFs was compared. _NONE, the last item, needs no comparison.
        self._is_compared = np.append(np.zeros(len(files), bool), True)
        self._counts: Counter[int] = Counter()  # ORFs of the input by the parts that are known of them
        self._scratch: IO[bytes] | None = None

    def __repr__(self) -> str:
        return f"<FeatureIndex [{len(self._files)} files, {len(self._rows)} ORFs, {self.reused} reused]>"

    @property
    def files(self) -> tuple[FeatureFile, ...]:
        """The files."""
        return self._files

    @property
    def reused(self) -> int:
        """The number of ORFs of the input so far for which an embedding was found."""
        return sum(count for part, count in self._counts.items() if part)

    def close(self) -> None:
        """Delete the copy of the embeddings."""
        if self._scratch is not None:
            self._scratch.close()

    def read(self, directory: Directory) -> Iterator[None]:
        """
        Read all files, one at each step, and copy their embeddings to an unnamed file in *directory*.

        Raises:
            BadFeatures: a file is damaged, hostile, or of other widths
            AmbiguousFeatures: an ORF has different embeddings
            OSError: the disk is full
        """
        # Without a name, the file is gone when this process ends, however that happens.
        self._scratch = directory.temporary_file()
        for number, file in enumerate(self._files):
            file.require_unchanged()
            for part, ids, vectors in models.read_features(file.path, self._widths, self._rows_at_once):
                self._add(number, part, ids, vectors)
            file.require_unchanged()
            yield

    def lookup(self, window: Window) -> "WindowFeatures | None":
        """
        Return what is known of the ORFs of *window*; must be called once for every window, in order.

        Raises:
            AmbiguousFeatures: an earlier ORF of the input had the same id
        """
        if not self._rows:
            return None
        ids = list(_window_ids(window))
        rows = np.fromiter((self._rows.get(id, _NONE) for id in ids), np.int64, len(ids))
        for orf in np.flatnonzero(rows != _NONE).tolist():
            self._mark_used(ids[orf], int(rows[orf]))
        of_parts = (np.frombuffer(files, np.int32) for files in self._sources)
        files = np.stack([np.where(rows == _NONE, _NONE, of_part[rows]) for of_part in of_parts])
        parts = _known_parts(files)
        self._counts += _count_parts(parts)
        return WindowFeatures(self, ids, rows, files, parts, self._choose_spot_checks(files))

    def vectors(self, part: int, rows: NDArray[np.int64]) -> Vectors:
        """Return one part of *rows*, which must all have it."""
        assert self._scratch is not None
        file, width, offset = self._scratch.fileno(), self._widths[part], self._offset(part)
        vectors = np.empty((len(rows), width), np.float32)
        for row, vector in zip(rows.tolist(), vectors, strict=True):
            os.preadv(file, [vector.data], row * self._row_bytes + offset)
        return vectors

    def paths(self, files: Iterable[int]) -> tuple[str, ...]:
        """Return the paths of *files*, without duplicates."""
        return tuple(str(self._files[file].path) for file in sorted(set(files)) if file != _NONE)

    def found_text(self) -> str:
        """Format how many embeddings the files have."""
        parts = _known_parts(np.stack([np.array(files) for files in self._sources]))
        counts = _format_counts(_count_parts(parts))
        return f"found {plural(len(self._files), 'file')} of features, of {len(parts):,} ORFs: {counts}"

    def used_text(self) -> str:
        """Format for how many ORFs of the input an embedding was found."""
        counts = _format_counts(self._counts)
        return f"features were reused for {self.reused:,} of {self._counts.total():,} ORFs: {counts}"

    def _offset(self, part: int) -> int:
        return 4 * self._widths[0] * part

    def _add(self, file: int, part: int, ids: Sequence[bytes], vectors: Vectors) -> None:
        assert self._scratch is not None
        scratch, files = self._scratch.fileno(), self._sources[part]
        for id, vector in zip(ids, vectors, strict=True):
            row = self._rows.setdefault(id, len(self._rows))
            if row == len(self._is_used):
                self._is_used.append(False)
                for sources in self._sources:
                    sources.append(_NONE)
            if files[row] == _NONE:
                write_all(scratch, vector.tobytes(), row * self._row_bytes + self._offset(part))
                files[row] = file
            elif not np.array_equal(self.vectors(part, np.array([row]))[0], vector):
                paths = " and ".join(self.paths((files[row], file)))
                raise AmbiguousFeatures(decode_id(id), f"it has different numbers in {paths}")

    def _mark_used(self, id: bytes, row: int) -> None:
        if self._is_used[row]:
            paths = " and ".join(self.paths(files[row] for files in self._sources))
            raise AmbiguousFeatures(decode_id(id), f"the id occurs twice in the input and is in {paths}")
        self._is_used[row] = True

    def _choose_spot_checks(self, files: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Choose ORFs of a window to compare: some all along it, and the first one of every file."""
        is_chosen = np.zeros(files.shape[1], bool)
        reused = np.flatnonzero((files != _NONE).any(0))
        spread = np.linspace(0, len(reused) - 1, min(_SPOT_CHECKS, len(reused))).astype(np.int64)
        is_chosen[reused[spread]] = True
        for of_part in files:
            numbers, first_rows = np.unique(of_part, return_index=True)
            is_chosen[first_rows[~self._is_compared[numbers]]] = True
        self._is_compared[files[:, is_chosen]] = True
        return is_chosen


@dataclass(frozen=True, slots=True)
class WindowFeatures:
    """What is known of the ORFs of a window, one row for each."""

    index: FeatureIndex
    ids: Sequence[bytes]
    rows: NDArray[np.int64]  # (ORFs,): in the index
    files: NDArray[np.int32]  # (2, ORFs): the file of each part
    parts: NDArray[np.int64]  # (ORFs,)
    is_compared: NDArray[np.bool_]  # (ORFs,)

    def known(self, rows: NDArray[np.int64]) -> PrecomputedEmbeddings:
        """Return the embeddings of *rows*, which have the same parts."""
        parts = self.parts[rows[0]]
        indexed = self.rows[rows]
        bases, residues = (
            self.index.vectors(number, indexed) if parts & part else None
            for number, part in enumerate(_PARTS)
        )
        compared = np.flatnonzero(self.is_compared[rows]).tolist()
        checks = tuple(self._spot_check(at, int(rows[at])) for at in compared)
        return PrecomputedEmbeddings(bases, residues, checks)

    def _spot_check(self, at: int, row: int) -> SpotCheck:
        paths = self.index.paths(self.files[:, row].tolist())
        return SpotCheck(at, decode_id(self.ids[row]), paths)


def check_similarity(known: PrecomputedEmbeddings, similarity: NDArray[np.float32]) -> None:
    """
    Check that *known* embeddings are those of the model; *similarity* has a row for each spot check.

    Raises:
        FeatureMismatchError: they are not
    """
    for check, lowest in zip(known.compared, similarity.min(1, initial=1).tolist(), strict=True):
        if not lowest >= MIN_SIMILARITY:  # also true for NaN
            raise FeatureMismatchError(check.id, check.sources, lowest, MIN_SIMILARITY)


def _known_parts(files: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return which parts are known of each ORF, by the *files* (2, ORFs) that they are in."""
    parts: NDArray[np.int64] = np.array(_PARTS) @ (files != _NONE)
    return parts


def _count_parts(parts: NDArray[np.int64]) -> Counter[int]:
    return Counter(dict(enumerate(np.bincount(parts).tolist())))


def _format_counts(counts: Mapping[int, int]) -> str:
    both, bases, residues = (counts.get(part, 0) for part in (BASES + RESIDUES, BASES, RESIDUES))
    return f"{both:,} with both embeddings, {bases:,} with DNABERT-S's alone, {residues:,} with ESM-2's alone"


def _window_ids(window: Window) -> Iterator[bytes]:
    """Yield the published id of each ORF of *window*."""
    names = [window.before, *(row.id for row in window.contigs)]
    first = window.contigs[0].number - 1 if window.contigs else int(window.origins[:, 0].max(initial=0))
    return (
        orf_id(names[contig - first], fragment, frame) for contig, fragment, frame in window.origins.tolist()
    )

"""What a run has computed so far, in the order of its input."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virnuc_async.errors import Stage

from .blocks import CONTIG, SCORE, Block
from .database import Database
from .failure import Failure

_WINDOWS = "SELECT * FROM windows WHERE number BETWEEN ? AND ? ORDER BY number"
_LAST = (1 << 63) - 1  # no window has a higher number
_COUNTS = {
    "contigs": "SELECT TOTAL(contigs) FROM windows",
    "scores": "SELECT TOTAL(scored) FROM batches",
} | {table: f"SELECT COUNT(*) FROM {table}" for table in ("files", "windows", "batches", "failures")}


@dataclass(frozen=True, slots=True)
class FileLine:
    """An input; *contigs* is None until it was read, to its end or to where it broke."""

    path: str
    contigs: int | None
    failed: bool


class RunReader:
    """
    Reads the store of a run in input order; use from one thread at a time.

    Raises, from every method:
        DamagedStore: a part of the store cannot be read, or something is missing in it
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def directory(self) -> Path:
        """The output directory of the run."""
        return self._database.directory

    def blocks(self, file: int | None = None) -> Iterator[Block]:
        """
        Yield every record that was read, with its scored ORFs, about a window at a time.

        If *file*, the number of an input, is given, yield its records only.
        """
        # A record may run through many windows: they are gathered until another one begins.
        parts: list[Block] = []
        with closing(self._windows() if file is None else self._windows_of(file)) as windows:
            for window in windows:
                parts.append(window)
                if window.ids:
                    complete, last = self._concatenate(parts).split_last()
                    parts = [last]
                    if complete.ids:
                        yield complete
        if parts and parts[0].ids:
            yield self._concatenate(parts)

    def ids(self, file: int) -> Iterator[list[bytes]]:
        """Yield the ids of all records of *file* that were read, a window at a time, without their scores."""
        windows, (first, end) = self._locate_file(file)
        with closing(self._database.valid_rows(_WINDOWS, *windows)) as rows:
            for *_, contigs, ids, _ in rows:
                window = Block(np.frombuffer(contigs, CONTIG), ids, np.empty(0, SCORE))
                yield window.within(first, end).ids.split(b"\n")[:-1]

    def files(self) -> Iterator[FileLine]:
        """Yield every input, in order."""
        query = "SELECT path, contigs, failed FROM files ORDER BY number"
        for path, contigs, failed in self._database.rows(query):
            yield FileLine(os.fsdecode(path), contigs, bool(failed))

    def failures(self) -> Iterator[Failure]:
        """Yield every failure of the run, in the order of the input."""
        query = (
            "SELECT path, stage, message FROM failures JOIN files ON files.number = file ORDER BY file, orf"
        )
        for path, stage, message in self._database.rows(query):
            yield Failure(os.fsdecode(path), Stage(stage), os.fsdecode(message))

    def count(self, what: str) -> int:
        """Return the number of files, windows, contigs, batches, scores or failures."""
        return int(next(self._database.rows(_COUNTS[what]))[0])

    def fragments(self) -> int:
        """Return the number of fragments that all records were cut into."""
        return int(next(self._database.rows("SELECT TOTAL(fragments) FROM windows"))[0])

    def device_totals(self) -> dict[str, tuple[int, int, int, float]]:
        """Return, for each device that took part, its batches, ORFs, tokens and busy seconds."""
        query = "SELECT device, COUNT(*), SUM(orfs), SUM(tokens), SUM(seconds) FROM batches GROUP BY device"
        return {device: tuple(sums) for device, *sums in self._database.rows(query)}

    def features_end(self) -> int:
        """Return the number of rows that the file of embeddings must have at least."""
        return 1 + int(next(self._database.rows("SELECT IFNULL(MAX(highest), -1) FROM batches"))[0])

    def is_reproducible(self) -> bool:
        """Whether no batch was split for lack of memory: halves differ in their last digits."""
        return not any(self._database.rows("SELECT 1 FROM batches WHERE part <> '' LIMIT 1"))

    def _locate_file(self, file: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the first and the last window of *file*, and the range of its record numbers."""
        # A file ends in the window with the end of its last record, or with the next record.
        query = (
            "SELECT (SELECT window FROM files WHERE number = ?1 - 1), window, "
            "(SELECT TOTAL(contigs) FROM files WHERE number < ?1), contigs FROM files WHERE number = ?1"
        )
        ((begin, end, before, count),) = self._database.rows(query, file)
        return (begin or 0, end), (int(before), int(before) + count)

    def _windows_of(self, file: int) -> Generator[Block, None, None]:
        """Yield the part of each window that belongs to *file*."""
        windows, (first, end) = self._locate_file(file)
        with closing(self._windows(*windows)) as blocks:
            for block in blocks:
                yield block.within(first, end)

    def _windows(self, first: int = 0, last: int = _LAST) -> Generator[Block, None, None]:
        """Yield the scores of each window, with the records that begin in it."""
        with closing(self._database.valid_rows(_WINDOWS, first, last)) as windows:
            for number, *_, records, ids, _ in windows:
                batches = self._database.valid_rows("SELECT * FROM batches WHERE window = ?", number)
                scores = np.frombuffer(b"".join(row[-2] for row in batches), SCORE)
                in_order = scores[np.argsort(scores["orf"])]
                yield Block(np.frombuffer(records, CONTIG), ids, in_order)

    def _concatenate(self, parts: Sequence[Block]) -> Block:
        block = Block(
            np.concatenate([part.contigs for part in parts]),
            b"".join([part.ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )
        if not block.is_complete():
            raise self._database.damage("records or ORFs are missing")
        return block

"""Where a reader of a run finds its rows: in one store, or in any other place that has the same ones."""

import os
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import DamagedStore
from virnuc_async.fileio import Directory
from virnuc_async.sequences.segments import ALL, ORF_BITS, WINDOW_BITS, InputSpan, first_orf, segment_of

from .database import Database
from .embedding_rows import EmbeddingRows
from .meta import get_meta
from .rows import BatchRow, WindowRow

LAST = (1 << 63) - 1  # no window has a higher number


class ReadsEmbeddings(Protocol):
    """The embeddings of a run."""

    def read(self, orfs: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return those of *orfs*, by their numbers; raises OSError. What is not there is zero."""


class RunRows(Protocol):
    """
    The rows of a run: its windows and its batches, numbered as in the whole run, and what is known of it.

    Raises, from every method:
        DamagedStore: a part of a store cannot be read, or makes no sense
    """

    @property
    def directory(self) -> Directory:
        """The directory of the run."""

    @property
    def scratch(self) -> Directory:
        """Where temporary files are made."""

    @property
    def changes(self) -> int:
        """How often it was changed so far."""

    @property
    def span(self) -> InputSpan:
        """What of the inputs is in it."""

    def meta(self, key: str) -> Any:
        """Return what is known under *key*, or None."""

    def windows(self, first: int, last: int) -> Generator[WindowRow, None, None]:
        """Yield each window that there is with a number from *first* to *last*, in order."""

    def window_count(self, first: int = 0) -> int:
        """Return the number of windows from number *first* on."""

    def embeddings(self, width: int) -> AbstractContextManager[ReadsEmbeddings]:
        """Open the embeddings, each of *width* numbers."""

    def batches(self, window: int) -> list[BatchRow]:
        """Return the batches of *window*, in any order."""

    def all_batches(self) -> Generator[BatchRow, None, None]:
        """Yield each batch, in any order."""

    def damage(self, what: str) -> DamagedStore:
        """Return the error to raise for damage that *what* describes."""


class StoreRows:
    """The rows of the store in *database*; use from one thread at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._before: dict[int, int] = {}  # ORFs of the store before each segment, as far as it is known
        self.damage = database.damage

    @property
    def directory(self) -> Directory:
        """The output directory of the run."""
        return self._database.directory

    @property
    def scratch(self) -> Directory:
        """Where temporary files are made."""
        return self._database.scratch

    @property
    def changes(self) -> int:
        """How often the store was changed since it was opened."""
        return self._database.connection.total_changes

    @property
    def span(self) -> InputSpan:
        """What of the inputs is in it."""
        known = (self.meta("identity") or {}).get("span")
        return InputSpan.from_json(known) if known else ALL

    def meta(self, key: str) -> Any:
        """Return what was stored under *key*, or None."""
        return get_meta(self._database, key)

    def windows(self, first: int, last: int) -> Generator[WindowRow, None, None]:
        """Yield each window that there is with a number from *first* to *last*, in order."""
        query = "SELECT * FROM windows WHERE number BETWEEN ? AND ? ORDER BY number"
        return self._database.decoded(WindowRow.decode, query, first, last)

    def last_windows(self) -> list[WindowRow]:
        """Return the last window of each segment, in order."""
        query = (
            "SELECT * FROM windows WHERE number IN (SELECT MAX(number) FROM windows GROUP BY number >> 20)"
        )
        with closing(self._database.decoded(WindowRow.decode, query)) as windows:
            return sorted(windows, key=lambda window: window.number)

    def locate_contig(self, contig: int, window: int) -> tuple[int, bytes]:
        """Return file and id of a record that begins in *window* or before."""
        query = "SELECT * FROM windows WHERE number <= ? ORDER BY number DESC"
        with closing(self._database.decoded(WindowRow.decode, query, window)) as windows:
            for found in windows:
                if len(found.contigs) and found.contigs["number"][0] <= contig:
                    row = contig - int(found.contigs["number"][0])
                    return int(found.contigs["file"][row]), found.ids.split(b"\n")[row]
        raise self.damage("records are missing")

    def window_count(self, first: int = 0) -> int:
        """Return the number of windows from number *first* on."""
        return int(next(self._database.rows("SELECT COUNT(*) FROM windows WHERE number >= ?", first))[0])

    @contextmanager
    def embeddings(self, width: int, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[EmbeddingRows]:
        """Open the embeddings, each of *width* numbers, with *flags* of the operating system."""
        with EmbeddingRows.open(self.directory, width, self._places, flags) as opened:
            yield opened

    def forget_places(self) -> None:
        """Note that windows were dropped: ORFs of other windows may have their places."""
        self._before.clear()

    def _places(self, orfs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many ORFs of the store are before each of *orfs*, those that are not scored included."""
        segments = orfs >> ORF_BITS
        last = int(segments.max(initial=0))
        if last not in self._before:
            self._count_orfs()
        before = np.array([self._before[segment] for segment in segments.tolist()], np.int64)
        return before + orfs - (segments << ORF_BITS)

    def _count_orfs(self) -> None:
        """Find out how many ORFs are before each segment that has a window."""
        segment = f"number >> {WINDOW_BITS}"
        query = f"SELECT * FROM windows WHERE number IN (SELECT MAX(number) FROM windows GROUP BY {segment})"
        count = 0
        with closing(self._database.decoded(WindowRow.decode, f"{query} ORDER BY number")) as windows:
            for window in windows:
                segment_number = segment_of(window.number)
                self._before[segment_number] = count
                count += window.end - first_orf(segment_number)

    def batches(self, window: int) -> list[BatchRow]:
        """Return what there is of *window*, in any order."""
        return list(self._database.decoded(BatchRow.decode, "SELECT * FROM batches WHERE window = ?", window))

    def all_batches(self) -> Generator[BatchRow, None, None]:
        """Yield each batch, in any order."""
        # In the order of the rows: an index may be damaged where these are not.
        return self._database.decoded(BatchRow.decode, "SELECT * FROM batches NOT INDEXED")

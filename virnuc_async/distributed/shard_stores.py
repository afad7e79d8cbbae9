"""The stores of all shards of a run as one: rows are numbered in the whole run, and none is changed."""

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import DamagedStore
from virnuc_async.fileio import Directory
from virnuc_async.runs.output_directory import FEATURES
from virnuc_async.runs.read_only import ReadOnlyDatabase
from virnuc_async.runs.rows import BatchRow, WindowRow
from virnuc_async.runs.store_rows import StoreRows
from virnuc_async.runs.totals import Totals
from virnuc_async.sequences.segments import ALL, ORF_BITS, InputSpan, first_window, segment_of

from .finished_shards import FinishedShard
from .plan import RunPlan

_MOST_OPEN = 32  # stores: each has two files open


@dataclass(slots=True)
class _Opened:
    database: ReadOnlyDatabase
    rows: StoreRows
    users: int = 0


class ShardStores:
    """
    The rows of the stores of *shards*, of the run of *plan*; close it in the end.

    Those of the run as a whole are in *directory*; temporary files are made in *scratch*. Use it from one
    thread at a time.

    Raises, from every method:
        DamagedStore: a part of a store cannot be read, or makes no sense
    """

    changes = 0
    span: InputSpan = ALL

    def __init__(
        self, plan: RunPlan, shards: Sequence[FinishedShard], directory: Directory, scratch: Directory
    ) -> None:
        self._plan = plan
        self._shards = shards
        self._firsts = [shard.segments[0] for shard in self._shards]
        totals = Totals.of_parts([shard.known.totals for shard in shards])
        self._sealed = json.loads(json.dumps(totals.to_json()))  # as a store has it
        self._opened: OrderedDict[int, _Opened] = OrderedDict()
        self.directory = directory
        self.scratch = scratch

    def close(self) -> None:
        """Close all stores."""
        while self._opened:
            self._opened.popitem()[1].database.close()

    def meta(self, key: str) -> Any:
        """Return what is known of the run under *key*, or None."""
        if key == "paths":
            return [file.name for file in self._plan.files]
        if key == "kinds":
            return [file.kind for file in self._plan.files]
        return self._sealed if key == "finished" else None

    def windows(self, first: int, last: int) -> Generator[WindowRow, None, None]:
        """Yield each window that there is with a number from *first* to *last*, in order."""
        for number in range(self._shard_of(segment_of(first)), len(self._shards)):
            if first_window(self._firsts[number]) > last:
                return
            with self._store(number) as rows, closing(rows.windows(first, last)) as windows:
                yield from windows

    def window_count(self, first: int = 0) -> int:
        """Return the number of windows from number *first* on."""
        count = 0
        for number in range(self._shard_of(segment_of(first)), len(self._shards)):
            with self._store(number) as rows:
                count += rows.window_count(first)
        return count

    def batches(self, window: int) -> list[BatchRow]:
        """Return the batches of *window*, in any order."""
        with self._store(self._shard_of(segment_of(window))) as rows:
            return rows.batches(window)

    def all_batches(self) -> Generator[BatchRow, None, None]:
        """Yield each batch, in any order."""
        for number in range(len(self._shards)):
            with self._store(number) as rows, closing(rows.all_batches()) as batches:
                yield from batches

    @contextmanager
    def embeddings(self, width: int) -> Iterator["_Embeddings"]:
        """Open the embeddings, each of *width* numbers."""
        yield _Embeddings(self, width)

    def damage(self, what: str) -> DamagedStore:
        """Return the error to raise for damage that *what* describes."""
        reason = f"the stores of its shards do not fit together ({what}). Run them again with --overwrite"
        return DamagedStore(str(self.directory), reason)

    def _shard_of(self, segment: int) -> int:
        """Return the place among the shards of the one with *segment*, or where it would be."""
        return max(0, bisect_right(self._firsts, segment) - 1)

    @contextmanager
    def _store(self, number: int) -> Iterator[StoreRows]:
        opened = self._opened.pop(number, None)
        if opened is None:
            opened = self._open(number)
        self._opened[number] = opened  # the last one that was used
        opened.users += 1
        try:
            yield opened.rows
        finally:
            opened.users -= 1
            self._close_unused()

    def _open(self, number: int) -> _Opened:
        place = self._shards[number].directory
        try:
            database = ReadOnlyDatabase(place, self.scratch)
        except OSError as error:
            raise DamagedStore(str(place), f"its store cannot be read: {error.strerror}") from error
        return _Opened(database, StoreRows(database))

    def _close_unused(self) -> None:
        for number in list(self._opened):
            if len(self._opened) <= _MOST_OPEN:
                return
            if not self._opened[number].users:
                self._opened.pop(number).database.close()

    def read_embeddings(self, orfs: NDArray[np.int64], width: int) -> NDArray[np.float32]:
        """Return the embeddings, of *width* numbers each, of *orfs*, which are in order."""
        shards = np.searchsorted(self._firsts, orfs >> ORF_BITS, side="right") - 1
        starts = np.flatnonzero(np.diff(shards, prepend=-1)).tolist()
        found = [np.empty((0, width), np.float32)]
        for start, end in zip(starts, [*starts[1:], len(orfs)], strict=True):
            with self._store(int(shards[start])) as rows:
                found.append(_read_embeddings(rows, orfs[start:end], width))
        return np.concatenate(found)


def _read_embeddings(rows: StoreRows, orfs: NDArray[np.int64], width: int) -> NDArray[np.float32]:
    try:
        with rows.embeddings(width, os.O_RDONLY) as embeddings:
            return embeddings.read(orfs)
    except OSError as error:
        reason = f"its {FEATURES} cannot be read: {error.strerror}"
        raise DamagedStore(str(rows.directory), reason) from error


class _Embeddings:
    """The embeddings of all shards."""

    def __init__(self, stores: ShardStores, width: int) -> None:
        self._stores, self._width = stores, width

    def read(self, orfs: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return those of *orfs*, which are in order, by their numbers."""
        return self._stores.read_embeddings(orfs, self._width)

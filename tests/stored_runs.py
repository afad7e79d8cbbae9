"""Synthetic runs in a store, like those of finished runs, for tests of the files written from it."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import Stage
from virnuc_async.runs.store import Store
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.sequences.windows import ContigRow, FileRow, Window

WIDTH = 4
LENGTH = 100  # bases that contigs are cut into


class ScoredOrf(NamedTuple):
    """An ORF of a synthetic run."""

    fragment: int  # from 1
    frame: int
    others: float
    virus: float
    failed: bool = False


class Record(NamedTuple):
    """A contig of a synthetic run; *orfs* are in order."""

    id: bytes
    orfs: tuple[ScoredOrf, ...]


def store_run(
    directory: Path, records: Sequence[Record], embeddings: bool = False, size: int = 4096
) -> Store:
    """Return a store of *records*, in windows of *size* ORFs; their batches are added out of order."""
    orfs = [orf for record in records for orf in record.orfs]
    store = Store(directory)
    store.bind_run({}, ["dir\t1/a.fa"])
    for window in _windows(records, size):
        store.add_window(window)
        for batch in reversed(list(window.batches(max(3, len(window.origins) // 4)))):
            store.add_batch(_scored(batch, orfs, embeddings))
    return store


def _windows(records: Sequence[Record], size: int) -> Iterator[Window]:
    """Yield windows like those of a run: each ends at the end of a fragment."""
    number, first = 0, 0
    rows: list[ContigRow] = []
    origins: list[tuple[int, int, int]] = []
    for contig, record in enumerate(records):
        fragments = max([9, *(orf.fragment for orf in record.orfs)])
        rows.append(ContigRow(contig, 0, record.id, LENGTH * fragments - 7 * contig % LENGTH, fragments))
        for fragment, orfs in groupby(record.orfs, attrgetter("fragment")):
            origins += [(contig, fragment, orf.frame) for orf in orfs]
            if len(origins) >= size:
                yield _window(number, first, rows, origins)
                number, first = number + 1, first + len(origins)
                rows, origins = [], []
    yield _window(number, first, rows, origins, (FileRow(0, "a", len(records), None),))


def _window(
    number: int,
    first: int,
    rows: Sequence[ContigRow],
    origins: Sequence[tuple[int, int, int]],
    files: tuple[FileRow, ...] = (),
) -> Window:
    table = np.array(origins, np.int64).reshape(-1, 3)
    tokens = Ragged(np.full(len(table), 5, np.int32), np.ones(len(table), np.int64))
    return Window(number, first, tuple(rows), files, table, bytes(32), tokens, tokens)


def _scored(batch: Batch, orfs: Sequence[ScoredOrf], embeddings: bool) -> ScoredBatch:
    own = [orfs[number] for number in batch.orfs]
    scores = np.array([(orf.others, orf.virus) for orf in own], np.float32)
    failures = {row: (Stage.PROTEIN, "no") for row, orf in enumerate(own) if orf.failed}
    features = np.repeat(batch.orfs[:, None], WIDTH, 1).astype(np.float32)
    return ScoredBatch(batch, "cpu:0", 0.0, scores, features if embeddings else None, failures)


def table_lines(table: Iterator[bytes]) -> list[bytes]:
    """Return the lines of a table; check that no chunk is empty."""
    chunks = list(table)
    assert all(chunks)
    return b"".join(chunks).splitlines(keepends=True)

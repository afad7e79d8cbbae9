"""
The store of a run: a SQLite file, a transaction per batch, the only thing that must survive a crash.

Every table of a run is written from it. It also contains the identity of its run, so that a directory
never mixes two: inputs, models and settings are compared before anything is reused.

The scores of a batch are one value, and so are the records of a window: they are written and read
in columns, since a row for each of a hundred million ORFs takes longer than to score them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import (
    RunMismatchError,
    Stage,
)
from virnuc_async.fileio import open_nofollow, writing_to
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.windows import ContigRow, FileRow, Window

from .blocks import CONTIG, SCORE, orf_id
from .database import BUSY_SECONDS, Database, check_format, checksum, create_tables
from .failure import Failure
from .identity import Identity, describe_differences
from .lock import Lock
from .output_directory import FEATURES, OUTPUT_FILES, STORE, claim_directory
from .reader import RunReader
from .repair import Recovered, repair_store


class Store:
    """
    The store in *directory*, locked for this process; use from one thread at a time.

    What is in it is read with :attr:`reader`.

    Raises, from every method:
        CannotWrite: the disk is full, or the directory cannot be written
        DirectoryLockedError: another process has taken the directory over
        DamagedStore: a part of the store cannot be read
    """

    def __init__(
        self,
        directory: Path,
        overwrite: bool = False,
        repair: bool = False,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        """
        Open the store, or create a new one in a new or empty directory.

        With *repair*, recover what is intact of a damaged one; ``recovered`` says how much.

        Raises:
            ForeignDirectoryError: the directory contains something else
            DirectoryLockedError: another process is using it
            LockHeldRemotely: another process is using it, on another machine, and may be dead
            DamagedStore: it cannot be read
        """
        self.directory = directory
        with ExitStack() as undo:
            with writing_to(directory):
                claim_directory(directory)
                self.lock = Lock(directory)
                undo.callback(self.lock.release)
                has_locks = self.lock.has_kernel_locks
            self.recovered: Recovered | None = None
            if repair and not overwrite:
                self.recovered = repair_store(directory, has_locks)
            self._database = Database(directory / STORE, has_locks, busy_seconds)
            undo.callback(self._database.close)
            self.reader = RunReader(self._database)
            self._open(overwrite)
            undo.pop_all()

    @property
    def is_finished(self) -> bool:
        """Whether everything of the run is in the store."""
        return bool(self.get_meta("finished"))

    def close(self) -> None:
        """Close the file and release the directory."""
        self._database.close()
        self.lock.release()

    def bind_run(self, identity: Identity, paths: Sequence[str]) -> None:
        """
        Write which run this is, with all its inputs; or check that it is the one in the store.

        Inputs are compared by their content: if only their paths have changed, the new ones are stored.

        Raises:
            RunMismatchError: the store contains a different run
        """
        requested = json.loads(json.dumps(identity))
        known = self.get_meta("identity")
        if known is not None and (differences := list(describe_differences(known, requested))):
            raise RunMismatchError(str(self.directory), differences)
        rows = [(number, os.fsencode(path)) for number, path in enumerate(paths)]
        query = "SELECT number, path FROM files ORDER BY number"
        if known == requested and rows == list(self._database.rows(query)):
            return
        with self._transaction():
            query = "INSERT INTO files (number, path) VALUES (?, ?)"
            rename = "ON CONFLICT (number) DO UPDATE SET path = excluded.path"
            self._database.connection.executemany(f"{query} {rename}", rows)
            self._database.execute("INSERT OR REPLACE INTO run VALUES ('identity', ?)", json.dumps(requested))

    def get_meta(self, key: str) -> Any:
        """Return what was stored under *key*, or None."""
        row = next(self._database.rows("SELECT value FROM run WHERE key = ?", key), None)
        return row and json.loads(row[0])

    def set_meta(self, key: str, value: Any) -> None:
        """Store *value*, anything that JSON can hold, under *key*."""
        with self._transaction():
            self._database.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", key, json.dumps(value))

    def finish(self) -> None:
        """
        Mark the run as finished.

        Raises:
            DamagedStore: batches are missing
        """
        query = "SELECT (SELECT TOTAL(orfs) FROM windows) = (SELECT TOTAL(orfs) FROM batches)"
        if not next(self._database.rows(query))[0]:
            raise self._database.damage("batches are missing")
        self.set_meta("finished", True)

    def window(self, number: int) -> bytes | None:
        """Return the digest of a window that was stored before, or None."""
        row = next(self._database.rows("SELECT digest FROM windows WHERE number = ?", number), None)
        return row and bytes(row[0])

    def finished_parts(self, window: int) -> set[tuple[int, str]]:
        """Return the number and the split path of every batch of *window* that is finished."""
        return set(self._database.rows("SELECT number, part FROM batches WHERE window = ?", window))

    def add_window(self, window: Window) -> None:
        """Store the records of a window, before any of its batches."""
        contigs = _contig_columns(window.contigs)
        counts = (len(window.origins), window.digest, len(contigs), int(contigs["fragments"].sum()))
        ids = b"".join(b"%s\n" % row.id for row in window.contigs)
        row = (window.number, *counts, contigs.tobytes(), ids)
        with self._transaction():
            for file in window.files:
                self._end_file(window.number, file)
            self._database.execute("INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *row, checksum(row))

    def add_batch(self, done: ScoredBatch) -> list[Failure]:
        """Store the scores of a batch and the failures of its ORFs, all or nothing; return the failures."""
        batch, scores = done.batch, _score_columns(done)
        if done.embeddings is not None:
            self._write_embeddings(batch, done.embeddings)
        key = (batch.window, batch.number, batch.split_path)
        counts = (len(scores), int(scores["orf"].max(initial=-1)))
        row = (*key, done.device, len(batch), batch.tokens, done.seconds, *counts, scores.tobytes())
        query = "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        with self._transaction():
            failures = [self._add_failed_orf(batch, orf, *why) for orf, why in done.failures.items()]
            self._database.execute(query, *row, checksum(row))
        return failures

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        self.lock.check()
        with self._database.transaction(kind):
            yield

    def _open(self, overwrite: bool) -> None:
        with self._database.translated_errors():
            for setting in ("locking_mode=EXCLUSIVE", "journal_mode=DELETE", "synchronous=EXTRA"):
                self._database.execute(f"PRAGMA {setting}")
        with self._transaction("EXCLUSIVE"):
            query = "SELECT name FROM sqlite_master WHERE type='table'"
            tables = [name for (name,) in self._database.rows(query)]
            if tables:
                check_format(self.directory, self._database.connection, overwrite)
            if tables and not overwrite:
                return
            for name in tables:
                self._database.execute(f"DROP TABLE {name}")
            create_tables(self._database.connection)
            for name in OUTPUT_FILES if tables else ():
                (self.directory / name).unlink(missing_ok=True)

    def _end_file(self, window: int, file: FileRow) -> None:
        self._database.execute(
            "UPDATE files SET contigs = ?, failed = ?, window = ? WHERE number = ?",
            file.contigs,
            file.failure is not None,
            window,
            file.number,
        )
        if file.failure is not None:
            text = os.fsencode(file.failure.reason)
            self._add_failure(window, None, None, file.number, None, Stage.INPUT, text)

    def _add_failed_orf(self, batch: Batch, row: int, stage: Stage, message: str) -> Failure:
        contig, fragment, frame = batch.origins[row].tolist()
        file, path, name = self._locate_contig(contig, batch.window)
        text = orf_id(name, fragment, frame) + b": " + message.encode()
        orf = int(batch.orfs[row])
        self._add_failure(batch.window, batch.number, batch.split_path, file, orf, stage, text)
        return Failure(os.fsdecode(path), stage, os.fsdecode(text))

    def _add_failure(self, *row: Any) -> None:
        self._database.execute("INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)", *row)

    def _locate_contig(self, contig: int, window: int) -> tuple[int, bytes, bytes]:
        """Return file, path and id of a record that begins in *window* or before."""
        query = "SELECT records, ids FROM windows WHERE contigs AND number <= ? ORDER BY number DESC"
        rows = self._database.rows(query, window)
        windows = ((np.frombuffer(records, CONTIG), ids) for records, ids in rows)
        contigs, ids = next(found for found in windows if found[0]["number"][0] <= contig)
        row = contig - int(contigs["number"][0])
        file = int(contigs["file"][row])
        ((path,),) = self._database.rows("SELECT path FROM files WHERE number = ?", file)
        return file, path, ids.split(b"\n")[row]

    def _write_embeddings(self, batch: Batch, rows: NDArray[np.float32]) -> None:
        """Write the row of each ORF at its position, on the disk before the batch counts as finished."""
        with writing_to(self.directory):
            file = open_nofollow(str(self.directory / FEATURES), os.O_RDWR | os.O_CREAT)
            try:
                for orf, row in zip(batch.orfs.tolist(), rows, strict=True):
                    os.pwrite(file, row.tobytes(), orf * row.nbytes)
                os.fsync(file)
            finally:
                os.close(file)


def _contig_columns(rows: Sequence[ContigRow]) -> NDArray[np.void]:
    contigs = np.empty(len(rows), CONTIG)
    for name in CONTIG.fields or ():
        contigs[name] = [getattr(row, name) for row in rows]
    return contigs


def _score_columns(done: ScoredBatch) -> NDArray[np.void]:
    """Return what is stored of each scored ORF, in columns."""
    batch = done.batch
    scores = np.empty(len(batch), SCORE)
    scores["orf"] = batch.orfs
    scores["contig"], scores["fragment"], scores["frame"] = batch.origins.T
    scores["others"], scores["virus"] = done.probabilities.T
    return np.delete(scores, list(done.failures))

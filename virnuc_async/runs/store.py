"""
The store of a run: a SQLite file, a transaction per batch, the only thing that must survive a crash.

Every table of a run is written from it. It also contains the identity of its run, so that a directory
never mixes two: inputs, models and settings are compared before anything is reused.

The scores of a batch are one value, and so are the records of a window: they are written and read
in columns, since a row for each of a hundred million ORFs takes longer than to score them.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import (
    DamagedStore,
    ForeignDirectoryError,
    NoRun,
    RunMismatchError,
    Stage,
)
from virnuc_async.fileio import Directory, writing_to
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.windows import ContigRow, FileRow, Window

from .blocks import CONTIG, SCORE, orf_id
from .database import BUSY_SECONDS, Database, create_tables, has_tables, is_marked, values_of
from .embedding_rows import EmbeddingRows, Rows, fingerprints
from .failure import Failure
from .identity import Identity, describe_differences, has_corrected_inputs
from .lock import Lock
from .meta import ENDING, get_meta, remove_meta, set_meta
from .output_directory import MERGED, OPENING, OUTPUT_FILES, STORE, claim_directory, remove_merged
from .reader import RunReader
from .repair import Recovered, repair_store
from .rows import BatchKey, BatchRow, FailedOrf, FileEnd, WindowRow
from .scratch import open_scratch
from .store_rows import StoreRows

if TYPE_CHECKING:
    from virnuc_async.engine.worker import ScoredBatch

_LOG = "run.log"  # may be there before the store is

_Result = TypeVar("_Result")


class OnDisk(Protocol):
    """Runs a function in the thread that uses the store."""

    async def __call__(self, work: Callable[..., _Result], *args: Any) -> _Result:
        """Return what *work* returns for *args*."""


def open_finished(directory: Path, temporary_dir: Path | None = None) -> "Store":
    """
    Return the store of the finished run in *directory*; temporary files are made there or in *temporary_dir*.

    Raises:
        NoRun: there is none, or not all of it is scored
        DirectoryLockedError, DamagedStore, CannotWrite: as for every store
    """
    if not directory.is_dir():
        is_file = directory.exists()
        raise NoRun(str(directory), "a file, not a directory" if is_file else "there is no such directory")
    if (directory / MERGED).is_file():
        reason = "its tables were merged from the shards of a run, and there is no store that has all of it"
        raise NoRun(str(directory), f"{reason}. Plan the run with other options to have other tables")
    if not (directory / STORE).is_file():
        raise NoRun(str(directory), f"contains no run of this program: there is no {STORE}")
    with ExitStack() as undo:
        store = Store(directory, temporary_dir=temporary_dir)
        undo.callback(store.close)
        if not store.is_finished:
            reason = "not all of its run is scored. Repeat the command that began it"
            raise NoRun(str(directory), reason)
        undo.pop_all()
    return store


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
        temporary_dir: Path | None = None,
    ) -> None:
        """
        Open the store, or create a new one in a new or empty directory.

        With *repair*, recover what is intact of a damaged one; ``recovered`` says how much. Temporary
        files are made in *temporary_dir*, else in the directory.

        Raises:
            ForeignDirectoryError: the directory contains something else
            DirectoryLockedError: another process is using it
            LockHeldRemotely: another process is using it, on another machine, and may be dead
            DamagedStore: it cannot be read
        """
        with ExitStack() as undo:
            with writing_to(directory):
                self.directory = undo.enter_context(claim_directory(directory))
                self.lock = Lock(self.directory)
                undo.callback(self.lock.release)
                _remove_leftovers(self.directory)
                has_locks = self.lock.has_kernel_locks
            self._scratch = open_scratch(temporary_dir, self.directory, undo)
            self.recovered: Recovered | None = None
            if repair and not overwrite:
                self.recovered = repair_store(self.directory, has_locks, self.lock.check)
            try:
                self._open(overwrite, has_locks, busy_seconds)
            except (DamagedStore, ForeignDirectoryError):
                # What is damaged cannot be emptied; its header says that it is no other program's.
                if not (overwrite and is_marked(self.directory)):
                    raise
                _remove_run(self.directory)
                self._open(overwrite, has_locks, busy_seconds)
            undo.pop_all()

    @property
    def is_finished(self) -> bool:
        """Whether everything of the run is in the store."""
        return self.get_meta("finished") is not None

    def close(self) -> None:
        """Close the file and release the directory."""
        self._database.close()
        self.lock.release()
        self._scratch.close()
        self.directory.close()

    def check(self) -> None:
        """Check that directory and store are still ours: before anything is written or replaced."""
        self.lock.check()
        self._database.check()

    def bind_run(self, identity: Identity, paths: Sequence[str]) -> None:
        """
        Write which run this is, with all its inputs; or check that it is the one in the store.

        Inputs are compared by their content: if only their paths have changed, the new ones are stored. If
        they were corrected or added to, the store remains as it is until :meth:`rebind`.

        Raises:
            RunMismatchError: the store contains a different run
        """
        requested = json.loads(json.dumps(identity))
        known = self.get_meta("identity")
        if known is None and self.reader.window_count():
            raise self._database.damage("which run it is of is missing")
        if known is not None and (differences := list(describe_differences(known, requested))):
            if has_corrected_inputs(known, requested):
                return
            raise RunMismatchError(str(self.directory), differences)
        names = list(paths)
        if known == requested and names == self.get_meta("paths"):
            return
        self._set_meta(identity=requested, paths=names)

    def get_meta(self, key: str) -> Any:
        """Return what was stored under *key*, or None."""
        return get_meta(self._database, key)

    def set_meta(self, key: str, value: Any) -> None:
        """Store *value*, anything that JSON can hold, under *key*."""
        self._set_meta(**{key: value})

    def finish(self, reused: int | None = None, kinds: Sequence[str | None] = ()) -> None:
        """
        Mark the run as finished, with how much is in it.

        *reused* ORFs are of known embeddings; *kinds* are those of the records of each input, if known.

        Raises:
            DamagedStore: batches are missing
        """
        totals, is_complete = self.reader.add_up()
        if not is_complete:
            raise self._database.damage("batches are missing")
        self._set_meta(finished=replace(totals, reused=reused).to_json(), dropped=[], kinds=list(kinds))

    def finished_parts(self, window: int) -> set[tuple[int, str]]:
        """Return the number and the split path of every batch of *window* that is finished."""
        return {(batch.number, batch.part) for batch in self.reader.batches(window)}

    def rebind(
        self, identity: Identity, paths: Sequence[str], end: int, ends: Mapping[int, Sequence[FileRow]]
    ) -> None:
        """
        Make this the run of *identity* and *paths*, which is not finished; all or nothing.

        Keep the windows before number *end* with their batches, and drop all others. In each window of
        *ends*, which is one of the first, these files end.
        """
        values = {"identity": json.loads(json.dumps(identity)), "paths": list(paths)}
        values["dropped"] = [key for key in self._dropped() if key[0] < end]
        with self._transaction():
            self._database.execute("DELETE FROM batches WHERE window >= ?", end)
            self._database.execute("DELETE FROM windows WHERE number >= ?", end)
            for number, files in ends.items():
                self._set_file_ends(number, files)
            remove_meta(self._database, ENDING)
            set_meta(self._database, values)
        self._rows.forget_places()

    def embeddings(self, width: int) -> AbstractContextManager[EmbeddingRows]:
        """Open the embeddings of the run, each of *width* numbers; not all may be there."""
        return self._rows.embeddings(width)

    def dropped_parts(self, window: int) -> set[tuple[int, str]]:
        """Return the number and the split path of every batch of *window* that was dropped, and was split."""
        return {(number, part) for of_window, number, part in self._dropped() if of_window == window}

    def drop_batches(self, keys: Sequence[BatchKey]) -> None:
        """Drop batches, to be computed again as they were split: the run is not finished."""
        dropped = {*self._dropped(), *(key for key in keys if key[2])}
        with self._transaction():
            for key in keys:
                self._database.execute("DELETE FROM batches WHERE (window, number, part) = (?, ?, ?)", *key)
            set_meta(self._database, {"dropped": sorted(dropped)})
            remove_meta(self._database, ENDING)

    def add_window(self, window: Window) -> None:
        """Store the records of a window, before any of its batches."""
        row = WindowRow(
            number=window.number,
            first=window.first,
            orfs=len(window.origins),
            digest=window.digest,
            contigs=_contig_columns(window.contigs),
            ids=b"".join(b"%s\n" % row.id for row in window.contigs),
            files=tuple(map(file_end, window.files)),
        ).encode()
        # Those of a window that is lost were perhaps of another input.
        if self.reader.batches(window.number):
            raise self._database.damage("there are batches of no window")
        with self._transaction():
            self._database.execute(f"INSERT INTO windows {values_of(row)}", *row)

    def add_batch(self, done: "ScoredBatch") -> list[Failure]:
        """Store the scores of a batch and the failures of its ORFs, all or nothing; return the failures."""
        self.check()
        batch, scores = done.batch, _score_columns(done)
        known = b"" if done.embeddings is None else self._write_embeddings(done, done.embeddings)
        failed = [self._failed_orf(batch, row, *why) for row, why in sorted(done.failures.items())]
        row = BatchRow(
            window=batch.window,
            number=batch.number,
            part=batch.split_path,
            device=done.device,
            orfs=len(batch),
            tokens=batch.tokens,
            seconds=float(done.seconds),
            scored=len(scores),
            recomputed=done.recomputed,
            scores=scores.tobytes(),
            fingerprints=known,
            failures=tuple(failed),
        ).encode()
        with self._transaction():
            self._database.execute(f"INSERT INTO batches {values_of(row)}", *row)
        paths = self.reader.paths() if failed else []
        return [Failure(paths[one.file], Stage(one.stage), one.message) for one in failed]

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        self.check()
        with self._database.transaction(kind):
            yield

    def _dropped(self) -> list[BatchKey]:
        return list(map(tuple, self.get_meta("dropped") or []))

    def _set_meta(self, **values: Any) -> None:
        with self._transaction():
            set_meta(self._database, values)

    def _open(self, overwrite: bool, has_locks: bool, busy_seconds: float) -> None:
        with ExitStack() as undo:
            self._database = Database(self.directory, STORE, has_locks, busy_seconds)
            undo.callback(self._database.close)
            self._database.scratch = self._scratch
            self._rows = StoreRows(self._database)
            self.reader = RunReader(self._rows)
            with self._transaction("EXCLUSIVE"):
                _create_or_check(self._database, overwrite)
            undo.pop_all()

    def _set_file_ends(self, number: int, files: Sequence[FileRow]) -> None:
        window = self.reader.window(number)
        assert window is not None
        row = window._replace(files=tuple(map(file_end, files))).encode()
        self._database.execute(f"REPLACE INTO windows {values_of(row)}", *row)

    def _failed_orf(self, batch: Batch, row: int, stage: Stage, message: str) -> FailedOrf:
        contig, fragment, frame = batch.origins[row].tolist()
        file, name = self._rows.locate_contig(contig, batch.window)
        text = orf_id(name, fragment, frame) + b": " + message.encode()
        return FailedOrf(int(batch.orfs[row]), file, str(stage), os.fsdecode(text))

    def _write_embeddings(self, done: "ScoredBatch", rows: Rows) -> bytes:
        """
        Write the row of each ORF, on the disk before the batch counts as finished.

        Return the fingerprints of those that did not fail.
        """
        with writing_to(self.directory.path), self.embeddings(rows.shape[1]) as file:
            file.write(done.batch.orfs, rows)
        return fingerprints(np.delete(rows, list(done.failures), 0)).tobytes()


def _create_or_check(database: Database, overwrite: bool) -> None:
    """Create the tables, where there are none or with *overwrite*; else check that they are ours."""
    directory = database.directory
    is_ours = has_tables(database, overwrite)
    if is_ours and not overwrite:
        return
    outputs = [name for name in OUTPUT_FILES if directory.stat(name) and name != _LOG]
    if outputs and not overwrite:
        raise database.damage(f"it is empty, and there is {outputs[0]}")
    written = (get_meta(database, "written") if is_ours else None) or {}
    for name in database.tables():
        database.execute(f"DROP TABLE {name}")
    create_tables(database.connection)
    for name in OUTPUT_FILES if is_ours else ():
        directory.unlink(name)
    remove_merged(directory, written.get("files", ()))


def _remove_leftovers(directory: Directory) -> None:
    """Remove what a process left that was killed while it opened the store, or wrote a file."""
    directory.remove_leftovers()
    for name in directory.names():
        if name.startswith(OPENING):
            directory.unlink(name)


def _remove_run(directory: Directory) -> None:
    """Remove every file of a run; its journal first, which must not be taken for that of a new store."""
    for name in (*OUTPUT_FILES, f"{STORE}-journal", STORE):
        directory.unlink(name)


def file_end(file: FileRow) -> FileEnd:
    """Return what is stored of a file that ends in a window."""
    reason = None if file.failure is None else str(file.failure.reason)
    return FileEnd(file.number, file.contigs, reason)


def _contig_columns(rows: Sequence[ContigRow]) -> NDArray[np.void]:
    contigs = np.empty(len(rows), CONTIG)
    for name in CONTIG.fields or ():
        contigs[name] = [getattr(row, name) for row in rows]
    return contigs


def _score_columns(done: "ScoredBatch") -> NDArray[np.void]:
    """Return what is stored of each scored ORF, in columns."""
    batch = done.batch
    scores = np.empty(len(batch), SCORE)
    scores["orf"] = batch.orfs
    scores["contig"], scores["fragment"], scores["frame"] = batch.origins.T
    scores["others"], scores["virus"] = done.probabilities.T
    return np.delete(scores, list(done.failures))

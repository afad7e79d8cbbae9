"""
What is done: a SQLite file, a transaction per batch, the only thing that must survive a crash.

Every table of a run is written from it. It also says which run it belongs to, so that a directory
never mixes two: inputs, models and settings are compared before anything is reused.

The scores of a batch are one value, and so are the records of a window: they are written and read
in columns, since a row for each of a hundred million ORFs takes longer than to score them.

There is a rollback journal, not a write-ahead log, whose shared memory does not work on network
file systems; and every commit is on the disk, journal and directory too, before it counts. Where a
file system has no locks, SQLite does without: the directory has a lock of its own in any case.
"""

import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import (
    CannotWrite,
    DamagedStore,
    DirectoryLockedError,
    ForeignDirectoryError,
    RunMismatchError,
    Stage,
)
from virnuc_async.fileio import fsync_and_rename, open_nofollow, sync_directory
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.orfs import Frame
from virnuc_async.sequences.windows import ContigRow, FileRow, Window
from virnuc_async.text import plural

from .lock import LOCK, Lock
from .repair import Recovered, checksum, count_valid, is_valid, recover

STORE = "run.sqlite3"
DAMAGED = f"{STORE}.damaged"  # what a repair did not trust
FEATURES = "merged_features.partial"
OUTPUT_FILES = (
    "prediction_results.txt",
    "prediction_results_highestscore.csv",
    "contigs.tsv",
    "pairs.tsv",
    "failed_files.txt",
    "merged_features.pt",
    FEATURES,
    "summary.json",
    "report.html",
    "run.log",
    DAMAGED,
)

# Without padding, and little-endian on every machine.
SCORE = np.dtype("<i8, <i8, <i4, <i4, <f4, <f4")
SCORE.names = ("orf", "contig", "fragment", "frame", "others", "virus")
CONTIG = np.dtype("<i8, <i8, <i4, <i4")
CONTIG.names = ("number", "length", "file", "fragments")

FRAMES = tuple(frame.name.encode() for frame in Frame)
_MOST_NAMED = 3  # files in a message
_ELSEWHERE = "Choose a new or empty directory"
_BUSY_SECONDS = 5.0  # that SQLite waits for somebody who only looks
_HOW_TO_REPAIR = (
    "the same command with --repair keeps these and computes the rest again; with --overwrite it starts anew"
)

_WINDOWS = "SELECT * FROM windows WHERE number BETWEEN ? AND ? ORDER BY number"
_LAST = (1 << 63) - 1  # no window has a higher number

_APPLICATION = 0x56697250  # "VirP", in the file's header: the store is ours
_FORMAT = 3  # of the tables, also in the header
_TABLES = {
    "run": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
    # window: in which it ended
    "files": "number INTEGER PRIMARY KEY, path BLOB NOT NULL, contigs INTEGER, failed INTEGER, "
    "window INTEGER",
    # records: CONTIG, of those that begin in the window; ids: each with a line end behind it
    "windows": "number INTEGER PRIMARY KEY, orfs INTEGER NOT NULL, digest BLOB NOT NULL, "
    "contigs INTEGER NOT NULL, fragments INTEGER NOT NULL, records BLOB NOT NULL, ids BLOB NOT NULL, "
    "checksum INTEGER NOT NULL",
    # scores: SCORE, of the ORFs that did not fail; highest: the number of the last one of these
    "batches": "window INTEGER, number INTEGER, part TEXT, device TEXT NOT NULL, orfs INTEGER NOT NULL, "
    "tokens INTEGER NOT NULL, seconds REAL NOT NULL, scored INTEGER NOT NULL, highest INTEGER NOT NULL, "
    "scores BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (window, number, part)",
    # number and part: of the batch; none for a file, which fails in the window that it ends in
    "failures": "window INTEGER NOT NULL, number INTEGER, part TEXT, file INTEGER NOT NULL, orf INTEGER, "
    "stage TEXT NOT NULL, message BLOB NOT NULL",
}
_COUNTS = {
    "contigs": "SELECT TOTAL(contigs) FROM windows",
    "scores": "SELECT TOTAL(scored) FROM batches",
} | {table: f"SELECT COUNT(*) FROM {table}" for table in ("files", "windows", "batches", "failures")}


@dataclass(frozen=True, slots=True)
class Failure:
    """One line of ``failed_files.txt``."""

    path: str
    stage: Stage
    message: str


@dataclass(frozen=True, slots=True)
class FileLine:
    """An input; *contigs* is None until it was read, to its end or to where it broke."""

    path: str
    contigs: int | None
    failed: bool


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records of the input with all their scored ORFs, in columns and in input order."""

    contigs: NDArray[np.void]  # CONTIG
    ids: bytes  # of the contigs, a line each
    scores: NDArray[np.void]  # SCORE

    @property
    def rows(self) -> NDArray[np.int64]:
        """Which of the contigs each ORF is of."""
        first = self.contigs["number"][0] if self.ids else 0
        rows: NDArray[np.int64] = self.scores["contig"] - first
        return rows

    def names(self) -> list[str]:
        """Give the ids as Latin-1 text, whatever they are: it is faster than bytes, and sorted alike."""
        return self.ids.decode("latin-1").split("\n")[:-1]

    def before_last(self) -> tuple["Block", "Block"]:
        """Set the last record apart, which may go on in the next window."""
        at = self.ids.rfind(b"\n", 0, -1) + 1
        cut = np.searchsorted(self.scores["contig"], self.contigs["number"][-1])
        return (
            Block(self.contigs[:-1], self.ids[:at], self.scores[:cut]),
            Block(self.contigs[-1:], self.ids[at:], self.scores[cut:]),
        )

    def within(self, first: int, end: int) -> "Block":
        """Give the records numbered from *first* to before *end*, and what is here of their ORFs."""
        rows, orfs = (
            slice(*np.searchsorted(numbers, (first, end)))
            for numbers in (self.contigs["number"], self.scores["contig"])
        )
        begins = np.append(0, 1 + np.flatnonzero(np.frombuffer(self.ids, np.uint8) == ord("\n")))
        return Block(self.contigs[rows], self.ids[begins[rows.start] : begins[rows.stop]], self.scores[orfs])

    def is_sound(self) -> bool:
        """Whether each record and each ORF is there once, and each ORF is of one of the records."""
        numbers, orfs, rows = self.contigs["number"], self.scores["orf"], self.rows
        return (
            self.ids.count(b"\n") == len(numbers)
            and bool((np.diff(numbers) == 1).all())
            and bool((np.diff(orfs) > 0).all())
            and bool(((rows >= 0) & (rows < len(numbers))).all())
        )


class Store:
    """
    The store in *directory*, locked for this process; use from one thread at a time.

    Raises, from every method:
        CannotWrite: the disk is full, or the directory cannot be written
    """

    def __init__(self, directory: Path, overwrite: bool = False, repair: bool = False) -> None:
        """
        Open the store, or make a new one in a new or empty directory.

        With *repair*, what is whole of a damaged one is kept; ``kept`` says how much.

        Raises:
            ForeignDirectoryError: the directory holds something else
            DirectoryLockedError: another process has it
            LockHeldRemotely: another process has it, on another machine, and may be dead
            DamagedStore: it cannot be read
        """
        self.directory = directory
        self.kept: Recovered | None = None
        with ExitStack() as undo:
            with _write_failures(directory):
                _claim(directory)
                self.lock = Lock(directory)
                undo.callback(self.lock.release)
                self._locks = "" if self.lock.has_kernel_locks else "?nolock=1"
            if repair and not overwrite:
                self.kept = self._repair()
            self._db = self._connect(directory / STORE)
            undo.callback(self._db.close)
            self._open(overwrite)
            undo.pop_all()

    @property
    def is_finished(self) -> bool:
        """Whether everything of the run is in the store."""
        return bool(self.get_meta("finished"))

    def close(self) -> None:
        """Let go of the directory."""
        self._db.close()
        self.lock.release()

    def bind_run(self, identity: Mapping[str, Any], paths: Sequence[str]) -> None:
        """
        Say which run this is, with all its inputs; or check that it is the one in the store.

        Inputs are compared by their content: under other names they are the same, and are called by
        these from now on.

        Raises:
            RunMismatchError: it holds another one
        """
        asked = json.loads(json.dumps(identity))
        known = self.get_meta("identity")
        if known is not None and (differences := list(_differences(known, asked))):
            raise RunMismatchError(str(self.directory), differences)
        rows = [(number, os.fsencode(path)) for number, path in enumerate(paths)]
        if known == asked and rows == list(self._rows("SELECT number, path FROM files ORDER BY number")):
            return
        with self._transaction():
            rename = "ON CONFLICT (number) DO UPDATE SET path = excluded.path"
            self._db.executemany(f"INSERT INTO files (number, path) VALUES (?, ?) {rename}", rows)
            self._db.execute("INSERT OR REPLACE INTO run VALUES ('identity', ?)", (json.dumps(asked),))

    def get_meta(self, key: str) -> Any:
        """Give what was noted under *key*, or None."""
        row = next(self._rows("SELECT value FROM run WHERE key = ?", key), None)
        return row and json.loads(row[0])

    def set_meta(self, key: str, value: Any) -> None:
        """Keep *value*, anything that JSON can hold, under *key*."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", (key, json.dumps(value)))

    def finish(self) -> None:
        """
        Note that all of the run is here.

        Raises:
            DamagedStore: it is not
        """
        query = "SELECT (SELECT TOTAL(orfs) FROM windows) = (SELECT TOTAL(orfs) FROM batches)"
        if not next(self._rows(query))[0]:
            raise self._damage("batches are missing")
        self.set_meta("finished", True)

    def window(self, number: int) -> bytes | None:
        """Give the digest of a window that was read before, or None."""
        query = "SELECT digest FROM windows WHERE number = ?"
        row = next(self._rows(query, number), None)
        return row and bytes(row[0])

    def finished_parts(self, window: int) -> set[tuple[int, str]]:
        """Give the number and part of every batch of *window* that is done."""
        return set(self._rows("SELECT number, part FROM batches WHERE window = ?", window))

    def add_window(self, window: Window) -> None:
        """Keep what a window is made of, before any of its batches."""
        contigs = _contigs(window.contigs)
        facts = (len(window.origins), window.digest, len(contigs), int(contigs["fragments"].sum()))
        ids = b"".join(b"%s\n" % row.id for row in window.contigs)
        row = (window.number, *facts, contigs.tobytes(), ids)
        with self._transaction():
            for file in window.files:
                self._end_file(window.number, file)
            self._db.execute("INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, checksum(row)))

    def add_batch(self, done: ScoredBatch) -> list[Failure]:
        """Keep the scores of a batch, all or nothing; give the failures of its ORFs, which it keeps too."""
        batch, scores = done.batch, _scores(done)
        if done.embeddings is not None:
            self._write_embeddings(batch, done.embeddings)
        facts = (
            done.device,
            len(batch),
            batch.tokens,
            done.seconds,
            len(scores),
            int(scores["orf"].max(initial=-1)),
        )
        row = (batch.window, batch.number, batch.split_path, *facts, scores.tobytes())
        with self._transaction():
            failures = [self._add_failed_orf(batch, row, *why) for row, why in done.failures.items()]
            self._db.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, checksum(row))
            )
        return failures

    def failures(self) -> Iterator[Failure]:
        """Give every failure of the run, in the order of the input."""
        query = (
            "SELECT path, stage, message FROM failures JOIN files ON files.number = file ORDER BY file, orf"
        )
        for path, stage, message in self._rows(query):
            yield Failure(os.fsdecode(path), Stage(stage), os.fsdecode(message))

    def files(self) -> Iterator[FileLine]:
        """Give every input, in order."""
        for path, contigs, failed in self._rows("SELECT path, contigs, failed FROM files ORDER BY number"):
            yield FileLine(os.fsdecode(path), contigs, bool(failed))

    def ids(self, file: int) -> Iterator[list[bytes]]:
        """Give the id of every record of *file* that was read, a window at a time; no score is looked at."""
        windows, records = self._extent(file)
        with closing(self._sound(_WINDOWS, *windows)) as rows:
            for *_, contigs, ids, _ in rows:
                window = Block(np.frombuffer(contigs, CONTIG), ids, np.empty(0, SCORE))
                yield window.within(*records).ids.split(b"\n")[:-1]

    def blocks(self, file: int | None = None) -> Iterator[Block]:
        """
        Give every record that was read, with its scored ORFs, about a window at a time.

        Where a *file* is named, by its number, its records alone.
        """
        # A record may run through many windows: they are gathered until another one begins.
        parts: list[Block] = []
        with closing(self._windows() if file is None else self._windows_of(file)) as windows:
            for window in windows:
                parts.append(window)
                if window.ids:
                    whole, last = self._joined(parts).before_last()
                    parts = [last]
                    if whole.ids:
                        yield whole
        if parts and parts[0].ids:
            yield self._joined(parts)

    def fragments(self) -> int:
        """Give the number of fragments that all records were cut into."""
        return int(next(self._rows("SELECT TOTAL(fragments) FROM windows"))[0])

    def count(self, what: str) -> int:
        """Give the number of files, windows, contigs, batches, scores or failures."""
        return int(next(self._rows(_COUNTS[what]))[0])

    def device_totals(self) -> dict[str, tuple[int, int, int, float]]:
        """Give, for each device that took part: its batches, ORFs, tokens and busy seconds."""
        query = "SELECT device, COUNT(*), SUM(orfs), SUM(tokens), SUM(seconds) FROM batches GROUP BY device"
        return {device: tuple(sums) for device, *sums in self._rows(query)}

    def features_end(self) -> int:
        """Give the number of rows that the file of embeddings has at least."""
        return 1 + int(next(self._rows("SELECT IFNULL(MAX(highest), -1) FROM batches"))[0])

    def is_reproducible(self) -> bool:
        """Whether every batch was scored as it was packed: halves differ in their last digits."""
        return not any(self._rows("SELECT 1 FROM batches WHERE part <> '' LIMIT 1"))

    def _open(self, overwrite: bool) -> None:
        with self._failures():
            for setting in ("locking_mode=EXCLUSIVE", "journal_mode=DELETE", "synchronous=EXTRA"):
                self._db.execute(f"PRAGMA {setting}")
        with self._transaction("EXCLUSIVE"):
            tables = [name for (name,) in self._rows("SELECT name FROM sqlite_master WHERE type='table'")]
            if tables:
                _check_whose(self.directory, self._db, overwrite)
            if tables and not overwrite:
                return
            for name in tables:
                self._db.execute(f"DROP TABLE {name}")
            _make_tables(self._db)
            for name in OUTPUT_FILES if tables else ():
                (self.directory / name).unlink(missing_ok=True)

    def _end_file(self, window: int, file: FileRow) -> None:
        self._db.execute(
            "UPDATE files SET contigs = ?, failed = ?, window = ? WHERE number = ?",
            (file.contigs, file.failure is not None, window, file.number),
        )
        if file.failure is not None:
            self._add_failure(
                (window, None, None, file.number, None, Stage.INPUT, os.fsencode(file.failure.reason))
            )

    def _add_failed_orf(self, batch: Batch, row: int, stage: Stage, message: str) -> Failure:
        contig, fragment, frame = batch.origins[row].tolist()
        file, path, name = self._whose(contig, batch.window)
        text = orf_id(name, fragment, frame) + b": " + message.encode()
        self._add_failure(
            (batch.window, batch.number, batch.split_path, file, int(batch.orfs[row]), stage, text)
        )
        return Failure(os.fsdecode(path), stage, os.fsdecode(text))

    def _add_failure(self, row: tuple[Any, ...]) -> None:
        self._db.execute("INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _whose(self, contig: int, window: int) -> tuple[int, bytes, bytes]:
        """Give file, path and id of a record that begins in *window* or before."""
        query = "SELECT records, ids FROM windows WHERE contigs AND number <= ? ORDER BY number DESC"
        windows = ((np.frombuffer(records, CONTIG), ids) for records, ids in self._rows(query, window))
        contigs, ids = next(found for found in windows if found[0]["number"][0] <= contig)
        row = contig - int(contigs["number"][0])
        file = int(contigs["file"][row])
        ((path,),) = self._rows("SELECT path FROM files WHERE number = ?", file)
        return file, path, ids.split(b"\n")[row]

    def _extent(self, file: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Give the first and the last window of *file*; and its first record, and the one behind it."""
        # A file ends in the window with the end of its last record, or with the next record.
        query = (
            "SELECT (SELECT window FROM files WHERE number = ?1 - 1), window, "
            "(SELECT TOTAL(contigs) FROM files WHERE number < ?1), contigs FROM files WHERE number = ?1"
        )
        ((begin, end, before, count),) = self._rows(query, file)
        return (begin or 0, end), (int(before), int(before) + count)

    def _windows_of(self, file: int) -> Generator[Block, None, None]:
        """Give what is of *file* in each window that it is in."""
        windows, records = self._extent(file)
        with closing(self._windows(*windows)) as blocks:
            for block in blocks:
                yield block.within(*records)

    def _windows(self, first: int = 0, last: int = _LAST) -> Generator[Block, None, None]:
        """Give each window's scores, with the records that begin in it."""
        with closing(self._sound(_WINDOWS, first, last)) as windows:
            for number, *_, records, ids, _ in windows:
                batches = self._sound("SELECT * FROM batches WHERE window = ?", number)
                scores = np.frombuffer(b"".join(row[-2] for row in batches), SCORE)
                in_order = scores[np.argsort(scores["orf"])]
                yield Block(np.frombuffer(records, CONTIG), ids, in_order)

    def _sound(self, query: str, *values: Any) -> Generator[tuple[Any, ...], None, None]:
        with closing(self._rows(query, *values)) as rows:
            for row in rows:
                if not is_valid(row):
                    raise self._damage("a checksum is wrong")
                yield row

    def _joined(self, parts: Sequence[Block]) -> Block:
        """Put *parts* behind each other; see that nothing is missing between them."""
        block = Block(
            np.concatenate([part.contigs for part in parts]),
            b"".join([part.ids for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )
        if not block.is_sound():
            raise self._damage("records or ORFs are missing")
        return block

    def _write_embeddings(self, batch: Batch, rows: NDArray[np.float32]) -> None:
        """Write each row at its ORF's place, on disk before the batch counts as done."""
        with _write_failures(self.directory):
            file = open_nofollow(str(self.directory / FEATURES), os.O_RDWR | os.O_CREAT)
            try:
                for orf, row in zip(batch.orfs.tolist(), rows, strict=True):
                    os.pwrite(file, row.tobytes(), orf * row.nbytes)
                os.fsync(file)
            finally:
                os.close(file)

    def _rows(self, query: str, *values: Any) -> Generator[Any, None, None]:
        with self._failures():
            cursor = self._db.execute(query, values)
            try:
                for row in cursor:  # noqa: UP028 (yielded from, it would be closed before this sees it)
                    yield row
            finally:
                # A query that is open keeps SQLite's lock, also when the store has been closed.
                with suppress(sqlite3.ProgrammingError):
                    cursor.close()

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        self.lock.check()
        with self._failures():
            self._db.execute(f"BEGIN {kind}")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        with _write_failures(self.directory):
            try:
                yield
            except sqlite3.DatabaseError as error:
                if _code(error) == sqlite3.SQLITE_CORRUPT:
                    raise self._damage(str(error)) from error
                raise

    def _damage(self, what: str) -> DamagedStore:
        return DamagedStore(
            str(self.directory),
            f"its {STORE} is damaged ({what}). {plural(count_valid(self._db), 'finished batch', 'es')} "
            f"in it can be saved: {_HOW_TO_REPAIR}",
        )

    def _connect(self, path: Path) -> sqlite3.Connection:
        # SQLite would make a file that a group cannot write, whatever the umask says.
        with _write_failures(self.directory):
            os.close(open_nofollow(str(path), os.O_CREAT | os.O_WRONLY))
        return sqlite3.connect(
            f"file:{quote(os.fsencode(path.absolute()))}{self._locks}",
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            uri=True,
        )

    def _repair(self) -> Recovered | None:
        """Put a sound store with all that is whole of this one in its place; nothing is changed before."""
        path, new = self.directory / STORE, self.directory / f".{STORE}.repaired"
        if not path.is_file():
            return None
        new.unlink(missing_ok=True)
        with _write_failures(self.directory):
            with closing(self._connect(path)) as damaged, closing(self._connect(new)) as repaired:
                _check_whose(self.directory, damaged, overwrite=False)
                repaired.execute("BEGIN")
                _make_tables(repaired)
                kept = recover(damaged, repaired)
                repaired.execute("COMMIT")
            if kept is None:
                new.unlink()
                reason = f"nothing in its {STORE} can be saved. {_ELSEWHERE}, or --overwrite to start anew"
                raise DamagedStore(str(self.directory), reason)
            (self.directory / DAMAGED).unlink(missing_ok=True)
            shutil.copyfile(path, self.directory / DAMAGED)
            fsync_and_rename(new, path)
        return kept


def orf_id(contig: bytes, fragment: int, frame: int) -> bytes:
    """Give an ORF's published id: contig, fragment, frame."""
    return b"%s_chunk_%d%s" % (contig, fragment, FRAMES[frame])


def _check_whose(directory: Path, db: sqlite3.Connection, overwrite: bool) -> None:
    ((kind,),) = db.execute("PRAGMA application_id")
    ((form,),) = db.execute("PRAGMA user_version")
    if kind != _APPLICATION:
        reason = f"its {STORE} is not a run of this program. {_ELSEWHERE}"
    elif form != _FORMAT and not overwrite:
        reason = (
            f"its {STORE} was made by another version of this program. {_ELSEWHERE}, "
            "or --overwrite to start anew"
        )
    else:
        return
    raise ForeignDirectoryError(str(directory), reason)


def _make_tables(db: sqlite3.Connection) -> None:
    for name, columns in _TABLES.items():
        db.execute(f"CREATE TABLE {name} ({columns})")
    db.execute(f"PRAGMA application_id={_APPLICATION}")
    db.execute(f"PRAGMA user_version={_FORMAT}")


def _contigs(rows: Sequence[ContigRow]) -> NDArray[np.void]:
    contigs = np.empty(len(rows), CONTIG)
    for name in CONTIG.fields or ():
        contigs[name] = [getattr(row, name) for row in rows]
    return contigs


def _scores(done: ScoredBatch) -> NDArray[np.void]:
    """Put what is kept of each scored ORF into columns."""
    batch = done.batch
    scores = np.empty(len(batch), SCORE)
    scores["orf"] = batch.orfs
    scores["contig"], scores["fragment"], scores["frame"] = batch.origins.T
    scores["others"], scores["virus"] = done.probabilities.T
    return np.delete(scores, list(done.failures))


def _claim(directory: Path) -> None:
    """See that *directory* has a store of its own, or is new; make it then."""
    store = directory / STORE
    if store.is_symlink():
        raise ForeignDirectoryError(str(directory), f"its {STORE} is a link to somewhere else. {_ELSEWHERE}")
    if not store.is_file():
        _see_that_it_is_new(directory)


def _see_that_it_is_new(directory: Path) -> None:
    """Make *directory*, or see that it is empty: nothing without a store in it is known to be ours."""
    if directory.exists() and not directory.is_dir():
        raise ForeignDirectoryError(str(directory), "is a file, not a directory")
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_directory(place.parent)
    # A process that was killed in its first moments left its lock and no more.
    names = (path.name for path in directory.iterdir())
    if strangers := sorted(name for name in names if not name.startswith(LOCK)):
        reason = f"holds {strangers[0]!r} and no run of this program. {_ELSEWHERE}"
        raise ForeignDirectoryError(str(directory), reason)


def _differences(known: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(known.keys() | asked.keys()):
        then, now = known.get(key), asked.get(key)
        if then == now:
            continue
        if isinstance(then, list) and isinstance(now, list):
            if [facts for _, *facts in then] == [facts for _, *facts in now]:
                continue  # the same under other names
            yield f"other {key}: {_other_files(dict(_keyed(then)), dict(_keyed(now)))}"
        else:
            yield f"{key} was {then}, is {now} now"


def _keyed(files: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Give each file's path with its other facts; one that is named twice counts twice."""
    seen: Counter[str] = Counter()
    for path, *facts in files:
        seen[path] += 1
        yield (path if seen[path] == 1 else f"{path} once more"), facts


def _other_files(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    words = [f"{path} is new" for path in now if path not in then]
    words += [f"{path} was there" for path in then if path not in now]
    changed = [path for path in now if path in then and then[path] != now[path]]
    words += [f"{path} {'has changed' if any(now[path]) else 'cannot be read now'}" for path in changed]
    shown = ", ".join(words[:_MOST_NAMED]) or "the same in another order"
    return shown + (f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else "")


_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_STRANGE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


@contextmanager
def _write_failures(directory: Path) -> Iterator[None]:
    """Turn what SQLite and the operating system raise into our own failures."""
    try:
        yield
    except sqlite3.Error as error:
        code = _code(error)
        if code in _BUSY:
            raise DirectoryLockedError(
                str(directory),
                f"another program has {STORE} open, to look at it or to copy it. Wait for it to end",
            ) from error
        if code in _STRANGE:
            reason = f"its {STORE} is damaged, or is something else. {_ELSEWHERE}"
            raise ForeignDirectoryError(str(directory), reason) from error
        if code == sqlite3.SQLITE_ERROR:
            raise  # a bug of ours
        raise CannotWrite(str(directory), f"cannot write {STORE}: {error}") from error
    except OSError as error:
        raise CannotWrite(str(directory), error.strerror or str(error)) from error

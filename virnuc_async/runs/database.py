"""
The SQLite file of a run: its tables, its connection, and its errors as ours.

There is a rollback journal, not a write-ahead log, whose shared memory does not work on network
file systems; and every commit is on the disk, journal and directory too, before it counts. Where a
file system has no locks, SQLite does without: the directory has a lock of its own in any case.

SQLite opens files by path only, also its journal, and also later; and a directory can be renamed, and
another run begin under its name, at any moment. So a connection opens the file under a name that
exists in this one directory, opens the journal at once, and keeps both open: no path is used again.

Nothing that is read is trusted: the tables must be exactly ours, and each row has a checksum.
"""

import os
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

from virnuc_async.errors import (
    CannotWrite,
    DamagedStore,
    DirectoryLockedError,
    ForeignDirectoryError,
    OutputError,
)
from virnuc_async.fileio import USE_ANOTHER_DIRECTORY, Directory, writing_to
from virnuc_async.text import plural

from .output_directory import OPENING, STORE
from .rows import BatchRow, InvalidRow, Row

BUSY_SECONDS = 5.0  # how long SQLite waits for another program that reads the file

_MAX_MISSING = 10_000  # consecutive row numbers: after so many, there are no more rows
_APPLICATION = 0x56697250  # "VirP", in the header of the file
_SQLITE, _MARK = b"SQLite format 3\0", slice(68, 72)  # where the header says what the file is
_FORMAT = 6  # of the tables, also in the header
JOURNAL = "-journal"  # that SQLite adds to the name of a file
_HEADER_BYTES, _MARK_BYTES = 28, 8  # of a journal, and of its start, which are zeros if it is not needed
_TABLES = {
    # Without an index, which could be damaged by itself: there are only a few rows.
    "run": "key TEXT NOT NULL, value TEXT NOT NULL, checksum INTEGER NOT NULL",
    # records: CONTIG, of those that begin in the window; ids: each followed by a line end; files: those
    # that end in it, as a list in JSON of FileEnd
    "windows": "number INTEGER PRIMARY KEY, first INTEGER NOT NULL, orfs INTEGER NOT NULL, "
    "contigs INTEGER NOT NULL, fragments INTEGER NOT NULL, files TEXT NOT NULL, digest BLOB NOT NULL, "
    "records BLOB NOT NULL, ids BLOB NOT NULL, checksum INTEGER NOT NULL",
    # scores: SCORE, of the ORFs that did not fail; failures: the others, as a list in JSON of FailedOrf;
    # recomputed: how many of all were computed again in FP32
    "batches": "window INTEGER NOT NULL, number INTEGER NOT NULL, part TEXT NOT NULL, device TEXT NOT NULL, "
    "orfs INTEGER NOT NULL, tokens INTEGER NOT NULL, seconds REAL NOT NULL, scored INTEGER NOT NULL, "
    "recomputed INTEGER NOT NULL, "
    "failures TEXT NOT NULL, scores BLOB NOT NULL, fingerprints BLOB NOT NULL, checksum INTEGER NOT NULL, "
    "UNIQUE (window, number, part)",
}
# Everything in the schema of a store, in any order.
_SCHEMA = {("table", name, name, f"CREATE TABLE {name} ({columns})") for name, columns in _TABLES.items()} | {
    ("index", "sqlite_autoindex_batches_1", "batches", None)
}

_NO_ROW = 1 << 63  # no row has such a number
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_NOT_A_DATABASE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
# What SQLite says of a damaged file, once it has been opened; and before.
_DAMAGE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_FORMAT,
)
_SCHEMA_DAMAGE = (*_DAMAGE, sqlite3.SQLITE_ERROR)
_UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)  # the latter for damaged names of columns
_NOT_TEXT = "text in it is not UTF-8"

# Of a store; if the header says that it has another kind of vacuum, SQLite would write into pages of ours.
_HEADER = {"application_id": _APPLICATION, "user_version": _FORMAT, "auto_vacuum": 0}

_Decoded = TypeVar("_Decoded")


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables of a run, and mark the file as ours."""
    for name, columns in _TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({columns})")
    connection.execute(f"PRAGMA application_id={_APPLICATION}")
    connection.execute(f"PRAGMA user_version={_FORMAT}")


def values_of(row: Row) -> str:
    """Return the part of a statement that has a place for each value of *row*."""
    return f"VALUES ({', '.join('?' * len(row))})"


def has_tables(database: "Database", overwrite: bool = False) -> bool:
    """
    Return whether a database has any table; check that it is ours and, unless *overwrite*, of this version.

    Raises:
        ForeignDirectoryError: it is not
        DamagedStore: it is ours, but its header or its tables are not as they must be
    """
    schema, header = database.schema(), database.header()
    is_ours = header["application_id"] == _APPLICATION
    if not (schema or is_ours) and header["page_count"] <= 1:
        return False
    is_exact = schema == _SCHEMA
    if not (is_ours or is_exact):
        reason = f"its {STORE} is not a run of this program. {USE_ANOTHER_DIRECTORY}"
        raise ForeignDirectoryError(str(database.directory), reason)
    if overwrite:
        return True
    if not is_exact and header["user_version"] != _FORMAT:
        reason = f"its {STORE} was made by another version of this program. {USE_ANOTHER_DIRECTORY}"
        raise ForeignDirectoryError(str(database.directory), f"{reason}, or --overwrite")
    if not is_exact or header | _HEADER != header:
        raise database.damage("its header or its tables have changed")
    return True


def is_marked(directory: Directory) -> bool:
    """Return whether the header of a store, which may be damaged elsewhere, says that it is one."""
    with directory.open(STORE) as file:
        header = file.read(_MARK.stop)
    return header.startswith(_SQLITE) and header[_MARK] == _APPLICATION.to_bytes(4, "big")


def readable_rows(connection: sqlite3.Connection, table: str) -> Iterator[Row]:
    """
    Yield each row of a possibly damaged table that can be read, without any other index than row numbers.

    A row may be yielded twice.
    """
    last, first = -1, _NO_ROW
    query = f"SELECT rowid, * FROM {table} ORDER BY rowid"
    try:
        for number, *row in connection.execute(query):
            last = number
            yield tuple(row)
    except _UNREADABLE:
        pass
    else:
        return
    with suppress(*_UNREADABLE):
        for first, *row in connection.execute(f"{query} DESC"):
            if first <= last:
                return
            yield tuple(row)
    # Between two damaged pages, one by one: a page that cannot be read costs its own rows and no others.
    missing = 0
    for number in range(last + 1, first):
        found = _read_row(connection, f"SELECT * FROM {table} WHERE rowid = ?", number)
        if found is not None:
            yield found
        missing = missing + 1 if found is None else 0
        if missing > _MAX_MISSING:
            return


def _read_row(connection: sqlite3.Connection, query: str, number: int) -> Row | None:
    try:
        row: Row | None = connection.execute(query, (number,)).fetchone()
    except _UNREADABLE:
        return None
    return row


class Database:
    """
    A SQLite file of *directory*, created if it does not exist; use from one thread at a time.

    Nobody else can open it before it is closed. *has_locks* says whether its file system has locks. If it
    is *to_repair*, it is only read, and may be damaged.

    Raises, from every method and the constructor:
        CannotWrite: the disk is full, or the directory cannot be written
        DirectoryLockedError: another program has the file open
        ForeignDirectoryError: the file is not a database
        DamagedStore: a part of the file cannot be read
    """

    def __init__(
        self,
        directory: Directory,
        name: str = STORE,
        has_locks: bool = True,
        busy_seconds: float = BUSY_SECONDS,
        to_repair: bool = False,
    ) -> None:
        self.directory = directory
        self.scratch = directory  # where temporary files are made; whoever opens the file may set another
        self._name = name
        self._journal = name + JOURNAL
        with ExitStack() as undo, translated_errors(directory):
            # SQLite would create files that the group cannot write, whatever the umask is.
            with writing_to(directory.path, f"cannot write {name}"):
                self._file = directory.create(name)
                if not self._file.st_size:
                    # Of a process that was killed before its first commit: SQLite would not take it.
                    directory.unlink(self._journal)
                directory.create(self._journal)
            undo.callback(self._remove_journal)
            with _unique_name(directory, name) as opened:
                self.connection = sqlite3.connect(
                    f"file:{quote(os.fsencode(opened))}?mode=rw{'' if has_locks else '&nolock=1'}",
                    timeout=busy_seconds,
                    isolation_level=None,
                    check_same_thread=False,
                    uri=True,
                )
                undo.callback(self.connection.close)
                with suppress(*[DamagedStore] * to_repair), self.translated_errors(_SCHEMA_DAMAGE):
                    self._take_exclusively()
            undo.pop_all()

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
        self._remove_journal()

    def check(self) -> None:
        """
        Check that the file has still its name.

        Raises:
            DamagedStore: somebody has deleted or replaced it
        """
        if self.directory.has(self._name, self._file):
            return
        happened = "deleted" if self.directory.stat(self._name) is None else "replaced by another file"
        raise DamagedStore(
            str(self.directory),
            f"its {self._name} was {happened} during the run, and what was computed is lost. "
            "Choose another directory to start again, or remove this one first",
        )

    def _take_exclusively(self) -> None:
        # PERSIST: at the end of a transaction the journal is marked as empty, and stays open. With
        # DELETE, closing would remove whatever has the name of the journal by then.
        for setting in ("locking_mode=EXCLUSIVE", "journal_mode=PERSIST", "synchronous=EXTRA"):
            self.execute(f"PRAGMA {setting}")
        before = self._journal_header()
        self.execute("BEGIN EXCLUSIVE")
        try:
            # A change opens the journal; taken back, it leaves the file as it was.
            self.execute(f"PRAGMA user_version={_FORMAT}")
            # SQLite writes a random number into the header.
            is_own = self._journal_header() != before
        finally:
            if self.connection.in_transaction:
                self.execute("ROLLBACK")
        if not is_own:
            raise _renamed_error(self.directory)

    def _journal_header(self) -> bytes:
        with self.directory.open(self._journal) as file:
            return file.read(_HEADER_BYTES)

    def _remove_journal(self) -> None:
        """Remove the journal, unless it is needed to take back what was not finished."""
        with suppress(OSError):
            if not needs_journal(self.directory, self._name):
                self.directory.unlink(self._journal)

    def execute(self, query: str, *values: Any) -> None:
        """Execute a statement; within :meth:`transaction`, which translates its errors."""
        self.connection.execute(query, values)

    def rows(self, query: str, *values: Any) -> Generator[Any, None, None]:
        """Yield each row that *query* finds."""
        with self.translated_errors():
            cursor = self.connection.execute(query, values)
            try:
                for row in cursor:  # noqa: UP028 (yielded from, it would be closed before this sees it)
                    yield row
            finally:
                # A query that is open keeps SQLite's lock, also when the store has been closed.
                with suppress(sqlite3.ProgrammingError):
                    cursor.close()

    def decoded(
        self, decode: Callable[[Row], _Decoded], query: str, *values: Any
    ) -> Generator[_Decoded, None, None]:
        """Yield what *decode* makes of each row that *query* finds; raises DamagedStore for InvalidRow."""
        with closing(self.rows(query, *values)) as rows:
            for row in rows:
                try:
                    found = decode(row)
                except InvalidRow as error:
                    raise self.damage(str(error)) from error
                yield found

    def schema(self) -> set[Row]:
        """Return type, name, table and definition of everything in the database."""
        with self.translated_errors(_SCHEMA_DAMAGE):
            return {*self.connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")}

    def tables(self) -> list[str]:
        """Return the names of all tables."""
        return [name for kind, name, *_ in self.schema() if kind == "table"]

    def header(self) -> dict[str, int]:
        """Return what the header of the file says."""
        with self.translated_errors(_SCHEMA_DAMAGE):
            queries = ((name, self.connection.execute(f"PRAGMA {name}")) for name in (*_HEADER, "page_count"))
            return {name: found.fetchone()[0] for name, found in queries}

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        """Commit what is executed inside, or nothing of it if it raises."""
        with self.translated_errors():
            self.connection.execute(f"BEGIN {kind}")
            try:
                yield
                self.connection.execute("COMMIT")
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")

    @contextmanager
    def translated_errors(self, damage: tuple[int, ...] = _DAMAGE) -> Iterator[None]:
        """Turn errors of SQLite and of the operating system into ours: *damage* into DamagedStore."""
        with translated_errors(self.directory):
            try:
                yield
            except UnicodeDecodeError as error:  # in what SQLite says of damaged tables
                raise self.damage(_NOT_TEXT) from error
            except sqlite3.DatabaseError as error:
                if _code(error) in damage:
                    has_code = hasattr(error, "sqlite_errorcode")
                    raise self.damage(str(error) if has_code else _NOT_TEXT) from error
                raise

    def damage(self, what: str) -> DamagedStore:
        """Return the error to raise; it says how much a repair would keep."""
        batches = {row[:3] for row in readable_rows(self.connection, "batches") if _is_valid(row)}
        return DamagedStore(
            str(self.directory),
            f"its {STORE} is damaged ({what}). {plural(len(batches), 'finished batch', 'es')} in it can be "
            "recovered: use --repair to keep these and compute the rest again, or --overwrite to start over",
        )


def needs_journal(directory: Directory, name: str = STORE) -> bool:
    """Return whether what was not finished must be taken back with the journal of the file *name*."""
    if directory.stat(name + JOURNAL) is None:
        return False
    with directory.open(name + JOURNAL) as file:
        return any(file.read(_MARK_BYTES))


@contextmanager
def _unique_name(directory: Directory, name: str) -> Iterator[Path]:
    """
    Yield a path that leads to the file *name* of *directory*, or nowhere: never to that of another run.

    Its journal is that of the file.
    """
    own = f"{OPENING}{uuid4().hex}"
    try:
        directory.link(name + JOURNAL, own + JOURNAL)
        directory.link(name, own)
    except OSError:
        directory.unlink(own + JOURNAL)
        # Without links there is a moment, between one look at the directory and the next, in which
        # another run may get its name.
        own = name
    at = directory.path
    try:
        yield at.absolute() / own
    except (sqlite3.Error, OutputError) as error:
        if directory.is_at(at):
            raise
        raise _renamed_error(directory) from error
    finally:
        if own != name:
            for file in (own, own + JOURNAL):
                directory.unlink(file)
                # Created there if the directory was renamed in between.
                with suppress(OSError):
                    (at / file).unlink()


def _renamed_error(directory: Directory) -> CannotWrite:
    reason = "was renamed or removed while it was opened. Run the same command again, with its name of now"
    return CannotWrite(str(directory), reason)


def _is_valid(row: Row) -> bool:
    try:
        BatchRow.decode(row)
    except InvalidRow:
        return False
    return True


def _code(error: sqlite3.Error) -> int:
    # Without a code: text that is no UTF-8.
    without = sqlite3.SQLITE_CORRUPT if type(error) is sqlite3.OperationalError else sqlite3.SQLITE_ERROR
    return int(getattr(error, "sqlite_errorcode", without)) & 0xFF


@contextmanager
def translated_errors(directory: Directory) -> Iterator[None]:
    """Turn errors of SQLite and of the operating system into ours, all about the store of *directory*."""
    try:
        with writing_to(directory.path):
            yield
    except sqlite3.Error as error:
        code = _code(error)
        if code in _BUSY:
            reason = f"another program has {STORE} open, to read or to copy it. Wait for it to end"
            raise DirectoryLockedError(str(directory), reason) from error
        if code in _NOT_A_DATABASE:
            reason = f"its {STORE} is damaged, or is something else. {USE_ANOTHER_DIRECTORY}"
            raise ForeignDirectoryError(str(directory), reason) from error
        if code == sqlite3.SQLITE_ERROR:
            raise  # a bug of ours
        raise CannotWrite(str(directory), f"cannot write {STORE}: {error}") from error

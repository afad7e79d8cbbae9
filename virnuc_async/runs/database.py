"""
The SQLite file of a run: its tables, its checksums, its connection, and its errors as ours.

There is a rollback journal, not a write-ahead log, whose shared memory does not work on network
file systems; and every commit is on the disk, journal and directory too, before it counts. Where a
file system has no locks, SQLite does without: the directory has a lock of its own in any case.

Each window and each batch has a checksum of its row, which is verified whenever it is read.
"""

import os
import sqlite3
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from virnuc_async.errors import CannotWrite, DamagedStore, DirectoryLockedError, ForeignDirectoryError
from virnuc_async.fileio import USE_ANOTHER_DIRECTORY, open_nofollow, writing_to
from virnuc_async.text import plural

from .output_directory import STORE

Row = tuple[Any, ...]

BUSY_SECONDS = 5.0  # how long SQLite waits for another program that reads the file

_MAX_MISSING = 10_000  # consecutive row numbers: after so many, there are no more rows
_APPLICATION = 0x56697250  # "VirP", in the header of the file
_FORMAT = 3  # of the tables, also in the header
_TABLES = {
    "run": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
    # window: in which it ended
    "files": "number INTEGER PRIMARY KEY, path BLOB NOT NULL, contigs INTEGER, failed INTEGER, "
    "window INTEGER",
    # records: CONTIG, of those that begin in the window; ids: each followed by a line end
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


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables of a run, and mark the file as ours."""
    for name, columns in _TABLES.items():
        connection.execute(f"CREATE TABLE {name} ({columns})")
    connection.execute(f"PRAGMA application_id={_APPLICATION}")
    connection.execute(f"PRAGMA user_version={_FORMAT}")


def check_format(directory: Path, connection: sqlite3.Connection, overwrite: bool = False) -> None:
    """
    Check that a database is ours and, unless it will be overwritten, of this version.

    Raises:
        ForeignDirectoryError: it is not
    """
    ((application,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    if application != _APPLICATION:
        reason = f"its {STORE} is not a run of this program. {USE_ANOTHER_DIRECTORY}"
        raise ForeignDirectoryError(str(directory), reason)
    if version != _FORMAT and not overwrite:
        reason = f"its {STORE} was made by another version of this program. {USE_ANOTHER_DIRECTORY}"
        raise ForeignDirectoryError(str(directory), f"{reason}, or --overwrite")


def checksum(row: Iterable[Any]) -> int:
    """Return the CRC-32 of a row's values; the length of each value counts too."""
    total = 0
    for value in row:
        data = value if isinstance(value, bytes) else repr(value).encode()
        total = zlib.crc32(data, zlib.crc32(b"%d:" % len(data), total))
    return total


def is_valid(row: Sequence[Any]) -> bool:
    """Whether the last value of *row* is the checksum of the others."""
    return bool(row[-1] == checksum(row[:-1]))


def readable_rows(connection: sqlite3.Connection, table: str) -> Iterator[Row]:
    """Yield each row of a possibly damaged table that can be read, by its row number and no other index."""
    number = missing = 0
    while missing < _MAX_MISSING:
        row = _read_row(connection, f"SELECT * FROM {table} WHERE rowid = ?", number)
        if row is not None:
            yield row
        missing = missing + 1 if row is None else 0
        number += 1


def _read_row(connection: sqlite3.Connection, query: str, number: int) -> Row | None:
    try:
        row: Row | None = connection.execute(query, (number,)).fetchone()
    except sqlite3.DatabaseError:
        return None
    return row


class Database:
    """
    The SQLite file at *path*, created if it does not exist; use from one thread at a time.

    *has_locks* says whether its file system has locks.

    Raises, from every method:
        CannotWrite: the disk is full, or the directory cannot be written
        DirectoryLockedError: another program has the file open
        ForeignDirectoryError: the file is not a database
        DamagedStore: a part of the file cannot be read
    """

    def __init__(self, path: Path, has_locks: bool = True, busy_seconds: float = BUSY_SECONDS) -> None:
        self.directory = path.parent
        # SQLite would create a file that the group cannot write, whatever the umask is.
        with writing_to(self.directory):
            os.close(open_nofollow(str(path), os.O_CREAT | os.O_WRONLY))
        self.connection = sqlite3.connect(
            f"file:{quote(os.fsencode(path.absolute()))}{'' if has_locks else '?nolock=1'}",
            timeout=busy_seconds,
            isolation_level=None,
            check_same_thread=False,
            uri=True,
        )

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

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

    def valid_rows(self, query: str, *values: Any) -> Generator[Row, None, None]:
        """Yield each row that *query* finds, and whose checksum is right; raises DamagedStore at another."""
        with closing(self.rows(query, *values)) as rows:
            for row in rows:
                if not is_valid(row):
                    raise self.damage("a checksum is wrong")
                yield row

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
    def translated_errors(self) -> Iterator[None]:
        """Turn errors of SQLite and of the operating system into ours."""
        with translated_errors(self.directory):
            try:
                yield
            except sqlite3.DatabaseError as error:
                if _code(error) == sqlite3.SQLITE_CORRUPT:
                    raise self.damage(str(error)) from error
                raise

    def damage(self, what: str) -> DamagedStore:
        """Return the error to raise; it says how much a repair would keep."""
        batches = sum(map(is_valid, readable_rows(self.connection, "batches")))
        return DamagedStore(
            str(self.directory),
            f"its {STORE} is damaged ({what}). {plural(batches, 'finished batch', 'es')} in it can be "
            "recovered: use --repair to keep these and compute the rest again, or --overwrite to start over",
        )


_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_NOT_A_DATABASE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


@contextmanager
def translated_errors(directory: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the operating system into ours, all about the store of *directory*."""
    try:
        with writing_to(directory):
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

"""
Recover from a damaged store what is still intact.

Each window and each batch has a checksum of its row. Rows are read one by one, by their numbers in
the file, so that a page that cannot be read costs the rows on it and no others; a row whose checksum
is wrong is dropped as well. What was dropped is computed again.
"""

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from virnuc_async.errors import DamagedStore
from virnuc_async.fileio import USE_ANOTHER_DIRECTORY, fsync_and_rename

from .database import Database, Row, check_format, create_tables, is_valid, readable_rows, translated_errors
from .output_directory import DAMAGED, STORE

_Key = tuple[Any, ...]  # of a batch: window, number, part; of a window: its number and twice None


class Recovered(NamedTuple):
    """How many rows were intact and are kept."""

    windows: int
    batches: int


def repair_store(directory: Path, has_locks: bool = True) -> Recovered | None:
    """
    Replace the store in *directory* by a new one with all that is intact, and keep a copy of the old one.

    Returns None if there is no store.

    Raises:
        DamagedStore: nothing can be recovered; the directory is as it was
        ForeignDirectoryError: the store is not ours
        CannotWrite: the disk is full, or the directory cannot be written
    """
    path, new = directory / STORE, directory / f".{STORE}.repaired"
    if not path.is_file():
        return None
    with translated_errors(directory):
        new.unlink(missing_ok=True)
        recovered = _recover_into(new, path, has_locks)
        if recovered is None:
            new.unlink()
            reason = f"nothing in its {STORE} can be recovered. {USE_ANOTHER_DIRECTORY}, or --overwrite"
            raise DamagedStore(str(directory), reason)
        (directory / DAMAGED).unlink(missing_ok=True)
        shutil.copyfile(path, directory / DAMAGED)
        fsync_and_rename(new, path)
    return recovered


def _recover_into(new: Path, path: Path, has_locks: bool) -> Recovered | None:
    with closing(Database(path, has_locks)) as damaged, closing(Database(new, has_locks)) as repaired:
        check_format(path.parent, damaged.connection)
        repaired.connection.execute("BEGIN")
        create_tables(repaired.connection)
        recovered = recover(damaged.connection, repaired.connection)
        repaired.connection.execute("COMMIT")
    return recovered


def recover(damaged: sqlite3.Connection, new: sqlite3.Connection) -> Recovered | None:
    """
    Copy all that is intact into *new*, which has the same tables and no rows.

    Returns None, and copies nothing, if the identity of the run is lost.
    """
    identity = _read_identity(damaged)
    if identity is None:
        return None
    new.execute("INSERT INTO run VALUES ('identity', ?)", (json.dumps(identity),))
    windows: set[_Key] = set()
    for row in filter(is_valid, readable_rows(damaged, "windows")):
        windows.add((row[0], None, None))
        _insert(new, "windows", row)
    batches: set[_Key] = set()
    for row in _valid_batches(damaged, windows):
        batches.add(row[:3])
        _insert(new, "batches", row)
    for row in readable_rows(damaged, "failures"):
        if row[:3] in windows or row[:3] in batches:
            _insert(new, "failures", row)
    for row in _files(damaged, identity, windows):
        _insert(new, "files", row)
    return Recovered(len(windows), len(batches))


def _read_identity(damaged: sqlite3.Connection) -> dict[str, Any] | None:
    for key, value in readable_rows(damaged, "run"):
        if key == "identity":
            identity = json.loads(value)
            return identity if isinstance(identity, dict) else None
    return None


def _valid_batches(damaged: sqlite3.Connection, windows: set[_Key]) -> Iterator[Row]:
    """Yield the batches of *windows* that are intact, and whose failed ORFs are all known as well."""
    failed = Counter(row[:3] for row in readable_rows(damaged, "failures"))
    for row in filter(is_valid, readable_rows(damaged, "batches")):
        orfs, scored = row[4], row[7]
        if (row[0], None, None) in windows and failed[row[:3]] == orfs - scored:
            yield row


def _files(damaged: sqlite3.Connection, identity: dict[str, Any], windows: set[_Key]) -> Iterator[Row]:
    """Yield a row for each input, with what was found in it if it ended in one of *windows*."""
    known = {row[0]: row for row in readable_rows(damaged, "files") if (row[4], None, None) in windows}
    for number, (path, *_) in enumerate(identity["inputs"]):
        yield known.get(number) or (number, path.encode("utf-8", "surrogateescape"), None, None, None)


def _insert(connection: sqlite3.Connection, table: str, row: Row) -> None:
    connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)

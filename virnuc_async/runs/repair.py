"""
What of a damaged store can still be proven whole.

Each window and each batch has a checksum of its row. Rows are read one by one, by their numbers in
the file, so that a page that cannot be read costs the rows on it and no others; a row that is not
what its checksum says is left behind as well. What was left behind is computed again.
"""

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

_MOST_MISSING = 10_000  # rows in a row: behind so many, there are none

_Row = tuple[Any, ...]
_Key = tuple[Any, ...]  # of a batch: window, number, part; of a window: its number and twice None


class Recovered(NamedTuple):
    """How many rows were whole, of those that could be seen."""

    windows: int
    batches: int


def checksum(row: Iterable[Any]) -> int:
    """Give the CRC-32 of a row's values; no other row of as many values reads the same."""
    total = 0
    for value in row:
        data = value if isinstance(value, bytes) else repr(value).encode()
        total = zlib.crc32(data, zlib.crc32(b"%d:" % len(data), total))
    return total


def is_valid(row: Sequence[Any]) -> bool:
    """Whether *row* is what its last value, the checksum, says."""
    return bool(row[-1] == checksum(row[:-1]))


def count_valid(damaged: sqlite3.Connection) -> int:
    """Give the number of batches that are whole."""
    return sum(map(is_valid, _rows(damaged, "batches")))


def recover(damaged: sqlite3.Connection, new: sqlite3.Connection) -> Recovered | None:
    """
    Copy all that is whole into *new*, which has the same tables and nothing in them.

    Gives None, and copies nothing, where it cannot be told which run it was.
    """
    identity = _identity(damaged)
    if identity is None:
        return None
    new.execute("INSERT INTO run VALUES ('identity', ?)", (json.dumps(identity),))
    windows: set[_Key] = set()
    for row in filter(is_valid, _rows(damaged, "windows")):
        windows.add((row[0], None, None))
        _insert(new, "windows", row)
    batches: set[_Key] = set()
    for row in _whole_batches(damaged, windows):
        batches.add(row[:3])
        _insert(new, "batches", row)
    for row in _rows(damaged, "failures"):
        if row[:3] in windows or row[:3] in batches:
            _insert(new, "failures", row)
    for row in _files(damaged, identity, windows):
        _insert(new, "files", row)
    return Recovered(len(windows), len(batches))


def _identity(db: sqlite3.Connection) -> dict[str, Any] | None:
    for key, value in _rows(db, "run"):
        if key == "identity":
            identity = json.loads(value)
            return identity if isinstance(identity, dict) else None
    return None


def _whole_batches(db: sqlite3.Connection, windows: set[_Key]) -> Iterator[_Row]:
    """Give the batches of *windows* that are whole, and whose failed ORFs are known as well."""
    failed = Counter(row[:3] for row in _rows(db, "failures"))
    for row in filter(is_valid, _rows(db, "batches")):
        orfs, scored = row[4], row[7]
        if (row[0], None, None) in windows and failed[row[:3]] == orfs - scored:
            yield row


def _files(db: sqlite3.Connection, identity: dict[str, Any], windows: set[_Key]) -> Iterator[_Row]:
    """Give a row for each input; with what was found in it, if it ended in one of *windows*."""
    known = {row[0]: row for row in _rows(db, "files") if (row[4], None, None) in windows}
    for number, (path, *_) in enumerate(identity["inputs"]):
        yield known.get(number) or (number, path.encode("utf-8", "surrogateescape"), None, None, None)


def _insert(db: sqlite3.Connection, table: str, row: _Row) -> None:
    db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _rows(db: sqlite3.Connection, table: str) -> Iterator[_Row]:
    """Give each row that can be read, by its number in the file; no index is asked for it."""
    number = missing = 0
    while missing < _MOST_MISSING:
        row = _row(db, f"SELECT * FROM {table} WHERE rowid = ?", number)
        if row is not None:
            yield row
        missing = missing + 1 if row is None else 0
        number += 1


def _row(db: sqlite3.Connection, query: str, number: int) -> _Row | None:
    try:
        found: _Row | None = db.execute(query, (number,)).fetchone()
    except sqlite3.DatabaseError:
        return None
    return found

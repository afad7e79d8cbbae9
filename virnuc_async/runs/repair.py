"""
Recover from a damaged store what is still intact.

Each row has a checksum. Rows are read in order as far as that is possible, then by their numbers in the
file, so that a page that cannot be read costs the rows on it and no others; a row whose checksum is
wrong, or whose values make no sense, is dropped as well. What was dropped is computed again.
"""

import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any, NamedTuple

from virnuc_async.errors import DamagedStore
from virnuc_async.fileio import USE_ANOTHER_DIRECTORY, Directory

from .database import (
    JOURNAL,
    Database,
    create_tables,
    has_tables,
    readable_rows,
    translated_errors,
    values_of,
)
from .meta import ENDING, IDENTITY_COPY, decode_meta, load_meta, read_meta, set_meta
from .output_directory import DAMAGED, STORE
from .reader import RunReader
from .rows import BatchRow, InvalidRow, MetaRow, Row, WindowOrder, WindowRow, decode_scores
from .store_rows import StoreRows
from .totals import Totals

_REPAIRED = f".{STORE}.repaired"


class Recovered(NamedTuple):
    """How many rows were intact and are kept; whether that is all, so that nothing was changed."""

    windows: int
    batches: int
    is_all: bool


def repair_store(
    directory: Directory, has_locks: bool = True, check: Callable[[], None] = lambda: None
) -> Recovered | None:
    """
    Replace the store in *directory* by a new one with all that is intact, and keep a copy of the old one.

    A store that is intact is left as it is. Returns None if there is no store. *check* is called before
    something is replaced: it raises if the directory is another process's by then.

    Raises:
        DamagedStore: nothing can be recovered; the directory is as it was
        ForeignDirectoryError: the store is not ours
        CannotWrite: the disk is full, or the directory cannot be written
    """
    if not directory.is_file(STORE):
        return None
    with closing(Database(directory, STORE, has_locks, to_repair=True)) as damaged:
        with suppress(DamagedStore):
            if not has_tables(damaged):
                return None
            if totals := intact_totals(damaged):
                return Recovered(totals.windows, totals.batches, True)
        with translated_errors(directory):
            directory.unlink(_REPAIRED)
        with closing(Database(directory, _REPAIRED, has_locks)) as repaired, repaired.transaction():
            create_tables(repaired.connection)
            recovered = recover(damaged.connection, repaired)
    with translated_errors(directory):
        if recovered is None:
            directory.unlink(_REPAIRED)
            reason = f"nothing in its {STORE} can be recovered. {USE_ANOTHER_DIRECTORY}, or --overwrite"
            raise DamagedStore(str(directory), reason)
        # The copy is on the disk before the only other one is replaced.
        with directory.open(STORE) as damaged_file, directory.atomic_write(DAMAGED, check) as copy:
            shutil.copyfileobj(damaged_file, copy)
        check()
        # What could not be taken back of the damaged store must not be taken back of the new one.
        directory.unlink(STORE + JOURNAL)
        directory.rename(_REPAIRED, STORE)
        directory.sync()
    return recovered


def intact_totals(database: Database) -> Totals | None:
    """Return how much is in a store if nothing of it is damaged, or None."""
    reader = RunReader(StoreRows(database))
    with suppress(DamagedStore):
        if [*database.rows("PRAGMA integrity_check")] != [("ok",)]:
            return None
        rows = read_meta(database)
        values = {key: decode_meta(database, row) for key, row in rows.items()}
        if not (values or reader.window_count()):
            return Totals()  # a run that has not begun
        _read_all(reader)
        totals, _ = reader.add_up()
        is_sealed = "finished" not in values or _is_sealed_with(values, totals)
        return totals if is_sealed and "identity" in values else None
    return None


def recover(damaged: sqlite3.Connection, new: Database) -> Recovered | None:
    """
    Copy all that is intact into *new*, which has the same tables and no rows.

    Returns None, and copies nothing, if the identity of the run is lost.
    """
    meta = _recover_meta(damaged)
    if "identity" not in meta:
        return None
    values = {key: load_meta(row) for key, row in meta.items()}
    values.setdefault("paths", [path for path, *_ in values["identity"].get("inputs", [])])
    # Whether it is still finished, and written, is known when everything is copied.
    ending: dict[str, Any] = {key: values.pop(key) for key in ENDING if key in values}
    set_meta(new, values)
    for table, decode in (("windows", WindowRow.decode), ("batches", BatchRow.decode)):
        for row in readable_rows(damaged, table):
            if _is_valid(row, decode):
                new.execute(f"INSERT OR IGNORE INTO {table} {values_of(row)}", *row)
    _drop_what_does_not_fit(new)
    if _is_sealed_with(ending, _complete_totals(RunReader(StoreRows(new)))):
        set_meta(new, ending)
    windows, batches = (_count(new, table) for table in ("windows", "batches"))
    return Recovered(windows, batches, False)


def _count(database: Database, table: str) -> int:
    return int(next(database.rows(f"SELECT COUNT(*) FROM {table}"))[0])


def _recover_meta(damaged: sqlite3.Connection) -> dict[str, MetaRow]:
    """Return the values of the run that make sense, by their keys."""
    found: dict[str, MetaRow] = {}
    for row in readable_rows(damaged, "run"):
        with suppress(InvalidRow):
            value = MetaRow.decode(row)
            load_meta(value)
            found[value.key] = value
    if IDENTITY_COPY in found:
        found.setdefault("identity", found[IDENTITY_COPY]._replace(key="identity"))
    return found


def _is_valid(row: Row, decode: Callable[[Row], object]) -> bool:
    try:
        decode(row)
    except InvalidRow:
        return False
    return True


def _drop_what_does_not_fit(new: Database) -> None:
    """Drop windows that do not continue the one before, and batches that are not of their window."""
    rows = StoreRows(new)
    reader, order = RunReader(rows), WindowOrder.of(rows.span)
    for window in new.decoded(WindowRow.decode, "SELECT * FROM windows ORDER BY number"):
        if not order.expects(window.number):
            order = WindowOrder(window.number - 1)
        if not order.is_next(window):
            new.execute("DELETE FROM windows WHERE number = ?", window.number)
    new.execute("DELETE FROM batches WHERE window NOT IN (SELECT number FROM windows)")
    for window in new.decoded(WindowRow.decode, "SELECT * FROM windows"):
        try:
            decode_scores(window, reader.batches(window.number))
        except InvalidRow:
            new.execute("DELETE FROM batches WHERE window = ?", window.number)


def _complete_totals(reader: RunReader) -> Totals | None:
    """Return how much there is if nothing is missing, or None."""
    with suppress(DamagedStore):
        totals, is_complete = reader.add_up()
        if is_complete:
            _read_all(reader)
            return totals
    return None


def _read_all(reader: RunReader) -> None:
    """Read everything; raises DamagedStore if it does not fit together."""
    for read in (reader.blocks, reader.failures):
        for _ in read():
            pass


def _is_sealed_with(values: Mapping[str, Any], totals: Totals | None) -> bool:
    sealed = values.get("finished")
    return bool(sealed) and replace(Totals.from_json(sealed), reused=None) == totals

"""Rows of a store: a right checksum is not enough, their values must make sense."""

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_runs import IDENTITY, batches, make_window, reopen, score, window_digest

from virnuc_async.errors import BrokenInput, DamagedStore, Stage
from virnuc_async.runs.blocks import CONTIG, SCORE
from virnuc_async.runs.database import values_of
from virnuc_async.runs.rows import BatchRow, MetaRow, WindowRow, checksum
from virnuc_async.runs.store import Store
from virnuc_async.sequences.windows import FileRow

WINDOW = ("number", "first", "orfs", "contigs", "fragments", "files", "digest", "records", "ids")
BATCH = (*BatchRow._fields,)
FAILED = "[[3, 0, %s, %s]]"


@pytest.fixture
def filled(store: Store) -> Store:
    """A finished window with a file that broke and a failed ORF, which is in the last of two batches."""
    window = make_window(files=[FileRow(0, "/data/a.fa", 2, BrokenInput("/data/a.fa", 2, "snap"))])
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(score(first))
    store.add_batch(score(second, row1=(Stage.PROTEIN, "no")))
    store.finish()
    return store


def contigs(**columns: Any) -> bytes:
    rows = np.zeros(2, CONTIG)
    rows["number"], rows["fragments"], rows["length"] = (0, 1), 1, (100, 101)
    for name, values in columns.items():
        rows[name] = values
    return rows.tobytes()


def scores(**columns: Any) -> bytes:
    rows = np.zeros(1, SCORE)
    rows["orf"], rows["contig"], rows["fragment"] = 2, 1, 1
    for name, values in columns.items():
        rows[name] = values
    return rows.tobytes()


def write_row(store: Store, table: str, values: list[Any]) -> None:
    """Put a row with a right checksum in place of the last one of *table*."""
    blobs = {"windows": 3, "batches": 2, "run": 0}[table]
    end = len(values) - blobs
    of_blobs = (value.encode() if isinstance(value, str) else value for value in values[end:])
    row = (*values, checksum(table, tuple(values[:end]), tuple(of_blobs)))
    db = store._database.connection
    db.execute(f"DELETE FROM {table} WHERE rowid = (SELECT MAX(rowid) FROM {table})")
    db.execute(f"INSERT INTO {table} {values_of(row)}", row)


def read_everything(store: Store) -> tuple[Any, ...]:
    reader = store.reader
    parts = (reader.blocks(), reader.blocks(0), reader.ids(0), reader.files(), reader.failures())
    return (*map(list, parts), reader.add_up(), store.finished_parts(0), window_digest(store, 0))


def check_damage(store: Store) -> None:
    """Check that the store is damaged, and that a repair drops what makes no sense, or says so again."""
    with pytest.raises(DamagedStore, match=r"its run\.sqlite3 is damaged \("):
        read_everything(store)
    store.close()
    try:
        store.__init__(store.directory.path, repair=True)  # type: ignore[misc]
    except DamagedStore:
        return
    assert not store.is_finished
    with suppress(DamagedStore):
        if store.finished_parts(0) == {(0, ""), (1, "")}:
            store.finish()
            read_everything(store)
            pytest.fail("what makes no sense is still there")


@pytest.mark.parametrize(
    "change",
    [
        {"number": 1},
        {"number": -1},
        {"first": 4},
        {"first": -1},
        {"first": 0.5},
        {"orfs": 3},
        {"orfs": 5},
        {"orfs": 1 << 62},
        {"digest": b"short"},
        {"digest": "of text, and thirty-two letters."},
        {"contigs": 1},
        {"fragments": 3},
        {"records": contigs()[:-1]},
        {"records": contigs(number=(1, 2))},
        {"records": contigs(number=(0, 2))},
        {"records": contigs(length=(-1, 1))},
        {"records": contigs(file=(1, 0))},
        {"records": contigs(file=7)},
        {"records": contigs(fragments=(2, 0))},
        {"ids": b"c0\n"},
        {"ids": b"c0\nc1\nc2"},
        {"ids": "c0\nc1\n"},
        {"files": "[[0, 2, null], [2, 0, null]]"},
        {"files": "[[5, 2, null]]"},
        {"files": "[[1, 2, null]]"},
        {"files": "[[0, 3, null]]"},
        {"files": "[[0, -1, null]]"},
        {"files": "[[0, 2]]"},
        {"files": "[[0, true, null]]"},
        {"files": '[[0, 2, ["no text"]]]'},
        {"files": "{}"},
        {"files": "[7]"},
        {"files": "["},
        {"files": "[" * 100_000},
        {"files": f"[[0, {10**30}, null]]"},
        {"files": b"[]"},
    ],
    ids=count(1),
)
def test_a_window_that_makes_no_sense_is_damage(change: dict[str, Any], filled: Store) -> None:
    row = filled.reader.window(0)
    assert row is not None
    values = dict(zip(WINDOW, row.encode(), strict=False)) | change
    write_row(filled, "windows", list(values.values()))
    check_damage(filled)


@pytest.mark.parametrize(
    "change",
    [
        {"window": 1},
        {"window": -1},
        {"number": -1},
        {"number": "1"},
        {"part": "2"},
        {"part": b"0"},
        {"device": 7},
        {"orfs": 1},
        {"orfs": 0, "scored": 0, "scores": b"", "failures": "[]"},
        {"tokens": -1},
        {"seconds": -0.5},
        {"seconds": float("inf")},
        {"seconds": "soon"},
        {"scored": 2},
        {"scores": scores() * 2, "scored": 2, "failures": "[]"},
        {"scores": scores()[:-1]},
        {"scores": scores(orf=0)},
        {"scores": scores(orf=3)},
        {"scores": scores(orf=4)},
        {"scores": scores(orf=-1)},
        {"scores": scores(contig=2)},
        {"scores": scores(contig=-1)},
        {"scores": scores(fragment=0)},
        {"scores": scores(fragment=2)},
        {"scores": scores(frame=6)},
        {"scores": scores(frame=-1)},
        {"scores": scores(virus=1.5)},
        {"scores": scores(virus=-0.5)},
        {"scores": scores(others=np.nan)},
        {"scores": scores(others=np.inf)},
        {"fingerprints": b"x"},
        {"failures": "[]"},
        {"failures": FAILED % ('"nowhere"', '"no"')},
        {"failures": FAILED % ("7", '"no"')},
        {"failures": FAILED % ('"ESM-2"', "null")},
        {"failures": '[[3, 9, "ESM-2", "no"]]'},
        {"failures": '[[1, 0, "ESM-2", "no"]]'},
        {"failures": '[[9, 0, "ESM-2", "no"]]'},
        {"failures": "[[]]"},
        {"failures": "nothing"},
    ],
    ids=count(1),
)
def test_a_batch_that_makes_no_sense_is_damage(change: dict[str, Any], filled: Store) -> None:
    (row,) = (batch for batch in filled.reader.batches(0) if batch.number == 1)
    values = dict(zip(BATCH, row.encode(), strict=False)) | change
    write_row(filled, "batches", list(values.values()))
    check_damage(filled)


def totals(**changes: Any) -> dict[str, Any]:
    found = {"windows": 1, "contigs": 2, "fragments": 2, "batches": 2, "scores": 3, "failures": 2}
    return found | {"is_split": False, "devices": {"cpu:0": [2, 4, 12, 1.0]}, "reused": None} | changes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("finished", True),
        ("finished", []),
        ("finished", {}),
        ("finished", totals(windows=2)),
        ("finished", totals(windows=0)),
        ("finished", totals(windows="1")),
        ("finished", totals(windows=-1)),
        ("finished", totals(is_split=0)),
        ("finished", totals(devices=[])),
        ("finished", totals(devices={"cpu:0": [1]})),
        ("finished", totals(devices={"cpu:0": [1, 1, 1, None]})),
        ("finished", totals(reused="all")),
        ("finished", totals(more=1)),
    ],
)
def test_totals_that_make_no_sense_are_damage(key: str, value: Any, filled: Store) -> None:
    read_everything(filled)
    write_row(filled, "run", [key, json.dumps(value)])
    with pytest.raises(DamagedStore):
        read_everything(filled)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("identity", "[]"),
        ("identity", "{"),
        ("identity", '{"inputs": {}}'),
        ("identity", '{"inputs": [[]]}'),
        ("identity", '{"inputs": [[7]]}'),
        ("identity", '{"inputs": [null]}'),
        ("identity", '{"precision": "fp64"}'),
        ("identity", '{"tokens per batch": "many"}'),
        ("identity", '{"tokens per batch": 0}'),
        ("paths", "{}"),
        ("paths", "[1]"),
        ("written", "[]"),
        ("kinds", "{}"),
        ("kinds", '["protein"]'),
    ],
)
def test_what_is_known_of_the_run_and_makes_no_sense_is_damage(key: str, text: str, out: Path) -> None:
    store = Store(out)
    store._database.execute("INSERT INTO run VALUES (?, ?, ?)", *MetaRow(key, text).encode())
    with pytest.raises(DamagedStore, match="makes no sense|is no JSON"):
        store.get_meta(key)
    store.close()


def test_a_value_that_is_there_twice_is_damage(store: Store) -> None:
    store._database.execute("INSERT INTO run VALUES (?, ?, ?)", *MetaRow("identity", "{}").encode())
    with pytest.raises(DamagedStore, match="a value is there twice"):
        store.get_meta("identity")


def test_a_store_that_does_not_know_its_run_is_damaged(filled: Store) -> None:
    filled._database.execute("DELETE FROM run")
    with pytest.raises(DamagedStore, match="which run it is of is missing"):
        filled.bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])


@pytest.mark.parametrize(
    "lose",
    [
        "DELETE FROM batches WHERE number = 0",
        "DELETE FROM batches",
        "DELETE FROM windows",
        "INSERT INTO batches SELECT window, number, '0', device, orfs, tokens, seconds, scored, recomputed, "
        "failures, scores, fingerprints, checksum FROM batches WHERE number = 0",
    ],
)
def test_rows_that_vanish_or_appear_in_a_finished_run_are_damage(lose: str, filled: Store) -> None:
    filled._database.execute(lose)
    with pytest.raises(DamagedStore):
        list(filled.reader.blocks())


def test_batches_of_a_window_that_is_gone_are_damage(filled: Store) -> None:
    filled._database.execute("DELETE FROM windows")
    filled._database.execute("DELETE FROM run WHERE key = 'finished'")
    with pytest.raises(DamagedStore, match="batches of no window"):
        filled.add_window(make_window())


def test_windows_from_a_number_on_are_dropped_with_all_that_they_know(store: Store) -> None:
    for number in range(3):
        broken = BrokenInput("/data/a.fa", 4, "snap")
        window = make_window(number, files=[FileRow(0, "/data/a.fa", 4, broken)] if number == 1 else [])
        store.add_window(window)
        for batch in batches(window):
            store.add_batch(score(batch, row0=(Stage.PROTEIN, "no")))
    store.finish()
    paths = ["/data/a.fa", "/data/b.fa"]
    store.rebind(IDENTITY, paths, 2, {})
    assert not store.is_finished
    assert (store.reader.window_count(), store.reader.totals().batches) == (2, 4)
    assert [failure.message for failure in store.reader.failures()] == [
        "breaks after 4 records: snap",
        *(f"c{contig}_chunk_1F1: no" for contig in (0, 1, 0, 1)),
    ]
    store.rebind(IDENTITY, paths, 2, {1: [FileRow(0, "/data/a.fa", 4, None)]})
    assert [line.failed for line in reopen(store).reader.files()] == [False, False]
    store.rebind({**IDENTITY, "inputs": []}, ["new"], 1, {})
    assert store.get_meta("identity")["inputs"] == []
    assert store.reader.totals().failures == 2
    assert [(line.path, line.contigs) for line in store.reader.files()] == [("new", None)]


ENCODED: list[tuple[Callable[[Any], Any], str]] = [
    (WindowRow.decode, "SELECT * FROM windows"),
    (BatchRow.decode, "SELECT * FROM batches"),
    (MetaRow.decode, "SELECT * FROM run"),
]


@pytest.mark.parametrize(("decode", "query"), ENCODED)
def test_a_row_is_encoded_as_it_was_stored(decode: Callable[[Any], Any], query: str, filled: Store) -> None:
    rows = list(filled._database.rows(query))
    assert rows
    assert [decode(row).encode() for row in rows] == rows

"""The repair of a damaged store: intact rows are kept, all others are dropped."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from example_runs import (
    IDENTITY,
    batches,
    contigs,
    digest,
    make_window,
    orfs,
    score,
    scores,
    window_digest,
)

from virnuc_async.errors import (
    BrokenInput,
    DamagedStore,
    ForeignDirectoryError,
    Stage,
)
from virnuc_async.runs.blocks import SCORE
from virnuc_async.runs.output_directory import DAMAGED, STORE
from virnuc_async.runs.reader import FileLine
from virnuc_async.runs.store import Store
from virnuc_async.runs.totals import Totals
from virnuc_async.sequences.windows import FileRow


@pytest.fixture
def filled(store: Store) -> Store:
    """Three windows of two batches each, a failed ORF, and a file that broke in the second window."""
    broken = BrokenInput("/data/a.fa", 4, "snap")
    for number in range(3):
        files = [FileRow(0, "/data/a.fa", 4, broken)] if number == 1 else []
        window = make_window(number, [b"c%d" % (2 * number), b"c%d" % (2 * number + 1)], files)
        store.add_window(window)
        for batch in batches(window):
            failed = {"row1": (Stage.PROTEIN, "no")} if batch.name == "2.1" else {}
            store.add_batch(score(batch, **failed))
    store.finish()
    store.close()
    return store


def state(store: Store) -> tuple[object, ...]:
    return (
        contigs(store),
        scores(store),
        list(store.reader.failures()),
        list(store.reader.files()),
        [store.finished_parts(number) for number in range(3)],
        store.get_meta("identity"),
        store.get_meta("paths"),
    )


def test_an_intact_store_is_left_as_it_is(filled: Store) -> None:
    before = (filled.directory.path / STORE).read_bytes()
    store = Store(filled.directory.path, repair=True)
    assert store.recovered == (3, 6, True)
    assert store.is_finished
    store.close()
    assert (filled.directory.path / STORE).read_bytes() == before
    assert [path.name for path in filled.directory.path.iterdir()] == [STORE]


def test_repair_of_a_store_of_which_no_row_is_lost_keeps_everything(filled: Store) -> None:
    before = Store(filled.directory.path)
    expected = state(before)
    ((index,),) = before._database.rows("SELECT rootpage FROM sqlite_master WHERE type = 'index'")
    before.close()
    with open(filled.directory.path / STORE, "r+b") as file:
        file.seek(4096 * (index - 1))
        file.write(b"\xff" * 4096)
    store = Store(filled.directory.path, repair=True)
    assert store.recovered == (3, 6, False)
    assert state(store) == expected
    assert store.is_finished
    assert (store.directory.path / DAMAGED).exists()
    store.close()


def test_repair_drops_damaged_rows(filled: Store) -> None:
    with closing(sqlite3.connect(filled.directory.path / STORE)) as db, db:
        db.execute("UPDATE batches SET scores = zeroblob(LENGTH(scores)) WHERE window = 0 AND number = 1")
        db.execute("UPDATE windows SET ids = x'00' WHERE number = 1")
        db.execute("UPDATE batches SET failures = '[]' WHERE window = 2 AND number = 1")
    store = Store(filled.directory.path, repair=True)
    assert store.recovered == (2, 2, False)
    assert not store.is_finished
    assert [store.finished_parts(number) for number in range(3)] == [{(0, "")}, set(), {(0, "")}]
    assert (window_digest(store, 0), window_digest(store, 1), window_digest(store, 2)) == (
        digest(0),
        None,
        digest(2),
    )
    assert list(store.reader.files()) == [
        FileLine("/data/a.fa", None, False),
        FileLine("/data/b.fa", None, False),
    ]
    with pytest.raises(DamagedStore, match="windows or records are missing"):
        list(store.reader.blocks())
    assert store.get_meta("identity") == IDENTITY
    store.close()


@pytest.mark.parametrize("seed", range(12))
def test_repair_after_damage_to_any_page_keeps_only_correct_rows(seed: int, store: Store) -> None:
    window = make_window(ids=[b"c%d" % number for number in range(3000)])
    store.add_window(window)
    for batch in batches(window, 600):
        store.add_batch(score(batch))
    expected = dict(zip(orfs(store), scores(store), strict=True))
    store.close()
    pages = (store.directory.path / STORE).stat().st_size // 4096
    rng = np.random.default_rng(seed)
    with open(store.directory.path / STORE, "r+b") as file:
        for page in rng.integers(1, pages, 3).tolist():
            file.seek(4096 * page + 512 * int(rng.integers(8)))
            file.write(rng.bytes(512))
    with suppress(DamagedStore):  # if the tables themselves are gone, nothing can be recovered
        store = Store(store.directory.path, repair=True)
    if store.recovered is None:
        return
    kept = b"".join(blob for (blob,) in store._database.rows("SELECT scores FROM batches"))
    found = np.frombuffer(kept, SCORE).tolist()
    assert all(row == expected[row[0]] for row in found)
    assert len(found) < len(expected) or store.recovered == (1, 30, store.recovered.is_all)
    # What is missing can be added again, and then the store is complete.
    if window_digest(store, 0) is None:
        store.bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])
        store.add_window(window)
    for batch in batches(window, 600):
        if (batch.number, "") not in store.finished_parts(0):
            store.add_batch(score(batch))
    assert scores(store) == list(expected.values())
    store.finish()
    store.close()


@pytest.mark.parametrize("key", ["identity", "identity again", "paths"])
def test_what_is_known_of_the_run_can_be_recovered(key: str, filled: Store) -> None:
    with closing(sqlite3.connect(filled.directory.path / STORE)) as db, db:
        db.execute("UPDATE run SET value = '{' WHERE key = ?", (key,))
    with (
        closing(Store(filled.directory.path)) as store,
        pytest.raises(DamagedStore, match="a checksum is wrong"),
    ):
        store.get_meta("identity")
    with closing(Store(filled.directory.path, repair=True)) as store:
        assert store.recovered == (3, 6, False)
        assert store.is_finished
        assert store.get_meta("identity") == store.get_meta("identity again") == IDENTITY
        assert store.get_meta("paths") == ["/data/a.fa", "/data/b.fa"]


def test_nothing_can_be_recovered_without_the_identity(filled: Store) -> None:
    with closing(sqlite3.connect(filled.directory.path / STORE)) as db, db:
        db.execute("DELETE FROM run")
    before = (filled.directory.path / STORE).read_bytes()
    with pytest.raises(DamagedStore, match=r"nothing in its run\.sqlite3 can be recovered"):
        Store(filled.directory.path, repair=True)
    assert (filled.directory.path / STORE).read_bytes() == before
    assert [path.name for path in filled.directory.path.iterdir()] == [STORE]


def test_repair_does_not_touch_a_foreign_store(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / STORE)) as db, db:
        db.execute("CREATE TABLE mine (a)")
    with pytest.raises(ForeignDirectoryError, match="is not a run of this program"):
        Store(tmp_path, repair=True)
    (tmp_path / "new").mkdir()
    Store(tmp_path / "new", repair=True).close()  # without a store, there is nothing to repair


@pytest.mark.parametrize("length", [600, 4096, 5000, 9000, 16_000])
def test_a_damaged_store_can_be_overwritten(length: int, filled: Store) -> None:
    directory = filled.directory.path
    path = directory / STORE
    path.write_bytes(path.read_bytes()[:length])
    (directory / "contigs.tsv").touch()
    with pytest.raises((DamagedStore, ForeignDirectoryError)):
        Store(directory).reader.totals()
    with closing(Store(directory, overwrite=True)) as store:
        assert store.reader.window_count() == 0
        assert store.get_meta("identity") is None
        assert not (directory / "contigs.tsv").exists()
    with closing(Store(directory)) as store:
        assert not store.is_finished


@pytest.mark.parametrize("content", [b"precious", b"SQLite format 3\0" + bytes(84) + b"precious"])
def test_what_is_not_known_to_be_ours_is_not_overwritten(content: bytes, tmp_path: Path) -> None:
    (tmp_path / STORE).write_bytes(content)
    with pytest.raises(ForeignDirectoryError):
        Store(tmp_path, overwrite=True)
    assert (tmp_path / STORE).read_bytes() == content


@pytest.mark.parametrize("page", range(1, 6))
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_damaged_run_can_be_overwritten(is_cut: bool, page: int, filled: Store) -> None:
    content = (filled.directory.path / STORE).read_bytes()
    damaged = content[: 4096 * page] + b"\xff" * 4096 + content[4096 * (page + 1) :]
    (filled.directory.path / STORE).write_bytes(content[: 4096 * page] if is_cut else damaged)
    (filled.directory.path / "contigs.tsv").write_bytes(b"old")
    with closing(Store(filled.directory.path, overwrite=True)) as store:
        assert store.get_meta("identity") is None
        store.bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])
    assert [path.name for path in filled.directory.path.iterdir()] == [STORE]
    with closing(Store(filled.directory.path)) as store:
        assert store.reader.totals() == Totals()


def test_a_store_that_was_emptied_is_damage(filled: Store) -> None:
    (filled.directory.path / "contigs.tsv").write_bytes(b"old")
    (filled.directory.path / STORE).write_bytes(b"")
    for repair in (False, True):
        with pytest.raises(DamagedStore, match=r"it is empty, and there is contigs\.tsv"):
            Store(filled.directory.path, repair=repair)
    assert (filled.directory.path / "contigs.tsv").read_bytes() == b"old"
    Store(filled.directory.path, overwrite=True).close()

"""Output directories: new ones are created, ours are used, foreign ones are not touched."""

import sqlite3
from pathlib import Path

import pytest
from example_runs import (
    IDENTITY,
    batches,
    make_window,
    orfs,
    reopen,
    score,
)

from virnuc_async.errors import (
    CannotWrite,
    ForeignDirectoryError,
)
from virnuc_async.runs.lock import LOCK
from virnuc_async.runs.output_directory import OUTPUT_FILES, STORE
from virnuc_async.runs.store import Store
from virnuc_async.runs.totals import Totals


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


NO_RUN = "and no run of this program, which would write files of these names. Choose a new or empty directory"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["contigs.tsv", "report.html", ".contigs.tsv.partial", f"{STORE}-journal", f".{STORE}.repaired"]
)
def test_files_with_names_of_ours_are_not_touched(name: str, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    with pytest.raises(ForeignDirectoryError) as caught:
        Store(tmp_path, overwrite)
    assert caught.value.reason == f"contains {name!r} {NO_RUN}"
    assert contents(tmp_path) == {name: b"mine", "notes.txt": b"mine"}


def test_files_with_names_of_ours_are_named(tmp_path: Path) -> None:
    for name in OUTPUT_FILES[:7]:
        (tmp_path / name).mkdir()
    with pytest.raises(ForeignDirectoryError) as caught:
        Store(tmp_path)
    named = ", ".join(map(repr, sorted(OUTPUT_FILES[:7])[:5]))
    assert caught.value.reason == f"contains {named} and 2 more {NO_RUN}"


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_are_no_obstacle_and_stay(overwrite: bool, tmp_path: Path) -> None:
    others = {"slurm-1.out": b"log of the job", ".hidden": b"", "contigs.tsv.bak": b"mine"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    for again in (overwrite, True):
        Store(tmp_path, again).close()
        assert sorted(contents(tmp_path)) == sorted((*others, STORE))
    assert {name: (tmp_path / name).read_bytes() for name in others} == others


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_link_that_leads_nowhere(below: str, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    out = tmp_path / "out" / below
    with pytest.raises(ForeignDirectoryError) as caught:
        Store(out)
    whose = f"{tmp_path / 'out'} " if below else ""
    assert caught.value.reason == (
        f"{whose}is a link that leads nowhere, to {tmp_path / 'gone'}. Choose a new or empty directory"
    )
    assert not (tmp_path / "gone").exists()


def make_foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE run (key, value)")
    database.close()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", [b"SQLite format 3\0garbage" * 100, b"PK\3\4" * 1000, None])
def test_a_foreign_store_is_not_touched(content: bytes | None, overwrite: bool, tmp_path: Path) -> None:
    if content is None:
        make_foreign_database(tmp_path / STORE)
    else:
        (tmp_path / STORE).write_bytes(content)
    before = contents(tmp_path)
    with pytest.raises(ForeignDirectoryError, match=f"its {STORE} is .*Choose a new or empty directory"):
        Store(tmp_path, overwrite)
    assert contents(tmp_path) == before


def make_older_store(directory: Path) -> None:
    """Create a store of a version that had a row for each ORF."""
    with sqlite3.connect(directory / STORE) as database:
        database.execute("CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        database.execute("CREATE TABLE scores (orf INTEGER PRIMARY KEY, virus REAL NOT NULL)")
        database.execute(f"PRAGMA application_id={0x56697250}")
    database.close()


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    make_older_store(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ForeignDirectoryError) as caught:
        Store(tmp_path)
    assert caught.value.reason == (
        f"its {STORE} was made by another version of this program. "
        "Choose a new or empty directory, or --overwrite"
    )
    assert contents(tmp_path) == before


def test_a_store_of_another_version_is_overwritten(tmp_path: Path) -> None:
    make_older_store(tmp_path)
    Store(tmp_path, overwrite=True).close()
    store = Store(tmp_path)
    window = make_window()
    store.bind_run(IDENTITY, ["/data/a.fa"])
    store.add_window(window)
    store.add_batch(score(batches(window)[0]))
    assert orfs(store) == [0, 1]
    store.close()


def test_a_file_instead_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ForeignDirectoryError, match="is a file, not a directory"):
        Store(tmp_path / "out")


@pytest.mark.parametrize("name", ["file/out", "loop", "loop/out", "n" * 300])
def test_a_directory_that_cannot_be_created(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((CannotWrite, ForeignDirectoryError)) as caught:
        Store(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_missing_parent_directories_are_created(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "b" / "c").close()
    Store(tmp_path / "a" / "b" / "c").close()
    (tmp_path / "empty").mkdir()
    Store(tmp_path / "empty").close()
    assert [path.name for path in (tmp_path / "empty").iterdir()] == [STORE]


@pytest.mark.parametrize("name", ["50%25 off", "what?nolock=1", "a#b", "\udcff\udcfe", "file:x", "é ü"])
def test_a_directory_may_have_any_name(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    store = Store(out)
    store.bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])
    store.close()
    assert sorted(path.name for path in out.iterdir()) == [STORE]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    again = Store(out)
    assert again.get_meta("identity") == IDENTITY
    again.close()


def test_overwrite_deletes_our_files_only(store: Store) -> None:
    window = make_window()
    store.add_window(window)
    store.add_batch(score(batches(window)[0], embeddings=True))
    store.add_batch(score(batches(window)[1]))
    store.finish()
    store.close()
    for name in (*OUTPUT_FILES, "notes.txt"):
        (store.directory.path / name).write_bytes(b"x")
    Store(store.directory.path, overwrite=True).close()
    assert sorted(path.name for path in store.directory.path.iterdir()) == ["notes.txt", STORE]
    store = Store(store.directory.path)
    assert store.get_meta("identity") is None
    assert not store.is_finished
    store.bind_run({"model": "other"}, ["x"])
    assert store.reader.totals() == Totals()
    store.close()


def test_without_overwrite_nothing_is_deleted(store: Store) -> None:
    for name in (*OUTPUT_FILES, "notes.txt"):
        (store.directory.path / name).write_bytes(b"x")
    reopen(store)
    own = {STORE, f"{STORE}-journal", LOCK}
    assert {path.name for path in store.directory.path.iterdir()} == {*OUTPUT_FILES, "notes.txt", *own}

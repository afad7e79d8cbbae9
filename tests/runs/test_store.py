"""What survives: transactions, the lock, whose directory it is, and what comes back as it went in."""

import errno
import fcntl
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from running import ROOT, files_no_larger_than

from virnuc_async.engine.worker import ScoredBatch
from virnuc_async.errors import (
    BrokenInput,
    CannotWrite,
    DamagedStore,
    DirectoryLockedError,
    ForeignDirectoryError,
    InputError,
    RunMismatchError,
    Stage,
    UnreadableInput,
)
from virnuc_async.runs.blocks import SCORE, orf_id
from virnuc_async.runs.failure import Failure
from virnuc_async.runs.lock import LOCK
from virnuc_async.runs.output_directory import DAMAGED, FEATURES, OUTPUT_FILES, STORE
from virnuc_async.runs.reader import FileLine
from virnuc_async.runs.store import Store
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.tokens import Ragged
from virnuc_async.sequences.windows import ContigRow, FileRow, Window

WIDTH = 3
A, B = ["/data/a.fa", 10, 1], ["/data/b.fa", 20, 2]
IDENTITY = {"inputs": [A, B], "model": "m", "threshold": 0.5}


def a_window(number: int = 0, ids: Sequence[bytes] = (b"c0", b"c1"), files: Sequence[FileRow] = ()) -> Window:
    """Two ORFs per contig, in fragment 1; contigs and ORFs are numbered through the run."""
    first = number * len(ids)
    places = [(first + contig, 1, frame) for contig in range(len(ids)) for frame in (0, 5)]
    tokens = Ragged(np.full(3 * len(places), 5, np.int32), np.full(len(places), 3))
    return Window(
        number=number,
        first=2 * first,
        contigs=tuple(ContigRow(first + n, 0, name, 100 + n, 1) for n, name in enumerate(ids)),
        files=tuple(files),
        origins=np.array(places, np.int64).reshape(-1, 3),
        digest=b"digest %d" % number,
        nucleotides=tokens,
        residues=tokens,
    )


def scored(batch: Batch, embeddings: bool = False, **failed: tuple[Stage, str]) -> ScoredBatch:
    """Score ORF n with n/100 for virus; its embedding is n, n, n."""
    virus = (batch.orfs / 100).astype(np.float32)
    rows = np.repeat(batch.orfs[:, None], WIDTH, 1).astype(np.float32) if embeddings else None
    failures = {int(row.removeprefix("row")): why for row, why in failed.items()}
    return ScoredBatch(batch, "cpu:0", 0.5, np.stack((1 - virus, virus), 1), rows, failures)


def batches(window: Window, budget: int = 6) -> list[Batch]:
    return list(window.batches(budget))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out"


@pytest.fixture
def store(out: Path) -> Iterator[Store]:
    store = Store(out)
    store.bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])
    yield store
    store.close()


def contigs(store: Store) -> list[tuple[bytes, int, int, int, int]]:
    """Give id, number, length, file and fragments of every record."""
    return [
        (name, *contig)
        for block in store.reader.blocks()
        for name, contig in zip(block.ids.split(b"\n"), block.contigs.tolist(), strict=False)
    ]


def ids(store: Store) -> list[bytes]:
    return [contig[0] for contig in contigs(store)]


def scores(store: Store) -> list[tuple[int, int, int, int, float, float]]:
    """Give ORF, contig, fragment, frame, others and virus of every scored ORF."""
    return [row for block in store.reader.blocks() for row in block.scores.tolist()]


def orfs(store: Store) -> list[int]:
    return [row[0] for row in scores(store)]


def reopened(store: Store) -> Store:
    store.close()
    store.__init__(store.directory)  # type: ignore[misc]
    return store


# Keeping


def test_what_went_in_comes_out_after_reopening(store: Store) -> None:
    window = a_window(files=[FileRow(0, "/data/a.fa", 2, None)])
    store.add_window(window)
    for batch in batches(window):
        assert store.add_batch(scored(batch)) == []
    store.set_meta("finished", True)
    store = reopened(store)
    assert store.is_finished
    assert store.get_meta("identity") == IDENTITY
    assert store.get_meta("no such") is None
    assert store.window(0) == b"digest 0"
    assert store.window(1) is None
    assert store.finished_parts(0) == {(0, ""), (1, "")}
    assert store.finished_parts(1) == set()
    assert contigs(store) == [(b"c0", 0, 100, 0, 1), (b"c1", 1, 101, 0, 1)]
    assert list(store.reader.files()) == [
        FileLine("/data/a.fa", 2, False),
        FileLine("/data/b.fa", None, False),
    ]
    one = np.float32(1)
    assert scores(store) == [
        (0, 0, 1, 0, one - np.float32(0.00), np.float32(0.00)),
        (1, 0, 1, 5, one - np.float32(0.01), np.float32(0.01)),
        (2, 1, 1, 0, one - np.float32(0.02), np.float32(0.02)),
        (3, 1, 1, 5, one - np.float32(0.03), np.float32(0.03)),
    ]
    assert store.reader.device_totals() == {"cpu:0": (2, 4, 12, 1.0)}
    assert store.reader.fragments() == 2
    counted = ("files", "windows", "batches", "contigs", "scores", "failures")
    assert list(map(store.reader.count, counted)) == [2, 1, 2, 2, 4, 0]


def test_scores_keep_every_bit(store: Store) -> None:
    window = a_window()
    store.add_window(window)
    (batch,) = batches(window, 100)
    values = np.array([[1e-45, 1], [0.1, 0.9], [1 / 3, 2 / 3], [3.4e38, 1e-38]], np.float32)
    store.add_batch(replace(scored(batch), probabilities=values))
    read = [row[4:] for row in scores(reopened(store))]
    assert np.array(read, np.float32).tobytes() == values.tobytes()


def test_batch_is_kept_whole_or_not_at_all(store: Store) -> None:
    window = a_window()
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(scored(first))
    with pytest.raises(CannotWrite, match="UNIQUE constraint failed"):
        store.add_batch(scored(first, row0=(Stage.PROTEIN, "no")))
    store = reopened(store)
    assert store.finished_parts(0) == {(0, "")}
    assert orfs(store) == [0, 1]
    assert store.reader.count("failures") == 0
    store.add_batch(scored(second))
    assert orfs(store) == [0, 1, 2, 3]


def test_orf_that_is_there_twice_is_damage(store: Store) -> None:
    window = a_window()
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(scored(first))
    store.add_batch(scored(replace(second, orfs=np.array([second.orfs[0], first.orfs[0]]))))
    with pytest.raises(DamagedStore, match="is damaged \\(records or ORFs are missing\\)"):
        list(store.reader.blocks())


@pytest.mark.parametrize("table", ["windows", "batches"])
def test_a_value_that_is_not_as_it_was_written_is_damage(table: str, store: Store) -> None:
    window = a_window()
    store.add_window(window)
    for batch in batches(window):
        store.add_batch(scored(batch))
    assert orfs(store) == [0, 1, 2, 3]
    column = {"windows": "ids", "batches": "scores"}[table]
    store._database.connection.execute(
        f"UPDATE {table} SET {column} = CAST(REPLACE({column}, x'30', x'31') AS BLOB)"
    )
    store._database.connection.execute(
        f"UPDATE {table} SET {column} = zeroblob(LENGTH({column})) WHERE rowid < 2"
    )
    with pytest.raises(DamagedStore, match="a checksum is wrong"):
        list(store.reader.blocks())


def test_a_run_without_all_its_batches_is_not_finished(store: Store) -> None:
    window = a_window()
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(scored(first))
    with pytest.raises(DamagedStore, match="batches are missing"):
        store.finish()
    assert not store.is_finished
    store.add_batch(scored(second, row0=(Stage.PROTEIN, "no")))
    store.finish()
    assert reopened(store).is_finished


def test_window_is_kept_whole_or_not_at_all(store: Store) -> None:
    window = a_window()
    store.add_window(window)
    again = a_window(0, [b"c2"], [FileRow(1, "/data/b.fa", 0, UnreadableInput("/data/b.fa", "gone"))])
    with pytest.raises(CannotWrite, match="UNIQUE constraint failed"):
        store.add_window(again)
    assert ids(store) == [b"c0", b"c1"]
    assert store.reader.count("failures") == 0
    assert list(store.reader.files())[1] == FileLine("/data/b.fa", None, False)


@pytest.mark.parametrize("numbers", [(0, 2), (1, 0), (0, 0)])
def test_records_that_do_not_follow_each_other_are_damage(numbers: tuple[int, int], store: Store) -> None:
    rows = tuple(ContigRow(number, 0, b"c", 1, 1) for number in numbers)
    store.add_window(replace(a_window(), contigs=rows))
    with pytest.raises(DamagedStore, match="is damaged \\(records or ORFs are missing\\)"):
        list(store.reader.blocks())


def test_blocks_hold_whole_records(store: Store) -> None:
    # Contig 1 begins in window 0 and goes on through 1 and 2; contig 4 has no ORF.
    begin = [(0, [b"c0", b"c1"]), (2, []), (2, [b"c2", b"c3", b"c4"]), (5, []), (5, [b"c5"])]
    whose = [[0, 1], [1, 1], [1, 3], [], [5]]
    for number, ((first, names), contigs_of) in enumerate(zip(begin, whose, strict=True)):
        window = a_window(number, [b""] * len(contigs_of))
        rows = tuple(ContigRow(first + n, 0, name, 9, 9) for n, name in enumerate(names))
        places = np.array([(contig, number + 1, 0) for contig in contigs_of], np.int64).reshape(-1, 3)
        tokens = window.residues.take(np.arange(len(places)))
        start = 10 * number
        window = replace(
            window, first=start, contigs=rows, origins=places, residues=tokens, nucleotides=tokens
        )
        store.add_window(window)
        for batch in batches(window, 3):
            store.add_batch(scored(batch))
    blocks = [
        (block.ids, block.rows.tolist(), block.scores["orf"].tolist(), block.names())
        for block in store.reader.blocks()
    ]
    assert blocks == [
        (b"c0\n", [0], [0], ["c0"]),
        (b"c1\nc2\nc3\n", [0, 0, 0, 0, 2], [1, 10, 11, 20, 21], ["c1", "c2", "c3"]),
        (b"c4\n", [], [], ["c4"]),
        (b"c5\n", [0], [40], ["c5"]),
    ]


def test_what_a_killed_process_had_committed_is_there(out: Path) -> None:
    script = """
import os, sys
sys.path[:0] = ["tests", "tests/runs"]
from pathlib import Path
from test_store import Store, a_window, batches, scored, IDENTITY
store = Store(Path(sys.argv[1]))
store.bind_run(IDENTITY, ["a", "b"])
window = a_window()
store.add_window(window)
first, second = batches(window)
store.add_batch(scored(first, embeddings=True))
with store._transaction():
    store._database.connection.execute("DELETE FROM batches")
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script, out], cwd=ROOT)
    assert done.returncode == -9
    store = Store(out)
    assert store.finished_parts(0) == {(0, "")}
    assert orfs(store) == [0, 1]
    assert features(out)[:2].tolist() == [[0, 0, 0], [1, 1, 1]]
    store.close()


def test_halves_are_remembered_and_make_a_run_not_reproducible(store: Store) -> None:
    window = a_window()
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(scored(first))
    assert store.reader.is_reproducible()
    left, right = second.halves()
    store.add_batch(scored(right))
    assert store.finished_parts(0) == {(0, ""), (1, "1")}
    store.add_batch(scored(left))
    assert not reopened(store).reader.is_reproducible()


def test_bytes_that_are_no_text_come_back_as_they_came(out: Path) -> None:
    store = Store(out)
    paths = ["/data/\udcff.fa", "/data/caf\u00e9.fa"]
    store.bind_run(IDENTITY, paths)
    names = [b"caf\xe9", b"\xff\xfe|\\", "\u00e9\U0001f9a0".encode(), b"", b"a\0b"]
    broken = FileRow(0, paths[0], 5, BrokenInput(paths[0], 5, "saw '\udcfe'"))
    window = a_window(ids=names, files=[broken])
    store.add_window(window)
    (batch,) = batches(window, 1000)
    failures = store.add_batch(scored(batch, row1=(Stage.CLASSIFIER, "caf\u00e9")))
    store = reopened(store)
    assert ids(store) == names
    assert [line.path for line in store.reader.files()] == paths
    assert [name.encode("latin-1") for block in store.reader.blocks() for name in block.names()] == names
    of_orf = Failure(paths[0], Stage.CLASSIFIER, "caf\udce9_chunk_1R3: caf\u00e9")
    assert failures == [of_orf]
    of_file = Failure(paths[0], Stage.INPUT, "breaks after 5 records: saw '\udcfe'")
    assert list(store.reader.failures()) == [of_file, of_orf]
    store.close()


def test_failures_come_in_the_order_of_the_input(store: Store) -> None:
    unreadable = FileRow(1, "/data/b.fa", 0, UnreadableInput("/data/b.fa", "gone"))
    window = a_window(files=[FileRow(0, "/data/a.fa", 2, None), unreadable])
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(scored(second, row1=(Stage.PROTEIN, "x"), row0=(Stage.NUCLEOTIDE, "y")))
    store.add_batch(scored(first, row1=(Stage.PROTEIN, "z")))
    assert [(line.path, line.stage, line.message) for line in store.reader.failures()] == [
        ("/data/a.fa", "ESM-2", "c0_chunk_1R3: z"),
        ("/data/a.fa", "DNABERT-S", "c1_chunk_1F1: y"),
        ("/data/a.fa", "ESM-2", "c1_chunk_1R3: x"),
        ("/data/b.fa", "Input", "gone"),
    ]
    assert orfs(store) == [0]
    assert list(store.reader.files()) == [FileLine("/data/a.fa", 2, False), FileLine("/data/b.fa", 0, True)]


def features(out: Path) -> np.ndarray:
    return np.fromfile(out / FEATURES, np.float32).reshape(-1, WIDTH)


def test_embeddings_lie_at_their_orfs_place(store: Store) -> None:
    first, second = a_window(0), a_window(1)
    for window in (first, second):
        store.add_window(window)
    late, early = batches(second, 100)[0], batches(first, 100)[0]
    store.add_batch(scored(late, embeddings=True))
    assert features(store.directory).tolist() == [[0] * 3] * 4 + [[n] * 3 for n in range(4, 8)]
    store = reopened(store)
    store.add_batch(scored(early, embeddings=True))
    assert features(store.directory).tolist() == [[n] * 3 for n in range(8)]


def test_an_orf_without_a_score_has_no_embedding_to_be_missed(store: Store) -> None:
    window = a_window()
    store.add_window(window)
    assert store.reader.features_end() == 0
    first, second = batches(window)
    store.add_batch(scored(first, embeddings=True))
    store.add_batch(scored(second, row0=(Stage.PROTEIN, "no room"), row1=(Stage.PROTEIN, "no room")))
    assert store.reader.features_end() == len(features(store.directory)) == 2


def test_orf_ids_are_the_published_ones() -> None:
    names = [orf_id(b"c|1", 12, frame) for frame in range(6)]
    assert names == [b"c|1_chunk_12" + frame for frame in (b"F1", b"F2", b"F3", b"R1", b"R2", b"R3")]


# Whose directory it is


def test_the_same_run_is_taken_again(store: Store) -> None:
    reopened(store).bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])
    assert [line.path for line in store.reader.files()] == ["/data/a.fa", "/data/b.fa"]


def test_inputs_are_known_by_their_content_and_called_by_their_new_names(store: Store) -> None:
    renamed = {**IDENTITY, "inputs": [["/here/a.fa", 10, 1], ["/here/c.fa", 20, 2]]}
    store.bind_run(renamed, ["a.fa", "c.fa"])
    assert [line.path for line in store.reader.files()] == ["a.fa", "c.fa"]
    assert store.get_meta("identity") == renamed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 0.6}, ["threshold: 0.5 -> 0.6"]),
        ({"model": "n", "more": 1}, ["model: m -> n", "more: None -> 1"]),
        ({"inputs": [A]}, ["inputs: /data/b.fa was removed"]),
        ({"inputs": [A, ["/data/b.fa", 20, 3]]}, ["inputs: /data/b.fa has changed"]),
        ({"inputs": [A, ["/data/b.fa", None]]}, ["inputs: /data/b.fa cannot be read now"]),
        ({"inputs": [B, A]}, ["inputs: the same files in another order"]),
        ({"inputs": [A, B, A]}, ["inputs: /data/a.fa (no. 2) was added"]),
        (
            {"inputs": [["-"], ["/c", 1, 1]]},
            ["inputs: - was added, /c was added, /data/a.fa was removed and 1 more"],
        ),
    ],
)
def test_another_run_says_what_differs(change: dict[str, object], said: list[str], store: Store) -> None:
    with pytest.raises(RunMismatchError) as caught:
        store.bind_run({**IDENTITY, **change}, [])
    assert list(caught.value.differences) == said
    assert store.get_meta("identity") == IDENTITY


def test_second_opener_is_told_to_wait(store: Store) -> None:
    said = rf"process {os.getpid()} on {os.uname().nodename} \(since 20.*\) is writing there\. Wait for it"
    with pytest.raises(DirectoryLockedError, match=said) as caught:
        Store(store.directory)
    assert caught.value.path == str(store.directory)
    with pytest.raises(DirectoryLockedError):
        Store(store.directory, overwrite=True)
    script = """
import sys
from pathlib import Path
from virnuc_async.errors import DirectoryLockedError
from virnuc_async.runs.store import Store
try:
    Store(Path(sys.argv[1]), overwrite=True)
except DirectoryLockedError as busy:
    print(busy)
"""
    command = [sys.executable, "-c", script, store.directory]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == f"{caught.value}\n"
    assert store.get_meta("identity") == IDENTITY
    reopened(store)  # once it has been let go


def strangers(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["notes.txt", "contigs.tsv", ".hidden"])
def test_directory_of_somebody_else_is_not_touched(name: str, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ForeignDirectoryError) as caught:
        Store(tmp_path, overwrite)
    assert (
        caught.value.reason
        == f"contains {name!r} and no run of this program. Choose a new or empty directory"
    )
    assert strangers(tmp_path) == {name: b"mine"}


def somebodys_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE run (key, value)")
    database.close()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", [b"SQLite format 3\0garbage" * 100, b"PK\3\4" * 1000, None])
def test_store_of_somebody_else_is_not_touched(
    content: bytes | None, overwrite: bool, tmp_path: Path
) -> None:
    if content is None:
        somebodys_database(tmp_path / STORE)
    else:
        (tmp_path / STORE).write_bytes(content)
    before = strangers(tmp_path)
    with pytest.raises(ForeignDirectoryError, match=f"its {STORE} is .*Choose a new or empty directory"):
        Store(tmp_path, overwrite)
    assert strangers(tmp_path) == before


def an_older_store(directory: Path) -> None:
    """Make a store as it was when there was a row for each ORF."""
    with sqlite3.connect(directory / STORE) as database:
        database.execute("CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        database.execute("CREATE TABLE scores (orf INTEGER PRIMARY KEY, virus REAL NOT NULL)")
        database.execute(f"PRAGMA application_id={0x56697250}")
    database.close()


def test_store_of_another_version_is_refused(tmp_path: Path) -> None:
    an_older_store(tmp_path)
    before = strangers(tmp_path)
    with pytest.raises(ForeignDirectoryError) as caught:
        Store(tmp_path)
    assert caught.value.reason == (
        f"its {STORE} was made by another version of this program. "
        "Choose a new or empty directory, or --overwrite"
    )
    assert strangers(tmp_path) == before


def test_store_of_another_version_is_overwritten(tmp_path: Path) -> None:
    an_older_store(tmp_path)
    Store(tmp_path, overwrite=True).close()
    store = Store(tmp_path)
    window = a_window()
    store.bind_run(IDENTITY, ["/data/a.fa"])
    store.add_window(window)
    store.add_batch(scored(batches(window)[0]))
    assert orfs(store) == [0, 1]
    store.close()


def test_failure_in_a_contig_that_began_long_ago(store: Store) -> None:
    store.add_window(a_window(0))
    later = replace(a_window(1), contigs=(), origins=np.array([[1, n, 0] for n in (5, 6, 7, 8)], np.int64))
    store.add_window(later)
    (batch,) = batches(later, 100)
    (failure,) = store.add_batch(scored(batch, row1=(Stage.PROTEIN, "no")))
    assert failure.message == "c1_chunk_6F1: no"


def test_damage_that_is_found_later_is_no_traceback(store: Store) -> None:
    window = a_window(ids=[b"c%d" % number for number in range(2000)])
    store.add_window(window)
    for batch in batches(window, 600):
        store.add_batch(scored(batch))
    store.close()
    with open(store.directory / STORE, "r+b") as file:
        file.seek(0, os.SEEK_END)
        for page in range(file.tell() // 4096 // 2, file.tell() // 4096):
            file.seek(4096 * page)
            file.write(b"\xa5" * 4096)
    store = Store(store.directory)
    with pytest.raises(DamagedStore, match=r"4 finished batches in it can be recovered: .* --repair"):
        list(store.reader.blocks())
    store.close()


@pytest.fixture
def filled(store: Store) -> Store:
    """Three windows of two batches each, a failed ORF, and a file that broke in the second window."""
    broken = BrokenInput("/data/a.fa", 4, "snap")
    for number in range(3):
        files = [FileRow(0, "/data/a.fa", 4, broken)] if number == 1 else []
        window = a_window(number, [b"c%d" % (2 * number), b"c%d" % (2 * number + 1)], files)
        store.add_window(window)
        for batch in batches(window):
            failed = {"row1": (Stage.PROTEIN, "no")} if batch.name == "2.1" else {}
            store.add_batch(scored(batch, **failed))
    store.set_meta("finished", True)
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
    )


def test_repair_keeps_everything_of_a_sound_store_but_the_claim_to_be_finished(filled: Store) -> None:
    before = Store(filled.directory)
    wanted = state(before)
    before.close()
    store = Store(filled.directory, repair=True)
    assert store.recovered == (3, 6)
    assert state(store) == wanted
    assert not store.is_finished
    assert (store.directory / DAMAGED).exists()
    store.finish()  # nothing is missing
    store.close()


def test_repair_leaves_behind_what_is_not_whole(filled: Store) -> None:
    with closing(sqlite3.connect(filled.directory / STORE)) as db, db:
        db.execute("UPDATE batches SET scores = zeroblob(LENGTH(scores)) WHERE window = 0 AND number = 1")
        db.execute("UPDATE windows SET ids = x'00' WHERE number = 1")
        db.execute("DELETE FROM failures WHERE window = 2")
    store = Store(filled.directory, repair=True)
    assert store.recovered == (2, 2)
    assert [store.finished_parts(number) for number in range(3)] == [{(0, "")}, set(), {(0, "")}]
    assert (store.window(0), store.window(1), store.window(2)) == (b"digest 0", None, b"digest 2")
    assert list(store.reader.failures()) == []  # those of what was left behind come again with it
    assert list(store.reader.files()) == [
        FileLine("/data/a.fa", None, False),
        FileLine("/data/b.fa", None, False),
    ]
    assert store.get_meta("identity") == IDENTITY
    store.close()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_page_is_lost_what_repair_keeps_is_as_it_was(seed: int, store: Store) -> None:
    window = a_window(ids=[b"c%d" % number for number in range(3000)])
    store.add_window(window)
    for batch in batches(window, 600):
        store.add_batch(scored(batch))
    wanted = dict(zip(orfs(store), scores(store), strict=True))
    store.close()
    pages = (store.directory / STORE).stat().st_size // 4096
    rng = np.random.default_rng(seed)
    with open(store.directory / STORE, "r+b") as file:
        for page in rng.integers(1, pages, 3).tolist():
            file.seek(4096 * page + 512 * int(rng.integers(8)))
            file.write(rng.bytes(512))
    with suppress(DamagedStore):  # where the tables themselves are gone, nothing can be saved
        store = Store(store.directory, repair=True)
    if store.recovered is None:
        return
    kept = b"".join(blob for (blob,) in store._database.rows("SELECT scores FROM batches"))
    found = np.frombuffer(kept, SCORE).tolist()
    assert all(row == wanted[row[0]] for row in found)
    assert len(found) < len(wanted) or store.recovered == (1, 30)
    # And what is missing can be added again, so that all is there in the end.
    if store.window(0) is None:
        store.bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])
        store.add_window(window)
    for batch in batches(window, 600):
        if (batch.number, "") not in store.finished_parts(0):
            store.add_batch(scored(batch))
    assert scores(store) == list(wanted.values())
    store.finish()
    store.close()


def test_nothing_can_be_saved_without_knowing_whose_it_is(filled: Store) -> None:
    with closing(sqlite3.connect(filled.directory / STORE)) as db, db:
        db.execute("DELETE FROM run")
    before = (filled.directory / STORE).read_bytes()
    with pytest.raises(DamagedStore, match=r"nothing in its run\.sqlite3 can be recovered"):
        Store(filled.directory, repair=True)
    assert (filled.directory / STORE).read_bytes() == before
    assert [path.name for path in filled.directory.iterdir()] == [STORE]


def test_repair_does_not_touch_a_store_of_somebody_else(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / STORE)) as db, db:
        db.execute("CREATE TABLE mine (a)")
    with pytest.raises(ForeignDirectoryError, match="is not a run of this program"):
        Store(tmp_path, repair=True)
    (tmp_path / "new").mkdir()
    Store(tmp_path / "new", repair=True).close()  # where there is nothing, there is nothing to repair


def test_a_file_system_without_locks_is_no_obstacle(
    out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    store = Store(out)
    assert not store.lock.has_kernel_locks
    store.bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])
    window = a_window()
    store.add_window(window)
    store.add_batch(scored(batches(window)[0]))
    with pytest.raises(DirectoryLockedError, match="is writing there"):  # the lock file still holds
        Store(out)
    # SQLite asked for no lock: another connection can write at the same time.
    with closing(sqlite3.connect(out / STORE, timeout=0)) as db, db:
        db.execute("BEGIN EXCLUSIVE")
    assert orfs(reopened(store)) == [0, 1]
    store.close()


def test_every_commit_is_on_the_disk(store: Store) -> None:
    assert next(store._database.rows("PRAGMA synchronous")) == (3,)  # EXTRA: syncs the journal's removal
    assert next(store._database.rows("PRAGMA journal_mode")) == ("delete",)


def test_a_store_that_somebody_looks_at_is_busy(store: Store) -> None:
    store.close()
    with closing(sqlite3.connect(store.directory / STORE)) as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM run").fetchall()
        with pytest.raises(DirectoryLockedError, match=r"another program has run\.sqlite3 open, to read"):
            Store(store.directory, busy_seconds=0.05)
    assert not (store.directory / LOCK).exists()
    reopened(store)


def test_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ForeignDirectoryError, match="is a file, not a directory"):
        Store(tmp_path / "out")


@pytest.mark.parametrize("name", ["file/out", "loop", "loop/out", "n" * 300])
def test_directory_that_cannot_be_made(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises((CannotWrite, ForeignDirectoryError)) as caught:
        Store(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_new_directories_are_made_as_deep_as_asked(tmp_path: Path) -> None:
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


def test_overwrite_begins_anew_and_deletes_our_files_only(store: Store) -> None:
    window = a_window()
    store.add_window(window)
    store.add_batch(scored(batches(window)[0], embeddings=True))
    store.set_meta("finished", True)
    store.close()
    for name in (*OUTPUT_FILES, "notes.txt"):
        (store.directory / name).write_bytes(b"x")
    Store(store.directory, overwrite=True).close()
    assert sorted(path.name for path in store.directory.iterdir()) == ["notes.txt", STORE]
    store = Store(store.directory)
    assert store.get_meta("identity") is None
    assert not store.is_finished
    assert not any(map(store.reader.count, ("files", "contigs", "windows", "batches", "scores", "failures")))
    store.bind_run({"model": "other"}, ["x"])
    store.close()


def test_without_overwrite_nothing_is_deleted(store: Store) -> None:
    for name in (*OUTPUT_FILES, "notes.txt"):
        (store.directory / name).write_bytes(b"x")
    reopened(store)
    assert {path.name for path in store.directory.iterdir()} == {*OUTPUT_FILES, "notes.txt", STORE, LOCK}


# The disk


@pytest.mark.parametrize("embeddings", [False, True])
def test_full_disk_is_said_and_loses_nothing(embeddings: bool, store: Store) -> None:
    window = a_window(ids=[b"c%d" % number for number in range(5000)])
    store.add_window(window)
    first, *rest = batches(window, 6000)
    store.add_batch(scored(first, embeddings))
    room = 8192 if embeddings else (store.directory / STORE).stat().st_size + 8192
    with files_no_larger_than(room), pytest.raises(CannotWrite) as caught:  # noqa: PT012
        for batch in rest:
            store.add_batch(scored(batch, embeddings))
    said = str(caught.value).removeprefix(f"{store.directory}: ")
    assert said == os.strerror(errno.EFBIG) if embeddings else re.match(f"cannot write {STORE}: .*disk", said)
    # And once there is room, it goes on.
    done = store.finished_parts(0)
    for batch in rest:
        if (batch.number, "") not in done:
            store.add_batch(scored(batch, embeddings))
    assert orfs(reopened(store)) == list(range(10_000))
    if embeddings:
        assert np.array_equal(features(store.directory)[:, 0], np.arange(10_000))


def test_failures_keep_what_was_raised(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite) as caught:
        Store(tmp_path / "file" / "out")
    assert isinstance(caught.value.__cause__, OSError)
    assert not isinstance(caught.value, InputError)

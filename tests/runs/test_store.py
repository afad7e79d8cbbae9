"""The store: transactions, a lock, and a full disk."""

import errno
import fcntl
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_runs import (
    IDENTITY,
    batches,
    contigs,
    digest,
    features,
    ids,
    make_window,
    orfs,
    reopen,
    score,
    scores,
    window_digest,
)
from running import ROOT, files_no_larger_than

from virnuc_async.errors import (
    CannotWrite,
    DamagedStore,
    DirectoryLockedError,
    InputError,
    Stage,
    UnreadableInput,
)
from virnuc_async.runs.lock import LOCK
from virnuc_async.runs.output_directory import STORE
from virnuc_async.runs.reader import FileLine
from virnuc_async.runs.store import Store
from virnuc_async.runs.totals import Totals
from virnuc_async.sequences.windows import FileRow


def test_everything_is_read_back_after_reopening(store: Store) -> None:
    window = make_window(files=[FileRow(0, "/data/a.fa", 2, None)])
    store.add_window(window)
    for batch in batches(window):
        assert store.add_batch(score(batch)) == []
    store.finish()
    store = reopen(store)
    assert store.is_finished
    assert store.get_meta("identity") == IDENTITY
    assert store.get_meta("no such") is None
    assert window_digest(store, 0) == digest(0)
    assert window_digest(store, 1) is None
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
    totals = Totals(1, 2, 2, 2, 4, 0, is_split=False, devices={"cpu:0": (2, 4, 12, 1.0)})
    assert store.reader.totals() == store.reader.add_up()[0] == totals


def test_scores_keep_every_bit(store: Store) -> None:
    window = make_window()
    store.add_window(window)
    (batch,) = batches(window, 100)
    values = np.array([[1e-45, 1], [0.1, 0.9], [1 / 3, 2 / 3], [1 - 2**-24, 1e-38]], np.float32)
    store.add_batch(replace(score(batch), probabilities=values))
    read = [row[4:] for row in scores(reopen(store))]
    assert np.array(read, np.float32).tobytes() == values.tobytes()


def test_a_batch_is_stored_completely_or_not_at_all(store: Store) -> None:
    window = make_window()
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(score(first))
    with pytest.raises(DamagedStore, match="UNIQUE constraint failed"):
        store.add_batch(score(first, row0=(Stage.PROTEIN, "no")))
    store = reopen(store)
    assert store.finished_parts(0) == {(0, "")}
    assert orfs(store) == [0, 1]
    assert store.reader.totals().failures == 0
    store.add_batch(score(second))
    assert orfs(store) == [0, 1, 2, 3]


def test_a_run_without_all_its_batches_is_not_finished(store: Store) -> None:
    window = make_window()
    store.add_window(window)
    first, second = batches(window)
    store.add_batch(score(first))
    with pytest.raises(DamagedStore, match="batches are missing"):
        store.finish()
    assert not store.is_finished
    store.add_batch(score(second, row0=(Stage.PROTEIN, "no")))
    store.finish()
    assert reopen(store).is_finished


def test_a_window_is_stored_completely_or_not_at_all(store: Store) -> None:
    window = make_window()
    store.add_window(window)
    again = make_window(0, [b"c2"], [FileRow(1, "/data/b.fa", 0, UnreadableInput("/data/b.fa", "gone"))])
    with pytest.raises(DamagedStore, match="UNIQUE constraint failed"):
        store.add_window(again)
    assert ids(store) == [b"c0", b"c1"]
    assert store.reader.totals().failures == 0
    assert list(store.reader.files())[1] == FileLine("/data/b.fa", None, False)


def test_a_killed_process_loses_nothing_that_it_committed(out: Path) -> None:
    script = """
import os, sys
sys.path[:0] = ["tests", "tests/runs"]
from pathlib import Path
from example_runs import IDENTITY, batches, make_window, score
from virnuc_async.runs.store import Store
from virnuc_async.runs.totals import Totals
store = Store(Path(sys.argv[1]))
store.bind_run(IDENTITY, ["a", "b"])
window = make_window()
store.add_window(window)
first, second = batches(window)
store.add_batch(score(first, embeddings=True))
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


def test_embeddings_are_at_the_position_of_their_orf(store: Store) -> None:
    first, second = make_window(0), make_window(1)
    for window in (first, second):
        store.add_window(window)
    late, early = batches(second, 100)[0], batches(first, 100)[0]
    store.add_batch(score(late, embeddings=True))
    assert features(store.directory.path).tolist() == [[0] * 3] * 4 + [[n] * 3 for n in range(4, 8)]
    store = reopen(store)
    store.add_batch(score(early, embeddings=True))
    assert features(store.directory.path).tolist() == [[n] * 3 for n in range(8)]


def test_a_second_process_is_refused(store: Store) -> None:
    text = rf"process {os.getpid()} on {os.uname().nodename} \(since 20.*\) is writing there\. Wait for it"
    with pytest.raises(DirectoryLockedError, match=text) as caught:
        Store(store.directory.path)
    assert caught.value.path == str(store.directory.path)
    with pytest.raises(DirectoryLockedError):
        Store(store.directory.path, overwrite=True)
    script = """
import sys
from pathlib import Path
from virnuc_async.errors import DirectoryLockedError
from virnuc_async.runs.store import Store
from virnuc_async.runs.totals import Totals
try:
    Store(Path(sys.argv[1]), overwrite=True)
except DirectoryLockedError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, store.directory.path]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == f"{caught.value}\n"
    assert store.get_meta("identity") == IDENTITY
    reopen(store)  # after it was released


def test_a_failure_in_a_contig_of_an_earlier_window(store: Store) -> None:
    store.add_window(make_window(0))
    later = replace(make_window(1), contigs=(), origins=np.array([[1, n, 0] for n in (5, 6, 7, 8)], np.int64))
    store.add_window(later)
    (batch,) = batches(later, 100)
    (failure,) = store.add_batch(score(batch, row1=(Stage.PROTEIN, "no")))
    assert failure.message == "c1_chunk_6F1: no"


def test_a_file_system_without_locks(out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    store = Store(out)
    assert not store.lock.has_kernel_locks
    store.bind_run(IDENTITY, ["/data/a.fa", "/data/b.fa"])
    window = make_window()
    store.add_window(window)
    store.add_batch(score(batches(window)[0]))
    with pytest.raises(DirectoryLockedError, match="is writing there"):  # the lock file still works
        Store(out)
    # SQLite asked for no lock: another connection can write at the same time.
    with closing(sqlite3.connect(out / STORE, timeout=0)) as db, db:
        db.execute("BEGIN EXCLUSIVE")
    assert orfs(reopen(store)) == [0, 1]
    store.close()


def test_every_commit_is_on_the_disk(store: Store) -> None:
    assert next(store._database.rows("PRAGMA synchronous")) == (3,)  # EXTRA
    assert next(store._database.rows("PRAGMA journal_mode")) == ("persist",)


def test_a_store_that_another_program_reads_is_busy(store: Store) -> None:
    store.close()
    with closing(sqlite3.connect(store.directory.path / STORE)) as db:
        db.execute("BEGIN")
        db.execute("SELECT * FROM run").fetchall()
        with pytest.raises(DirectoryLockedError, match=r"another program has run\.sqlite3 open, to read"):
            Store(store.directory.path, busy_seconds=0.05)
    assert not (store.directory.path / LOCK).exists()
    reopen(store)


@pytest.mark.parametrize("embeddings", [False, True])
def test_a_full_disk_is_reported_and_loses_nothing(embeddings: bool, store: Store) -> None:
    window = make_window(ids=[b"c%d" % number for number in range(5000)])
    store.add_window(window)
    first, *rest = batches(window, 6000)
    store.add_batch(score(first, embeddings))
    room = 8192 if embeddings else (store.directory.path / STORE).stat().st_size + 8192
    with files_no_larger_than(room), pytest.raises(CannotWrite) as caught:  # noqa: PT012
        for batch in rest:
            store.add_batch(score(batch, embeddings))
    text = str(caught.value).removeprefix(f"{store.directory.path}: ")
    assert text == os.strerror(errno.EFBIG) if embeddings else re.match(f"cannot write {STORE}: .*disk", text)
    # It continues once there is room.
    done = store.finished_parts(0)
    for batch in rest:
        if (batch.number, "") not in done:
            store.add_batch(score(batch, embeddings))
    assert orfs(reopen(store)) == list(range(10_000))
    if embeddings:
        assert np.array_equal(features(store.directory.path)[:, 0], np.arange(10_000))


def test_errors_keep_their_cause(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite) as caught:
        Store(tmp_path / "file" / "out")
    assert isinstance(caught.value.__cause__, OSError)
    assert not isinstance(caught.value, InputError)


def test_the_journal_of_a_process_that_was_killed_before_its_first_commit(tmp_path: Path) -> None:
    (tmp_path / STORE).touch()
    (tmp_path / f"{STORE}-journal").write_bytes(bytes(12) + b"mark" + bytes(496))
    for _ in range(2):
        with closing(Store(tmp_path)) as store:
            assert not store.is_finished
    assert [path.name for path in tmp_path.iterdir()] == [STORE]

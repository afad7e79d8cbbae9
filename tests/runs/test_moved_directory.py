"""The output directory of a run is renamed, removed or emptied while the run goes on."""

import asyncio
import errno
import io
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Rules
from harness import PipelineHarness

from virnuc_async.errors import CannotWrite, DamagedStore, DirectoryLockedError, NoDevicesLeft, OutputError
from virnuc_async.fileio import Directory
from virnuc_async.runs.database import Database
from virnuc_async.runs.lock import LOCK
from virnuc_async.runs.output_directory import STORE
from virnuc_async.runs.store import Store
from virnuc_async.settings import Settings

WHILE_OPENED = "was renamed or removed while it was opened. Run the same command again, with its name of now"
JOURNAL = f"{STORE}-journal"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Interruption:
    """
    Counts what a run does with its directory, and does something else before one of these steps.

    A step is a call of the system that has the directory's handle, or a statement for SQLite.
    """

    def __init__(self, patch: pytest.MonkeyPatch, at: int, action: Callable[[], None]) -> None:
        self.steps: list[str] = []
        self._at, self._action = at, action
        for name in ("open", "replace", "unlink", "link", "fsync"):
            patch.setattr(os, name, self._counted(name, getattr(os, name)))
        connect, step = sqlite3.connect, self._step

        class Connection(sqlite3.Connection):
            def execute(self, query: str, *values: Any) -> sqlite3.Cursor:  # type: ignore[override]
                step(query)
                return super().execute(query, *values)

            def close(self) -> None:
                step("close")
                super().close()

        patch.setattr(sqlite3, "connect", lambda *args, **named: connect(*args, factory=Connection, **named))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            if named.keys() & {"dir_fd", "src_dir_fd"} or (name == "fsync" and self.steps):
                self._step(f"{name} {args[0]}")
            return call(*args, **named)

        return counted

    def _step(self, what: str) -> None:
        self.steps.append(what)
        if len(self.steps) == self._at:
            self._action()


@pytest.fixture
def steps(bench: PipelineHarness) -> PipelineHarness:
    """A run with embeddings and with a failed ORF and a failed file, so that every file is written."""
    bench.settings = Settings(tokens_per_batch=4000, embeddings=True)
    bench.window = 10_000
    return bench


def rules(bench: PipelineHarness) -> Rules:
    return Rules(strange=max(bench.orfs().values()))


def swap(parent: Path) -> None:
    """Rename "out" to "old", and make "out" the directory of another run, which is alive."""
    (parent / "out").rename(parent / "old")
    shutil.copytree(parent / "other", parent / "out")


async def make_other(bench: PipelineHarness) -> dict[str, bytes]:
    """Make the directory of another run, as it is in the middle of a transaction; return what is in it."""
    other = bench.out / "other"
    with pytest.raises(NoDevicesLeft):
        await bench.run(Rules(lost={"fake:0": 1}), out="other")
    written = ("contigs.tsv", "merged_features.pt", "failed_files.txt")
    for name in (LOCK, JOURNAL, *written):
        (other / name).write_bytes(b"\xd9\xd5\x05\xf9 that of another run")
    return contents(other)


async def count_steps(bench: PipelineHarness, patch: pytest.MonkeyPatch) -> list[str]:
    with patch.context() as counting:
        interruption = Interruption(counting, -1, lambda: None)
        await bench.run(rules(bench), out="calm")
    return interruption.steps


async def is_done_when_swapped(
    bench: PipelineHarness, patch: pytest.MonkeyPatch, at: int, expected: dict[str, bytes]
) -> bool:
    """Swap the directories at a step; whatever comes of the run, check that each has what is its own."""
    with patch.context() as counting:
        Interruption(counting, at, lambda: swap(bench.out))
        reasons: list[str] = []
        try:
            await bench.run(rules(bench))
        except CannotWrite as error:
            reasons.append(error.reason)
    old = bench.out / "old"
    assert contents(bench.out / "out") == expected
    if not reasons:
        assert contents(old).keys() == contents(bench.out / "calm").keys()
        for name in (*bench.tables("calm"), "merged_features.pt", "failed_files.txt"):
            assert (old / name).read_bytes() == (bench.out / "calm" / name).read_bytes(), name
    shutil.rmtree(old)
    shutil.rmtree(bench.out / "out")
    assert reasons in ([], [WHILE_OPENED])
    return not reasons


# Of each kind of write one: logs, embeddings, tables, the summary, the end.
STEPS = (
    "COMMIT",
    "open run.log",
    "open merged_features.partial",
    "replace .contigs.tsv.",
    "replace .summary.json.",
    "close",
)


async def test_a_run_whose_directory_is_renamed_goes_on_there(
    steps: PipelineHarness, monkeypatch: pytest.MonkeyPatch, messages: io.StringIO
) -> None:
    expected = await make_other(steps)
    counted = await count_steps(steps, monkeypatch)
    for name in STEPS:
        at = max(number for number, step in enumerate(counted, 1) if step.startswith(name))
        assert await is_done_when_swapped(steps, monkeypatch, at, expected), name
    assert f"Tables are in {steps.out / 'old'}; 15 failures in {steps.out / 'old'}" in messages.getvalue()


@pytest.mark.slow
async def test_whenever_the_directory_is_renamed(
    steps: PipelineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await make_other(steps)
    counted = await count_steps(steps, monkeypatch)
    failed = [
        counted[at - 1]
        for at in range(1, len(counted) + 1)
        if not await is_done_when_swapped(steps, monkeypatch, at, expected)
    ]
    # While SQLite opens the file it needs its path.
    opening = slice(counted.index("PRAGMA locking_mode=EXCLUSIVE"), counted.index("BEGIN EXCLUSIVE") + 1)
    assert failed == counted[opening]


def delete_store(out: Path) -> None:
    (out / STORE).unlink()


def replace_store(out: Path) -> None:
    # In one step, so that nobody finds none.
    os.link(out / STORE, out / "mine")
    (out / "theirs").write_bytes(b"theirs")
    (out / "theirs").rename(out / STORE)


def remove_lock(out: Path) -> None:
    (out / LOCK).unlink()


LOST = {
    delete_store: (
        DamagedStore,
        f"its {STORE} was deleted during the run, and what was computed is lost. "
        "Choose another directory to start again, or remove this one first",
    ),
    replace_store: (
        DamagedStore,
        f"its {STORE} was replaced by another file during the run, and what was computed is lost. "
        "Choose another directory to start again, or remove this one first",
    ),
    remove_lock: (
        DirectoryLockedError,
        f"its {LOCK} is gone: it was removed during the run. Run the same command again to go on",
    ),
    shutil.rmtree: (
        DirectoryLockedError,
        "was removed during the run. Run the same command again to start anew",
    ),
}


@pytest.mark.parametrize("lose", LOST, ids=lambda lose: lose.__name__)
async def test_a_store_that_is_lost_ends_the_run(
    lose: Callable[[Path], None], bench: PipelineHarness
) -> None:
    out = bench.out / "out"
    paused = Rules(pause_after=2)
    kind, reason = LOST[lose]

    async def lose_it() -> None:
        await paused.paused.wait()
        lose(out)
        paused.go_on.set()

    with pytest.raises(kind) as caught:  # noqa: PT012
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lose_it())
            try:
                await bench.run(paused)
            except OutputError as error:
                caught_error = error
        raise caught_error
    assert str(caught.value) == f"{out}: {reason}"
    left = contents(out) if out.exists() else {}
    assert "summary.json" not in left
    assert left.get(STORE, b"theirs") == b"theirs" or lose is remove_lock


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("has_locks", [True, False])
def test_what_a_killed_process_had_not_finished_is_taken_back(
    has_links: bool, has_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    with Directory(tmp_path) as directory:
        database = Database(directory, STORE, has_locks)
        database.connection.execute("CREATE TABLE numbers (number)")
        database.connection.execute("INSERT INTO numbers VALUES (1)")
        pid = os.fork()
        if pid == 0:
            database.connection.execute("PRAGMA cache_size=1")
            database.connection.execute("BEGIN IMMEDIATE")
            database.connection.execute("UPDATE numbers SET number = 2")
            for _ in range(100):
                database.connection.execute("INSERT INTO numbers VALUES (zeroblob(4000))")
            os._exit(0)
        os.waitpid(pid, 0)
        # As if this process had never been: closing would take it back as well.
        shutil.copytree(tmp_path, tmp_path / "killed")
        database.close()
        # What another process has begun is not thrown away by this one.
        assert JOURNAL in directory.names()
    with Directory(tmp_path / "killed") as directory:
        assert directory.names() == [STORE, JOURNAL]
        assert (tmp_path / "killed" / STORE).stat().st_size > 100_000
        (tmp_path / "killed" / ".open-123").touch()
        database = Database(directory, STORE, has_locks)
        assert list(database.rows("SELECT number FROM numbers")) == [(1,)]
        database.close()


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_leftovers_of_a_process_that_was_killed_while_it_opened_the_store_are_removed(tmp_path: Path) -> None:
    Store(tmp_path).close()
    (tmp_path / ".open-0123").touch()
    (tmp_path / ".open-0123-journal").touch()
    Store(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == [STORE]

"""The directory that ``merge`` writes into: locked meanwhile, and changed when all files are complete."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from virnuc_async.errors import (
    DirectoryLockedError,
    ForeignDirectoryError,
    LockHeldRemotely,
    OutputError,
)
from virnuc_async.fileio import (
    USE_ANOTHER_DIRECTORY,
    Directory,
    half_made,
    list_names,
    sync_directory,
    writing_to,
)
from virnuc_async.outputs.table_files import SUMMARY
from virnuc_async.runs.lock import HEARTBEAT_INTERVAL, LEASE_DURATION, Lock, Owner, owner_of, take_over
from virnuc_async.runs.output_directory import MERGED, STORE, is_written_name, refuse_names

_FORMAT = 1
_MOST_BYTES = 1 << 28  # of merge.json: a layout may have a million files
_NOT_MERGED = ("run.log", "progress.json")  # a program that runs the shards may write these


class MergedOutput:
    """
    The directory of merged tables, made by :meth:`open`.

    ``merge.json`` says what is in it of an earlier merge: its files are replaced, and no others.
    """

    def __init__(self, directory: Directory, lock: Lock, before: Mapping[str, Any], plan: str) -> None:
        self.directory = directory
        self._lock = lock
        self._plan = plan
        self._before = before
        self._files: set[str] = set(before.get("files", ()))  # that are there, as far as they are of merges

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, plan: str, replaces: bool, note: Callable[[str], None], lease: float = LEASE_DURATION
    ) -> "Iterator[MergedOutput]":
        """
        Open the directory *path*, which is made if it is missing, for tables of the plan with this digest.

        With *replaces*, tables of another plan may be there. *note* is told what is waited for.

        Raises:
            ForeignDirectoryError: it contains something else
            DirectoryLockedError: another process is writing there
            CannotWrite: it cannot be written
        """
        with ExitStack() as opened:
            with writing_to(path):
                list_names(path, is_written_name)  # it can be a directory
                _make(path)
                directory = opened.enter_context(Directory(path))
                before = _require_own(directory, plan, replaces)
                lock = _lock(directory, note, lease)
            opened.callback(lock.release)
            opened.enter_context(_heartbeats(lock))
            yield cls(directory, lock, before, plan)

    @property
    def viral_facts(self) -> Mapping[str, list[int]]:
        """What was left of viral sequences somewhere else."""
        return dict(self._before.get("viral", {}))

    def others(self, names: Iterable[str]) -> list[str]:
        """Return which of *names* are there, and not of an earlier merge."""
        own = {name.partition("/")[0] for name in self._files}
        return [name for name in names if name not in own and self.directory.stat(name) is not None]

    def check(self) -> None:
        """Check that the directory is still ours; raises DirectoryLockedError."""
        self._lock.check()

    @contextmanager
    def staging(self) -> Iterator[Directory]:
        """
        Yield a directory in it for new files: when the body has ended, these replace others.

        Raises:
            CannotWrite: the disk is full
        """
        with ExitStack() as opened:
            with writing_to(self.directory.path):
                self.directory.remove_leftovers()
                made = half_made(self.directory, "tables", self.directory.make_directory)
                name = opened.enter_context(made)
                staged = opened.enter_context(Directory(self.directory.path / name, self.directory))
            yield staged
            with writing_to(self.directory.path):
                self._replace(staged)

    def finish(self, shards: int, viral: Mapping[str, list[int]], more: set[str]) -> None:
        """Note that all is there, of so many *shards*: *more* files beside those that were staged."""
        self._files |= more
        with writing_to(self.directory.path, MERGED):
            self._write_facts({"shards": shards, "finished": True, "viral": viral})

    def _replace(self, staged: Directory) -> None:
        names = set(_names_in(staged))
        earlier, self._files = self._files - names, self._files | names
        # If this is interrupted, what is there is known to be of a merge, and is not taken for finished.
        self._write_facts({"finished": False, "viral": dict(self.viral_facts)})
        self.directory.unlink(SUMMARY)
        for name in sorted(earlier):
            _remove(self.directory, name)
        for name in sorted(names - {SUMMARY}):
            _move(staged, self.directory, name)
        self.directory.sync()
        staged.rename(SUMMARY, SUMMARY, self.directory)
        self.directory.sync()
        self._files = names

    def _write_facts(self, facts: Mapping[str, Any]) -> None:
        self.check()
        value = {"format": _FORMAT, "plan": self._plan, **facts, "files": sorted(self._files)}
        with self.directory.atomic_write(MERGED, self.check) as file:
            file.write(json.dumps(value, indent=2).encode() + b"\n")


def _make(path: Path) -> None:
    missing = [above for above in (path, *path.parents) if not above.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for above in missing:
        sync_directory(above.parent)


def _require_own(directory: Directory, plan: str, replaces: bool) -> Mapping[str, Any]:
    """Check that nothing else is in *directory*, and return what an earlier merge has noted."""
    if directory.stat(STORE) is not None:
        raise ForeignDirectoryError(str(directory), f"contains a run. {USE_ANOTHER_DIRECTORY}")
    before = _read_facts(directory)
    if before and before.get("plan") != plan and not replaces:
        raise ForeignDirectoryError(
            str(directory), f"contains the tables of another plan. {USE_ANOTHER_DIRECTORY}"
        )
    own = {MERGED, *_NOT_MERGED, *(name.partition("/")[0] for name in before.get("files", ()))}
    refuse_names(
        directory.path, [name for name in directory.names() if is_written_name(name) and name not in own]
    )
    return before


def _read_facts(directory: Directory) -> Mapping[str, Any]:
    if directory.stat(MERGED) is None:
        return {}
    with suppress(ValueError, RecursionError):
        found = json.loads(directory.read_bounded(MERGED, _MOST_BYTES))
        if isinstance(found, dict) and found.get("format") == _FORMAT:
            return found
    raise ForeignDirectoryError(
        str(directory), f"its {MERGED} is damaged, or of another version. {USE_ANOTHER_DIRECTORY}"
    )


def _names_in(directory: Directory) -> Iterator[str]:
    """Yield the name of each file, also of those in directories."""
    for name in directory.names():
        if directory.is_file(name):
            yield name
            continue
        with directory.subdirectory(name) as inner:
            yield from (f"{name}/{file}" for file in inner.names())


def _move(staged: Directory, directory: Directory, name: str) -> None:
    inner, _, plain = name.rpartition("/")
    if not inner:
        if directory.stat(name) is not None and not directory.is_file(name):
            directory.remove(name)
        staged.rename(name, name, directory)
        return
    if directory.is_file(inner):
        directory.unlink(inner)
    with staged.subdirectory(inner) as source, directory.subdirectory(inner) as target:
        source.rename(plain, plain, target)
        target.sync()


def _remove(directory: Directory, name: str) -> None:
    """Remove a file that an earlier merge has written, and the directory that it was in if that is empty."""
    inner, _, plain = name.rpartition("/")
    if not inner:
        directory.unlink(name)
        return
    with suppress(OSError):
        with directory.subdirectory(inner) as within:
            within.unlink(plain)
        directory.remove_empty(inner)


def _lock(directory: Directory, note: Callable[[str], None], lease: float) -> Lock:
    """Lock *directory*; the lock of a process elsewhere is taken over when its lease has ended."""
    try:
        return Lock(directory)
    except LockHeldRemotely as held:
        owner = held.owner
    assert isinstance(owner, Owner)
    note(f"waiting for a heartbeat of {owner}: without one for {lease:.0f} s it is taken for dead")
    deadline = time.monotonic() + lease
    while (found := owner_of(directory)) == owner:
        if time.monotonic() > deadline:
            take_over(directory, owner)
            return Lock(directory)
        time.sleep(min(1.0, lease / 20))
    if found is not None:
        raise DirectoryLockedError(str(directory), f"{found} is writing there. Wait for it to end")
    return Lock(directory)


@contextmanager
def _heartbeats(lock: Lock, interval: float = HEARTBEAT_INTERVAL) -> Iterator[None]:
    """Show that this process lives, in a thread of its own, until the body ends."""
    is_over = threading.Event()

    def beat() -> None:
        # That the lock is another's by now is found when the next file is written.
        with suppress(OutputError, OSError):
            while not is_over.wait(interval):
                lock.heartbeat()

    thread = threading.Thread(target=beat, name="heartbeats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()

"""
Signs of life of a worker whose run is in an object store: copies of what its shard's directory shows.

For ``status``, a thread writes ``run.lock`` and ``progress.json`` of the shard beside what will be published,
every 20 seconds. What cannot be written is no reason to end the work.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from virnuc_async.errors import CannotWrite
from virnuc_async.fileio import read_bounded
from virnuc_async.log import logger
from virnuc_async.runs.lock import LOCK
from virnuc_async.runs.progress_file import NAME as PROGRESS_FILE

from .objects import Objects

SIGNS = (LOCK, PROGRESS_FILE)
INTERVAL = 20.0  # seconds; a worker counts as dead after a minute without a sign
_FIRST = 1.0  # seconds to the first sign: by then there is one
MOST_BYTES = 1 << 22  # of a sign


@contextmanager
def announced(objects: Objects, place: str, directory: Path, interval: float = INTERVAL) -> Iterator[None]:
    """Copy the signs in *directory* below *place* until the end of the block; if that fails, also then."""
    announcer = _Announcer(objects, place, directory)
    ended = threading.Event()

    def announce() -> None:
        wait = min(_FIRST, interval)
        while not ended.wait(wait):
            announcer.announce()
            wait = interval

    thread = threading.Thread(target=announce, name="announce")
    thread.start()
    is_done = False
    try:
        yield
        is_done = True
    finally:
        ended.set()
        thread.join()
        announcer.end(is_done)


class _Announcer:
    """Copies the signs of one shard."""

    def __init__(self, objects: Objects, place: str, directory: Path) -> None:
        self._objects, self._place, self._directory = objects, place, directory
        self._lock = b""  # the last one: it is gone while the finished shard is published
        self._has_failed = False

    def announce(self) -> None:
        """Copy what there is."""
        self._lock = self._content(LOCK) or self._lock
        if self._lock:
            self._write(LOCK, self._lock)
        if progress := self._content(PROGRESS_FILE):
            self._write(PROGRESS_FILE, progress)

    def end(self, is_done: bool) -> None:
        """Copy how the work has ended, unless all of it *is_done*; there is no sign of life any more."""
        progress = self._content(PROGRESS_FILE)
        if progress and not is_done:
            self._write(PROGRESS_FILE, progress)
        if self._lock:
            self._objects.delete(f"{self._place}/{name}" for name in (SIGNS if is_done else (LOCK,)))

    def _content(self, name: str) -> bytes:
        with suppress(OSError, ValueError):
            return read_bounded(self._directory / name, MOST_BYTES)
        return b""

    def _write(self, name: str, content: bytes) -> None:
        try:
            self._objects.write(f"{self._place}/{name}", content)
        except CannotWrite as error:
            if not self._has_failed:
                self._has_failed = True
                logger.warning("status will not see this shard: {}", error)

"""All inputs of a run, scanned by several threads."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread

from virnuc_async.errors import InputChanged
from virnuc_async.sequences.files import file_signature, file_size, open_file
from virnuc_async.sequences.scan import FileScan, Spill, scan_file

_TELL_SECONDS = 0.5
_BUFFER_BYTES = 1 << 17
_HEAD = 18  # bytes of the header of a block


@dataclass(frozen=True, slots=True)
class PlanProgress:
    """How far the inputs of a plan are read."""

    files_done: int
    files: int
    bytes_done: int
    bytes: int  # of all files, as they lie on the disk


class Scanning:
    """The scans of *files*, paths and sizes, by so many *threads*; what is kept of records is in *spill*."""

    def __init__(self, files: Sequence[tuple[str, int]], spill: Spill, threads: int) -> None:
        self._paths = [path for path, _ in files]
        self._size = sum(size for _, size in files)
        self._spill = spill
        self._threads = threads
        self._scans: dict[int, FileScan] = {}
        self._bytes = 0
        self._is_over = False

    async def run(self, on_progress: Callable[[PlanProgress], None]) -> list[FileScan]:
        """
        Return the scans, in the order of the paths, and tell how far they are meanwhile.

        Raises:
            InputChanged: a file was written to meanwhile
            OSError: there is no room for what is kept
        """
        numbers, limiter = iter(range(len(self._paths))), CapacityLimiter(self._threads)

        async def scan_next() -> None:
            for number in numbers:
                path = self._paths[number]
                scan = partial(scan_file, path, self._spill, open_file=partial(_CountedFile.open, self))
                self._scans[number] = await to_thread.run_sync(scan, limiter=limiter)

        async with anyio.create_task_group() as telling:
            telling.start_soon(self._tell, on_progress, name="tell progress")
            async with anyio.create_task_group() as tasks:
                for _ in range(min(self._threads, len(self._paths))):
                    tasks.start_soon(scan_next, name="scan inputs")
            telling.cancel_scope.cancel()
        on_progress(self.progress)
        scans = [self._scans[number] for number in range(len(self._paths))]
        await to_thread.run_sync(_require_unchanged, scans)
        return scans

    @property
    def progress(self) -> PlanProgress:
        """How far the scans are."""
        return PlanProgress(len(self._scans), len(self._paths), min(self._bytes, self._size), self._size)

    def count(self, size: int) -> None:
        """
        Count so many bytes that were read.

        Raises:
            OSError: nobody waits for the rest
        """
        if self._is_over:
            raise InterruptedError("the scan was cancelled")
        self._bytes += size  # a byte too few now and then is no harm

    async def _tell(self, on_progress: Callable[[PlanProgress], None]) -> None:
        try:
            while True:
                on_progress(self.progress)
                await anyio.sleep(_TELL_SECONDS)
        finally:
            self._is_over = True  # threads end when they read the next block


class _CountedFile(io.RawIOBase):
    """A file that is open, whose bytes are counted as they are read."""

    def __init__(self, scanning: Scanning, file: io.BufferedReader) -> None:
        self.signature, self.size = file_signature(file), file_size(file)
        self._scanning = scanning
        self._file = file

    @classmethod
    def open(cls, scanning: Scanning, path: str) -> io.BufferedReader:
        """Open *path*, buffered; raises what open_file does."""
        return io.BufferedReader(cls(scanning, open_file(path)), _BUFFER_BYTES)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether it can seek."""
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Seek as the file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return where the next byte is from."""
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        """Read what is available; raises OSError if the scan was cancelled."""
        size = self._file.readinto1(buffer)
        self._scanning.count(size)
        return size

    def close(self) -> None:
        """Close the file, too."""
        super().close()
        self._file.close()


def _require_unchanged(scans: Sequence[FileScan]) -> None:
    for scan in scans:
        if not scan.version.is_of(scan.path):
            raise InputChanged(scan.path)


def is_plain_gzip(path: str) -> bool:
    """Return whether *path* is compressed by gzip, and not in blocks that can be found (BGZF)."""
    try:
        with open_file(path) as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):
        return False
    # SAM specification, section 4.1: blocks have an extra field of the name BC.
    is_in_blocks = len(head) == _HEAD and bool(head[3] & 4) and head[12:14] == b"BC"
    return head.startswith(b"\x1f\x8b") and not is_in_blocks

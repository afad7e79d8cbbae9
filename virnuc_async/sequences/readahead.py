"""
Read-ahead: the blocks to come of the input files are read while windows are formed.

Tasks in the event loop read through aiofiles; the thread that forms windows takes the blocks out of
memory. Only regular files and URLs are read ahead: reading a pipe may wait for ever, and opening one as well.
"""

import asyncio
import io
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import anyio
from aiofiles.threadpool import wrap

from .files import OpenFile, Signature, file_signature, file_size, open_file, path_signature
from .inputs import STDIN

FILES = 4  # the current one and those to come: many small files on a distant disk take their time to open
BLOCKS = 4  # of each
BLOCK_BYTES = 1 << 20


class ReadAhead:
    """
    Keeps the coming blocks of the current file and the first blocks of the next files in memory.

    At most *files* times *blocks* blocks of *block_bytes* are in memory. :meth:`run` is a task;
    :meth:`open` belongs to the one thread that reads *paths* in order, each to its end or closed early.
    """

    def __init__(
        self,
        paths: Iterable[str],
        *,
        files: int = FILES,
        blocks: int = BLOCKS,
        block_bytes: int = BLOCK_BYTES,
        open_file: OpenFile = open_file,
    ) -> None:
        self._paths = (path for path in paths if path != STDIN)
        self._files, self._blocks, self._block_bytes = files, blocks, block_bytes
        self._open_file = open_file
        self._lock = threading.Lock()  # of what follows
        self._ahead: deque[_Stream] = deque()  # files that are begun, and not opened by the reader yet
        self._begin: Callable[[_Stream], object] | None = None  # while the task runs
        self._loop_thread = 0

    async def run(self) -> None:
        """Read ahead from the first call of :meth:`open` on, until cancelled; that waits for no read."""
        loop, begun = asyncio.get_running_loop(), asyncio.Queue[_Stream]()
        threads = ThreadPoolExecutor(self._files, "read ahead")
        try:
            async with anyio.create_task_group() as tasks:
                with self._lock:
                    self._loop_thread = threading.get_ident()
                    self._begin = lambda stream: loop.call_soon_threadsafe(self._put, begun, stream)
                try:
                    # From this task: anyio asks sniffio for the event loop where that is installed, as it is
                    # with trio, and sniffio knows of none in a callback of the loop.
                    while stream := await begun.get():
                        tasks.start_soon(self._fill, threads, stream, name=f"read ahead {stream.path}")
                finally:
                    self._stop()
                    while not begun.empty():
                        begun.get_nowait().end(anyio.ClosedResourceError())
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def open(self, path: str) -> io.BufferedReader:
        """
        Open *path*; the bytes and errors are those of the file itself.

        A file that is not read ahead, or has changed since, is read directly. So is every file while
        the task does not run, or if this is the event loop's own thread, which would wait for itself.
        """
        stream = self._next_stream(path)
        if stream is not None:
            if stream.is_open_and_unchanged():
                return io.BufferedReader(stream)
            stream.close()
        return self._open_file(path)

    def _next_stream(self, path: str) -> "_Stream | None":
        with self._lock:
            if self._begin is None or threading.get_ident() == self._loop_thread:
                return None
            while len(self._ahead) < self._files and (next_path := next(self._paths, None)) is not None:
                self._ahead.append(_Stream(next_path))
                self._begin(self._ahead[-1])
            return self._ahead.popleft() if self._ahead and self._ahead[0].path == path else None

    def _put(self, begun: "asyncio.Queue[_Stream]", stream: "_Stream") -> None:
        if self._begin is None:
            stream.end(anyio.ClosedResourceError())
        else:
            begun.put_nowait(stream)

    async def _fill(self, threads: ThreadPoolExecutor, stream: "_Stream") -> None:
        """Read the file of *stream* into memory, at most so many blocks ahead of the reader."""
        room, loop = anyio.Semaphore(self._blocks - 1), asyncio.get_running_loop()
        stream.on_room = partial(loop.call_soon_threadsafe, room.release)
        try:
            # Many files are one block: one visit of a thread is enough for them.
            file = await loop.run_in_executor(threads, stream.begin, self._open_file, self._block_bytes)
            while file is not None:
                await room.acquire()
                if not stream.begin_read():
                    break
                # One read of the file: what comes before an error is not lost with it.
                if not stream.put(await wrap(file, executor=threads).read1(self._block_bytes)):
                    break
        except (OSError, ValueError) as error:  # ValueError: the reader has closed the file
            stream.end(error)
        finally:
            stream.end(anyio.ClosedResourceError())

    def _stop(self) -> None:
        with self._lock:
            self._begin = None
            never_read = list(self._ahead)
            self._ahead.clear()
        for stream in never_read:
            stream.close()


class _Stream(io.RawIOBase):
    """The bytes of one file, which a task puts in and another thread takes out."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.on_room: Callable[[], object] | None = None  # called whenever there is room for a block
        self._changed = threading.Condition()  # of what follows
        self._file: io.BufferedReader | None = None
        self._first_signature: Signature | None = None
        self.size = self._filled = 0  # bytes of the file when it was opened, and those that were put in
        self._taken = 0  # bytes
        self._blocks: deque[memoryview] = deque()
        self._is_reading = False
        self._has_ended = False
        self._error: Exception | None = None

    def begin(self, open_file: OpenFile, block_bytes: int) -> io.BufferedReader | None:
        """Open the file and read its first block, in a thread; return the file if there is more to read."""
        try:
            if path_signature(self.path) is None:
                return None
            file = open_file(self.path)
        except (OSError, ValueError):
            return None  # the reader opens it again, and gets the error in its turn
        with self._changed:
            if self._has_ended or self.closed:
                file.close()
                return None
            self._file, self._first_signature, self.size = file, file_signature(file), file_size(file)
            self._is_reading = True
            self._changed.notify_all()
        try:
            return file if self.put(file.read1(block_bytes)) else None
        except (OSError, ValueError) as error:  # ValueError: the reader has closed the file
            self.end(error)
            return None

    def begin_read(self) -> bool:
        """Note that the next block is being read; false if nobody will take it."""
        with self._changed:
            self._is_reading = not self.closed
            return self._is_reading

    def put(self, block: bytes) -> bool:
        """Add the block that was read, empty at the end; false if no more is needed."""
        with self._changed:
            self._is_reading = False
            self._filled += len(block)
            if block and not self.closed:
                self._blocks.append(memoryview(block))
                self._changed.notify_all()
                # At its size a file needs no other read, which would find nothing; one that has
                # grown meanwhile is found to have changed.
                if self._filled != self.size:
                    return True
        self.end(None)
        return False

    def end(self, error: Exception | None) -> None:
        """End the stream behind what it holds, with *error* if there is one; the first call counts."""
        with self._changed:
            self.on_room = None
            if not self._has_ended:
                self._has_ended, self._error = True, error
                self._changed.notify_all()

    def is_open_and_unchanged(self) -> bool:
        """Wait for the file to be opened; false if it could not be, or is another one by now."""
        with self._changed:
            self._changed.wait_for(lambda: self._file or self._has_ended)
            if self._file is None:
                return False
            try:
                now = file_signature(self._file), path_signature(self.path)
            except OSError:
                return False
            before = self._first_signature
            return before is not None and now == (before, before)

    @property
    def signature(self) -> Signature | None:
        """What the open file is now."""
        return None if self._file is None else file_signature(self._file)

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._taken

    def readinto(self, buffer: Any) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._has_ended)
            if not self._blocks:
                if self._error is not None:
                    raise self._error
                return 0
            block = self._blocks[0]
            size = min(len(block), len(buffer))
            buffer[:size] = block[:size]
            self._taken += size
            if size < len(block):
                self._blocks[0] = block[size:]
            else:
                self._blocks.popleft()
                self._announce_room()
            return size

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        with self._changed:
            self._blocks.clear()
            file, self._file = self._file, None
            self._announce_room()
            if file is None:
                return
            if self._is_reading:
                # Closing waits for the read, which may take long on a distant disk.
                threading.Thread(target=file.close, name=f"close {self.path}", daemon=True).start()
            else:
                file.close()

    def _announce_room(self) -> None:
        if self.on_room is not None:
            self.on_room()

"""
Inputs behind URLs: read by several ranged requests at once, checked to be one version of one object.

The delay of a distant server counts once and not for each block: blocks to come are on their way while the
current one is parsed. A request that fails is repeated, and goes on to be for the object that was opened.
"""

import errno
import io
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime
from importlib import import_module
from typing import Any, Final, NamedTuple

from .object_stores import (
    LITTLE_PATIENCE,
    PATIENCE,
    Location,
    Patience,
    locate,
    open_store,
    submit,
    translated_errors,
)

FIRST_BYTES, BLOCK_BYTES = 1 << 20, 4 << 20  # of the first block, doubled until it is one of the others
BLOCKS = 8  # in flight, at most: one when a file is opened, and one more with each that was taken
_ATTEMPTS = 5  # at an answer that breaks off; obstore repeats requests that are not answered

Meta = dict[str, Any]  # what obstore says of an object


def remote_signature(url: str, patience: Patience = PATIENCE) -> tuple[int | str, ...]:
    """
    Return what changes when the object at *url* is written or replaced.

    Raises:
        UsageError: it names no object
        OSError: there is none, or the server does not say
    """
    where = _locate_object(url)
    return _signature(_head(open_store(where.root, patience), where, url))


def look_up(urls: Iterable[str]) -> dict[str, OSError | None]:
    """Return why each of *urls* cannot be read, None if it can; many are asked for at once."""

    def look_up_one(url: str) -> OSError | None:
        try:
            where = locate(url)
            _head(open_store(where.root, LITTLE_PATIENCE), where, url)
        except OSError as error:
            return error
        return None

    found = {url: submit(look_up_one, url) for url in dict.fromkeys(urls)}
    return {url: future.result() for url, future in found.items()}


def list_directory(url: str) -> list[str]:
    """
    Return the URLs right under *url*, which ends with /, sorted; what is like a directory ends with /, too.

    Raises:
        OSError: it cannot be listed
    """
    where = locate(url)
    store, obstore = open_store(where.root, LITTLE_PATIENCE), import_module("obstore")
    with translated_errors(url):
        found: dict[str, Any] = obstore.list_with_delimiter(store, where.key.rstrip("/") or None)
    if not found["objects"] and not found["common_prefixes"]:
        raise FileNotFoundError(errno.ENOENT, "there is nothing under it")
    # The place itself may be an object: programs make one so that a directory is seen.
    objects = [meta["path"] for meta in found["objects"] if meta["path"] != where.key.rstrip("/")]
    directories = [f"{key.rstrip('/')}/" for key in found["common_prefixes"]]
    return [where.url(key) for key in sorted([*objects, *directories], key=lambda key: key.rstrip("/"))]


class RemoteFile(io.RawIOBase):
    """
    The object at a URL, from the moment when it is opened.

    Raises, from the constructor and every read:
        OSError: there is no such object, the server refuses it or does not answer, or it has changed
    """

    BUFFER_BYTES: Final = 1 << 20  # of the reader around it

    def __init__(self, url: str, patience: Patience = PATIENCE) -> None:
        self.url = url
        self._where = _locate_object(url)
        self._store = open_store(self._where.root, patience)
        self._patience = patience
        self._meta: Meta = _head(self._store, self._where, url)
        self.signature = _signature(self._meta)
        self.modified: datetime = self._meta["last_modified"]  # by the server's clock
        self.size: int = self._meta["size"]
        self._position = self._behind = 0  # of the next byte to read, and behind the last that was asked for
        self._block_bytes, self._width = FIRST_BYTES, 1
        self._blocks: deque[_Block] = deque()  # in flight or complete, consecutive, the current one first

    def __repr__(self) -> str:
        return f"<RemoteFile {self.url} at {self._position:,}>"

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that it can be read from anywhere."""
        return True

    def tell(self) -> int:
        """Return where the next byte is read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Read from there on; what is asked for is kept if it can still be read."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")
        self._position = start + offset
        if not (self._blocks and self._blocks[0].start <= self._position < self._behind):
            self._drop_blocks()
            self._behind = self._position
        while self._blocks and self._blocks[0].end <= self._position:
            self._blocks.popleft().content.cancel()
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into *buffer*, as much as there is; nothing at the end."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._position >= self.size or not len(buffer):
            return 0
        self._ask_ahead()
        block = self._blocks[0]
        with translated_errors(self.url):
            content = memoryview(block.content.result())
        rest = content[self._position - block.start :]
        count = min(len(rest), len(buffer))
        buffer[:count] = rest[:count]
        self._position += count
        if self._position == block.end:
            self._blocks.popleft()
            self._width = min(self._width + 1, BLOCKS)
            self._ask_ahead()
        return count

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes from the first to before the second number of each of *ranges*; all at once."""

        blocks = [submit(self._fetch, start, end) for start, end in ranges]
        with translated_errors(self.url):
            return [bytes(block.result()) for block in blocks]

    def close(self) -> None:
        """End all requests."""
        if not self.closed:
            self._drop_blocks()
        super().close()

    def _ask_ahead(self) -> None:
        while len(self._blocks) < self._width and self._behind < self.size:
            start, self._behind = self._behind, min(self._behind + self._block_bytes, self.size)
            self._blocks.append(_Block(start, self._behind, submit(self._fetch, start, self._behind)))
            self._block_bytes = min(2 * self._block_bytes, BLOCK_BYTES)

    def _drop_blocks(self) -> None:
        for block in self._blocks:
            block.content.cancel()
        self._blocks.clear()
        self._block_bytes, self._width = FIRST_BYTES, 1

    def _fetch(self, start: int, end: int) -> Any:
        """Return the bytes from *start* to before *end* of the object as it was when it was opened."""
        obstore = import_module("obstore")
        options: dict[str, Any] = {"range": (start, end)}
        tag, version = self._meta["e_tag"], self._meta["version"]
        # A weak one never matches, by the rules of HTTP; what the answer is of is compared anyway.
        if tag and not tag.startswith("W/"):
            options["if_match"] = tag
        if version:
            options["version"] = version
        for attempt in range(_ATTEMPTS):
            answer = obstore.get(self._store, self._where.key, options=options)
            if _signature(answer.meta) != self.signature:
                raise obstore.exceptions.PreconditionError(self.url)
            try:
                content = answer.bytes()
                if len(content) == end - start:
                    return content
            except obstore.exceptions.GenericError:
                if attempt == _ATTEMPTS - 1:
                    raise
            time.sleep(min(self._patience.pause * 2**attempt, self._patience.longest_pause))
        raise obstore.exceptions.GenericError("the server sends less than it announces")


class _Block(NamedTuple):
    """Consecutive bytes of an object, that were asked for."""

    start: int
    end: int
    content: "Future[Any]"


def _locate_object(url: str) -> Location:
    where = locate(url)
    if where.is_directory:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), url)
    return where


def _head(store: Any, where: Location, url: str) -> Meta:
    with translated_errors(url):
        found: Meta = import_module("obstore").head(store, where.key)
    return found


def _signature(meta: Meta) -> tuple[int | str, ...]:
    return meta["e_tag"] or "", meta["size"], meta["last_modified"].isoformat()

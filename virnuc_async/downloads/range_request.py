"""
One connection: requests a range of a file and writes what it receives.

A request knows nothing of the other connections of its file. Whether it is repeated, and which range is
requested next, is decided in ``fetch``.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from errno import ENOSPC
from io import FileIO
from math import inf
from socket import SHUT_RDWR, socket
from threading import Lock
from time import monotonic

from virnuc_async.errors import ChecksumMismatch

from .http import RangeMismatch, RangeResponse, TransientError, open_range
from .resume import PartialFile, Span
from .source import Source

_MIN_RATE = 1 << 10  # bytes per second, over the stall timeout: slower counts as a stalled connection


class Stopped(Exception):
    """The download was stopped: nobody waits for the file any more."""


@dataclass(slots=True, eq=False)
class RangeRequest:
    """
    A request for the bytes of *span*, which are written to *file*.

    It runs in a thread of its own, which ends with the span or with an exception.
    """

    source: Source
    file: PartialFile
    span: Span
    stall_timeout: float  # seconds
    is_stopped: Callable[[], bool]
    is_alone: bool  # no other request is running, and none is started before this one has a response
    may_split: bool  # other connections may follow, if the server supports ranges
    has_response: bool = False
    lacks_ranges: bool = False  # the server gives no ranges, or no reliable ones
    is_longer: bool = False  # the server sent more bytes than it had announced
    restart_reason: str = ""  # why received data was dropped
    received: int = 0  # bytes
    started: float = field(default_factory=monotonic)
    _waiting_since: float = inf  # for the server
    _socket: socket | None = None  # a second handle of the connection
    _lock: Lock = field(default_factory=Lock)  # of that handle
    _is_aborted: bool = False

    def run(self) -> None:
        """
        Receive the bytes of the span, or as many of them as the server sends in one response.

        Raises:
            TransientError: the request can be repeated
            DownloadRefused, ChecksumMismatch: it cannot
            Stopped: nobody waits for the file any more
            OSError: the disk is full, or cannot be written to
        """
        requested, validator = self._requested_range()
        self._waiting_since = monotonic()
        try:
            with open_range(
                self.source.url, self.stall_timeout, self._connected, requested, validator
            ) as response:
                self._accept(response)
                self.has_response = True
                with self.file.open() as file:
                    self._copy(response, file)
        except TransientError:
            self._check_not_aborted()
            raise
        finally:
            self._connected(None)

    @property
    def shortfall(self) -> str:
        """Why the bytes of the span did not all arrive, although the connection ended well."""
        if self.restart_reason:
            return self.restart_reason
        return f"the server ended its answer after {self.received:,} bytes, {self.span.remaining:,} too early"

    def abort_if_stuck(self) -> None:
        """Close the connection if the server neither sends data nor stops sending something else."""
        # Later than the timeout of the socket, which knows more about the reason.
        if monotonic() - self._waiting_since > 2 * self.stall_timeout:
            self.abort()

    def abort(self) -> None:
        """Close the connection, from another thread than that of :meth:`run`."""
        with self._lock, suppress(OSError):
            if self._socket:
                self._is_aborted = True
                self._socket.shutdown(SHUT_RDWR)

    def _connected(self, connection: socket | None) -> None:
        """Keep a handle of a new connection, until the next one, or None, takes its place."""
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = connection and connection.dup()
        self._waiting_since = monotonic()

    def _check_not_aborted(self) -> None:
        if self._is_aborted:
            raise TransientError("the server does not respond")

    def _requested_range(self) -> tuple[str, str]:
        """Return the range to request, and the validator of the file that the server must still have."""
        if self.file.is_begun:
            last = "" if self.file.total is None else self.span.end - 1
            return f"{self.span.start}-{last}", self.file.validator
        # The whole file is requested as a range: the response then shows whether the server supports them.
        return "0-" if self.may_split else "", ""

    def _accept(self, response: RangeResponse) -> None:
        """
        Check that *response* continues the span; start from scratch if it is of another file.

        Raises:
            RangeMismatch: it is another part, or another file while other requests are running
            ChecksumMismatch: it cannot be the published file
            OSError: the disk has too little space
        """
        file = self.file
        is_same_file = response.validator in ("", file.validator) and response.total in (None, file.total)
        is_continued = file.is_begun and response.is_range and response.start == self.span.start
        if not (is_continued and is_same_file):
            if response.start or not self.is_alone:
                raise RangeMismatch("the server sent another part of the file than requested")
            if response.total is not None:
                self._check_size(response.total)
            self.lacks_ranges = not (response.is_range and response.validator and response.total)
            if file.is_begun:
                self.restart_reason = _restart_reason(response, is_same_file)
            self.span = file.begin(response.validator, response.total)
        if shutil.disk_usage(file.part.parent).free < file.needed_space:
            raise OSError(ENOSPC, f"{os.strerror(ENOSPC)}, {file.needed_space:,} bytes are missing")

    def _check_size(self, total: int) -> None:
        if self.source.size not in (None, total):
            reason = f"it has {total:,} bytes, not the published {self.source.size:,}"
        elif total > self.source.limit:
            reason = f"it has {total:,} bytes, more than the limit of {self.source.limit:,}"
        else:
            return
        raise ChecksumMismatch(self.source.url, reason)

    def _copy(self, response: RangeResponse, file: FileIO) -> None:
        span, since, before = self.span, monotonic(), 0
        for block in response.blocks():
            if self.is_stopped():
                raise Stopped
            self._waiting_since = inf
            if self.file.total is None and len(block) > span.remaining:
                self.file.discard()
                reason = f"it has more bytes than the limit of {self.source.limit:,}"
                raise ChecksumMismatch(self.source.url, reason, is_deleted=True)
            written = self.file.write(file, span, block)
            self._waiting_since = monotonic()
            self.received += len(block)
            if response.end is not None and self.received > response.end - response.start:
                self.is_longer = True
            # The rest of the block was not written: a span that has grown again since is not continued
            # by the next block, but by another request.
            if self.file.total is not None and (written < len(block) or not span.remaining):
                return
            if monotonic() - since >= self.stall_timeout:
                if self.received - before < _MIN_RATE * self.stall_timeout:
                    raise TransientError(f"hardly any data for {self.stall_timeout:g} s")
                since, before = monotonic(), self.received
        self._check_not_aborted()
        self._check_complete(response)

    def _check_complete(self, response: RangeResponse) -> None:
        """Check that the response ended where it should; raise TransientError if the connection broke."""
        # Without an announced length, the end of the response is the end of the file.
        if response.end is not None and self.span.start < min(response.end, self.span.end):
            raise TransientError(f"the connection closed at byte {self.span.start:,}")
        if self.file.total is None:
            self.file.end(self.span)


def _restart_reason(response: RangeResponse, is_same_file: bool) -> str:
    """Return why *response* is not continued, but received from the first byte on."""
    if not is_same_file:
        return "the server sends another file than before"
    if response.is_range:
        return "the server sends the beginning of the file, whatever range is requested"
    return "the server sends all of the file, whatever range is requested"

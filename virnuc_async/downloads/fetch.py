"""
Downloads: files are fetched at the same time, resumed where they broke off, and checked before use.

A large file is fetched over several connections, each with a range of it, if the server supports ranges
and identifies the file by a validator (``ETag`` or ``Last-Modified``). The file begins as one range; a
free connection takes the second half of the longest range that is left. A file gets its name only when
it is complete and checked.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from errno import ENOLCK, ENOTSUP
from pathlib import Path
from time import monotonic
from typing import IO

from virnuc_async.errors import (
    ChecksumMismatch,
    DownloadBusy,
    DownloadInterrupted,
    DownloadRefused,
)
from virnuc_async.fileio import open_nofollow, writing_to

from .http import RangeMismatch, TransientError
from .range_request import RangeRequest, Stopped
from .resume import PartialFile, Span
from .source import Source

_PROGRESS_BYTES = 1 << 18  # attempts that bring the file as much further than it ever was have not failed
_POLL_INTERVAL = 0.1  # seconds between looks at the connections of a file
_PROGRESS_INTERVAL = 0.5  # seconds between calls of the progress callback
_MAX_LOCK_ATTEMPTS = 100
_SHUTDOWN_TIMEOUT = 0.5  # seconds that connections have to end after a failure or Ctrl-C


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a request is repeated, and when the download of a file is given up."""

    stall_timeout: float = 30.0  # seconds without data
    max_attempts: int = 6  # in a row without progress; and how many times a file is begun anew
    backoff: float = 1.0  # seconds before the second attempt; doubled for each further one


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How files are downloaded."""

    retry: RetryPolicy = RetryPolicy()
    # Of one file. Measured with scripts/bench_downloads.py (docs/benchmarks/downloads.json): if the server
    # limits the rate of each connection, four take a quarter of the time of one for a large file, and half
    # for a set of files. They make no difference if all connections share a limit, and take 6 to 7 % longer
    # without any limit, at 1 GB/s from the same machine. The official servers were not measured.
    max_connections: int = 4
    min_split_bytes: int = 1 << 26  # a shorter range is not split for another connection
    sync_interval: float = 2.0  # seconds of received data that a kill -9 can lose


class TransferState(StrEnum):
    """What happens to a file at the moment, as it is shown to the user."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    RECEIVING = "receiving"
    RETRYING = "trying again"
    CHECKING = "checking"
    DONE = "done"


@dataclass(slots=True)
class Transfer:
    """The progress of one file; written by the thread that downloads it, read by any thread."""

    source: Source
    state: TransferState = TransferState.WAITING
    done: int = 0  # bytes
    total: int | None = None
    error: str = ""  # why the last attempt failed

    @property
    def status(self) -> str:
        """The state, and the reason for another attempt, or what was strange."""
        has_reason = self.error and self.state in (TransferState.RETRYING, TransferState.DONE)
        return f"{self.state}: {self.error}" if has_reason else str(self.state)


ProgressCallback = Callable[[Sequence[Transfer]], object]

DEFAULT_OPTIONS = FetchOptions()


def fetch_all(
    sources: Sequence[Source],
    directory: Path,
    on_progress: ProgressCallback,
    options: FetchOptions = DEFAULT_OPTIONS,
) -> None:
    """
    Download *sources* into *directory*, all at the same time; call *on_progress* twice a second.

    A file that exists already is not downloaded if it passes its checks.

    Raises:
        DownloadRefused, DownloadInterrupted, ChecksumMismatch: the first failure; received data is kept
        CannotWrite: the disk is full, or cannot be written to
    """
    transfers = [Transfer(source, total=source.size) for source in sources]
    stopped = threading.Event()
    pool = ThreadPoolExecutor(len(transfers), "download")
    downloads = [
        pool.submit(_FileDownload(transfer, directory, options, stopped).run) for transfer in transfers
    ]
    is_finished = False
    try:
        while not is_finished:
            is_finished = _wait_for_end(downloads)
            on_progress(transfers)
    finally:
        stopped.set()
        # After Ctrl-C the threads may save what was received, and no more: one may be checking gigabytes.
        pool.shutdown(wait=is_finished, cancel_futures=True)
        wait(downloads, timeout=4 * _SHUTDOWN_TIMEOUT)
    for future in downloads:
        if not future.cancelled():
            future.result()


def _wait_for_end(downloads: Sequence["Future[None]"]) -> bool:
    """Wait a moment; return whether all downloads have ended, or one has failed."""
    done, pending = wait(downloads, timeout=_PROGRESS_INTERVAL, return_when=FIRST_EXCEPTION)
    return not pending or any(future.exception() for future in done)


@contextmanager
def exclusive_lock(directory: Path) -> Iterator[None]:
    """
    Create *directory*, and be the only process that downloads into it.

    Raises:
        DownloadBusy: another process does
    """
    for _ in range(_MAX_LOCK_ATTEMPTS):
        # If there is none, the process that had the lock deleted the directory meanwhile.
        if file := _lock(directory):
            with file:
                yield
            return
    raise DownloadBusy(str(directory))


def _lock(directory: Path) -> IO[bytes] | None:
    """Return the lock file of *directory*, locked while it is open; None if it was replaced meanwhile."""
    directory.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError), ExitStack() as undo:
        file = undo.enter_context(open(directory / "lock", "ab", opener=open_nofollow))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadBusy(str(directory)) from error
        except OSError as error:
            if error.errno not in (ENOLCK, ENOTSUP):  # of file systems without locks
                raise
        if os.path.samestat(os.fstat(file.fileno()), os.stat(directory / "lock")):
            undo.pop_all()
            return file
    return None


class _FileDownload:
    """
    The download of one file.

    The thread that runs it decides: which range is requested, when a request is repeated, and when
    received data is synced. Each connection is a thread that runs one request.
    """

    def __init__(
        self, transfer: Transfer, directory: Path, options: FetchOptions, stopped: threading.Event
    ) -> None:
        self._transfer, self._source = transfer, transfer.source
        self._path = directory / self._source.name
        self._file = PartialFile(self._path, self._source.url, self._source.limit)
        self._options, self._retry, self._stopped = options, options.retry, stopped
        self._is_ended = False  # requests that are still running have nothing to do any more
        self._requests: dict[Future[None], RangeRequest] = {}
        # A file that is surely small needs no ranges.
        is_large = self._source.limit >= options.min_split_bytes
        self._max_connections = options.max_connections if is_large else 1
        self._failed_attempts = self._furthest = 0  # in a row, bytes
        self._excess = ""  # what the server sent too much
        self._failed_at = self._retry_at = self._synced_at = monotonic()

    def __repr__(self) -> str:
        attempts = f"{len(self._requests)} connections, {self._failed_attempts} failed attempts"
        return f"<_FileDownload {self._file!r} [{attempts}]>"

    def run(self) -> None:
        """Download and check the file, unless it is stopped."""
        kept = "Received data is kept: rerun the same command to resume"
        with suppress(Stopped):
            with writing_to(self._file.part, hint=kept):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if self._is_present():
                    self._file.discard()  # of an earlier attempt
                else:
                    self._receive()
                    self._verify()
                    self._file.finish()
            self._transfer.error, self._transfer.state = self._excess, TransferState.DONE

    def _is_present(self) -> bool:
        """Return whether the file exists and passes its checks; delete it if it does not pass."""
        if not self._path.is_file():
            return False
        is_right = not self._mismatch_reason(self._path)
        if not is_right:
            self._path.unlink()
        return is_right

    def _verify(self) -> None:
        if reason := self._mismatch_reason(self._file.part):
            self._file.discard()
            reasons = "; ".join(filter(None, (reason, self._excess)))
            raise ChecksumMismatch(self._source.url, reasons, is_deleted=True)

    def _mismatch_reason(self, path: Path) -> str:
        self._transfer.state = TransferState.CHECKING
        self._transfer.done = self._transfer.total = path.stat().st_size
        return self._source.mismatch_reason(path)

    def _receive(self) -> None:
        """Receive all missing bytes; whatever happens, record which were received."""
        self._transfer.state = TransferState.CONNECTING
        pool = ThreadPoolExecutor(self._options.max_connections, "connection")
        try:
            while self._file.missing:
                if self._is_stopped():
                    raise Stopped
                self._connect(pool)
                self._poll()
        finally:
            self._is_ended = True
            for request in self._requests.values():
                request.abort()
            pool.shutdown(wait=False, cancel_futures=True)
            wait(self._requests, timeout=_SHUTDOWN_TIMEOUT)
            self._file.checkpoint()

    def _is_stopped(self) -> bool:
        return self._is_ended or self._stopped.is_set()

    def _connect(self, pool: ThreadPoolExecutor) -> None:
        """Start another request, if there is a range for it."""
        requests = self._requests.values()
        if any(request.lacks_ranges for request in requests):
            self._max_connections = 1
        # One after another: a server that does not respond gets no more requests than from one connection.
        is_connecting = any(not request.has_response for request in requests)
        if is_connecting or len(requests) >= self._max_connections or monotonic() < self._retry_at:
            return
        if span := self._next_span():
            request = RangeRequest(
                self._source,
                self._file,
                span,
                self._retry.stall_timeout,
                self._is_stopped,
                is_alone=not requests,
                may_split=self._max_connections > 1,
            )
            self._requests[pool.submit(request.run)] = request

    def _next_span(self) -> Span | None:
        """Return a span without a request, or the second half of the longest one if it is worth it."""
        requested = {request.span for request in self._requests.values()}
        for span in self._file.missing:
            if span not in requested:
                return span
        longest = max(self._file.missing, key=lambda span: span.remaining)
        return self._file.split(longest) if longest.remaining >= self._options.min_split_bytes else None

    def _poll(self) -> None:
        """Wait a moment for a request to end; update the progress."""
        if self._requests:
            done, _ = wait(self._requests, timeout=_POLL_INTERVAL, return_when=FIRST_COMPLETED)
            for future in done:
                self._handle_outcome(self._requests.pop(future), future.exception())
        else:
            self._stopped.wait(min(_POLL_INTERVAL, max(self._retry_at - monotonic(), 0)))
        for request in self._requests.values():
            request.abort_if_stuck()
        if any(request.has_response for request in self._requests.values()):
            self._transfer.state = TransferState.RECEIVING
        self._transfer.done = self._file.done
        self._transfer.total = self._source.size if self._file.total is None else self._file.total
        if monotonic() - self._synced_at >= self._options.sync_interval:
            self._file.checkpoint()
            self._synced_at = monotonic()

    def _handle_outcome(self, request: RangeRequest, failure: BaseException | None) -> None:
        """Decide what follows from how *request* ended."""
        self._file.prune()
        is_refused = isinstance(failure, DownloadRefused | RangeMismatch)
        if is_refused or request.lacks_ranges:
            self._max_connections = 1
        if request.is_longer:
            self._excess = "the server sent more bytes than it had announced; they were dropped"
        if is_refused and not request.is_alone:
            # The server refuses a second connection, or does not support ranges: another request takes over.
            self._file.merge(request.span)
        elif failure is None and not request.span.remaining:
            self._failed_attempts = 0
        elif failure is None or isinstance(failure, TransientError):
            self._schedule_retry(request, failure)
        else:
            raise failure

    def _schedule_retry(self, request: RangeRequest, failure: TransientError | None) -> None:
        """
        Wait before the next request, unless the server has just ended its answer and brought progress.

        Raises:
            DownloadInterrupted: too many attempts failed, or had to begin anew
        """
        # Not what was received: a server may send the same bytes again and again.
        has_progress = self._file.done - self._furthest >= _PROGRESS_BYTES
        if has_progress:
            self._failed_attempts, self._furthest = 0, self._file.done
        elif request.started >= self._failed_at:  # of several that fail at the same time, one counts
            self._failed_attempts += 1
        # Without a validator it cannot be known whether the file is still the same.
        if isinstance(failure, RangeMismatch) or not self._file.validator:
            self._file.discard()
        self._failed_at = self._retry_at = monotonic()
        if not self._requests:
            self._transfer.error = reason = _reason(request, failure)
            most = self._retry.max_attempts
            if self._failed_attempts >= most or self._file.restarts > most:
                raise DownloadInterrupted(self._source.url, reason, most)
            self._transfer.state = TransferState.RETRYING
        if failure or not has_progress:
            exponent = min(self._failed_attempts, self._retry.max_attempts)
            self._retry_at = self._failed_at + self._retry.backoff * 2**exponent


def _reason(request: RangeRequest, failure: TransientError | None) -> str:
    """Return what the server did, so that the range of *request* is not complete."""
    if failure is None:
        return request.shortfall
    return f"{request.restart_reason}, and then {failure}" if request.restart_reason else str(failure)

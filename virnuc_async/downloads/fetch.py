"""
Files from the network: fetched side by side, gone on with where they broke off, checked before use.

A large file comes over several connections at once, each with a range of it, where the server gives
ranges and says by what it knows the file again. It begins as one range, the whole; a connection that
is free takes the second half of the longest. Whatever happens, half a file never has its name.
"""

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from errno import ENOLCK, ENOSPC, ENOTSUP
from io import FileIO
from pathlib import Path
from time import monotonic
from typing import IO
from zipfile import BadZipFile, ZipFile, is_zipfile

from virnuc_async.errors import (
    BundleError,
    CannotWrite,
    ChecksumMismatch,
    DownloadBusy,
    DownloadInterrupted,
    DownloadRefused,
)
from virnuc_async.fileio import open_nofollow, sha256

from .http import RangeMismatch, RangeResponse, TransientError, open_range
from .resume import PartialFile, Span

_BLOCK = 1 << 20
_LEAST = 1 << 10  # bytes within the patience for a stall: less is none
_PROGRESS = 1 << 20  # bytes after which a try was not in vain, if the file was never so far
_WORTH_HALVING = 1 << 26  # bytes of a range: half of them repay another connection
_CONNECTIONS = 4  # for one file
_LOOKED_AT = 0.1  # seconds between looks at what the connections do
_KEPT_EVERY = 2.0  # seconds of receiving that a kill -9 can cost
_LAST_WORDS = 0.5  # seconds that connections have to end when all is over
_KEPT = "What has come is kept: the same command goes on"


@dataclass(frozen=True, slots=True)
class Source:
    """A file to be had; *name* is its path in the directory where it is to lie."""

    url: str
    name: str
    size: int | None = None
    sha256: str = ""
    git_blob: str = ""
    check: Callable[[Path], object] | None = None  # raises a BundleError where the content is not right
    most: int = 1 << 62  # bytes that it can have, where no size was published
    origin: str = ""  # what names it, wherever it is got from

    @property
    def limit(self) -> int:
        """How many bytes it can have."""
        return self.most if self.size is None else self.size


@dataclass(frozen=True, slots=True)
class Patience:
    """When to try again, and when no more."""

    stall: float = 30.0  # seconds without data
    tries: int = 6  # in a row that brought nothing
    pause: float = 1.0  # seconds before the second try; doubled for each one more


_USUAL = Patience()


@dataclass(slots=True)
class Transfer:
    """How far a file is; written by the thread that fetches it, read by any."""

    source: Source
    doing: str = "waiting"
    done: int = 0  # bytes
    total: int | None = None


ProgressCallback = Callable[[Sequence[Transfer]], object]


def fetch_all(
    sources: Sequence[Source], directory: Path, watch: ProgressCallback, patience: Patience | None = None
) -> None:
    """
    Fetch *sources* into *directory*, side by side; call *watch* twice a second meanwhile.

    What is there already is taken if it is right.

    Raises:
        DownloadRefused, DownloadInterrupted, ChecksumMismatch: the first file failed; its parts are kept
        CannotWrite: the disk is full, or not to be written to
    """
    transfers = [Transfer(source, total=source.size) for source in sources]
    stopped = threading.Event()
    pool = ThreadPoolExecutor(len(transfers), "download")
    work = [
        pool.submit(_Fetching(transfer, directory, patience or _USUAL, stopped).run) for transfer in transfers
    ]
    is_over = False
    try:
        while not is_over:
            is_over = _is_over(work)
            watch(transfers)
    finally:
        stopped.set()
        # After a Ctrl-C they may write down what came, and no more: one may be checking gigabytes.
        pool.shutdown(wait=is_over, cancel_futures=True)
        wait(work, timeout=4 * _LAST_WORDS)
    for future in work:
        if not future.cancelled():
            future.result()


def _is_over(work: Sequence["Future[None]"]) -> bool:
    done, pending = wait(work, timeout=0.5, return_when=FIRST_EXCEPTION)
    return not pending or any(future.exception() for future in done)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """
    Make *directory* and be the only process at work there.

    Raises:
        DownloadBusy: another one is
    """
    while not (file := _locked(directory)):
        pass  # whoever had it before deleted it meanwhile
    with file:
        yield


def _locked(directory: Path) -> IO[bytes] | None:
    """Give the lock file of *directory*, locked while it is open; None if it is not the one there."""
    directory.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError), ExitStack() as undo:
        file = undo.enter_context(open(directory / "lock", "ab", opener=open_nofollow))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadBusy(str(directory)) from error
        except OSError as error:
            if error.errno not in (ENOLCK, ENOTSUP):  # of file systems that have no locks
                raise
        if os.path.samestat(os.fstat(file.fileno()), os.stat(directory / "lock")):
            undo.pop_all()
            return file
    return None


class _Stopped(Exception):
    """Nobody waits for the file any more."""


@dataclass(slots=True, eq=False)
class _Try:
    """One connection, for the bytes of *span*."""

    span: Span
    is_alone: bool  # no other one is there, nor will be until this has an answer
    has_answer: bool = False
    brought: int = 0  # bytes
    since: float = field(default_factory=monotonic)


class _Fetching:
    """
    One file, as far as it is.

    The thread that runs it decides: which range is asked for, when one is tried again, when what came
    is written down. A connection is a thread that does as it is told, and ends.
    """

    def __init__(
        self, transfer: Transfer, directory: Path, patience: Patience, stopped: threading.Event
    ) -> None:
        self._transfer, self._source = transfer, transfer.source
        self._path = directory / self._source.name
        self._file = PartialFile(self._path, self._source.url, self._source.limit)
        self._patience, self._stopped, self._is_over = patience, stopped, False
        self._tries: dict[Future[None], _Try] = {}
        # Of a file that is small for certain, nobody needs ranges.
        self._most_tries = _CONNECTIONS if self._source.limit >= _WORTH_HALVING else 1
        self._in_vain = self._furthest = 0  # tries, bytes
        self._failed_at = self._not_before = self._kept_at = monotonic()

    def __repr__(self) -> str:
        return f"<_Fetching {self._file!r} [{len(self._tries)} connections, {self._in_vain} tries in vain]>"

    def run(self) -> None:
        """Have the file there and checked, unless it is stopped."""
        with suppress(_Stopped):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if self._is_there():
                    self._file.forget()  # what came of it before
                else:
                    self._receive()
                    self._check()
                    self._file.finish()
            except OSError as error:
                raise CannotWrite(str(self._file.part), f"{error.strerror or error}. {_KEPT}") from error
            self._transfer.doing = "done"

    def _is_there(self) -> bool:
        """Whether the file is there and right, of an earlier day; one that is not goes."""
        if not self._path.is_file():
            return False
        is_right = not self._what_is_wrong(self._path)
        if not is_right:
            self._path.unlink()
        return is_right

    def _check(self) -> None:
        if reason := self._what_is_wrong(self._file.part):
            self._file.forget()
            raise ChecksumMismatch(self._source.url, reason, is_deleted=True)

    def _what_is_wrong(self, path: Path) -> str:
        self._transfer.doing = "checking"
        self._transfer.done = self._transfer.total = path.stat().st_size
        return _what_is_wrong(path, self._source)

    # What follows, up to the connections, is done by the thread that decides.

    def _receive(self) -> None:
        """Have all bytes come, and know of them on another day whatever happens."""
        self._transfer.doing = "connecting"
        pool = ThreadPoolExecutor(_CONNECTIONS, "connection")
        try:
            while self._file.missing:
                self._go_on()
                self._connect(pool)
                self._look()
        finally:
            self._is_over = True
            pool.shutdown(wait=False, cancel_futures=True)
            wait(self._tries, timeout=_LAST_WORDS)
            self._file.keep()

    def _go_on(self) -> None:
        if self._is_over or self._stopped.is_set():
            raise _Stopped

    def _connect(self, pool: ThreadPoolExecutor) -> None:
        """Open a connection, if there is something for it to do."""
        # One after the other: whoever does not answer is asked no more than it would be by one.
        is_opening = any(not each.has_answer for each in self._tries.values())
        if is_opening or len(self._tries) >= self._most_tries or monotonic() < self._not_before:
            return
        if span := self._next_span():
            one = _Try(span, is_alone=not self._tries)
            self._tries[pool.submit(self._fetch, one)] = one

    def _next_span(self) -> Span | None:
        """Give what nobody is at, or half of the longest range if it is worth it."""
        held = {one.span for one in self._tries.values()}
        for span in self._file.missing:
            if span not in held:
                return span
        longest = max(self._file.missing, key=lambda span: span.left)
        return self._file.halve(longest) if longest.left >= _WORTH_HALVING else None

    def _look(self) -> None:
        """Wait a moment for a connection to end; see how far the file is."""
        if self._tries:
            done, _ = wait(self._tries, timeout=_LOOKED_AT, return_when=FIRST_COMPLETED)
            for future in done:
                self._judge(self._tries.pop(future), future.exception())
        else:
            self._stopped.wait(min(_LOOKED_AT, max(self._not_before - monotonic(), 0)))
        if any(one.has_answer for one in self._tries.values()):
            self._transfer.doing = "receiving"
        self._transfer.done = self._file.done
        self._transfer.total = self._source.size if self._file.total is None else self._file.total
        if monotonic() - self._kept_at >= _KEPT_EVERY:
            self._file.keep()
            self._kept_at = monotonic()

    def _judge(self, one: _Try, failure: BaseException | None) -> None:
        """Learn from how a connection ended."""
        self._file.drop()
        if failure is None:
            self._in_vain = 0
            return
        is_refusal = isinstance(failure, DownloadRefused | RangeMismatch)
        if is_refusal:
            self._most_tries = 1
        if is_refusal and not one.is_alone:
            # Another connection is given it: this server wants no second one, or has no ranges after all.
            self._file.unite(one.span)
        elif isinstance(failure, TransientError):
            self._try_again(one, failure)
        else:
            raise failure

    def _try_again(self, one: _Try, trouble: TransientError) -> None:
        if one.brought >= _PROGRESS and self._file.done > self._furthest:
            self._in_vain = 0
        elif one.since >= self._failed_at:  # of several that break at once, one counts
            self._in_vain += 1
        self._furthest = max(self._furthest, self._file.done)
        # Of a file without a validator nobody could tell whether it is the same still.
        if isinstance(trouble, RangeMismatch) or not self._file.validator:
            self._file.forget()
        if not self._tries:
            if self._in_vain >= self._patience.tries:
                raise DownloadInterrupted(self._source.url, str(trouble))
            self._transfer.doing = f"trying again: {trouble}"
        self._failed_at = monotonic()
        pause = self._patience.pause * 2 ** min(self._in_vain, self._patience.tries)
        self._not_before = self._failed_at + pause

    # What follows is done by the thread of a connection.

    def _fetch(self, one: _Try) -> None:
        """Receive the bytes of a span, or those of them that the server gives at once."""
        wanted, validator = self._question(one.span)
        with open_range(self._source.url, self._patience.stall, wanted, validator) as answer:
            self._accept(answer, one)
            one.has_answer = True
            with self._file.opened() as file:
                self._copy(answer, one, file)

    def _question(self, span: Span) -> tuple[str, str]:
        """Give the range to ask for, and by what the server is to know the file."""
        if self._file.is_begun:
            last = "" if self._file.total is None else span.end - 1
            return f"{span.at}-{last}", self._file.validator
        # All of it, as a range: the answer then says whether there are any.
        return "0-" if self._most_tries > 1 else "", ""

    def _accept(self, answer: RangeResponse, one: _Try) -> None:
        """See that *answer* goes on where the span begins; begin anew if it is of another file."""
        file = self._file
        is_same = answer.validator in ("", file.validator) and answer.total in (None, file.total)
        if not (file.is_begun and answer.is_range and is_same and answer.start == one.span.at):
            if answer.start or not one.is_alone:
                raise RangeMismatch("the server gave another part of the file than was asked for")
            if answer.total is not None:
                self._see_that_it_can_be(answer.total)
            if not (answer.is_range and answer.validator and answer.total):
                self._most_tries = 1
            one.span = file.begin(answer.validator, answer.total)
        if shutil.disk_usage(file.part.parent).free < file.room:
            raise OSError(ENOSPC, f"{os.strerror(ENOSPC)}, {file.room:,} bytes are missing")

    def _see_that_it_can_be(self, total: int) -> None:
        if self._source.size not in (None, total):
            reason = f"it has {total:,} bytes, and was published with {self._source.size:,}"
        elif total > self._source.limit:
            reason = f"it has {total:,} bytes, and can have no more than {self._source.limit:,}"
        else:
            return
        raise ChecksumMismatch(self._source.url, reason)

    def _copy(self, answer: RangeResponse, one: _Try, file: FileIO) -> None:
        span, since, before = one.span, monotonic(), 0
        for block in answer.blocks():
            self._go_on()
            if self._file.total is None and len(block) > span.left:
                self._file.forget()
                reason = f"it has more than {self._source.limit:,} bytes, which it cannot"
                raise ChecksumMismatch(self._source.url, reason, is_deleted=True)
            self._file.write(file, span, block)
            one.brought += len(block)
            if self._file.total is not None and not span.left:
                return
            if monotonic() - since >= self._patience.stall:
                if one.brought - before < _LEAST:
                    raise TransientError(f"hardly anything came for {self._patience.stall:g} s")
                since, before = monotonic(), one.brought
        self._see_that_it_came(answer, span)

    def _see_that_it_came(self, answer: RangeResponse, span: Span) -> None:
        """Tell an answer that is over from one that broke off."""
        end = span.at if answer.end is None else min(answer.end, span.end)
        if span.at < end:
            raise TransientError(f"the connection ended at byte {span.at:,}")
        if self._file.total is None:
            self._file.end(span)


def _what_is_wrong(path: Path, source: Source) -> str:
    """Say why the content of *path* is not that of *source*; nothing if it is, as far as is known."""
    size = path.stat().st_size
    if source.size not in (None, size):
        return f"it has {size:,} bytes, and was published with {source.size:,}"
    if source.sha256 and (found := sha256(path)) != source.sha256:
        return f"its sha256 is {found}, and was published as {source.sha256}"
    if source.git_blob and (found := git_blob(path)) != source.git_blob:
        return f"its git blob id is {found}, and was published as {source.git_blob}"
    try:
        if member := _damaged_member(path):
            return f"the checksum of {member} in it is wrong"
        if source.check:
            source.check(path)
    except BadZipFile as error:
        return str(error)
    except BundleError as failure:
        return getattr(failure, "reason", str(failure))
    return ""


def _damaged_member(path: Path) -> str | None:
    """Give the member whose checksum is wrong, of a zip file: torch's are such, since 1.6."""
    if not is_zipfile(path):
        return None
    with ZipFile(path) as archive:
        return archive.testzip()


def git_blob(path: Path) -> str:
    """Give the id that git has for the content of *path*."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()

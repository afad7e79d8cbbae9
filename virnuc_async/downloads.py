"""
Files from the network: fetched side by side, gone on with where they broke off, checked before use.

A file is ``NAME.part`` until all of it is there and every check has passed. It is gone on with only
if the server says that it is the same file still; whatever happens, half a file never has its name.

urllib does it, of the standard library: it follows redirects and honours HTTP_PROXY, HTTPS_PROXY and
NO_PROXY. Ranges, which no library resumes by itself, are the part that is written here.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from errno import ENOLCK, ENOSPC, ENOTSUP
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage, HTTPResponse
from io import FileIO
from pathlib import Path
from ssl import SSLCertVerificationError
from time import monotonic
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener
from zipfile import BadZipFile, ZipFile, is_zipfile

from . import __version__
from .bundles import sha256
from .failures import (
    BundleError,
    CannotWrite,
    DownloadBroken,
    DownloadBusy,
    NotServed,
    WrongDownload,
)
from .files import fresh, not_through_a_link, read_small

_BLOCK = 1 << 20
_LEAST = 1 << 10  # bytes within the patience for a stall: less is none
_PROGRESS = 1 << 20  # bytes after which a try has not been in vain
_KEPT = "What has come is kept: the same command goes on"
_TRY_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))


@dataclass(frozen=True, slots=True)
class Source:
    """A file to be had; *name* is its path in the directory where it is to lie."""

    url: str
    name: str
    size: int | None = None
    sha256: str = ""
    git_blob: str = ""
    check: Callable[[Path], object] | None = None  # raises a BundleError where the content is not right


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


Watch = Callable[[Sequence[Transfer]], object]


def fetch_all(
    sources: Sequence[Source], directory: Path, watch: Watch, patience: Patience | None = None
) -> None:
    """
    Fetch *sources* into *directory*, side by side; call *watch* twice a second meanwhile.

    Raises:
        NotServed, DownloadBroken, WrongDownload: of the first file that failed; what came is kept
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
        # After a Ctrl-C they are not waited for: one may wait for a server that does not answer.
        pool.shutdown(wait=is_over, cancel_futures=True)
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
        file = undo.enter_context(open(directory / "lock", "ab", opener=not_through_a_link))
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


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, but not from an encrypted connection to one that is not."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if req.type == "https" and not newurl.startswith("https:"):
            fp.close()
            raise NotServed(req.full_url, f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Trouble(Exception):
    """Something that may go better the next time; its text says what."""


class _NoSuchRange(_Trouble):
    """The file is shorter than what there is of it: it is another one."""


class _Fetching:
    """One file, as far as it is."""

    def __init__(
        self, transfer: Transfer, directory: Path, patience: Patience, stopped: threading.Event
    ) -> None:
        self._transfer = transfer
        self._source = transfer.source
        self._path = directory / self._source.name
        self._part = self._path.with_name(f"{self._path.name}.part")
        self._facts = self._path.with_name(f"{self._path.name}.part.json")
        self._patience = patience
        self._stopped = stopped

    def run(self) -> None:
        """Have the file there and checked, unless it is stopped."""
        with suppress(_Stopped):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if self._path.is_file():
                    self._path.replace(self._part)  # of an earlier day: it is checked again
                else:
                    self._receive_patiently()
                self._check()
                self._part.replace(self._path)
                self._facts.unlink(missing_ok=True)
            except OSError as error:
                raise CannotWrite(str(self._part), f"{error.strerror or error}. {_KEPT}") from error
            self._transfer.doing = "done"

    def _receive_patiently(self) -> None:
        """Receive what is missing, and try again where that may help."""
        in_vain = 0
        while True:
            before = self._transfer.done
            try:
                return self._receive()
            except _Trouble as trouble:
                reason = str(trouble)
            in_vain = 0 if self._transfer.done - before >= _PROGRESS else in_vain + 1
            if in_vain >= self._patience.tries:
                raise DownloadBroken(self._source.url, reason)
            self._transfer.doing = f"trying again: {reason}"
            self._stopped.wait(self._patience.pause * 2**in_vain)
            self._go_on()

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise _Stopped

    def _receive(self) -> None:
        facts = self._kept()
        at = self._part.stat().st_size if facts else 0
        self._transfer.done, self._transfer.total = at, facts.get("total", self._source.size)
        if facts and at == facts["total"]:
            return
        self._transfer.doing = "connecting"
        try:
            with _network(self._source.url):
                response = self._open(at, facts.get("validator", ""))
        except _NoSuchRange:
            self._forget()
            raise
        with response:
            self._begin(response, at)
            with open(self._part, "ab", buffering=0, opener=not_through_a_link) as file:
                self._copy(response, file)
                os.fsync(file.fileno())
        if self._transfer.total not in (None, self._transfer.done):
            raise _Trouble(f"the connection ended after {self._transfer.done:,} bytes")

    def _kept(self) -> dict[str, Any]:
        """Give what is known of the part that is there; nothing if it cannot be gone on with."""
        try:
            facts = json.loads(read_small(self._facts, _BLOCK))
            is_of_it = facts["url"] == self._source.url and "total" in facts and self._part.is_file()
            # Without a word of the server by which to know the file again, it may be another one.
            return facts if is_of_it and facts["validator"] else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    def _open(self, at: int, validator: str) -> HTTPResponse:
        headers = {"User-Agent": f"virnucpro-async/{__version__}", "Accept-Encoding": "identity"}
        if at:
            headers |= {"Range": f"bytes={at}-", "If-Range": validator}
        request = Request(self._source.url, headers=headers)
        response: HTTPResponse = build_opener(_Redirects).open(request, timeout=self._patience.stall)
        return response

    def _begin(self, response: HTTPResponse, at: int) -> None:
        """Go on behind *at* if the server does, else begin anew; see that it can become the right file."""
        start, total = _extent(response)
        if start not in (0, at):
            self._forget()
            raise _Trouble("the server gave another part of the file than was asked for")
        self._transfer.done, self._transfer.total = start, total
        if self._source.size is not None and total not in (None, self._source.size):
            reason = f"it has {total:,} bytes, and was published with {self._source.size:,}"
            raise WrongDownload(self._source.url, reason)
        if total is not None and shutil.disk_usage(self._part.parent).free < total - start:
            raise OSError(ENOSPC, f"{os.strerror(ENOSPC)}, {total - start:,} bytes are missing")
        if not start:
            # The old part goes first: what is there must never be taken for a part of another file.
            self._forget()
            facts = {"url": self._source.url, "validator": _validator(response), "total": total}
            with fresh(self._facts) as file:
                file.write(json.dumps(facts).encode())
        self._transfer.doing = "receiving"

    def _copy(self, response: HTTPResponse, file: FileIO) -> None:
        since, before = monotonic(), self._transfer.done
        while block := self._block(response):
            self._go_on()
            view = memoryview(block)
            while view:
                view = view[file.write(view) :]
            self._transfer.done += len(block)
            if monotonic() - since >= self._patience.stall:
                if self._transfer.done - before < _LEAST:
                    raise _Trouble(f"hardly anything came for {self._patience.stall:g} s")
                since, before = monotonic(), self._transfer.done

    def _block(self, response: HTTPResponse) -> bytes:
        with _network(self._source.url):
            return response.read1(_BLOCK)  # what is there, however little

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)

    def _check(self) -> None:
        self._transfer.doing = "checking"
        self._transfer.done = self._transfer.total = self._part.stat().st_size
        if reason := _what_is_wrong(self._part, self._source):
            self._forget()
            raise WrongDownload(self._source.url, reason, is_deleted=True)


@contextmanager
def _network(url: str) -> Iterator[None]:
    """Turn what urllib raises into trouble, which may pass, or into NotServed, which will not."""
    try:
        yield
    except HTTPError as error:
        error.close()
        answer = f"the server answers {error.code} {error.reason}"
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _NoSuchRange(answer) from error
        if error.code in _TRY_AGAIN:
            raise _Trouble(answer) from error
        raise NotServed(url, answer) from error
    except TimeoutError as error:
        raise _Trouble("the server is silent") from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, SSLCertVerificationError):
            untrusted = (
                f"its certificate is not trusted ({reason.verify_message}). SSL_CERT_FILE names others"
            )
            raise NotServed(url, untrusted) from error
        raise _Trouble(getattr(reason, "strerror", "") or str(reason) or type(reason).__name__) from error


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """Give where the answer begins in the file, and how long that is in all, if it says so."""
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found:
            raise _Trouble("the server does not say which part of the file it gives")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    return 0, response.length


def _validator(response: HTTPResponse) -> str:
    """Give what the server knows this very content by; nothing if it says nothing that is sure."""
    etag = response.headers.get("ETag", "")
    # A weak one is of files that mean the same, whatever their bytes.
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


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

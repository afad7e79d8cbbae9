"""
One request to a server: which bytes of a file it is asked for, and which it gives.

urllib does it, of the standard library: it follows redirects and honours HTTP_PROXY, HTTPS_PROXY and
NO_PROXY. What it raises becomes TransientError, which may pass, or DownloadRefused, which will not: here, and
nowhere else.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage, HTTPResponse
from ssl import SSLCertVerificationError
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from virnuc_async._version import __version__
from virnuc_async.errors import DownloadRefused

_BLOCK = 1 << 20
_TRY_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))


class TransientError(Exception):
    """Something that may go better the next time; its text says what."""


class RangeMismatch(TransientError):
    """The server does not give that range of that very file; the whole file, it may."""


class NoSuchRange(RangeMismatch):
    """The file ends before the range begins."""


@dataclass(frozen=True, slots=True)
class RangeResponse:
    """Bytes of a file, as they come: from *start* to before *end*, of *total*, as far as the server says."""

    url: str
    start: int
    end: int | None
    total: int | None
    validator: str  # what the server knows this very content by; empty if it says nothing that is sure
    is_range: bool  # the server keeps to ranges
    response: HTTPResponse

    def blocks(self) -> Iterator[bytes]:
        """
        Give what comes, in blocks of whatever size.

        Raises:
            TransientError: nothing came for too long, or the connection broke
        """
        while True:
            with _failures(self.url):
                block = self.response.read1(_BLOCK)  # what is there, however little
            if not block:
                return
            yield block


@contextmanager
def open_range(url: str, seconds: float, wanted: str = "", validator: str = "") -> Iterator[RangeResponse]:
    """
    Ask for *url*, or for the bytes *wanted* of it if it is what *validator* says; else for all of it.

    Nobody waits longer than *seconds* for a sign of life.

    Raises:
        TransientError, DownloadRefused: there is no answer, or one without a file
    """
    headers = {"User-Agent": f"virnuc-async/{__version__}", "Accept-Encoding": "identity"}
    if wanted:
        headers["Range"] = f"bytes={wanted}"
    if validator:
        headers["If-Range"] = validator
    with _failures(url):
        response: HTTPResponse = build_opener(_Redirects).open(Request(url, headers=headers), timeout=seconds)
    with response:
        is_range = response.status == HTTPStatus.PARTIAL_CONTENT
        start, end, total = _extent(response) if is_range else (0, response.length, response.length)
        yield RangeResponse(url, start, end, total, _validator(response), is_range, response)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, but not from an encrypted connection to one that is not."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if req.type == "https" and not newurl.startswith("https:"):
            fp.close()
            raise DownloadRefused(req.full_url, f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _failures(url: str) -> Iterator[None]:
    """Turn what urllib raises into our own failures."""
    try:
        yield
    except HTTPError as error:
        error.close()
        answer = f"the server answers {error.code} {error.reason}"
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise NoSuchRange(answer) from error
        if error.code in _TRY_AGAIN:
            raise TransientError(answer) from error
        raise DownloadRefused(url, answer) from error
    except TimeoutError as error:
        raise TransientError("the server is silent") from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, SSLCertVerificationError):
            untrusted = (
                f"its certificate is not trusted ({reason.verify_message}). SSL_CERT_FILE names others"
            )
            raise DownloadRefused(url, untrusted) from error
        raise TransientError(
            getattr(reason, "strerror", "") or str(reason) or type(reason).__name__
        ) from error


def _extent(response: HTTPResponse) -> tuple[int, int, int | None]:
    """Give where a range begins and ends, and how long the file is, if the server says so."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found:
        raise TransientError("the server does not say which part of the file it gives")
    return int(found[1]), int(found[2]) + 1, None if found[3] == "*" else int(found[3])


def _validator(response: HTTPResponse) -> str:
    etag = response.headers.get("ETag", "")
    # A weak one is of files that mean the same, whatever their bytes.
    found = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    return found if is_validator(found) else ""


def is_validator(text: object) -> bool:
    """Whether *text* can be said to a server, to have it see whether a file is the same still."""
    return isinstance(text, str) and text != "" and text.isascii() and text.isprintable()

"""
One HTTP request for a file, or for a range of it.

The requests are made with urllib: it follows redirects and honours HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
Its exceptions become TransientError, after which the request can be repeated, or DownloadRefused, after
which it cannot; this is the only place that translates them.
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
_RETRYABLE_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))


class TransientError(Exception):
    """A failure that may pass; its text is the reason."""


class RangeMismatch(TransientError):
    """The server does not send this range of this very file; it may send the whole file."""


class RangeNotSatisfiable(RangeMismatch):
    """The file ends before the range begins."""


@dataclass(frozen=True, slots=True)
class RangeResponse:
    """The bytes of a file from *start* to before *end*, of *total*; None where the server does not say."""

    url: str
    start: int
    end: int | None
    total: int | None
    validator: str  # identifies this content; empty if the server sends no strong one
    is_range: bool  # the server supports ranges
    response: HTTPResponse

    def blocks(self) -> Iterator[bytes]:
        """
        Yield the bytes as they arrive, in blocks of any size.

        Raises:
            TransientError: no data within the timeout, or the connection broke
        """
        while True:
            with _translate_errors(self.url):
                block = self.response.read1(_BLOCK)  # what has arrived, however little
            if not block:
                return
            yield block


@contextmanager
def open_range(url: str, timeout: float, requested: str = "", validator: str = "") -> Iterator[RangeResponse]:
    """
    Request *url*, or the range *requested* of it if the file still has this *validator*, else all of it.

    *timeout* limits, in seconds, the wait for a connection and for each block of data.

    Raises:
        TransientError, DownloadRefused: there is no response, or one without the file
    """
    headers = {"User-Agent": f"virnuc-async/{__version__}", "Accept-Encoding": "identity"}
    if requested:
        headers["Range"] = f"bytes={requested}"
    if validator:
        headers["If-Range"] = validator
    with _translate_errors(url):
        opener = build_opener(_SecureRedirects)
        response: HTTPResponse = opener.open(Request(url, headers=headers), timeout=timeout)
    with response:
        is_range = response.status == HTTPStatus.PARTIAL_CONTENT
        start, end, total = (
            _parse_content_range(response) if is_range else (0, response.length, response.length)
        )
        yield RangeResponse(url, start, end, total, _validator(response), is_range, response)


class _SecureRedirects(HTTPRedirectHandler):
    """Follow redirects, but not from an encrypted connection to one that is not."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if req.type == "https" and not newurl.startswith("https:"):
            fp.close()
            raise DownloadRefused(req.full_url, f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Translate the exceptions of urllib into TransientError and DownloadRefused."""
    try:
        yield
    except HTTPError as error:
        error.close()
        reason = f"the server answers {error.code} {error.reason}"
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise RangeNotSatisfiable(reason) from error
        if error.code in _RETRYABLE_STATUSES:
            raise TransientError(reason) from error
        raise DownloadRefused(url, reason) from error
    except TimeoutError as error:
        raise TransientError("the server does not respond") from error
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, SSLCertVerificationError):
            reason = f"its certificate is not trusted ({cause.verify_message})"
            raise DownloadRefused(url, f"{reason}. Name trusted ones with SSL_CERT_FILE") from error
        raise TransientError(getattr(cause, "strerror", "") or str(cause) or type(cause).__name__) from error


def _parse_content_range(response: HTTPResponse) -> tuple[int, int, int | None]:
    """Return where a range begins and ends, and the length of the file if the server states it."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found:
        raise TransientError("the server does not state which part of the file it sends")
    return int(found[1]), int(found[2]) + 1, None if found[3] == "*" else int(found[3])


def _validator(response: HTTPResponse) -> str:
    etag = response.headers.get("ETag", "")
    # A weak one may be shared by files with different bytes.
    found = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    return found if is_validator(found) else ""


def is_validator(text: object) -> bool:
    """Return whether *text* can be sent to a server as the validator of a file."""
    return isinstance(text, str) and text != "" and text.isascii() and text.isprintable()

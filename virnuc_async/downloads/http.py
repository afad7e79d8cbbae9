"""
One HTTP request for a file, or for a range of it.

The requests are made with urllib: it follows redirects and honours HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
Its exceptions become TransientError, after which the request can be repeated, or DownloadRefused, after
which it cannot; this is the only place that translates them.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from socket import socket
from ssl import SSLCertVerificationError
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from virnuc_async._version import __version__
from virnuc_async.errors import DownloadRefused

_BLOCK = 1 << 20
_MAX_REASON = 200  # characters of what a server says
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


OnConnect = Callable[[socket], object]


@contextmanager
def open_range(
    url: str, timeout: float, on_connect: OnConnect, requested: str = "", validator: str = ""
) -> Iterator[RangeResponse]:
    """
    Request *url*, or the range *requested* of it if the file still has this *validator*, else all of it.

    *timeout* limits, in seconds, the wait for a connection and for any byte; *on_connect* gets the socket of
    each connection, also of one that follows a redirect, since a server that sends byte after byte of endless
    headers can only be ended from outside.

    Raises:
        TransientError, DownloadRefused: there is no response, or one without the file
    """
    headers = {"User-Agent": f"virnuc-async/{__version__}", "Accept-Encoding": "identity"}
    if requested:
        headers["Range"] = f"bytes={requested}"
    if validator:
        headers["If-Range"] = validator
    with _translate_errors(url):
        opener = build_opener(_SecureRedirects, _Http(on_connect), _Https(on_connect))
        response: HTTPResponse = opener.open(Request(url, headers=headers), timeout=timeout)
    with response:
        is_range = response.status == HTTPStatus.PARTIAL_CONTENT
        start, end, total = (
            _parse_content_range(response) if is_range else (0, response.length, response.length)
        )
        yield RangeResponse(url, start, end, total, _validator(response), is_range, response)


class _Connection(HTTPConnection):
    """A connection that hands on its socket as soon as it has one, before any encryption."""

    on_connect: OnConnect

    def connect(self) -> None:
        super().connect()
        self.on_connect(self.sock)


class _SecureConnection(HTTPSConnection, _Connection):
    """The same, encrypted."""


class _Http(HTTPHandler):
    """Open connections that hand on their sockets."""

    def __init__(self, on_connect: OnConnect) -> None:
        super().__init__()
        self._on_connect = on_connect

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_maker(_Connection, self._on_connect), req)


class _Https(HTTPSHandler):
    """Open encrypted connections that hand on their sockets."""

    def __init__(self, on_connect: OnConnect) -> None:
        super().__init__()
        self._on_connect = on_connect

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_maker(_SecureConnection, self._on_connect), req)


def _maker(kind: type[_Connection], on_connect: OnConnect) -> Callable[..., Any]:
    def make(host: str, **options: Any) -> _Connection:
        connection = kind(host, **options)
        connection.on_connect = on_connect
        return connection

    return make


class _SecureRedirects(HTTPRedirectHandler):
    """Follow redirects to other web servers, but not from an encrypted connection to one that is not."""

    def http_error_302(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> HTTPResponse | None:
        fp.close()  # else all of its body would be read, which may have no end
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if req.type == "https" and not newurl.startswith("https:"):
            raise DownloadRefused(req.full_url, f"it redirects to {_short(newurl)}, which is not encrypted")
        if not newurl.startswith(("http:", "https:")):
            raise DownloadRefused(req.full_url, f"it redirects to {_short(newurl)}, which is no web address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Translate the exceptions of urllib into TransientError and DownloadRefused."""
    try:
        yield
    except HTTPError as error:
        error.close()
        reason = f"the server answers {error.code} {_short(str(error.reason))}"
        if str(error.reason).startswith(HTTPRedirectHandler.inf_msg):
            raise DownloadRefused(url, "the server redirects in a circle, or too many times") from error
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
        reason = getattr(cause, "strerror", "") or str(cause) or type(cause).__name__
        raise TransientError(_short(reason)) from error
    except ValueError as error:  # of an address to be redirected to
        raise DownloadRefused(url, f"the server sends what is no address: {_short(str(error))}") from error


def _short(text: str) -> str:
    """Return the beginning of *text*, which a server may have made as long and as strange as it likes."""
    line = " ".join(text.split())
    return ascii(line)[1:-1][:_MAX_REASON] if not line.isprintable() else line[:_MAX_REASON]


def _parse_content_range(response: HTTPResponse) -> tuple[int, int, int | None]:
    """Return where a range begins and ends, and the length of the file if the server states it."""
    found = re.fullmatch(
        r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", "")
    )
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

"""A web server on this machine that follows a script of faults and records its requests."""

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Answers by the rules of its server."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path  # of a proxy: the whole address
        self.server.requests.append((path, {name.lower(): value for name, value in self.headers.items()}))
        content = self.server.files.get(path)
        faults = self.server.faults.get(path, [])
        if faults:
            faults.pop(0)(self, content or b"")
        elif content is None:
            self.respond(404, b"no such file")
        elif self.headers.get("If-Match", self.server.etag) != self.server.etag:
            self.respond(412, b"")
        else:
            self.send_file(content)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the file; its faults are those of the path with HEAD before it."""
        self.close_connection = True
        content = self.server.files.get(self.path)
        faults = self.server.faults.get(f"HEAD {self.path}", [])
        if faults:
            faults.pop(0)(self, content or b"")
        elif content is None:
            self.begin(404, 0)
        else:
            self.begin(200, len(content), **self.version)

    def send_file(self, content: bytes) -> None:
        """Respond as a good server does."""
        start, end = self.requested_range(content)
        if start >= end and self.wants_range:
            self.respond(416, b"")
        else:
            self.begin_file(content)
            self.wfile.write(content[start:end])

    @property
    def wants_range(self) -> bool:
        """Whether a range is requested that this server would send."""
        is_same = self.headers.get("If-Range") in (None, self.server.etag)
        return "Range" in self.headers and self.server.has_ranges and is_same

    def requested_range(self, content: bytes) -> tuple[int, int]:
        """Return the position of the first requested byte, and the one after the last."""
        if not self.wants_range:
            return 0, len(content)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        return int(first), min(int(last) + 1, len(content)) if last else len(content)

    def begin_file(self, content: bytes) -> None:
        """Send the headers of the requested range, or of all of *content*."""
        start, end = self.requested_range(content)
        headers = dict(self.version)
        if self.wants_range:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.begin(206 if self.wants_range else 200, end - start, **headers)

    @property
    def version(self) -> dict[str, str]:
        """The headers that say which version of a file this is."""
        return {"ETag": self.server.etag, "Last-Modified": self.server.last_modified}

    def respond(self, status: int, body: bytes, **headers: str) -> None:
        self.begin(status, len(body), **headers)
        self.wfile.write(body)

    def begin(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Serves *files* by their paths; each request for a path takes the next of its *faults*."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.etag = '"first"'
        self.last_modified = ""
        self.scheme = "http"
        self.has_ranges = True
        self.released = threading.Event()  # ends the faults that hang

    def encrypt(self, certificate: Path) -> None:
        """Use TLS from now on; the file contains the key, too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def ranges(self, path: str) -> list[str | None]:
        """Return the ranges that were requested of *path*, in order."""
        return [headers.get("range") for requested, headers in self.requests if requested == path]

    def handle_error(self, *_: object) -> None:
        """Log nothing: clients that close the connection are part of these tests."""


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


# Faults


def status(code: int) -> Fault:
    return lambda handler, _: handler.respond(code, b"a response without the file")


def redirect(to: str) -> Fault:
    return lambda handler, _: handler.respond(302, b"", Location=to)


def instead(other: bytes) -> Fault:
    return lambda handler, _: handler.send_file(other)


def ends_after(count: int) -> Fault:
    """Close the connection after *count* bytes of the response, as if it were complete."""

    def fault(handler: Handler, content: bytes) -> None:
        _begin(handler, content, count)

    return fault


def resets_after(count: int) -> Fault:
    def fault(handler: Handler, content: bytes) -> None:
        _begin(handler, content, count)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return fault


def hangs_after(count: int) -> Fault:
    def fault(handler: Handler, content: bytes) -> None:
        _begin(handler, content, count)
        handler.server.released.wait(30)

    return fault


def whole(handler: Handler, content: bytes) -> None:
    """Send all of the file, whatever range is requested."""
    handler.respond(200, content, ETag=handler.server.etag)


def waits_until(condition: Callable[[], bool], count: int | None = None) -> Fault:
    """Send the headers and wait for the condition; then send all, or *count* bytes and nothing more."""

    def fault(handler: Handler, content: bytes) -> None:
        _begin(handler, content, 0)
        while not condition() and not handler.server.released.wait(0.01):
            pass
        start, end = handler.requested_range(content)
        handler.wfile.write(content[start : end if count is None else start + count])
        if count is not None:
            handler.server.released.wait(30)

    return fault


def _begin(handler: Handler, content: bytes, count: int) -> None:
    start, end = handler.requested_range(content)
    handler.begin_file(content)
    handler.wfile.write(content[start : min(start + count, end)])
    handler.wfile.flush()

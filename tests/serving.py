"""A web server on this machine that does what it is told, and remembers what it was asked."""

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
        asked = self.path  # of a proxy: the whole address
        self.server.asked.append((asked, {name.lower(): value for name, value in self.headers.items()}))
        content = self.server.files.get(asked)
        faults = self.server.faults.get(asked, [])
        if faults:
            faults.pop(0)(self, content or b"")
        elif content is None:
            self.answer(404, b"no such file")
        else:
            self.give(content)

    def give(self, content: bytes) -> None:
        """Answer as a good server does."""
        start = self.start_of_range()
        if start is None or self.headers.get("If-Range") not in (None, self.server.etag):
            self.answer(200, content, ETag=self.server.etag)
        elif start >= len(content):
            self.answer(416, b"")
        else:
            extent = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], **{"ETag": self.server.etag, "Content-Range": extent})

    def start_of_range(self) -> int | None:
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").split("-")[0]) if asked and self.server.has_ranges else None

    def answer(self, status: int, body: bytes, **headers: str) -> None:
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
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.etag = '"first"'
        self.scheme = "http"
        self.has_ranges = True
        self.released = threading.Event()  # what hangs until then

    def encrypt(self, certificate: Path) -> None:
        """Speak TLS from now on; the file holds the key, too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.scheme = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def ranges(self, path: str) -> list[str | None]:
        """Give the ranges that were asked for of *path*, in order."""
        return [headers.get("range") for asked, headers in self.asked if asked == path]

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that go away are what is tested here."""


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
    return lambda handler, _: handler.answer(code, b"an answer that is no file")


def redirect(to: str) -> Fault:
    return lambda handler, _: handler.answer(302, b"", Location=to)


def instead(other: bytes) -> Fault:
    return lambda handler, _: handler.give(other)


def ends_after(count: int) -> Fault:
    """The connection is closed, as if the server were done, after *count* bytes of the answer."""

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


def drips(seconds: float) -> Fault:
    """One byte at a time, for ever."""

    def fault(handler: Handler, content: bytes) -> None:
        handler.begin(200, len(content), ETag=handler.server.etag)
        for at in range(len(content)):
            handler.wfile.write(content[at : at + 1])
            if handler.server.released.wait(seconds):
                return

    return fault


def _begin(handler: Handler, content: bytes, count: int) -> None:
    start = handler.start_of_range() or 0
    headers = {"ETag": handler.server.etag}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    handler.begin(206 if start else 200, len(content) - start, **headers)
    handler.wfile.write(content[start : start + count])
    handler.wfile.flush()

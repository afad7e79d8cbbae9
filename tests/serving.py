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
        start, end = self.extent(content)
        if start >= end and self.asks_for_range:
            self.answer(416, b"")
        else:
            self.begin_file(content)
            self.wfile.write(content[start:end])

    @property
    def asks_for_range(self) -> bool:
        """Whether a range is asked for that this server would give."""
        is_same = self.headers.get("If-Range") in (None, self.server.etag)
        return "Range" in self.headers and self.server.has_ranges and is_same

    def extent(self, content: bytes) -> tuple[int, int]:
        """Give the first byte that is asked for, and the one behind the last."""
        if not self.asks_for_range:
            return 0, len(content)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        return int(first), min(int(last) + 1, len(content)) if last else len(content)

    def begin_file(self, content: bytes) -> None:
        """Say what is given: the range that is asked for, or all of *content*."""
        start, end = self.extent(content)
        headers = {"ETag": self.server.etag}
        if self.asks_for_range:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.begin(206 if self.asks_for_range else 200, end - start, **headers)

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


def whole(handler: Handler, content: bytes) -> None:
    """All of the file, whatever range is asked for."""
    handler.answer(200, content, ETag=handler.server.etag)


def waits_until(is_so: Callable[[], bool], count: int | None = None) -> Fault:
    """Nothing but the answer's head until it is so; then all of it, or *count* bytes and nothing more."""

    def fault(handler: Handler, content: bytes) -> None:
        _begin(handler, content, 0)
        while not is_so() and not handler.server.released.wait(0.01):
            pass
        start, end = handler.extent(content)
        handler.wfile.write(content[start : end if count is None else start + count])
        if count is not None:
            handler.server.released.wait(30)

    return fault


def _begin(handler: Handler, content: bytes, count: int) -> None:
    start, end = handler.extent(content)
    handler.begin_file(content)
    handler.wfile.write(content[start : min(start + count, end)])
    handler.wfile.flush()

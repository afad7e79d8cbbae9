"""A web server of one file on this machine, like an object store: ranges, a delay, a limit a connection."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_CHUNK = 1 << 18


class RangeServer(ThreadingHTTPServer):
    """Answers each request for any path with *content*, after *delay* seconds, at *rate* bytes a second."""

    daemon_threads = True

    def __init__(self, content: bytes, delay: float = 0.0, rate: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.delay, self.rate = content, delay, rate
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Print nothing: a client may leave before the end."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_HEAD(self) -> None:
        self._begin(200, 0, len(self.server.content))

    def do_GET(self) -> None:
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        start, end = int(first), min(int(last) + 1, len(self.server.content))
        self._begin(206, start, end)
        view, begun = memoryview(self.server.content)[start:end], time.monotonic()
        for offset in range(0, len(view), _CHUNK):
            self.wfile.write(view[offset : offset + _CHUNK])
            if self.server.rate:
                time.sleep(max(0.0, begun + (offset + _CHUNK) / self.server.rate - time.monotonic()))

    def _begin(self, status: int, start: int, end: int) -> None:
        time.sleep(self.server.delay)
        self.send_response(status)
        self.send_header("ETag", '"one"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(self.server.content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(server: RangeServer) -> Iterator[str]:
    """Run *server* in a thread; yield its URL."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

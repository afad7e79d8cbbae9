"""Object stores on this machine, for tests of what is read from and written to them."""

import io
import logging
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple
from uuid import uuid4

import obstore
from werkzeug.serving import make_server

from virnuc_async.sequences.object_stores import Patience, open_store

# A server that fails is given up soon.
IMPATIENT = Patience(seconds=0.5, connect_seconds=0.5, retries=4, retry_seconds=5.0, pause=0.01)
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "a-secret",
    "AWS_REGION": "us-east-1",
}


Answer = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]  # of an application by WSGI
# Given a request, and what answers it otherwise: None, or another answer.
Fault = Callable[[dict[str, Any], Answer], Answer | None]


def refuses(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer that the credentials do not do."""
    start_response("403 Forbidden", [("Content-Type", "application/xml")])
    return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]


def fails(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer that something else is wrong."""
    start_response("500 Internal Server Error", [])
    return [b""]


@contextmanager
def s3_server(fault: Fault = lambda environ, answer: None) -> Iterator[str]:
    """Run moto's server in a thread; yield its URL. All of them in a process have the same buckets."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = import_module("moto.server")  # it takes half a second
    answer = moto.DomainDispatcherApplication(moto.create_backend_app)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return (fault(environ, answer) or answer)(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Bucket(NamedTuple):
    """A bucket of the server that the environment names."""

    name: str

    @classmethod
    def create(cls, server: str) -> "Bucket":
        """Create a bucket with a name of its own: what is known of another one is kept."""
        bucket = cls(f"bucket-{uuid4().hex[:12]}")
        urllib.request.urlopen(urllib.request.Request(f"{server}/{bucket.name}", method="PUT")).close()
        return bucket

    @property
    def root(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes) -> str:
        """Write an object; return its URL."""
        obstore.put(open_store(self.root), key, io.BytesIO(content))
        return f"{self.root}/{key}"

    def put_marker(self, server: str, key: str) -> None:
        """Write an object whose key ends with /, as consoles do to show a directory."""
        request = urllib.request.Request(f"{server}/{self.name}/{key}", b"", method="PUT")
        urllib.request.urlopen(request).close()

    def get(self, key: str) -> bytes:
        return bytes(obstore.get(open_store(self.root), key).bytes())

    def objects(self) -> list[str]:
        return sorted(meta["path"] for meta in obstore.list(open_store(self.root)).collect())

    def delete(self, key: str) -> None:
        obstore.delete(open_store(self.root), key)

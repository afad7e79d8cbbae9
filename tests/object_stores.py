"""Object stores on this machine, for tests of what is read from and written to them."""

import io
import logging
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple
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


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server in a thread; yield its URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = import_module("moto.server")  # it takes half a second
    application = moto.DomainDispatcherApplication(moto.create_backend_app)
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

    def keys(self) -> list[str]:
        return sorted(meta["path"] for meta in obstore.list(open_store(self.root)).collect())

"""Objects below a URL, by their names: they are written, read, listed and deleted."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from virnuc_async.errors import CannotWrite, UsageError
from virnuc_async.sequences.object_stores import PATIENCE, Patience, locate, open_store, translated_errors
from virnuc_async.sequences.remote import RemoteFile

_PART_BYTES, _MOST_PARTS = 8 << 20, 9000  # of an upload: stores take 10,000 parts
_BLOCK = 1 << 20


class Objects:
    """
    The objects below *url*, in an object store; nothing is asked for before a method is called.

    Raises, from the constructor:
        UsageError: *url* names no such place
    """

    def __init__(self, url: str, patience: Patience = PATIENCE) -> None:
        where = locate(f"{url.rstrip('/')}/")
        if where.is_web:
            raise UsageError(f"{url}: a run is in an object store or a directory, not on a web server")
        self.url = f"{where.root}/{where.key}".rstrip("/")
        self._prefix = where.key.strip("/")
        self._store, self._patience = open_store(where.root, patience), patience

    def __repr__(self) -> str:
        return f"<Objects {self.url}>"

    def read(self, name: str, most: int) -> bytes:
        """
        Return the content of an object.

        Raises:
            OSError: there is no such object, or it cannot be read
            ValueError: it has more than *most* bytes
        """
        with self._open(name) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it has more than {most:,} bytes")
        return content

    def read_dated(self, name: str, most: int) -> tuple[bytes, float]:
        """Return the content of a small object, and when it was written; raises what :meth:`read` does."""
        with RemoteFile(f"{self.url}/{name}", self._patience) as file:
            if file.size > most:
                raise ValueError(f"it has more than {most:,} bytes")
            return file.readall(), file.modified.timestamp()

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the content of an object; raises OSError."""
        with self._open(name) as file:
            while block := file.read1(_BLOCK):
                yield block

    def write(self, name: str, content: bytes) -> None:
        """Write an object, whatever is there; raises CannotWrite."""
        self._put(name, content, "overwrite")

    def create(self, name: str, content: bytes) -> bool:
        """Write an object if there is none of this name, else return false; raises CannotWrite."""
        return self._put(name, content, "create")

    def upload(self, name: str, path: Path) -> None:
        """Write an object with the content of a file; raises CannotWrite."""
        part = max(_PART_BYTES, path.stat().st_size // _MOST_PARTS + 1)
        with self._writing(name):
            import_module("obstore").put(self._store, self._key(name), path, chunk_size=part)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects as far as possible."""
        obstore = import_module("obstore")
        for name in names:
            # What stays is in nobody's way.
            with suppress(obstore.exceptions.BaseError, FileNotFoundError):
                obstore.delete(self._store, self._key(name))

    def directories(self, name: str) -> list[str]:
        """Return the names of what is like directories right below *name*, sorted; raises OSError."""
        with translated_errors(self.url):
            found = import_module("obstore").list_with_delimiter(self._store, self._key(name))
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])

    def _open(self, name: str) -> io.BufferedReader:
        return io.BufferedReader(RemoteFile(f"{self.url}/{name}", self._patience), RemoteFile.BUFFER_BYTES)

    def _put(self, name: str, content: bytes, mode: str) -> bool:
        obstore = import_module("obstore")
        with self._writing(name):
            try:
                obstore.put(self._store, self._key(name), content, mode=mode)
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            with translated_errors(self.url):
                yield
        except OSError as error:
            raise CannotWrite(f"{self.url}/{name}", error.strerror or str(error)) from error

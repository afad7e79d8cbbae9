"""A file to download, and the checks that its content must pass."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

from virnuc_async.errors import BundleError
from virnuc_async.fileio import check_zip, sha256

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A file to download; *name* is its path in the target directory."""

    url: str
    name: str
    size: int | None = None
    sha256: str = ""
    git_blob: str = ""
    check: Callable[[Path], object] | None = None  # raises a BundleError if the content is wrong
    max_size: int = 1 << 62  # bytes, where no size was published
    origin: str = ""  # the official address, also where a mirror is used

    @property
    def limit(self) -> int:
        """The largest size that the file can have, in bytes."""
        return self.max_size if self.size is None else self.size

    def mismatch_reason(self, path: Path) -> str:
        """Return why the content of *path* is not this file; empty if it passes all known checks."""
        size = path.stat().st_size
        if self.size not in (None, size):
            return f"it has {size:,} bytes, not the published {self.size:,}"
        if self.sha256 and (found := sha256(path)) != self.sha256:
            return f"its sha256 is {found}, not the published {self.sha256}"
        if self.git_blob and (found := git_blob(path)) != self.git_blob:
            return f"its git blob id is {found}, not the published {self.git_blob}"
        try:
            if is_zipfile(path):  # torch's files are zip files, since 1.6
                check_zip(path, verify_checksums=True)
            if self.check:
                self.check(path)
        except (BadZipFile, ValueError) as error:
            return str(error)
        except BundleError as failure:
            return getattr(failure, "reason", str(failure))
        return ""


def git_blob(path: Path) -> str:
    """Return the id that git gives to the content of *path*."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()

"""Files of embeddings that VirNucPro or this program wrote: found, and identified by their content."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from virnuc_async.errors import BadFeatures, NoFeatures
from virnuc_async.fileio import sha256, stat_signature

# The names that VirNucPro gives them, those of its later versions, and ours.
_PATTERNS = ("*_DNABERT_S.pt", "*_DNABERT.pt", "*_ESM.pt", "*_merged.pt", "merged_features.pt")


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """A file of features; *name* is its path relative to the directory that was searched."""

    path: Path
    name: str
    sha256: str
    signature: tuple[int, ...] | None  # when it was hashed

    def require_unchanged(self) -> None:
        """
        Check that it is still the file that was hashed.

        Raises:
            BadFeatures: it was written or replaced
        """
        try:
            now = stat_signature(str(self.path))
        except OSError as error:
            raise BadFeatures(str(self.path), error.strerror or str(error)) from error
        if now != self.signature:
            raise BadFeatures(str(self.path), "it has changed since this run began")


def find_features(directory: Path, but_not: Path) -> Iterator[FeatureFile]:
    """
    Yield the feature files below *directory*, sorted, without hidden ones and those in *but_not*.

    Raises:
        NoFeatures: there are none, or a directory cannot be read
        BadFeatures: a file cannot be read
    """
    paths = sorted(_matching_paths(directory, but_not))
    if not paths:
        raise NoFeatures(str(directory), f"no file there is named {' or '.join(_PATTERNS)}")
    for path in paths:
        try:
            signature = stat_signature(str(path))
            checksum = sha256(path)
        except OSError as error:
            raise BadFeatures(str(path), error.strerror or str(error)) from error
        yield FeatureFile(path, str(path.relative_to(directory)), checksum, signature)


def _matching_paths(directory: Path, but_not: Path) -> Iterator[Path]:
    for root, below, names in os.walk(directory, onerror=_raise_unreadable_directory):
        below[:] = [name for name in below if not name.startswith(".")]
        if os.path.exists(but_not) and os.path.samefile(but_not, root):
            below.clear()
            continue
        for name in names:
            path = Path(root, name)
            is_match = any(fnmatchcase(name, pattern) for pattern in _PATTERNS)
            if is_match and not name.startswith(".") and path.is_file():
                yield path


def _raise_unreadable_directory(error: OSError) -> None:
    raise NoFeatures(str(error.filename), error.strerror or str(error)) from error


def decode_id(id: bytes) -> str:
    """Return an id as text, which may contain bytes that are not UTF-8."""
    return id.decode("utf-8", "surrogateescape")

"""
Files of inputs, on this machine or behind a URL: how they are opened, and what tells that one has changed.

All that reads an input asks here, so that a URL works wherever a path does.
"""

import io
import os
from collections.abc import Callable
from stat import S_ISREG
from typing import Protocol, runtime_checkable

from virnuc_async.fileio import stat_signature
from virnuc_async.text import is_url

from .remote import RemoteFile, remote_signature

# What changes when a file is written or replaced.
Signature = tuple[int | str, ...]
OpenFile = Callable[[str], io.BufferedReader]


@runtime_checkable
class Known(Protocol):
    """A raw file that is none of the operating system's, or not only."""

    signature: Signature | None  # what it was when it was opened
    size: int


def open_file(path: str) -> io.BufferedReader:
    """
    Open *path*, which may be a URL, for reading bytes; it can seek unless it is a pipe.

    Raises:
        OSError, ValueError: it cannot be opened
    """
    if is_url(path):
        return io.BufferedReader(RemoteFile(path), RemoteFile.BUFFER_BYTES)
    return open(path, "rb")


def path_signature(path: str) -> Signature | None:
    """
    Return what changes when the file at *path* is written or replaced; None for a pipe or a device.

    Raises:
        OSError, ValueError: there is no such file, or it cannot be asked for
    """
    return remote_signature(path) if is_url(path) else stat_signature(path)


def file_signature(file: io.BufferedReader) -> Signature | None:
    """Return what :func:`path_signature` does for the open *file*; of a URL, as it was when it was opened."""
    raw = file.raw
    return raw.signature if isinstance(raw, Known) else stat_signature(file.fileno())


def file_size(file: io.BufferedReader) -> int:
    """Return the bytes of the open *file* as it lies on the disk; 0 for a pipe."""
    raw = file.raw
    return raw.size if isinstance(raw, Known) else os.fstat(file.fileno()).st_size


def is_regular(path: str) -> bool:
    """Return whether *path* is a file that can be read again, and does not make its reader wait."""
    if is_url(path):
        return True
    try:
        return S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def absolute(path: str) -> str:
    """Return *path* as it leads to the same file from any directory."""
    return path if is_url(path) else os.path.abspath(path)

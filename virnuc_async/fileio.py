"""
Read and write files in places that others can write to as well.

A file is never written through a link that somebody put in its place, and never read beyond the
size that it can sensibly have.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from virnuc_async.errors import CannotWrite, ForeignDirectoryError

USE_ANOTHER_DIRECTORY = "Choose a new or empty directory"


@contextmanager
def writing_to(path: Path, what: str = "", hint: str = "", names_file: bool = False) -> Iterator[None]:
    """
    Turn an OSError raised inside into CannotWrite, about *path* and, if it is a directory, *what* in it.

    With *names_file* it is about the file that the error names, if it does.

    Raises:
        CannotWrite: the operating system refused; *hint* says what to do next
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        text = f"{what}: {reason}" if what else reason
        about = error.filename if names_file and error.filename else path
        raise CannotWrite(str(about), f"{text}. {hint}" if hint else text) from error


@contextmanager
def unwrapped_torch_errors() -> Iterator[None]:
    """
    Raise the error that made a write of torch fail, such as a full disk, or an interrupt.

    torch.save hides it behind a RuntimeError of its own.
    """
    try:
        yield
    except RuntimeError as error:
        if error.__context__ is None:
            raise
        raise error.__context__ from None


def create_new(path: Path) -> BinaryIO:
    """Open a new file for writing; a file or link at *path* is removed first."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces *path* when it is complete, and is removed if writing fails."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with create_new(partial) as file:
            yield file
        fsync_and_rename(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def fsync_and_rename(partial: Path, path: Path) -> None:
    """Replace *path* by *partial*, which is complete; content and name are on the disk when this returns."""
    _sync(partial)
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make sure that the names in *directory* are on the disk."""
    _sync(directory)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Yield a hidden directory that is renamed to *directory* if nothing is raised, and removed otherwise."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    hidden = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        yield hidden
        for path in (*hidden.rglob("*"), hidden):
            _sync(path)
        hidden.rename(directory)
        sync_directory(directory.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def list_names(directory: Path, matches: Callable[[str], bool]) -> list[str]:
    """
    Return the sorted names in *directory*, which need not exist, that *matches* accepts.

    Raises:
        ForeignDirectoryError: it is a file, or a link leads nowhere
        OSError: it cannot be read
    """
    if directory.is_dir():
        return sorted(path.name for path in directory.iterdir() if matches(path.name))
    if directory.exists():
        raise ForeignDirectoryError(str(directory), f"is a file, not a directory. {USE_ANOTHER_DIRECTORY}")
    for place in (directory, *directory.parents):
        if place.is_symlink() and not place.exists():
            which = "" if place is directory else f"{place} "
            reason = f"{which}is a link that leads nowhere, to {os.readlink(place)}. {USE_ANOTHER_DIRECTORY}"
            raise ForeignDirectoryError(str(directory), reason)
    return []


def require_empty_directory(directory: Path, hint: str = USE_ANOTHER_DIRECTORY) -> None:
    """
    Check that *directory* does not exist or is empty.

    Raises:
        ForeignDirectoryError: it is not empty, or not a directory
    """
    if list_names(directory, lambda name: True):
        raise ForeignDirectoryError(str(directory), f"exists and is not empty. {hint}")


def link_or_copy(source: Path, target: Path) -> None:
    """Link *source*, which may have gigabytes, to *target*; copy it if the file system has no links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def open_nofollow(path: str, flags: int) -> int:
    """Open *path* unless it is a link; can be used as the opener of ``open``."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def read_bounded(path: Path, most: int) -> bytes:
    """
    Read all of *path*.

    Raises:
        OSError: it cannot be read
        ValueError: it is not a plain file, or has more than *most* bytes
    """
    # Checked first: opening a pipe would wait until somebody writes into it.
    if path.exists() and not path.is_file():
        raise ValueError("it is not a plain file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it holds more than {most:,} bytes")
    return content


def read_json(path: Path, limit: int) -> Any:
    """
    Return the value of an untrusted JSON file of at most *limit* bytes.

    Raises:
        OSError: it cannot be read
        ValueError: it is not JSON, larger than the limit, not a plain file, or nested too deeply
    """
    try:
        return json.loads(read_bounded(path, limit))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_zip(path: Path, verify_checksums: bool = False) -> list[ZipInfo]:
    """
    Return the members of an untrusted zip file that is as torch writes them: stored, not compressed.

    *verify_checksums* reads all of it.

    Raises:
        OSError: it cannot be read
        BadZipFile: it is damaged, or not a zip file
        ValueError: a checksum is wrong, or it would take more memory than it is large
    """
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
            reason = _bomb_reason(members, path.stat().st_size)
            damaged = archive.testzip() if verify_checksums and not reason else None
    except (RuntimeError, ValueError, EOFError, OverflowError, struct.error) as error:
        raise BadZipFile(str(error)) from error
    if reason:
        raise ValueError(reason)
    if damaged is not None:
        name = damaged if damaged.isprintable() else ascii(damaged)
        raise ValueError(f"damaged: the checksum of {name} is wrong")
    return members


def _bomb_reason(members: Sequence[ZipInfo], size: int) -> str:
    """Return why a zip file of *size* bytes could fill the memory; empty if it cannot."""
    if any(member.compress_type != ZIP_STORED for member in members):
        return "it is compressed, which torch's files are not"
    if sum(member.file_size for member in members) > size:
        return "its members claim to be larger than the file"
    return ""


def sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

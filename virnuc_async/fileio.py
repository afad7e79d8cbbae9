"""
Files that somebody else may have had a hand in.

Ours are never written through a link that was put in their place, and theirs are not read beyond
what they can sensibly hold.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo


def create_new(path: Path) -> BinaryIO:
    """Open a new file for writing, in the place of a file or link that may be there."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing, which takes the place of *path* once it is whole, or else is gone."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        with create_new(beside) as file:
            yield file
        fsync_and_rename(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def fsync_and_rename(partial: Path, path: Path) -> None:
    """Put *partial*, which is whole, in the place of *path*; both are on the disk when this returns."""
    _sync(partial)
    partial.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Have the names in *directory* on the disk."""
    _sync(directory)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Give a hidden directory that becomes *directory* when all went well: a half one is never found."""
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


def link_or_copy(source: Path, target: Path) -> None:
    """Have the same file under two names, or a copy where a file system cannot: encoders are gigabytes."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def open_nofollow(path: str, flags: int) -> int:
    """Open *path* as ``open`` does, whose opener this can be; fail if it is a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def read_bounded(path: Path, most: int) -> bytes:
    """
    Read all of *path*.

    Raises:
        OSError: it cannot be read
        ValueError: it is no plain file, or holds more than *most* bytes
    """
    # Looked at first: to open a pipe would wait for somebody to write into it.
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

"""
Read and write files in places that others can write to as well.

A file is never written through a link that somebody put in its place, and never read beyond the
size that it can sensibly have. What is being made has a hidden name, and is locked while its process
lives: the kernel frees the lock of a process that is killed, and then any other may remove what it left.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from virnuc_async.errors import CannotWrite, ForeignDirectoryError

USE_ANOTHER_DIRECTORY = "Choose a new or empty directory"

_IN_DOUBT = (
    "was not completed, and cannot be known to be left behind: it was begun on another machine, before the "
    "last start of this one, or where files cannot be locked. Delete it if nothing writes to it"
)

_MAX_ATTEMPTS = 100

# The names of what is being made.
_HALF_MADE = re.compile(r"\..+\.(?P<boot>[0-9a-f]{8}|unknown)-[0-9a-f]{8}\.virnuc\.partial", re.DOTALL)


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
    remove_leftovers(path.parent)
    with half_made(path, lambda hidden: create_new(hidden).close()) as partial:
        with open(partial, "r+b", opener=open_nofollow) as file:
            yield file
        fsync_and_rename(partial, path)


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
    remove_leftovers(directory.parent)
    with half_made(directory, Path.mkdir) as hidden:
        yield hidden
        for path in (*hidden.rglob("*"), hidden):
            _sync(path)
        hidden.rename(directory)
        sync_directory(directory.parent)


@contextmanager
def half_made(path: Path, create: Callable[[Path], object]) -> Iterator[Path]:
    """
    Make a hidden file or directory next to *path* with *create*; remove it in the end, if it is still there.

    It is locked meanwhile, so that no other process takes it for left behind.
    """
    hidden, lock = _make_and_lock(path, create)
    try:
        yield hidden
    finally:
        _remove(hidden)
        os.close(lock)


def _make_and_lock(path: Path, create: Callable[[Path], object]) -> tuple[Path, int]:
    """Make a hidden file or directory next to *path*; return it with the descriptor that holds its lock."""
    for _ in range(_MAX_ATTEMPTS):
        hidden = path.with_name(f".{path.name}.{_boot()}-{uuid4().hex[:8]}.virnuc.partial")
        create(hidden)
        # In the moment before it is locked, another process may take it for left behind.
        lock = _lock(hidden)
        if lock is not None:
            return hidden, lock
    raise BlockingIOError(errno.EAGAIN, "other processes keep removing what is being made", str(path))


def remove_leftovers(directory: Path) -> list[str]:
    """
    Remove what processes that were killed left half made in *directory*; return a line on what may be in use.

    That is what a process on another machine made, or one before this machine's last start, or on a file
    system without locks. What a living process has locked, or another user made, is neither removed nor
    returned.
    """
    in_doubt = []
    with suppress(OSError), os.scandir(directory) as entries:
        for path, boot in [*_half_made_here(entries)]:
            if boot != _boot() or not _is_removed(path):
                in_doubt.append(f"{path} {_IN_DOUBT}")
    return sorted(in_doubt)


def _half_made_here(entries: Iterator["os.DirEntry[str]"]) -> Iterator[tuple[Path, str]]:
    """Yield what this user's processes are making or have left, and on which boot."""
    for entry in entries:
        made = _HALF_MADE.fullmatch(entry.name)
        is_plain = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
        if made and is_plain:
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    yield Path(entry.path), made["boot"]


def _is_removed(path: Path) -> bool:
    """Remove *path* if its process is dead; return False if that cannot be known or done."""
    try:
        lock = _lock(path, must_lock=True)
    except OSError:
        return False
    if lock is None:  # it is alive, or somebody else is removing it
        return True
    # Still locked: a process that has just made it, and not locked it yet, must notice.
    _remove(path)
    os.close(lock)
    return not os.path.lexists(path)


def _lock(path: Path, must_lock: bool = False) -> int | None:
    """
    Lock *path*, and return the descriptor that holds the lock; None if it is another's, or gone.

    Raises:
        OSError: the file system has no locks, and it *must_lock*
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with ExitStack() as undo:
        undo.callback(os.close, file)
        if _has_lock(file, must_lock) and _is_at(file, path):
            undo.pop_all()
            return file
    return None


def _has_lock(file: int, must_lock: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # there are no locks: nobody else can lock it either, so it is never removed
        if must_lock:
            raise
    return True


def _is_at(file: int, path: Path) -> bool:
    """Return whether the open *file* is still at *path*."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """Remove a file or directory, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _boot() -> str:
    """Return what identifies this machine from its last start to its next."""
    try:
        return hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest()[:8]
    except OSError:
        return "unknown"


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

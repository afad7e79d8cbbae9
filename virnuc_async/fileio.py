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
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, Self
from uuid import uuid4
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from platformdirs import user_cache_path

from virnuc_async.errors import CannotWrite, ForeignDirectoryError, NoCacheDirectory

USE_ANOTHER_DIRECTORY = "Choose a new or empty directory"

_IN_DOUBT = (
    "was not completed, and cannot be known to be left behind: it was begun on another machine, before the "
    "last start of this one, or where files cannot be locked. Delete it if nothing writes to it"
)

_MAX_ATTEMPTS = 100
_CLOSED = -1  # instead of a handle
_UNNAMED = getattr(os, "O_TMPFILE", os.O_RDWR)  # the latter is refused for a directory

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


def read_lines(path: str, most: int, has_comments: bool = False) -> Iterator[tuple[int, bytes]]:
    """
    Yield number and content of each line of a list or table that a user wrote, in UTF-8 with any line ends.

    A byte order mark, empty lines and, if the format *has_comments*, those that begin with # are left out.

    Raises:
        OSError: it cannot be read
        ValueError: it is not such a text, or has more than *most* bytes
    """
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"a list of more than {most:,} bytes")
    # Without a mark, half of the bytes of Latin letters are zero.
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE, BOM_UTF32_BE)) or 3 * content.count(0) > len(content):
        raise ValueError("it is UTF-16 text. Save it as UTF-8, for example with: iconv -f UTF-16 -t UTF-8")
    for number, line in enumerate(content.removeprefix(BOM_UTF8).splitlines(), 1):
        if line.strip() and not (has_comments and line.startswith(b"#")):
            yield number, line


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


class Directory:
    """
    The directory that is at *path*, or *within* another, when this is made, whatever has its name later.

    Files are opened, renamed and removed relative to its handle, and never through a link.

    Raises, from the constructor:
        OSError: there is no directory, or it may not be read
    """

    _handle = _CLOSED

    def __init__(self, path: Path, within: "Directory | None" = None) -> None:
        self._first_path = path
        flags = os.O_RDONLY | os.O_DIRECTORY
        self._handle = os.open(path, flags) if within is None else within.opener(path.name, flags)

    def __repr__(self) -> str:
        return f"<Directory {self}>"

    def __str__(self) -> str:
        return str(self.path)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """Where it is now, for messages; its first path if the system does not say or it was removed."""
        return self.locate() or self._first_path

    @property
    def is_removed(self) -> bool:
        """Whether it exists no more."""
        return os.fstat(self._handle).st_nlink == 0

    def locate(self) -> Path | None:
        """Return a path that leads to it at this moment, or None if there is none, or none is known."""
        paths = [self._first_path]
        with suppress(OSError):
            paths.append(Path(os.readlink(f"/proc/self/fd/{self._handle}")))
        return next(filter(self.is_at, paths), None)

    def is_at(self, path: Path) -> bool:
        """Whether *path* leads to it."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._handle))
        except OSError:
            return False

    def opener(self, name: str, flags: int) -> int:
        """Open a file of it; can be used as the opener of ``open``."""
        return self._open_with(os.O_NOFOLLOW, name, flags)

    def open(self, name: str) -> BufferedReader:
        """Open a file for reading."""
        return open(name, "rb", opener=self.opener)

    def read_bounded(self, name: str, most: int) -> bytes:
        """Return all of a file; raise ValueError if it has more than *most* bytes, or is not a plain file."""
        # Checked first: opening a pipe would wait until somebody writes into it.
        found = self.stat(name)
        if found is not None and not S_ISREG(found.st_mode):
            raise ValueError("it is not a plain file")
        with self.open(name) as file:
            return _read_at_most(file, most)

    def create_new(self, name: str) -> BinaryIO:
        """Open a new file for writing; a file or link of that name is removed first."""
        self.unlink(name)
        return open(name, "xb", opener=self.opener)

    def temporary_file(self) -> BinaryIO:
        """Open a file without a name, for writing and reading: it is gone when it is closed."""
        name = f".{uuid4().hex}"
        # A file that never has a name: not every system knows them, nor every file system.
        with suppress(OSError):
            return open(".", "r+b", opener=partial(self._open_with, _UNNAMED))
        file = open(name, "x+b", opener=self.opener)  # noqa: SIM115 (it is returned)
        self.unlink(name)
        return file

    @contextmanager
    def atomic_write(self, name: str, check: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
        """
        Open a new file that replaces *name* when it is complete, and is removed if writing fails.

        *check* is called right before: if it raises, nothing is replaced.
        """
        self.remove_leftovers()
        with half_made(self, name, lambda hidden: self.create_new(hidden).close()) as hidden:
            with open(hidden, "r+b", opener=self.opener) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            check()
            self.rename(hidden, name)
            self.sync()

    def create(self, name: str) -> os.stat_result:
        """Create an empty file unless there is one of that name; return what the system says of it."""
        file = self.opener(name, os.O_CREAT | os.O_WRONLY)
        try:
            return os.fstat(file)
        finally:
            os.close(file)

    def rename(self, old: str, new: str, into: "Directory | None" = None) -> None:
        """Rename the file *old*, *into* another directory if given; a file called *new* is replaced."""
        os.replace(old, new, src_dir_fd=self._handle, dst_dir_fd=(into or self)._handle)

    def link(self, old: str, new: str) -> None:
        """Add the name *new*, which must be free, to the file *old*."""
        os.link(old, new, src_dir_fd=self._handle, dst_dir_fd=self._handle, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        """Remove a file or a link, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._handle)

    def remove(self, name: str) -> None:
        """Remove a file, or a directory with all that is in it, as far as possible."""
        found = self.stat(name)
        if found is not None and S_ISDIR(found.st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=self._handle)
        with suppress(OSError):
            self.unlink(name)

    def remove_leftovers(self) -> list[str]:
        """Do what :func:`remove_leftovers` does."""
        in_doubt = []
        with suppress(OSError):
            for name, boot in [*_half_made_here(self)]:
                if boot != _boot() or not _is_removed(self, name):
                    in_doubt.append(f"{self.path / name} {_IN_DOUBT}")
        return in_doubt

    def make_directory(self, name: str) -> None:
        """Make a directory in it."""
        os.mkdir(name, dir_fd=self._handle)

    def subdirectory(self, name: str) -> "Directory":
        """Open a directory in it, which is made first if it is missing, and is no link."""
        with suppress(FileExistsError):
            self.make_directory(name)
        return Directory(self.path / name, within=self)

    def remove_empty(self, name: str) -> None:
        """Remove a directory in it that has nothing in it."""
        os.rmdir(name, dir_fd=self._handle)

    def stat(self, name: str) -> os.stat_result | None:
        """Return what the system says of a file or a link; None if there is none."""
        try:
            return os.stat(name, dir_fd=self._handle, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def is_file(self, name: str) -> bool:
        """Whether there is a plain file of that name."""
        found = self.stat(name)
        return found is not None and S_ISREG(found.st_mode)

    def has(self, name: str, file: os.stat_result) -> bool:
        """Whether *file* is the one of that name."""
        found = self.stat(name)
        return found is not None and os.path.samestat(found, file)

    def names(self) -> list[str]:
        """Return the names in it, sorted."""
        return sorted(os.listdir(self._handle))

    def sync(self) -> None:
        """Make sure that the names in it are on the disk."""
        os.fsync(self._handle)

    def _open_with(self, more: int, name: str, flags: int) -> int:
        return os.open(name, flags | more, 0o666, dir_fd=self._handle)

    def close(self) -> None:
        """Close the handle; does nothing the second time."""
        handle, self._handle = self._handle, _CLOSED
        if handle != _CLOSED:
            os.close(handle)


def create_new(path: Path) -> BinaryIO:
    """Open a new file for writing; a file or link at *path* is removed first."""
    with Directory(path.parent) as directory:
        return directory.create_new(path.name)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces *path* when it is complete, and is removed if writing fails."""
    with Directory(path.parent) as directory, directory.atomic_write(path.name) as file:
        yield file


def fsync_and_rename(complete: Path, path: Path) -> None:
    """Replace *path* by *complete* beside it; content and name are on the disk when this returns."""
    with Directory(path.parent) as directory:
        _sync(complete)
        directory.rename(complete.name, path.name)
        directory.sync()


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
    with Directory(directory.parent) as parent:
        parent.remove_leftovers()
        with half_made(parent, directory.name, parent.make_directory) as hidden:
            made = directory.with_name(hidden)
            yield made
            for path in (*made.rglob("*"), made):
                _sync(path)
            parent.rename(hidden, directory.name)
            parent.sync()


@contextmanager
def half_made(directory: Directory, name: str, create: Callable[[str], object]) -> Iterator[str]:
    """
    Make a hidden file or directory for *name* with *create*; remove it in the end, if it is still there.

    It is locked meanwhile, so that no other process takes it for left behind.
    """
    hidden, lock = _make_and_lock(directory, name, create)
    try:
        yield hidden
    finally:
        directory.remove(hidden)
        os.close(lock)


def _make_and_lock(directory: Directory, name: str, create: Callable[[str], object]) -> tuple[str, int]:
    """Make a hidden file or directory for *name*; return it with the descriptor that holds its lock."""
    for _ in range(_MAX_ATTEMPTS):
        hidden = f".{name}.{_boot()}-{uuid4().hex[:8]}.virnuc.partial"
        create(hidden)
        # In the moment before it is locked, another process may take it for left behind.
        lock = _lock(directory, hidden)
        if lock is not None:
            return hidden, lock
    raise BlockingIOError(errno.EAGAIN, "other processes keep removing what is being made", str(directory))


def remove_leftovers(path: Path) -> list[str]:
    """
    Remove what processes that were killed left half made in the directory *path*, as far as it is there.

    Return a line on what may be in use: what a process on another machine made, or one before this
    machine's last start, or on a file system without locks. What a living process has locked, or another
    user made, is neither removed nor returned.
    """
    with suppress(OSError), Directory(path) as directory:
        return directory.remove_leftovers()
    return []


def _half_made_here(directory: Directory) -> Iterator[tuple[str, str]]:
    """Yield what this user's processes are making or have left, and on which boot."""
    for name in directory.names():
        made = _HALF_MADE.fullmatch(name)
        found = directory.stat(name) if made else None
        is_plain = found is not None and (S_ISREG(found.st_mode) or S_ISDIR(found.st_mode))
        if made and found and is_plain and found.st_uid == os.geteuid():
            yield name, made["boot"]


def _is_removed(directory: Directory, name: str) -> bool:
    """Remove *name* if its process is dead; return False if that cannot be known or done."""
    try:
        lock = _lock(directory, name, must_lock=True)
    except OSError:
        return False
    if lock is None:  # it is alive, or somebody else is removing it
        return True
    # Still locked: a process that has just made it, and not locked it yet, must notice.
    directory.remove(name)
    os.close(lock)
    return directory.stat(name) is None


def _lock(directory: Directory, name: str, must_lock: bool = False) -> int | None:
    """
    Lock *name*, and return the descriptor that holds the lock; None if it is another's, or gone.

    Raises:
        OSError: the file system has no locks, and it *must_lock*
    """
    try:
        file = directory.opener(name, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with ExitStack() as undo:
        undo.callback(os.close, file)
        if _has_lock(file, must_lock) and directory.has(name, os.fstat(file)):
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


def write_all(file: int, content: bytes | memoryview, offset: int) -> None:
    """Write *content* at *offset* of an open file."""
    # A disk that is almost full may take a part of it without an error.
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


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
        return _read_at_most(file, most)


def _read_at_most(file: BinaryIO, most: int) -> bytes:
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


# What zipfile raises at a damaged file, beside BadZipFile; RuntimeError is also what it does not support.
ZIP_ERRORS = (RuntimeError, ValueError, EOFError, OverflowError, struct.error)


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
    except ZIP_ERRORS as error:
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


def stat_signature(file: int | str) -> tuple[int, ...] | None:
    """Return what changes when a regular file is written or replaced; None for a pipe or a device."""
    stat = os.stat(file)
    if not S_ISREG(stat.st_mode):
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def sha256(path: Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache() -> Path:
    """
    Return the cache directory of this program and this user.

    Raises:
        NoCacheDirectory: the user has no home directory
    """
    try:
        path = user_cache_path("virnuc-async")
    except RuntimeError:
        path = Path()
    if not path.is_absolute():
        raise NoCacheDirectory("the home directory of this user is unknown (HOME is unset or relative)")
    return path

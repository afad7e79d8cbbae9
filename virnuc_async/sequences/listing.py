"""
Which files a run reads: those that were named, and those in the directories that were named.

A URL is a file, or if it ends with / a directory. Nothing is left out without a word: what a directory has
beside its sequence files, and a file that is named more than once, is in a notice for each kind.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from errno import EACCES
from pathlib import Path
from stat import S_ISDIR, S_ISFIFO, S_ISREG, S_ISSOCK
from typing import BinaryIO, NamedTuple

from virnuc_async.errors import MissingInputs, UnreadableInput, UsageError
from virnuc_async.text import is_url

from .decompression import DAMAGED
from .fastx import describe_error
from .foreign_formats import HEAD_BYTES, foreign_format
from .inputs import STDIN, look_into, split_extensions
from .object_stores import locate
from .remote import list_directory, look_up

_STDIN_NAMES = frozenset({STDIN, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"})
_MAX_NAMED = 5  # files in a notice
_COPIES = (".bak", ".orig", ".save", ".swp", ".swo")

FileKey = tuple[int | str, ...]  # device and number of a file, whatever its names; or its URL


class Notice(NamedTuple):
    """What a run is not going to read, for its log."""

    level: str  # of the log
    text: str


class Listing(NamedTuple):
    """The files to read, in order, and what is left out."""

    paths: tuple[str, ...]
    notices: tuple[Notice, ...]


def list_inputs(
    inputs: Iterable[str | Path],
    *,
    recursive: bool = False,
    allow_duplicates: bool = False,
    skip_missing: bool | None = None,
    but_not: Path | None = None,
    stdin: BinaryIO | None = None,
) -> Listing:
    """
    Return the files that *inputs* stand for: a directory stands for its sequence files, sorted by name.

    A directory without any stands for itself, and what is missing with *skip_missing* too, so that reading
    them fails; None: nothing can be skipped. With *recursive*, directories are searched for directories, but
    *but_not*, which is not told of either.

    Raises:
        UsageError: there is no input, one has no name, or a stream is named twice
        MissingInputs: inputs cannot be read
    """
    names = list(map(str, inputs))
    check_names(names)
    lister = _Lister(recursive, None if but_not is None else file_key(but_not))
    lister.look_up(name for name in names if is_url(name) and not locate(name).is_directory)
    for name in names:
        lister.add(name, stdin)
    if lister.missing and not skip_missing:
        hint = "" if skip_missing is None else ", or use --skip-missing to go on without"
        raise MissingInputs(lister.missing, hint)
    paths = [file.path for file in lister.files]
    duplicates = dict(_find_duplicates(lister.files))
    notices = list(lister.notices())
    if duplicates and not allow_duplicates:
        named = [f"{first} and {paths[number]}" for number, first in duplicates.items()]
        text = f"named more than once, read once: {_first_of(named)} (--allow-duplicates reads each)"
        notices.append(Notice("WARNING", text))
        paths = [path for number, path in enumerate(paths) if number not in duplicates]
    return Listing(tuple(paths), tuple(notices))


def check_names(names: Iterable[str]) -> None:
    """
    Check the names of inputs, without looking at the files.

    Raises:
        UsageError: there are none, one is empty or a URL of nothing, or standard input is named twice
    """
    names = list(names)
    if not names:
        raise UsageError("name an input")
    if "" in names:
        raise UsageError("an input has an empty name. Is a variable of the command not set?")
    for name in filter(is_url, names):
        if locate(name).is_directory and locate(name).is_web:
            raise UsageError(f"{name}: a web server does not list its files: name each")
    streams = list(filter(is_stdin, names))
    if len(streams) > 1:
        raise UsageError(f"standard input can be read only once, but is named as {' and '.join(streams)}")


def is_stdin(name: str) -> bool:
    """Whether *name* stands for standard input."""
    return not is_url(name) and os.path.normpath(name) in _STDIN_NAMES


def file_key(path: str | Path) -> FileKey | None:
    """Return what all names of a file have in common; None if there is no such file."""
    if is_url(str(path)):
        return (str(path),)
    with suppress(OSError, ValueError):  # ValueError: a name with a zero byte in it
        stat = os.stat(path)
        return stat.st_dev, stat.st_ino
    return None


class _Kind(NamedTuple):
    """A kind of what is left out: how its line in the log begins and ends."""

    level: str
    one: str
    many: str
    hint: str = ""


# In the order of the log: what may be missed comes first.
_LINK = _Kind("WARNING", "link that leads nowhere", "links that lead nowhere")
_STREAM = _Kind("WARNING", "pipe, socket or device", "pipes, sockets or devices")
_DIRECTORY = _Kind("WARNING", "subdirectory", "subdirectories", " (--recursive reads them)")
_VISITED = _Kind("WARNING", "directory that was read already", "directories that were read already")
_UNREADABLE = _Kind("WARNING", "file that cannot be read", "files that cannot be read")
_FOREIGN = _Kind("WARNING", "file of another format", "files of other formats")
_COPY = _Kind("WARNING", "editor's copy", "editors' copies")
_HIDDEN = _Kind("INFO", "hidden file", "hidden files")
_OTHER = _Kind("INFO", "file that is neither FASTA nor FASTQ", "files that are neither FASTA nor FASTQ")
_KINDS = (_LINK, _STREAM, _DIRECTORY, _VISITED, _UNREADABLE, _FOREIGN, _COPY, _HIDDEN, _OTHER)


class _File(NamedTuple):
    """A file to read; *key* is None for what cannot be read, and for standard input that is no file."""

    path: str
    key: FileKey | None = None
    is_stream: bool = False  # which can be read only once

    @classmethod
    def of(cls, path: str, stat: os.stat_result | None) -> "_File":
        """Return the file at *path*, of which the system says *stat*."""
        if stat is None:
            return cls(path)
        return cls(path, _key(stat), S_ISFIFO(stat.st_mode) or S_ISSOCK(stat.st_mode))


class _Lister:
    """Collects the files of inputs, and what is left out, by its kind."""

    def __init__(self, recursive: bool, but_not: FileKey | None) -> None:
        self.files: list[_File] = []
        self.missing: list[UnreadableInput] = []
        self._recursive, self._but_not = recursive, but_not
        self._left_out: dict[_Kind, list[str]] = {kind: [] for kind in _KINDS}
        self._looked_up: dict[str, OSError | None] = {}

    def look_up(self, urls: Iterable[str]) -> None:
        """Ask for *urls*, which are going to be added, all at once."""
        wanted = list(urls)
        if wanted:
            self._looked_up = look_up(wanted)

    def add(self, name: str, stdin: BinaryIO | None) -> None:
        """Add the input *name*, or the files in it."""
        if name == STDIN:
            self.files.append(_File.of(name, _stat_of_stream(stdin)))
        elif is_url(name):
            self._add_url(name)
        else:
            self._add_path(name)

    def _add_url(self, url: str) -> None:
        if locate(url).is_directory:
            self._add_directory(url, (url,))
        elif error := self._looked_up.get(url):
            self._add_missing(url, describe_error(error))
        else:
            self.files.append(_File(url, (url,)))

    def _add_path(self, name: str) -> None:
        try:
            stat = os.stat(name)
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
            self._add_missing(name, describe_error(error))
            return
        if S_ISDIR(stat.st_mode):
            self._add_directory(name, _key(stat))
        elif S_ISSOCK(stat.st_mode):
            self._add_missing(name, "a socket")
        elif not os.access(name, os.R_OK):
            self._add_missing(name, os.strerror(EACCES))
        else:
            self.files.append(_File.of(name, stat))

    def notices(self) -> Iterator[Notice]:
        """Yield a line for each kind of what was left out."""
        for kind, names in self._left_out.items():
            if names:
                what = f"{len(names):,} {kind.one if len(names) == 1 else kind.many}"
                yield Notice(kind.level, f"left out {what}: {_first_of(names)}{kind.hint}")

    def _add_missing(self, name: str, reason: str) -> None:
        self.missing.append(UnreadableInput(name, reason))
        self.files.append(_File(name))

    def _add_directory(self, name: str, key: FileKey) -> None:
        before = len(self.files)
        visited = {key}
        # Not recursive calls: a path may have thousands of directories.
        levels = [self._entries(name)]
        while levels:
            path = next(levels[-1], None)
            if path is None:
                levels.pop()
            elif (found := self._add_entry(path)) is not None and found != self._but_not:
                if not self._recursive:
                    self._left_out[_DIRECTORY].append(path)
                elif found in visited:
                    self._left_out[_VISITED].append(path)
                else:
                    visited.add(found)
                    levels.append(self._entries(path))
        if len(self.files) == before:
            self.files.append(_File(name))

    def _entries(self, directory: str) -> Iterator[str]:
        """Return what is in *directory*, sorted by name; the URL of what is like a directory ends with /."""
        try:
            if is_url(directory):
                return iter(list_directory(directory))
            names = sorted(os.listdir(directory))
        except OSError as error:
            self._add_missing(directory, describe_error(error))
            return iter(())
        return (str(Path(directory, name)) for name in names)

    def _add_entry(self, path: str) -> FileKey | None:
        """Add or note what is in a directory, unless it is a directory itself: return the key of that."""
        return self._add_object(path) if is_url(path) else self._add_local_entry(path)

    def _add_object(self, url: str) -> FileKey | None:
        name = os.path.basename(url.rstrip("/"))
        is_sequences = bool(split_extensions(name)[1])
        if name.startswith(".#") or (_is_copy(name) and not url.endswith("/")):
            self._left_out[_COPY].append(url)
        elif name.startswith("."):
            self._left_out[_HIDDEN] += [url] * is_sequences
        elif url.endswith("/"):
            return (url,)
        elif is_sequences or self._holds_sequences(url):
            self.files.append(_File(url, (url,)))
        return None

    def _add_local_entry(self, path: str) -> FileKey | None:
        name = os.path.basename(path)
        is_sequences = bool(split_extensions(name)[1])
        try:
            stat = os.stat(path)
        except OSError:
            stat = None
        if name.startswith(".#") or (_is_copy(name) and (stat is None or S_ISREG(stat.st_mode))):
            self._left_out[_COPY].append(path)
        elif name.startswith("."):
            self._left_out[_HIDDEN] += [path] * is_sequences
        elif stat is None:
            self._left_out[_LINK].append(path)
        elif S_ISDIR(stat.st_mode):
            return _key(stat)
        elif not S_ISREG(stat.st_mode):
            self._left_out[_STREAM].append(path)
        elif is_sequences and not os.access(path, os.R_OK):
            self._add_missing(path, os.strerror(EACCES))
        elif is_sequences or self._holds_sequences(path):
            self.files.append(_File.of(path, stat))
        return None

    def _holds_sequences(self, path: str) -> bool:
        """Whether the content of *path* is that of a format that is read; note what it is otherwise."""
        try:
            head, is_alignment = look_into(path, HEAD_BYTES)
        except (UnreadableInput, *DAMAGED) as error:
            reason = error.reason if isinstance(error, UnreadableInput) else describe_error(error)
            self._left_out[_UNREADABLE].append(f"{path} ({reason})")
            return False
        if head[:1] in (b">", b"@") or is_alignment:
            return True
        foreign = foreign_format(head) or ""
        what, is_convertible, _ = foreign.partition(" first: ")
        if is_convertible:
            self._left_out[_FOREIGN].append(f"{path} ({what.partition('. ')[0]})")
        else:
            self._left_out[_OTHER].append(path)
        return False


def _find_duplicates(files: Iterable[_File]) -> Iterator[tuple[int, str]]:
    """
    Yield the number of each file that was named before, by whatever name, and its first name.

    Raises:
        UsageError: it is a stream, which can be read only once
    """
    names: dict[FileKey, str] = {}
    for number, (path, key, is_stream) in enumerate(files):
        if key is None:
            continue
        if key not in names:
            names[key] = path
            continue
        first = names[key]
        if is_stream:
            raise UsageError(f"{first} and {path} are the same stream, which can be read only once")
        yield number, first


def _is_copy(name: str) -> bool:
    return name.endswith(("~", *_COPIES)) or (name.startswith("#") and name.endswith("#"))


def _key(stat: os.stat_result) -> FileKey:
    return stat.st_dev, stat.st_ino


def _stat_of_stream(stream: BinaryIO | None) -> os.stat_result | None:
    """Return what is known of the file that standard input is; None if it is none."""
    try:
        return None if stream is None else os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None


def _first_of(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")

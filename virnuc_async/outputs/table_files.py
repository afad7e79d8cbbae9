"""The files of a run's directory that are made of its store: written at once or not at all."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zlib import crc32

from virnuc_async.fileio import Directory, writing_to
from virnuc_async.runs.output_directory import DAMAGED, FEATURES, OUTPUT_FILES, TABLES, is_in_merged

from .columns import Chunks

if TYPE_CHECKING:
    from .output_files import FinishedRun, OutputFile

SUMMARY = "summary.json"
# Of our files, those that may change behind a finished run.
_VOLATILE_FILES = ("run.log", "progress.json", FEATURES, DAMAGED)


class TableFiles:
    """
    Writes and removes files in *directory*; *check* is called before each change, and may raise to stop.

    Messages say that it is at *place*, where its files will be.

    Raises, from every method that changes a file:
        CannotWrite: the disk is full, or the directory is read-only
        DirectoryLockedError: another process has taken the directory over
    """

    def __init__(self, directory: Directory, check: Callable[[], None], place: Path | None = None) -> None:
        self.directory = directory
        self._place = place
        self._check = check
        self.made: set[str] = set()  # names of files that were written or removed

    @property
    def place(self) -> Path:
        """Where the files are, or will be."""
        return self._place or self.directory.path

    def make(
        self, file: "OutputFile", run: "FinishedRun", before_each: Callable[[], None] = lambda: None
    ) -> None:
        """Write *file* of *run*, or remove it if it is not wanted; *before_each* as for :meth:`write`."""
        if file.is_wanted(run):
            self.write(file.name, file.chunks(run), before_each)
        else:
            # An earlier session may have left one.
            self.remove(file.name)

    def write(self, name: str, chunks: Chunks, before_each: Callable[[], None] = lambda: None) -> None:
        """Write *chunks* as the file *name*; *before_each* is called before each, and may raise to stop."""
        # The generator is closed whatever happens: a query that is open keeps the store's lock.
        with closing(chunks), self.new_file(name) as file:
            for chunk in chunks:
                before_each()
                file.write(chunk)

    @contextmanager
    def new_file(self, name: str) -> Iterator[BinaryIO]:
        """Open a temporary file that replaces *name*, which may be in a directory, when it is on disk."""
        self._check()
        self.made.add(name)
        inner, _, plain = name.rpartition("/")
        with ExitStack() as stack:
            stack.enter_context(writing_to(self.place, name))
            directory = self.directory
            if inner:
                directory = stack.enter_context(directory.subdirectory(inner))
            yield stack.enter_context(directory.atomic_write(plain, self._check))

    def remove(self, name: str) -> None:
        """Remove the file *name*, if it is there."""
        self._check()
        self.made.add(name)
        self.directory.unlink(name)
        self.directory.sync()

    def facts_since(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return the facts of *before*, with those of the files that were written or removed since."""
        now = self.facts({*before, *self.made})
        names = {*self.made, *({"checksum"} if SUMMARY in self.made else ())}
        kept = {name: fact for name, fact in before.items() if name not in names}
        return kept | {name: fact for name, fact in now.items() if name in names}

    def facts(self, names: Iterable[str] = ()) -> dict[str, Any]:
        """
        Return size and time of each file that a run ends with, and the checksum of its summary.

        Of the files in directories, those in *names* are among them.
        """
        plain = [name for name in OUTPUT_FILES if name not in _VOLATILE_FILES]
        names = [*plain, *sorted(filter(is_in_merged, names))]
        stats = ((name, self.directory.stat(name)) for name in names if self.directory.is_file(name))
        # A run of an earlier version has no table that is new, and knows nothing of it.
        facts: dict[str, Any] = dict.fromkeys(TABLES)
        facts |= {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats if stat}
        # The summary is small, and it is read again.
        if SUMMARY in facts:
            with self.directory.open(SUMMARY) as file:
                facts["checksum"] = crc32(file.read())
        return facts

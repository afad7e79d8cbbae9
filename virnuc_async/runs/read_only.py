"""A finished store that is only read, where it lies: also on a file system that cannot be written to."""

import os
import sqlite3
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

from virnuc_async.errors import DamagedStore
from virnuc_async.fileio import Directory

from .database import JOURNAL, Database, has_tables, needs_journal, translated_errors
from .output_directory import STORE

_INTERRUPTED = "was interrupted while its store was written. The same command again repairs it"


class ReadOnlyDatabase(Database):
    """
    The SQLite file of *directory*, which no process may change meanwhile; closed with it.

    Raises, from the constructor:
        DamagedStore: it is of a process that was killed while it wrote, or cannot be read
        ForeignDirectoryError: the file is not a store of this version
        OSError: there is none
    """

    def __init__(self, directory: Path, scratch: Directory) -> None:
        with ExitStack() as undo:
            self.directory = undo.enter_context(Directory(directory))
            self.scratch = scratch
            self._name = STORE
            self._journal = STORE + JOURNAL
            if needs_journal(self.directory):
                raise DamagedStore(str(directory), _INTERRUPTED)
            os.close(self.directory.opener(STORE, os.O_RDONLY))
            with translated_errors(self.directory):
                # Immutable: it is neither locked nor changed, and there is nothing to write beside it.
                self.connection = sqlite3.connect(
                    f"file:{quote(os.fsencode(directory.absolute() / STORE))}?mode=ro&immutable=1",
                    isolation_level=None,
                    check_same_thread=False,
                    uri=True,
                )
                undo.callback(self.connection.close)
                if not has_tables(self):
                    raise self.damage("it is empty")
            undo.pop_all()

    def close(self) -> None:
        """Close the file and its directory."""
        self.connection.close()
        self.directory.close()

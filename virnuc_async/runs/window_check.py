"""Which windows of a store are still those of the input, and what is dropped because it is not."""

from collections.abc import Sequence

from virnuc_async.errors import RunMismatchError, Stage
from virnuc_async.sequences.windows import FileRow, Window
from virnuc_async.text import plural

from .failure import Failure
from .file_changes import FileChanges
from .identity import Identity
from .messages import RunMessages
from .rows import WindowRow
from .store import Store, file_end

_OTHER_SEQUENCES = "the sequences have changed"


class WindowCheck:
    """
    Compares the windows of the input, in order, with those in *store*; use in the thread of the store.

    The store remains that of the inputs it was begun with until the first difference: whatever ends the
    run before, nothing is lost, and the next session finds the same. *identity* and *paths* are of the
    inputs now, and *changes* how they differ.
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        paths: Sequence[str],
        changes: FileChanges,
        messages: RunMessages,
    ) -> None:
        self._store = store
        self._identity, self._paths = identity, paths
        self._changes = changes
        self._messages = messages
        self._is_changed = bool(str(changes))
        self._ends: dict[int, Sequence[FileRow]] = {}  # of windows whose files now end in another way

    def add(self, window: Window) -> None:
        """
        Store *window*, unless it is there; at the first difference, drop what is stored from there on.

        Raises:
            RunMismatchError: nothing of the run would be left, or an input cannot be read as it was before
        """
        stored = self._store.reader.window(window.number)
        if stored is not None and stored.digest == window.digest:
            if stored.files != tuple(map(file_end, window.files)):
                self._check_readable(window)
                self._ends[window.number] = window.files
            return
        if stored is not None:
            self._check_readable(window)
            self._check_beginning(window, stored)
        if stored is not None or self._is_pending:
            self._accept(window.number)
        self._store.add_window(window)
        self._log_files(window.files)

    def require_same(self, window: Window) -> None:
        """Check that *window* is stored, and its files ended as they do now; else raise RunMismatchError."""
        stored = self._store.reader.window(window.number)
        ends = tuple(map(file_end, window.files))
        if stored is None or (stored.digest, stored.files) != (window.digest, ends):
            raise self._mismatch(_OTHER_SEQUENCES)

    def require_count(self, count: int) -> None:
        """Check that no more than *count* windows are stored; raise RunMismatchError if there are."""
        if self._store.reader.window_count() > count:
            raise self._mismatch(_OTHER_SEQUENCES)

    def end(self, number: int) -> None:
        """Drop the stored windows from *number* on: the input has no more than that."""
        if self._is_pending or self._store.reader.window_count(number):
            self._accept(number)

    @property
    def _is_pending(self) -> bool:
        """Whether the store has still to be made one of the inputs now."""
        return self._is_changed or bool(self._ends)

    def _accept(self, number: int) -> None:
        """Make the run one of the inputs now, with the windows that are stored before *number*."""
        dropped = self._store.reader.window_count(number)
        count = self._store.reader.window_count() - dropped
        if dropped and not self._is_changed:
            self._messages.log.warning("the sequences have changed: {} dropped", plural(dropped, "window"))
        self._messages.log.debug("kept {} of an earlier session", plural(count, "window"))
        self._store.rebind(self._identity, self._paths, number, self._ends)
        for files in self._ends.values():
            self._log_files(files)
        self._is_changed, self._ends = False, {}

    def _check_beginning(self, window: Window, stored: WindowRow) -> None:
        """Check that something is kept, or that a file is still the same: else it is perhaps a mistake."""
        is_empty = not stored.orfs and self._store.reader.window_count() == 1
        if window.number or is_empty or (self._is_changed and self._changes.share_content):
            return
        raise self._mismatch(f"inputs: {self._changes}" if self._is_changed else _OTHER_SEQUENCES)

    def _check_readable(self, window: Window) -> None:
        """Check that no file breaks that was read to its end before: it may be read again another time."""
        failed = [file for file in window.files if file.failure and self._changes.is_same_file(file.number)]
        before = list(self._store.reader.files()) if failed else []
        for file in failed:
            if before[file.number].contigs is not None and not before[file.number].failed:
                raise self._mismatch(f"inputs: {file.path} was read to its end before, and cannot be now")

    def _log_files(self, files: Sequence[FileRow]) -> None:
        for file in files:
            if file.failure:
                self._messages.log_failure(Failure(file.path, Stage.INPUT, file.failure.reason))
            elif not file.contigs:
                self._messages.log.warning("{} holds no sequence", file.path)

    def _mismatch(self, difference: str) -> RunMismatchError:
        return RunMismatchError(str(self._store.directory), [difference])

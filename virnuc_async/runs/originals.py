"""The records of a finished run, read from its inputs again: they must be those that were scored."""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from virnuc_async.errors import InputError, LostInput
from virnuc_async.sequences.alignments import AlignmentParser
from virnuc_async.sequences.fastx import Contig, FastxParser
from virnuc_async.sequences.inputs import InputVersion, open_records
from virnuc_async.sequences.windows import digest_text

from .reader import RunReader
from .rows import WindowRow

_CHANGED = "it has changed since it was scored"
_STREAM = "what came through standard input or a pipe is not there any more"


class Originals:
    """
    The inputs of the finished run that *reader* reads; *inputs* has path and fingerprint of each.

    Records are checked as they are read, against what the windows of the run were formed of: what is made of
    them is to be kept only if :meth:`end` raises nothing.

    Raises, from every method:
        LostInput: an input is not there, or not what was scored
    """

    def __init__(self, reader: RunReader, inputs: Sequence[Sequence[Any]]) -> None:
        self._inputs = inputs
        self._files = list(reader.files())
        self._windows = reader.windows()
        self._left = 0  # records of the window that are still to come
        self._window: WindowRow | None = None
        self._digest = hashlib.sha256()
        self._next_file = 0

    def __len__(self) -> int:
        return len(self._files)

    def close(self) -> None:
        """End what is read of the store."""
        self._windows.close()

    def check(self) -> None:
        """Check that each input of which there are records is there, with the fingerprint that it had."""
        for number, file in enumerate(self._files):
            if file.contigs:
                self._check(number)

    def read(self, file: int) -> Generator[FastxParser | AlignmentParser, None, None]:
        """
        Yield, for each record of the input number *file* that was scored, the parser that has just read it.

        Inputs are read in order, and each to its last record.
        """
        assert file == self._next_file, "windows go through the inputs in order"
        self._next_file += 1
        count = self._files[file].contigs
        if not count:
            return
        path = self._inputs[file][0]
        try:
            with open_records(path) as parser, closing(parser.contigs()) as contigs:
                for _ in range(count):
                    contig = next(contigs, None)
                    if contig is None:
                        raise LostInput(path, _CHANGED)
                    self._add(file, contig)
                    yield parser
                # A file that broke is not read on: it breaks there again.
                if not self._files[file].failed and next(contigs, None) is not None:
                    raise LostInput(path, _CHANGED)
        except InputError as error:
            reason = f"it cannot be read as it was when it was scored: {error.reason}"
            raise LostInput(path, reason) from error
        self._check(file)

    def end(self) -> None:
        """Check that nothing was left out."""
        self._end_window(len(self._files) - 1)
        assert (self._next_file, self._left) == (len(self._files), 0)

    def _check(self, file: int) -> None:
        path, fingerprint = self._inputs[file]
        known, found = InputVersion(fingerprint), InputVersion.of(path)
        if known.is_stream:
            raise LostInput(path, _STREAM)
        if found.fingerprint is None:
            raise LostInput(path, "it cannot be read any more")
        if found.fingerprint != fingerprint:
            raise LostInput(path, _CHANGED)

    def _add(self, file: int, contig: Contig) -> None:
        while not self._left:
            self._end_window(file)
            self._window = next(self._windows)
            self._left, self._digest = len(self._window.contigs), hashlib.sha256()
        self._left -= 1
        self._digest.update(digest_text(file, contig))

    def _end_window(self, file: int) -> None:
        if self._window is not None and self._digest.digest() != self._window.digest:
            raise LostInput(self._inputs[file][0], _CHANGED)

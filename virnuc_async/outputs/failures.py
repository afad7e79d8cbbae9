"""The list of what could not be processed: ``failed_files.txt``."""

from collections.abc import Iterable
from itertools import chain

from virnuc_async.runs.failure import Failure, failure_line
from virnuc_async.runs.reader import RunReader

from .columns import Chunks


def failure_chunks(reader: RunReader, more: Iterable[Failure] = ()) -> Chunks:
    """Yield ``failed_files.txt``, line by line: the failures in the store, then *more* of this session."""
    for failure in chain(reader.failures(), more):
        yield failure_line(failure).encode("utf-8", "surrogateescape")

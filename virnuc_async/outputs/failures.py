"""The list of what could not be processed: ``failed_files.txt``."""

from collections.abc import Iterable
from itertools import chain

from virnuc_async.runs.store import Failure, Store

from .columns import Chunks

_ESCAPES = (("\\", "\\\\"), ("|", "\\|"), ("\r\n", "\\n"), ("\n", "\\n"), ("\r", "\\n"))


def failure_chunks(reader: Store, more: Iterable[Failure] = ()) -> Chunks:
    """Yield ``failed_files.txt``, line by line: the failures in the store, then *more* of this session."""
    for failure in chain(reader.failures(), more):
        yield failure_line(failure).encode("utf-8", "surrogateescape")


def failure_line(failure: Failure) -> str:
    """Return a line of ``failed_files.txt``; fields contain no unescaped pipe and no line end."""
    fields = (failure.path, failure.stage, failure.message)
    return "|".join(map(_escape, fields)) + "\n"


def _escape(text: str) -> str:
    for character, escape in _ESCAPES:
        text = text.replace(character, escape)
    return text

"""
The standard streams of a command.

A message that cannot be written is given up, and the work goes on. A result that cannot be written, such as
the table of ``models list``, is an error: nobody would miss it otherwise.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TextIO, cast

from virnuc_async.errors import CannotWrite

_GIVE_UP = (OSError, ValueError)  # ValueError: the stream is closed


def open_missing_streams() -> None:
    """Open /dev/null as each of the standard streams that this process was started without."""
    # Otherwise the next file that is opened gets its number, and a library's message its content.
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if not _is_open(number):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # the same if all numbers below it are taken
            if null != number:
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def discard_unwritable() -> None:
    """Write what the standard streams still hold, and discard what cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except _GIVE_UP:
            # Python tries again when it exits, and would exit with another code.
            with suppress(*_GIVE_UP):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def standard_input() -> BinaryIO | None:
    """Return the standard input of this process as bytes, None if there is none."""
    stream = getattr(sys.stdin, "buffer", None)
    return None if stream is None or stream.closed else stream


def write_or_give_up(stream: TextIO | None, text: str) -> None:
    """Write a message to *stream* at once, if that can be done."""
    if stream is not None:
        with suppress(*_GIVE_UP):
            _write_escaped(stream, text)
            stream.flush()


def _write_escaped(stream: TextIO, text: str) -> None:
    """Write *text*, with what the encoding of *stream* does not have, such as half a character, escaped."""
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))


class MessageStream:
    """Standard error for messages: what *stream* does not take is given up."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write *text* at once."""
        write_or_give_up(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: all is written."""

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        with suppress(*_GIVE_UP):
            return self._stream is not None and self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ResultStream:
    """
    Standard output: what *stream* does not take is an error if it *is_result*, else it is given up.

    *failure* is why something was given up, empty if nothing was or if the reader has had enough.

    Raises, from every method:
        BrokenPipeError: the reader has gone away
        CannotWrite: it cannot be written
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.is_result = True
        self.failure = ""

    def write(self, text: str) -> int:
        """Write *text*."""
        if self._stream is not None:
            with self._translated_errors():
                _write_escaped(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Write what is still in memory."""
        if self._stream is not None:
            with self._translated_errors():
                self._stream.flush()

    @property
    def buffer(self) -> BinaryIO:
        """It as a file of bytes; what is written there is not given up."""
        return cast(BinaryIO, _Bytes(self._write_bytes))

    def _write_bytes(self, content: bytes) -> None:
        if self._stream is not None:
            with self._translated_errors():
                self._stream.buffer.write(content)

    def give_up(self) -> None:
        """Write what is still in memory if that can be done, and give up what comes."""
        self.is_result = False
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            if self.is_result:
                raise
        except _GIVE_UP as error:
            self.failure = getattr(error, "strerror", None) or str(error)
            if self.is_result:
                raise CannotWrite("standard output", self.failure) from error


class _Bytes(io.RawIOBase):
    """A file that *write_all* writes."""

    def __init__(self, write_all: Callable[[bytes], None]) -> None:
        self._write_all = write_all

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, content: Any, /) -> int:
        """Write all of *content*."""
        self._write_all(content)
        return len(content)


@contextmanager
def command_streams() -> Iterator[ResultStream]:
    """Let the body write to standard error without an error, and yield what it writes to standard output."""
    before = sys.stdout, sys.stderr
    result = ResultStream(before[0])
    sys.stdout, sys.stderr = result, MessageStream(before[1])
    try:
        yield result
    finally:
        sys.stdout, sys.stderr = before

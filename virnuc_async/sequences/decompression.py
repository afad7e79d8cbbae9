"""
Decompression of gzip, bzip2, xz and Zstandard, detected from the first bytes and never from a name.

Memory is bounded, whatever a file unpacks to. Compressed files within compressed files are not
unpacked.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO, Protocol, cast

try:
    from compression import zstd  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    from backports import zstd

try:
    from zlib_ng import zlib_ng
except ImportError:
    zlib_ng = None  # type: ignore[assignment, unused-ignore]

# Whoever packs a file decides how much memory it takes to unpack it. These limits accept what the
# usual options write, xz's largest dictionaries aside: zstd's --long=31 is 2 GiB.
_XZ_MEMORY = 1 << 30
_ZSTD_WINDOW = {zstd.DecompressionParameter.window_log_max: 31}

READ_BYTES = 1 << 13  # compressed, that are read at a time, at most
_STEP_BYTES = 1 << 16  # of text, where that is decompressed in steps of one size
_LONGEST_MATCH = 258  # bytes of text that a few bits stand for
_RECOVERED_BYTES = 1 << 12  # compressed, that are tried at once in front of damage
_GZIP = b"\x1f\x8b"
_ENDS_EARLY = "Compressed file ended before the end-of-stream marker was reached"
_FAST_ERROR: Any = zlib_ng.error if zlib_ng else ()
_GZIP_REASONS = {  # instead of zlib's
    "incorrect data check": "CRC check failed",
    "incorrect length check": "Incorrect length of data produced",
}

# What reading a damaged file may raise.
DAMAGED = (OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError, zstd.ZstdError)


class TextStream(Protocol):
    """A stream of decompressed bytes."""

    def read1(self, size: int, /) -> bytes:
        """Return what is available, at most *size* bytes; nothing at the end."""
        ...


class GzipText(io.RawIOBase):
    """
    Members of gzip, one after the other, as one text: all of it that comes before a break.

    That does not depend on how the file is read, nor on where in it: it is the text that zlib can decompress.
    zlib-ng, if it is installed, decompresses what can be read twice: of damaged data it may return some bytes
    less than zlib, which then decompresses the member again.
    """

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._packed = b""  # bytes that were read, and not decompressed yet
        self._read = raw.tell() if raw.seekable() else 0  # of the file
        self._is_fast = zlib_ng is not None and raw.seekable()
        self._text = b""  # that was decompressed, and not returned yet
        self._size = 0  # of all text that was decompressed
        self._error: BaseException | None = None  # behind it
        self._members = deque[tuple[int, int]]()  # where they begin: in the text, and in the file
        self._inflate: Any = None  # of the current member
        self._is_new = True  # the member is not begun
        self._again = 0  # bytes of its text that were returned before, and are decompressed again
        self._has_begun = False

    def read1(self, size: int, /) -> bytes:
        """Return what is available, at most *size* bytes; nothing at the end."""
        if not self._has_begun:
            self._has_begun = True
            self._begin_member()
        while not self._text:
            if self._error is not None:
                raise self._error
            if self._inflate is None:
                return b""
            self._decompress(size)
        text, self._text = self._text[:size], self._text[size:]
        return text

    def place(self, position: int) -> tuple[int, int]:
        """
        Return where to begin so as to read the text from *position* on, which is not before the last one.

        That is where a member begins, in bytes of the file, and how many bytes of its text to pass over.
        """
        while len(self._members) > 1 and self._members[1][0] <= position:
            self._members.popleft()
        begin, offset = self._members[0]
        return offset, position - begin

    def _decompress(self, size: int) -> None:
        packed = self._packed or self._read_packed()
        if not packed:
            size = max(
                size, _LONGEST_MATCH
            )  # of which a part may not be returned yet: there is no other call
        before = None if self._is_new or self._is_fast else self._inflate.copy()
        try:
            text = self._inflate.decompress(packed, size)
        except _FAST_ERROR:
            self._begin_again()
            return
        except zlib.error as error:
            self._error = _as_gzip_says(error)
            text = b"".join(_text_before_error(before or zlib.decompressobj(31), packed))
        self._is_new = False
        self._text = text[self._again :]
        self._again -= len(text) - len(self._text)
        self._size += len(self._text)
        self._packed = self._inflate.unconsumed_tail or self._inflate.unused_data
        if self._inflate.eof:
            self._begin_member()
        elif not packed and not self._text and self._error is None:
            self._error = EOFError(_ENDS_EARLY)

    def _begin_member(self) -> None:
        """Begin the next member, if there is one behind zeros, with which tapes are padded."""
        self._inflate = None
        head = self._packed.lstrip(b"\0")
        while len(head) < len(_GZIP) and (block := self._read_packed()):
            head = (head + block).lstrip(b"\0")
        self._packed = head
        if head.startswith(_GZIP):
            self._members.append((self._size, self._read - len(head)))
            self._new_member()
        elif head and self._error is None:
            self._error = gzip.BadGzipFile(f"Not a gzipped file ({head[:2]!r})")

    def _begin_again(self) -> None:
        """Begin the current member again, without zlib-ng from here on."""
        begin, self._read = self._members[-1]
        self._raw.seek(self._read)
        self._packed, self._error, self._is_fast = b"", None, False
        self._again = self._size - begin
        self._new_member()

    def _new_member(self) -> None:
        self._inflate, self._is_new = (zlib_ng if self._is_fast else zlib).decompressobj(31), True

    def _read_packed(self) -> bytes:
        """Return what can be read; nothing at the end, or if it cannot be read, which is raised later."""
        try:
            packed = self._raw.read1(READ_BYTES)
        except DAMAGED as error:
            self._error = error
            return b""
        self._read += len(packed)
        return packed


def _as_gzip_says(error: zlib.error) -> Exception:
    reason = next((text for words, text in _GZIP_REASONS.items() if words in str(error)), None)
    return gzip.BadGzipFile(reason) if reason else error


def _text_before_error(inflate: Any, packed: bytes) -> Iterator[bytes]:
    """Yield all that *inflate* makes of *packed* before it fails, as it does."""
    step = _RECOVERED_BYTES
    while step:
        attempt = inflate.copy()
        try:
            text = attempt.decompress(packed[:step])
        except zlib.error:
            step //= 2
        else:
            inflate, packed = attempt, packed[step:]
            yield text
    # The next byte has the end of what is wrong, and may have that of more text before.
    with suppress(zlib.error):
        while text := inflate.decompress(packed[:1], 1):
            packed = inflate.unconsumed_tail
            yield text


class _SteppedText(io.RawIOBase):
    """
    Compressed members, one after the other, as one text.

    It is decompressed in steps that do not depend on the reader: of damaged data the text of a step is lost,
    which thus is always the same. ``bz2.open`` and ``lzma.open`` take a damaged member for garbage after the
    end, and stop there.
    """

    def __init__(self, raw: io.BufferedReader, new_member: Callable[[], Any], padding: bytes = b"\0") -> None:
        self._raw, self._new_member, self._member = raw, new_member, new_member()
        self._padding = padding
        self._text = b""  # that was decompressed, and not returned yet
        self._error: BaseException | None = None  # behind what was read

    def read1(self, size: int, /) -> bytes:
        """Return what is available, at most *size* bytes; nothing at the end."""
        self._text = self._text or self._step()
        text, self._text = self._text[:size], self._text[size:]
        return text

    def _step(self) -> bytes:
        while True:
            packed = b""
            if self._member.eof:
                packed = self._next_member()
                if not packed:
                    return b""
                self._member = self._new_member()
            elif self._member.needs_input:
                packed = self._read_packed()
                if not packed:
                    raise EOFError(_ENDS_EARLY)
            if text := self._member.decompress(packed, _STEP_BYTES):
                return text  # type: ignore[no-any-return]

    def _next_member(self) -> bytes:
        packed: bytes = self._member.unused_data.lstrip(self._padding)
        while not packed and (block := self._read_packed()):
            packed = block.lstrip(self._padding)
        return packed

    def _read_packed(self) -> bytes:
        """Return as many bytes as always, and fewer only before the end or an error of reading."""
        blocks, missing = [], READ_BYTES
        try:
            while missing and self._error is None and (block := self._raw.read1(missing)):
                blocks.append(block)
                missing -= len(block)
        except DAMAGED as error:
            self._error = error
        if not blocks and self._error is not None:
            raise self._error
        return b"".join(blocks)


_DECOMPRESSORS: dict[bytes, Callable[[io.BufferedReader], Any]] = {
    _GZIP: GzipText,
    b"BZh": partial(_SteppedText, new_member=bz2.BZ2Decompressor),
    b"\xfd7zXZ\0": partial(
        _SteppedText,
        new_member=partial(lzma.LZMADecompressor, format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
    ),
    b"\x28\xb5\x2f\xfd": partial(
        _SteppedText, new_member=partial(zstd.ZstdDecompressor, options=_ZSTD_WINDOW), padding=b""
    ),
}


@contextmanager
def decompressed(raw: io.BufferedReader) -> Iterator[TextStream]:
    """
    Open the text in *raw*, which stays open; *raw* itself if it is not compressed.

    Raises:
        OSError, ValueError: not even the first bytes can be read
    """
    head = raw.peek(6)
    open_packed = next((value for magic, value in _DECOMPRESSORS.items() if head.startswith(magic)), None)
    if open_packed is None:
        yield raw
    else:
        with open_packed(raw) as text:
            yield text


_PACKERS: dict[str, Callable[..., Any]] = {".zst": zstd.open, ".bz2": bz2.open, ".xz": lzma.open}


@contextmanager
def packed_by_name(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """
    Open what compresses into *file*, if *name* ends with .gz, .zst, .bz2 or .xz.

    Equal contents give equal bytes.
    """
    if name.endswith(".gz"):
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            yield cast(BinaryIO, packed)
    elif name.endswith(tuple(_PACKERS)):
        with _PACKERS[name[name.rindex(".") :]](file, "wb") as packed:
            yield packed
    else:
        yield file

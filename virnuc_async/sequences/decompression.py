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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, Protocol, cast

try:
    from compression import zstd  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    from backports import zstd

# Whoever packs a file decides how much memory it takes to unpack it. These limits accept what the
# usual options write, xz's largest dictionaries aside: zstd's --long=31 is 2 GiB.
_XZ_MEMORY = 1 << 30
_ZSTD_WINDOW = {zstd.DecompressionParameter.window_log_max: 31}

# Compressed bytes that are read at a time, at most: gzip has a size of its own from Python 3.12 on.
READ_BYTES = getattr(gzip, "READ_BUFFER_SIZE", io.DEFAULT_BUFFER_SIZE)

# What reading a damaged file may raise.
DAMAGED = (OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError, zstd.ZstdError)


class TextStream(Protocol):
    """A stream of decompressed bytes."""

    def read1(self, size: int, /) -> bytes:
        """Return what is available, at most *size* bytes; nothing at the end."""
        ...


class _MultiMemberDecompressor(io.RawIOBase):
    """
    Compressed members, one after the other, as one text.

    ``bz2.open`` and ``lzma.open`` take a damaged member for garbage after the end, and stop there.
    """

    def __init__(self, raw: io.BufferedReader, new_member: Callable[[], Any]) -> None:
        self._raw, self._new_member, self._member = raw, new_member, new_member()

    def read1(self, size: int, /) -> bytes:
        while True:
            packed = b""
            if self._member.eof:
                packed = self._next_member()
                if not packed:
                    return b""
                self._member = self._new_member()
            elif self._member.needs_input:
                packed = self._raw.read1()
                if not packed:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            if text := self._member.decompress(packed, size):
                return text  # type: ignore[no-any-return]

    def _next_member(self) -> bytes:
        packed: bytes = self._member.unused_data.lstrip(b"\0")  # padding
        while not packed and (block := self._raw.read1()):
            packed = block.lstrip(b"\0")
        return packed


class _UnbufferedRaw:
    """Reads what *raw* has available: a reader that waits for a full buffer loses it at a break."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self.read = raw.read1


def _open_unbuffered(open_packed: Callable[..., Any], raw: io.BufferedReader) -> Any:
    return open_packed(_UnbufferedRaw(raw))


# These return all that comes before a break; faster readers lose a buffer of it.
_DECOMPRESSORS: dict[bytes, Callable[[io.BufferedReader], Any]] = {
    b"\x1f\x8b": partial(_open_unbuffered, gzip.open),
    b"BZh": partial(_MultiMemberDecompressor, new_member=bz2.BZ2Decompressor),
    b"\xfd7zXZ\0": partial(
        _MultiMemberDecompressor,
        new_member=partial(lzma.LZMADecompressor, format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
    ),
    b"\x28\xb5\x2f\xfd": partial(_open_unbuffered, partial(zstd.open, options=_ZSTD_WINDOW)),
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

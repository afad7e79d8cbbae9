"""
How far the inputs are read, in bytes as they lie on the disk: what an estimate of the work ahead begins with.

It is asked a few times a megabyte, not for each record.
"""

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from .decompression import READ_BYTES
from .fastx import DEFAULT_LIMITS, Contig
from .files import OpenFile, file_size
from .inputs import split_extensions

# Translated at once: enough that numpy's cost a call does not count, little enough for the cache.
BLOCK_BASES = 1 << 17

# Rough numbers, used until a file of a kind has been read. A quality takes as much room as a base, compressed
# text a quarter of it. A frame of a short read is twice as often without a stop as one of a contig.
_BYTES_A_BASE = {".fq": 1.9, ".fastq": 1.9, ".bam": 0.6, ".cram": 0.3, ".sam": 2.3}
_OF_COMPRESSED = 0.27
_WORK_OF_READS = 2.0  # a base, of that in FASTA


class FileKind(NamedTuple):
    """What the name of an input says of its bytes: those of one kind have about as much work."""

    is_compressed: bool
    has_reads: bool
    bytes_a_base: float  # roughly

    @property
    def work_a_byte(self) -> float:
        """The work that a byte has, roughly, of what a base in FASTA has."""
        return (_WORK_OF_READS if self.has_reads else 1.0) / self.bytes_a_base

    @classmethod
    def of(cls, path: str) -> "FileKind":
        """Return the kind of *path*."""
        suffix = split_extensions(path)[1].lower() or os.path.splitext(path)[1].lower()
        first, packed = f".{suffix[1:].partition('.')[0]}", suffix.count(".") > 1
        bytes_a_base = _BYTES_A_BASE.get(first, 1.0) * (_OF_COMPRESSED if packed else 1.0)
        return cls(packed, first in _BYTES_A_BASE, bytes_a_base)


class Place(NamedTuple):
    """A place in the inputs: so many bytes of a file, before which all other files are read."""

    file: int  # number of the file, from 0
    offset: float = 0.0  # bytes of it, compressed as it is

    def towards(self, end: "Place", share: float) -> "Place":
        """Return the place at this *share* of the way to *end*, 0 to 1, in the same file; else this place."""
        if self.file != end.file:
            return self
        return Place(self.file, self.offset + share * (end.offset - self.offset))


class Reading:
    """
    How inputs are read: *block_bases* letters at a time, and how far they are; of the thread that reads.

    ``place`` remains at the beginning of an input whose bytes cannot be counted, such as a pipe.
    """

    def __init__(self, block_bases: int = BLOCK_BASES) -> None:
        self.block_bases = block_bases
        self.place = Place(0)
        self._raw: io.BufferedReader | None = None
        self._room = block_bases  # for letters, when the place was found
        self._bytes_a_letter = 1.0  # of the current file, as far as is known
        self._size = 0  # of it
        self._at_once = 0  # bytes of it that are read at a time, at most
        self._letters = 0  # of it so far
        self._parsed = self._read = 0  # bytes of it that have been parsed at least, and those that were read
        self._before = 0  # bytes of it that are before its first record

    def watch(self, open_file: OpenFile) -> OpenFile:
        """Return an *open_file* that lets this know how far the file is that it opened last."""

        def open_watched(path: str) -> io.BufferedReader:
            kind = FileKind.of(path)
            self._bytes_a_letter = kind.bytes_a_base
            self._at_once = READ_BYTES if kind.is_compressed else DEFAULT_LIMITS.block
            self._raw = open_file(path)
            self._size = file_size(self._raw)
            return self._raw

        return open_watched

    def begin(self, file: int, room: int) -> None:
        """Begin *file*, where the current block has *room* for so many letters."""
        self.place, self._raw, self._room = Place(file), None, room
        self._letters = self._parsed = self._read = self._size = self._before = 0

    def from_first(self, contigs: Iterator[Contig]) -> Iterator[Contig]:
        """Yield *contigs*, which begin amid the current file: its bytes count from the first one on."""
        for contig in contigs:
            self._before = max(0, self._bytes_read() - self._at_once)
            yield contig
            break
        yield from contigs

    def renew(self) -> int:
        """Begin a block; return the room for letters in it."""
        self._room = self.block_bases
        return self._room

    def advance(self, room: int) -> Place:
        """Return how far the current file is, now that the block has *room* left."""
        self._letters += self._room - room
        self._room = room
        read = self._bytes_read()
        # A parser reads more when it is through with what it has: all that was read before that is parsed.
        if read > self._read:
            self._parsed, self._read = max(self._read, read - self._at_once), read
        if self._letters:
            least, most = self._parsed / self._letters, self._read / self._letters
            self._bytes_a_letter = min(max(self._bytes_a_letter, least), most)
        self.place = Place(self.place.file, self._bytes_a_letter * self._letters)
        return self.place

    def end(self, file: int) -> Place:
        """End *file*, and return where that is; what follows is of the next one."""
        self.place, self._raw = Place(file + 1), None
        return Place(file, self._size - self._before)

    def _bytes_read(self) -> int:
        # A pipe does not know.
        with suppress(OSError, ValueError):
            return 0 if self._raw is None else self._raw.tell() - self._before
        return 0

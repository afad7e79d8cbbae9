"""
A scan: one pass over a file that finds out all that a plan must know of it, without keeping what it reads.

It is exact: a file has as many records, of these lengths, and breaks with this error, as whoever reads it
finds later.
"""

import io
import threading
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from virnuc_async.errors import InputChanged, InputError
from virnuc_async.fileio import Directory
from virnuc_async.text import is_utf8

from .alignments import AlignmentParser
from .decompression import GzipText
from .fastx import DEFAULT_LIMITS, FastxParser, Limits, first_word
from .files import OpenFile, open_file
from .inputs import READS, InputVersion, Opened, kind_of, open_input, parser_of
from .plain_fastq import FastqParts, Part
from .segments import START, SeekPoint

Place = Callable[[int], tuple[int, int]]  # of a position in the text: offset in the file, text to pass over

_BLOCK = 1 << 16  # lengths that are packed at a time
_MARK_BYTES = 1 << 22  # of text between marks: parsed in vain by who begins at one, in 0.1 s


class Spill:
    """
    A temporary file in *scratch* for what many scans keep; of several threads. To be closed.

    Raises:
        OSError: from any method: there is no room
    """

    def __init__(self, scratch: Directory) -> None:
        self._file = scratch.temporary_file()
        self._lock = threading.Lock()
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, block: bytes) -> "Spilled":
        """Write *block*; return what reads it."""
        with self._lock:
            self._file.seek(self._end)
            self._file.write(block)
            begin, self._end = self._end, self._end + len(block)
        return Spilled(self, begin, len(block))

    def get(self, begin: int, size: int) -> bytes:
        """Return *size* bytes that were written at *begin*."""
        with self._lock:
            self._file.seek(begin)
            return self._file.read(size)

    def close(self) -> None:
        """Close the file, which is gone then."""
        self._file.close()


class Spilled(NamedTuple):
    """A block of bytes in a temporary file."""

    spill: Spill
    begin: int
    size: int

    def read(self) -> bytes:
        """Return it."""
        return self.spill.get(self.begin, self.size)


@dataclass(frozen=True, slots=True)
class FileScan:
    """What one pass over a file found."""

    path: str
    version: InputVersion  # before it was read; to be compared again behind all scans
    records: int  # that read_contigs yields
    bases: int  # of these
    kind: str | None  # of the records: reads or contigs; None if there are none
    failure: InputError | None  # that read_contigs raises behind them
    is_utf8: bool  # whether all ids are
    notes: tuple[str, ...]  # what read_contigs has to say at the end: of records that were left out
    _lengths: "_Lengths" = field(repr=False)
    _marks: "_Marks" = field(repr=False)

    @property
    def size(self) -> int | None:
        """The size of the file in bytes, as it lies on the disk; None if it cannot be read."""
        size = self.version.fingerprint[0] if self.version.fingerprint else None
        return size if isinstance(size, int) else None

    def lengths(self) -> Iterator[NDArray[np.int64]]:
        """Yield the length of each record in bases, in order: many at a time, of one dimension."""
        return self._lengths.blocks()

    def seek_point(self, record: int) -> SeekPoint:
        """
        Return where to begin so as to read *record*, a number in the file, from 0: there or a little before.

        Whoever reads from there gets records from number ``SeekPoint.record`` on.
        """
        return self._marks.before(record)


def scan_file(
    path: str,
    spill: Spill | None = None,
    *,
    open_file: OpenFile = open_file,
    limits: Limits = DEFAULT_LIMITS,
) -> FileScan:
    """
    Read *path*, a file, from its beginning to its end or to where it breaks, once.

    What has to be kept of every record is packed, and is in *spill* if that is given, else in memory. Files
    may be scanned by as many threads.

    Raises:
        InputChanged: it is not what it was before
        OSError: there is no room in *spill*
    """
    scanner = _Scanner(path, spill, limits)
    version = InputVersion.of(path)
    failure = None
    try:
        with open_input(path, None, open_file) as opened:
            scanner.read(opened)
    except InputError as error:
        failure = error
    if not version.is_of(path):
        raise InputChanged(path)
    return scanner.result(version, failure)


def _placing(opened: Opened) -> Place:
    """Return what finds where to begin so as to read the text of a file from a position on."""
    if opened.text is opened.raw:
        return lambda position: (position, 0)
    if isinstance(opened.text, GzipText):
        return opened.text.place
    return lambda position: (0, position)


class _Scanner:
    """Collects what a scan finds."""

    def __init__(self, path: str, spill: Spill | None, limits: Limits) -> None:
        self._said: list[str] = []
        self._path, self._limits = path, limits
        self._lengths, self._marks = _Lengths(spill), _Marks()
        self._kind: str | None = None
        self._is_utf8 = True
        self._at = START  # where the record begins, in the text, that is read next
        self._place: Place = lambda position: (0, position)

    def read(self, opened: Opened) -> None:
        """Read all records of a file that is *opened*."""
        if opened.alignments:
            self._parse(parser_of(self._path, opened, note=self._said.append))
            return
        self._place, parts = _placing(opened), FastqParts(opened.text, self._limits)
        while part := parts.take():
            self._take(part)
        parser = FastxParser(self._path, parts, opened.has_changed, limits=self._limits)
        parser.is_fastq = self._at.record > 0
        self._parse(parser)

    def _take(self, part: Part) -> None:
        """Take records of FASTQ that begin at the current place, and move it behind them."""
        begin = self._at
        self._marks.add(begin, self._place)
        if (lengths := part.lengths(self._limits)) is None:
            # Each is of four lines: alone they are read as within the file.
            text = io.BytesIO(part.text)
            self._parse(FastxParser(self._path, text, lambda: False, limits=self._limits))
        else:
            self._lengths.extend(lengths)
            self._kind = READS
            if self._is_utf8 and not part.text.isascii():
                self._is_utf8 = all(is_utf8(first_word(header[1:])) for header in part.headers)
        records, size, lines = self._lengths.records, begin.skip + len(part.text), part.lines.size // 2
        self._at = SeekPoint(records, 0, size, begin.line + lines)

    def _parse(self, parser: FastxParser | AlignmentParser) -> None:
        """Read all records of *parser*, which is at the current place."""
        mark, at = START, self._at
        try:
            with closing(parser.contigs(at._replace(skip=0))) as contigs:
                for contig in contigs:
                    self._lengths.add(len(contig.bases))
                    if self._is_utf8 and not contig.id.isascii():
                        self._is_utf8 = is_utf8(contig.id)
                    if isinstance(parser, FastxParser) and parser.mark is not mark:
                        mark = parser.mark
                        self._marks.add(mark._replace(skip=at.skip + mark.skip), self._place)
        finally:
            self._kind = kind_of(parser) or self._kind

    def result(self, version: InputVersion, failure: InputError | None) -> FileScan:
        """Return what was found."""
        self._lengths.end()
        return FileScan(
            path=self._path,
            version=version,
            records=self._lengths.records,
            bases=self._lengths.bases,
            kind=self._kind,
            failure=failure,
            is_utf8=self._is_utf8,
            notes=tuple(self._said),
            _lengths=self._lengths,
            _marks=self._marks,
        )


class _Lengths:
    """The lengths of records in order, packed."""

    def __init__(self, spill: Spill | None) -> None:
        self.bases = self._of_packed = 0
        self._spill = spill
        self._current = array("i")
        self._packed: list[bytes | Spilled] = []

    @property
    def records(self) -> int:
        """How many there are."""
        return self._of_packed + len(self._current)

    def add(self, length: int) -> None:
        """Add a record."""
        self._current.append(length)
        if len(self._current) >= _BLOCK:
            self.end()

    def extend(self, lengths: NDArray[np.int64]) -> None:
        """Add many records."""
        self._current.frombytes(lengths.astype(np.int32).tobytes())
        if len(self._current) >= _BLOCK:
            self.end()

    def end(self) -> None:
        """Pack what is not packed yet."""
        lengths = np.array(self._current, np.int32)
        self._current = array("i")
        self._of_packed += len(lengths)
        self.bases += int(lengths.sum(dtype=np.int64))
        if len(lengths):
            packed = zlib.compress(lengths.tobytes(), 1)
            self._packed.append(self._spill.put(packed) if self._spill else packed)

    def blocks(self) -> Iterator[NDArray[np.int64]]:
        """Yield all of them, many at a time."""
        for packed in self._packed:
            block = packed if isinstance(packed, bytes) else packed.read()
            yield np.frombuffer(zlib.decompress(block), np.int32).astype(np.int64)


class _Marks:
    """Seek points of a file, in order, as far from each other as it takes to have few of them."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._records = array("q", [0])
        self._last = START

    def add(self, mark: SeekPoint, place: Place) -> None:
        """Add *mark*, in the text, unless it is close to the last one; *place* finds it in the file."""
        if mark.record and mark.skip - self._last.skip >= _MARK_BYTES:
            self._last = mark
            self._records.append(mark.record)
            offset, skip = place(mark.skip)
            self._rows.extend(mark._replace(offset=offset, skip=skip))

    def before(self, record: int) -> SeekPoint:
        """Return the last one at or before *record*."""
        number = bisect_right(self._records, record) - 2
        if number < 0:
            return START
        record, offset, skip, line, has_lone_cr = self._rows[5 * number : 5 * number + 5]
        return SeekPoint(record, offset, skip, line, bool(has_lone_cr))

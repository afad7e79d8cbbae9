"""
Segments: consecutive records of the input that windows begin anew at, so that a reader can begin there.

They are a function of the input alone: a segment ends with the record by which its bases add up to
:data:`SEGMENT_BASES`, and the last one holds the rest. ORFs and windows are numbered within their segment. A
number of the run is that of the segment and the number in it, packed: stores of parts of the input are put
together without renumbering, and an input of one segment has the numbers 0, 1, 2, ...
"""

import json
from dataclasses import astuple, dataclass
from typing import Final, NamedTuple, Self

SEGMENT_BASES: Final = (
    64_000_000  # at least; small enough for a shard of minutes, large enough for full batches
)
ORF_BITS: Final = 36  # of the number of an ORF within its segment
WINDOW_BITS: Final = 20  # of the number of a window within its segment


def first_orf(segment: int) -> int:
    """Return the number in the run of the first ORF of *segment*."""
    return segment << ORF_BITS


def first_window(segment: int) -> int:
    """Return the number in the run of the first window of *segment*."""
    return segment << WINDOW_BITS


def follows(window: int, before: int) -> bool:
    """Whether *window* can be the next one after the window *before*, by their numbers in the run."""
    return window in (before + 1, first_window(segment_of(before) + 1))


def segment_of(window: int) -> int:
    """Return the segment of the *window* with this number in the run."""
    return window >> WINDOW_BITS


def window_name(window: int) -> str:
    """Return what messages call a window: its number, after that of its segment unless that is the first."""
    segment, number = segment_of(window), window & ((1 << WINDOW_BITS) - 1)
    return f"{segment}:{number}" if segment else f"{number}"


class SeekPoint(NamedTuple):
    """Where a record begins in its file, and what a parser must know to begin there."""

    record: int = 0  # records of the file before it
    offset: int = 0  # bytes of the file, as it lies on the disk, before what must be read
    skip: int = 0  # bytes of the text from there on, decompressed, before the record
    line: int = 1  # number of the line at which it begins
    has_lone_cr: bool = False  # whether a line before it ends with a CR alone


START: Final = SeekPoint()


@dataclass(frozen=True, slots=True)
class InputSpan:
    """Consecutive segments of the inputs; by default all of them."""

    first_segment: int = 0
    first_contig: int = 0  # number in the run of its first record
    first_file: int = 0  # number of the file with its first record
    first_record: int = 0  # records of that file before it
    seek: SeekPoint = START  # at that record, or at an earlier one of the file
    end: tuple[int, int] | None = None  # file of the record behind it, and the records there before that

    @property
    def is_empty(self) -> bool:
        """Whether there is no record in it."""
        return self.end == (self.first_file, self.first_record)

    def records_of(self, file: int, records: int) -> range:
        """Return which of the *records* of *file*, by their numbers in it, are in the span."""
        if file < self.first_file or (self.end is not None and file > self.end[0]):
            return range(0)
        first = self.first_record if file == self.first_file else 0
        return range(first, self.end[1] if self.end is not None and file == self.end[0] else records)

    def to_json(self) -> str:
        """Return it as JSON text."""
        return json.dumps(astuple(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what :meth:`to_json` gave; raises ValueError or TypeError if it makes no sense."""
        segment, contig, file, record, seek, end = json.loads(text)
        point, (end_file, end_record) = SeekPoint(*seek), end or (0, 0)
        counts = (segment, contig, file, record, *point[:-1], end_file, end_record)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a number of a span is negative, or none")
        if type(point.has_lone_cr) is not bool:
            raise ValueError("a seek point has another value")
        return cls(segment, contig, file, record, point, end and (end_file, end_record))


ALL: Final = InputSpan()
NOTHING: Final = InputSpan(end=(0, 0))

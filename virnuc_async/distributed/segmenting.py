"""Where segments begin, from the lengths of all records."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from virnuc_async.sequences.segments import SeekPoint

from .plan import PlannedSegment

SeekPoints = Callable[[int], SeekPoint]  # where to begin in a file, to read the record of this number


@dataclass(slots=True)
class Segmenting:
    """
    The segments of files that are added in their order.

    A segment ends with the record by which its bases add up to *segment_bases*; the next one begins with the
    record behind it, so that the end of a file and files without records belong to the segment before.
    """

    segment_bases: int
    _segments: list[PlannedSegment] = field(default_factory=list)
    _contigs: int = 0  # records so far

    def add_file(self, file: int, lengths: Iterable[NDArray[np.int64]], seek_point: SeekPoints) -> None:
        """Add this file, with the *lengths* of its records, with *seek_point* for where one is."""
        record = 0
        for block in lengths:
            self._add(file, record, block, seek_point)
            record += len(block)

    def segments(self) -> tuple[PlannedSegment, ...]:
        """Return the segments, at least one."""
        return tuple(self._segments) or (PlannedSegment(0, 0, 0, 0, 0),)

    def _add(self, file: int, record: int, lengths: NDArray[np.int64], seek_point: SeekPoints) -> None:
        """Add records of *file*, of which *record* is the first."""
        ends, begin = np.cumsum(lengths, dtype=np.int64), 0
        while begin < len(ends):
            if not self._segments or self._segments[-1].bases >= self.segment_bases:
                self._begin(file, record + begin, seek_point)
            last = self._segments[-1]
            before = int(ends[begin - 1]) if begin else 0
            full = int(np.searchsorted(ends, before + self.segment_bases - last.bases))
            end = min(full + 1, len(ends))
            bases = last.bases + int(ends[end - 1]) - before
            self._segments[-1] = replace(last, records=last.records + end - begin, bases=bases)
            self._contigs += end - begin
            begin = end

    def _begin(self, file: int, record: int, seek_point: SeekPoints) -> None:
        self._segments.append(PlannedSegment(file, record, self._contigs, 0, 0, seek_point(record)))

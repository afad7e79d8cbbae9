"""
``plan.json``: all that the shards of a run must agree on, decided once, before any of them begins.

A plan knows where each segment of the inputs begins, so that a shard reads its own segments and no others,
and what each file holds, so that a file that cannot be read for a moment is not taken for a broken one.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

from virnuc_async.errors import UsageError
from virnuc_async.sequences.segments import START, InputSpan, SeekPoint

PLAN = "plan.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """An input, as it was when the plan was made."""

    path: str  # absolute, or a URL
    fingerprint: list[int | str] | None  # of InputVersion; None: it cannot be read
    size: int  # bytes, as it lies on the disk
    records: int  # that were read
    bases: int  # of these
    kind: str | None  # of its records: reads or contigs; None if there are none
    failure: str | None  # why there are no more records, if it could not be read to its end


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """A segment of the inputs: its first record, and how much is in it."""

    file: int  # number of the file of its first record
    record: int  # records of that file before it
    contig: int  # number in the run of its first record
    records: int
    bases: int
    seek: SeekPoint = START  # at its first record, or at an earlier one of the file


class Shard(NamedTuple):
    """A part of a run: number *number*, from 0, *of* so many."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """The name of its directory."""
        return f"{self.number:05}-of-{self.of:05}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard that *text* such as 3/100 names; raises UsageError."""
        number, slash, count = text.partition("/")
        if not (slash and number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
            raise UsageError(f"a shard is written as NUMBER/COUNT, such as 3/100, not {text!r}")
        shard = cls(int(number), int(count))
        if shard.number >= shard.of:
            raise UsageError(f"there is no shard {shard}: shards are counted from 0 to {shard.of - 1}")
        return shard


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What every shard of a run must agree on."""

    version: str  # of this program
    model: str  # name of the bundle
    fingerprint: str  # of the bundle
    devices: str  # their kind
    precision: str
    tokens_per_batch: int
    window: int  # ORFs
    segment_bases: int
    settings: dict[str, Any]  # of Settings, that change a table: as JSON has them
    flagged: list[int]  # files of alignments whose neighbouring records are mates, by their flags
    is_utf8: bool  # whether all ids and paths are
    files: tuple[PlannedFile, ...]
    segments: tuple[PlannedSegment, ...]  # at least one
    notices: list[list[str]] = field(default_factory=list)  # level and text, of what is not read

    @property
    def digest(self) -> str:
        """What a plan is known by: equal plans have equal digests."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def segments_of(self, shard: Shard) -> range:
        """Return the numbers of the segments of *shard*; all shards have about as many bases."""
        total = sum(segment.bases for segment in self.segments)
        before, numbers = 0, []
        for number, segment in enumerate(self.segments):
            middle = 2 * before + segment.bases
            if (middle * shard.of // (2 * total) if total else 0) == shard.number:
                numbers.append(number)
            before += segment.bases
        return range(numbers[0], numbers[-1] + 1) if numbers else range(0)

    def span(self, shard: Shard) -> InputSpan | None:
        """Return what *shard* reads; None if it has no segment."""
        numbers = self.segments_of(shard)
        if not numbers:
            return None
        first, behind = self.segments[numbers[0]], self.segments[numbers[-1] + 1 :]
        end = (behind[0].file, behind[0].record) if behind else None
        if not numbers[0]:
            return InputSpan(end=end)  # with the files before the first record
        return InputSpan(numbers[0], first.contig, first.file, first.record, first.seek, end)

"""
A partially downloaded file that can be resumed after a crash.

``NAME.part`` holds the data and ``NAME.part.json`` the missing byte ranges. Data is fsynced before its
range is marked as complete, and all ranges are reset before a different file is started.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

from virnuc_async.fileio import atomic_write, create_new, fsync_and_rename, open_nofollow, read_json

from .http import is_validator

_MAX_RECORD_SIZE = 1 << 20  # bytes of a .part.json
_STAT_BLOCK = 512  # bytes: the unit of st_blocks, whatever the disk has


@dataclass(slots=True, eq=False)
class Span:
    """Missing bytes, from *start* to before *end*; *start* moves as they are written."""

    start: int
    end: int

    @property
    def remaining(self) -> int:
        """The number of missing bytes; 0 if a split took away what was written meanwhile."""
        return max(self.end - self.start, 0)


class PartialFile:
    """The file *path*, downloaded from *url*, which has at most *max_size* bytes."""

    def __init__(self, path: Path, url: str, max_size: int) -> None:
        self.path, self._url, self._max_size = path, url, max_size
        self.part = path.with_name(f"{path.name}.part")
        self._record_path = path.with_name(f"{path.name}.part.json")
        self.restarts = 0  # how many times received data was dropped
        self._lock = Lock()  # a connection begins a file, the deciding thread writes checkpoints
        self._reset("", None)
        self._load_record()

    def __repr__(self) -> str:
        spans = ", ".join(f"{span.start:,} to {span.end:,}" for span in self.missing)
        return f"<PartialFile {self.path.name} [of {self.total}, missing {spans or 'nothing'}]>"

    def _reset(self, validator: str, total: int | None) -> None:
        """Mark all bytes as missing."""
        self.missing = [Span(0, self._max_size if total is None else total)]
        self.validator, self.total, self.is_begun = validator, total, False

    @property
    def done(self) -> int:
        """The number of bytes received."""
        return self.missing[0].start if self.total is None else max(self.total - self.remaining, 0)

    @property
    def remaining(self) -> int:
        """The number of missing bytes; an upper limit if the length of the file is unknown."""
        return sum(span.remaining for span in self.missing)

    @property
    def needed_space(self) -> int:
        """The number of bytes that the disk must have free for the missing data, as far as is known."""
        # Data that is not recorded as complete may have its blocks on the disk already, after a crash.
        return 0 if self.total is None else self.total - self.part.stat().st_blocks * _STAT_BLOCK

    def begin(self, validator: str, total: int | None) -> Span:
        """Start a file of *total* bytes (None: unknown) from scratch; return the span of all of it."""
        with self._lock:
            self._count_restart()
            self._reset(validator, total)
            # In this order: existing data must never be taken for bytes of another file.
            self._write_record(self.missing)
            create_new(self.part).close()
            self.is_begun = True
        return self.missing[0]

    def open(self) -> FileIO:
        """Open the data, to write more of it."""
        return open(self.part, "r+b", buffering=0, opener=open_nofollow)

    def write(self, file: FileIO, span: Span, block: bytes) -> int:
        """Write *block* at the start of *span*, up to its end; return how many bytes that were."""
        view = memoryview(block)[: span.remaining]
        size = len(view)
        while view:
            written = os.pwrite(file.fileno(), view, span.start)
            view = view[written:]
            span.start += written
        return size

    def end(self, span: Span) -> None:
        """Set the length of the file: it ends with the bytes that were written of *span*."""
        self.total = span.end = span.start

    def split(self, span: Span) -> Span:
        """Take the second half from *span*, to which a connection may be writing, and return it."""
        half = Span(span.start + span.remaining // 2, span.end)
        span.end = half.start
        self.missing.append(half)
        return half

    def merge(self, half: Span) -> None:
        """Add *half* to the span that it was split from, unless one of the two has moved."""
        for span in self.missing:
            if span.end == half.start and span is not half:
                span.end = half.end
                self.missing.remove(half)
                return

    def prune(self) -> None:
        """Remove the spans that are complete."""
        self.missing = [span for span in self.missing if span.remaining]

    def checkpoint(self) -> None:
        """Sync the data to the disk, then record which bytes are missing."""
        with self._lock:
            if self.is_begun:
                # In this order: data that arrives from now on is not synced, and not recorded.
                spans = [Span(span.start, span.end) for span in self.missing]
                with self.open() as file:
                    os.fsync(file.fileno())
                self._write_record(spans)

    def discard(self) -> None:
        """Delete the data and its record."""
        with self._lock:
            self._count_restart()
            self._record_path.unlink(missing_ok=True)
            self.part.unlink(missing_ok=True)
            self._reset("", None)

    def _count_restart(self) -> None:
        self.restarts += self.is_begun

    def finish(self) -> None:
        """Rename the complete file from its part to its name."""
        fsync_and_rename(self.part, self.path)
        self._record_path.unlink(missing_ok=True)

    def _write_record(self, spans: Sequence[Span]) -> None:
        missing = sorted((span.start, span.end) for span in spans if span.remaining)
        record = {"url": self._url, "validator": self.validator, "total": self.total, "missing": missing}
        with atomic_write(self._record_path) as file:
            file.write(json.dumps(record).encode())

    def _load_record(self) -> None:
        """Load the record, if it is valid, of this url, and has a validator to ask the server with."""
        try:
            record = read_json(self._record_path, _MAX_RECORD_SIZE)
            validator, total = record["validator"], record["total"]
            missing = _parse_spans(record["missing"], self._max_size if total is None else total)
            is_usable = record["url"] == self._url and is_validator(validator)
            # A truncated part is shorter than the data that was written to it.
            if is_usable and self.part.stat().st_size >= _written_size(missing, total):
                self.validator, self.total, self.missing, self.is_begun = validator, total, missing, True
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return


def _parse_spans(missing: Any, end: int) -> list[Span]:
    spans = [Span(start, min(last, end)) for start, last in missing]
    borders = [0, *(border for span in spans for border in (span.start, span.end)), end]
    if any(type(border) is not int for border in borders) or borders != sorted(borders):
        raise ValueError("these are not the missing ranges of a file")
    return [span for span in spans if span.remaining]


def _written_size(missing: Sequence[Span], total: int | None) -> int:
    """Return the position after the last byte that is not missing."""
    if total is None:
        (only,) = missing
        return only.start
    end = total
    for span in reversed(missing):
        if span.end < end:
            break
        end = span.start
    return end

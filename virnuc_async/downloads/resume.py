"""
A file of which some bytes are there and others are not, in any order; on disk, for another day.

``NAME.part`` has the bytes, ``NAME.part.json`` says which are missing. It never claims a byte that is
not on the disk: bytes are synced before it is written that they are there, and all are called missing
before another file is begun in the old one's place.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

from virnuc_async.fileio import atomic_write, create_new, fsync_and_rename, open_nofollow, read_bounded

from .http import is_validator

_LARGEST = 1 << 20  # bytes of a .part.json
_DISK_BLOCK = 512  # bytes that stat counts a file's place in, whatever the disk has


@dataclass(slots=True, eq=False)
class Span:
    """Bytes that are missing, from *at* to before *end*; who writes them moves *at*."""

    at: int
    end: int

    @property
    def left(self) -> int:
        """How many there are; none if another one's bytes were written, too."""
        return max(self.end - self.at, 0)


class PartialFile:
    """The file *path*, which comes from *url* and has at most *most* bytes."""

    def __init__(self, path: Path, url: str, most: int) -> None:
        self.path, self._url, self._most = path, url, most
        self.part = path.with_name(f"{path.name}.part")
        self._facts = path.with_name(f"{path.name}.part.json")
        self._lock = Lock()  # who begins a file is not who keeps it
        self._call_all_missing("", None)
        self._remember()

    def __repr__(self) -> str:
        spans = ", ".join(f"{span.at:,} to {span.end:,}" for span in self.missing)
        return f"<PartialFile {self.path.name} [of {self.total}, missing {spans or 'nothing'}]>"

    def _call_all_missing(self, validator: str, total: int | None) -> None:
        self.missing = [Span(0, self._most if total is None else total)]
        self.validator, self.total, self.is_begun = validator, total, False

    @property
    def done(self) -> int:
        """How many bytes are there."""
        return self.missing[0].at if self.total is None else max(self.total - self.left, 0)

    @property
    def left(self) -> int:
        """How many bytes are missing; at most, if nobody knows how many there are in all."""
        return sum(span.left for span in self.missing)

    @property
    def room(self) -> int:
        """How many bytes the disk has to have for what is missing, as far as anybody knows."""
        # What is not known to be there may have its place on the disk, from before a crash.
        return 0 if self.total is None else self.total - self.part.stat().st_blocks * _DISK_BLOCK

    def begin(self, validator: str, total: int | None) -> Span:
        """Begin anew with a file of *total* bytes, or of nobody knows how many; give the whole of it."""
        with self._lock:
            self._call_all_missing(validator, total)
            # In this order: what is there must never be taken for bytes of another file.
            self._write(self.missing)
            create_new(self.part).close()
            self.is_begun = True
        return self.missing[0]

    def opened(self) -> FileIO:
        """Open the bytes that are there, to write more of them."""
        return open(self.part, "r+b", buffering=0, opener=open_nofollow)

    def write(self, file: FileIO, span: Span, block: bytes) -> None:
        """Write *block* where *span* begins, as far as it is long, and shorten it."""
        view = memoryview(block)[: span.left]
        while view:
            written = os.pwrite(file.fileno(), view, span.at)
            view = view[written:]
            span.at += written

    def end(self, span: Span) -> None:
        """Know how long the file is: nothing comes behind what was written of *span*."""
        self.total = span.end = span.at

    def halve(self, span: Span) -> Span:
        """Take the second half of *span* from it, which may be written to meanwhile, and give it."""
        half = Span(span.at + span.left // 2, span.end)
        span.end = half.at
        self.missing.append(half)
        return half

    def unite(self, half: Span) -> None:
        """Give *half* back to the span that it was taken from, unless one of them has moved."""
        for span in self.missing:
            if span.end == half.at and span is not half:
                span.end = half.end
                self.missing.remove(half)
                return

    def drop(self) -> None:
        """Forget the spans of which nothing is missing."""
        self.missing = [span for span in self.missing if span.left]

    def keep(self) -> None:
        """Have on the disk what came, and that it did."""
        with self._lock:
            if self.is_begun:
                # In this order: what comes from now on is not synced, and not said to be there.
                spans = [Span(span.at, span.end) for span in self.missing]
                with self.opened() as file:
                    os.fsync(file.fileno())
                self._write(spans)

    def forget(self) -> None:
        """Have nothing of the file, and know nothing of it."""
        with self._lock:
            self._facts.unlink(missing_ok=True)
            self.part.unlink(missing_ok=True)
            self._call_all_missing("", None)

    def finish(self) -> None:
        """Give the file its name: it is all there."""
        fsync_and_rename(self.part, self.path)
        self._facts.unlink(missing_ok=True)

    def _write(self, spans: Sequence[Span]) -> None:
        missing = sorted((span.at, span.end) for span in spans if span.left)
        facts = {"url": self._url, "validator": self.validator, "total": self.total, "missing": missing}
        with atomic_write(self._facts) as file:
            file.write(json.dumps(facts).encode())

    def _remember(self) -> None:
        """Know what was kept, if it is of this address and the server can tell whether it is that still."""
        try:
            facts = json.loads(read_bounded(self._facts, _LARGEST))
            validator, total = facts["validator"], facts["total"]
            missing = _spans(facts["missing"], self._most if total is None else total)
            is_of_it = facts["url"] == self._url and is_validator(validator)
            # A part that was cut short has less than was written of it.
            if is_of_it and self.part.stat().st_size >= _reach(missing, total):
                self.validator, self.total, self.missing, self.is_begun = validator, total, missing, True
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return


def _spans(missing: Any, end: int) -> list[Span]:
    spans = [Span(at, min(last, end)) for at, last in missing]
    borders = [0, *(border for span in spans for border in (span.at, span.end)), end]
    if any(type(border) is not int for border in borders) or borders != sorted(borders):
        raise ValueError("no spans of one file")
    return [span for span in spans if span.left]


def _reach(missing: Sequence[Span], total: int | None) -> int:
    """Give where the last byte ends that is not missing."""
    if total is None:
        (only,) = missing
        return only.at
    end = total
    for span in reversed(missing):
        if span.end < end:
            break
        end = span.at
    return end

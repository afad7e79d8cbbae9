"""A connection whose span changes while it writes."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import pytest

from virnuc_async.downloads.range_request import RangeRequest
from virnuc_async.downloads.resume import PartialFile, Span
from virnuc_async.downloads.source import Source

CONTENT = random.Random(3).randbytes(100)
URL = "https://h/x"


class MergedMeanwhile(PartialFile):
    """A file whose second half is given back as soon as the first half has been written."""

    half: Span

    def write(self, file: FileIO, span: Span, block: bytes) -> int:
        written = super().write(file, span, block)
        if not span.remaining and self.half in self.missing:
            self.merge(self.half)
        return written


@dataclass
class Blocks:
    """A response of all of CONTENT, in blocks of *sizes*."""

    sizes: tuple[int, ...]
    start: int = 0
    end: int = len(CONTENT)

    def blocks(self) -> Iterator[bytes]:
        at = 0
        for size in self.sizes:
            yield CONTENT[at : at + size]
            at += size


@pytest.mark.parametrize(("sizes", "received"), [((60, 40), 50), ((50, 50), 100), ((20, 30, 50), 100)])
def test_a_range_given_back_is_continued_only_where_no_byte_was_dropped(
    sizes: tuple[int, ...], received: int, tmp_path: Path
) -> None:
    file = MergedMeanwhile(tmp_path / "x", URL, 1 << 20)
    span = file.begin("tag", len(CONTENT))
    file.half = file.split(span)
    request = RangeRequest(Source(URL, "x"), file, span, 20, lambda: False, is_alone=False, may_split=True)
    with file.open() as part:
        request._copy(Blocks(sizes), part)  # type: ignore[arg-type]
    assert (span.start, span.end) == (received, 100)
    assert file.part.read_bytes()[:received] == CONTENT[:received]

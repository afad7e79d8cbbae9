"""Partial files, and their record on the disk, which never claims data that is not there."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnuc_async.downloads.resume import PartialFile, Span

CONTENT = random.Random(8).randbytes(5_000)
URL, MAX_SIZE = "https://h/x", 1 << 40


def a_file(directory: Path) -> PartialFile:
    return PartialFile(directory / "x", URL, MAX_SIZE)


def write(file: PartialFile, span: Span, count: int) -> None:
    with file.open() as part:
        file.write(part, span, CONTENT[span.start : span.start + count])


def recorded(directory: Path) -> list[range]:
    """Return the ranges that are complete by the record."""
    again = a_file(directory)
    if not again.is_begun:
        return []
    assert again.total == len(CONTENT)
    ends = [0, *(span.end for span in again.missing)]
    starts = [*(span.start for span in again.missing), len(CONTENT)]
    return [range(*borders) for borders in zip(ends, starts, strict=True)]


# Steps: split a span, write to one, make a checkpoint; each with a number that chooses the span.
KINDS = st.sampled_from(["split", "write", "checkpoint", "prune"])
STEPS = st.lists(st.tuples(KINDS, st.integers(0, 99), st.integers(1, 900)))


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_the_record_claims_only_data_that_is_on_the_disk(steps: list[tuple[str, int, int]]) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        directory, real_fsync = Path(name), os.fsync
        file = a_file(directory)
        disk = b""  # the data that would survive a power cut

        def fsync(descriptor: int) -> None:
            nonlocal disk
            real_fsync(descriptor)
            if os.path.samestat(os.fstat(descriptor), os.stat(file.part)):
                disk = file.part.read_bytes()
                for span in file.missing:  # another thread writes meanwhile
                    write(file, span, 7)

        file.begin('"tag"', len(CONTENT))
        patch.setattr(os, "fsync", fsync)
        for step, which, count in steps:
            span = file.missing[which % len(file.missing)] if file.missing else None
            if step == "split" and span:
                file.split(span)
            elif step == "write" and span:
                write(file, span, count)
            elif step == "checkpoint":
                file.checkpoint()
            elif step == "prune":
                file.prune()
            for complete in recorded(directory):
                assert disk[complete.start : complete.stop] == CONTENT[complete.start : complete.stop]
        assert file.done == len(CONTENT) - sum(span.remaining for span in file.missing)


def test_a_record_is_loaded_again(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    whole = file.begin('"tag"', 5_000)
    half = file.split(whole)
    write(file, whole, 1_000)
    write(file, half, 2_500)
    file.checkpoint()
    again = a_file(tmp_path)
    assert (again.validator, again.total, again.done, again.remaining) == ('"tag"', 5_000, 3_500, 1_500)
    assert repr(again) == "<PartialFile x [of 5000, missing 1,000 to 2,500]>"
    write(again, again.missing[0], 9_999)
    again.prune()
    again.finish()
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["x"]


def test_an_unknown_length(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    write(file, file.begin('"tag"', None), 3_000)
    file.checkpoint()
    again = a_file(tmp_path)
    assert (again.total, again.done) == (None, 3_000)
    (span,) = again.missing
    write(again, span, 2_000)
    again.end(span)
    assert (again.total, again.done, again.remaining) == (5_000, 5_000, 0)


def test_a_half_is_merged_again(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    whole = file.begin('"tag"', 5_000)
    half = file.split(whole)
    assert (whole.end, half.start, half.end) == (2_500, 2_500, 5_000)
    quarter = file.split(half)
    file.merge(half)
    assert [(span.start, span.end) for span in file.missing] == [(0, 3_750), (3_750, 5_000)]
    write(file, quarter, 1)
    file.merge(quarter)
    assert len(file.missing) == 2


def test_a_span_that_was_written_beyond_its_end_is_complete(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    whole = file.begin('"tag"', 5_000)
    half = file.split(whole)
    whole.start = 2_600  # by a block that was being written when the span was split
    assert (whole.remaining, file.remaining) == (0, 2_500)
    write(file, half, 2_500)
    file.checkpoint()
    assert a_file(tmp_path).missing == []


def test_another_file_starts_empty(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    write(file, file.begin('"first"', 5_000), 4_000)
    file.checkpoint()
    file.begin('"second"', 5_000)
    again = a_file(tmp_path)
    assert (again.validator, again.done) == ('"second"', 0)
    assert file.part.stat().st_size == 0
    file.discard()
    assert not os.listdir(tmp_path)
    assert not a_file(tmp_path).is_begun


@pytest.mark.parametrize(
    "spoil",
    [
        lambda facts: facts.update(url="https://h/another"),
        lambda facts: facts.update(validator=""),
        lambda facts: facts.update(validator=None),
        lambda facts: facts.update(validator="a\r\nb: c"),
        lambda facts: facts.update(validator="\u2192"),
        lambda facts: facts.update(total=True),
        lambda facts: facts.update(total="5000"),
        lambda facts: facts.update(total=3_000),
        lambda facts: facts.update(total=None),
        lambda facts: facts.update(missing=[[4_000, 5_000], [1_000, 2_500]]),
        lambda facts: facts.update(missing=[[-1, 5_000]]),
        lambda facts: facts.update(missing=[[1_000.0, 2_500]]),
        lambda facts: facts.update(missing=[[1_000]]),
        lambda facts: facts.update(missing=7),
        # More than was written: the part has 4,000 bytes.
        lambda facts: facts.update(missing=[[1_000, 2_500]]),
        # As this program wrote it before it used several ranges.
        lambda facts: facts.pop("missing"),
    ],
)
def test_an_invalid_record_is_ignored(spoil: Callable[[dict[str, object]], object], tmp_path: Path) -> None:
    file = a_file(tmp_path)
    whole = file.begin('"tag"', 5_000)
    half = file.split(whole)
    write(file, whole, 1_000)
    write(file, half, 1_500)
    file.checkpoint()
    record = tmp_path / "x.part.json"
    facts = json.loads(record.read_bytes())
    assert facts["missing"] == [[1_000, 2_500], [4_000, 5_000]]
    assert a_file(tmp_path).is_begun
    spoil(facts)
    record.write_text(json.dumps(facts))
    assert not a_file(tmp_path).is_begun
    record.write_text("[" * 100_000)
    assert not a_file(tmp_path).is_begun

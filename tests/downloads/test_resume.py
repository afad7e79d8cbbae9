"""A file with holes, and what is said of it on the disk: never more than is there."""

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
URL, MOST = "https://h/x", 1 << 40


def a_file(directory: Path) -> PartialFile:
    return PartialFile(directory / "x", URL, MOST)


def write(file: PartialFile, span: Span, count: int) -> None:
    with file.opened() as part:
        file.write(part, span, CONTENT[span.at : span.at + count])


def claimed(directory: Path) -> list[range]:
    """Give the bytes that are there, by what is kept."""
    again = a_file(directory)
    if not again.is_begun:
        return []
    assert again.total == len(CONTENT)
    ends = [0, *(span.end for span in again.missing)]
    begins = [*(span.at for span in again.missing), len(CONTENT)]
    return [range(*borders) for borders in zip(ends, begins, strict=True)]


# Steps: halve a span, write to one, keep; each by a number that chooses.
STEPS = st.lists(
    st.tuples(st.sampled_from(["halve", "write", "keep", "drop"]), st.integers(0, 99), st.integers(1, 900))
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_nothing_is_said_to_be_there_that_is_not_on_the_disk(steps: list[tuple[str, int, int]]) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        directory, really = Path(name), os.fsync
        file = a_file(directory)
        disk = b""  # what of the part would be there after a power cut

        def sync(descriptor: int) -> None:
            nonlocal disk
            really(descriptor)
            if os.path.samestat(os.fstat(descriptor), os.stat(file.part)):
                disk = file.part.read_bytes()
                for span in file.missing:  # another thread is faster than the disk
                    write(file, span, 7)

        file.begin('"tag"', len(CONTENT))
        patch.setattr(os, "fsync", sync)
        for step, which, count in steps:
            span = file.missing[which % len(file.missing)] if file.missing else None
            if step == "halve" and span:
                file.halve(span)
            elif step == "write" and span:
                write(file, span, count)
            elif step == "keep":
                file.keep()
            elif step == "drop":
                file.drop()
            for there in claimed(directory):
                assert disk[there.start : there.stop] == CONTENT[there.start : there.stop]
        assert file.done == len(CONTENT) - sum(span.left for span in file.missing)


def test_what_was_kept_is_known_another_day(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    whole = file.begin('"tag"', 5_000)
    half = file.halve(whole)
    write(file, whole, 1_000)
    write(file, half, 2_500)
    file.keep()
    again = a_file(tmp_path)
    assert (again.validator, again.total, again.done, again.left) == ('"tag"', 5_000, 3_500, 1_500)
    assert repr(again) == "<PartialFile x [of 5000, missing 1,000 to 2,500]>"
    write(again, again.missing[0], 9_999)
    again.drop()
    again.finish()
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["x"]


def test_a_length_that_is_not_known(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    write(file, file.begin('"tag"', None), 3_000)
    file.keep()
    again = a_file(tmp_path)
    assert (again.total, again.done) == (None, 3_000)
    (span,) = again.missing
    write(again, span, 2_000)
    again.end(span)
    assert (again.total, again.done, again.left) == (5_000, 5_000, 0)


def test_a_half_is_given_back(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    whole = file.begin('"tag"', 5_000)
    half = file.halve(whole)
    assert (whole.end, half.at, half.end) == (2_500, 2_500, 5_000)
    quarter = file.halve(half)
    file.unite(half)
    assert [(span.at, span.end) for span in file.missing] == [(0, 3_750), (3_750, 5_000)]
    write(file, quarter, 1)
    file.unite(quarter)
    assert len(file.missing) == 2


def test_a_span_that_was_written_beyond_has_nothing_left(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    whole = file.begin('"tag"', 5_000)
    half = file.halve(whole)
    whole.at = 2_600  # of a block that was on its way when it was halved
    assert (whole.left, file.left) == (0, 2_500)
    write(file, half, 2_500)
    file.keep()
    assert a_file(tmp_path).missing == []


def test_another_file_is_begun_with_nothing(tmp_path: Path) -> None:
    file = a_file(tmp_path)
    write(file, file.begin('"first"', 5_000), 4_000)
    file.keep()
    file.begin('"second"', 5_000)
    again = a_file(tmp_path)
    assert (again.validator, again.done) == ('"second"', 0)
    assert file.part.stat().st_size == 0
    file.forget()
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
        # As this program wrote it before files came in several ranges.
        lambda facts: facts.pop("missing"),
    ],
)
def test_what_makes_no_sense_is_not_believed(
    spoil: Callable[[dict[str, object]], object], tmp_path: Path
) -> None:
    file = a_file(tmp_path)
    whole = file.begin('"tag"', 5_000)
    half = file.halve(whole)
    write(file, whole, 1_000)
    write(file, half, 1_500)
    file.keep()
    record = tmp_path / "x.part.json"
    facts = json.loads(record.read_bytes())
    assert facts["missing"] == [[1_000, 2_500], [4_000, 5_000]]
    assert a_file(tmp_path).is_begun
    spoil(facts)
    record.write_text(json.dumps(facts))
    assert not a_file(tmp_path).is_begun
    record.write_text("[" * 100_000)
    assert not a_file(tmp_path).is_begun

"""Segments by the rule, record by record, and by blocks of records."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from plans import segments

from virnuc_async.distributed.plan import PlannedSegment
from virnuc_async.distributed.segmenting import Segmenting
from virnuc_async.sequences.segments import START, SeekPoint


def from_start(_: int) -> SeekPoint:
    return START


@given(
    st.lists(st.lists(st.integers(0, 300), max_size=40), min_size=1, max_size=4),
    st.integers(1, 2000),
    st.integers(1, 50),
)
def test_blocks_of_records_give_the_segments_of_single_ones(
    files: list[list[int]], size: int, block: int
) -> None:
    segmenting = Segmenting(size)
    for number, lengths in enumerate(files):
        blocks = (np.array(lengths[at : at + block], np.int64) for at in range(0, len(lengths), block))
        segmenting.add_file(number, blocks, lambda record: SeekPoint(record, 100 * record))
    assert [*segmenting.segments()] == segments(files, size)


def test_records_without_bases_behind_the_last_full_segment() -> None:
    segmenting = Segmenting(10)
    segmenting.add_file(0, [np.array([10, 0])], from_start)
    segmenting.add_file(1, [np.array([0], np.int64)], from_start)
    assert segmenting.segments() == (PlannedSegment(0, 0, 0, 1, 10), PlannedSegment(0, 1, 1, 2, 0))


def test_without_records_there_is_one_segment() -> None:
    segmenting = Segmenting(10)
    segmenting.add_file(0, [], from_start)
    assert segmenting.segments() == (PlannedSegment(0, 0, 0, 0, 0),)

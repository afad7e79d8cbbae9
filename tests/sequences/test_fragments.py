from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import fasta, pieces

from virnuc_async.sequences.fragments import cut, cut_all


def slow_cut(bases: int, length: int) -> list[tuple[int, int]]:
    """The published rule, one seam after the other."""
    count = 0
    while count * length < bases:
        count += 1
    slack = count * length - bases
    ranges, start = [], 0
    for number in range(count):
        ranges.append((start, min(start + length, bases)))
        shared = slack // count
        rest = slack - shared * (count - 1)
        start += length - (shared + 1 if number < rest else shared)
    return ranges


def test_the_published_fragments_byte_for_byte(golden: Path, expected: Path, length: int):
    found = fasta(((p.id, p.bases) for p in pieces(golden / "upstream" / "input.fa", length)), width=60)
    assert found == (expected / "chunks.fa").read_text("ascii")


@pytest.mark.parametrize(
    ("bases", "length", "ranges"),
    [
        (0, 500, []),
        (1, 500, [(0, 1)]),
        (500, 500, [(0, 500)]),
        (501, 500, [(0, 500), (250, 501)]),  # the published oddity: 500 + 251
        (1000, 500, [(0, 500), (500, 1000)]),
        (1001, 500, [(0, 500), (333, 833), (666, 1001)]),
        (1499, 500, [(0, 500), (499, 999), (999, 1499)]),
        (301, 300, [(0, 300), (150, 301)]),
        (750, 300, [(0, 300), (249, 549), (498, 750)]),
    ],
)
def test_examples(bases: int, length: int, ranges: list[tuple[int, int]]):
    assert list(cut(bases, length)) == ranges


@given(st.integers(0, 20_000), st.integers(1, 700))
def test_any_contig_is_cut_as_the_slow_rule_says(bases: int, length: int):
    assert list(cut(bases, length)) == slow_cut(bases, length)


@given(st.integers(1, 20_000), st.sampled_from((300, 500)))
def test_no_base_is_lost(bases: int, length: int):
    ranges = list(cut(bases, length))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == bases
    assert all(first[0] < second[0] <= first[1] for first, second in zip(ranges, ranges[1:], strict=False))
    assert all(0 < end - start <= length for start, end in ranges)


@given(st.lists(st.integers(0, 3_000), max_size=20), st.integers(1, 700))
def test_many_contigs_are_cut_as_each_alone(lengths: list[int], length: int):
    found = cut_all(np.array(lengths, np.int64), length)
    assert list(zip(found.contigs.tolist(), found.numbers.tolist(), found.ranges.tolist(), strict=True)) == [
        (contig, number, [sum(lengths[:contig]) + start, sum(lengths[:contig]) + end])
        for contig, bases in enumerate(lengths)
        for number, (start, end) in enumerate(slow_cut(bases, length))
    ]

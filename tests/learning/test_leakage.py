"""K-mers compared with a simple version of strings and sets; planted k-mers are found on both strands."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import some_reads

from virnuc_async.learning.leakage import K, canonical_kmers, shared_kmer_fraction

SWAP = str.maketrans("ACGTacgt", "TGCAtgca")
LETTERS = st.text("ACGTNacgtn", max_size=120)


def reverse_complement(bases: str) -> str:
    return bases.translate(SWAP)[::-1]


def slow_kmers(bases: str) -> list[str]:
    words = (bases.upper()[at : at + K] for at in range(len(bases) - K + 1))
    return [min(word, reverse_complement(word)) for word in words if set(word) <= set("ACGT")]


def as_number(word: str) -> int:
    return sum("ACGT".index(letter) << 2 * (K - 1 - at) for at, letter in enumerate(word))


def fractions(
    records: Sequence[str],
    queries: Sequence[bool],
    targets: Sequence[bool],
    max_kmers: int = 1 << 20,
    block_size: int = 1 << 20,
) -> list[float]:
    def read() -> Iterator[bytes]:
        return (record.encode() for record in records)

    return shared_kmer_fraction(
        read, np.array(queries, bool), np.array(targets, bool), max_kmers, block_size
    ).tolist()


def slow_fractions(records: Sequence[str], queries: Sequence[bool], targets: Sequence[bool]) -> list[float]:
    known = {
        word
        for record, is_target in zip(records, targets, strict=True)
        if is_target
        for word in slow_kmers(record)
    }
    found = []
    for record, is_query in zip(records, queries, strict=True):
        own = slow_kmers(record) if is_query else []
        found.append(sum(word in known for word in own) / max(1, len(own)))
    return found


@given(LETTERS)
def test_kmers_match_the_simple_version(bases: str) -> None:
    assert canonical_kmers(bases.encode()).tolist() == [as_number(word) for word in slow_kmers(bases)]


@given(LETTERS)
def test_both_strands_have_the_same_kmers(bases: str) -> None:
    reverse = canonical_kmers(reverse_complement(bases).encode())
    assert reverse.tolist() == canonical_kmers(bases.encode()).tolist()[::-1]


# Repeats of few letters, so that records do share k-mers.
@given(
    st.lists(st.tuples(st.text("AC", min_size=28, max_size=36), st.sampled_from("qt-")), max_size=8),
    st.sampled_from([1, 7, 1 << 20]),
)
def test_fractions_match_the_simple_version(rows: list[tuple[str, str]], max_kmers: int) -> None:
    records = [bases * 2 for bases, _ in rows]
    queries, targets = ([kind == letter for _, kind in rows] for letter in "qt")
    expected = slow_fractions(records, queries, targets)
    assert fractions(records, queries, targets, max_kmers) == pytest.approx(expected)


@pytest.mark.parametrize("max_kmers", [1 << 20, 500, 10])
def test_planted_kmer_is_found(max_kmers: int) -> None:
    one, two, three, four = some_reads(4, 400).values()
    planted = two[:200] + reverse_complement(one[100 : 100 + K]) + two[200:]
    records = [one, planted, three, four]
    found = fractions(records, [False, True, True, True], [True, False, False, False], max_kmers)
    assert found == [0, pytest.approx(1 / (431 - K + 1)), 0, 0]


def test_one_base_fewer_is_not_shared() -> None:
    one, two = some_reads(2, 300).values()
    # An N on both sides, so that no neighbouring base makes the shared part longer.
    planted = f"{two}N{one[50 : 50 + K - 1]}N"
    assert fractions([one, planted], [False, True], [True, False]) == [0, 0]


def test_long_records_are_processed_in_blocks() -> None:
    one, two = some_reads(2, 500).values()
    records, roles = [one, two + one[33:190] + two], ([False, True], [True, False])
    whole = fractions(records, *roles)
    in_blocks = fractions(records, *roles, block_size=64)
    assert in_blocks == whole == pytest.approx(slow_fractions(records, *roles))
    assert whole[1] > 0.1


def test_without_targets_nothing_is_shared() -> None:
    assert fractions(["ACGT", ""], [True, True], [False, False]) == [0, 0]
    assert fractions([], [], []) == []

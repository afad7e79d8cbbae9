"""K-mers against an obvious version with strings and sets; planted stretches are found, on both strands."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import some_reads

from virnuc_async.learning.leakage import K, kmers, shared_kmer_fraction

SWAP = str.maketrans("ACGTacgt", "TGCAtgca")
LETTERS = st.text("ACGTNacgtn", max_size=120)


def reverse_complement(bases: str) -> str:
    return bases.translate(SWAP)[::-1]


def slow_kmers(bases: str) -> list[str]:
    words = (bases.upper()[at : at + K] for at in range(len(bases) - K + 1))
    return [min(word, reverse_complement(word)) for word in words if set(word) <= set("ACGT")]


def as_number(word: str) -> int:
    return sum("ACGT".index(letter) << 2 * (K - 1 - at) for at, letter in enumerate(word))


def shares(
    records: Sequence[str], held: Sequence[bool], others: Sequence[bool], room: int = 1 << 20
) -> list[float]:
    def read() -> Iterator[bytes]:
        return (record.encode() for record in records)

    return shared_kmer_fraction(read, np.array(held, bool), np.array(others, bool), room).tolist()


def slow_shares(records: Sequence[str], held: Sequence[bool], others: Sequence[bool]) -> list[float]:
    known = {
        word for record, other in zip(records, others, strict=True) if other for word in slow_kmers(record)
    }
    found = []
    for record, is_held in zip(records, held, strict=True):
        own = slow_kmers(record) if is_held else []
        found.append(sum(word in known for word in own) / max(1, len(own)))
    return found


@given(LETTERS)
def test_kmers_are_those_of_the_obvious_version(bases: str) -> None:
    assert kmers(bases.encode()).tolist() == [as_number(word) for word in slow_kmers(bases)]


@given(LETTERS)
def test_both_strands_have_the_same(bases: str) -> None:
    assert kmers(reverse_complement(bases).encode()).tolist() == kmers(bases.encode()).tolist()[::-1]


# Repeats of few letters, so that records do share k-mers.
@given(
    st.lists(st.tuples(st.text("AC", min_size=28, max_size=36), st.sampled_from("ho-")), max_size=8),
    st.sampled_from([1, 7, 1 << 20]),
)
def test_shares_are_those_of_the_obvious_version(rows: list[tuple[str, str]], room: int) -> None:
    records = [bases * 2 for bases, _ in rows]
    held, others = ([kind == letter for _, kind in rows] for letter in "ho")
    assert shares(records, held, others, room) == pytest.approx(slow_shares(records, held, others))


@pytest.mark.parametrize("room", [1 << 20, 500, 10])
def test_planted_stretches_are_found(room: int) -> None:
    one, two, three, four = some_reads(4, 400).values()
    stretch = one[100 : 100 + K]
    planted = two[:200] + reverse_complement(stretch) + two[200:]
    records = [one, planted, three, four]
    found = shares(records, [False, True, True, True], [True, False, False, False], room)
    assert found == [0, pytest.approx(1 / (431 - K + 1)), 0, 0]


def test_one_base_less_is_not_shared() -> None:
    one, two = some_reads(2, 300).values()
    # Letters outside ACGT on both sides, so that no neighbour makes it longer.
    planted = f"{two}N{one[50 : 50 + K - 1]}N"
    assert shares([one, planted], [False, True], [True, False]) == [0, 0]


def test_long_records_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = some_reads(2, 500).values()
    records, sides = [one, two + one[33:190] + two], ([False, True], [True, False])
    whole = shares(records, *sides)
    monkeypatch.setattr("virnuc_async.learning.leakage._BLOCK", 64)
    assert shares(records, *sides) == whole == pytest.approx(slow_shares(records, *sides))
    assert whole[1] > 0.1


def test_nothing_is_shared_with_nothing() -> None:
    assert shares(["ACGT", ""], [True, True], [False, False]) == [0, 0]
    assert shares([], [], []) == []

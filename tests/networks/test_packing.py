"""Packed batches: order, positions, means, and views of runs."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, packed, ragged

from virnuc_async.networks.packing import TILE, Run, dummy_batch, mean_pool, pack, positions, segment_means

ROWS = st.lists(st.lists(st.integers(0, 99), min_size=3, max_size=9), min_size=1, max_size=9)


@given(ROWS)
def test_packing_sorts_by_length_and_keeps_the_inverse_order(rows: list[list[int]]):
    batch = packed(rows)
    ordered = sorted(rows, key=len, reverse=True)
    assert batch.ids.tolist() == sum(ordered, [])
    assert [ordered[position] for position in batch.inverse_order.tolist()] == rows
    assert batch.longest == max(map(len, rows))
    assert [run.length for run in batch.runs] == sorted({len(row) for row in rows}, reverse=True)
    viewed = [row for view in batch.views(batch.ids) for row in view.tolist()]
    assert viewed == ordered
    assert positions(batch).tolist() == [at for row in ordered for at in range(len(row))]
    assert batch.cu_seqlens.diff().tolist() == list(map(len, ordered))
    copy = batch.to(CPU)
    assert copy.runs == batch.runs
    assert all(map(torch.equal, copy.tensors, batch.tensors))


@given(ROWS, st.sampled_from([(0, None), (1, None), (1, 1), (1, 4)]))
def test_means_are_those_of_each_row(rows: list[list[int]], inner: tuple[int, int | None]):
    first, most = inner
    batch = packed(rows)
    found = mean_pool(batch.ids[:, None] * torch.tensor([1.0, -2.0]), batch, first, most)
    for row, (once, twice) in zip(rows, found.tolist(), strict=True):
        part = row[first : len(row) - first][:most]
        assert once == pytest.approx(sum(part) / len(part))
        assert twice == pytest.approx(-2 * sum(part) / len(part))


def test_a_dummy_batch_has_the_lengths_and_known_tokens():
    batch = pack(dummy_batch(3, 5))
    assert batch.cu_seqlens.tolist() == [0, 5, 8]
    assert set(batch.ids.tolist()) == {4}


def test_runs_are_views():
    tokens = torch.arange(16).reshape(8, 2)
    batch = packed([[0] * 3, [0] * 2, [0] * 3])
    assert batch.runs == (Run(count=2, length=3), Run(count=1, length=2))
    first, second = batch.views(tokens)
    assert first.tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert second.tolist() == [[[12, 13], [14, 15]]]
    assert second.data_ptr() == tokens[6:].data_ptr()


def test_ragged_rows_are_packed_whatever_their_order():
    assert pack(ragged([[1], [2, 3], [4]])).ids.tolist() == [2, 3, 1, 4]


@given(st.lists(st.integers(1, 3 * TILE), max_size=9))
def test_tiles_have_every_token_once_and_end_with_their_sequence(lengths: list[int]):
    batch = pack(dummy_batch(*lengths))
    assert batch.tiles.dtype == torch.int32
    tokens, borders = [], batch.cu_seqlens.tolist()
    for first, start, end in batch.tiles.tolist():
        assert (start, end) in pairwise(borders)
        assert (first - start) % TILE == 0
        tokens += range(first, min(first + TILE, end))
    assert tokens == list(range(sum(lengths)))


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    first=st.sampled_from([0, 1]),
    most=st.sampled_from([None, 1, 20]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_means_of_all_lengths_at_once(
    lengths: list[int], first: int, most: int | None, dtype: torch.dtype
) -> None:
    batch = pack(dummy_batch(*lengths))
    random = torch.Generator().manual_seed(len(lengths))
    hidden = torch.randn(sum(lengths), 5, generator=random).to(dtype)
    expected = mean_pool(hidden, batch, first, most)
    found = segment_means(hidden, batch, first, most)
    assert found.dtype is torch.float32
    # Rows without a token to average are NaN in both.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, equal_nan=True)

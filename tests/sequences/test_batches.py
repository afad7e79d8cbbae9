"""Batches: every ORF of a window in exactly one, within the budget."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnuc_async.sequences.batches import Batch, longest_first
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, Window, form_windows

LENGTHS = st.lists(st.integers(1, 60), max_size=80).map(lambda rows: np.array(rows, dtype=np.int64))


@pytest.fixture(scope="module")
def tokenizer(golden: Path) -> OrfTokenizer:
    return OrfTokenizer((golden / "upstream/models/dnabert/tokenizer.json").read_text())


@given(LENGTHS, st.integers(1, 200))
def test_batches_hold_every_row_once_longest_first_within_the_budget(
    lengths: np.ndarray, budget: int
) -> None:
    groups = list(longest_first(lengths, budget))
    rows = [row for group in groups for row in group.tolist()]
    # The slow, obvious version: sort by length, equal ones in order.
    assert rows == sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for group, after in zip(groups, [*groups[1:], None], strict=False):
        tokens = lengths[group].sum()
        assert tokens <= budget or len(group) == 1
        if after is not None:  # no group ends before it has to
            assert tokens + lengths[after[0]] > budget


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(5, 60))
def test_batches_of_a_window_carry_their_own_orfs(
    tokenizer: OrfTokenizer, codons: list[int], budget: int
) -> None:
    contigs = [Contig(b"c%d" % number, b"GCA" * count) for number, count in enumerate(codons)]
    window = _one_window(contigs, tokenizer)
    seen = {}
    for batch in window.batches(budget):
        _check_rows(batch, window)
        seen |= dict.fromkeys(batch.orfs.tolist())
    assert sorted(seen) == list(range(len(window.origins)))


def test_halves_are_the_batch(tokenizer: OrfTokenizer) -> None:
    contigs = [Contig(b"c%d" % number, b"GCA" * (number + 1)) for number in range(5)]
    window = _one_window(contigs, tokenizer)
    (whole,) = window.batches(10**6)
    left, right = whole.halves()
    assert (left.split_path, right.split_path, right.halves()[0].split_path) == ("0", "1", "10")
    assert (whole.name, right.name) == ("0.0", "0.0.1")
    assert np.concatenate((left.orfs, right.orfs)).tolist() == whole.orfs.tolist()
    assert np.concatenate((left.residues.ids, right.residues.ids)).tolist() == whole.residues.ids.tolist()
    assert left.residues.lengths.min() >= right.residues.lengths.max()
    for half in (left, right):
        _check_rows(half, window)


def _check_rows(batch: Batch, window: Window) -> None:
    """Check that row i of everything in *batch* is the same ORF."""
    rows = batch.orfs - window.first
    assert batch.origins.tolist() == window.origins[rows].tolist()
    assert batch.residues.ids.tolist() == window.residues.take(rows).ids.tolist()
    assert batch.nucleotides.ids.tolist() == window.nucleotides.take(rows).ids.tolist()
    assert batch.tokens == window.residues.lengths[rows].sum()


def _one_window(contigs: list[Contig], tokenizer: OrfTokenizer) -> Window:
    (window,) = form_windows(["file"], lambda _: iter(contigs), Cut(100, 10**6), tokenizer)
    return window

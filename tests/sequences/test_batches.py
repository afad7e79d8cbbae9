"""Windows and batches: functions of the input alone, with every record and ORF in exactly one."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnuc_async.errors import BrokenInput
from virnuc_async.sequences import batches
from virnuc_async.sequences.batches import Batch, Window, form_windows, longest_first
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.inputs import Contig, read_contigs
from virnuc_async.sequences.orfs import open_frames
from virnuc_async.sequences.tokens import OrfTokenizer, Ragged

LENGTHS = st.lists(st.integers(1, 60), max_size=80).map(lambda rows: np.array(rows, dtype=np.int64))
CONTIGS = st.lists(
    st.builds(Contig, id=st.binary(max_size=4), bases=st.text("ACGTN", max_size=120).map(str.encode)),
    max_size=12,
)


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


@given(
    files=st.lists(CONTIGS, max_size=4),
    size=st.integers(1, 9),
    length=st.integers(20, 60),
    block=st.sampled_from([1, 50, 200, 1 << 17]),
)
def test_windows_hold_every_record_and_orf_in_input_order(
    tokenizer: OrfTokenizer, files: list[list[Contig]], size: int, length: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_BLOCK_BASES", block)
        windows = _form(files, tokenizer, length, size)
    assert [window.number for window in windows] == list(range(len(windows)))
    rows = [row for window in windows for row in window.contigs]
    contigs = [(number, contig) for number, file in enumerate(files) for contig in file]
    assert [(row.file, row.id, row.length) for row in rows] == [
        (number, contig.id, len(contig.bases)) for number, contig in contigs
    ]
    assert [row.number for row in rows] == list(range(len(rows)))
    assert [(file.number, file.contigs) for window in windows for file in window.files] == [
        (number, len(file)) for number, file in enumerate(files)
    ]
    places = [place for window in windows for place in window.origins.tolist()]
    assert places == list(_slow_places([contig for _, contig in contigs], length))
    firsts = np.cumsum([0] + [len(window.origins) for window in windows])[:-1].tolist()
    assert [window.first for window in windows] == firsts


@given(contigs=CONTIGS, size=st.integers(1, 9))
def test_a_window_ends_at_a_fragment_and_is_as_full_as_it_can_be(
    tokenizer: OrfTokenizer, contigs: list[Contig], size: int
) -> None:
    windows = _form([contigs], tokenizer, 30, size)
    fragments = [{(int(c), int(f)) for c, f, _ in window.origins} for window in windows]
    for one, other in zip(fragments, fragments[1:], strict=False):
        assert not one & other
    for window in windows[:-1]:
        assert max(len(window.origins), len(window.contigs)) >= size
    assert all(len(window.origins) < size + 6 and len(window.contigs) <= size for window in windows)


@given(files=st.lists(CONTIGS, max_size=4), size=st.integers(1, 9), length=st.integers(20, 60))
def test_windows_are_the_same_whatever_is_translated_at_once(
    tokenizer: OrfTokenizer, files: list[list[Contig]], size: int, length: int
) -> None:
    found = []
    for block in (1, 60, 300, 1 << 17):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batches, "_BLOCK_BASES", block)
            found.append([_content(window) for window in _form(files, tokenizer, length, size)])
    assert all(windows == found[0] for windows in found)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(5, 60))
def test_batches_of_a_window_carry_their_own_orfs(
    tokenizer: OrfTokenizer, codons: list[int], budget: int
) -> None:
    contigs = [Contig(b"c%d" % number, b"GCA" * count) for number, count in enumerate(codons)]
    (window,) = _form([contigs], tokenizer, 100, 10**6)
    seen = {}
    for batch in window.batches(budget):
        _check_rows(batch, window)
        seen |= dict.fromkeys(batch.orfs.tolist())
    assert sorted(seen) == list(range(len(window.origins)))


def test_halves_are_the_batch(tokenizer: OrfTokenizer) -> None:
    contigs = [Contig(b"c%d" % number, b"GCA" * (number + 1)) for number in range(5)]
    (window,) = _form([contigs], tokenizer, 100, 10**6)
    (whole,) = window.batches(10**6)
    left, right = whole.halves()
    assert (left.split_path, right.split_path, right.halves()[0].split_path) == ("0", "1", "10")
    assert (whole.name, right.name) == ("0.0", "0.0.1")
    assert np.concatenate((left.orfs, right.orfs)).tolist() == whole.orfs.tolist()
    assert np.concatenate((left.residues.ids, right.residues.ids)).tolist() == whole.residues.ids.tolist()
    assert left.residues.lengths.min() >= right.residues.lengths.max()
    for half in (left, right):
        _check_rows(half, window)


def test_the_digest_is_of_lengths_ids_and_bases(tokenizer: OrfTokenizer) -> None:
    (window,) = _form([[Contig(b"a", b"ACgt")], [Contig(b"bc", b"GCA"), Contig(b"", b"")]], tokenizer, 3, 99)
    assert window.digest == hashlib.sha256(b"0 1 4\naACgt1 2 3\nbcGCA1 0 0\n").digest()


def test_the_digest_tells_content_and_its_division_apart(tokenizer: OrfTokenizer) -> None:
    one, other = Contig(b"a", b"ACGT"), Contig(b"b", b"ACGA")
    cases = [
        [[one, other]],
        [[one], [other]],
        [[other, one]],
        [[Contig(b"a", b"ACGTb"), Contig(b"", b"ACGA")]],
        [[Contig(b"aACGT", b""), other]],
    ]
    digests = [tuple(window.digest for window in _form(case, tokenizer, 100, 100)) for case in cases]
    assert len(set(digests)) == len(cases)
    assert digests[0] == tuple(window.digest for window in _form(cases[0], tokenizer, 100, 100))


def test_a_broken_file_keeps_its_records_and_the_next_file_its_number(tokenizer: OrfTokenizer) -> None:
    failure = BrokenInput("first", 1, "the disk is gone")

    def read(path: str) -> Iterator[Contig]:
        yield Contig(path.encode(), b"GCAGCA")
        if path == "first":
            raise failure

    (window,) = form_windows(["first", "second"], read, 100, tokenizer, 100)
    assert [(row.file, row.id) for row in window.contigs] == [(0, b"first"), (1, b"second")]
    assert [(file.path, file.contigs, file.failure) for file in window.files] == [
        ("first", 1, failure),
        ("second", 1, None),
    ]


def test_tokens_of_the_golden_input_are_those_of_each_orf_alone(
    tokenizer: OrfTokenizer, golden: Path
) -> None:
    windows = list(form_windows([str(golden / "upstream/input.fa")], read_contigs, 500, tokenizer, 20))
    assert [len(window.origins) for window in windows] == [20, 20, 13]
    contigs = list(read_contigs(str(golden / "upstream/input.fa")))
    for window in windows:
        for row, (contig, fragment, frame) in enumerate(window.origins.tolist()):
            bases = contigs[contig].bases
            start, end = list(cut(len(bases), 500))[fragment - 1]
            (orf,) = [orf for orf in open_frames(bases, [(start, end)]) if orf.frame == frame]
            one = np.array([row])
            assert (
                window.nucleotides.take(one).ids.tolist() == tokenizer.nucleotides([orf.bases]).ids.tolist()
            )
            assert window.residues.take(one).ids.tolist() == tokenizer.residues([orf.protein]).ids.tolist()


def _content(window: Window) -> tuple[object, ...]:
    plain = (window.number, window.first, window.contigs, window.files, window.digest)
    columns = (window.origins, *_arrays(window.nucleotides), *_arrays(window.residues))
    return *plain, *(column.tolist() for column in columns)


def _arrays(tokens: Ragged) -> tuple[np.ndarray, np.ndarray]:
    return tokens.ids, tokens.lengths


def _form(files: list[list[Contig]], tokenizer: OrfTokenizer, length: int, size: int) -> list[Window]:
    paths = [str(number) for number in range(len(files))]
    return list(form_windows(paths, lambda path: iter(files[int(path)]), length, tokenizer, size))


def _slow_places(contigs: list[Contig], length: int) -> Iterator[list[int]]:
    for number, contig in enumerate(contigs):
        for fragment, (start, end) in enumerate(cut(len(contig.bases), length), 1):
            for orf in open_frames(contig.bases[start:end], [(0, end - start)]):
                yield [number, fragment, orf.frame]


def _check_rows(batch: Batch, window: Window) -> None:
    """See that row i of everything in *batch* is one and the same ORF."""
    rows = batch.orfs - window.first
    assert batch.origins.tolist() == window.origins[rows].tolist()
    assert batch.residues.ids.tolist() == window.residues.take(rows).ids.tolist()
    assert batch.nucleotides.ids.tolist() == window.nucleotides.take(rows).ids.tolist()
    assert batch.tokens == window.residues.lengths[rows].sum()

"""Windows: functions of the input alone, with every record and ORF in exactly one."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnuc_async.errors import BrokenInput
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.fragments import cut
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.orfs import open_frames
from virnuc_async.sequences.reading import Reading
from virnuc_async.sequences.tokens import OrfTokenizer, Ragged
from virnuc_async.sequences.windows import Cut, Window, form_windows

CONTIGS = st.lists(
    st.builds(Contig, id=st.binary(max_size=4), bases=st.text("ACGTN", max_size=120).map(str.encode)),
    max_size=12,
)


@pytest.fixture(scope="module")
def tokenizer(golden: Path) -> OrfTokenizer:
    return OrfTokenizer((golden / "upstream/models/dnabert/tokenizer.json").read_text())


@given(
    files=st.lists(CONTIGS, max_size=4),
    size=st.integers(1, 9),
    length=st.integers(20, 60),
    block=st.sampled_from([1, 50, 200, 1 << 17]),
)
def test_windows_hold_every_record_and_orf_in_input_order(
    tokenizer: OrfTokenizer, files: list[list[Contig]], size: int, length: int, block: int
) -> None:
    windows = _form(files, tokenizer, length, size, block)
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
    origins = [origin for window in windows for origin in window.origins.tolist()]
    assert origins == list(_slow_origins([contig for _, contig in contigs], length))
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
    found = [
        [_content(window) for window in _form(files, tokenizer, length, size, block)]
        for block in (1, 60, 300, 1 << 17)
    ]
    assert all(windows == found[0] for windows in found)


def test_the_digest_is_of_lengths_ids_and_bases(tokenizer: OrfTokenizer) -> None:
    (window,) = _form([[Contig(b"a", b"ACgt")], [Contig(b"bc", b"GCA"), Contig(b"", b"")]], tokenizer, 3, 99)
    assert window.digest == hashlib.sha256(b"0 1 4\naACgt1 2 3\nbcGCA1 0 0\n").digest()


def test_the_digest_depends_on_content_and_its_division(tokenizer: OrfTokenizer) -> None:
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

    (window,) = form_windows(["first", "second"], read, Cut(100, 100), tokenizer)
    assert [(row.file, row.id) for row in window.contigs] == [(0, b"first"), (1, b"second")]
    assert [(file.path, file.contigs, file.failure) for file in window.files] == [
        ("first", 1, failure),
        ("second", 1, None),
    ]


def test_tokens_of_the_golden_input_are_those_of_each_orf_alone(
    tokenizer: OrfTokenizer, golden: Path
) -> None:
    windows = list(form_windows([str(golden / "upstream/input.fa")], read_contigs, Cut(500, 20), tokenizer))
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


def _form(
    files: list[list[Contig]], tokenizer: OrfTokenizer, length: int, size: int, block_bases: int = 1 << 17
) -> list[Window]:
    def read(path: str) -> Iterator[Contig]:
        return iter(files[int(path)])

    paths = [str(number) for number in range(len(files))]
    return list(form_windows(paths, read, Cut(length, size), tokenizer, Reading(block_bases)))


def _read_listed(files: list[list[Contig]], path: str) -> Iterator[Contig]:
    return iter(files[int(path)])


def _slow_origins(contigs: list[Contig], length: int) -> Iterator[list[int]]:
    for number, contig in enumerate(contigs):
        for fragment, (start, end) in enumerate(cut(len(contig.bases), length), 1):
            for orf in open_frames(contig.bases[start:end], [(0, end - start)]):
                yield [number, fragment, orf.frame]

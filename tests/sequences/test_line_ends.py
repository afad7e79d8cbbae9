"""Line ends: LF, CR LF and CR alone, mixed in any way; a header swallows no sequence."""

import bz2
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sequence_files import EACH_BLOCK, as_fasta, as_fastq, read, some_records, until_failure
from support import wrapped

from virnuc_async.errors import BrokenInput, NotSequences
from virnuc_async.sequences.fastx import Contig, Limits
from virnuc_async.sequences.inputs import read_contigs

LONG = b"ACGTACGTACGTACGTACGT"


@EACH_BLOCK
@pytest.mark.parametrize(
    ("content", "records"),
    [
        # CR alone
        (b">a\rACGT\r>b\rGG\r", [(b"a", b"ACGT"), (b"b", b"GG")]),
        (b">a some words\rAC\rGT\rA\r\r>b\r\rGG", [(b"a", b"ACGTA"), (b"b", b"GG")]),
        (b"\r\r>a\rAC", [(b"a", b"AC")]),
        (b"\xef\xbb\xbf>a\rAC\r", [(b"a", b"AC")]),
        (b">a\r>b\rAC\r>c\r", [(b"a", b""), (b"b", b"AC"), (b"c", b"")]),
        # mixed
        (b">a\nAC\n>b\rGG\r>c\nTT\n", [(b"a", b"AC"), (b"b", b"GG"), (b"c", b"TT")]),
        (b">a\nAC\n>b\rGG\n>c\nTT\n", [(b"a", b"AC"), (b"b", b"GG"), (b"c", b"TT")]),
        (b">a\r\nAC\r\n>b\rGG\r>c\r\nTT\r\n", [(b"a", b"AC"), (b"b", b"GG"), (b"c", b"TT")]),
        (b">a\rACGT\nACGT\nAC\n>b\nA\n", [(b"a", b"ACGTACGTAC"), (b"b", b"A")]),
        (b">a\nACGT\rACGT\rAC\r\n>b\nA\n", [(b"a", b"ACGTACGTAC"), (b"b", b"A")]),
        (b">a\r" + LONG + b"\n" + LONG * 2 + b"\n", [(b"a", LONG * 3)]),
        (b">a\rAC\rGGT\n>b\nA\n", [(b"a", b"ACGGT"), (b"b", b"A")]),
        (b">a \r\rAC GT\n\nAC\n", [(b"a", b"ACGTAC")]),
        # CRs that belong to a LF
        (b">a\r\r\nAC\r\r\nGT\r\r\r\n>b\r\r\nA", [(b"a", b"ACGT"), (b"b", b"A")]),
        # within the text of a header
        (b">a\rb\nACGT\n", [(b"a", b"ACGT")]),
        (b">a some\rmore words\rand more\nACGT\nAC\n>b\nAC\n", [(b"a", b"ACGTAC"), (b"b", b"AC")]),
        (b">a strand\rcat\nACGT\n", [(b"a", b"ACGT")]),
        (b">a some\rtag\r\nACGT\r\n", [(b"a", b"ACGT")]),
        (b">a some\rmore words\r" + LONG + b"\r" + LONG + b"\nAC\n", [(b"a", LONG * 2 + b"AC")]),
        (b">a x\rgi|1|https://ncbi.nlm.nih.gov/nuccore/NC_001416.1\nAC\n", [(b"a", b"AC")]),
        (b">a some\rmore words\n>b\nAC\n", [(b"a", b""), (b"b", b"AC")]),
    ],
)
def test_fasta(content: bytes, records: list[tuple[bytes, bytes]], block: int):
    assert read(content, Limits(block)) == records


@EACH_BLOCK
@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"@a\rACGT\r+\rIIII\r@b x\rGG\r+b x\r@I\r", [(b"a", b"ACGT"), (b"b", b"GG")]),
        (b"@a\rACGT\r+\rIIII", [(b"a", b"ACGT")]),
        (b"\r@a\rACGT\r+\rIIII\r\r\r\r\r", [(b"a", b"ACGT")]),
        (
            b"@a\nAC\n+\nII\n@b\rGG\r+\rII\r@c\nTT\n+\nII\n",
            [(b"a", b"AC"), (b"b", b"GG"), (b"c", b"TT")],
        ),
        (
            b"@a\r\nAC\r\n+\r\nII\r\n@b\rGG\r+\rII\r@c\r\nTT\r\n+\r\nII\r\n",
            [(b"a", b"AC"), (b"b", b"GG"), (b"c", b"TT")],
        ),
        (b"@a\rAC\n+\r@I\n@b\nG\r+\nI\r", [(b"a", b"AC"), (b"b", b"G")]),
        (b"@a\r\r\nAC\r\r\n+\r\r\nII\r\r\n", [(b"a", b"AC")]),
        (b"@a\rb\nACGT\n+\nIIII\n@b\nA\n+\nI\n", [(b"a", b"ACGT"), (b"b", b"A")]),
        (b"@a some\rmore words\rtag\r\nACGT\n+\nIIII\n", [(b"a", b"ACGT")]),
        (b"@a\rA\r+\rI\r@b\r\r+\r", [(b"a", b"A"), (b"b", b"")]),
    ],
)
def test_fastq(content: bytes, records: list[tuple[bytes, bytes]], block: int):
    assert read(content, Limits(block)) == records


# Any records with any line ends

IDS = st.binary(max_size=8).map(lambda raw: b"".join(raw.split())).filter(bool)
WORDS = st.sampled_from([b"", b" words", b"\ttab words", b" > @ + ;"])
BASES = st.text("ACGTacgtNnRYKMSWBDHVXxUu-.", max_size=60)
RECORDS = st.lists(st.tuples(IDS, WORDS, BASES), max_size=8)
ENDS = st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"\r\r\n"]), min_size=1, max_size=30)


def as_read(bases: str) -> bytes:
    return bases.translate(str.maketrans({"U": "T", "u": "t", "-": "", ".": ""})).encode()


def with_ends(text: bytes, ends: list[bytes]) -> bytes:
    """Return *text* with *ends*, one after the other, for its line ends."""
    first, *others = text.split(b"\n")
    return first + b"".join(ends[n % len(ends)] + line for n, line in enumerate(others))


@given(RECORDS, st.integers(1, 70), ENDS, st.booleans(), st.integers(1, 40))
def test_fasta_with_any_line_ends_reads_the_same(records, width, ends, ended, block):
    lines = [b">%s%s\n%s" % (i, words, wrapped(bases, width).encode()) for i, words, bases in records]
    content = with_ends(b"\n".join(lines) + b"\n" * ended, ends)
    assert read(content, Limits(block)) == [(i, as_read(bases)) for i, _, bases in records]


# An empty line between a CR and a CR LF would be one line end with them.
@given(RECORDS.map(lambda records: [record for record in records if record[2]]), ENDS, st.integers(1, 40))
def test_fastq_with_any_line_ends_reads_the_same(records, ends, block):
    content = b"".join(
        b"@%s%s\n%s\n+%s\n%s\n"
        % (i, words, bases.encode(), i, b"@+>I~!"[: len(bases)].ljust(len(bases), b"@"))
        for i, words, bases in records
    )
    found = read(with_ends(content, ends), Limits(block))
    assert found == [(i, as_read(bases)) for i, _, bases in records]


PIECES = st.sampled_from([b">", b"@", b"+", b"a", b"word", b"ACGT", LONG, b"I", b" ", b"\r", b"\n", b"\r\n"])


@given(st.sampled_from([b">", b"@"]), st.lists(PIECES, max_size=40), st.integers(1, 9))
def test_what_is_read_does_not_depend_on_the_blocks(mark, pieces, block):
    content = mark + b"".join(pieces)

    def outcome(limits: Limits):
        try:
            found, failure = until_failure(read_contigs("-", stdin=io.BytesIO(content), limits=limits))
        except StopIteration:
            return read(content, limits), None
        return found, str(failure)

    assert outcome(Limits(block)) == outcome(Limits())


# Errors


@EACH_BLOCK
@pytest.mark.parametrize(
    ("content", "before", "line", "seen"),
    [
        (b">a\rAC\r>b\rAC\rA!\r>c\rAC\r", 1, 5, "'!'"),
        (b"\r\r\n\n>a\nAC\r\nAC\rA!\r", 0, 6, "'!'"),
        (b">a\r\nAC\r\n>b\rAC\rAC\n>c\nA!\n", 2, 7, "'!'"),
        (b">p\rMKVLAAGE\r>q\rMKV\r", 0, 2, "'L'"),
        (b">a\nAC\n>p\rMKVLAAGE\n>q\rMKV\n", 1, 4, "'L'"),
        (b">p\r" + b"MKVLAAGEQW" * 4 + b"\nMKV\n", 0, 2, "'L'"),
        (b">a\r" + LONG + b"!" + LONG + b"\n" + LONG * 2 + b"A\n", 0, 2, "'!'"),
        (b"@a\rAC\r+\rII\r@b\rA!\r+\rII\r", 1, 6, "'!'"),
    ],
)
def test_the_error_names_the_line(content: bytes, before: int, line: int, seen: str, block: int):
    found, failure = until_failure(read_contigs("-", stdin=io.BytesIO(content), limits=Limits(block)))
    assert len(found) == before
    assert isinstance(failure, NotSequences)
    assert failure.reason == f"line {line}: {seen} is not a nucleotide letter (is this protein or text?)"


@EACH_BLOCK
@pytest.mark.parametrize("end", [b"\n", b"\r"])
def test_bases_on_several_lines_are_not_taken_for_a_header(end: bytes, block: int):
    content = end.join([b"@a", b"AC", b"+", b"II", b"@b", b"ACGT", b"ACGT", b"+", b"IIII", b"IIII", b""])
    found, failure = until_failure(read_contigs("-", stdin=io.BytesIO(content), limits=Limits(block)))
    assert found == [Contig(b"a", b"AC")]
    assert str(failure).startswith("-: line 7: expected '+', saw 'ACGT': the bases are on several lines; ")


@EACH_BLOCK
def test_an_empty_last_record_of_fastq_needs_no_last_line_end(block: int):
    for text in (b"@r\n\n+\n", b"@r\r\n\r\n+\r\n", b"@r\r\r+\r", b"@r\n\n+\n\n"):
        assert read(b"@a\nA\n+\nI\n" + text, Limits(block)) == [(b"a", b"A"), (b"r", b"")]
    for cut in (b"@r\n\n+", b"@r\n\n", b"@r\nA\n+\n"):
        found, failure = until_failure(read_contigs("-", stdin=io.BytesIO(cut), limits=Limits(block)))
        assert not found
        assert isinstance(failure, BrokenInput)


def test_a_break_keeps_the_records_before_it(tmp_path: Path):
    records = some_records(300)
    for write in (as_fasta, as_fastq):
        packed = bz2.compress(write(records).replace(b"\n", b"\r"), 1)
        path = tmp_path / "reads"
        path.write_bytes(packed + bz2.compress(b"?" * 99)[:-9])
        found, failure = until_failure(read_contigs(str(path)))
        assert found == records[: len(found)]
        assert len(found) >= len(records) - 1
        assert isinstance(failure, BrokenInput)


def test_long_runs_of_cr_take_no_long_time():
    assert read(b"\r" * 3_000_000 + b">a\r" + b"\r" * 3_000_000 + b"AC\r") == [(b"a", b"AC")]
    text = b"\r".join([b"@a", *[b"text"] * 200_000])
    assert isinstance(until_failure(read_contigs("-", stdin=io.BytesIO(text)))[1], NotSequences)

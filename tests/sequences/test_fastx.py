"""The parser of FASTA and FASTQ: what is read, and what is refused, with its line."""

import io
from pathlib import Path

import dnaio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sequence_files import (
    EACH_BLOCK,
    as_fasta,
    as_fastq,
    read,
    read_until_failure,
    some_records,
    until_failure,
)
from support import wrapped

from virnuc_async.errors import BrokenInput, NotSequences, TooLarge
from virnuc_async.sequences.fastx import Contig, Limits
from virnuc_async.sequences.inputs import read_contigs


@EACH_BLOCK
@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b">a\nACGT\n", [(b"a", b"ACGT")]),
        (b">a\nACGT", [(b"a", b"ACGT")]),
        (b">a\nAC\nGT\nA\n>b\nTT\n", [(b"a", b"ACGTA"), (b"b", b"TT")]),
        (b">a\r\nAC\r\nGT\r\n>b\r\nTT\r\n", [(b"a", b"ACGT"), (b"b", b"TT")]),
        (b">a\n\nAC\n\n\nGT\n\n>b\n\nTT\n\n\n", [(b"a", b"ACGT"), (b"b", b"TT")]),
        (b"\n\r\n \n>a\nACGT\n", [(b"a", b"ACGT")]),
        (b"\xef\xbb\xbf>a\nACGT\n", [(b"a", b"ACGT")]),
        (b">a some words\nAC\n>b\tmore\nGT\n>c\x0bx\nA\n", [(b"a", b"AC"), (b"b", b"GT"), (b"c", b"A")]),
        (b">\nAC\n>  \nGT\n", [(b"", b"AC"), (b"", b"GT")]),
        (b">a>b\nAC\n", [(b"a>b", b"AC")]),
        (b">>a > >\nAC\n>>\nGT\n", [(b">a", b"AC"), (b">", b"GT")]),
        (b">a\nAC\n>a\nGT\n", [(b"a", b"AC"), (b"a", b"GT")]),
        (b">a\nacgtN\n", [(b"a", b"acgtN")]),
        (b">a\nRYSWKMBDHVNXryswkmbdhvnx\n", [(b"a", b"RYSWKMBDHVNXryswkmbdhvnx")]),
        (b">a\nACGUacgu\n", [(b"a", b"ACGTacgt")]),
        (b">a\n--AC..G T\t-\n", [(b"a", b"ACGT")]),
        (b">a\n>b\nAC\n>c", [(b"a", b""), (b"b", b"AC"), (b"c", b"")]),
        (b">caf\xe9|\xff\xfe x\nAC\n", [(b"caf\xe9|\xff\xfe", b"AC")]),
        (b"", []),
        (b"\n\n \t\r\n", []),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_fasta(content: bytes, records: list[tuple[bytes, bytes]], block: int):
    assert read(content, Limits(block)) == records


@EACH_BLOCK
@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"@a\nACGT\n+\nIIII\n", [(b"a", b"ACGT")]),
        (b"@a\nACGT\n+\nIIII", [(b"a", b"ACGT")]),
        (b"@a x\nAC\n+a x\n@@\n@b\nT\n+\n>\n", [(b"a", b"AC"), (b"b", b"T")]),
        (b"@a\r\nAC\r\n+\r\nII\r\n@b\r\nT\r\n+\r\nI\r\n", [(b"a", b"AC"), (b"b", b"T")]),
        (b"\n\n@a\nAC\n+\nII\n\n\n", [(b"a", b"AC")]),
        (b"\xef\xbb\xbf@a\nAC\n+\nII\n", [(b"a", b"AC")]),
        (b"@a\nnUu.\n+\nIIII\n", [(b"a", b"nTt")]),
        (b"@a\n\n+\n\n@b\nA\n+\nI\n", [(b"a", b""), (b"b", b"A")]),
        (b"@\xff\nA\n+\n+\n", [(b"\xff", b"A")]),
    ],
)
def test_fastq(content: bytes, records: list[tuple[bytes, bytes]], block: int):
    assert read(content, Limits(block)) == records


@pytest.mark.parametrize("blank", [1, 3, 4, 9])
def test_fastq_may_end_with_blank_lines(tmp_path: Path, blank: int) -> None:
    path = tmp_path / "reads.fq"
    path.write_bytes(b"@a\nGC\n+\nII\n@b\nGA\n+\nII\n" + b"\n" * blank)
    assert [contig.bases for contig in read_contigs(str(path))] == [b"GC", b"GA"]
    path.write_bytes(b"@a\nGC\n+\nII\n" + b"\n" * 4 + b"@b\nG?\n+\nII\n")
    with pytest.raises(NotSequences, match="line 10: '[?]' is not a nucleotide letter"):
        list(read_contigs(str(path)))


# Any records, written in any way

IDS = st.binary(max_size=8).map(lambda raw: b"".join(raw.split())).filter(bool)

WORDS = st.sampled_from([b"", b" words", b"\ttab words", b" > @ + ;"])

BASES = st.text("ACGTacgtNnRYKMSWBDHVXxUu-.", max_size=60)

ENDS = st.sampled_from(["\n", "\r\n"])


def as_read(bases: str) -> bytes:
    for letter, replaced in (("U", "T"), ("u", "t"), ("-", ""), (".", "")):
        bases = bases.replace(letter, replaced)
    return bases.encode()


@given(
    st.lists(st.tuples(IDS, WORDS, BASES), max_size=8),
    st.integers(1, 70),
    ENDS,
    st.booleans(),
    st.integers(1, 40),
)
def test_fasta_written_in_any_way_reads_the_same(records, width, end, ended, block):
    lines = [b">%s%s\n%s" % (i, words, wrapped(bases, width).encode()) for i, words, bases in records]
    content = (b"\n".join(lines) + b"\n" * ended).replace(b"\n", end.encode())
    assert read(content, Limits(block)) == [(i, as_read(bases)) for i, _, bases in records]


@given(st.lists(st.tuples(IDS, WORDS, BASES), max_size=8), ENDS, st.integers(1, 40))
def test_fastq_written_in_any_way_reads_the_same(records, end, block):
    content = b"".join(
        b"@%s%s\n%s\n+%s\n%s\n"
        % (i, words, bases.encode(), i, b"@+>I~!"[: len(bases)].ljust(len(bases), b"@"))
        for i, words, bases in records
    ).replace(b"\n", end.encode())
    assert read(content, Limits(block)) == [(i, as_read(bases)) for i, _, bases in records]


PLAIN = st.lists(
    st.tuples(
        st.text("abcXYZ019_.|", min_size=1, max_size=9), st.text("ACGTNacgtn", min_size=1, max_size=99)
    ),
    min_size=1,
    max_size=9,
)


@given(PLAIN, st.integers(1, 70))
def test_plain_fasta_reads_as_dnaio_reads_it(records, width):
    content = "".join(f">{name} x\n{wrapped(bases, width)}\n" for name, bases in records).encode()
    with dnaio.open(io.BytesIO(content)) as reader:
        expected = [(record.id.encode(), record.sequence.encode()) for record in reader]
    assert read(content) == expected


@given(PLAIN)
def test_plain_fastq_reads_as_dnaio_reads_it(records):
    content = "".join(f"@{name} x\n{bases}\n+\n{'I' * len(bases)}\n" for name, bases in records).encode()
    with dnaio.open(io.BytesIO(content)) as reader:
        expected = [(record.id.encode(), record.sequence.encode()) for record in reader]
    assert read(content) == expected


# What is not DNA

NOT_DNA = "is not a nucleotide letter (is this protein or text?)"


@EACH_BLOCK
@pytest.mark.parametrize(
    ("content", "before", "line", "reason"),
    [
        (b"hello\n", 0, 1, "expected '>' (FASTA) or '@' (FASTQ), saw 'hello'"),
        (b"\n\n  hello\n", 0, 3, "expected '>' (FASTA) or '@' (FASTQ), saw 'hello'"),
        (b"ACGT", 0, 1, "expected '>' (FASTA) or '@' (FASTQ), saw 'ACGT'"),
        (b"\x89PNG\r\n\x1a\n", 0, 1, "expected '>' (FASTA) or '@' (FASTQ), saw '\\x89PNG'"),
        (b"x" * 99, 0, 1, f"expected '>' (FASTA) or '@' (FASTQ), saw '{'x' * 30}'"),
        (b">a\nMKVLAAGE\n", 0, 2, f"'L' {NOT_DNA}"),
        (b">a\nAC\n>b\nAC\nGT\nACEGT\n>c\nAC\n", 1, 6, f"'E' {NOT_DNA}"),
        (b"\n\n>a\nAC\n\n>b\n\nA1\n", 1, 8, f"'1' {NOT_DNA}"),
        (b">a\r\nAC\r\nA*\r\n", 0, 3, f"'*' {NOT_DNA}"),
        (b">a\nAC\n>b>\nA>C\n", 1, 4, f"'>' {NOT_DNA}"),
        (b">a\nAC\0GT\n", 0, 2, f"'\\x00' {NOT_DNA}"),
        (b">a\nAC\xe9\n", 0, 2, f"'é' {NOT_DNA}"),
        (b">a\nAC\n@b\nAC\n+\nII\n", 0, 3, f"'@' {NOT_DNA}"),
        (b"@a\nAC\n+\nII\nb\nAC\n+\nII\n", 1, 5, "expected '@' and an id, saw 'b'"),
        (b"@a\nAC\n+\nII\n\n@b\nAC\n+\n", 1, 5, "expected '@' and an id, saw an empty line"),
        (b"@a\nAC\nseq2\n+\nIIII\n", 0, 3, "expected '+', saw 'seq2'"),
        (b"@a\nAC\n\nII\n", 0, 3, "expected '+', saw an empty line"),
        (b"@a\nAC\n+\nIII\n", 0, 4, "the quality line is not as long as the bases"),
        (b"\n@a\nA\n+\nI\n@b\nAJ\n+\nII\n", 1, 7, f"'J' {NOT_DNA}"),
    ],
)
def test_the_error_names_the_line_that_is_not_dna(content, before, line, reason, block):
    contigs = read_contigs("-", stdin=io.BytesIO(content), limits=Limits(block))
    found, failure = until_failure(contigs)
    assert len(found) == before
    assert isinstance(failure, NotSequences)
    assert (failure.path, failure.line) == ("-", line)
    assert str(failure) == f"-: line {line}: {reason}"


def test_line_numbers_are_readable_in_long_files():
    content = as_fasta(some_records(4_000)) + b">bad\nAC!\n"
    with pytest.raises(NotSequences, match=r"line 8,002: '!' is not a nucleotide letter"):
        read(content)


@pytest.mark.parametrize("letter", "EFIJLOPQZefijlopqz0123456789*!?;:,_\x00\x01\x7f")
def test_no_letter_but_iupac_nucleotides(letter: str):
    with pytest.raises(NotSequences):
        read(f">a\nAC{letter}GT\n".encode())


@EACH_BLOCK
@pytest.mark.parametrize("lines", [1, 2, 3])
def test_fastq_that_ends_within_a_record_keeps_those_before(lines: int, block: int, tmp_path):
    records = some_records(3)
    path = tmp_path / "reads.fq"
    path.write_bytes(as_fastq(records[:2]) + b"\n".join(as_fastq(records[2:]).split(b"\n")[:lines]))
    found, failure = read_until_failure(path, Limits(block))
    assert found == records[:2]
    assert isinstance(failure, BrokenInput)
    assert failure.records == 2
    assert str(failure) == f"{path}: breaks after 2 records: line 9: the last record ends early"


# What is too large


@EACH_BLOCK
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b">a\nAC\n>b\n" + b"A" * 90, 3),
        (b">a\nAC\n>b\n" + b"A" * 90 + b"\n>c\nAC\n", 3),
        (b">a\nAC\n>b\n" + b"A\n" * 90, 3),
        (b">a\nAC\n>b " + b"words " * 90 + b"\nAC\n", 3),
        (b"\n\n>a\nAC\n>" + b">" * 90 + b"\nAC\n", 5),
        (b"@a\nAC\n+\nII\n@b\n" + b"A" * 90, 5),
        (b"@a\nAC\n+\nII\n@b\nA\n+" + b"A" * 90 + b"\nI\n", 5),
        (b"@a\nAC\n+\nII\n@b\nA\n+\n" + b"I" * 90, 5),
    ],
)
def test_a_record_beyond_the_limit(content: bytes, line: int, block: int):
    limits = Limits(block=min(block, 64), record=64)
    found, failure = until_failure(read_contigs("-", stdin=io.BytesIO(content * 9), limits=limits))
    assert found == [Contig(b"a", b"AC")]
    assert isinstance(failure, TooLarge)
    assert failure.line == line
    assert str(failure) == (
        f"-: line {line}: a record of more than 64 letters, header and line ends included, is not read. "
        "Cut it into several, or leave it out"
    )


@EACH_BLOCK
@pytest.mark.parametrize("write", [as_fasta, as_fastq])
def test_a_file_of_records_within_the_limit_may_be_far_larger(block: int, write):
    records = some_records(90)
    assert read(write(records), Limits(block=block, record=700)) == records


@pytest.mark.parametrize("mark", [b">", b"@"])
def test_a_long_id_is_read_and_a_longer_one_is_not(mark: bytes):
    assert read(mark + b"i" * (1 << 17) + b" words\nA\n" + b"+\nI\n" * (mark == b"@"))
    text = b"%ba\nA\n" % mark + b"+\nI\n" * (mark == b"@")
    content = text + text.replace(b"a", b"i" * 131_073)
    found, failure = until_failure(read_contigs("-", stdin=io.BytesIO(content)))
    assert found == [Contig(b"a", b"A")]
    assert isinstance(failure, TooLarge)
    assert failure.reason == (
        f"line {text.count(bytes([10])) + 1}: an id of 131,073 letters; at most 131,072 are read. Shorten it"
    )

import bz2
import gc
import gzip
import io
import lzma
import os
import random
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import dnaio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import wrapped

from virnuc_async.errors import BrokenInput, InputError, NotSequences, TooLarge, UnreadableInput
from virnuc_async.sequences import inputs as sequences
from virnuc_async.sequences.inputs import Contig, list_sequence_files, read_contigs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class Form(NamedTuple):
    """A way to compress, and what a test has to know of it."""

    pack: Callable[[bytes], bytes]
    unpacker: Callable[[], object]
    header: int  # bytes before the data


FORMS = {
    "gz": Form(gzip.compress, lambda: zlib.decompressobj(31), 10),
    "bz2": Form(lambda text: bz2.compress(text, 1), bz2.BZ2Decompressor, 4),
    "xz": Form(lzma.compress, lzma.LZMADecompressor, 12),
    "zst": Form(zstd.compress, zstd.ZstdDecompressor, 4),
}
EACH_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
EACH_BLOCK = pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 20])


def read(content: bytes) -> list[tuple[bytes, bytes]]:
    return [(contig.id, contig.bases) for contig in read_contigs("-", io.BytesIO(content))]


def some_records(count: int, seed: int = 0) -> list[Contig]:
    rng = random.Random(seed)
    return [Contig(b"r%d" % i, bytes(rng.choices(b"ACGT", k=rng.randint(1, 300)))) for i in range(count)]


def as_fasta(records: list[Contig]) -> bytes:
    return b"".join(b">%s\n%s\n" % (record.id, record.bases) for record in records)


def as_fastq(records: list[Contig]) -> bytes:
    return b"".join(b"@%s\n%s\n+\n%s\n" % (r.id, r.bases, b"I" * len(r.bases)) for r in records)


def read_until_failure(path: Path) -> tuple[list[Contig], InputError]:
    return until_failure(read_contigs(str(path)))


def until_failure(contigs: Iterator[Contig]) -> tuple[list[Contig], InputError]:
    found = []
    while True:
        try:
            found.append(next(contigs))
        except InputError as failure:
            return found, failure


# What is read


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
def test_fasta(content: bytes, records: list[tuple[bytes, bytes]], block: int, monkeypatch):
    monkeypatch.setattr(sequences, "_BLOCK", block)
    assert read(content) == records


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
def test_fastq(content: bytes, records: list[tuple[bytes, bytes]], block: int, monkeypatch):
    monkeypatch.setattr(sequences, "_BLOCK", block)
    assert read(content) == records


@pytest.mark.parametrize("write", [as_fasta, as_fastq])
@EACH_FORM
def test_compression_is_told_by_content_and_not_by_name(form: Form, write, tmp_path: Path):
    records = some_records(200)
    for name in ("reads.fa", "reads.gz", "reads.zst"):
        path = tmp_path / name
        path.write_bytes(form.pack(write(records)))
        assert list(read_contigs(str(path))) == records
    path = tmp_path / "reads.gz"
    path.write_bytes(write(records))
    assert list(read_contigs(str(path))) == records


@EACH_FORM
def test_several_members_are_one_file(form: Form, tmp_path: Path):
    records = some_records(90)
    text = as_fasta(records)
    path = tmp_path / "reads"
    path.write_bytes(b"".join(form.pack(part) for part in (text[:777], text[777:5_000], text[5_000:])))
    assert list(read_contigs(str(path))) == records


@EACH_FORM
@pytest.mark.parametrize("block", [1, 100])
def test_text_that_unpacks_to_far_more_than_a_block(form: Form, block: int, monkeypatch):
    records = [Contig(b"a", b"A" * 9_000), Contig(b"b", b"GT" * 9_000)]
    monkeypatch.setattr(sequences, "_BLOCK", block)
    assert list(read_contigs("-", io.BytesIO(form.pack(as_fasta(records)) * 2))) == records * 2


@EACH_FORM
def test_what_stands_behind_the_last_member(form: Form, tmp_path: Path):
    records = some_records(9)
    path = tmp_path / "reads"
    path.write_bytes(form.pack(as_fasta(records)) + b"something else" * 9)
    found, failure = read_until_failure(path)
    assert found == records[:-1]
    assert isinstance(failure, BrokenInput)


@pytest.mark.parametrize("name", ["gz", "xz"])
def test_padding_behind_a_member_is_no_failure(name: str, tmp_path: Path):
    records = some_records(9)
    path = tmp_path / "reads"
    member = FORMS[name].pack(as_fasta(records))
    path.write_bytes(member + bytes(20_000) + member + bytes(4))
    assert list(read_contigs(str(path))) == records * 2


@EACH_FORM
def test_an_empty_compressed_file_has_no_records(form: Form, tmp_path: Path):
    path = tmp_path / "reads"
    path.write_bytes(form.pack(b""))
    assert list(read_contigs(str(path))) == []


@EACH_FORM
def test_standard_input_may_be_compressed(form: Form):
    records = some_records(50)
    assert list(read_contigs("-", io.BytesIO(form.pack(as_fasta(records))))) == records


def test_standard_input_through_a_pipe():
    records = some_records(50)
    receiving, sending = os.pipe()
    os.write(sending, as_fastq(records))
    os.close(sending)
    with open(receiving, "rb") as stream:
        assert list(read_contigs("-", stream)) == records


@pytest.mark.parametrize("wrap", [io.BytesIO, lambda content: io.BufferedReader(io.BytesIO(content))])
def test_standard_input_is_not_closed(wrap):
    stream = wrap(b">a\nAC\n")
    assert list(read_contigs("-", stream)) == [Contig(b"a", b"AC")]
    gc.collect()
    assert not stream.closed
    assert stream.read() == b""


@EACH_FORM
def test_a_reader_that_is_given_up_closes_its_file(form: Form, tmp_path: Path):
    path = tmp_path / "reads"
    path.write_bytes(form.pack(as_fasta(some_records(50))))
    contigs = read_contigs(str(path))
    assert next(contigs).id == b"r0"
    contigs.close()
    gc.collect()  # a file left open would warn here, and warnings are errors
    assert not [link for link in Path("/proc/self/fd").glob("*") if _target(link) == str(path)]


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "_BLOCK", block)
        assert read(content) == [(i, as_read(bases)) for i, _, bases in records]


@given(st.lists(st.tuples(IDS, WORDS, BASES), max_size=8), ENDS, st.integers(1, 40))
def test_fastq_written_in_any_way_reads_the_same(records, end, block):
    content = b"".join(
        b"@%s%s\n%s\n+%s\n%s\n"
        % (i, words, bases.encode(), i, b"@+>I~!"[: len(bases)].ljust(len(bases), b"@"))
        for i, words, bases in records
    ).replace(b"\n", end.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "_BLOCK", block)
        assert read(content) == [(i, as_read(bases)) for i, _, bases in records]


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
        wanted = [(record.id.encode(), record.sequence.encode()) for record in reader]
    assert read(content) == wanted


@given(PLAIN)
def test_plain_fastq_reads_as_dnaio_reads_it(records):
    content = "".join(f"@{name} x\n{bases}\n+\n{'I' * len(bases)}\n" for name, bases in records).encode()
    with dnaio.open(io.BytesIO(content)) as reader:
        wanted = [(record.id.encode(), record.sequence.encode()) for record in reader]
    assert read(content) == wanted


# What cannot be read

NO_DNA = "is not a nucleotide letter (is this protein or text?)"


@EACH_BLOCK
@pytest.mark.parametrize(
    ("content", "before", "line", "reason"),
    [
        (b"hello\n", 0, 1, "expected '>' (FASTA) or '@' (FASTQ), saw 'hello'"),
        (b"\n\n  hello\n", 0, 3, "expected '>' (FASTA) or '@' (FASTQ), saw 'hello'"),
        (b"ACGT", 0, 1, "expected '>' (FASTA) or '@' (FASTQ), saw 'ACGT'"),
        (b"\x89PNG\r\n\x1a\n", 0, 1, "expected '>' (FASTA) or '@' (FASTQ), saw '\\x89PNG'"),
        (b"\xff\xfe>\0a\0\n\0", 0, 1, "expected '>' (FASTA) or '@' (FASTQ), saw 'ÿþ>\\x00a\\x00'"),
        (b"x" * 99, 0, 1, f"expected '>' (FASTA) or '@' (FASTQ), saw '{'x' * 30}'"),
        (b">a\nMKVLAAGE\n", 0, 2, f"'L' {NO_DNA}"),
        (b">a\nAC\n>b\nAC\nGT\nACEGT\n>c\nAC\n", 1, 6, f"'E' {NO_DNA}"),
        (b"\n\n>a\nAC\n\n>b\n\nA1\n", 1, 8, f"'1' {NO_DNA}"),
        (b">a\r\nAC\r\nA*\r\n", 0, 3, f"'*' {NO_DNA}"),
        (b">a\nAC\n>b>\nA>C\n", 1, 4, f"'>' {NO_DNA}"),
        (b">a\nAC\0GT\n", 0, 2, f"'\\x00' {NO_DNA}"),
        (b">a\nAC\xe9\n", 0, 2, f"'é' {NO_DNA}"),
        (b">a\nAC\n@b\nAC\n+\nII\n", 0, 3, f"'@' {NO_DNA}"),
        (b"@a\nAC\n+\nII\nb\nAC\n+\nII\n", 1, 5, "expected '@' and an id, saw 'b'"),
        (b"@a\nAC\n+\nII\n\n@b\nAC\n+\n", 1, 5, "expected '@' and an id, saw an empty line"),
        (b"@a\nAC\nGT\n+\nIIII\n", 0, 3, "expected '+', saw 'GT'"),
        (b"@a\nAC\n\nII\n", 0, 3, "expected '+', saw an empty line"),
        (b"@a\nAC\n+\nIII\n", 0, 4, "the quality line is not as long as the bases"),
        (b"\n@a\nA\n+\nI\n@b\nAJ\n+\nII\n", 1, 7, f"'J' {NO_DNA}"),
        (b"@SQ\tSN:chr1\n@PG\tID:x\nr1\t0\t*\nr2\t0\t*\n", 0, 3, "expected '+', saw 'r1\\t0\\t*'"),
    ],
)
def test_what_is_no_dna_is_said_with_its_line(content, before, line, reason, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "_BLOCK", block)
        found, failure = until_failure(read_contigs("-", io.BytesIO(content)))
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
def test_fastq_that_ends_within_a_record_keeps_those_before(lines: int, block: int, monkeypatch, tmp_path):
    monkeypatch.setattr(sequences, "_BLOCK", block)
    records = some_records(3)
    path = tmp_path / "reads.fq"
    path.write_bytes(as_fastq(records[:2]) + b"\n".join(as_fastq(records[2:]).split(b"\n")[:lines]))
    found, failure = read_until_failure(path)
    assert found == records[:2]
    assert isinstance(failure, BrokenInput)
    assert failure.records == 2
    assert str(failure) == f"{path}: breaks after 2 records: line 9: the last record ends early"


@pytest.mark.parametrize("write", [as_fasta, as_fastq])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@EACH_FORM
def test_a_truncated_file_keeps_all_records_that_can_be_had(form: Form, share: float, write, tmp_path: Path):
    records = some_records(3_000)
    packed = form.pack(write(records))
    packed = packed[: int(len(packed) * share)]
    text = form.unpacker().decompress(packed)
    # The last record in the text may go on behind the break, so it does not count.
    whole = text.count(b"\n>") if write is as_fasta else text.count(b"\n") // 4
    assert whole > 0
    path = tmp_path / "reads"
    path.write_bytes(packed)
    found, failure = read_until_failure(path)
    assert found == records[:whole]
    assert isinstance(failure, BrokenInput)
    assert failure.records == whole
    assert str(failure).startswith(f"{path}: breaks after {whole:,} records: ")
    assert "ended before the end-of-stream marker" in str(failure)


@EACH_FORM
def test_a_corrupted_file_keeps_the_records_before_the_break(form: Form, tmp_path: Path):
    records = some_records(600)
    damaged = form.pack(as_fasta(records[400:]))
    damaged = damaged[: form.header] + b"\xff" * (len(damaged) - form.header)
    path = tmp_path / "reads"
    path.write_bytes(form.pack(as_fasta(records[:200])) + form.pack(as_fasta(records[200:400])) + damaged)
    found, failure = read_until_failure(path)
    assert found == records[:399]  # the 400th might have gone on
    assert isinstance(failure, BrokenInput)
    assert failure.records == 399
    assert len(failure.reason) > len("breaks after 399 records: ")


@EACH_FORM
@pytest.mark.parametrize("size", [3, 8, 14])
def test_a_file_that_breaks_in_its_first_bytes(form: Form, size: int, tmp_path: Path):
    path = tmp_path / "reads"
    path.write_bytes(form.pack(as_fasta(some_records(9)))[: max(size, form.header // 2)])
    found, failure = read_until_failure(path)
    assert found == []
    assert isinstance(failure, BrokenInput | NotSequences)


def test_a_wrong_checksum_is_a_break(tmp_path: Path):
    records = some_records(5)
    packed = bytearray(gzip.compress(as_fasta(records)))
    packed[-8] ^= 1
    path = tmp_path / "reads.gz"
    path.write_bytes(packed)
    found, failure = read_until_failure(path)
    assert found == records[:4]
    assert "CRC check failed" in str(failure)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(UnreadableInput) as caught:
        next(read_contigs(str(tmp_path / "no.fa")))
    assert str(caught.value) == f"{tmp_path / 'no.fa'}: No such file or directory"


def test_a_directory_is_not_read(tmp_path: Path):
    with pytest.raises(UnreadableInput) as caught:
        next(read_contigs(str(tmp_path)))
    assert str(caught.value) == f"{tmp_path}: a directory without sequence files"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path):
    path = tmp_path / "reads.fa"
    path.touch(mode=0)
    with pytest.raises(UnreadableInput, match="Permission denied"):
        next(read_contigs(str(path)))


def test_no_standard_input():
    with pytest.raises(UnreadableInput) as caught:
        next(read_contigs("-"))
    assert str(caught.value) == "-: no standard input was handed over"


class Failing(io.RawIOBase):
    """A device that gives *content* and then fails."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not self._content:
            raise OSError(5, "Input/output error")
        buffer[: len(self._content)] = self._content
        size, self._content = len(self._content), b""
        return size


def test_a_device_that_fails_half_way():
    found, failure = until_failure(read_contigs("-", Failing(b">a\nAC\n>b\nGT\n>c\nA")))
    assert found == [Contig(b"a", b"AC"), Contig(b"b", b"GT")]
    assert isinstance(failure, BrokenInput)
    assert str(failure) == "-: breaks after 2 records: Input/output error"


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
def test_a_record_beyond_the_limit(content: bytes, line: int, block: int, monkeypatch):
    monkeypatch.setattr(sequences, "_BLOCK", min(block, 64))
    monkeypatch.setattr(sequences, "LARGEST_RECORD", 64)
    found, failure = until_failure(read_contigs("-", io.BytesIO(content * 9)))
    assert found == [Contig(b"a", b"AC")]
    assert isinstance(failure, TooLarge)
    assert failure.line == line
    assert str(failure) == (
        f"-: line {line}: a record of more than 64 letters, header and line ends included, is not read. "
        "Cut it into several, or leave it out"
    )


@EACH_BLOCK
@pytest.mark.parametrize("write", [as_fasta, as_fastq])
def test_a_file_of_records_within_the_limit_may_be_far_larger(block: int, write, monkeypatch):
    monkeypatch.setattr(sequences, "_BLOCK", block)
    monkeypatch.setattr(sequences, "LARGEST_RECORD", 700)
    records = some_records(90)
    assert read(write(records)) == records


@pytest.mark.parametrize("mark", [b">", b"@"])
def test_a_long_id_is_read_and_a_longer_one_is_not(mark: bytes):
    assert read(mark + b"i" * (1 << 17) + b" words\nA\n" + b"+\nI\n" * (mark == b"@"))
    text = b"%ba\nA\n" % mark + b"+\nI\n" * (mark == b"@")
    found, failure = until_failure(read_contigs("-", io.BytesIO(text + text.replace(b"a", b"i" * 131_073))))
    assert found == [Contig(b"a", b"A")]
    assert isinstance(failure, TooLarge)
    assert failure.reason == (
        f"line {text.count(bytes([10])) + 1}: an id of 131,073 letters; at most 131,072 are read. Shorten it"
    )


# What changes while it is read


def appended(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b">more\nAC\n")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replaced(path: Path) -> None:
    shutil.copy(path, path.with_name("new"))
    path.with_name("new").replace(path)


def rewritten(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b">x")


CHANGES = pytest.mark.parametrize("change", [appended, truncated, replaced, rewritten, Path.unlink])


@CHANGES
@pytest.mark.parametrize("pack", [bytes, FORMS["gz"].pack, FORMS["zst"].pack])
def test_a_file_that_changes_while_it_is_read(change, pack, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sequences, "_BLOCK", 64)
    records = some_records(3_000)
    path = tmp_path / "reads"
    path.write_bytes(pack(as_fasta(records)))
    os.utime(path, (1e9, 1e9))
    contigs = read_contigs(str(path))
    assert [next(contigs) for _ in range(50)] == records[:50]
    change(path)
    found, failure = until_failure(contigs)
    assert records[50:60] == found[:10]
    assert isinstance(failure, BrokenInput)
    # Half of a compressed file, or one with something behind it, says itself that it breaks.
    if change not in (appended, truncated) or pack is bytes:
        assert failure.records == 50 + len(found)
        assert failure.reason.endswith("it changed while it was being read")


def test_a_file_that_changes_in_size_only_behind_its_back(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sequences, "_BLOCK", 64)
    path = tmp_path / "reads"
    path.write_bytes(as_fasta(some_records(90)))
    facts = path.stat()
    contigs = read_contigs(str(path))
    next(contigs)
    appended(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert isinstance(until_failure(contigs)[1], BrokenInput)


def test_a_file_that_is_only_looked_at_has_not_changed(tmp_path: Path):
    path = tmp_path / "reads"
    path.write_bytes(as_fasta(some_records(90)))
    contigs = read_contigs(str(path))
    next(contigs)
    path.chmod(0o444)
    path.read_bytes()
    (tmp_path / "link").hardlink_to(path)
    assert len(list(contigs)) == 89


def test_a_pipe_has_no_size_that_could_change(tmp_path: Path):
    receiving, sending = os.pipe()
    os.write(sending, b">a\nAC\n>b\nAC\n")
    contigs = read_contigs(f"/dev/fd/{receiving}")
    os.close(sending)
    assert len(list(contigs)) == 2
    os.close(receiving)


def test_a_device_that_fails_at_once():
    with pytest.raises(UnreadableInput) as caught:
        next(read_contigs("-", Failing(b"")))
    assert str(caught.value) == "-: Input/output error"


# Which files


def test_a_directory_stands_for_its_sequence_files_sorted(tmp_path: Path):
    wanted = ["B.FASTA", "a.fa", "c.fq.gz", "d.fna.ZST", "noname", "packed"]
    for name in wanted[:4]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "noname").write_bytes(b">a\nAC\n")
    (tmp_path / "packed").write_bytes(gzip.compress(b"@a\nAC\n+\nII\n"))
    (tmp_path / "README.md").write_bytes(b"# Reads\n")
    (tmp_path / "table.tsv.gz").write_bytes(gzip.compress(b"a\tb\n"))
    (tmp_path / "broken.gz").write_bytes(gzip.compress(b">a\nAC\n")[:10])
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / ".hidden.fa").write_bytes(b">a\nAC\n")
    (tmp_path / "deeper.fa").mkdir()
    (tmp_path / "deeper.fa" / "e.fa").write_bytes(b">a\nAC\n")
    os.mkfifo(tmp_path / "pipe.fa")
    assert list(list_sequence_files([tmp_path])) == [str(tmp_path / name) for name in wanted]


def test_files_directories_and_standard_input_keep_their_order(tmp_path: Path):
    for name in ("in/b.fa", "in/a.fa", "one.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b">a\nAC\n")
    inputs = [tmp_path / "one.txt", "-", tmp_path / "in", tmp_path / "missing.fa"]
    wanted = [tmp_path / "one.txt", "-", tmp_path / "in/a.fa", tmp_path / "in/b.fa", tmp_path / "missing.fa"]
    assert list(list_sequence_files(inputs)) == [str(each) for each in wanted]


def test_a_directory_without_sequences_is_complained_about_when_read(tmp_path: Path):
    (tmp_path / "README").write_bytes(b"nothing here\n")
    assert list(list_sequence_files([tmp_path])) == [str(tmp_path)]
    with pytest.raises(UnreadableInput, match="a directory without sequence files"):
        list(read_contigs(*list_sequence_files([tmp_path])))


@pytest.mark.parametrize("blank", [1, 3, 4, 9])
def test_fastq_may_end_with_blank_lines(tmp_path: Path, blank: int) -> None:
    path = tmp_path / "reads.fq"
    path.write_bytes(b"@a\nGC\n+\nII\n@b\nGA\n+\nII\n" + b"\n" * blank)
    assert [contig.bases for contig in read_contigs(str(path))] == [b"GC", b"GA"]
    path.write_bytes(b"@a\nGC\n+\nII\n" + b"\n" * 4 + b"@b\nG?\n+\nII\n")
    with pytest.raises(NotSequences, match="line 10: '[?]' is not a nucleotide letter"):
        list(read_contigs(str(path)))

"""Files of other formats: each is named, with the command that makes it readable."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sequence_files import EACH_BLOCK, FORMS, read, until_failure

from virnuc_async.errors import BrokenInput, NotSequences
from virnuc_async.sequences.fastx import Limits
from virnuc_async.sequences.inputs import read_contigs

FASTA = b">a some words\nACGTACGT\n>b\nGG\n"
FASTQ = b"@a some words\nACGTACGT\n+\nIIIIIIII\n@b\nGG\n+\nII\n"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("reads.fa", FASTA)
    return file.getvalue()


def tarred(kind: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        entry = tarfile.TarInfo("reads.fa")
        entry.size = len(FASTA)
        archive.addfile(entry, io.BytesIO(FASTA))
    return file.getvalue()


SAM = b"@HD\tVN:1.6\tSO:unsorted\n@SQ\tSN:chr1\n@PG\tID:x\nr1\t0\tchr1\t1\t60\t4M\t*\t0\t0\tACGT\tIIII\n"
GENBANK = b"LOCUS       NC_1   60 bp    DNA     linear   VRL 01-JAN-2025\nORIGIN\n        1 acgtacgtac\n//\n"
EMBL = b"ID   X56734; SV 1; linear; mRNA; STD.\nSQ   Sequence 12 BP;\n     acgtacgtac gt   12\n//\n"
HTML = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
XML = b'<?xml version="1.0"?>\n<TSeqSet><TSeq_sequence>ACGT</TSeq_sequence></TSeqSet>\n'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (FASTA.decode().encode("utf-16"), 1, "UTF-16 text. Convert it first: iconv -f UTF-16"),
        (b"\xfe\xff" + FASTA.decode().encode("utf-16-be"), 1, "UTF-16 text. Convert"),
        (FASTQ.decode().encode("utf-16"), 1, "UTF-16 text. Convert"),
        (FASTA.decode().encode("utf-16-be"), 1, "UTF-16 text. Convert"),
        (FASTA.decode().encode("utf-16-le"), 2, "UTF-16 text. Convert"),
        (FASTA.replace(b"\n", b"\r\n").decode().encode("utf-16-le"), 2, "UTF-16 text. Convert"),
        (FASTQ.decode().encode("utf-16-le"), 3, "expected '+', saw '\\x00+\\x00': UTF-16 text. Convert"),
        (FASTA.decode().encode("utf-32"), 1, "UTF-32 text. Convert it first: iconv -f UTF-32"),
        (
            gzip.compress(gzip.compress(FASTA)),
            1,
            "a compressed file within a compressed file. ",
        ),
        (gzip.compress(bz2.compress(FASTA)), 1, "a compressed file within a compressed file. "),
        (bz2.compress(lzma.compress(FASTA)), 1, "a compressed file within a compressed file. "),
        (
            lzma.compress(FORMS["zst"].pack(FASTA)),
            1,
            "a compressed file within a compressed file. ",
        ),
        (zipped(), 1, "a ZIP archive. Extract its files first: unzip IN.zip"),
        (tarred(tarfile.GNU_FORMAT), 1, "a tar archive. Extract its files first: tar -xf IN.tar"),
        (tarred(tarfile.PAX_FORMAT), 1, "a tar archive. Extract its files first: tar -xf IN.tar"),
        (gzip.compress(tarred(tarfile.USTAR_FORMAT)), 1, "a tar archive. Extract its files first: tar -xf"),
        (HTML, 2, "a web page (HTML). The download went wrong, or needs a login: get the file again"),
        (gzip.compress(HTML), 2, "a web page (HTML). The download went wrong, or needs a login"),
        (XML, 1, "an XML file. Download the sequences in FASTA"),
        (GENBANK, 1, "a GenBank file. Convert it first: seqret -sformat genbank"),
        (EMBL, 1, "an EMBL file. Convert it first: seqret -sformat embl"),
        (lzma.compress(b"BAM\1" + bytes(20)), 1, "a BAM file. Convert it first: samtools fastq"),
        (bz2.compress(b"CRAM\3\0" + bytes(20)), 1, "a CRAM file. Convert it first: samtools fastq"),
        (
            lzma.compress(SAM),
            3,
            "expected '+', saw '@PG\\tID:x': a SAM file. Convert it first: samtools fastq",
        ),
        (lzma.compress(SAM.split(b"\n")[3]), 1, "a SAM file. Convert it first: samtools fastq"),
        (b"%PDF-1.7\n%\xe2\xe3\n", 1, "a PDF document. Save its sequences as plain text in FASTA"),
        (b"{\\rtf1\\ansi >a\\par ACGT}", 1, "a rich text document. Save it as plain text"),
        (LFS, 1, "a pointer of Git LFS and not the file itself. Get that first: git lfs pull"),
        (b'{"id": "a", "seq": "ACGT"}\n', 1, "a JSON file. Give the sequences in FASTA"),
        (b"H\tVN:Z:1.0\nS\t1\tACGT\n", 1, "an assembly graph (GFA). Convert it first: gfatools"),
        (b"S\t1\tACGT\n", 1, "an assembly graph (GFA). Convert it first: gfatools"),
        (b"##gff-version 3\n", 1, "a GFF file. Give the FASTA file of its sequences"),
        (b" 2 4\na         ACGT\nb         ACGT\n", 1, "a PHYLIP alignment. Convert it first: seqret"),
        (b";a comment\n>a\nACGT\n", 1, "FASTA with comments. Remove them first: grep -v"),
        (b">a\nMKVLAAGE\n", 2, "'L' is not a nucleotide letter (is this protein or text?)"),
        (b"hello\n", 1, "expected '>' (FASTA) or '@' (FASTQ), saw 'hello'"),
        (b"\x89PNG\r\n\x1a\n", 1, "expected '>' (FASTA) or '@' (FASTQ), saw '\\x89PNG'"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,  # archives hold the time
)
def test_the_failure_says_what_it_is(content: bytes, line: int, reason: str, tmp_path: Path):
    path = tmp_path / "reads.fa"
    path.write_bytes(content)
    for limits in (Limits(), Limits(7)):
        found, failure = until_failure(read_contigs(str(path), limits=limits))
        assert not found
        assert isinstance(failure, NotSequences)
        assert str(failure).startswith(f"{path}: line {line}: {reason}")


@EACH_BLOCK
@pytest.mark.parametrize("change", [bytes, lambda text: text.replace(b"\n", b"\r\n")])
def test_fastq_of_several_lines(change: Callable[[bytes], bytes], block: int):
    wrapped = b"@a\nAC\n+\nII\n@b\nACGT\nACGT\nA\n+\nIIII\nIIII\nI\n"
    found, failure = until_failure(read_contigs("-", stdin=io.BytesIO(change(wrapped)), limits=Limits(block)))
    assert [contig.id for contig in found] == [b"a"]
    assert str(failure) == (
        "-: line 7: expected '+', saw 'ACGT': the bases are on several lines; FASTQ is read with four lines "
        "per record. Convert it first: seqtk seq -l0 IN.fq > OUT.fq"
    )


def test_a_header_of_sam_alone():
    found, failure = until_failure(read_contigs("-", stdin=io.BytesIO(lzma.compress(SAM[:40]))))
    assert not found
    assert isinstance(failure, BrokenInput)
    assert failure.reason.endswith(": a SAM file. Convert it first: samtools fastq IN.sam > OUT.fq")


def test_what_only_resembles_another_format_is_read():
    assert read(b"@SQ x\nAC\n+\nII\n") == [(b"SQ", b"AC")]
    assert read(b">LOCUS <html> {\nAC\n") == [(b"LOCUS", b"AC")]

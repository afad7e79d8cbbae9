"""Reads from BAM, CRAM and SAM: the same as from FASTQ, whatever else is in the file."""

import gzip
import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import log, predict, run, tables
from support import read_table

from virnuc_async.errors import BrokenInput, InputError, UnreadableInput
from virnuc_async.sequences.alignments import Notes
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.inputs import has_mates, open_records, read_contigs
from virnuc_async.sequences.listing import list_inputs
from virnuc_async.sequences.scan import scan_file
from virnuc_async.sequences.segments import START, SeekPoint

pysam = pytest.importorskip("pysam", reason="the extra [bam] is not installed")

HEADER = pysam.AlignmentHeader.from_dict(
    {"HD": {"VN": "1.6"}, "SQ": [{"SN": "contig", "LN": 9999}], "RG": [{"ID": "lane 1"}]}
)
UNALIGNED, PAIRED, REVERSE, FIRST, SECOND, SECONDARY, SUPPLEMENTARY = 4, 1, 16, 64, 128, 256, 2048
MODES = {"bam": "wb", "uncompressed bam": "wbu", "sam": "wh", "cram": "wc"}
READS = [(f"read{number}", "GCATTC" * (3 + number % 40) + "ACGTN"[: number % 5]) for number in range(300)]

Reads = Iterable[tuple[str, str] | tuple[str, str, int]]


def write(path: Path, reads: Reads, mode: str = "wb") -> Path:
    """Write *reads*, (name, bases, flags), not aligned unless the flags say so."""
    options = {"format_options": [b"no_ref"]} if mode == "wc" else {}
    with pysam.AlignmentFile(str(path), mode, header=HEADER, **options) as file:
        for name, bases, *flags in reads:
            record = pysam.AlignedSegment(HEADER)
            record.query_name, record.flag = name, flags[0] if flags else UNALIGNED
            record.query_sequence = bases or None
            if bases:
                record.query_qualities = pysam.qualitystring_to_array("I" * len(bases))
            if not record.flag & UNALIGNED:
                record.reference_id, record.reference_start = 0, 5
                record.cigarstring = f"{len(bases)}M" if bases else None
            file.write(record)
    return path


def fastq(reads: Reads) -> bytes:
    return "".join(f"@{name}\n{bases}\n+\n{'I' * len(bases)}\n" for name, bases, *_ in reads).encode()


def contigs(reads: Reads) -> list[Contig]:
    return [Contig(name.encode(), bases.encode()) for name, bases, *_ in reads]


def until_failure(path: Path, **options: Any) -> tuple[list[Contig], InputError | None]:
    found: list[Contig] = []
    try:
        found.extend(read_contigs(str(path), **options))
    except InputError as error:
        return found, error
    return found, None


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_reads_are_those_of_the_file(mode: str, tmp_path: Path) -> None:
    path = write(tmp_path / "reads", READS, mode)
    assert until_failure(path) == (contigs(READS), None)
    with open(path, "rb") as stdin:
        assert list(read_contigs("-", stdin=stdin)) == contigs(READS)
    assert list(read_contigs("-", stdin=io.BytesIO(path.read_bytes()))) == contigs(READS)  # type: ignore[arg-type]


@pytest.mark.parametrize("pack", [gzip.compress, None], ids=["gzip", "bgzip"])
def test_sam_that_is_compressed(pack: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    path = write(tmp_path / "reads.sam", READS, "wh")
    if pack is None:
        pysam.tabix_compress(str(path), str(tmp_path / "packed"))
    else:
        (tmp_path / "packed").write_bytes(pack(path.read_bytes()))
    assert until_failure(tmp_path / "packed") == (contigs(READS), None)


def test_sam_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_text("a\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\tIIII\nb\t4\t*\t0\t0\t*\t*\t0\t0\tAC\tII\n")
    assert until_failure(path) == (contigs([("a", "ACGT"), ("b", "AC")]), None)


def test_each_read_once_and_as_it_was_sequenced(tmp_path: Path) -> None:
    reads = [
        ("a", "AACCG", 0),
        ("a", "AACC", SECONDARY),
        ("b", "AACCN", REVERSE),
        ("b", "AAC", SUPPLEMENTARY),
        ("b", "AAC", SUPPLEMENTARY | SECONDARY),
        ("c", "", UNALIGNED),
        ("d", "AA", PAIRED | FIRST | UNALIGNED),
        ("d", "TT", PAIRED | SECOND | UNALIGNED),
    ]
    said: list[str] = []
    notes = Notes()
    notes.listener = said.append
    path = write(tmp_path / "reads.bam", reads)
    found, failure = until_failure(path, notes=notes)
    assert failure is None
    expected = [("a", "AACCG"), ("b", "NGGTT"), ("c", ""), ("d", "AA"), ("d", "TT")]
    assert found == contigs(expected)
    assert notes.kinds == {str(path): "reads"}
    assert said == [f"{path}: left out 1 secondary record and 2 supplementary records, which repeat reads"]


@pytest.mark.parametrize("mode", ["wb", "wh", "wc"])
def test_without_records(mode: str, tmp_path: Path) -> None:
    path = write(tmp_path / "reads", [], mode)
    assert until_failure(path) == ([], None)
    assert predict(path, tmp_path / "out").code == 0
    assert (tmp_path / "out" / "contigs.tsv").read_text().count("\n") == 1


@pytest.mark.parametrize("mode", ["wb", "wbu", "wc"])
def test_a_file_that_is_cut(mode: str, tmp_path: Path) -> None:
    content = write(tmp_path / "whole", READS * 20, mode).read_bytes()
    path = tmp_path / "reads"
    for size in [
        40,
        200,
        *range(1000, len(content), 1 + len(content) // 12),
        len(content) - 29,
        len(content) - 1,
    ]:
        path.write_bytes(content[:size])
        found, failure = until_failure(path)
        assert isinstance(failure, BrokenInput)
        assert failure.records == len(found)
        assert found == contigs(READS * 20)[: len(found)]


def test_without_the_block_at_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "reads.bam", READS)
    path.write_bytes(path.read_bytes()[:-28])
    assert predict(path, tmp_path / "out").code == 2
    assert (tmp_path / "out" / "failed_files.txt").read_text() == (
        f"{path}|Input|breaks after 300 records: the block that ends a complete file is missing\n"
    )
    assert len(read_table(tmp_path / "out" / "contigs.tsv")) == 301


def test_damage_in_the_middle(tmp_path: Path) -> None:
    path = write(tmp_path / "reads.bam", READS * 20)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found, failure = until_failure(path)
    assert isinstance(failure, BrokenInput)
    assert found == contigs(READS * 20)[: len(found)]


def test_bases_that_are_those_of_the_reference(tmp_path: Path) -> None:
    path = write(tmp_path / "reads.bam", [("a", "ACGT"), ("b", "AC==", 0)])
    found, failure = until_failure(path)
    assert found == contigs([("a", "ACGT")])
    assert str(failure) == (
        f"{path}: breaks after 1 record: a base is '=', the same as in the reference. "
        "Convert the file first: samtools fastq"
    )


def test_the_rest_of_a_file_need_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "reads.bam", READS * 50)
    contig = read_contigs(str(path))
    assert next(contig).id == b"read0"
    contig.close()  # type: ignore[attr-defined]


def test_tables_are_those_of_the_same_reads_in_other_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = READS[:40]
    for number, content in enumerate(
        (fastq(reads), b"".join(b">%s\n%s\n" % one for one in contigs(reads)), b"")
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        monkeypatch.chdir(directory)
        if content:
            Path("reads").write_bytes(content)
        else:
            write(Path("reads"), reads)
        assert predict("reads", "out").code == 0
        assert tables(Path("out")) == tables(tmp_path / "0" / "out")


def mates(count: int) -> list[tuple[str, str, int]]:
    flags = (PAIRED | UNALIGNED | FIRST, PAIRED | UNALIGNED | SECOND)
    return [(f"r{number}", "GCA" * 20, flag) for number in range(count) for flag in flags]


def test_neighbours_are_mates_if_their_flags_say_so(tmp_path: Path) -> None:
    path = write(tmp_path / "reads.bam", mates(5))
    assert has_mates(str(path))
    assert predict(path, tmp_path / "out").code == 0
    assert f"{path}: neighbouring records are paired, as their flags say" in log(tmp_path / "out")
    assert [row[0] for row in read_table(tmp_path / "out" / "pairs.tsv")[1:]] == [f"r{n}" for n in range(5)]
    pairs = (tmp_path / "out" / "pairs.tsv").read_bytes()
    assert (
        predict(path, tmp_path / "out", "--threshold", "0.4").code == 0
    )  # finished: only tables are written
    assert (tmp_path / "out" / "pairs.tsv").read_bytes() == pairs
    assert predict(path, tmp_path / "off", "--pairs", "off").code == 0
    assert not (tmp_path / "off" / "pairs.tsv").exists()


def test_mates_that_are_not_neighbours(tmp_path: Path) -> None:
    path = write(tmp_path / "reads.bam", sorted(mates(5), key=lambda read: read[2]))
    ended = predict(path, tmp_path / "out")
    assert ended.code == 0
    assert ended.err.count("WARNING") == 2  # of the demonstration model, too
    assert (
        f"{path}: not interleaved: records 1 and 2 are 'r0' and 'r1'. Its records are not paired; "
        "'samtools collate -o OUT.bam IN.bam' makes neighbours of mates"
    ) in ended.err
    assert not (tmp_path / "out" / "pairs.tsv").exists()
    assert not (tmp_path / "out" / "failed_files.txt").exists()


def test_reads_without_mates_are_not_paired(tmp_path: Path) -> None:
    path = write(tmp_path / "reads.bam", READS[:6])
    assert not has_mates(str(path))
    assert "paired" not in predict(path, tmp_path / "out").err
    (tmp_path / "reads.fq").write_bytes(fastq(READS[:6]))
    assert not has_mates(str(tmp_path / "reads.fq"))


def test_files_of_a_directory(tmp_path: Path) -> None:
    for name, mode in (("a.bam", "wb"), ("b.cram", "wc"), ("c.sam", "wh")):
        write(tmp_path / name, READS[:2], mode)
    found = list_inputs([tmp_path])
    assert found.paths == tuple(str(tmp_path / name) for name in ("a.bam", "b.cram", "c.sam"))
    assert found.notices == ()


@pytest.mark.parametrize(("kind", "mode"), [("BAM", "wb"), ("CRAM", "wc"), ("SAM", "wh")])
def test_without_pysam(kind: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "reads", READS[:2], mode)
    monkeypatch.setitem(sys.modules, "pysam", None)
    found, failure = until_failure(path)
    assert not found
    assert isinstance(failure, UnreadableInput)
    assert str(failure) == (
        f"{path}: a {kind} file, which needs pysam: pip install 'virnuc-async[bam]'. "
        "Or convert it first: samtools fastq"
    )
    assert run("predict", path, tmp_path / "out", "--devices", "cpu").code == 1
    assert not has_mates(str(path))


def test_htslib_says_nothing_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = pysam.set_verbosity(3)
    path = write(tmp_path / "reads.bam", READS)
    path.write_bytes(path.read_bytes()[:-100])
    assert until_failure(path)[1]
    path.write_bytes(path.read_bytes()[:60])
    assert until_failure(path)[1]
    assert pysam.set_verbosity(before) == 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_the_text_of_a_record_is_fastq(mode: str, tmp_path: Path) -> None:
    path = write(tmp_path / "reads", [*READS[:9], ("none", "")], mode)
    with open_records(str(path)) as records:
        found = [records.text for _ in records.contigs()]
    assert b"".join(map(b"".join, found)) == fastq([*READS[:9], ("none", "")])
    assert [parts[0] for parts in found[:2]] == [b"@read0", b"@read1"]


def test_the_text_of_an_aligned_record_is_as_it_was_sequenced(tmp_path: Path) -> None:
    """Also without qualities."""
    lines = [
        "@SQ\tSN:contig\tLN:9999",
        "a\t16\tcontig\t5\t9\t4M\t*\t0\t0\tAACG\tIJKL",
        "b\t4\t*\t0\t0\t*\t*\t0\t0\tAC\t*",
    ]
    path = tmp_path / "reads.sam"
    path.write_text("".join(f"{line}\n" for line in lines))
    with open_records(str(path)) as records:
        found = [b"".join(records.text) for _ in records.contigs()]
    assert found == [b"@a\nCGTT\n+\nLKJI\n", b'@b\nAC\n+\n""\n']


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_reads_from_one_on(mode: str, tmp_path: Path) -> None:
    reads = [*READS[:50], ("twice", "AACC", SECONDARY), *READS[50:]]
    path = write(tmp_path / "reads", reads, mode)
    for number in (0, 1, 50, 299, 300):
        said: list[str] = []
        notes = Notes()
        notes.listener = said.append
        assert until_failure(path, start=SeekPoint(number), notes=notes) == (contigs(READS)[number:], None)
        assert said == [f"{path}: left out 1 secondary record, which repeat reads"]
    scan = scan_file(str(path))
    assert (scan.records, scan.kind, scan.failure, scan.notes) == (300, "reads", None, tuple(said))
    assert [*np.concatenate([*scan.lengths()])] == [len(bases) for _, bases in READS]
    assert scan.seek_point(250) == START


def test_a_file_of_alignments_that_breaks_does_so_from_any_read_on(tmp_path: Path) -> None:
    path = write(tmp_path / "reads", READS * 9)
    path.write_bytes(path.read_bytes()[:-300])
    found, failure = until_failure(path)
    assert 1 < len(found) < 2700
    scan = scan_file(str(path))
    assert (scan.records, str(scan.failure)) == (len(found), str(failure))
    again, same = until_failure(path, start=SeekPoint(len(found) - 1))
    assert (again, str(same)) == (found[-1:], str(failure))

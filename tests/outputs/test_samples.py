"""The table of inputs, with the sums of reads and of contigs; compared with the other tables."""

from collections import Counter
from pathlib import Path

import pysam
import pytest
from running import log, predict, rows, run, some_reads, summary
from support import DATA, fasta

HEADER = [
    *("file", "kind", "status", "records", "bases", "fragments", "orfs"),
    *("others", "virus", "no_orf", "short", "failures"),
]
LEAST = 100


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return inputs of every kind and state; the names of some say something else."""
    directory = tmp_path_factory.mktemp("inputs")
    reads = some_reads(6, 150)
    fastq = "".join(f"@{name}\n{letters}\n+\n{'I' * len(letters)}\n" for name, letters in reads.items())
    (directory / "reads.txt").write_text(fastq + f"@short\n{'GCA' * 20}\n+\n{'I' * 60}\n")
    (directory / "broken.fq").write_text(
        fasta((f"b{name}", letters) for name, letters in some_reads(3, 300, 7).items()) + ">x\nMEEPLQ\n"
    )
    (directory / "empty.fastq").write_text("")
    (directory / "protein.fa").write_text(">x\nMEEPLQ\n")
    header = pysam.AlignmentHeader.from_dict({"HD": {"VN": "1.6"}})
    with pysam.AlignmentFile(str(directory / "a.bam"), "wb", header=header) as bam:
        for name, letters in some_reads(4, 90, 3).items():
            read = pysam.AlignedSegment(header)
            read.query_name, read.query_sequence, read.flag = f"a{name}", letters, 4
            bam.write(read)
    names = ("reads.txt", "broken.fq", "a.bam", "empty.fastq", "protein.fa")
    return [DATA / "golden" / "upstream" / "input.fa", *(directory / name for name in names)]


@pytest.fixture(scope="module")
def out(inputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples") / "out"
    assert predict(*inputs, out, "--min-length", LEAST).code == 2
    return out


def test_what_is_in_each_input(out: Path, inputs: list[Path], tmp_path: Path) -> None:
    header, *lines = rows(out / "samples.tsv")
    assert header == HEADER
    assert [line[1:3] for line in lines] == [
        ["contigs", "read"],
        ["reads", "read"],
        ["contigs", "broken"],  # FASTA, whatever its name
        ["reads", "read"],
        ["reads", "empty"],
        ["contigs", "failed"],
        ["reads", ""],
        ["contigs", ""],
    ]
    assert predict(*inputs, tmp_path / "all").code == 2
    _, *contigs = rows(tmp_path / "all" / "contigs.tsv")
    file_of = {row[0]: row[1] for row in contigs}
    orfs = Counter(
        file_of[row[0].rpartition("_chunk_")[0]]
        for row in rows(tmp_path / "all" / "prediction_results.txt")[1:]
    )
    failures = Counter(line.split("|")[0] for line in (out / "failed_files.txt").read_text().splitlines())
    for line, path in zip(lines, map(str, inputs), strict=False):
        own = [row for row in contigs if row[1] == path]
        verdicts = Counter(row[9] for row in own if int(row[2]) >= LEAST)
        numbers = [len(own), sum(int(row[2]) for row in own), sum(int(row[3]) for row in own), orfs[path]]
        numbers += [verdicts[label] for label in ("others", "virus", "no_orf")]
        numbers += [len(own) - verdicts.total(), failures[path]]
        assert line[0] == path
        assert list(map(int, line[3:])) == numbers
    for total in lines[-2:]:
        own = [line for line in lines[:-2] if line[1] == total[1]]
        assert total[0] == "*"
        assert list(map(int, total[3:])) == [
            sum(map(int, column)) for column in list(zip(*own, strict=True))[3:]
        ]


def test_reads_and_contigs_are_counted_apart(out: Path) -> None:
    _, *_, reads, contigs = rows(out / "samples.tsv")
    of = dict(zip(HEADER, zip(contigs, reads, strict=True), strict=True))
    records, viral, short = ([int(number) for number in of[name]] for name in ("records", "virus", "short"))
    assert min(*records, *short) > 0
    counts = summary(out)["counts"]
    assert (counts["reads"], counts["viral_reads"], counts["short_reads"]) == (records[1], viral[1], short[1])
    assert (counts["contigs"], counts["viral_contigs"]) == (sum(records), sum(viral))
    shown = [count - few for count, few in zip(records, short, strict=True)]
    assert f"Viral: {viral[0]} of {shown[0]} contigs, {viral[1]} of {shown[1]} reads (" in log(out)
    assert f"in no table: {short[0]} of {records[0]} contigs, {short[1]} of {records[1]} reads\n" in log(out)


def test_it_is_made_again_without_the_inputs(out: Path, tmp_path: Path) -> None:
    assert run("tables", out, "--output", tmp_path / "again").code == 2
    assert (tmp_path / "again" / "samples.tsv").read_bytes() == (out / "samples.tsv").read_bytes()
    assert run("tables", out, "--table", "samples").out.encode() == (out / "samples.tsv").read_bytes()


def test_one_input(tmp_path: Path) -> None:
    reads = "".join(f"@{name}\n{letters}\n+\n{'I' * 90}\n" for name, letters in some_reads(3, 90).items())
    ended = predict("-", tmp_path / "out", stdin=reads.encode())
    assert not (tmp_path / "out" / "samples.tsv").exists()
    viral = sum(row[9] == "virus" for row in rows(tmp_path / "out" / "contigs.tsv"))
    assert f"Viral: {viral} of 3 reads (" in ended.err
    assert summary(tmp_path / "out")["counts"]["reads"] == 3
    assert "reads" not in summary_of_contigs(tmp_path)["counts"]


def summary_of_contigs(tmp_path: Path) -> dict[str, dict[str, int]]:
    (tmp_path / "a.fa").write_text(fasta(some_reads(3, 90).items()))
    assert "of 3 contigs (" in predict(tmp_path / "a.fa", tmp_path / "contigs").err
    return summary(tmp_path / "contigs")

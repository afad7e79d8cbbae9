"""Labels of reads, compared with a slow and simple reading of the alignments and of the calls."""

import gzip
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from running import predict, run
from support import DATA, read_table

from virnuc_async.errors import UsageError
from virnuc_async.outputs.read_labels import COLUMNS
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.settings import LabelRules

pysam = pytest.importorskip("pysam", reason="the extra [reads] is not installed")
pytest.importorskip("duckdb", reason="the extra [reads] is not installed")

SOURCE = DATA / "golden" / "upstream" / "input.fa"
CIGARS = ["50M", "5S45M", "10H40M", "20M5I25M", "20M5D30M", "10=5X35M", "3S10M100N20M17S"]


class Alignment(NamedTuple):
    """A record of a file of alignments."""

    name: str
    flag: int
    contig: int
    quality: int
    cigar: str
    differences: int


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labels") / "out"
    assert predict(SOURCE, out, "--calls").code == 0
    return out


@pytest.fixture(scope="module")
def contigs() -> list[tuple[str, int]]:
    found = [(contig.id.decode(), len(contig.bases)) for contig in read_contigs(str(SOURCE))]
    return [*found, ("not in the run", 500)]


def alignments(contigs: list[tuple[str, int]], count: int) -> list[Alignment]:
    rng = random.Random(1)
    return [
        Alignment(
            f"read{rng.randrange(count // 2)}",
            rng.choice([0, 0, 16, 16, 4, 256, 2048, 1 | 64, 1 | 128 | 16]),
            rng.randrange(len(contigs)),
            rng.choice([0, 4, 5, 60]),
            rng.choice(CIGARS),
            rng.choice([0, 0, 1, 4, 5, 6]),
        )
        for _ in range(count)
    ]


def write(path: Path, contigs: list[tuple[str, int]], records: list[Alignment], mode: str = "wb") -> Path:
    header = pysam.AlignmentHeader.from_dict(
        {"HD": {"VN": "1.6"}, "SQ": [{"SN": name, "LN": length} for name, length in contigs]}
    )
    with pysam.AlignmentFile(str(path), mode, header=header) as file:
        for name, flag, contig, quality, cigar, differences in records:
            record = pysam.AlignedSegment(header)
            record.query_name, record.flag, record.mapping_quality = name, flag, quality
            record.query_sequence = "A" * numbers(cigar, "MIS=X")
            record.reference_id, record.reference_start = contig, 1
            record.cigarstring = None if flag & 4 else cigar
            if differences >= 0:
                record.set_tag("NM", differences)
            file.write(record)
    return path


def numbers(cigar: str, operations: str) -> int:
    """Return the columns of *cigar* with one of *operations*."""
    total, digits = 0, ""
    for letter in cigar:
        if letter.isdigit():
            digits += letter
        else:
            total, digits = total + int(digits) * (letter in operations), ""
    return total


def slow_rows(
    records: list[Alignment], contigs: list[tuple[str, int]], calls: list[list[str]]
) -> list[list[str]]:
    """Return what the table of labels must have, without its header."""
    called = {row[0]: row[1:] for row in calls}
    groups: dict[str, list[Alignment]] = defaultdict(list)
    for record in records:
        if not record.flag & (4 | 256 | 2048):
            groups[record.name].append(record)
    rows = []
    for name, group in groups.items():
        best = max(group, key=lambda record: (record.quality, identity(record)))
        contig, length = contigs[best.contig]
        read = numbers(best.cigar, "MIS=XH")
        coverage = 100 * numbers(best.cigar, "MI=X") / read
        well = best.quality >= 5 and identity(best) >= 90 and coverage >= 80
        fields = called.get(contig, ["Unclassified", *[""] * 8])
        if len({called.get(contigs[record.contig][0], ["Unclassified"])[0] for record in group}) > 1:
            fields = ["Multi-mapped", "review", *fields[2:]]
        place = [contig, str(length), "-" if best.flag & 16 else "+", str(best.quality)]
        fit = [f"{identity(best):.3f}", f"{coverage:.3f}", str(well)]
        rows.append([name, str(read), *place, *fit, *fields])
    return rows


def identity(record: Alignment) -> float:
    length = numbers(record.cigar, "MID=X")
    return 100 * (length - record.differences) / length


@pytest.mark.parametrize("mode", ["wb", "wh"])
def test_labels_are_those_of_the_simple_implementation(
    mode: str, finished: Path, contigs: list[tuple[str, int]], tmp_path: Path
) -> None:
    records = alignments(contigs, 600)
    path = write(tmp_path / "reads", contigs, records, mode)
    ended = run("label-reads", finished, "--bam", path, "--output", tmp_path / "labels.tsv")
    assert (ended.code, ended.err) == (0, "")
    header, *rows = read_table(tmp_path / "labels.tsv")
    assert header == list(COLUMNS)
    assert rows == slow_rows(records, contigs, read_table(finished / "contig_calls.tsv")[1:])
    assert {row[9] for row in rows} == {"Viral", "Non-viral", "Ambiguous", "Unclassified", "Multi-mapped"}
    assert {row[8] for row in rows} == {"True", "False"}
    count = sum(row[9] == "Viral" for row in rows)
    assert f"{count} Viral" in ended.out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_name_says_how_it_is_compressed(
    finished: Path, contigs: list[tuple[str, int]], tmp_path: Path
) -> None:
    path = write(tmp_path / "reads.bam", contigs, alignments(contigs, 100))
    assert run("label-reads", finished, "--bam", path).code == 0
    labels = (finished / "read_labels.tsv").read_bytes()
    for name in ("a.tsv.gz", "b.tsv.gz", "c.tsv.zst"):
        assert run("label-reads", finished, "--bam", path, "--output", tmp_path / name).code == 0
    assert gzip.decompress((tmp_path / "a.tsv.gz").read_bytes()) == labels
    assert (tmp_path / "a.tsv.gz").read_bytes() == (tmp_path / "b.tsv.gz").read_bytes()
    assert (tmp_path / "c.tsv.zst").read_bytes().startswith(b"\x28\xb5\x2f\xfd")
    # The run's own tables are as they were.
    assert "its files are unchanged" in predict(SOURCE, finished).err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--min-mapping-quality", 61),
        ("--min-identity", 100),
        ("--min-coverage", 95),
        ("--call-threshold", 0.9),
        ("--id-pattern", "(.)"),
    ],
)
def test_every_rule_changes_the_labels(
    option: str, value: object, finished: Path, contigs: list[tuple[str, int]], tmp_path: Path
) -> None:
    path = write(tmp_path / "reads.bam", contigs, alignments(contigs, 200))
    for name, words in (("before", []), ("after", [option, value])):
        assert run("label-reads", finished, "--bam", path, "--output", tmp_path / name, *words).code == 0
    assert (tmp_path / "before").read_bytes() != (tmp_path / "after").read_bytes()


def test_without_alignments(finished: Path, contigs: list[tuple[str, int]], tmp_path: Path) -> None:
    path = write(tmp_path / "reads.bam", contigs, [])
    ended = run("label-reads", finished, "--bam", path, "--output", tmp_path / "labels")
    assert ended.out == f"{tmp_path}/labels: no read is aligned\n"
    assert read_table(tmp_path / "labels") == [list(COLUMNS)]


def test_what_cannot_be_labelled(
    finished: Path, contigs: list[tuple[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untagged = write(tmp_path / "untagged.bam", contigs, [Alignment("a", 0, 0, 9, "50M", -1)])
    cut = write(tmp_path / "cut.bam", contigs, alignments(contigs, 900))
    cut.write_bytes(cut.read_bytes()[:-40])
    output = tmp_path / "labels"
    for path, message in (
        (
            untagged,
            "breaks after 0 records: the alignment of 'a' has no NM tag, the number of its differences. "
            "Add it: samtools calmd -b IN.bam CONTIGS.fa > OUT.bam",
        ),
        (cut, "breaks after 0 records: truncated file"),
        (SOURCE, "not a BAM, CRAM or SAM file"),
        (tmp_path / "missing", "No such file or directory"),
    ):
        ended = run("label-reads", finished, "--bam", path, "--output", output)
        assert (ended.code, ended.err) == (1, f"virnuc-async: {path}: {message}\n")
        assert not output.exists()
    assert run("label-reads", tmp_path, "--bam", untagged).err.endswith("there is no run.sqlite3\n")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    ended = run("label-reads", finished, "--bam", untagged, "--output", output)
    assert ended.code == 64
    assert "labels of reads need DuckDB and pysam: pip install 'virnuc-async[reads]'" in ended.err


def test_a_share_instead_of_percent_is_refused() -> None:
    with pytest.raises(UsageError, match="min identity must be percent: 0, or 1 to 100, not 0.9"):
        LabelRules(min_identity=0.9)
    assert LabelRules(min_identity=0, min_coverage=1).min_coverage == 1

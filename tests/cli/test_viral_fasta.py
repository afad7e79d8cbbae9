"""``--viral-fasta``: the command, from its options to the files."""

import gzip
import os
import threading
from pathlib import Path

import pytest
from running import Ran, predict, rows, run, verdicts
from support import DATA

from virnuc_async.errors import UsageError
from virnuc_async.settings import Settings, ViralFasta

SOURCE = DATA / "golden" / "upstream" / "input.fa"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("viral") / "out"
    assert predict(SOURCE, out, "--viral-fasta").code == 0
    return out


def viral_records(out: Path) -> list[bytes]:
    """Return the records of the source that are viral by the table of contigs."""
    found = [b">" + record for record in b"\n".join([b"", SOURCE.read_bytes()]).split(b"\n>")[1:]]
    labels = [row[9] for row in rows(out / "contigs.tsv")[1:]]
    kept = [record for record, label in zip(found, labels, strict=True) if label == "virus"]
    return [record.removesuffix(b"\n") + b"\n" for record in kept]


def test_the_viral_records_have_scores_behind_their_headers(finished: Path) -> None:
    means = [row[7] for row in rows(finished / "contigs.tsv")[1:] if row[9] == "virus"]
    expected = b""
    for record, mean in zip(viral_records(finished), means, strict=True):
        header, end, rest = record.partition(b"\n")
        expected += header + f" virnuc_p={mean} virnuc_verdict=virus".encode() + end + rest
    assert (finished / "viral.fasta").read_bytes() == expected


def test_original_headers_in_a_file_of_a_name(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.fa"
    out = tmp_path / "out"
    ended = predict(SOURCE, out, "--viral-fasta", path, "--original-headers")
    count = list(verdicts(out).values()).count("virus")
    assert f"viral sequences: {count} records in {path}\n" in ended.err
    assert path.read_bytes() == b"".join(viral_records(finished))
    assert not (out / "viral.fasta").exists()
    # It is the run's own file: it may be replaced, and is when something has happened to it.
    again = (SOURCE, out, "--viral-fasta", path, "--original-headers")
    assert "its files are unchanged" in predict(*again).err
    path.unlink()
    assert "some of its files have changed" in predict(*again).err
    assert path.read_bytes() == b"".join(viral_records(finished))
    assert predict(*again, "--threshold", 1).code == 0
    assert path.read_bytes() == b"".join(viral_records(out)) != b"".join(viral_records(finished))
    # Somewhere else it is the user's: without the option it is left alone.
    assert "threshold: 1.0 -> 0.5: writing" in predict(SOURCE, out).err
    assert "its files are unchanged" in predict(SOURCE, out).err
    assert path.read_bytes() != b"".join(viral_records(finished))
    # Of others it is not.
    ended = predict(SOURCE, tmp_path / "other", "--viral-fasta", path)
    assert (ended.code, ended.err.splitlines()[-1]) == (
        64,
        f"virnuc-async: --viral-fasta: {path} is there already, and this run has not written it. "
        "Choose another name, or delete it",
    )
    assert not (tmp_path / "other" / "contigs.tsv").exists()
    assert predict(SOURCE, tmp_path / "other", "--viral-fasta", path, "--overwrite").code == 0
    assert b" virnuc_p=" in path.read_bytes()


def test_beside_the_tables_it_stays_in_step_with_them_until_it_is_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(SOURCE, out, "--viral-fasta", "--original-headers").code == 0
    before = (out / "viral.fasta").read_bytes()
    assert "its files are unchanged" in predict(SOURCE, out).err
    assert predict(SOURCE, out, "--threshold", 1).code == 0
    assert (out / "viral.fasta").read_bytes() == b"".join(viral_records(out)) != before
    (out / "viral.fasta").unlink()
    assert predict(SOURCE, out, "--threshold", 0.5).code == 0
    assert not (out / "viral.fasta").exists()


def test_inputs_that_can_be_read_only_once_are_refused(tmp_path: Path) -> None:
    """Before anything is begun."""
    hint = "can be read only once. Write it to a file first, and name that as the input\n"
    ended = predict("-", tmp_path / "out", "--viral-fasta", stdin=SOURCE.read_bytes())
    expected = f"virnuc-async: --viral-fasta reads the inputs again in the end, and standard input {hint}"
    assert ended == Ran(64, "", expected)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.open("wb").close(), daemon=True)
    writer.start()
    ended = predict(SOURCE, pipe, tmp_path / "out", "--viral-fasta")
    assert (ended.code, ended.err.partition("in the end, and ")[2]) == (64, f"the pipe {pipe} {hint}")
    assert not (tmp_path / "out").exists()
    pipe.open("rb").close()
    writer.join()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "it has an empty name"),
        (".", "it is a directory, not the name of a file"),
        ("none/v.fa", "there is no directory {0}/none"),
        ("a.fa", "--viral-fasta: {0}/a.fa is an input"),
        ("out/contigs.tsv", "a run writes a file of this name. Leave it out, or choose another"),
    ],
)
def test_places_that_are_refused(name: str, message: str, tmp_path: Path) -> None:
    source = tmp_path / "a.fa"
    source.write_bytes(SOURCE.read_bytes())
    ended = predict(source, tmp_path / "out", "--viral-fasta", str(tmp_path / name) if name else "")
    assert ended.code == 64
    assert message.format(tmp_path) in ended.err
    assert not (tmp_path / "out").exists()
    assert source.read_bytes() == SOURCE.read_bytes()


def test_a_file_in_the_new_directory_of_the_run(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "mine.fa.gz"
    assert predict(SOURCE, tmp_path / "out", "--viral-fasta", path).code == 0
    assert path.stat().st_size < (finished / "viral.fasta").stat().st_size / 2


def test_headers_without_viral_sequences(tmp_path: Path) -> None:
    ended = predict(SOURCE, tmp_path / "out", "--original-headers")
    assert (ended.code, ended.err) == (
        64,
        "virnuc-async: --original-headers is for viral sequences: add --viral-fasta\n",
    )
    with pytest.raises(UsageError, match="viral fasta must be ViralFasta, not True"):
        Settings(viral_fasta=True)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="original headers must be True or False, not 1"):
        ViralFasta(original_headers=1)  # type: ignore[arg-type]


def test_reads_of_alignments_are_written_as_fastq(tmp_path: Path) -> None:
    pytest.importorskip("pysam", reason="the extra [bam] is not installed")
    bases = "GCC" * 30
    flags = {"a": (77, 141), "b": (77, 141)}
    lines = [
        f"{name}\t{flag}\t*\t0\t0\t*\t*\t0\t0\t{bases}\t{'I' * 90}\n"
        for name in flags
        for flag in flags[name]
    ]
    (tmp_path / "reads.sam").write_text("@HD\tVN:1.6\n" + "".join(lines))
    assert predict(tmp_path / "reads.sam", tmp_path / "out", "--viral-fasta", "--threshold", 0).code == 0
    texts = {path.name: path.read_text() for path in (tmp_path / "out").glob("viral*")}
    assert set(texts) == {"viral_R1.fastq", "viral_R2.fastq"}
    (one, two) = texts.values()
    assert one == two
    mean = rows(tmp_path / "out" / "pairs.tsv")[1][9]
    scores = f" virnuc_p={mean} virnuc_verdict=virus"
    assert one == "".join(f"@{name}{scores}\n{bases}\n+\n{'I' * 90}\n" for name in "ab")


def test_tables_writes_what_predict_does(finished: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "a.fa", tmp_path / "out"
    source.write_bytes(SOURCE.read_bytes())
    assert predict(source, out).code == 0
    ended = run("tables", out, "--viral-fasta")
    count = list(verdicts(out).values()).count("virus")
    assert (ended.code, ended.out.splitlines()[0]) == (
        0,
        f"viral sequences: {count} records in {out / 'viral.fasta'}",
    )
    assert (out / "viral.fasta").read_bytes() == (finished / "viral.fasta").read_bytes()
    assert "its files are unchanged" in predict(source, out).err
    # It stays in step, here and there.
    assert run("tables", out, "--threshold", 1, "--output", tmp_path / "again").code == 0
    strict = (tmp_path / "again" / "viral.fasta").read_bytes()
    assert strict.count(b">") == list(verdicts(tmp_path / "again").values()).count("virus") < count
    assert (out / "viral.fasta").read_bytes() == (finished / "viral.fasta").read_bytes()
    assert run("tables", out, "--threshold", 1, "--viral-fasta", tmp_path / "v.fa.gz").code == 0
    assert gzip.decompress((tmp_path / "v.fa.gz").read_bytes()) == strict
    assert not (out / "viral.fasta").exists()


def test_tables_of_a_run_whose_input_is_lost(tmp_path: Path) -> None:
    """It is said before a table is replaced."""
    source, out = tmp_path / "a.fa", tmp_path / "out"
    source.write_bytes(SOURCE.read_bytes())
    assert predict(source, out, "--viral-fasta").code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    source.rename(tmp_path / "b.fa")
    ended = run("tables", out, "--threshold", 1)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(
        f"virnuc-async: {source}: it cannot be read any more. Viral sequences are read"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "viral.fasta").unlink()
    assert run("tables", out, "--threshold", 1).code == 0
    assert not (out / "viral.fasta").exists()
    assert predict("-", tmp_path / "piped", stdin=SOURCE.read_bytes()).code == 0
    ended = run("tables", tmp_path / "piped", "--viral-fasta")
    assert (ended.code, ended.err.partition(". ")[0]) == (
        1,
        "virnuc-async: -: what came through standard input or a pipe is not there any more",
    )
    ended = run("tables", out, "--viral-fasta", "--table", "contigs")
    assert (ended.code, ended.err) == (
        64,
        "virnuc-async: --viral-fasta writes files of its own: not with --table\n",
    )

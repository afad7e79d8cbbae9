"""``predict`` with URLs: the tables of the same files on this machine, and nothing secret in any of them."""

import gzip
import os
from pathlib import Path

import pytest
from object_stores import Bucket
from running import log, predict, run, some_reads, summary, tables
from sequence_files import as_fastq
from serving import serving, status
from support import fasta

from virnuc_async import Settings, UsageError, run_pipeline
from virnuc_async.sequences.fastx import Contig

READS = some_reads(6, 620)
MATES = {
    f"sample_R{mate}.fq.gz": as_fastq(
        [Contig(name.encode(), bases.encode()) for name, bases in READS.items()]
    )
    for mate in (1, 2)
}


def without(directory: str, found: dict[str, bytes]) -> dict[str, bytes]:
    """Return tables with the names of files instead of their paths."""
    return {name: content.replace(directory.encode(), b"") for name, content in found.items()}


def test_tables_of_objects_are_those_of_the_files(bucket: Bucket, tmp_path: Path):
    (tmp_path / "in").mkdir()
    for name, content in {**MATES, "contigs.fa": fasta(READS.items()).encode()}.items():
        packed = gzip.compress(content) if name.endswith("gz") else content
        (tmp_path / "in" / name).write_bytes(packed)
        bucket.put(f"in/{name}", packed)
    here, there = tmp_path / "here", tmp_path / "there"
    places = {here: f"{tmp_path}/in/", there: f"{bucket.root}/in/"}
    for out, place in places.items():
        done = predict(place, out, "--viral-fasta", "--threshold", "0")
        assert (done.code, done.err.count("are paired")) == (0, 1), done.err
    assert without(places[there], tables(there)) == without(places[here], tables(here))
    for name in ("pairs.tsv", "viral.fasta", "viral_R1.fastq"):
        expected = (here / name).read_bytes().replace(places[here].encode(), b"")
        assert (there / name).read_bytes().replace(places[there].encode(), b"") == expected
    assert [file["path"] for file in summary(there)["inputs"]] == [
        f"{bucket.root}/in/{name}" for name in ("contigs.fa", *MATES)
    ]


def test_a_run_of_urls_resumes_and_takes_what_changed(bucket: Bucket, tmp_path: Path):
    url = bucket.put("a.fa", fasta(list(READS.items())[:3]).encode())
    assert predict(url, tmp_path / "out").code == 0
    before = tables(tmp_path / "out")
    again = predict(url, tmp_path / "out")
    assert (again.code, tables(tmp_path / "out")) == (0, before)
    bucket.put("a.fa", fasta(READS.items()).encode())
    changed = predict(url, tmp_path / "out")
    assert (changed.code, f"{url} has changed" in changed.err) == (0, True)
    assert predict(url, tmp_path / "fresh").code == 0
    assert tables(tmp_path / "out") == tables(tmp_path / "fresh") != before


def test_nothing_secret_is_written(bucket: Bucket, tmp_path: Path):
    url = bucket.put("a.fa", fasta(READS.items()).encode())
    done = predict(url, tmp_path / "out", "--verbose")
    assert done.code == 0
    written = [done.out, done.err, log(tmp_path / "out")]
    written += [path.read_bytes().decode("latin-1") for path in (tmp_path / "out").iterdir()]
    assert any(url in text for text in written)
    secrets = [os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    assert not any(secret in text for secret in secrets for text in written)


def test_a_url_with_a_password_is_refused_before_anything_is_written(tmp_path: Path):
    done = predict("https://me:hush@host/a.fa", tmp_path / "out")
    assert (done.code, (tmp_path / "out").exists()) == (64, False)
    reason = "a password does not belong in a URL, which is written to logs"
    assert done.err == f"virnuc-async: https://***@host/a.fa: {reason}\n"


def test_an_object_that_is_missing_is_said_at_once_or_skipped(bucket: Bucket, tmp_path: Path):
    url = bucket.put("a.fa", fasta(READS.items()).encode())
    gone = f"{bucket.root}/gone.fa"
    done = predict(url, gone, tmp_path / "out")
    assert done.code == 1
    assert f"{gone}: there is no such object: 404 Not Found. Nothing was begun" in done.err
    assert predict(url, gone, tmp_path / "out", "--skip-missing").code == 2
    failed = (tmp_path / "out" / "failed_files.txt").read_text()
    assert failed == f"{gone}|Input|there is no such object: 404 Not Found\n"


def test_a_transfer_that_breaks_is_a_file_that_breaks(tmp_path: Path):
    with serving() as server:
        server.files["/a.fa"] = fasta(READS.items()).encode()
        server.faults["/a.fa"] = [status(410)] * 9
        done = predict(f"{server.url}/a.fa", tmp_path / "out")
    assert done.code == 1
    assert f"{server.url}/a.fa: 410 Gone" in done.err


def test_a_list_of_inputs_may_have_urls(bucket: Bucket, tmp_path: Path):
    url = bucket.put("a.fa", fasta(READS.items()).encode())
    (tmp_path / "list").write_text(f"{url}\n")
    assert predict("--input-list", tmp_path / "list", "-o", tmp_path / "out").code == 0
    assert [file["path"] for file in summary(tmp_path / "out")["inputs"]] == [url]


@pytest.mark.parametrize("option", ["--cache-dir", "--reuse-features"])
def test_directories_are_on_this_machine(option: str, tmp_path: Path):
    done = predict("a.fa", tmp_path / "out", option, "s3://bucket/there")
    assert done.code == 64
    assert "must be on this machine, not behind a URL: s3://bucket/there" in done.err


def test_tables_are_written_on_this_machine(tmp_path: Path):
    done = run("predict", "a.fa", "s3://bucket/out/")
    assert done.code == 64
    assert "the output directory must be on this machine, not behind a URL: s3://bucket/out/" in done.err


async def test_a_url_is_a_text_in_python(tmp_path: Path):
    with pytest.raises(UsageError, match="must be a text if it is a URL"):
        await run_pipeline(Path("s3://bucket/a.fa"), tmp_path, Settings())

"""Inputs behind URLs: the bytes, records and errors of a file, whatever the server does."""

import gzip
import io
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import hypothesis
import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st
from object_stores import IMPATIENT, Bucket
from range_server import RangeServer
from range_server import serving as serving_ranges
from sequence_files import EACH_FORM, Form, as_fasta, as_fastq, some_records, until_failure
from serving import Fault, Server, ends_after, hangs_after, resets_after, serving, status, whole
from support import ROOT

from virnuc_async.errors import BrokenInput, InputChanged, MissingInputs, UnreadableInput, UsageError
from virnuc_async.sequences import object_stores, scan
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.files import open_file, path_signature
from virnuc_async.sequences.inputs import InputVersion, has_mates, read_contigs, unchanged
from virnuc_async.sequences.listing import list_inputs
from virnuc_async.sequences.object_stores import Location, locate
from virnuc_async.sequences.readahead import ReadAhead
from virnuc_async.sequences.remote import BLOCK_BYTES, BLOCKS, FIRST_BYTES, RemoteFile
from virnuc_async.sequences.scan import scan_file

RECORDS = some_records(200)
MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files["/a.fa"] = as_fasta(RECORDS)
        yield server


@pytest.fixture(scope="module")
def large() -> Iterator[tuple[bytes, str]]:
    """Return bytes that are several blocks, and their URL."""
    content = random.Random(1).randbytes(11 * MIB + 5)
    with serving_ranges(RangeServer(content)) as url:
        yield content, f"{url}/large"


def remote(url: str) -> io.BufferedReader:
    """Open *url* as inputs are opened, with little patience."""
    return io.BufferedReader(RemoteFile(url, IMPATIENT))


# The same as a file


@EACH_FORM
def test_records_of_an_object_are_those_of_the_file(form: Form, bucket: Bucket):
    url = bucket.put("reads.fq.x", form.pack(as_fastq(RECORDS)))
    assert list(read_contigs(url)) == RECORDS


def test_alignments_are_read_through_their_pipe(bucket: Bucket):
    sam = b"@HD\tVN:1.6\n" + b"".join(
        b"%s\t4\t*\t0\t0\t*\t*\t0\t0\t%s\t*\n" % (record.id, record.bases) for record in RECORDS
    )
    url = bucket.put("reads.sam.gz", gzip.compress(sam))
    assert list(read_contigs(url)) == RECORDS
    assert not has_mates(url)


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_shard_begins_where_its_segment_does(
    is_packed: bool, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scan, "_MARK_BYTES", 1000)
    text, records = as_fasta(some_records(3000)), some_records(3000)
    members = [gzip.compress(text[begin : begin + 60_000]) for begin in range(0, len(text), 60_000)]
    content = b"".join(members) if is_packed else text
    (tmp_path / "reads").write_bytes(content)
    here, there = scan_file(str(tmp_path / "reads")), scan_file(url := bucket.put("reads", content))
    assert (there.records, there.bases, there.size) == (here.records, here.bases, here.size)
    assert there.version.fingerprint == here.version.fingerprint
    points = [there.seek_point(record) for record in (1, 1500, 2999)]
    for point in points:
        assert list(read_contigs(url, point)) == records[point.record :]
    assert points[-1].offset > 0


async def test_blocks_of_urls_are_read_ahead_too(bucket: Bucket):
    urls = [bucket.put(f"{number}.fa", as_fasta(some_records(50, number))) for number in range(6)]
    ahead = ReadAhead(urls, block_bytes=1000)

    def read_all() -> list[list[Contig]]:
        return [list(read_contigs(url, open_file=ahead.open)) for url in urls]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ahead.run)
        await anyio.lowlevel.checkpoint()
        assert await to_thread.run_sync(read_all) == [some_records(50, number) for number in range(6)]
        tasks.cancel_scope.cancel()


def test_names_of_objects_are_taken_as_they_are(bucket: Bucket):
    for name in ("a b.fa", "a%20b.fa", "é#?~.fa", "deep/er/a+b=c.fa"):
        assert list(read_contigs(bucket.put(name, as_fasta(RECORDS)))) == RECORDS
    assert bucket.objects() == ["a b.fa", "a%20b.fa", "deep/er/a+b=c.fa", "é#?~.fa"]


def test_names_on_web_servers_are_quoted(server: Server):
    server.files["/d/a%20b.fa"] = as_fasta(RECORDS[:3])
    assert list(read_contigs(f"{server.url}/d/a%20b.fa")) == RECORDS[:3]
    assert list_inputs([f"{server.url}/d/a%20b.fa"]).paths == (f"{server.url}/d/a%20b.fa",)


@pytest.mark.parametrize("size", [0, 1, 1 << 16, MIB, MIB + 1, 3 * MIB + 7])
def test_a_fingerprint_is_that_of_the_same_bytes_in_a_file(size: int, tmp_path: Path):
    content = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(content)
    with serving_ranges(RangeServer(content)) as url:
        there = InputVersion.of(f"{url}/file")
        assert there.is_of(f"{url}/file")
    here = InputVersion.of(str(tmp_path / "file"))
    assert there.fingerprint == here.fingerprint
    assert here.fingerprint is not None
    assert here.fingerprint[0] == size


@hypothesis.settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 12 * MIB), st.integers(0, 3 * MIB)), max_size=8))
def test_reading_from_anywhere_gives_the_bytes_of_a_file(
    large: tuple[bytes, str], reads: list[tuple[int, int]]
):
    content, url = large
    expected = io.BytesIO(content)
    with open_file(url) as file:
        for offset, count in reads:
            assert file.seek(offset) == expected.seek(offset)
            assert file.read(count) == expected.read(count)
            assert file.tell() == expected.tell()


def test_seeking_is_relative_as_in_a_file(large: tuple[bytes, str]):
    content, url = large
    with open_file(url) as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == content[-5:]
        file.seek(10)
        file.seek(7, os.SEEK_CUR)
        assert file.read(3) == content[17:20]
        with pytest.raises(ValueError, match="negative seek"):
            file.raw.seek(-1)


# Several requests at once


class _Counting(RangeServer):
    """Notes how many requests are answered at the same time, and of which bytes."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content, delay=0.01)
        self._lock = threading.Lock()
        self._now = self.most = 0

    def process_request_thread(self, request: object, address: object) -> None:
        super().process_request_thread(request, address)  # type: ignore[arg-type]

    def finish_request(self, request: object, address: object) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        super().finish_request(request, address)  # type: ignore[arg-type]
        with self._lock:
            self._now -= 1


def test_blocks_to_come_are_in_flight_and_bounded():
    content = bytes(64 * MIB)
    server = _Counting(content)
    with serving_ranges(server) as url, open_file(f"{url}/zeros") as file:
        assert file.read(1) == b"\0"
        first = server.most
        assert sum(len(block) for block in iter(lambda: file.read1(MIB), b"")) == len(content) - 1
    # A file that is only looked into has asked for one block.
    assert first <= 2
    assert BLOCKS - 2 <= server.most <= BLOCKS + 1  # a connection may be closing yet
    assert FIRST_BYTES < BLOCK_BYTES


# Servers that fail


@pytest.mark.parametrize("etag", ['"first"', 'W/"weak"', ""])
@pytest.mark.parametrize(
    "faults",
    [
        [ends_after(100), resets_after(7)],
        [status(503), status(500)],
        [status(429), status(408)],
        [hangs_after(100)],
        [ends_after(0)],
    ],
    ids=["broken", "5xx", "busy", "slow", "empty"],
)
def test_failed_requests_are_repeated(server: Server, faults: list[Fault], etag: str):
    server.etag, server.faults["/a.fa"] = etag, list(faults)
    with remote(f"{server.url}/a.fa") as file:
        assert file.read() == server.files["/a.fa"]
    assert not server.faults["/a.fa"]


def test_a_server_that_keeps_failing_is_said(server: Server):
    server.faults["/a.fa"] = [status(503)] * 9
    with remote(f"{server.url}/a.fa") as file, pytest.raises(OSError, match="503 Service Unavailable"):
        file.read()


def test_a_server_that_keeps_silent_is_said(server: Server):
    server.faults["HEAD /a.fa"] = [lambda handler, _: handler.server.released.wait(30) and None] * 9
    with pytest.raises(OSError, match="no answer in time"):
        RemoteFile(f"{server.url}/a.fa", IMPATIENT._replace(retries=1))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (status(404), "there is no such object: 404 Not Found"),
        (status(403), "the server refuses it: 403 Forbidden"),
        (status(401), "the server refuses it: 401 Unauthorized"),
        (status(410), "410 Gone"),
    ],
)
def test_what_cannot_be_read_says_why(server: Server, fault: Fault, reason: str):
    url = f"{server.url}/a.fa"
    server.faults["HEAD /a.fa"] = [fault] * 2
    with pytest.raises(UnreadableInput) as raised:
        next(read_contigs(url))
    assert (raised.value.path, raised.value.reason) == (url, reason)
    with pytest.raises(MissingInputs) as missing:
        list_inputs([url])
    assert [failure.reason for failure in missing.value.failures] == [reason]


def test_a_server_without_ranges_is_piped(server: Server):
    server.faults["/a.fa"] = [whole]
    with pytest.raises(UnreadableInput) as raised:
        next(read_contigs(f"{server.url}/a.fa"))
    assert raised.value.reason == (
        "the server sends no parts of files. Download it, or pipe it: "
        "curl -s URL | virnuc-async predict - OUT/"
    )


def test_nobody_at_the_address_is_said():
    with pytest.raises(OSError, match="the connection is refused"):
        remote("http://127.0.0.1:9/a.fa")


# Refused, and secrets


def test_a_bucket_that_refuses_says_what_to_set(server: Server, monkeypatch: pytest.MonkeyPatch):
    secrets = {"AWS_ACCESS_KEY_ID": "AKIAWHO", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_SESSION_TOKEN": "psst"}
    for name, value in {**secrets, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    server.faults["HEAD /refused/a.fa"] = [status(403)]
    with pytest.raises(MissingInputs) as raised:
        list_inputs(["s3://refused/a.fa"])
    assert str(raised.value) == (
        "s3://refused/a.fa: the server refuses it: 403 Forbidden. Set in the environment: AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN) and AWS_REGION, or AWS_SKIP_SIGNATURE=true for a "
        "public bucket"
    )
    assert not any(secret in repr(raised.value) for secret in secrets.values())


def test_what_a_server_of_buckets_says_is_passed_on(bucket: Bucket):
    with pytest.raises(MissingInputs) as raised:
        list_inputs(["s3://no-such-bucket-here/"])
    reason = "404 Not Found (NoSuchBucket: The specified bucket does not exist)"
    assert [failure.reason for failure in raised.value.failures] == [reason]


def test_an_account_that_is_missing_is_said():
    with pytest.raises(MissingInputs, match="Set in the environment: AZURE_STORAGE_ACCOUNT_NAME and"):
        list_inputs(["az://container/a.fa"])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a/b.fa", Location("s3://bucket", "a/b.fa")),
        ("S3://bucket/a%20#?.fa", Location("s3://bucket", "a%20#?.fa")),
        ("gs://bucket/a/", Location("gs://bucket", "a/")),
        ("az://container", Location("az://container", "")),
        ("https://host:8443/a%20b/c.fa", Location("https://host:8443", "a b/c.fa")),
    ],
)
def test_a_url_names_a_bucket_and_a_key(url: str, expected: Location):
    assert locate(url) == expected


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://me:hush@host/a.fa", "https://***@host/a.fa: a password does not belong in a URL"),
        ("s3://key:hush@bucket/a.fa", "s3://***@bucket/a.fa: a password does not belong in a URL"),
        ("https://host/a.fa?X-Amz-Signature=hush", "https://host/a.fa?...: a URL with ? or # is not read"),
        ("https://host/a.fa#hush", "https://host/a.fa#...: a URL with ? or # is not read"),
        ("s3:///a.fa", "s3:///a.fa: no object has such a name. Write it as s3://BUCKET/PATH"),
        ("s3://bucket//a.fa", "no object has such a name"),
        ("s3://bucket/../a.fa", "no object has such a name"),
        ("https://host/%2e%2e/a.fa", "no object has such a name. Write it as https://HOST/PATH"),
        ("https://host/", "a web server does not list its files: name each"),
    ],
)
def test_urls_of_nothing_and_urls_with_secrets_are_refused(url: str, text: str):
    with pytest.raises(UsageError) as raised:
        list_inputs([url])
    assert text in str(raised.value)
    assert "hush" not in repr(raised.value)


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(object_stores, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'virnuc-async\[cloud\]'"):
        list_inputs(["s3://bucket/a.fa"])


# Objects that change


def test_an_object_that_is_replaced_while_it_is_read_is_broken(server: Server):
    server.files["/a.fa"] = as_fasta(some_records(12_000))
    assert len(server.files["/a.fa"]) > FIRST_BYTES
    contigs = read_contigs(f"{server.url}/a.fa")
    before = [next(contigs)]
    server.etag = '"second"'
    found, error = until_failure(contigs)
    assert isinstance(error, BrokenInput)
    assert error.reason.endswith("it changed while it was being read")
    assert before + found == some_records(12_000)[: error.records]


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
def test_without_a_strong_tag_a_change_shows_by_what_the_server_says(server: Server, etag: str):
    server.etag, server.last_modified = etag, "Sun, 29 Nov 2026 10:00:00 GMT"
    with remote(f"{server.url}/a.fa") as file:
        server.last_modified = "Sun, 29 Nov 2026 10:00:01 GMT"
        with pytest.raises(OSError, match="it changed while it was being read"):
            file.read()


def test_an_object_that_changed_since_the_run_began_is_another(bucket: Bucket):
    url = bucket.put("a.fa", as_fasta(RECORDS))
    versions = {url: InputVersion.of(url)}
    read = unchanged(read_contigs, versions)
    signature = path_signature(url)
    bucket.put("a.fa", as_fasta(RECORDS))  # the same again
    assert list(read(url)) == RECORDS
    bucket.put("a.fa", as_fasta(RECORDS[:-1]))
    assert path_signature(url) != signature
    with pytest.raises(InputChanged):
        list(read(url))


# Directories


def test_a_url_that_ends_with_a_slash_is_a_directory(bucket: Bucket, s3: str, tmp_path: Path):
    names = ["a.fa", "b.fq.gz", "noname", ".hidden.fa", "a.fa~", "x.txt", "sub/c.fa", "z.tsv"]
    for name in names:
        is_text = name.endswith(("txt", "tsv"))
        content = b"hello" if is_text else gzip.compress(b">a\nAC\n") if name.endswith("gz") else b">a\nAC\n"
        bucket.put(f"in/{name}", content)
        (tmp_path / "in/sub").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    bucket.put_marker(s3, "in/")
    for recursive in (False, True):
        there = list_inputs([f"{bucket.root}/in/"], recursive=recursive)
        here = list_inputs([f"{tmp_path}/in"], recursive=recursive)
        assert [path.removeprefix(bucket.root) for path in there.paths] == [
            path.removeprefix(str(tmp_path)) for path in here.paths
        ]
        said = {(level, text.replace(bucket.root, "").replace("b/ ", "b ")) for level, text in there.notices}
        assert said == {(level, text.replace(str(tmp_path), "")) for level, text in here.notices}
    names = ["a.fa", "b.fq.gz", "noname", "sub/c.fa"]
    assert there.paths == tuple(f"{bucket.root}/in/{name}" for name in names)


def test_a_bucket_is_a_directory_too(bucket: Bucket):
    bucket.put("a.fa", b">a\nAC\n")
    assert list_inputs([bucket.root]).paths == (f"{bucket.root}/a.fa",)


def test_a_directory_with_nothing_in_it_is_missing(bucket: Bucket):
    with pytest.raises(MissingInputs, match="there is nothing under it"):
        list_inputs([f"{bucket.root}/none/"])
    bucket.put("other/x.txt", b"hello")
    (path,) = list_inputs([f"{bucket.root}/other/"]).paths
    with pytest.raises(UnreadableInput, match="a directory without sequence files"):
        next(read_contigs(path))


def test_what_is_missing_can_be_skipped_and_what_is_named_twice_is_read_once(bucket: Bucket):
    url = bucket.put("a.fa", b">a\nAC\n")
    listed = list_inputs([url, f"{bucket.root}/gone.fa", url], skip_missing=True)
    assert listed.paths == (url, f"{bucket.root}/gone.fa")
    assert listed.notices[-1].text.startswith(f"named more than once, read once: {url} and {url}")
    assert list_inputs([url, url], allow_duplicates=True).paths == (url, url)


_READ = """
import sys
from virnuc_async.sequences.remote import RemoteFile, look_up
look_up(sys.argv[1:])
for url in sys.argv[1:]:
    file = RemoteFile(url)
    file.readinto(bytearray(10))  # the next block is in flight when the process ends
"""


@pytest.mark.slow
def test_a_process_ends_well_while_requests_are_in_flight(large: tuple[bytes, str]):
    command = [sys.executable, "-c", _READ, *(f"{large[1]}/{number}" for number in range(5))]
    processes = [subprocess.run(command, cwd=ROOT, capture_output=True, check=False) for _ in range(30)]
    assert {(done.returncode, done.stderr) for done in processes} == {(0, b"")}

"""Input files: standard input, and files that fail or change while they are read."""

import gc
import io
import os
import shutil
from pathlib import Path

import pytest
from sequence_files import (
    EACH_BLOCK,
    EACH_FORM,
    FORMS,
    Form,
    as_fasta,
    as_fastq,
    some_records,
    until_failure,
)

from virnuc_async.errors import BrokenInput, UnreadableInput
from virnuc_async.sequences.fastx import Contig, Limits
from virnuc_async.sequences.inputs import read_contigs

# Standard input, and files that are closed


def test_standard_input_through_a_pipe():
    records = some_records(50)
    receiving, sending = os.pipe()
    os.write(sending, as_fastq(records))
    os.close(sending)
    with open(receiving, "rb") as stream:
        assert list(read_contigs("-", stdin=stream)) == records


@pytest.mark.parametrize("wrap", [io.BytesIO, lambda content: io.BufferedReader(io.BytesIO(content))])
def test_standard_input_is_not_closed(wrap):
    stream = wrap(b">a\nAC\n")
    assert list(read_contigs("-", stdin=stream)) == [Contig(b"a", b"AC")]
    gc.collect()
    assert not stream.closed
    assert stream.read() == b""


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


@EACH_FORM
def test_an_abandoned_reader_closes_its_file(form: Form, tmp_path: Path):
    path = tmp_path / "reads"
    path.write_bytes(form.pack(as_fasta(some_records(50))))
    contigs = read_contigs(str(path))
    assert next(contigs).id == b"r0"
    contigs.close()
    gc.collect()  # a file left open would warn here, and warnings are errors
    assert not [link for link in Path("/proc/self/fd").glob("*") if _target(link) == str(path)]


# What cannot be read


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
    assert str(caught.value) == "-: there is no standard input"


class Failing(io.RawIOBase):
    """A device that has *content* and then fails."""

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
    found, failure = until_failure(read_contigs("-", stdin=Failing(b">a\nAC\n>b\nGT\n>c\nA")))
    assert found == [Contig(b"a", b"AC"), Contig(b"b", b"GT")]
    assert isinstance(failure, BrokenInput)
    assert str(failure) == "-: breaks after 2 records: Input/output error"


def test_a_device_that_fails_at_once():
    with pytest.raises(UnreadableInput) as caught:
        next(read_contigs("-", stdin=Failing(b"")))
    assert str(caught.value) == "-: Input/output error"


@EACH_BLOCK
@pytest.mark.parametrize(
    ("content", "records", "says"),
    [
        (b"@a\nAC\n+\nII\n@b\nGT\n+\nII\r@c\rA", 2, "breaks after 2 records: Input/output error"),
        (b"@a\nAC\n+\nII\n@b\nGT\n+\nIII\rI", 1, "line 8: the quality line is not as long as the bases"),
        (b"@a\nAC\n+\nII\n@b\nGT\n+\nII", 1, "breaks after 1 record: Input/output error"),
        (b">a\nAC\n>b\rGT\r>c\rA", 2, "breaks after 2 records: Input/output error"),
    ],
)
def test_complete_lines_before_a_failure_count(content: bytes, records: int, says: str, block: int):
    found, failure = until_failure(read_contigs("-", stdin=Failing(content), limits=Limits(block)))
    assert (len(found), str(failure)) == (records, f"-: {says}")


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
def test_a_file_that_changes_while_it_is_read(change, pack, tmp_path: Path):
    records = some_records(3_000)
    path = tmp_path / "reads"
    path.write_bytes(pack(as_fasta(records)))
    os.utime(path, (1e9, 1e9))
    contigs = read_contigs(str(path), limits=Limits(64))
    assert [next(contigs) for _ in range(50)] == records[:50]
    change(path)
    found, failure = until_failure(contigs)
    assert records[50:60] == found[:10]
    assert isinstance(failure, BrokenInput)
    # Half of a compressed file, or one with garbage at its end, breaks by itself.
    if change not in (appended, truncated) or pack is bytes:
        assert failure.records == 50 + len(found)
        assert failure.reason.endswith("it changed while it was being read")


def test_a_file_that_changes_only_in_size(tmp_path: Path):
    path = tmp_path / "reads"
    path.write_bytes(as_fasta(some_records(90)))
    before = path.stat()
    contigs = read_contigs(str(path), limits=Limits(64))
    next(contigs)
    appended(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert isinstance(until_failure(contigs)[1], BrokenInput)


def test_a_file_that_is_only_read_by_others_has_not_changed(tmp_path: Path):
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

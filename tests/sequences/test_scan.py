"""A scan of a file: what it finds is what a reader finds."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sequence_files import FORMS, as_fasta, as_fastq, some_records

from virnuc_async.errors import InputError
from virnuc_async.fileio import Directory
from virnuc_async.sequences import scan
from virnuc_async.sequences.alignments import Notes
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.inputs import InputVersion, read_contigs
from virnuc_async.sequences.scan import FileScan, Spill, scan_file
from virnuc_async.sequences.segments import START, SeekPoint

RECORDS = some_records(500)


def read(path: Path, start: SeekPoint = START) -> tuple[list[Contig], tuple[type, str] | None, str | None]:
    """Return the records from *start* on, the error behind them, and their kind."""
    found: list[Contig] = []
    error, notes = None, Notes()
    try:
        found.extend(read_contigs(str(path), start, notes=notes))
    except InputError as failure:
        error = type(failure), str(failure)
    return found, error, notes.kinds.get(str(path))


def check(path: Path, found: FileScan) -> None:
    """Check that *found* is what a reader finds, from the beginning and from every seek point."""
    records, error, kind = read(path)
    assert (found.failure and (type(found.failure), str(found.failure))) == error
    assert (found.records, found.bases, found.kind) == (
        len(records),
        sum(len(r.bases) for r in records),
        kind,
    )
    lengths = [length for block in found.lengths() for length in block.tolist()]
    assert lengths == [len(record.bases) for record in records]
    points = {found.seek_point(number) for number in range(len(records))}
    for point in points:
        assert read(path, point) == (records[point.record :], error, kind)


@pytest.fixture(autouse=True)
def _many_marks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(scan, "_MARK_BYTES", 1)
    monkeypatch.setattr(scan, "_BLOCK", 7)
    return


@pytest.mark.parametrize("write", [as_fasta, as_fastq])
@pytest.mark.parametrize("form", ["plain", *FORMS])
def test_a_file_in_any_form(write, form: str, tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(FORMS[form].pack(write(RECORDS)) if form in FORMS else write(RECORDS))
    found = scan_file(str(path))
    check(path, found)
    assert (found.records, found.failure, found.is_utf8) == (500, None, True)
    assert found.size == path.stat().st_size
    assert found.version == InputVersion.of(str(path))


@pytest.mark.parametrize("write", [as_fasta, as_fastq])
def test_members_of_gzip_are_where_one_can_begin(write, tmp_path: Path) -> None:
    path, text = tmp_path / "reads", write(RECORDS)
    members = [gzip.compress(text[begin : begin + 9_000]) for begin in range(0, len(text), 9_000)]
    path.write_bytes(b"".join(members))
    found = scan_file(str(path))
    check(path, found)
    offsets = {found.seek_point(number).offset for number in range(500)}
    begins = [sum(map(len, members[:number])) for number in range(len(members))]
    assert offsets - {begins[-1]} == {*begins[:-1]}  # the last one may have no more than the end of a record
    assert all(found.seek_point(number).skip < 9_000 for number in range(500))


def test_lengths_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(as_fastq(RECORDS))
    with Directory(tmp_path) as scratch, Spill(scratch) as spill:
        scans = [scan_file(str(path), spill) for _ in range(2)]
        for found in scans:
            lengths = np.concatenate([*found.lengths()])
            assert lengths.tolist() == [len(record.bases) for record in RECORDS]
            assert lengths.dtype == np.int64
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_breaks(tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(gzip.compress(as_fastq(RECORDS))[:-5000])
    found = scan_file(str(path))
    check(path, found)
    assert 0 < found.records < 500


@pytest.mark.parametrize(("id", "is_utf8"), [(b"\xc3\xa9", True), (b"\xe9", False)])
def test_ids_that_are_utf8_or_not(id: bytes, is_utf8: bool, tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(as_fastq([*RECORDS, Contig(id, b"ACGT")]))
    assert scan_file(str(path)).is_utf8 is is_utf8


def test_what_cannot_be_read(tmp_path: Path) -> None:
    found = scan_file(str(tmp_path / "gone"))
    assert str(found.failure) == f"{tmp_path}/gone: No such file or directory"
    assert (found.records, found.kind, found.size, [*found.lengths()]) == (0, None, None, [])
    assert found.version.fingerprint is None

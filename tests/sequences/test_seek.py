"""Reading from a seek point: the records and the error of the whole file, from there on."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from sequence_files import FORMS, as_fasta, as_fastq, some_records

from virnuc_async.errors import BrokenInput, InputChanged, InputError
from virnuc_async.sequences import inputs
from virnuc_async.sequences.fastx import Contig
from virnuc_async.sequences.inputs import InputVersion, read_contigs, unchanged
from virnuc_async.sequences.readahead import ReadAhead
from virnuc_async.sequences.segments import START, SeekPoint

Text = Callable[[list[Contig]], bytes]

RECORDS = some_records(40)
EACH_TEXT = pytest.mark.parametrize("write", [as_fasta, as_fastq])


def tail(path: Path, start: SeekPoint = START) -> tuple[list[Contig], tuple[type, str] | None]:
    """Return the records from *start* on, and what follows them: an error, or none."""
    found: list[Contig] = []
    try:
        found.extend(read_contigs(str(path), start))
    except InputError as error:
        return found, (type(error), str(error))
    return found, None


def points(write: Text, records: list[Contig]) -> list[SeekPoint]:
    """Return where each of *records* begins in their text, without compression."""
    texts = [write(records[:count]) for count in range(len(records))]
    return [SeekPoint(n, len(text), 0, text.count(b"\n") + 1) for n, text in enumerate(texts)]


@EACH_TEXT
def test_plain_files_are_read_from_an_offset(write: Text, tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(write(RECORDS))
    for point in points(write, RECORDS):
        assert tail(path, point) == (RECORDS[point.record :], None)


@EACH_TEXT
@pytest.mark.parametrize("form", FORMS)
def test_compressed_files_are_skimmed(write: Text, form: str, tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(FORMS[form].pack(write(RECORDS)))
    for point in points(write, RECORDS)[::5]:
        assert tail(path, point._replace(offset=0, skip=point.offset)) == (RECORDS[point.record :], None)


@EACH_TEXT
def test_members_of_gzip_are_read_from_an_offset(write: Text, tmp_path: Path) -> None:
    path, text = tmp_path / "reads", write(RECORDS)
    first, second = gzip.compress(text[:1000]), gzip.compress(text[1000:])
    path.write_bytes(first + second)
    for point in points(write, RECORDS):
        if point.offset >= 1000:
            moved = point._replace(offset=len(first), skip=point.offset - 1000)
            assert tail(path, moved) == (RECORDS[point.record :], None)


@EACH_TEXT
def test_errors_count_records_and_lines_from_the_beginning(write: Text, tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(write(RECORDS) + write(RECORDS).replace(b"A", b"!", 1))
    whole, error = tail(path)
    assert error
    assert "line" in error[1]
    for point in points(write, RECORDS):
        assert tail(path, point) == (whole[point.record :], error)


def test_a_file_that_ends_early_breaks_after_all_of_its_records(tmp_path: Path) -> None:
    path, text = tmp_path / "reads", as_fastq(RECORDS)
    path.write_bytes(text.rpartition(b"+")[0])
    expected = BrokenInput, f"{path}: breaks after 39 records: line 157: the last record ends early"
    for point in points(as_fastq, RECORDS):
        assert tail(path, point) == (RECORDS[point.record : -1], expected)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_that_has_become_shorter(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(pack(as_fastq(RECORDS[:3])))
    reason = "breaks after 30 records: it changed while it was being read"
    assert tail(path, SeekPoint(30, 0, 9_999, 121)) == ([], (BrokenInput, f"{path}: {reason}"))


def test_a_file_that_is_another_one_is_not_read_from_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "reads"
    path.write_bytes(as_fastq(RECORDS))
    start = points(as_fastq, RECORDS)[20]
    read = unchanged(read_contigs, {str(path): InputVersion.of(str(path))})
    assert list(read(str(path))) == RECORDS
    assert list(read(str(path), start)) == RECORDS[20:]
    path.write_bytes(as_fastq(RECORDS[::-1]))
    with pytest.raises(InputChanged):
        next(read(str(path), start))


@pytest.mark.parametrize("is_far", [False, True])
async def test_a_file_that_is_read_ahead_is_entered(is_far: bool, tmp_path: Path, monkeypatch) -> None:
    paths = [str(tmp_path / name) for name in "abc"]
    text = as_fastq(RECORDS)
    packed = gzip.compress(text[:2000]) + gzip.compress(text[2000:])
    for path in paths:
        Path(path).write_bytes(packed)
    monkeypatch.setattr(inputs, "_LONG_SKIP", 1000 if is_far else 1 << 28)
    start = points(as_fastq, RECORDS)[20]
    begin = len(gzip.compress(text[:2000])) if not is_far else 0
    start = start._replace(offset=begin, skip=start.offset - (2000 if begin else 0))
    opened: list[io.BufferedReader] = []

    def open_file(path: str) -> io.BufferedReader:
        opened.append(ahead.open(path))
        return opened[-1]

    ahead = ReadAhead(paths)

    def read() -> list[Contig]:
        found = [*read_contigs(paths[0], start, open_file=open_file)]
        return [*found, *(one for path in paths[1:] for one in read_contigs(path, open_file=open_file))]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ahead.run)
        await anyio.wait_all_tasks_blocked()
        assert await to_thread.run_sync(read) == [*RECORDS[20:], *RECORDS, *RECORDS]
        tasks.cancel_scope.cancel()
    # The first file is opened again, directly, by the same opener; the others are read ahead as ever.
    assert [type(file.raw) is io.FileIO for file in opened] == [False, True, False, False]
    assert all(file.closed for file in opened)

"""A scan of a file: what it finds is what a reader finds."""

import gzip
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sequence_files import FORMS, as_fasta, as_fastq, some_records

from virnuc_async.errors import InputError
from virnuc_async.fileio import Directory
from virnuc_async.sequences import scan
from virnuc_async.sequences.alignments import Notes
from virnuc_async.sequences.fastx import DEFAULT_LIMITS, Contig, Limits
from virnuc_async.sequences.inputs import InputVersion, read_contigs
from virnuc_async.sequences.scan import FileScan, Spill, scan_file
from virnuc_async.sequences.segments import START, SeekPoint

RECORDS = some_records(500)


def read(
    path: Path, start: SeekPoint = START, limits: Limits = DEFAULT_LIMITS
) -> tuple[list[Contig], tuple[type, str] | None, str | None]:
    """Return the records from *start* on, the error behind them, and their kind."""
    found: list[Contig] = []
    error, notes = None, Notes()
    try:
        found.extend(read_contigs(str(path), start, limits=limits, notes=notes))
    except InputError as failure:
        error = type(failure), str(failure)
    return found, error, notes.kinds.get(str(path))


def check(path: Path, found: FileScan, limits: Limits = DEFAULT_LIMITS) -> set[SeekPoint]:
    """Check that *found* is what a reader finds, from any seek point on, too; return these."""
    records, error, kind = read(path, START, limits)
    assert (found.failure and (type(found.failure), str(found.failure))) == error
    assert (found.records, found.bases, found.kind) == (
        len(records),
        sum(len(r.bases) for r in records),
        kind,
    )
    lengths = [length for block in found.lengths() for length in block.tolist()]
    assert lengths == [len(record.bases) for record in records]
    assert found.is_utf8 == all(is_utf8(record.id) for record in records)
    points = [found.seek_point(number) for number in range(len(records))]
    assert all(point.record <= number for number, point in enumerate(points))
    for point in set(points):
        assert read(path, point, limits) == (records[point.record :], error, kind)
    return set(points)


def is_utf8(id: bytes) -> bool:
    return id.decode("utf-8", "ignore").encode() == id


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


def test_files_are_scanned_by_several_threads(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(gzip.compress(as_fastq(RECORDS[number : number * 40])))
    with Directory(tmp_path) as scratch, Spill(scratch) as spill, ThreadPoolExecutor(4) as threads:
        scans = list(threads.map(lambda path: scan_file(str(path), spill), paths))
        for number, found in enumerate(scans):
            lengths = [length for block in found.lengths() for length in block.tolist()]
            assert lengths == [len(record.bases) for record in RECORDS[number : number * 40]]


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


ODD = [
    b"",
    b"\n",
    b"\n\n\n\n",
    b"@a\n\n+\n\n",
    b"@a\nACGT\n+\nIII\n",
    b"@a\nACGT\n+\nIIIII\n",
    b"@a\nACGT\n-\nIIII\n",
    b"@a\nACGT\n+\nIII \n",
    b"@a\nACG\n+\nIII \n",
    b"@a\nACGT \n+\nIIII\n",
    b"@a\nAC-T\n+\nIIII\n",
    b"@a\nAC.T\n+a\nIIII\n",
    b"@a\nMKLV\n+\nIIII\n",
    b"@a\nuuuu\n+\nIIII\n",
    b"a\nACGT\n+\nIIII\n",
    b"@\nACGT\n+\nIIII\n",
    b"@\xe9\nACGT\n+\nIIII\n",
    b"@\xc3\xa9 \xff\nACGT\n+\nIIII\n",
    b"@%b\nACGT\n+\nIIII\n" % (b"i" * 51),
    b"@a %b\nACGT\n+\nIIII\n" % (b"i" * 51),
    b"@a\r\nACGT\r\n+\r\nIIII\r\n",
    b"@a\rACGT\r+\rIIII\r",
    b"@a\rb\nACGT\n+\nIIII\n",
    b"@a\nACGT\n+\nIIII\n" * 3 + b"@b\nA",
    b"@a\n%b\n+\n%b\n" % (b"A" * 500, b"I" * 500),
    b"@a\nAC\nGT\n+\nIIII\n",
    b">a\nACGT\n",
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("block", [100, 1 << 18])
def test_records_of_fastq_among_which_one_is_odd(odd: bytes, block: int, tmp_path: Path) -> None:
    path, limits = tmp_path / "reads", Limits(block=block, record=900, id=50)
    for before, behind in ((0, 9), (1, 9), (9, 0), (9, 9)):
        path.write_bytes(as_fastq(RECORDS[:before]) + odd + as_fastq(RECORDS[9 : 9 + behind]))
        check(path, scan_file(str(path), limits=limits), limits)


@pytest.mark.parametrize("write", [as_fasta, as_fastq])
def test_letters_that_are_changed_at_random(write, tmp_path: Path) -> None:
    rng, path, limits = random.Random(5), tmp_path / "reads", Limits(block=500, record=900, id=50)
    for _ in range(150):
        text = bytearray(write(RECORDS[: rng.randrange(1, 15)]))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(3)] = bytes(rng.choices(b"\n\r@>+ -AI\xe9!", k=rng.randrange(3)))
        path.write_bytes(text)
        check(path, scan_file(str(path), limits=limits), limits)


# Any file

LINE_ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r", b"\r\r\n"])
IDS = st.sampled_from([b"a", b"read/1 1:N:0", b"", b"caf\xc3\xa9", b"\xe9", b"x\ry z", b"i" * 60])
BASES = st.sampled_from(
    [b"ACGTN" * 9, b"A", b"", b"acgun", b"AC-GT..A", b"ACGT ", b"A" * 200, b"RYSW", b"MKLV", b"A\0"]
)
BETWEEN = st.sampled_from([b"", b"", b"", b"", b"\n", b"\n\n\n\n", b" \n"])


@st.composite
def fastq(draw: st.DrawFn) -> bytes:
    """Draw FASTQ that may be odd in many ways."""
    end, usual, text = draw(LINE_ENDS), draw(BASES), []
    for number in range(draw(st.integers(0, 60))):
        is_odd = draw(st.integers(0, 9)) == 0
        bases = draw(BASES) if is_odd else usual
        quality = b"I" * (len(bases) + draw(st.integers(-1, 1)) * (draw(st.integers(0, 5)) == 0))
        head = draw(IDS) if is_odd else b"r%d" % number
        ends = [draw(LINE_ENDS) if is_odd else end for _ in range(4)]
        lines = b"@" + head, bases, b"+" + head * draw(st.booleans()), quality
        text += [
            draw(BETWEEN) if is_odd else b"",
            *(b for pair in zip(lines, ends, strict=True) for b in pair),
        ]
    return b"".join(text)


@st.composite
def fasta(draw: st.DrawFn) -> bytes:
    """Draw FASTA that may be odd in many ways."""
    end, text = draw(LINE_ENDS), []
    for number in range(draw(st.integers(0, 40))):
        is_odd = draw(st.integers(0, 9)) == 0
        text += [b">", draw(IDS) if is_odd else b"r%d" % number, draw(LINE_ENDS) if is_odd else end]
        for _ in range(draw(st.integers(0, 3))):
            text += [draw(BASES) if is_odd else b"ACGT" * 5, draw(LINE_ENDS) if is_odd else end]
        text.append(draw(BETWEEN) if is_odd else b"")
    return b"".join(text)


def in_members(pack: Callable[[bytes], bytes], text: bytes, size: int) -> bytes:
    return b"".join(pack(text[begin : begin + size]) for begin in range(0, len(text), size)) or pack(b"")


def bgzf(text: bytes) -> bytes:
    """Pack *text* as bgzip does, in small members."""
    members = []
    for begin in range(0, len(text) + 400, 400):  # the last one is empty
        packer = zlib.compressobj(wbits=-15)
        block = text[begin : begin + 400]
        data = packer.compress(block) + packer.flush()
        extra = b"\6\0BC\2\0" + struct.pack("<H", len(data) + 25)
        tail = struct.pack("<II", zlib.crc32(block), len(block))
        members.append(b"\x1f\x8b\10\4\0\0\0\0\0\xff" + extra + data + tail)
    return b"".join(members)


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "bgzf": bgzf,
    **{f"{name} members": partial(in_members, form.pack, size=700) for name, form in FORMS.items()},
    **{name: form.pack for name, form in FORMS.items()},
}


@pytest.mark.parametrize("packing", PACKINGS)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_file_has_the_same_tail_from_every_seek_point(packing: str, data: st.DataObject, tmp_path: Path):
    head = data.draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\n \r\n"]))
    packed = PACKINGS[packing](head + data.draw(st.one_of(fastq(), fasta())))
    if len(packed) > 9 and data.draw(st.booleans()):
        at = data.draw(st.integers(6, len(packed) - 1))
        bit = data.draw(st.integers(0, 8))
        packed = packed[:at] + (bytes([packed[at] ^ 1 << bit]) + packed[at + 1 :] if bit < 8 else b"")
    path = tmp_path / "file"
    path.write_bytes(packed)
    # They need not be read in blocks of the size of the scan's.
    scanned, read = (
        Limits(block=data.draw(st.sampled_from([1, 9, 100, 1000, 1 << 18])), record=900, id=50) for _ in "ab"
    )
    check(path, scan_file(str(path), limits=scanned), read)
